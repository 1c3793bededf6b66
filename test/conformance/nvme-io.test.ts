/** I/O commands and queues (NVMe 1.4 sections 4.1, 4.13, 6, 7.5): data, statuses, order, back-pressure, interrupts. */
import { describe, expect, it } from 'vitest';
import { MemoryMedium, type BlockMedium } from '../../devices/nvme/hardware/medium.js';
import { BUFFER, CQ1, MEDIUM_BYTES, NvmeWorld, pattern, SQ1 } from './nvme-world.js';

const [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM] = [0, 1, 2, 5, 8, 9] as const;
const LAST = MEDIUM_BYTES / 512 - 1;

/** Words 10 to 12. */
const blocks = (lba: number, count: number, flags = 0): number[] => [lba, 0, (count - 1) | flags];

describe('reads and writes', () => {
  it('move blocks between memory and medium', () => {
    const world = new NvmeWorld().started();
    world.fill(BUFFER, pattern(4096));
    expect(world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(100, 8) })).toBe('0');
    expect(world.stored(100 * 512, 4096)).toEqual(pattern(4096));
    expect([world.stored(100 * 512 - 1, 1)[0], world.stored(108 * 512, 1)[0]]).toEqual([0, 0]);
    expect(world.status(1, READ, { nsid: 1, prp1: BUFFER + 0x2000, cdw: blocks(104, 2) })).toBe('0');
    expect(world.bytes(BUFFER + 0x2000, 1024)).toEqual(pattern(4096).subarray(2048, 3072));
    expect(world.ram.load(BUFFER + 0x2400, 4)).toBe(0);
  });

  it('of content that was there before, which is never changed', () => {
    const content = pattern(10_000), medium = new MemoryMedium(16_384, content);
    const world = new NvmeWorld({ medium }).started();
    world.ram.fill(BUFFER, 0xff, 512);
    expect(world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(18, 1) })).toBe('0');
    expect(content).toEqual(pattern(10_000));
    expect(world.status(1, READ, { nsid: 1, prp1: BUFFER, cdw: blocks(16, 8) })).toBe('0');
    expect(world.bytes(BUFFER, 1024)).toEqual(pattern(10_000).subarray(8192, 9216));
    // written; the content's end; zeros
    expect([0x400, 0x600, 10_000 - 8192 - 1, 10_000 - 8192].map((at) => world.ram.load(BUFFER + at, 1))).toEqual([0xff, pattern(10_000)[9728], pattern(10_000)[9999], 0]);
  });

  it.each([
    ['the block behind the last', [LAST + 1, 0, 0], '80!'], ['one block too many', [LAST, 0, 1], '80!'], ['a block beyond 2^32', [0, 1, 0], '80!'], ['all ones', [0xffff_ffff, 0xffff_ffff, 0], '80!'],
    ['more than MDTS allows', [0, 0, 1024], '2!'],
  ])('of %s are refused', (_what, cdw, status) => {
    const world = new NvmeWorld().started();
    expect([world.status(1, READ, { nsid: 1, prp1: BUFFER, cdw }), world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw })]).toEqual([status, status]);
    expect(world.medium.changedBytes).toBe(0);
    expect(world.status(1, READ, { nsid: 1, prp1: BUFFER, cdw: [LAST, 0, 0] })).toBe('0');
  });

  it.each([0, 2, 0xffff_ffff])('of namespace %d are refused', (nsid) => {
    const world = new NvmeWorld().started();
    expect([READ, WRITE, COMPARE, WRITE_ZEROES, DSM].map((opcode) => world.status(1, opcode, { nsid, prp1: BUFFER, cdw: blocks(0, 1) }))).toEqual(Array(5).fill('b!'));
  });

  it('refuse fused commands, SGLs and commands that are not there', () => {
    const world = new NvmeWorld().started();
    expect([world.status(1, READ, { nsid: 1, flags: 0x200 }), world.status(1, READ, { nsid: 1, flags: 0x4000 }), world.status(1, 0x04, { nsid: 1 }), world.status(1, 0x0d, { nsid: 1 })]).toEqual(['2!', '2!', '1!', '1!']);
  });

  it('that meet no memory end with a transfer error that may be tried again, and write nothing', () => {
    const world = new NvmeWorld().started();
    expect([world.status(1, READ, { nsid: 1, prp1: 0x7000_0000, cdw: blocks(0, 1) }), world.status(1, WRITE, { nsid: 1, prp1: 0x7000_0000, cdw: blocks(0, 1) })]).toEqual(['4', '4']);
    expect([world.medium.changedBytes, world.read(0x1c)]).toEqual([0, 1]);
  });

  it('that the medium refuses end with its errors, which are counted', () => {
    const broken: BlockMedium = { sizeBytes: 65_536, read: () => false, write: () => false, flush: () => false };
    const world = new NvmeWorld({ medium: broken as MemoryMedium }).started();
    expect([READ, WRITE, COMPARE, FLUSH, WRITE_ZEROES].map((opcode) => world.status(1, opcode, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1) }))).toEqual(['281', '280', '281', '280', '280']);
    expect(world.nvme.controller.logs.mediaErrors).toBe(5);
  });

  it('with 4096 bytes to a block', () => {
    const world = new NvmeWorld({ config: { blockShift: 12 } }).started();
    world.fill(BUFFER, pattern(4096));
    expect(world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(3, 1) })).toBe('0');
    expect(world.stored(3 * 4096, 4096)).toEqual(pattern(4096));
    expect(world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(MEDIUM_BYTES / 4096, 1) })).toBe('80!');
  });

  it('take the time of the medium, and of its bandwidth one after the other', () => {
    const world = new NvmeWorld({ config: { readNs: 100_000, bytesPerNs: 0.01 } }).started();
    const began = world.clock.now;
    for (let i = 0; i < 4; i++) world.submit(1, READ, { nsid: 1, prp1: BUFFER + i * 0x1000, cdw: blocks(i * 8, 8) });
    world.settle();
    const took = world.clock.now - began;
    expect([took > 4 * 409_600, took < 4 * 409_600 + 150_000]).toEqual([true, true]);
  });
});

