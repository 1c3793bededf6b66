/**
 * Whatever a host writes: the controller does not fail, moves nothing outside what the IOMMU lets through, ends or parks every
 * command, and is well again after a reset. Whatever programs do at once: what was read is what was written.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Errno } from '../../sim/errno.js';
import { isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { MemoryMedium } from '../../devices/nvme/hardware/medium.js';
import { BUFFER, CQ1, LISTS, NvmeDriverWorld, NvmeWorld, SQ1 } from './nvme-world.js';

const OPCODES = [0, 1, 2, 4, 5, 6, 8, 9, 0xa, 0xc, 0x10, 0x7f];
/** Addresses that lie in the world's buffers, partly outside memory, or anywhere. */
const address = fc.oneof(
  fc.nat({ max: 0x3f }).map((n) => BUFFER + n * 0x1000), fc.nat({ max: 0xffff }).map((n) => BUFFER + n), fc.nat({ max: 0x7ff }).map((n) => LISTS + n * 8),
  fc.constantFrom(0, 0x3ff_f000, 0x400_0000, 0xfee0_0000, 0xffff_f000, 2 ** 52 - 4096), fc.nat({ max: 0x7fff_ffff }),
);
const word = fc.oneof(fc.nat({ max: 16 }), fc.constantFrom(0xffff_ffff, 0xffff, 0x1_0001, 0x7_0007, 0x000f_0001, 0x000f_0002), fc.nat({ max: 0xffff_ffff }));
const command = fc.record({
  queue: fc.nat({ max: 2 }), opcode: fc.constantFrom(...OPCODES), nsid: fc.constantFrom(0, 1, 1, 1, 2, 0xffff_ffff), prp1: address, prp2: address,
  cdw: fc.tuple(word, word, word, word), cid: fc.nat({ max: 20 }), flags: fc.constantFrom(0, 0, 0, 0, 0x100, 0x4000),
});
type Command = typeof command extends fc.Arbitrary<infer T> ? T : never;
type Action = { kind: 'command'; command: Command } | { kind: 'write'; offset: number; value: number } | { kind: 'run'; ns: number } | { kind: 'take' } | { kind: 'master'; on: boolean };

const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 8, arbitrary: command.map((one): Action => ({ kind: 'command', command: one })) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('write' as const), offset: fc.oneof(fc.nat({ max: 0x40 }).map((n) => n * 4), fc.nat({ max: 12 }).map((n) => 0x1000 + n * 4), fc.constant(0x14)), value: fc.oneof(word, fc.constantFrom(0x0046_0001, 0x0046_0000, 0x0046_4001, 0x0046_8001)) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('run' as const), ns: fc.nat({ max: 30_000 }) }) },
  { weight: 2, arbitrary: fc.constant({ kind: 'take' as const }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('master' as const), on: fc.boolean() }) },
);

function perform(world: NvmeWorld, one: Action): void {
  switch (one.kind) {
    case 'command': world.submit(world.rings.has(one.command.queue) ? one.command.queue : 0, one.command.opcode, one.command); break;
    case 'write': world.write(one.offset, one.value); break;
    case 'run': world.clock.run({ untilNs: world.clock.now + one.ns }); break;
    case 'take': for (const queue of world.rings.keys()) world.take(queue); break;
    case 'master': world.config(4, 2, one.on ? 6 : 2); break;
  }
}

/** What a hostile host may leave: the controller answers a reset all the same. */
function expectWell(world: NvmeWorld): void {
  world.config(4, 2, 6);
  world.settle();
  world.write(0x14, 0);
  world.settle();
  expect([world.read(0x1c), world.nvme.controller.outstanding, world.scheduler.live().length]).toEqual([0, 0, 0]);
  world.enableInterrupts();
  expect(world.enable()).toBe(1);
  world.createQueues();
  world.ram.fill(BUFFER, 0x5a, 512);
  expect([world.status(1, 1, { nsid: 1, prp1: BUFFER, cdw: [3, 0, 0] }), world.stored(3 * 512, 1)[0]]).toEqual(['0', 0x5a]);
}

