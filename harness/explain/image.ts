/**
 * A stopped machine explained from its bytes: registers of a remapping unit and physical memory become mode,
 * devices, PASIDs, domains, what they can reach, queues, faults, and the walk of one address.
 */
import { offsetOf, pageOf } from '../../sim/address.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { ACCESS_EXECUTE, ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../host/pci/dma-port.js';
import { explainWalk } from '../../iommu/intel-vtd/hardware/walk-explanation.js';
import type { WalkReport } from '../inspect.js';
import { parseAddress, parseBdf } from '../topology/units.js';
import { recordedFaults, type RecordedFault } from './fault-records.js';
import { invalidationQueue, pageRequestQueue, type QueueReport } from './queues.js';
import type { RegisterValues } from './register-file.js';
import { bdfText, surveyTables, type TablesReport } from './tables.js';
import { translationState, unitState, type UnitState } from './unit-state.js';

/** What to walk: a requester without names of a topology. */
export interface ImageWalkTarget {
  readonly sourceId: number;
  /** NO_PASID for none. */
  readonly pasid: number;
  readonly address: bigint;
  /** ACCESS_* bits; reading when absent. */
  readonly access?: number;
}

export interface ImageReport {
  readonly unit: UnitState;
  /** Bytes of the image, and its pieces as half-open ranges. */
  readonly image: { readonly sizeBytes: number; readonly ranges: readonly { readonly start: number; readonly end: number }[] };
  readonly tables: TablesReport;
  readonly invalidationQueue: QueueReport | undefined;
  readonly pageRequestQueue: QueueReport | undefined;
  readonly faults: readonly RecordedFault[];
  readonly walk: WalkReport | undefined;
}

/** Memory that knows how large it is: an ImageMemory or a Ram. */
export interface ImageLike extends PhysicalMemory {
  readonly sizeBytes: number;
}

/** `BDF/PASID/ADDRESS`, PASID `-` for none, with `:w` or `:x` behind the address for writing or executing; a sentence when it is none. */
export function parseImageWalk(text: string): ImageWalkTarget | string {
  const parts = text.split('/');
  if (parts.length !== 3) return `"${text}" is not BDF/PASID/ADDRESS, such as 6a:01.0/1/0x7ffff7fbb000`;
  const [device, pasidText, addressText] = parts as [string, string, string];
  const bdf = parseBdf(device);
  if (bdf === undefined) return `"${device}" is no PCI address such as 6a:01.0; an image knows no names`;
  if (!/^(-|0x[0-9a-fA-F]+|\d+)$/.test(pasidText)) return `"${pasidText}" is no PASID; allowed: a number, or - for requests without one`;
  const pasid = pasidText === '-' ? NO_PASID : Number(pasidText);
  if (pasid >= 2 ** 20) return `PASID ${pasidText} has more than 20 bits`;
  const [place, kind] = addressText.split(':') as [string, string | undefined];
  const address = parseAddress(place);
  const access = kind === undefined || kind === 'r' ? ACCESS_READ : kind === 'w' ? ACCESS_WRITE : kind === 'x' ? ACCESS_READ | ACCESS_EXECUTE : undefined;
  if (address === undefined || access === undefined) return `"${addressText}" is no address; allowed: 0x…, with :w or :x behind it for writing or executing`;
  return { sourceId: (bdf.bus << 8) | (bdf.device << 3) | bdf.function, pasid, address, access };
}

/** Explains an image. Reads memory only; bounded for any bytes. */
export function explainImage(memory: ImageLike, registers: RegisterValues, walk?: ImageWalkTarget): ImageReport {
  const unit = unitState(registers);
  return {
    unit,
    image: { sizeBytes: memory.sizeBytes, ranges: rangesOf(memory) },
    tables: surveyTables(memory, unit),
    invalidationQueue: invalidationQueue(memory, registers),
    pageRequestQueue: pageRequestQueue(memory, registers),
    faults: recordedFaults(registers),
    walk: walk === undefined ? undefined : walkImage(memory, unit, walk),
  };
}

function walkImage(memory: PhysicalMemory, unit: UnitState, target: ImageWalkTarget): WalkReport {
  const { sourceId, pasid, address, access } = target;
  const head = { device: bdfText(sourceId), pasid: pasid === NO_PASID ? undefined : pasid, address };
  if (unit.rootTable === undefined) {
    return { ...head, steps: [], physical: undefined, pages: 1, read: false, write: false, execute: false, reason: 0, text: 'RTADDR is missing: the tables cannot be found' };
  }
  const { page, ...rest } = explainWalk(memory, unit.capabilities, translationState(unit), { sourceId, pasid, page: pageOf(address), access: access ?? ACCESS_READ });
  return { ...head, ...rest, physical: page === undefined ? undefined : BigInt(page) * 4096n + BigInt(offsetOf(address)) };
}

const MAX_SHOWN_RANGES = 16;

function rangesOf(memory: ImageLike): { start: number; end: number }[] {
  const pieces = (memory as { pieces?: readonly { start: number; bytes: { length: number } }[] }).pieces ?? [];
  const ranges: { start: number; end: number }[] = [];
  for (const { start, bytes } of pieces) {
    const last = ranges.at(-1);
    if (last?.end === start) last.end = start + bytes.length;
    else ranges.push({ start, end: start + bytes.length });
  }
  return ranges.slice(0, MAX_SHOWN_RANGES);
}