describe('the other commands', () => {
  it('Flush makes what was written safe, of the namespace or of all', () => {
    const world = new NvmeWorld().started();
    world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1) });
    expect(world.medium.unflushedWrites).toBe(1);
    expect([world.status(1, FLUSH, { nsid: 1 }), world.medium.unflushedWrites]).toEqual(['0', 0]);
    expect([world.status(1, FLUSH, { nsid: 0xffff_ffff }), world.status(1, FLUSH, { nsid: 0 })]).toEqual(['0', 'b!']);
  });

  it('a write with Force Unit Access is safe by itself, as is each with the cache off', () => {
    const world = new NvmeWorld().started();
    world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1, 0x4000_0000) });
    expect(world.medium.unflushedWrites).toBe(0);
    world.status(0, 0x09, { cdw: [6, 0] });
    world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1) });
    expect(world.medium.unflushedWrites).toBe(0);
  });

  it('Compare compares', () => {
    const world = new NvmeWorld().started();
    world.medium.write(0, pattern(1024));
    world.fill(BUFFER, pattern(1024));
    expect(world.status(1, COMPARE, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 2) })).toBe('0');
    world.ram.store(BUFFER + 1023, 1, pattern(1024)[1023]! ^ 1);
    expect(world.status(1, COMPARE, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 2) })).toBe('285!');
  });

  it('Write Zeroes zeroes without data, also more than MDTS', () => {
    const world = new NvmeWorld().started();
    for (const lba of [0, 1, 1500, 3000, 3001]) world.medium.write(lba * 512, pattern(512));
    expect(world.status(1, WRITE_ZEROES, { nsid: 1, prp1: 0x7000_0000, cdw: blocks(1, 3000) })).toBe('0');
    expect([0, 1, 1500, 3000, 3001].map((lba) => world.stored(lba * 512, 512).every((byte) => byte === 0))).toEqual([false, true, true, true, false]);
    expect(world.status(1, WRITE_ZEROES, { nsid: 1, cdw: blocks(LAST, 2) })).toBe('80!');
  });

  it('Dataset Management deallocates its ranges, or all are refused', () => {
    const world = new NvmeWorld().started();
    world.medium.write(0, pattern(65_536));
    const ranges = (list: readonly (readonly [number, number])[]): void => list.forEach(([lba, count], i) => {
      world.ram.store(BUFFER + i * 16, 4, 0);
      world.ram.store(BUFFER + i * 16 + 4, 4, count);
      world.address(BUFFER + i * 16 + 8, lba);
    });
    ranges([[8, 8], [LAST, 2]]);
    expect(world.status(1, DSM, { nsid: 1, prp1: BUFFER, cdw: [1, 4] })).toBe('80!');
    expect(world.stored(4096, 16)).toEqual(pattern(65_536).subarray(4096, 4112));
    ranges([[8, 8], [100, 1]]);
    // without the attribute it is a hint
    expect(world.status(1, DSM, { nsid: 1, prp1: BUFFER, cdw: [1, 0] })).toBe('0');
    expect(world.stored(4096, 16)).toEqual(pattern(65_536).subarray(4096, 4112));
    expect(world.status(1, DSM, { nsid: 1, prp1: BUFFER, cdw: [1, 4] })).toBe('0');
    expect([world.stored(4096, 4096), world.stored(51_200, 512)].every((part) => part.every((byte) => byte === 0))).toBe(true);
    expect(world.stored(8192, 16)).toEqual(pattern(65_536).subarray(8192, 8208));
  });
});