describe('a hostile host', () => {
  it.each([0, 0.5])('does no harm to the controller, with %d of its DMA held', (hold) => {
    fc.assert(fc.property(fc.array(action, { minLength: 5, maxLength: 40 }), fc.nat(), (actions, seed) => {
      const world = new NvmeWorld({ seed, medium: new MemoryMedium(2 ** 20), ...(hold === 0 ? {} : { hold }) });
      world.enableInterrupts();
      world.enable();
      world.createQueues();
      world.createQueues(2, 8, SQ1 + 0x1000, CQ1 + 0x1000);
      for (const one of actions) perform(world, one);
      expectWell(world);
    }), { numRuns: 60 });
  });

  it('gets a completion for every command, or the command waits for an event', () => {
    fc.assert(fc.property(fc.array(command.filter(({ opcode, queue }) => queue !== 0 || ![0, 4, 8].includes(opcode)), { minLength: 1, maxLength: 14 }), fc.nat(), (commands, seed) => {
      const world = new NvmeWorld({ seed, hold: 0.3, medium: new MemoryMedium(2 ** 20) }).started();
      const submitted = commands.map((fields, i) => [Math.min(fields.queue, 1), world.submit(Math.min(fields.queue, 1), fields.opcode, { ...fields, cid: 0x200 + i })].join());
      world.settle();
      const fatal = (world.read(0x1c) & 2) !== 0;
      const done = [0, 1].flatMap((queue) => world.take(queue).map(({ sqId, cid }) => [sqId, cid].join()));
      const { sqs } = world.nvme.controller;
      const parked = sqs.flatMap((sq) => [...(sq?.commands.values() ?? [])].filter((one) => one.parked).map((one) => [one.sq.id, one.cid].join()));
      // writes to the queues' own memory may do anything to what stands there
      const overwritten = commands.some(({ opcode, prp1, prp2 }) => [2, 6].includes(opcode) && [prp1, prp2].some((at) => at < BUFFER));
      if (!fatal && !overwritten) expect([...done, ...parked].toSorted()).toEqual(submitted.toSorted());
    }), { numRuns: 60 });
  });
});

describe('behind an IOMMU', () => {
  it('commands of a hostile driver reach only what is mapped', () => {
    fc.assert(fc.property(fc.array(fc.record({ write: fc.boolean(), prp1: fc.nat({ max: 0x3fff }).map((n) => n * 0x1000), blocks: fc.integer({ min: 1, max: 64 }), prp2: fc.nat({ max: 0x3fff }).map((n) => n * 0x1000) }), { minLength: 1, maxLength: 12 }), (commands) => {
      const world = new NvmeDriverWorld({ medium: new MemoryMedium(2 ** 20), core: { dma: 'strict' } });
      world.medium.write(0, new Uint8Array(2 ** 20).fill(0xee));
      const dev = world.nvmeDriver.device(world.nvmePci);
      const frame = world.frames.alloc('victim');
      const before = world.ram.load(frame, 4);
      for (const { write, prp1, blocks, prp2 } of commands) {
        let failed: Errno | undefined;
        try {
          world.run(dev.ioCommand({ opcode: write ? 1 : 2, nsid: 1, prp1, prp2, cdw: [0, 0, blocks - 1] }, 0));
        } catch (error) {
          if (!isErrno(error)) throw error;
          failed = error;
        }
        // addresses that were given out are far above these: each meets nothing
        expect(failed?.message).toMatch(/DATA_TRANSFER|INVALID_PRP_OFFSET/);
      }
      expect([world.ram.load(frame, 4), dev.state]).toEqual([before, 'live']);
    }), { numRuns: 15 });
  });

  it.each([{ dma: 'strict' }, { dma: 'lazy' }, { defaultDomain: 'identity' }] as const)('several programs with %o read what they wrote, whatever happens meanwhile', (core) => {
    const step = fc.record({ user: fc.nat({ max: 3 }), block: fc.nat({ max: 30 }), count: fc.integer({ min: 1, max: 40 }), inside: fc.constantFrom(0, 512, 3584), flush: fc.boolean() });
    fc.assert(fc.property(fc.array(step, { minLength: 3, maxLength: 20 }), fc.nat(), fc.option(fc.nat({ max: 400_000 })), (steps, seed, resetAt) => {
      const world = new NvmeDriverWorld({ seed, hold: 0.2, core, medium: new MemoryMedium(2 ** 20), services: { queueDepth: 4 } });
      const failures: string[] = [];
      const user = function* (index: number): Steps {
        const { process } = world.process(`user${index}`);
        const file = yield* world.nvmeDriver.open(world.nvmePci, process);
        const memory = yield* process.mm.mmap(65_536), back = yield* process.mm.mmap(65_536);
        for (const [i, { block, count, inside, flush }] of steps.filter((one) => one.user === index).entries()) {
          const bytes = new Uint8Array(count * 512).fill(index * 60 + i + 1), seen = new Uint8Array(bytes.length), offset = index * 131_072 + block * 512;
          yield* process.mm.write(memory + inside, bytes);
          yield* file.pwrite(memory + inside, offset, bytes.length);
          if (flush) yield* file.fsync();
          yield* file.pread(back + inside, offset, bytes.length);
          yield* process.mm.read(back + inside, seen, 0, seen.length);
          if (Buffer.compare(seen, bytes) !== 0) failures.push(`user ${index} step ${i}`);
        }
        yield* process.exit();
      };
      const tasks = [0, 1, 2, 3].map((index) => world.scheduler.spawn(`user ${index}`, user(index), { joined: true }));
      if (resetAt !== null) world.clock.post(resetAt, () => void world.scheduler.spawn('reset', world.nvmePci.reset()));
      world.settle();
      expect([failures, tasks.map(({ state, error }) => (state === 'done' ? '' : String(error)))]).toEqual([[], ['', '', '', '']]);
      world.run(world.drivers.unregisterDriver('nvme'));
      world.settle();
      expect([world.frames.pinnedPages, world.core.usage.dmaPages]).toEqual([0, 0]);
    }), { numRuns: 12 });
  });
});
