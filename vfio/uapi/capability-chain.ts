/**
 * The chain of capabilities behind an info record (struct vfio_info_cap_header, include/uapi/linux/vfio.h): each
 * header names its id, version and the offset of the next one from the start of the record, 0 at the end. Each
 * capability begins at a multiple of 8 bytes (drivers/vfio/vfio_main.c vfio_info_cap_add, since v6.6; before, after
 * the last one's size).
 */
import { assert } from '../../sim/assert.js';
import { struct } from '../../sim/layout.js';
import { u16, u32 } from './fields.js';

export const INFO_CAP_HEADER = struct('vfio_info_cap_header', 8, { id: u16(0), version: u16(2), next: u32(4) });

/** One capability: header and what follows it, as words; `next` is not set yet. */
export type Capability = Uint32Array;

/** A capability of version 1 with its body behind the header. */
export function capability(id: number, body: ArrayLike<number>, version = 1): Capability {
  const words = new Uint32Array(2 + body.length);
  words.set(INFO_CAP_HEADER.encode({ id, version }));
  words.set(body, 2);
  return words;
}

/** The chain as words, to be stored `base` bytes behind the start of the record. */
export function chainOf(capabilities: readonly Capability[], base: number): Uint32Array {
  assert(base % 4 === 0, `capabilities at byte ${base}`);
  const sizes = capabilities.map((one) => Math.ceil(one.length / 2) * 2);
  const words = new Uint32Array(sizes.reduce((sum, size) => sum + size, 0));
  let at = 0;
  capabilities.forEach((one, i) => {
    words.set(one, at);
    const end = at + sizes[i]!;
    if (i + 1 < capabilities.length) INFO_CAP_HEADER.f.next.set(words, base + end * 4, at);
    at = end;
  });
  return words;
}

export interface FoundCapability {
  readonly id: number;
  readonly version: number;
  /** Index of the word behind the header in the record's words. */
  readonly at: number;
}

/** Walks the chain of a record that was read back. @param first the record's cap_offset, 0 for none */
export function walkChain(record: ArrayLike<number>, first: number): FoundCapability[] {
  const found: FoundCapability[] = [];
  for (let offset = first; offset !== 0; ) {
    const at = offset / 4;
    assert(offset % 4 === 0 && at + 2 <= record.length && found.length < 64, `capability at byte ${offset} of ${record.length * 4}`);
    found.push({ id: INFO_CAP_HEADER.f.id.get(record, at), version: INFO_CAP_HEADER.f.version.get(record, at), at: at + 2 });
    offset = INFO_CAP_HEADER.f.next.get(record, at);
  }
  return found;
}
