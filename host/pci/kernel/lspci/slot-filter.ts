/** Which functions `lspci -s` means: any part of `segment:bus:device.function` may be left out or be `*`. */
import { devfnOf } from '../../spec/index.js';
import type { LspciFunction } from './source.js';

/** Undefined parts match everything. */
export interface SlotFilter {
  readonly segment: number | undefined;
  readonly bus: number | undefined;
  readonly device: number | undefined;
  readonly function: number | undefined;
}

const SHAPE = /^(?:(?:([0-9a-f]*|\*):)?([0-9a-f]*|\*):)?([0-9a-f]*|\*)(?:\.([0-9a-f]*|\*))?$/i;

/**
 * `6a:01.0`, `0000:6a:01.0`, `6a:` (a bus), `01` (a device), `.0` (a function), as pciutils reads them
 * (lib/filter.c). A string says what is wrong with the text.
 */
export function parseSlotFilter(text: string): SlotFilter | string {
  const parts = SHAPE.exec(text.trim());
  if (parts === null) return `"${text}" is no [[[segment:]bus:][device][.function]] in hex, such as 6a:01.0, 6a: or .0`;
  const number = (part: string | undefined): number | undefined => (part === undefined || part === '' || part === '*' ? undefined : parseInt(part, 16));
  const filter = { segment: number(parts[1]), bus: number(parts[2]), device: number(parts[3]), function: number(parts[4]) };
  if ((filter.segment ?? 0) > 0xffff) return `"${text}": segment ${parts[1]} is above ffff`;
  if ((filter.bus ?? 0) > 0xff) return `"${text}": bus ${parts[2]} is above ff`;
  if ((filter.device ?? 0) > 0x1f) return `"${text}": device ${parts[3]} is above 1f`;
  if ((filter.function ?? 0) > 7) return `"${text}": function ${parts[4]} is above 7`;
  return filter;
}

export function matchesSlot(fn: LspciFunction, filter: SlotFilter): boolean {
  return (filter.segment ?? fn.segment) === fn.segment && (filter.bus ?? fn.bus) === fn.bus
    && devfnOf(filter.device ?? fn.devfn >> 3, filter.function ?? fn.devfn & 7) === fn.devfn;
}
