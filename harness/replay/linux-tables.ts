/**
 * The tables that a traced kernel built, as far as the trace shows them. A `walk` line holds the entries down to the
 * context or PASID entry, with their addresses; they are written where they stood. Paging entries are not in a
 * trace: a DMA line shows where a page led, a page request or a fault shows that it led nowhere (or could not be
 * written), and the leaf is set to what a line shows before that line is replayed. Root tables stand where the
 * entries say, the tables below them in scratch memory. So software's side of every change is done, and whether
 * the unit forgot what it had cached depends on the recorded invalidations alone.
 */
import { hex, hiOf, loOf } from '../../sim/address.js';
import { wordsOf } from '../../sim/layout.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { PageTableFormat } from '../../host/page-table/format.js';
import { PageTable } from '../../host/page-table/page-table.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { PROT_READ, PROT_WRITE } from '../../iommu/core/ops.js';
import {
  CONTEXT_ENTRY, SM_CONTEXT_ENTRY, TT_PASS_THROUGH, levelsOfAddressWidth, rootEntryAddress,
} from '../../iommu/intel-vtd/spec/root-context.js';
import { FLPM_5_LEVEL, PASID_ENTRY, PGTT_FIRST_LEVEL, PGTT_SECOND_LEVEL, pasidDirectoryEntryAddress } from '../../iommu/intel-vtd/spec/pasid-table.js';
import { VTD_FIRST_LEVEL } from '../../iommu/page-table/vtd-first-level.js';
import { VTD_SECOND_LEVEL } from '../../iommu/page-table/vtd-second-level.js';
import type { TraceLine } from './linux-trace.js';

/** The entries of a `walk` line. */
export interface RecordedWalk {
  readonly scalable: boolean;
  readonly sourceId: number;
  readonly pasid: number;
  readonly root: bigint;
  readonly contextAddress: number;
  readonly context: readonly bigint[];
  /** Scalable mode only. */
  readonly directory?: bigint;
  readonly pasidAddress?: number;
  readonly pasidEntry?: readonly bigint[];
}

/**
 * Reads the `tables` of a walk line; undefined when they have neither known form:
 * `legacy`, root table, root entry, `ctx@address` and two words; or `scalable`, `root` entry, `ctx@address` and two words,
 * `dir` entry, `pasid@address` and three words.
 */
export function readWalk(line: TraceLine): RecordedWalk | undefined {
  const tables = line.list('tables');
  const word = (index: number, prefix = ''): bigint | undefined => {
    const text = tables[index];
    const match = text?.startsWith(prefix) === true ? /^0x[0-9a-f]{1,16}$/.exec(text.slice(prefix.length)) : null;
    return match === null ? undefined : BigInt(match[0]);
  };
  const sourceId = line.integer('rid');
  const pasid = line.has('pasid') ? line.integer('pasid') : NO_PASID;
  if (tables[0] === 'legacy') {
    const root = word(2), at = word(3, 'ctx@'), q0 = word(4), q1 = word(5);
    if (root === undefined || at === undefined || q0 === undefined || q1 === undefined) return undefined;
    return { scalable: false, sourceId, pasid, root, contextAddress: Number(at), context: [q0, q1] };
  }
  const root = word(1, 'root '), at = word(2, 'ctx@'), c0 = word(3), c1 = word(4), directory = word(5, 'dir '), entryAt = word(6, 'pasid@');
  const entry = [word(7), word(8), word(9)];
  if (tables[0] !== 'scalable' || root === undefined || at === undefined || c0 === undefined || c1 === undefined || directory === undefined || entryAt === undefined) return undefined;
  if (entry.some((value) => value === undefined)) return undefined;
  return {
    scalable: true, sourceId, pasid, root, contextAddress: Number(at), context: [c0, c1], directory, pasidAddress: Number(entryAt), pasidEntry: entry as bigint[],
  };
}

/** What translates for one (requester, PASID), and what tags its translations. */
interface Space {
  /** Undefined for pass-through. */
  readonly table: PageTable | undefined;
  readonly tag: CacheTag;
}

/** What the unit tags cached translations with. */
export interface CacheTag {
  readonly domainId: number;
  /** That of the request or RID_PASID; NO_PASID for second-level tables, which domain-wide invalidations name. */
  readonly pasid: number;
}

export class LinuxTables {
  private readonly memory: PhysicalMemory;
  private scratch: number;
  private readonly spaces = new Map<string, Space>();
  private readonly tables = new Map<number, PageTable>();

  /** @param scratch start of memory that the kernel does not own, for the tables below the roots */
  constructor(memory: PhysicalMemory, scratch: number) {
    this.memory = memory;
    this.scratch = scratch;
  }

