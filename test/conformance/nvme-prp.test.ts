/** PRP entries and lists (NVMe 1.4 section 4.3), built by hand. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { commandsOf, entriesOf } from '../../devices/nvme/driver/prp-lists.js';
import { BUFFER, LISTS, NvmeWorld, pattern } from './nvme-world.js';

const READ = 2;
const CONTENT = pattern(4 * 2 ** 20);

function world(config: ConstructorParameters<typeof NvmeWorld>[0] = {}): NvmeWorld {
  const made = new NvmeWorld(config).started();
  made.medium.write(0, CONTENT);
  return made;
}

const blocks = (bytes: number): number[] => [0, 0, bytes / 512 - 1];

/** A list of pages at `at`. */
function list(on: NvmeWorld, at: number, pages: readonly number[]): void {
  pages.forEach((page, i) => on.address(at + 8 * i, page));
}

describe('two entries', () => {
  it('describe up to two pages, the first from an offset on', () => {
    const on = world();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + 0xe00, prp2: BUFFER + 0x5000, cdw: blocks(4096) })).toBe('0');
    expect([on.bytes(BUFFER + 0xe00, 512), on.bytes(BUFFER + 0x5000, 3584)]).toEqual([pattern(4096).subarray(0, 512), pattern(4096).subarray(512)]);
    expect(on.ram.load(BUFFER + 0x5e00, 4)).toBe(0);
  });

  it('leave PRP2 alone where one page is enough', () => {
    const on = world();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + 0x200, prp2: 0x123, cdw: blocks(3584) })).toBe('0');
  });

  it.each([[1, 0, 512], [2, 0, 512], [0, 0x200, 8192], [0, 4, 8192], [0xff8, 0x800, 512]])('offsets %x and %x for %d bytes', (first, second, bytes) => {
    const on = world();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + first, prp2: BUFFER + 0x1000 + second, cdw: blocks(bytes) })).toBe('13!');
  });

  it('may begin at any multiple of four', () => {
    const on = world();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + 0xffc, prp2: BUFFER + 0x3000, cdw: blocks(512) })).toBe('0');
    expect(on.bytes(BUFFER + 0x3000, 508)).toEqual(pattern(512).subarray(4));
  });
});

