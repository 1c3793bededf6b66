/** Sizes, times and addresses as people write them in topologies and on the command line. */

const SIZE_UNITS: Record<string, number> = { '': 1, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };
const TIME_UNITS: Record<string, number> = { ns: 1, us: 1e3, ms: 1e6, s: 1e9 };

/** Bytes of `4096`, `64KiB`, `0x1000`; undefined when the text is none. */
export function parseSize(text: string | number | bigint): number | undefined {
  if (typeof text !== 'string') return whole(Number(text));
  const match = /^(0x[0-9a-fA-F]+|\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text.trim());
  const unit = match === null ? undefined : SIZE_UNITS[match[2]!];
  return match === null || unit === undefined ? undefined : whole(Number(match[1]) * unit);
}

/** Nanoseconds of `500us`, `1.5ms`, `0`; undefined when the text is none. A bare number other than 0 has no unit. */
export function parseTime(text: string | number | bigint): number | undefined {
  if (typeof text !== 'string') return Number(text) === 0 ? 0 : undefined;
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]+)$/.exec(text.trim());
  const unit = match === null ? undefined : TIME_UNITS[match[2]!];
  return match === null || unit === undefined ? undefined : whole(Math.round(Number(match[1]) * unit));
}

/** A 64-bit address or value, `0x…` or decimal. */
export function parseAddress(text: string | number | bigint): bigint | undefined {
  if (typeof text === 'number') return Number.isInteger(text) && text >= 0 ? BigInt(text) : undefined;
  if (typeof text === 'bigint') return text >= 0n && text < 1n << 64n ? text : undefined;
  if (!/^(0x[0-9a-fA-F]+|\d+)$/.test(text.trim())) return undefined;
  const value = BigInt(text.trim());
  return value < 1n << 64n ? value : undefined;
}

export interface Bdf {
  readonly segment: number;
  readonly bus: number;
  readonly device: number;
  readonly function: number;
}

/** `0000:6a:01.0`, or `6a:01.0` in segment 0. */
export function parseBdf(text: string): Bdf | undefined {
  const match = /^(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])$/.exec(text);
  if (match === null) return undefined;
  const [, segment, bus, device, fn] = match;
  return { segment: parseInt(segment ?? '0', 16), bus: parseInt(bus!, 16), device: parseInt(device!, 16), function: parseInt(fn!, 16) };
}

export function formatBdf(bdf: Bdf): string {
  const part = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
  return `${part(bdf.segment, 4)}:${part(bdf.bus, 2)}:${part(bdf.device, 2)}.${bdf.function}`;
}

/** Requester id of a function: bus << 8 | device << 3 | function. */
export function sourceIdOf(text: string): number {
  const { bus, device, function: fn } = parseBdf(text)!;
  return (bus << 8) | (device << 3) | fn;
}

export function formatSize(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const scale = SIZE_UNITS[unit]!;
    if (bytes >= scale) return `${trim(bytes / scale)} ${unit}`;
  }
  return `${bytes} B`;
}

export function formatTime(ns: number): string {
  if (ns >= 1e9) return `${trim(ns / 1e9)} s`;
  if (ns >= 1e6) return `${trim(ns / 1e6)} ms`;
  if (ns >= 1e3) return `${trim(ns / 1e3)} µs`;
  return `${ns} ns`;
}

function trim(value: number): string {
  return String(Math.round(value * 100) / 100);
}

function whole(value: number): number | undefined {
  return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}
