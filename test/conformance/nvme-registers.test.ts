/** Registers and life of the controller (NVMe 1.4 sections 3.1, 7.3, 7.6), identity and BAR as QEMU's hw/nvme. */
import { beforeEach, describe, expect, it } from 'vitest';
import { ACQ, ASQ, BUFFER, NvmeWorld, pattern } from './nvme-world.js';

describe('the function', () => {
  const world = new NvmeWorld();

  it('is 1b36:0010, class 0x010802, revision 2, pin A, a PCI Express endpoint with function level reset', () => {
    expect(world.configRead(0, 4)).toBe(0x0010_1b36);
    expect(world.configRead(8, 4)).toBe(0x0108_0202);
    expect(world.configRead(0x2c, 4)).toBe(0x1100_1af4);
    expect(world.configRead(0x3d, 1)).toBe(1);
    expect(world.nvme.function.memoryEnabled).toBe(true);
  });

  it('has a 64-bit BAR 0 of 16 KiB: doorbells from 0x1000, 5 vectors at 0x2000, their pending bits at 0x3000', () => {
    world.config(0x10, 4, 0xffff_ffff);
    expect(world.configRead(0x10, 4)).toBe(0xffff_c004);
    world.config(0x10, 4, 0);
    const msix = world.nvme.function.msix!.offset;
    expect([world.configRead(msix + 2, 2), world.configRead(msix + 4, 4), world.configRead(msix + 8, 4)]).toEqual([4, 0x2000, 0x3000]);
  });

  it('has no ATS, PRI or PASID', () => {
    expect(world.configRead(0x100, 4) & 0xffff).not.toBe(0xf);
    expect([world.nvme.function.atsEnabled, world.nvme.function.pasidWidth]).toEqual([false, 0]);
  });
});

describe('the registers', () => {
  let world: NvmeWorld;

  beforeEach(() => {
    world = new NvmeWorld();
  });

  it('say what the controller can do: 2048 entries, contiguous queues, 7.5 s, NVM command set, pages up to 64 KiB, version 1.4', () => {
    const lo = world.bar.read(0, 8);
    expect([lo, world.bar.high, world.read(8)]).toEqual([0x0f01_07ff, 0x0040_0020, 0x0001_0400]);
    expect([world.read(0), world.read(4)]).toEqual([0x0f01_07ff, 0x0040_0020]);
  });

  it('put the doorbells 4 << DSTRD bytes apart', () => {
    const strided = new NvmeWorld({ config: { doorbellStride: 3 } });
    expect(strided.read(4)).toBe(0x0040_0023);
    strided.enable();
    strided.ram.store(ASQ, 4, 0x0001_0006);
    strided.ram.store64(ASQ + 24, BUFFER, 0);
    strided.ram.store(ASQ + 40, 4, 1);
    strided.write(0x1000, 1);
    strided.settle();
    expect(strided.ram.load(ACQ + 12, 4)).toBe(0x0001_0001);
    // the admin completion queue's is 32 bytes behind
    strided.write(0x1020, 1);
    expect(strided.nvme.controller.cqs[0]!.head).toBe(1);
  });

  it('keep only what the host may write: CC, AQA, ASQ and ACQ', () => {
    for (const [offset, kept] of [[0x00, 0x0f01_07ff], [0x08, 0x0001_0400], [0x1c, 0], [0x24, 0x0fff_0fff], [0x28, 0xffff_f000], [0x2c, 0xffff_ffff], [0x30, 0xffff_f000], [0x34, 0xffff_ffff]] as const) {
      world.write(offset, 0xffff_ffff);
      expect(world.read(offset)).toBe(kept);
    }
    world.write(0x14, 0xff46_000e);
    expect(world.read(0x14)).toBe(0x0046_0000);
  });

  it('read both masks as the mask that INTMS sets and INTMC clears', () => {
    world.write(0x0c, 0xf0);
    world.write(0x0c, 0x03);
    expect([world.read(0x0c), world.read(0x10)]).toEqual([0xf3, 0xf3]);
    world.write(0x10, 0x30);
    expect([world.read(0x0c), world.read(0x10)]).toEqual([0xc3, 0xc3]);
  });

  it('read doorbells as zero, ignore odd accesses to them, and NSSR: there is no subsystem reset', () => {
    world.enable();
    world.bar.write(0x1000, 8, 1, 0);
    world.bar.write(0x1000, 2, 1);
    world.bar.write(0x1002, 4, 1);
    world.write(0x20, 0x4e56_4d65);
    world.settle();
    expect([world.read(0x1000), world.read(0x1c), world.nvme.controller.sqs[0]!.tail]).toEqual([0, 1, 0]);
  });

  it('become ready some time after CC.EN', () => {
    world.write(0x24, 0x000f_000f);
    world.bar.write(0x28, 8, ASQ, 0);
    world.bar.write(0x30, 8, ACQ, 0);
    world.write(0x14, 0x0046_0001);
    expect(world.read(0x1c)).toBe(0);
    world.settle();
    expect(world.read(0x1c)).toBe(1);
  });

  it.each([
    ['no admin submission queue entries', (w: Preparing) => w.write(0x24, 0x000f_0000)],
    ['no admin completion queue entries', (w: Preparing) => w.write(0x24, 0x0000_000f)],
    ['no admin submission queue', (w: Preparing) => w.bar.write(0x28, 8, 0, 0)],
    ['no admin completion queue', (w: Preparing) => w.bar.write(0x30, 8, 0, 0)],
    ['another command set', (w: Preparing) => (w.cc |= 1 << 4)],
    ['weighted round robin', (w: Preparing) => (w.cc |= 1 << 11)],
    ['pages of 128 KiB', (w: Preparing) => (w.cc |= 5 << 7)],
    ['queues that are not aligned to its pages', (w: Preparing) => (w.cc |= 1 << 7, w.bar.write(0x30, 8, 0x10_1000, 0))],
  ] as [string, (w: Preparing) => void][])('fail fatally with %s, and again work after a reset', (_what, spoil) => {
    const prepared = Object.assign(world, { cc: 0x0046_0001 });
    world.write(0x24, 0x000f_000f);
    world.bar.write(0x28, 8, ASQ, 0);
    world.bar.write(0x30, 8, ACQ, 0);
    spoil(prepared);
    world.write(0x14, prepared.cc);
    world.settle();
    expect(world.read(0x1c)).toBe(2);
    world.write(0x14, 0);
    world.settle();
    expect(world.read(0x1c)).toBe(0);
    expect(world.enable()).toBe(1);
  });
});