describe('a list', () => {
  it('describes scattered pages', () => {
    const on = world();
    const pages = [9, 3, 4, 12, 1, 7].map((n) => BUFFER + n * 0x1000);
    list(on, LISTS, pages);
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + 0x20_000, prp2: LISTS, cdw: blocks(7 * 4096) })).toBe('0');
    [BUFFER + 0x20_000, ...pages].forEach((page, i) => expect(on.bytes(page, 4096)).toEqual(CONTENT.subarray(i * 4096, i * 4096 + 4096)));
  });

  it('is needed from the third page on, also when the first is only begun', () => {
    const on = world();
    list(on, LISTS, [BUFFER + 0x3000, BUFFER + 0x6000]);
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + 0xe00, prp2: LISTS, cdw: blocks(8192) })).toBe('0');
    expect([on.bytes(BUFFER + 0x3000, 4096), on.bytes(BUFFER + 0x6000, 3584)]).toEqual([pattern(8192).subarray(512, 4608), pattern(8192).subarray(4608)]);
  });

  it('may begin inside a page; its last entry leads on while more follow', () => {
    const on = world();
    const at = LISTS + 0xfe0, next = LISTS + 0x4000;
    // three entries and a pointer in the first page
    list(on, at, [BUFFER + 0x5000, BUFFER + 0x7000, BUFFER + 0x9000, next]);
    list(on, next, [BUFFER + 0xb000, BUFFER + 0xd000]);
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, prp2: at, cdw: blocks(6 * 4096) })).toBe('0');
    [0, 5, 7, 9, 0xb, 0xd].forEach((n, i) => expect(on.bytes(BUFFER + n * 0x1000, 4096)).toEqual(CONTENT.subarray(i * 4096, i * 4096 + 4096)));
  });

  it('whose last entry is the last page needs no further one', () => {
    const on = world();
    const at = LISTS + 0xfe0;
    list(on, at, [0x5000, 0x7000, 0x9000, 0xb000].map((offset) => BUFFER + offset));
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, prp2: at, cdw: blocks(5 * 4096) })).toBe('0');
    expect(on.bytes(BUFFER + 0xb000, 4096)).toEqual(CONTENT.subarray(4 * 4096, 5 * 4096));
  });

  it('may begin with the pointer', () => {
    const on = world();
    on.address(LISTS + 0xff8, LISTS + 0x2000);
    list(on, LISTS + 0x2000, [BUFFER + 0x5000, BUFFER + 0x7000]);
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS + 0xff8, cdw: blocks(3 * 4096) })).toBe('0');
    expect(on.bytes(BUFFER + 0x7000, 4096)).toEqual(CONTENT.subarray(2 * 4096, 3 * 4096));
  });

  it('of 2 MiB is two pages of entries', () => {
    const on = world({ config: { mdts: 10 } });
    const pages = Array.from({ length: 600 }, (_, i) => BUFFER + 0x1000 + ((i * 7) % 600) * 0x1000);
    list(on, LISTS, [...pages.slice(0, 511), LISTS + 0x1000]);
    list(on, LISTS + 0x1000, pages.slice(511));
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS, cdw: blocks(601 * 4096) })).toBe('0');
    [0, 510, 511, 599].forEach((i) => expect(on.bytes(pages[i]!, 4096)).toEqual(CONTENT.subarray((i + 1) * 4096, (i + 2) * 4096)));
  });

  it.each([
    ['that is not aligned', (on: NvmeWorld) => on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS + 2, cdw: blocks(4 * 4096) }), '13'],
    ['that has no room for an entry in its page', (on: NvmeWorld) => on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS + 0xffc, cdw: blocks(4 * 4096) }), '13'],
    ['with an entry inside a page', (on: NvmeWorld) => (on.address(LISTS + 8, BUFFER + 0x5200), on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS, cdw: blocks(4 * 4096) })), '13'],
    ['whose pointer leads inside a page', (on: NvmeWorld) => (on.address(LISTS + 0xff8, LISTS + 0x2008), on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS + 0xff0, cdw: blocks(4 * 4096) })), '13'],
    ['that is not in memory', (on: NvmeWorld) => on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: 0x7000_0000, cdw: blocks(4 * 4096) }), '4'],
    ['whose next page is not in memory', (on: NvmeWorld) => (on.address(LISTS + 0xff8, 0x7000_0000), on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS + 0xff0, cdw: blocks(4 * 4096) })), '4'],
    ['with a page that is not there', (on: NvmeWorld) => (on.address(LISTS + 8, 0x7000_0000), on.submit(1, READ, { nsid: 1, prp1: BUFFER, prp2: LISTS, cdw: blocks(4 * 4096) })), '4'],
  ])('%s is refused', (_what, submit, status) => {
    const on = world();
    list(on, LISTS, [1, 2, 3, 4].map((n) => BUFFER + n * 0x1000));
    list(on, LISTS + 0xff0, [BUFFER + 0x1000]);
    submit(on);
    on.settle();
    expect(on.take(1).map((cqe) => cqe.status.toString(16))).toEqual([status]);
    expect(on.read(0x1c)).toBe(1);
  });

  it('with memory pages of 16 KiB has entries of 16 KiB', () => {
    const on = new NvmeWorld();
    on.enableInterrupts();
    on.ram.fill(0x10_4000, 0, 0x1000);
    on.write(0x24, 0x000f_000f);
    on.bar.write(0x28, 8, 0x10_0000, 0);
    on.bar.write(0x30, 8, 0x10_4000, 0);
    on.rings.set(0, { sq: { at: 0x10_0000, size: 16, next: 0 }, cq: { at: 0x10_4000, size: 16, next: 0, phase: 1 } });
    on.write(0x14, 0x0046_0101);
    on.settle();
    expect(on.read(0x1c)).toBe(1);
    on.createQueues();
    on.medium.write(0, CONTENT);
    list(on, LISTS, [BUFFER + 0x10_000, BUFFER + 0x8000]);
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER + 0x3000, prp2: LISTS, cdw: blocks(36 * 1024) })).toBe('0');
    expect([on.bytes(BUFFER + 0x3000, 4096), on.bytes(BUFFER + 0x10_000, 16_384), on.bytes(BUFFER + 0x8000, 16_384)]).toEqual([CONTENT.subarray(0, 4096), CONTENT.subarray(4096, 20_480), CONTENT.subarray(20_480, 36_864)]);
    list(on, LISTS, [BUFFER + 0x11_000]);
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, prp2: BUFFER + 0x1000, cdw: blocks(20 * 1024) })).toBe('13!');
  });
});

describe("the driver's commands", () => {
  const piece = fc.record({ gap: fc.nat({ max: 3 }), offset: fc.constantFrom(0, 0, 0, 512, 2048), length: fc.integer({ min: 1, max: 40 }).map((n) => n * 512) });

  it('cover every byte once, in order, each command with pieces that PRPs can describe', () => {
    fc.assert(fc.property(fc.array(piece, { minLength: 1, maxLength: 8 }), fc.constantFrom(4096, 16_384, 131_072), (pieces, maxBytes) => {
      let next = 0x10_0000;
      const segments = pieces.map(({ gap, offset, length }) => {
        const address = gap === 0 ? next : Math.ceil(next / 4096) * 4096 + gap * 4096 + offset;
        next = address + length;
        return { address, length };
      });
      const bytes = (list: readonly { address: number; length: number }[]): string => list.flatMap(({ address, length }) => Array.from({ length: length / 512 }, (_, i) => address + i * 512)).join();
      const commands = commandsOf(segments, maxBytes);
      expect(bytes(commands.flatMap((command) => command.pieces))).toBe(bytes(segments));
      for (const command of commands) {
        expect(command.sizeBytes).toBeLessThanOrEqual(maxBytes);
        const entries = entriesOf(command.pieces);
        expect(entries.slice(1).every((entry) => entry % 4096 === 0)).toBe(true);
        // what a controller makes of the entries is what the pieces say
        let left = command.sizeBytes;
        const seen = entries.map((address) => {
          const length = Math.min(4096 - (address % 4096), left);
          left -= length;
          return { address, length };
        });
        expect([left, bytes(seen)]).toEqual([0, bytes(command.pieces)]);
      }
    }), { numRuns: 200 });
  });
});
