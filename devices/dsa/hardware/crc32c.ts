/**
 * CRC-32C (polynomial 0x11EDC6F41, RFC 3720 appendix B.4) as the accelerator computes it: by default bits of each
 * byte are taken least significant first, seed and result are inverted. Both can be bypassed (intel/DML, CRC flags).
 * Eight bytes a step through eight tables.
 */

/** The polynomial, bits reversed. */
const POLYNOMIAL = 0x82f63b78;

const TABLES = ((): Int32Array => {
  const tables = new Int32Array(8 * 256);
  for (let n = 0; n < 256; n++) {
    let value = n;
    for (let i = 0; i < 8; i++) value = value & 1 ? (value >>> 1) ^ POLYNOMIAL : value >>> 1;
    tables[n] = value;
  }
  for (let t = 1; t < 8; t++) {
    for (let n = 0; n < 256; n++) {
      const value = tables[(t - 1) * 256 + n]!;
      tables[t * 256 + n] = (value >>> 8) ^ tables[value & 0xff]!;
    }
  }
  return tables;
})();

const REVERSED = ((): Uint8Array => {
  const reversed = new Uint8Array(256);
  for (let n = 0; n < 256; n++) for (let i = 0; i < 8; i++) if (n & (1 << i)) reversed[n]! |= 0x80 >> i;
  return reversed;
})();

function reverse32(value: number): number {
  return (REVERSED[value & 0xff]! << 24) | (REVERSED[(value >>> 8) & 0xff]! << 16) | (REVERSED[(value >>> 16) & 0xff]! << 8) | REVERSED[value >>> 24]!;
}

/** Running state from a seed; `bypassInversion` keeps the seed as it is, most significant bit first. */
export function crcStart(seed: number, bypassInversion: boolean): number {
  return bypassInversion ? reverse32(seed) : ~seed;
}

/** The CRC (unsigned) of a running state. */
export function crcEnd(state: number, bypassInversion: boolean): number {
  return (bypassInversion ? reverse32(state) : ~state) >>> 0;
}

/** Feeds `length` bytes from `offset`. */
export function crcUpdate(state: number, bytes: Uint8Array, offset: number, length: number): number {
  const tables = TABLES;
  const end = offset + length;
  let crc = state, at = offset;
  for (; at + 8 <= end; at += 8) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    crc = tables[1792 + (crc & 0xff)]! ^ tables[1536 + ((crc >>> 8) & 0xff)]! ^ tables[1280 + ((crc >>> 16) & 0xff)]! ^ tables[1024 + (crc >>> 24)]!
      ^ tables[768 + bytes[at + 4]!]! ^ tables[512 + bytes[at + 5]!]! ^ tables[256 + bytes[at + 6]!]! ^ tables[bytes[at + 7]!]!;
  }
  for (; at < end; at++) crc = (crc >>> 8) ^ tables[(crc ^ bytes[at]!) & 0xff]!;
  return crc;
}

/** As `crcUpdate`, with the bits of every byte taken most significant first. */
export function crcUpdateUnreflected(state: number, bytes: Uint8Array, offset: number, length: number): number {
  let crc = state;
  for (let at = offset; at < offset + length; at++) crc = (crc >>> 8) ^ TABLES[(crc ^ REVERSED[bytes[at]!]!) & 0xff]!;
  return crc;
}

/** CRC-32C of a whole buffer, default flags; `seed` is the CRC of what came before, 0 at the start. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return crcEnd(crcUpdate(crcStart(seed, false), bytes, 0, bytes.length), false);
}