describe('queues', () => {
  it('complete out of order where commands take different times', () => {
    const world = new NvmeWorld({ config: { writeNs: 50_000, readNs: 1_000 } }).started();
    const slow = world.submit(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1) }), fast = world.submit(1, READ, { nsid: 1, prp1: BUFFER, cdw: blocks(9, 1) });
    world.settle();
    expect(world.take(1).map(({ cid, sqHead }) => [cid, sqHead])).toEqual([[fast, 2], [slow, 2]]);
  });

  it('interrupt for every completion, through the vector of the completion queue', () => {
    const world = new NvmeWorld().started();
    world.createQueues(2, 16, SQ1 + 0x1000, CQ1 + 0x1000, 3);
    world.takeMessages();
    for (let i = 0; i < 3; i++) world.submit(1, FLUSH, { nsid: 1 });
    world.submit(2, FLUSH, { nsid: 1 });
    world.settle();
    expect(world.takeMessages().toSorted((a, b) => a - b)).toEqual([0x41, 0x41, 0x41, 0x43]);
  });

  it('without the interrupt flag stay silent', () => {
    const world = new NvmeWorld();
    world.enableInterrupts();
    world.enable();
    world.status(0, 5, { prp1: CQ1, cdw: [0x000f_0001, 1] });
    world.status(0, 1, { prp1: SQ1, cdw: [0x000f_0001, 0x1_0001] });
    world.rings.set(1, { sq: { at: SQ1, size: 16, next: 0 }, cq: { at: CQ1, size: 16, next: 0, phase: 1 } });
    world.takeMessages();
    expect(world.status(1, FLUSH, { nsid: 1 })).toBe('0');
    expect(world.takeMessages()).toEqual([]);
  });

  it('hold the pin while there are completions and no messages, unless it is masked', () => {
    const world = new NvmeWorld();
    world.enable();
    world.createQueues();
    world.submit(1, FLUSH, { nsid: 1 });
    world.settle();
    expect([world.line, world.configRead(6, 2) & 8]).toEqual([true, 8]);
    world.write(0x0c, 1);
    expect(world.line).toBe(false);
    world.write(0x10, 1);
    expect(world.line).toBe(true);
    world.take(1);
    expect(world.line).toBe(false);
  });

  it('of one completion queue may be many', () => {
    const world = new NvmeWorld().started();
    world.status(0, 1, { prp1: SQ1 + 0x1000, cdw: [0x000f_0002, 0x1_0001] });
    world.rings.set(2, { sq: { at: SQ1 + 0x1000, size: 16, next: 0 }, cq: world.rings.get(1)!.cq });
    world.submit(1, FLUSH, { nsid: 1 });
    world.submit(2, FLUSH, { nsid: 1 });
    world.settle();
    expect(world.take(1).map(({ sqId, sqHead }) => [sqId, sqHead])).toEqual([[1, 1], [2, 1]]);
    expect(world.status(0, 4, { cdw: [1] })).toBe('10c!');
  });

  it('that are full keep completions back until the host has taken some', () => {
    const world = new NvmeWorld().started();
    world.status(0, 0, { cdw: [1] });
    world.status(0, 4, { cdw: [1] });
    // 16 commands, 4 completions, of which 3 fit
    world.ram.fill(CQ1, 0, 64);
    world.status(0, 5, { prp1: CQ1, cdw: [0x0003_0001, 0x1_0003] });
    world.status(0, 1, { prp1: SQ1, cdw: [0x000f_0001, 0x1_0001] });
    world.rings.set(1, { sq: { at: SQ1, size: 16, next: 0 }, cq: { at: CQ1, size: 4, next: 0, phase: 1 } });
    const cids = Array.from({ length: 10 }, () => world.submit(1, FLUSH, { nsid: 1 }));
    world.settle();
    const seen: number[] = [];
    for (const expected of [3, 3, 3, 1]) {
      const found = world.take(1);
      expect(found.length).toBe(expected);
      seen.push(...found.map(({ cid }) => cid));
      world.settle();
    }
    expect(seen).toEqual(cids);
  });

  it('take turns: a queue with much to do does not keep others waiting', () => {
    const world = new NvmeWorld({ config: { commandNs: 1_000, commandsPerQueue: 64 } }).started(64);
    world.createQueues(2, 64, SQ1 + 0x2000, CQ1 + 0x2000);
    const order: number[] = [];
    const stop = world.trace.listen(({ args }) => void order.push(args[1]!), ['nvme:fetch']);
    for (let i = 0; i < 10; i++) world.submit(1, FLUSH, { nsid: 1 });
    for (let i = 0; i < 3; i++) world.submit(2, FLUSH, { nsid: 1 });
    world.settle();
    stop();
    expect(order).toEqual([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1]);
  });

  it('work on so many commands at a time, and no more', () => {
    const world = new NvmeWorld({ config: { commandsPerQueue: 3, flushNs: 100_000 } }).started();
    for (let i = 0; i < 8; i++) world.submit(1, FLUSH, { nsid: 1 });
    world.clock.run({ untilNs: world.clock.now + 50_000 });
    expect([world.nvme.controller.outstanding, world.nvme.controller.sqs[1]!.head]).toEqual([3, 3]);
    world.settle();
    expect(world.take(1).length).toBe(8);
  });

  it('wrap around, with phases, for many laps', () => {
    const world = new NvmeWorld().started(5);
    for (let i = 0; i < 23; i++) {
      world.ram.fill(BUFFER, i, 512);
      expect(world.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: blocks(i, 1) })).toBe('0');
    }
    expect(Array.from({ length: 23 }, (_, i) => world.stored(i * 512, 1)[0])).toEqual(Array.from({ length: 23 }, (_, i) => i));
  });
});

