/** Kernel queues without SVA: processes' pages pinned and mapped by the driver (requirement 2c's guest side, E35 of idxd's DMA API use). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { sleep, type Steps } from '../../sim/task.js';
import type { IdxdOptions, IdxdWqOptions } from '../../devices/dsa/driver/idxd-options.js';
import type { IdxdPinnedFile, PinnedOperation, PinnedResult } from '../../devices/dsa/driver/idxd-pinned.js';
import { orderOfPieces, piecesOf, runsOfPages } from '../../devices/dsa/driver/pinned-pieces.js';
import { crc32c } from '../../devices/dsa/hardware/crc32c.js';
import { OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { SvaWorld, type SvaWorldOptions } from '../fixtures/sva-world.js';

const KERNEL: IdxdWqOptions = { name: 'wq0.0', mode: 'dedicated', type: 'kernel', size: 4, maxTransfer: 0x4000 };
const USER: IdxdWqOptions = { name: 'wq0.1', mode: 'dedicated', type: 'user', size: 8 };

type Owner = ReturnType<SvaWorld['process']>;

function started(idxd: IdxdOptions = { wqs: [KERNEL] }, options: Partial<SvaWorldOptions> = {}): SvaWorld {
  const world = new SvaWorld({ idxd, ...options });
  world.run(world.loadDrivers());
  return world;
}

function open(world: SvaWorld): { file: IdxdPinnedFile; owner: Owner } {
  const owner = world.process('app');
  return { file: world.run(world.idxd.openPinned(world.pci, owner.process, 'wq0.0')), owner };
}

const operation = (fields: Partial<PinnedOperation> & Pick<PinnedOperation, 'kind'>): PinnedOperation => ({ from: 0, to: 0, sizeBytes: 0, pattern: 0n, ...fields });

function bytes(size: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length: size }, (_, i) => (i * 13 + seed + (i >> 8)) & 0xff);
}

/** Memory of the process with these bytes, from `offset` in a page on. */
function* buffer(owner: Owner, content: Uint8Array, offset = 0): Steps<number> {
  const at = (yield* owner.process.mm.mmap(Math.ceil((content.length + offset) / 4096) * 4096)) + offset;
  yield* owner.process.mm.write(at, content);
  return at;
}

function* contents(owner: Owner, at: number, length: number): Steps<Uint8Array> {
  const content = new Uint8Array(length);
  yield* owner.process.mm.read(at, content);
  return content;
}

function* perform(file: IdxdPinnedFile, operations: readonly PinnedOperation[], options = {}): Steps<readonly PinnedResult[]> {
  const submission = yield* file.submit(operations, options);
  return yield* submission.wait();
}

/** Nothing of the process is held any more. */
function expectNothingHeld(world: SvaWorld): void {
  expect(world.frames.pinnedPages).toBe(0);
  // the queue's completion records
  expect(world.core.usage.dmaPages).toBeLessThanOrEqual(1);
}

