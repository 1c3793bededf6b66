/**
 * Little-endian values in byte arrays. A DataView would do the same, but a small array has no buffer until somebody
 * asks for it: making one costs ten times what reading or writing these bytes does.
 */

/** 32 unsigned bits. */
export function load32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

/** The low 32 bits of `value`. */
export function store32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

/** An unsigned value of 1, 2 or 4 bytes. */
export function loadSized(bytes: Uint8Array, at: number, size: 1 | 2 | 4): number {
  if (size === 4) return load32(bytes, at);
  return size === 2 ? bytes[at]! | (bytes[at + 1]! << 8) : bytes[at]!;
}

/** The low bytes of `value`. */
export function storeSized(bytes: Uint8Array, at: number, size: 1 | 2 | 4, value: number): void {
  if (size === 4) return store32(bytes, at, value);
  bytes[at] = value;
  if (size === 2) bytes[at + 1] = value >>> 8;
}