type Preparing = NvmeWorld & { cc: number };

describe('a reset of the controller', () => {
  it('keeps AQA, ASQ and ACQ, forgets queues, features, masks and events, and clears CC at once', () => {
    const world = new NvmeWorld().started();
    world.command(0, 0x09, { cdw: [0x01, 0x0102_0304] });
    world.write(0x0c, 0xff);
    world.write(0x14, 0x0046_0000);
    expect([world.read(0x14), world.read(0x1c)]).toEqual([0, 1]);
    world.settle();
    expect([world.read(0x1c), world.read(0x0c), world.read(0x24), world.read(0x28), world.read(0x30)]).toEqual([0, 0, 0x000f_000f, ASQ, ACQ]);
    expect(world.nvme.controller.sqs).toEqual([]);
    world.enable();
    expect(world.command(0, 0x0a, { cdw: [0x01] }).dw0).toBe(7);
    world.createQueues();
  });

  it('waits with CSTS.RDY until nothing moves data any more', () => {
    const world = new NvmeWorld({ hold: 1, seed: 5, config: { readNs: 10 } }).started();
    world.medium.write(0, pattern(0x8000));
    world.submit(1, 0x02, { nsid: 1, prp1: BUFFER, prp2: LIST, cdw: [0, 0, 15] });
    world.clock.run({ stop: () => world.nvme.controller.outstanding === 1 });
    world.write(0x14, 0x0046_0000);
    world.clock.run({ stop: () => (world.read(0x1c) & 1) === 0 });
    world.ram.fill(BUFFER, 0xee, 0x2000);
    world.settle();
    expect(world.bytes(BUFFER, 0x2000).every((byte) => byte === 0xee)).toBe(true);
    expect(world.take(1)).toEqual([]);
  });

  it.each([1, 2, 3])('in the middle of commands whose DMA is held leaves a controller that works, seed %i', (seed) => {
    const world = new NvmeWorld({ hold: 0.8, seed }).started();
    for (let round = 0; round < 6; round++) {
      for (let i = 0; i < 8; i++) world.submit(1, i % 2 === 0 ? 0x02 : 0x01, { nsid: 1, prp1: BUFFER + i * 0x1000, cdw: [i * 8, 0, 7] });
      world.clock.run({ untilNs: world.clock.now + 3_000 * (round + 1) });
      world.write(0x14, 0);
      world.settle();
      expect([world.read(0x1c), world.nvme.controller.outstanding]).toEqual([0, 0]);
      expect(world.enable()).toBe(1);
      world.createQueues();
      world.medium.write(0x10000, pattern(512));
      expect(world.status(1, 0x02, { nsid: 1, prp1: BUFFER, cdw: [0x80, 0, 0] })).toBe('0');
      expect(world.bytes(BUFFER, 512)).toEqual(pattern(512));
    }
  });

  it('that is taken back before it is done still happens', () => {
    const world = new NvmeWorld().started();
    world.write(0x14, 0);
    world.write(0x14, 0x0046_0001);
    world.settle();
    expect([world.read(0x1c), world.nvme.controller.sqs.length]).toEqual([1, 1]);
  });
});

