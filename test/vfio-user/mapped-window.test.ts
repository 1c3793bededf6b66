/** Memory of a client that is mapped here: records that somebody polls are stored word by word, everything else as it comes. */
import * as fc from 'fast-check';
import { expect, it } from 'vitest';
import { posixCalls, SharedMemory } from '../../vfio/user/posix/index.js';

const SIZE = 8192;

it('stores what is asked for, whatever its size and place, and nothing beside it', () => {
  const shared = new SharedMemory(posixCalls(), 'records', SIZE);
  const mirror = new Uint8Array(SIZE), found = new Uint8Array(SIZE);
  try {
    fc.assert(fc.property(fc.integer({ min: 0, max: SIZE - 200 }), fc.integer({ min: 0, max: 9 }), fc.uint8Array({ minLength: 1, maxLength: 90 }), fc.boolean(), (at, skip, bytes, aligned) => {
      const offset = aligned ? at & ~3 : at, length = aligned ? (bytes.length + 3) & ~3 : bytes.length;
      const source = new Uint8Array(skip + length + 5);
      source.set(bytes, skip);
      expect(shared.window.write(offset, source, skip, length)).toBe(true);
      mirror.set(source.subarray(skip, skip + length), offset);
      expect(shared.window.read(0, found, 0, SIZE)).toBe(true);
      expect(Buffer.compare(found, mirror)).toBe(0);
    }), { numRuns: 300, seed: 11 });
    expect([shared.window.write(SIZE - 4, mirror, 0, 8), shared.window.write(SIZE - 4, mirror, 0, 4)]).toEqual([false, true]);
  } finally {
    shared.close();
  }
});
