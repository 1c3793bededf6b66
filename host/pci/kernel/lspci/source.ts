/** What lspci prints from: bytes of configuration space, and what a kernel knows beside them. */
import type { BarResource } from '../bars.js';
import type { ConfigWindow } from '../pci-device.js';

/** A function; `PciFunctionDevice` is one, a parsed hex dump gives others. */
export interface LspciFunction {
  readonly segment: number;
  readonly bus: number;
  readonly devfn: number;
  readonly config: Pick<ConfigWindow, 'read'>;
  /** As read, or of a VF, whose own read as ffff. */
  readonly vendorId: number;
  readonly deviceId: number;
  /** Memory resources as the kernel assigned them; undefined when only the bytes are known. */
  readonly bars?: readonly Pick<BarResource, 'index' | 'sizeBytes' | 'is64' | 'prefetchable' | 'start'>[];
}

/** `+` or `-`, as lspci shows a bit. */
export function flag(word: number, mask: number): '+' | '-' {
  return (word & mask) !== 0 ? '+' : '-';
}

/** Several bits: `Name+ Other-`. */
export function flags(word: number, names: readonly (readonly [name: string, mask: number])[]): string {
  return names.map(([name, mask]) => name + flag(word, mask)).join(' ');
}

export function hexDigits(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}

/** ` [size=16K]`, nothing for 0. */
export function sizeText(sizeBytes: number): string {
  if (sizeBytes === 0) return '';
  let size = sizeBytes, suffix = 0;
  while (suffix < 4 && size % 1024 === 0) {
    size /= 1024;
    suffix++;
  }
  return ` [size=${size}${['', 'K', 'M', 'G', 'T'][suffix]!}]`;
}

/** `6a:01.0`, with the segment in front when asked. */
export function slotName(fn: LspciFunction, withSegment: boolean): string {
  const segment = withSegment ? hexDigits(fn.segment, 4) + ':' : '';
  return `${segment}${hexDigits(fn.bus, 2)}:${hexDigits(fn.devfn >> 3, 2)}.${fn.devfn & 7}`;
}
