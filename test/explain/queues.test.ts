import { describe, expect, it } from 'vitest';
import { explainImage } from '../../harness/explain/image.js';
import { describeDescriptor, describePageRequest } from '../../harness/explain/queues.js';
import { wordsOf } from '../../sim/layout.js';
import { ramWith, registers } from './world.js';

describe('invalidation descriptors in words (6.5.2)', () => {
  it.each([
    ['context cache: all', [0x11n, 0n]],
    ['context cache: device 6a:01.0 of domain 2', [0x0000_6a08_0002_0031n, 0n]],
    ['PASID cache: PASID 1 of domain 3', [0x0000_0001_0003_0017n, 0n]],
    ['IOTLB: 8 pages at 0x10000000 of domain 7', [0x0007_00f2n, 0x1000_0003n]],
    ['IOTLB: domain 7', [0x0007_00e2n, 0n]],
    ['IOTLB: PASID 1 of domain 1', [0x0000_0001_0001_0026n, 0n]],
    ['IOTLB: page 0x7ffff7fbb000 of PASID 1 of domain 1, leaves only', [0x0000_0001_0001_0036n, 0x7fff_f7fb_b040n]],
    ['device TLB of 6a:01.0: all addresses', [0x0000_6a08_0000_0003n, 0x7fff_ffff_ffff_f001n]],
    ['device TLB of 6a:01.0 for PASID 1: page 0x1000', [0x0000_0001_6a08_0008n, 0x1000n]],
    ['device TLB of 6a:01.0 for PASID 1: 8 pages at 0x800000000000000', [0x0000_0001_6a08_0008n, 0x0800_0000_0000_3800n]],
    ['interrupt entry cache: all', [0x4n, 0n]],
    ['interrupt entry cache: entry 7', [0x7_0000_0014n, 0n]],
    ['interrupt entry cache: 4 entries from 4 on', [0x7_1000_0014n, 0n]],
    ['wait for everything before: write 2 to 0x102044', [0x0000_0002_0000_0025n, 0x10_2044n]],
    ['wait for everything before: write 2 to 0x102044, fence, drain page requests', [0x0000_0002_0000_00e5n, 0x10_2044n]],
    ['response to 6a:01.0 PASID 1, group 5: success', [0x0000_0001_6a08_0019n, 0xan << 2n]],
    ['response to 6a:01.0 PASID 1, group 0: failure', [0x0000_0001_6a08_f019n, 0n]],
    ['no descriptor: type 11 is not known', [0xbn, 0n]],
    ['no descriptor: type 17 is not known', [0x201n, 0n]],
    ['context cache: all; reserved bits are set', [0x8000_0000_0000_0011n, 0n]],
  ] as const)('%s', (text, qwords) => {
    expect(describeDescriptor(wordsOf(...qwords, 0n, 0n))).toBe(text);
  });
});

describe('page requests in words (7.4.1)', () => {
  it.each([
    ['6a:01.0 PASID 1: wants write at 0x7ffff7fbb000, group 1, last of the group', [0x0000_0001_6a08_0101n, 0x7fff_f7fb_b00en]],
    ['6a:01.0 without PASID: wants read at 0x1000, group 0', [0x6a08_0001n, 0x1001n]],
    ['6a:01.0 PASID 1: wants read, execute, as supervisor at 0x1000, group 0', [0x0030_0001_6a08_0101n, 0x1001n]],
    ['6a:01.0 PASID 1: stop marker', [0x0000_0001_6a08_0101n, 0x4n]],
    ['no page request: type 2', [0x2n, 0n]],
  ] as const)('%s', (text, qwords) => {
    expect(describePageRequest(wordsOf(...qwords, 0n, 0n))).toBe(text);
  });
});