const LIST = BUFFER + 0x1000;

describe('shutdown', () => {
  it('ends commands, flushes, says so, and takes no further ones until a reset', () => {
    const world = new NvmeWorld().started();
    world.fill(BUFFER, pattern(512));
    const cid = world.submit(1, 0x01, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    world.clock.run({ stop: () => world.nvme.controller.outstanding === 1 });
    world.write(0x14, 0x0046_4001);
    expect(world.read(0x1c)).toBe(1 | 4);
    world.settle();
    expect(world.read(0x1c)).toBe(1 | 8);
    expect(world.take(1).map((cqe) => [cqe.cid, cqe.status])).toEqual([[cid, 0]]);
    expect(world.medium.unflushedWrites).toBe(0);
    world.submit(1, 0x00, { nsid: 1 });
    world.settle();
    expect(world.take(1)).toEqual([]);
    world.write(0x14, 0);
    world.settle();
    expect(world.read(0x1c)).toBe(0);
    expect(world.enable()).toBe(1);
  });

  it('works while the controller is off, and its status goes with SHN', () => {
    const world = new NvmeWorld();
    world.write(0x14, 0x0000_8000);
    world.settle();
    expect(world.read(0x1c)).toBe(8);
    world.write(0x14, 0);
    expect(world.read(0x1c)).toBe(0);
    expect(world.enable()).toBe(1);
  });
});

describe('function level reset, removal, bus mastering', () => {
  it('bring everything to its state after power-on; the medium stays', () => {
    const world = new NvmeWorld().started();
    world.fill(BUFFER, pattern(512));
    world.status(1, 0x01, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    let express = world.configRead(0x34, 1);
    while (world.configRead(express, 1) !== 0x10) express = world.configRead(express + 1, 1);
    world.submit(1, 0x02, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    world.config(express + 8, 2, 0x8000);
    world.settle();
    expect([world.nvme.controller.outstanding, world.configRead(4, 2)]).toEqual([0, 0]);
    world.config(4, 2, 6);
    expect([world.read(0x14), world.read(0x1c), world.read(0x24), world.read(0x28)]).toEqual([0, 0, 0, 0]);
    world.started();
    world.ram.fill(BUFFER, 0, 512);
    expect(world.status(1, 0x02, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] })).toBe('0');
    expect(world.bytes(BUFFER, 512)).toEqual(pattern(512));
  });

  it('end what is under way when the function is pulled out', () => {
    const world = new NvmeWorld({ hold: 0.9 }).started();
    for (let i = 0; i < 6; i++) world.submit(1, 0x02, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 7] });
    world.clock.run({ untilNs: world.clock.now + 5_000 });
    world.complex.remove(world.nvme.function, { surprise: true });
    world.settle();
    expect([world.nvme.controller.outstanding, world.read(0x1c), world.scheduler.live().length]).toEqual([0, 0xffff_ffff, 0]);
  });

  it('nothing is fetched or posted while bus mastering is off, and it goes on later', () => {
    const world = new NvmeWorld().started();
    world.submit(1, 0x00, { nsid: 1 });
    world.clock.run({ stop: () => world.nvme.controller.outstanding === 1 });
    world.config(4, 2, 2);
    world.submit(1, 0x00, { nsid: 1 });
    world.settle();
    expect([world.take(1).length, world.nvme.controller.outstanding]).toEqual([0, 1]);
    world.config(4, 2, 6);
    world.settle();
    expect(world.take(1).map(({ status }) => status)).toEqual([0, 0]);
  });

  it('data that meets bus mastering off is a transfer error', () => {
    const world = new NvmeWorld().started();
    world.submit(1, 0x02, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    world.clock.run({ stop: () => world.nvme.controller.outstanding === 1 });
    world.config(4, 2, 2);
    world.settle();
    world.config(4, 2, 6);
    world.settle();
    expect(world.take(1).map(({ status, dnr }) => [status, dnr])).toEqual([[4, false]]);
  });

  it('a queue entry that cannot be read or written is fatal', () => {
    const world = new NvmeWorld().started();
    world.command(0, 0x05, { prp1: 0x7000_0000, cdw: [0x000f_0002, 3 | (2 << 16)] });
    world.command(0, 0x01, { prp1: 0x7001_0000, cdw: [0x000f_0002, 1 | (2 << 16)] });
    world.write(0x1010, 1);
    world.settle();
    expect(world.read(0x1c)).toBe(3);
    expect(world.enable()).toBe(3);
    world.write(0x14, 0);
    world.settle();
    expect(world.enable()).toBe(1);
  });
});
