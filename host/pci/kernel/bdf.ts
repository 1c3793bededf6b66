/** Names of PCI functions as sysfs spells them: `0000:6a:01.0`, `6a:01.0` in segment 0. */
import { devfnOf } from '../spec/index.js';

export interface Bdf {
  readonly segment: number;
  readonly bus: number;
  readonly devfn: number;
}

const SHAPE = /^(?:([0-9a-f]+):)?([0-9a-f]+):([0-9a-f]+)\.([0-9a-f]+)$/i;

/**
 * The numbers of a name such as `0000:6a:01.0`; the segment may be left out. A string says what is wrong with it,
 * ready for a list of problems: nothing is thrown.
 */
export function parseBdf(text: string): Bdf | string {
  const parts = SHAPE.exec(text.trim());
  if (parts === null) return `"${text}" is not a PCI address: expected segment:bus:device.function in hex, like "0000:6a:01.0"`;
  const number = (part: string | undefined): number => (part === undefined ? 0 : parseInt(part, 16));
  const segment = number(parts[1]), bus = number(parts[2]), device = number(parts[3]), fn = number(parts[4]);
  if (segment > 0xffff) return `"${text}": segment ${parts[1]} is above ffff`;
  if (bus > 0xff) return `"${text}": bus ${parts[2]} is above ff`;
  if (device > 0x1f) return `"${text}": device ${parts[3]} is above 1f`;
  if (fn > 7) return `"${text}": function ${parts[4]} is above 7`;
  return { segment, bus, devfn: devfnOf(device, fn) };
}

/** Order of names: segment, bus, devfn. */
export function compareBdf(a: Bdf, b: Bdf): number {
  return a.segment - b.segment || a.bus - b.bus || a.devfn - b.devfn;
}