describe('queues of a stopped machine', () => {
  const memory = ramWith({
    [0x5000 + 127 * 32]: [0x11n, 0n, 0n, 0n], 0x5000: [0x0000_0002_0000_0025n, 0x10_2044n, 0n, 0n], [0x5000 + 126 * 32]: [0x4n, 0n, 0n, 0n],
    [0x8000 + 32]: [0x0000_0001_6a08_0101n, 0x7fff_f7fb_b00en, 0n, 0n],
  });

  it('are read from head to tail, around the end of the ring', () => {
    const { invalidationQueue } = explainImage(memory, registers({ IQA: 0x5800n, IQH: 127n * 32n, IQT: 32n }));
    expect(invalidationQueue).toMatchObject({ base: 0x5000, entryBytes: 32, length: 128, head: 127, tail: 1, pending: 2, problems: [], last: { index: 126, text: 'interrupt entry cache: all' } });
    expect(invalidationQueue!.entries.map(({ index, text }) => [index, text])).toEqual([[127, 'context cache: all'], [0, 'wait for everything before: write 2 to 0x102044']]);
  });

  it('have 16-byte entries without DW (11.4.8.3)', () => {
    expect(explainImage(memory, registers({ IQA: 0x5000n, IQH: 0n, IQT: 16n })).invalidationQueue).toMatchObject({ entryBytes: 16, length: 256, pending: 1 });
  });

  it('show page requests that nobody took yet', () => {
    const { pageRequestQueue } = explainImage(memory, registers({ PQA: 0x8000n, PQH: 32n, PQT: 64n, PRS: 3n }));
    expect(pageRequestQueue!.entries.map(({ text }) => text)).toEqual(['6a:01.0 PASID 1: wants write at 0x7ffff7fbb000, group 1, last of the group']);
    expect(pageRequestQueue!.problems[0]).toContain('the queue was full');
  });

  it('tell that they stand still: IQE with its reason, ITE with the device (11.4.8.9)', () => {
    const { invalidationQueue } = explainImage(memory, registers({ IQA: 0x5800n, IQH: 0n, IQT: 32n, FSTS: 0x50n, IQERCD: 0x0000_6a08_0000_0003n }));
    expect(invalidationQueue!.problems).toEqual([
      'FSTS.IQE is set: the unit refused the descriptor at the head (invalid descriptor type); nothing is fetched until software clears it',
      'FSTS.ITE is set: 6a:01.0 did not complete a device-TLB invalidation in time; nothing is fetched until software clears it',
    ]);
  });

  it('report pointers that cannot be, and a ring outside the image', () => {
    const problems = explainImage(memory, registers({ IQA: 0x7fff_f807n, IQH: 0x8_0008n, IQT: 0n })).invalidationQueue!.problems;
    expect(problems.map((problem) => problem.split(' ').slice(0, 2).join(' '))).toEqual(['the head', 'the head', 'the queue']);
  });
});

describe('fault records of a stopped machine (11.4.7.6)', () => {
  it('say who did what, and why it was refused', () => {
    const { faults } = explainImage(memoryless(), registers({
      // write, PASID 1, reason 0x59; read without PASID, reason 6; page request; F clear
      FRCD0_LO: 0x7fff_f7fb_b000n, FRCD0_HI: 0x8000_0159_8000_6a08n,
      FRCD1_LO: 0x1000n, FRCD1_HI: 0xc000_0006_0000_0010n,
      FRCD2_LO: 0x2000n, FRCD2_HI: 0x8000_0147_9000_6a08n,
      FRCD3_LO: 0x2000n, FRCD3_HI: 0x0000_0147_9000_6a08n,
      FRCD4_LO: 0x0a00_0000_0000_0000n, FRCD4_HI: 0x8000_0025_0000_e200n,
    }));
    expect(faults.map(({ record, sentence, reason, entry }) => [record, sentence, reason, entry])).toEqual([
      [0, '6a:01.0 PASID 1: write at 0x7ffff7fbb000', 0x59, 'PASID table entry'],
      [1, '00:02.0: read at 0x1000', 6, 'second-level entry'],
      [2, '6a:01.0 PASID 1: page request at 0x2000', 0x47, 'context entry'],
      [4, 'e2:00.0: interrupt with index 2560', 0x25, 'the request itself'],
    ]);
  });

  function memoryless() {
    return ramWith({}, 4096);
  }
});
