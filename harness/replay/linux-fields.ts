/** Fields that a recorder decoded, against our layouts of the same words; and table walks against our walker. */
import { hex } from '../../sim/address.js';
import { wordsOf } from '../../sim/layout.js';
import type { WalkStep } from '../../iommu/intel-vtd/hardware/walk-explanation.js';
import { DESCRIPTOR_LAYOUTS } from '../../iommu/intel-vtd/spec/descriptors.js';
import type { RecordedWalk } from './linux-tables.js';
import type { TraceLine } from './linux-trace.js';

/** What differs, in words for a report. */
export interface Difference {
  readonly expected: string;
  readonly got: string;
}

/** Descriptor types as the recorder names them; index is the type. */
const TYPE_NAMES = ['', 'CC', 'IOTLB', 'DEVTLB', 'IEC', 'WAIT', 'P_IOTLB', 'PASIDC', 'P_DEVTLB', 'PGRP'] as const;

/** Names of fields in a `desc` line, the manual's name, and the weight of its lowest bit. */
const FIELDS: readonly (readonly [recorded: string, name: string, weight?: bigint])[] = [
  ['gran', 'G'], ['did', 'DID'], ['sid', 'SID'], ['fm', 'FM'], ['dr', 'DR'], ['dw', 'DW'], ['addr', 'ADDR', 4096n], ['ih', 'IH'], ['am', 'AM'],
  ['pasid', 'PASID'], ['S', 'S'], ['sw', 'SW'], ['status_addr', 'SADDR', 4n], ['status_data', 'SDATA'], ['pasid_p', 'PP'], ['resp', 'RESP'], ['rid', 'RID'], ['prgi', 'PRGI'],
];

/** Decodes the words of a `desc` line with our layout and compares the fields that the recorder decoded. */
export function differingFields(line: TraceLine): Difference | undefined {
  const raw = line.words('raw');
  const words = wordsOf(...raw, ...Array.from({ length: 4 - raw.length }, () => 0n));
  const type = words[0]! & 0xf;
  const layout = DESCRIPTOR_LAYOUTS[type];
  if (layout === undefined || TYPE_NAMES[type] !== line.text('type')) return { expected: line.text('type'), got: TYPE_NAMES[type] ?? hex(type) };
  const fields = layout.decode(words) as Readonly<Record<string, bigint>>;
  const expected: string[] = [], got: string[] = [];
  for (const [recorded, name, weight = 1n] of FIELDS) {
    if (!line.has(recorded)) continue;
    const value = fields[name];
    const theirs = line.big(recorded), ours = value === undefined ? undefined : value * weight;
    if (theirs === ours) continue;
    expected.push(`${name}=0x${theirs.toString(16)}`);
    got.push(`${name}=${ours === undefined ? 'absent' : `0x${ours.toString(16)}`}`);
  }
  return expected.length === 0 ? undefined : { expected: expected.join(' '), got: got.join(' ') };
}

/** The entries that our walker meets, against those of a recorded walk: places and words. */
export function differingWalk(walk: RecordedWalk, steps: readonly WalkStep[]): Difference | undefined {
  const entries: [what: WalkStep['what'], address: number | undefined, words: readonly bigint[]][] = [
    ['root', undefined, [walk.root]], ['context', walk.contextAddress, walk.context],
    ...(walk.scalable ? [['pasid-directory', undefined, [walk.directory!]], ['pasid', walk.pasidAddress, walk.pasidEntry!]] as [WalkStep['what'], number | undefined, readonly bigint[]][] : []),
  ];
  const show = (what: string, address: number | undefined, words: readonly bigint[]): string =>
    `${what}${address === undefined ? '' : ` at ${hex(address)}`}: ${words.map((word) => `0x${word.toString(16)}`).join(' ')}`;
  for (const [what, address, words] of entries) {
    const step = steps.find((candidate) => candidate.what === what);
    const expected = show(what, address, words);
    if (step === undefined) return { expected, got: `no ${what} entry read` };
    // the upper half of a root entry serves device numbers from 16 on
    const first = what === 'root' && walk.scalable && (walk.sourceId & 0x80) !== 0 ? 1 : 0;
    const got = show(what, address === undefined ? undefined : step.address, step.qwords.slice(first, first + words.length));
    if (got !== expected) return { expected, got };
  }
  return undefined;
}