describe('held DMA', () => {
  it.each([1, 2, 3, 4])('holds up its command and nothing else, seed %i', (seed) => {
    const world = new NvmeWorld({ hold: 0.6, seed }).started();
    world.medium.write(0, pattern(65_536));
    const cids: number[] = [];
    for (let i = 0; i < 14; i++) cids.push(world.submit(1, i % 3 === 0 ? WRITE : READ, { nsid: 1, prp1: BUFFER + i * 0x1000, cdw: blocks(i % 3 === 0 ? 200 + i * 8 : i * 8, 8) }));
    world.settle();
    const done = world.take(1);
    expect(done.every(({ status }) => status === 0)).toBe(true);
    expect(done.map(({ cid }) => cid).toSorted((a, b) => a - b)).toEqual(cids);
    for (let i = 0; i < 14; i++) if (i % 3 !== 0) expect(world.bytes(BUFFER + i * 0x1000, 4096)).toEqual(pattern(65_536).subarray(i * 4096, i * 4096 + 4096));
    expect([world.holding!.holds > 5, world.scheduler.live().length]).toEqual([true, 0]);
  });

  it('of one queue leaves another one working', () => {
    const world = new NvmeWorld({ hold: 1, config: { flushNs: 100 } }).started();
    world.createQueues(2, 16, SQ1 + 0x1000, CQ1 + 0x1000);
    world.submit(1, READ, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 8) });
    world.submit(2, FLUSH, { nsid: 1 });
    world.settle();
    expect([world.take(1).length, world.take(2).length]).toEqual([1, 1]);
  });
});

describe('a defective controller', () => {
  it('completes before the data is there (nvme.completion-before-data)', () => {
    const seen = (defects: readonly string[]): number => {
      const world = new NvmeWorld({ defects }).started();
      world.medium.write(0, pattern(512, 9));
      world.submit(1, READ, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1) });
      world.clock.run({ stop: () => world.messages.length > 0 });
      return world.ram.load(BUFFER, 1);
    };
    expect([seen([]), seen(['nvme.completion-before-data'])]).toEqual([9, 0]);
  });

  it('says that it has stopped while it moves data (nvme.ready-clears-early)', () => {
    const changed = (defects: readonly string[]): boolean => {
      const world = new NvmeWorld({ hold: 1, seed: 3, config: { enableNs: 1, readNs: 1 }, defects }).started();
      world.medium.write(0, pattern(512, 9));
      world.submit(1, READ, { nsid: 1, prp1: BUFFER, cdw: blocks(0, 1) });
      const fetches = world.holding!.holds;
      world.clock.run({ stop: () => world.holding!.holds === fetches + 2 });
      world.write(0x14, 0);
      world.clock.run({ stop: () => world.read(0x1c) === 0 });
      world.ram.fill(BUFFER, 0, 512);
      world.settle();
      return world.ram.load(BUFFER, 1) !== 0;
    };
    expect([changed([]), changed(['nvme.ready-clears-early'])]).toEqual([false, true]);
  });
});