  /** Writes the entries of a walk where they stood. */
  write(walk: RecordedWalk, rootTable: number): void {
    const rootAt = rootEntryAddress(rootTable, walk.sourceId) + (walk.scalable && (walk.sourceId & 0x80) !== 0 ? 8 : 0);
    this.store(rootAt, [walk.root]);
    this.store(walk.contextAddress, walk.context);
    if (!walk.scalable) {
      const words = wordsOf(...walk.context);
      const { TT, SLPTPTR, AW, DID } = CONTEXT_ENTRY.f;
      const table = TT.get(words) === TT_PASS_THROUGH ? undefined : this.tableAt(SLPTPTR.get(words), VTD_SECOND_LEVEL, levelsOfAddressWidth(AW.get(words)));
      this.spaces.set(key(walk.sourceId, walk.pasid), { table, tag: { domainId: DID.get(words), pasid: NO_PASID } });
      return;
    }
    const context = wordsOf(...walk.context, 0n, 0n);
    const { PASIDDIRPTR, RID_PASID } = SM_CONTEXT_ENTRY.f;
    const pasid = walk.pasid === NO_PASID ? RID_PASID.get(context) : walk.pasid;
    this.store(pasidDirectoryEntryAddress(PASIDDIRPTR.get(context), pasid), [walk.directory!]);
    this.store(walk.pasidAddress!, walk.pasidEntry!);
    const entry = wordsOf(...walk.pasidEntry!, 0n, 0n, 0n, 0n, 0n);
    const table = this.tableOf(entry);
    const tag = { domainId: PASID_ENTRY.f.DID.get(entry), pasid: table?.format === VTD_FIRST_LEVEL ? pasid : NO_PASID };
    this.spaces.set(key(walk.sourceId, walk.pasid), { table, tag });
  }

  /** True when a walk of (requester, PASID) has been seen. */
  knows(sourceId: number, pasid: number): boolean {
    return this.spaces.has(key(sourceId, pasid));
  }

  /** What tags the translations of (requester, PASID); undefined before a walk has been seen. */
  tagOf(sourceId: number, pasid: number): CacheTag | undefined {
    return this.spaces.get(key(sourceId, pasid))?.tag;
  }

  /** The page leads to `frame`; `write` says that it was written, so that it must be writable. */
  lead(sourceId: number, pasid: number, page: number, frame: number, write: boolean): void {
    const table = this.tableFor(sourceId, pasid);
    if (table === undefined) return;
    if (table.find(page) && table.translate(page) === frame * 4096 && (!write || isWritable(table))) return;
    this.setLeaf(table, page, frame, PROT_READ | PROT_WRITE);
  }

  /** The page may be read only; where it led is not known unless a line showed it. */
  protect(sourceId: number, pasid: number, page: number): void {
    const table = this.tableFor(sourceId, pasid);
    if (table === undefined) return;
    const known = table.find(page) ? table.translate(page) / 4096 : 0;
    this.setLeaf(table, page, known, PROT_READ);
  }

  /** The page leads nowhere. */
  unmap(sourceId: number, pasid: number, page: number): void {
    const table = this.tableFor(sourceId, pasid);
    if (table?.find(page) === true) this.memory.store64(table.slot, 0, 0);
  }

  private setLeaf(table: PageTable, page: number, frame: number, prot: number): void {
    const slot = table.ensureSlot(page, 0);
    const address = frame * 4096;
    this.memory.store64(slot, (address | 0) | table.format.leafLo(prot, 0), Math.floor(address / 0x1_0000_0000) | table.format.leafHi(prot, 0));
  }

  private tableFor(sourceId: number, pasid: number): PageTable | undefined {
    return this.spaces.get(key(sourceId, pasid))?.table;
  }

  private tableOf(entry: Uint32Array): PageTable | undefined {
    const { PGTT, AW, SLPTPTR, FLPM, FLPTPTR } = PASID_ENTRY.f;
    switch (PGTT.get(entry)) {
      case PGTT_FIRST_LEVEL: return this.tableAt(FLPTPTR.get(entry), VTD_FIRST_LEVEL, FLPM.get(entry) === FLPM_5_LEVEL ? 5 : 4);
      case PGTT_SECOND_LEVEL: return this.tableAt(SLPTPTR.get(entry), VTD_SECOND_LEVEL, levelsOfAddressWidth(AW.get(entry)));
      default: return undefined;
    }
  }

  /** The page table whose root stands at an address that the kernel chose. */
  private tableAt(root: number, format: PageTableFormat, levels: number): PageTable {
    const known = this.tables.get(root);
    if (known !== undefined) return known;
    let rootGiven = false;
    const alloc = (): number => {
      if (!rootGiven) {
        rootGiven = true;
        return root;
      }
      const address = this.scratch;
      this.scratch += 4096;
      return address;
    };
    const table = new PageTable({ memory: this.memory, frames: { alloc, free: () => {} }, format, levels, owner: `tables at ${hex(root)}` });
    this.tables.set(root, table);
    return table;
  }

  private store(address: number, words: readonly bigint[]): void {
    words.forEach((word, i) => this.memory.store64(address + 8 * i, loOf(word), hiOf(word)));
  }
}

function key(sourceId: number, pasid: number): string {
  return `${sourceId}/${pasid}`;
}

/** The leaf that `find` found last may be written; both formats have W at bit 1. */
function isWritable(table: PageTable): boolean {
  return (table.lo & 2) !== 0;
}