describe('operations of a process on a kernel queue', () => {
  it.each([{ batch: false }, { batch: true }])('copies, fills, compares and sums as the processor would, %o', (options) => {
    const world = started();
    const { file, owner } = open(world);
    const data = bytes(50_001);
    const [copied, filled, results] = world.run((function* (): Steps<[Uint8Array, Uint8Array, PinnedResult[]]> {
      const from = yield* buffer(owner, data, 100), to = yield* buffer(owner, new Uint8Array(60_000), 7), other = yield* buffer(owner, new Uint8Array(30_000), 3);
      const done: PinnedResult[] = [];
      for (const one of [
        operation({ kind: 'copy', from, to, sizeBytes: data.length }), operation({ kind: 'fill', to: other, sizeBytes: 29_999, pattern: 0x0807_0605_0403_0201n }),
        operation({ kind: 'compare', from, to, sizeBytes: data.length }), operation({ kind: 'crc', from, sizeBytes: data.length }), operation({ kind: 'noop' }),
      ]) done.push(...(yield* perform(file, [one], options)));
      yield* owner.process.mm.write(to + 40_000, Uint8Array.of(data[40_000]! ^ 1));
      done.push(...(yield* perform(file, [operation({ kind: 'compare', from, to, sizeBytes: data.length })], options)));
      return [yield* contents(owner, to, data.length), yield* contents(owner, other, 29_999), done];
    })());
    data[40_000]! ^= 1;
    expect(Buffer.compare(copied, data)).toBe(0);
    expect(filled.every((byte, i) => byte === (i % 8) + 1)).toBe(true);
    data[40_000]! ^= 1;
    expect(results.map(({ status, bytes: done, value }) => [status, done, value])).toEqual([
      ['success', 50_001, 50_001], ['success', 29_999, 29_999], ['success', 50_001, 50_001], ['success', 50_001, crc32c(data)], ['success', 0, 0], ['mismatch', 40_000, 40_000],
    ]);
    expectNothingHeld(world);
  });

  it.each([[-100, 20_000], [100, 20_000], [5_000, 20_000], [-5_000, 20_000]])('moves a buffer %d bytes onto itself as memmove does', (distance, size) => {
    const world = started();
    const { file, owner } = open(world);
    const data = bytes(40_000);
    const moved = world.run((function* (): Steps<Uint8Array> {
      const at = yield* buffer(owner, data);
      expect((yield* perform(file, [operation({ kind: 'copy', from: at + 10_000, to: at + 10_000 + distance, sizeBytes: size })]))[0]!.status).toBe('success');
      return yield* contents(owner, at, data.length);
    })());
    data.copyWithin(10_000 + distance, 10_000, 10_000 + size);
    expect(Buffer.compare(moved, data)).toBe(0);
  });

  it('has more in flight than the queue has entries, in several submissions', () => {
    const world = started();
    const { file, owner } = open(world);
    const results = world.run((function* (): Steps<PinnedResult[]> {
      const from = yield* buffer(owner, bytes(0x4_0000)), to = yield* buffer(owner, new Uint8Array(0x4_0000));
      const submissions = [];
      for (let i = 0; i < 8; i++) submissions.push(yield* file.submit([0, 1].map((half) => operation({ kind: 'copy', from: from + i * 0x8000 + half * 0x4000, to: to + i * 0x8000 + half * 0x4000, sizeBytes: 0x4000 }))));
      expect(world.frames.pinnedPages).toBe(128);
      const done: PinnedResult[] = [];
      for (const submission of submissions) done.push(...(yield* submission.wait()));
      expect(Buffer.compare(yield* contents(owner, to, 0x4_0000), bytes(0x4_0000))).toBe(0);
      return done;
    })());
    expect(results.every(({ status }) => status === 'success')).toBe(true);
    expect([results.length, file.activity]).toEqual([16, 8]);
    expectNothingHeld(world);
  });

  it('tells who watches that a submission has ended', () => {
    const world = started();
    const { file, owner } = open(world);
    let woken = 0;
    file.watch(() => void woken++);
    world.run((function* (): Steps {
      const from = yield* buffer(owner, bytes(100));
      yield* perform(file, [operation({ kind: 'crc', from, sizeBytes: 100 })]);
    })());
    expect(woken).toBe(1);
  });

  it('refuses with EAGAIN what would have to wait, when told so', () => {
    const world = started();
    const { file, owner } = open(world);
    const code = world.run((function* (): Steps<unknown> {
      const from = yield* buffer(owner, bytes(0x1_0000));
      const submission = yield* file.submit([0, 1, 2, 3].map((i) => operation({ kind: 'crc', from: from + i * 0x4000, sizeBytes: 0x4000 })));
      yield* sleep(world.clock, 2_000);
      let refused: unknown;
      try {
        yield* file.submit([operation({ kind: 'noop' })], { noWait: true });
      } catch (error) {
        refused = error;
      }
      yield* submission.wait();
      return refused;
    })());
    expect(code).toMatchObject({ code: 'EAGAIN' });
  });

  it('computes what the processor computes, whatever the sizes and offsets (property)', () => {
    const world = started({ wqs: [{ ...KERNEL, maxTransfer: 0x1000 }] });
    const { file, owner } = open(world);
    const base = world.run(buffer(owner, bytes(0x1_0000)));
    const model = bytes(0x1_0000);
    fc.assert(fc.property(fc.nat(0x7fff), fc.nat(0x7fff), fc.integer({ min: 1, max: 0x7fff }), fc.constantFrom('copy', 'fill', 'crc' as const), (from, to, sizeBytes, kind) => {
      const [result] = world.run(perform(file, [operation({ kind, from: base + from, to: base + to, sizeBytes, pattern: 0x1122_3344_5566_7788n })]));
      expect(result!.status).toBe('success');
      if (kind === 'copy') model.copyWithin(to, from, from + sizeBytes);
      else if (kind === 'fill') for (let i = 0; i < sizeBytes; i++) model[to + i] = Number((0x1122_3344_5566_7788n >> BigInt(8 * (i % 8))) & 0xffn);
      else expect(result!.value).toBe(crc32c(model.subarray(from, from + sizeBytes)));
      expect(Buffer.compare(world.run(contents(owner, base, model.length)), model)).toBe(0);
    }), { numRuns: 25 });
    expectNothingHeld(world);
  });
});

