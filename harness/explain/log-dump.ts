/**
 * The tables that a kernel with CONFIG_DMAR_DEBUG prints after a fault (drivers/iommu/intel/iommu.c,
 * dmar_fault_dump_ptes): raw words of root, context, PASID and paging entries, decoded here by the manual's fields.
 */
import { wordsOf } from '../../sim/layout.js';
import { FIRST_LEVEL_ENTRY, SECOND_LEVEL_ENTRY } from '../../iommu/intel-vtd/spec/paging.js';
import { PASID_DIRECTORY_ENTRY, PASID_ENTRY, PGTT_FIRST_LEVEL, PGTT_NESTED } from '../../iommu/intel-vtd/spec/pasid-table.js';
import { CONTEXT_ENTRY, ROOT_ENTRY, SM_CONTEXT_ENTRY, SM_ROOT_ENTRY } from '../../iommu/intel-vtd/spec/root-context.js';
import type { Finding } from './log-finding.js';

const START = /Dump (\S{1,16}) table entries for IOVA 0x([0-9a-f]{1,16})/i;
const SCALABLE_ROOT = /scalable mode root entry: hi 0x([0-9a-f]{1,16}), low 0x([0-9a-f]{1,16})/i;
const LEGACY_ROOT = /root entry: 0x([0-9a-f]{1,16})/i;
const CONTEXT = /context entry: hi 0x([0-9a-f]{1,16}), low 0x([0-9a-f]{1,16})/i;
const DIRECTORY = /pasid dir entry: 0x([0-9a-f]{1,16})/i;
const PASID_WORD = /pasid table entry\[([0-7])\]: 0x([0-9a-f]{1,16})/i;
const PTE = /pte level: ([1-5]), pte value: 0x([0-9a-f]{1,16})/i;
const ABSENT = /((?:root|context|pasid (?:directory|table)|legacy mode page|scalable mode page|page) table(?: entry)? is not present|page table not present at level \d|PTE not present at level \d|pasid directory entry is not present|pasid table entry is not present)/i;

/** One dump, gathered line by line. */
export class TableDump {
  readonly unit: string;
  readonly address: bigint;
  private readonly details: string[] = [];
  private scalable = false;
  private firstLevel = false;
  private ended = '';
  private readonly pasid: bigint[] = [];

  private constructor(unit: string, address: bigint) {
    this.unit = unit;
    this.address = address;
  }

  /** A new dump when the line begins one. */
  static start(line: string): TableDump | undefined {
    const match = START.exec(line);
    return match === null ? undefined : new TableDump(match[1]!, BigInt(`0x${match[2]!}`));
  }

  /** True when the line belongs to the dump. */
  take(line: string): boolean {
    let match = SCALABLE_ROOT.exec(line);
    if (match !== null) {
      this.scalable = true;
      return this.add('root entry', SM_ROOT_ENTRY.format(wordsOf(word(match[2]), word(match[1]))));
    }
    match = CONTEXT.exec(line);
    if (match !== null) {
      const words = wordsOf(word(match[2]), word(match[1]), 0n, 0n);
      return this.add('context entry', this.scalable ? SM_CONTEXT_ENTRY.format(words) : CONTEXT_ENTRY.format(words));
    }
    match = DIRECTORY.exec(line);
    if (match !== null) return this.add('PASID directory entry', PASID_DIRECTORY_ENTRY.format(wordsOf(word(match[1]))));
    match = PASID_WORD.exec(line);
    if (match !== null) return this.pasidWord(Number(match[1]), word(match[2]));
    match = PTE.exec(line);
    if (match !== null) {
      const layout = this.firstLevel ? FIRST_LEVEL_ENTRY : SECOND_LEVEL_ENTRY;
      return this.add(`${this.firstLevel ? 'first' : 'second'}-level entry, level ${Number(match[1]) - 1}`, layout.format(wordsOf(word(match[2]))));
    }
    match = ABSENT.exec(line);
    if (match !== null) {
      this.ended = match[1]!;
      return true;
    }
    match = LEGACY_ROOT.exec(line);
    return match !== null && this.add('root entry', ROOT_ENTRY.format(wordsOf(word(match[1]), 0n)));
  }

  finding(): Finding {
    const last = this.details.at(-1)?.split(':')[0];
    const end = this.ended !== '' ? `The walk ended with "${this.ended}".` : last === undefined ? 'No entry follows.' : `The last one shown is the ${last.trim()}.`;
    return {
      kind: 'table-dump', identity: `${this.unit} ${this.details.join('|')} ${this.ended}`, title: `entries of ${this.unit} for 0x${this.address.toString(16)}`,
      what: `What memory held when the kernel looked, which is a little after the fault; the unit may have used older, cached entries. ${end}`, address: this.address, details: this.details,
    };
  }

  private pasidWord(index: number, value: bigint): boolean {
    this.pasid[index] = value;
    if (index === 7 || index === 2) {
      const words = wordsOf(...Array.from({ length: 8 }, (_, i) => this.pasid[i] ?? 0n));
      const type = PASID_ENTRY.f.PGTT.get(words);
      this.firstLevel = type === PGTT_FIRST_LEVEL || type === PGTT_NESTED;
      if (index === 7) return this.add('PASID table entry', PASID_ENTRY.format(words));
    }
    return true;
  }

  private add(what: string, text: string): true {
    this.details.push(`${what}: ${text === '' ? 'all zero' : text}`);
    return true;
  }
}

function word(text: string | undefined): bigint {
  return BigInt(`0x${text ?? '0'}`);
}
