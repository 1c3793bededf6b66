/**
 * Vectors (formats iommu-vector/1 and /2, see docs/replay.md) as the replayer and the recorder know them: checked, with
 * numbers instead of hexadecimal strings.
 */

export const FORMATS = ['iommu-vector/1', 'iommu-vector/2'] as const;

/** `properties` that have a meaning here; others are the producer's own. */
export interface VectorProperties {
  /** Physical ranges that are memory, in bytes, half-open; everything else is not. */
  readonly ram: readonly { readonly start: number; readonly end: number }[];
  /** Host address width in bits: `hostAddressWidth`, or `awBits` of format 1. */
  readonly hostAddressWidth: number;
  /** IOTLB entries of the hardware that was recorded; then only that configuration is replayed. */
  readonly iotlbEntries?: number;
  /** Time after which hardware gives up a device-TLB invalidation. */
  readonly invalidationTimeoutNs?: number;
}

export interface VectorRegister {
  readonly offset: number;
  readonly size: 4 | 8;
  readonly value: bigint;
}

interface StepBase {
  /** Simulated time in nanoseconds, where the file has one. */
  readonly t?: number;
}

/** Software wrote memory. */
export interface MemStep extends StepBase {
  readonly op: 'mem';
  readonly at: number;
  readonly bytes: Uint8Array;
}

export interface MmioWriteStep extends StepBase {
  readonly op: 'mmioWrite';
  readonly offset: number;
  readonly size: 1 | 2 | 4 | 8;
  readonly value: bigint;
}

export interface MmioReadStep extends StepBase {
  readonly op: 'mmioRead';
  readonly offset: number;
  readonly size: 1 | 2 | 4 | 8;
  readonly expect: bigint;
  readonly mask: bigint;
}

/** A request of a function; `pasid` NO_PASID without one, `attributes` ATTR_* bits. */
interface RequestStep extends StepBase {
  readonly sourceId: number;
  readonly pasid: number;
  readonly page: number;
  readonly offset: number;
  readonly attributes: number;
}

export type Refusal = 'UR' | 'CA';

export interface DmaStep extends RequestStep {
  readonly op: 'dma';
  readonly write: boolean;
  readonly length: number;
  /** Physical address of the first byte; undefined: nothing moved. */
  readonly pa: number | undefined;
  /** How it was refused, where the file says. */
  readonly refusal?: Refusal;
  readonly note: string;
}

/** What an ATS translation request was answered with; `pages` 4 KiB pages from `pa` on. */
export interface TranslationAnswer {
  readonly pa: number;
  readonly pages: number;
  /** Letters of `r`, `w`, `x`, `p` (privileged), `g` (global), `u` (untranslated requests only), in this order. */
  readonly rights: string;
}

export interface TranslateStep extends RequestStep {
  readonly op: 'translate';
  readonly answer: TranslationAnswer | Refusal;
}

export interface PageRequestStep extends StepBase {
  readonly op: 'pageRequest';
  readonly sourceId: number;
  readonly pasid: number;
  readonly page: number;
  /** ACCESS_* bits. */
  readonly access: number;
  readonly last: boolean;
  readonly group: number;
}

/** A device sends a message-signalled interrupt. */
export interface InterruptRequestStep extends StepBase {
  readonly op: 'interruptRequest';
  readonly sourceId: number;
  readonly address: number;
  readonly data: number;
  /** What goes to the processors; undefined: it is blocked. */
  readonly message: { readonly address: number; readonly data: number } | undefined;
}

/** A device completed an invalidation. */
export interface DeviceTlbCompleteStep extends StepBase {
  readonly op: 'deviceTlbComplete';
  readonly sourceId: number;
  readonly tag: number;
}

/** The next delay that the hardware begins takes this long. */
export interface DelayStep extends StepBase {
  readonly op: 'delay';
  readonly ns: number;
}

export interface MemExpectStep extends StepBase {
  readonly op: 'memExpect';
  readonly at: number;
  readonly bytes: Uint8Array;
  readonly mask: Uint8Array | undefined;
}

/** The hardware's message-signalled interrupt. */
export interface InterruptStep extends StepBase {
  readonly op: 'interrupt';
  readonly address: number;
  readonly data: number;
}

export interface PageResponseStep extends StepBase {
  readonly op: 'pageResponse';
  readonly sourceId: number;
  readonly pasid: number;
  readonly group: number;
  readonly code: number;
}

/** The hardware asks a device to forget; `pages` is Infinity for all addresses. */
export interface DeviceTlbInvalidateStep extends StepBase {
  readonly op: 'deviceTlbInvalidate';
  readonly sourceId: number;
  readonly tag: number;
  readonly pasid: number;
  readonly page: number;
  readonly pages: number;
  readonly global: boolean;
}

/** What hardware sends by itself. */
export type OutputStep = InterruptStep | PageResponseStep | DeviceTlbInvalidateStep;
/** What happens to the hardware. */
export type InputStep = MmioWriteStep | MmioReadStep | DmaStep | TranslateStep | PageRequestStep | InterruptRequestStep | DeviceTlbCompleteStep;
export type Step = MemStep | MemExpectStep | DelayStep | InputStep | OutputStep;
export type StepOp = Step['op'];

/** Operations of format 1; format 2 has all. */
export const OPS_1: readonly StepOp[] = ['mem', 'mmioWrite', 'mmioRead', 'dma', 'memExpect'];
export const OPS_2: readonly StepOp[] = [
  ...OPS_1, 'translate', 'pageRequest', 'interruptRequest', 'deviceTlbComplete', 'delay', 'interrupt', 'pageResponse', 'deviceTlbInvalidate',
];

export interface Vector {
  readonly version: 1 | 2;
  readonly name: string;
  /** What produced the file. */
  readonly source: string;
  readonly registers: readonly VectorRegister[];
  readonly properties: VectorProperties;
  readonly steps: readonly Step[];
}

/** `0000:6a:01.0`, of segment 0. */
export function formatRequester(sourceId: number): string {
  const two = (value: number): string => value.toString(16).padStart(2, '0');
  return `0000:${two(sourceId >> 8)}:${two((sourceId >> 3) & 31)}.${sourceId & 7}`;
}