describe('what a process may not do', () => {
  it.each<[string, Partial<PinnedOperation> & Pick<PinnedOperation, 'kind'>, string]>([
    ['an address that is not mapped', { kind: 'crc', from: 0x1000, sizeBytes: 8 }, 'EFAULT'],
    ['an operation of no bytes', { kind: 'copy', from: 0x1000, to: 0x2000, sizeBytes: 0 }, 'EINVAL'],
  ])('refuses %s and holds nothing', (_name, fields, code) => {
    const world = started();
    const { file, owner } = open(world);
    const refused = world.run((function* (): Steps<unknown> {
      const good = yield* buffer(owner, bytes(8192));
      try {
        yield* file.submit([operation({ kind: 'crc', from: good, sizeBytes: 8192 }), operation(fields)]);
      } catch (error) {
        return error;
      }
      return undefined;
    })());
    expect(refused).toMatchObject({ code });
    expectNothingHeld(world);
    expect(world.reports).toEqual([]);
  });

  it('holds nothing of an operation that is named twice and whose target is not there', () => {
    const world = started();
    const { file, owner } = open(world);
    const from = world.run(buffer(owner, bytes(4096)));
    const good = operation({ kind: 'copy', from, to: from, sizeBytes: 64 });
    const bad = operation({ kind: 'copy', from, to: 0x1000, sizeBytes: 64 });
    expect(world.refusal(file.submit([good, good, bad])).code).toBe('EFAULT');
    expect(world.refusal(file.submit([bad, bad])).code).toBe('EFAULT');
    expectNothingHeld(world);
  });

  it('refuses to write where the process may only read (EFAULT)', () => {
    const world = started();
    const { file, owner } = open(world);
    const at = world.run((function* (): Steps<number> {
      const readable = yield* buffer(owner, bytes(4096));
      yield* owner.process.mm.mprotect(readable, 4096, 1);
      return readable;
    })());
    expect(world.refusal(file.submit([operation({ kind: 'fill', to: at, sizeBytes: 64 })])).code).toBe('EFAULT');
    expect(world.run(perform(file, [operation({ kind: 'crc', from: at, sizeBytes: 4096 })]))[0]!.value).toBe(crc32c(bytes(4096)));
    expectNothingHeld(world);
  });

  it('opens no user queue this way (EPERM), nor a queue that is not there (ENODEV)', () => {
    const world = started({ wqs: [KERNEL, USER] });
    const { process } = world.process('app');
    expect(world.refusal(world.idxd.openPinned(world.pci, process, 'wq0.1')).code).toBe('EPERM');
    expect(world.refusal(world.idxd.openPinned(world.pci, process, 'wq9')).code).toBe('ENODEV');
    expect(process.descriptors()).toEqual([]);
  });
});

describe('a driver that lies about addresses', () => {
  it('reaches nothing that is not mapped for the device: a fault with its address', () => {
    const world = started();
    const { file, owner } = open(world);
    const result = world.run((function* (): Steps<PinnedResult> {
      const from = yield* buffer(owner, bytes(100));
      return (yield* perform(file, [operation({ kind: 'copy', from, to: { deviceAddress: 0x7777_0000 }, sizeBytes: 100 })]))[0]!;
    })());
    expect(result).toMatchObject({ status: 'page-fault', bytes: 0, faultAddress: 0x7777_0000 });
    expectNothingHeld(world);
  });

  it('submits descriptors as they are', () => {
    const world = started();
    const { file } = open(world);
    const record = world.run(file.submitDescriptor({ opcode: OPCODE.MEMFILL, destination: 0x1234_5000, pattern: [1, 2], size: 64 }));
    expect([record.status, record.faultAddress]).toEqual([STATUS.PAGE_FAULT_NOBOF, 0x1234_5000]);
    expect(file.submitRaw(encodeDescriptor({ opcode: OPCODE.NOOP }))).toBe('accepted');
    world.settle();
    expect(world.reports.map(({ opcode }) => opcode)).toEqual([OPCODE.MEMFILL, OPCODE.NOOP]);
  });
});

describe('the end', () => {
  /** 64 KiB under way. */
  function* busy(file: IdxdPinnedFile, owner: Owner): Steps<{ wait(): Steps<readonly PinnedResult[]> }> {
    const from = yield* buffer(owner, bytes(0x1_0000)), to = yield* buffer(owner, new Uint8Array(0x1_0000));
    return yield* file.submit([operation({ kind: 'copy', from, to, sizeBytes: 0x1_0000 })]);
  }

  it('of a process that is killed waits for what is in flight, then everything is free', () => {
    const world = started();
    const before = world.frames.inUse;
    const { file, owner } = open(world);
    const reports = world.run((function* (): Steps<number> {
      yield* busy(file, owner);
      yield* owner.process.exit();
      return world.reports.filter(({ status }) => status === 1).length;
    })());
    expect(reports).toBe(4);
    expectNothingHeld(world);
    expect(world.frames.inUse).toBe(before);
    expect(world.idxd.device(world.pci).pinnedFiles.size).toBe(0);
  });

  it('of the driver lets submissions end, and refuses new ones with ENODEV', () => {
    const world = started();
    const { file, owner } = open(world);
    const results = world.run((function* (): Steps<readonly PinnedResult[]> {
      const submission = yield* busy(file, owner);
      yield* world.drivers.unbind('idxd', world.pci);
      return yield* submission.wait();
    })());
    expect(['success', 'aborted']).toContain(results[0]!.status);
    expect(file.gone).toBe(true);
    expect(world.refusal(file.submit([operation({ kind: 'noop' })])).code).toBe('ENODEV');
    expect([world.frames.pinnedPages, world.core.usage.dmaPages, world.core.counters.violations]).toEqual([0, 0, 0]);
    world.run(owner.process.exit());
  });

  it('of a device that is pulled out aborts and unpins', () => {
    const world = started();
    const { file, owner } = open(world);
    const results = world.run((function* (): Steps<readonly PinnedResult[]> {
      const submission = yield* busy(file, owner);
      world.complex.remove(world.dsa.function, { surprise: true });
      yield* world.pciCore.removeAbsent();
      return yield* submission.wait();
    })());
    expect(results.map(({ status }) => status)).toEqual(['aborted']);
    expect([file.gone, world.frames.pinnedPages, world.core.usage.dmaPages]).toEqual([true, 0, 0]);
    world.run(owner.process.exit());
  });

  it('of a device that halts aborts and unpins', () => {
    const world = started();
    const { file, owner } = open(world);
    const results = world.run((function* (): Steps<readonly PinnedResult[]> {
      const submission = yield* busy(file, owner);
      world.pci.setMaster(false);
      // a function that may not write cannot interrupt either: somebody looks
      world.idxd.device(world.pci).hardware.miscInterrupt();
      return yield* submission.wait();
    })());
    expect(results.map(({ status }) => status)).toEqual(['aborted']);
    expect(world.refusal(file.submit([operation({ kind: 'noop' })])).code).toBe('ENODEV');
    expect(world.frames.pinnedPages).toBe(0);
    world.run(owner.process.exit());
  });

  it.each([{ defects: [], pins: 1 }, { defects: ['idxd.unpin-before-completion'], pins: 0 }])('keeps pages pinned until the device has done with them: $defects', ({ defects, pins }) => {
    const world = started({ wqs: [KERNEL] }, { defects });
    const { file, owner } = open(world);
    let held = -1;
    world.run((function* (): Steps {
      const to = yield* buffer(owner, new Uint8Array(4096));
      const physical = owner.process.mm.physicalOf(to);
      const submission = yield* file.submit([operation({ kind: 'fill', to, sizeBytes: 4096, pattern: ~0n & 0xffff_ffff_ffff_ffffn })]);
      while (world.trace.countOf(world.trace.kinds.find(({ name }) => name === 'dsa:start')!) === 0) yield* sleep(world.clock, 50);
      yield* sleep(world.clock, 1);
      held = world.frames.pins(physical);
      yield* submission.wait();
    })());
    expect(held).toBe(pins);
  });
});

describe('kernels without SVA', () => {
  it('probe kernel queues; a user queue is refused with the missing link', () => {
    const world = started({ wqs: [KERNEL] }, { dsa: { pri: false } });
    expect(world.drivers.driverOf(world.pci)?.name).toBe('idxd');
    expect(world.log.lines.map(({ text }) => text).join('\n')).toContain('Unable to turn on user SVA feature');
    const { file } = open(world);
    expect(world.run(perform(file, [operation({ kind: 'noop' })]))[0]!.status).toBe('success');
    const other = started({ wqs: [KERNEL, USER] }, { dsa: { pri: false } });
    expect(other.drivers.driverOf(other.pci)).toBeUndefined();
    expect(other.log.lines.map(({ text }) => text).join('\n')).toContain('user work queue wq0.1 cannot be enabled without SVA');
  });
});

describe('runs and pieces', () => {
  it('join pages that follow each other', () => {
    expect(runsOfPages([0x1000, 0x2000, 0x8000], 0x10, 0x2100)).toEqual([{ address: 0x1010, sizeBytes: 0x1ff0 }, { address: 0x8000, sizeBytes: 0x110 }]);
  });

  it('cover everything once, contiguous on both sides and no larger than allowed (property)', () => {
    const runs = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 8 });
    fc.assert(fc.property(runs, runs, fc.integer({ min: 1, max: 200 }), (a, b, most) => {
      const total = Math.min(a.reduce((x, y) => x + y), b.reduce((x, y) => x + y));
      const cut = (sizes: number[]): { address: number; sizeBytes: number }[] => {
        let left = total;
        return sizes.flatMap((size, i) => {
          const sizeBytes = Math.min(size, left);
          left -= sizeBytes;
          return sizeBytes > 0 ? [{ address: i * 10_000, sizeBytes }] : [];
        });
      };
      const pieces = piecesOf(cut(a), cut(b), most);
      let at = 0;
      for (const piece of pieces) {
        expect([piece.at, piece.sizeBytes > 0, piece.sizeBytes <= most]).toEqual([at, true, true]);
        at += piece.sizeBytes;
      }
      expect(at).toBe(total);
    }), { numRuns: 60 });
  });

  it('run from the end where a copy moves up over its own source', () => {
    const pieces = [{ at: 0, from: 0, to: 4, sizeBytes: 4 }, { at: 4, from: 4, to: 8, sizeBytes: 4 }];
    expect(orderOfPieces(pieces, { kind: 'copy', from: 0, to: 4, sizeBytes: 8 })[0]!.at).toBe(4);
    expect(orderOfPieces(pieces, { kind: 'copy', from: 4, to: 0, sizeBytes: 8 })).toBe(pieces);
  });
});
