/** Migration of devices, version 2, and logs of their writes (include/uapi/linux/vfio.h, drivers/vfio/vfio_main.c). */
import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { Errno, type ErrnoName } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { VfioFeatureRequest } from '../../vfio/device.js';
import type { DeviceHandle, VfioCalls } from '../../vfio/client/index.js';
import { DmaLogging, MAX_LOGGED_RANGES, MIG_STATE_NAMES, nextMigrationState, VfioMigration, type MigrationDataFile, type MigrationState, type MigrationVendor } from '../../vfio/migration/index.js';
import { bytesOf, PRECOPY_INFO, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_MIGRATION, VFIO_MIG_GET_PRECOPY_INFO, wordsOfBytes } from '../../vfio/uapi/index.js';
import { VfioWorld, type TinyDevice } from '../fixtures/vfio-world.js';

const [ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] = [0, 1, 2, 3, 4, 5, 6, 7] as const;
const STATES = [0, 1, 2, 3, 4, 5, 6, 7];
const COPY = 1, P2P = 2, PRE = 4;

describe('the way from one state to another', () => {
  /** What the header says, not the kernel's table: arcs that a device has, and states that are only the ends of a way. */
  const ARCS: readonly [from: number, to: number, without?: number, needs?: number][] = [
    [RESUMING, STOP], [STOP, RESUMING], [STOP, STOP_COPY], [STOP_COPY, STOP],
    [RUNNING, STOP, P2P], [STOP, RUNNING, P2P],
    [RUNNING, RUNNING_P2P, 0, P2P], [RUNNING_P2P, RUNNING, 0, P2P], [RUNNING_P2P, STOP, 0, P2P], [STOP, RUNNING_P2P, 0, P2P],
    [RUNNING, PRE_COPY, 0, PRE], [PRE_COPY, RUNNING, 0, PRE], [PRE_COPY, STOP_COPY, P2P, PRE],
    [PRE_COPY, PRE_COPY_P2P, 0, P2P | PRE], [PRE_COPY_P2P, PRE_COPY, 0, P2P | PRE], [PRE_COPY_P2P, RUNNING_P2P, 0, P2P | PRE],
    [PRE_COPY_P2P, STOP_COPY, 0, P2P | PRE], [RUNNING_P2P, PRE_COPY_P2P, 0, P2P | PRE],
  ];
  const SAVING: readonly number[] = [STOP_COPY, PRE_COPY, PRE_COPY_P2P];

  function arcsOf(flags: number): (readonly [number, number])[] {
    return ARCS.filter(([, , without = 0, needs = 0]) => (flags & without) === 0 && (flags & needs) === needs).map(([from, to]) => [from, to] as const);
  }

  /**
   * The shortest way that does not save in between (a way that begins in a saving state may end the saving in
   * STOP_COPY); undefined: none. What was saved is not taken up again.
   */
  function shortest(flags: number, from: number, to: number): number[] | undefined {
    if (from === STOP_COPY && (to === PRE_COPY || to === PRE_COPY_P2P)) return undefined;
    const arcs = arcsOf(flags);
    let ways = [[from]];
    for (let length = 0; length < 6; length++) {
      const there = ways.find((way) => way.at(-1) === to);
      if (there !== undefined) return there.slice(1);
      ways = ways.flatMap((way) => arcs
        .filter(([a, b]) => a === way.at(-1) && !way.includes(b) && (b === to || !SAVING.includes(b) || (SAVING.includes(from) && to === STOP_COPY)))
        .map(([, b]) => [...way, b]));
    }
    return undefined;
  }

  function walk(flags: number, from: number, to: number): number[] | undefined {
    const way: number[] = [];
    for (let at = from; at !== to; ) {
      const next = nextMigrationState(flags, at, to);
      if (next === undefined) return undefined;
      way.push((at = next));
    }
    return way;
  }

  for (const flags of [COPY, COPY | P2P, COPY | PRE, COPY | P2P | PRE]) {
    it(`is the shortest that the header allows, for every pair of states of a device with flags ${flags}`, () => {
      const has = (state: number): boolean => arcsOf(flags).some((arc) => arc.includes(state));
      for (const from of STATES) {
        for (const to of STATES) {
          const name = `${MIG_STATE_NAMES[from]} to ${MIG_STATE_NAMES[to]}`;
          const expected = from === ERROR || to === ERROR || !has(from) || !has(to) ? undefined : shortest(flags, from, to);
          if (from !== to) expect([name, walk(flags, from, to)]).toEqual([name, expected]);
          else expect([name, nextMigrationState(flags, from, to)]).toEqual([name, has(from) ? from : undefined]);
        }
      }
    });
  }

  it('takes only arcs that a driver of such a device has to implement', () => {
    for (const flags of [COPY, COPY | P2P, COPY | PRE, COPY | P2P | PRE]) {
      const arcs = arcsOf(flags).map(String);
      for (const from of STATES) for (const to of STATES) {
        const next = nextMigrationState(flags, from, to);
        if (next !== undefined && next !== from) expect(arcs).toContain(String([from, next]));
      }
    }
  });

  it('knows the ways that the header lists', () => {
    const all = COPY | P2P | PRE;
    expect(walk(all, PRE_COPY, STOP_COPY)).toEqual([PRE_COPY_P2P, STOP_COPY]);
    expect(walk(all, RUNNING, STOP_COPY)).toEqual([RUNNING_P2P, STOP, STOP_COPY]);
    expect(walk(all, RESUMING, PRE_COPY)).toEqual([STOP, RUNNING_P2P, RUNNING, PRE_COPY]);
    expect(walk(COPY, RUNNING, RESUMING)).toEqual([STOP, RESUMING]);
    expect([nextMigrationState(all, STOP_COPY, PRE_COPY), nextMigrationState(all, RUNNING, 8), nextMigrationState(0, RUNNING, STOP)]).toEqual([undefined, undefined, undefined]);
  });
});

/** A device whose state is some bytes, of which some are dirty. */
class Vendor implements MigrationVendor {
  readonly flags: number;
  readonly maxStateBytes = 16;
  readonly story: string[] = [];
  state: Uint8Array = Uint8Array.of(1, 2, 3);
  dirty: number[][] = [];
  /** The next hook of that name fails so. */
  refuse: { readonly hook: string; readonly code: ErrnoName; readonly fatal?: boolean } | undefined;
  migration: VfioMigration | undefined;

  constructor(flags: number) {
    this.flags = flags;
  }

  *arc(from: MigrationState, to: MigrationState): Steps {
    this.story.push(`${MIG_STATE_NAMES[from]} ${MIG_STATE_NAMES[to]}`);
    yield* this.maybeFail('arc');
  }

  *save(part: string): Steps<Uint8Array> {
    yield* this.maybeFail('save');
    if (part === 'initial') return this.state.slice();
    if (part === 'more') return Uint8Array.from(this.dirty.shift() ?? []);
    return Uint8Array.from([...this.dirty.splice(0).flat(), ...this.state]);
  }

  *load(state: Uint8Array): Steps {
    yield* this.maybeFail('load');
    if (state.length === 0) throw new Errno('EINVAL', 'no state');
    this.state = state;
  }

  dataSizeBytes(): number {
    return this.state.length;
  }

  // oxlint-disable-next-line require-yield -- as what calls it
  private *maybeFail(hook: string): Steps {
    const { refuse } = this;
    if (refuse?.hook !== hook) return;
    this.refuse = undefined;
    if (refuse.fatal === true) this.migration!.fail();
    throw new Errno(refuse.code, `${hook} refused`);
  }
}

describe('a device that migrates', () => {
  let world: VfioWorld, vendor: Vendor, migration: VfioMigration, device: DeviceHandle, calls: VfioCalls, fileOf: (fd: number) => MigrationDataFile;

  function start(flags: number, defects: readonly string[] = []): void {
    world = new VfioWorld();
    vendor = new Vendor(flags);
    const registered = world.registered('d');
    migration = vendor.migration = new VfioMigration({ device: 'd', vendor, scheduler: world.scheduler, trace: world.trace, defects: new Set(defects) });
    registered.ops.feature = function* (request: VfioFeatureRequest): Steps<number> {
      const answer = yield* migration.feature(request);
      if (answer === undefined) throw new Errno('ENOTTY', 'unknown feature');
      return answer;
    };
    const client = world.client();
    calls = client.calls;
    const { group } = world.inUse(client, registered.device);
    device = world.run(group.getDevice('d'));
    fileOf = (fd) => client.process.file(fd) as MigrationDataFile;
  }

  beforeEach(() => start(COPY | P2P | PRE));

  const go = (state: number): number | undefined => world.run(device.migration.setState(state));
  const state = (): number => world.run(device.migration.state());
  const read = (fd: number, length = 16): number[] => {
    const bytes = new Uint8Array(length);
    return [...bytes.subarray(0, world.run(fileOf(fd).read(bytes)))];
  };

  it('says what it can, in which state it is, and how large its state is', () => {
    expect([world.run(device.migration.flags()), state(), world.run(device.migration.dataSize())]).toEqual([7, RUNNING, 3]);
  });

  it('goes arc by arc, and nowhere when it is there already', () => {
    expect(go(STOP)).toBeUndefined();
    expect(go(STOP)).toBeUndefined();
    expect([vendor.story, state()]).toEqual([['RUNNING RUNNING_P2P', 'RUNNING_P2P STOP'], STOP]);
  });

  it('saves in STOP_COPY through a stream with an end, which is dead afterwards', () => {
    const fd = go(STOP_COPY)!;
    expect([read(fd, 2), read(fd, 2), read(fd, 2)]).toEqual([[1, 2], [3], []]);
    expect(world.refused(fileOf(fd).write(Uint8Array.of(1)))).toBe('EINVAL');
    go(RUNNING);
    expect(world.refused(fileOf(fd).read(new Uint8Array(4)))).toBe('ENODEV');
  });

  it('saves while it runs (PRE_COPY): ENOMSG when all is known, more when something changed, the same stream in STOP_COPY', () => {
    const fd = go(PRE_COPY)!;
    vendor.dirty.push([9]);
    expect([read(fd), read(fd)]).toEqual([[1, 2, 3], [9]]);
    expect(world.refused(fileOf(fd).read(new Uint8Array(4)))).toBe('ENOMSG');
    expect(go(PRE_COPY_P2P)).toBeUndefined();
    expect(world.refused(fileOf(fd).read(new Uint8Array(4)))).toBe('ENOMSG');
    vendor.dirty.push([8]);
    expect(go(STOP_COPY)).toBeUndefined();
    expect([read(fd), read(fd)]).toEqual([[8, 1, 2, 3], []]);
  });

  it('tells how much is left to pre-copy, and only then (VFIO_MIG_GET_PRECOPY_INFO)', () => {
    const fd = go(PRE_COPY)!;
    const ask = (argsz = 24) => world.run(calls.raw(fd, VFIO_MIG_GET_PRECOPY_INFO, bytesOf(PRECOPY_INFO.encode({ argsz }))));
    const info = (): bigint[] => Object.values(PRECOPY_INFO.decode(wordsOfBytes(ask().bytes))).slice(2);
    expect(info()).toEqual([3n, 0n]);
    read(fd, 2);
    expect(info()).toEqual([1n, 0n]);
    expect(ask(23).refusal?.code).toBe('EINVAL');
    go(STOP_COPY);
    expect(ask().refusal?.code).toBe('EINVAL');
    expect(world.run(calls.raw(fd, 0x1234, new Uint8Array(4))).refusal?.code).toBe('ENOTTY');
  });

  it('ends a pre-copy without a trace when it goes back to RUNNING', () => {
    const fd = go(PRE_COPY)!;
    expect([go(RUNNING), state(), world.refused(fileOf(fd).read(new Uint8Array(1)))]).toEqual([undefined, RUNNING, 'ENODEV']);
  });

  it('resumes from a stream, which it takes when it leaves RESUMING', () => {
    const fd = go(RESUMING)!;
    for (const chunk of [[7, 7], [8]]) expect(world.run(fileOf(fd).write(Uint8Array.from(chunk)))).toBe(chunk.length);
    expect(world.refused(fileOf(fd).read(new Uint8Array(1)))).toBe('EINVAL');
    go(RUNNING);
    expect([[...vendor.state], state(), world.refused(fileOf(fd).write(Uint8Array.of(1)))]).toEqual([[7, 7, 8], RUNNING, 'ENODEV']);
  });

  it('refuses more bytes than a state can be', () => {
    const fd = go(RESUMING)!;
    world.run(fileOf(fd).write(new Uint8Array(16)));
    expect(world.refused(fileOf(fd).write(new Uint8Array(1)))).toBe('ENOMEM');
  });

  it('brings a state to another device byte for byte, however it is cut', () => {
    fc.assert(fc.property(fc.uint8Array({ minLength: 1, maxLength: 16 }), fc.integer({ min: 1, max: 5 }), (bytes, cut) => {
      start(COPY | P2P | PRE);
      vendor.state = bytes;
      const stream: number[] = [];
      const from = go(STOP_COPY)!;
      for (let part = read(from, cut); part.length > 0; part = read(from, cut)) stream.push(...part);
      start(COPY);
      const to = go(RESUMING)!;
      for (let i = 0; i < stream.length; i += cut) world.run(fileOf(to).write(Uint8Array.from(stream.slice(i, i + cut))));
      go(RUNNING);
      expect([...vendor.state]).toEqual([...bytes]);
    }), { numRuns: 20 });
  });

  it('stays where it came to when an arc is refused', () => {
    vendor.refuse = { hook: 'save', code: 'ENOMEM' };
    expect(world.refused(device.migration.setState(STOP_COPY))).toBe('ENOMEM');
    expect(state()).toBe(STOP);
    expect(read(go(STOP_COPY)!)).toEqual([1, 2, 3]);
  });

  it('is in ERROR when the device fails, or its state could not be loaded; only a reset leads out', () => {
    vendor.refuse = { hook: 'arc', code: 'EIO', fatal: true };
    expect([world.refused(device.migration.setState(STOP)), state()]).toEqual(['EIO', ERROR]);
    for (const target of STATES) expect(world.refused(device.migration.setState(target))).toBe('EINVAL');
    world.run(migration.reset());
    expect(state()).toBe(RUNNING);
    go(RESUMING);
    expect([world.refused(device.migration.setState(STOP)), state()]).toEqual(['EINVAL', ERROR]);
  });

  it('is RUNNING after a reset, and what was under way is dead', () => {
    const fd = go(PRE_COPY)!;
    world.run(migration.reset());
    expect([state(), world.refused(fileOf(fd).read(new Uint8Array(1)))]).toEqual([RUNNING, 'ENODEV']);
  });

  it('refuses ERROR, states that it lacks or nobody has, and the way back into a pre-copy', () => {
    expect(world.refused(device.migration.setState(ERROR))).toBe('EINVAL');
    expect(world.refused(device.migration.setState(8))).toBe('EINVAL');
    go(STOP_COPY);
    for (const target of [PRE_COPY, PRE_COPY_P2P]) expect(world.refused(device.migration.setState(target))).toBe('EINVAL');
    expect(state()).toBe(STOP_COPY);
    start(COPY);
    for (const target of [RUNNING_P2P, PRE_COPY, PRE_COPY_P2P]) expect(world.refused(device.migration.setState(target))).toBe('EINVAL');
    expect([state(), vendor.story]).toEqual([RUNNING, []]);
  });

  it('refuses records that are too short, operations that a feature lacks; a probe does nothing', () => {
    expect(world.refused(device.getFeature(VFIO_DEVICE_FEATURE_MIGRATION, new Uint8Array(7)))).toBe('EINVAL');
    expect(world.refused(device.setFeature(VFIO_DEVICE_FEATURE_MIGRATION, new Uint8Array(8)))).toBe('EINVAL');
    expect(world.refused(device.setFeature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, new Uint8Array(4)))).toBe('EINVAL');
    expect(world.refused(device.probeFeature(VFIO_DEVICE_FEATURE_MIGRATION, { set: true }))).toBe('EINVAL');
    world.run(device.probeFeature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, { get: true, set: true }));
    expect(state()).toBe(RUNNING);
  });

  it('would be seen: the defect migration.keep-running-in-stop-copy', () => {
    start(COPY, ['migration.keep-running-in-stop-copy']);
    go(STOP_COPY);
    expect(vendor.story).toEqual(['STOP STOP_COPY']);
  });
});

describe('a log of what a device writes', () => {
  let world: VfioWorld, logging: DmaLogging, device: DeviceHandle;

  beforeEach(() => {
    world = new VfioWorld();
    const registered = world.registered('d');
    logging = new DmaLogging({ device: 'd', trace: world.trace });
    (registered.ops as TinyDevice).feature = function* (request: VfioFeatureRequest): Steps<number> {
      return (yield* logging.feature(request)) ?? 0;
    };
    const { group } = world.inUse(world.client(), registered.device);
    device = world.run(group.getDevice('d'));
  });

  const start = (...ranges: [number, number][]): number => world.run(device.migration.startLogging(ranges.map(([iova, sizeBytes]) => ({ iova, sizeBytes }))));
  const report = (iova: number, sizeBytes: number, page = 4096): number[] => {
    const bits = world.run(device.migration.report(iova, sizeBytes, page));
    return [...bits].flatMap((byte, i) => Array.from({ length: 8 }, (_, bit) => ((byte >> bit) & 1 ? i * 8 + bit : -1)).filter((page_) => page_ >= 0));
  };

  it('reports pages once, and forgets them', () => {
    expect(start([0x10_0000, 0x10_0000])).toBe(4096);
    logging.mark(0x10_0fff, 2);
    logging.mark(0x15_0000, 4096);
    logging.mark(0x30_0000, 4096);
    expect(report(0x10_0000, 0x10_0000)).toEqual([0, 1, 0x50]);
    expect(report(0x10_0000, 0x10_0000)).toEqual([]);
  });

  it('reports a part, in larger units, without forgetting the rest', () => {
    start([0, 0x10_0000]);
    for (const page of [3, 9, 200]) logging.mark(page * 4096, 1);
    expect(report(0, 0x8000, 0x2000)).toEqual([1]);
    expect(report(0x8000, 0x10_0000 - 0x8000)).toEqual([1, 192]);
  });

  it('logs several ranges and stops', () => {
    start([0, 0x1000], [0x8000, 0x2000]);
    logging.mark(0, 0x1_0000);
    expect(report(0, 0x1_0000)).toEqual([0, 8, 9]);
    world.run(device.migration.stopLogging());
    logging.mark(0, 1);
    expect([logging.active, world.refused(device.migration.report(0, 0x1000))]).toEqual([false, 'EINVAL']);
  });

  it('reports what a model says, for any writes and questions', () => {
    const write = fc.record({ at: fc.integer({ min: 0, max: 63 * 4096 }), size: fc.integer({ min: 1, max: 9000 }) });
    fc.assert(fc.property(fc.array(write, { maxLength: 6 }), fc.integer({ min: 0, max: 60 }), fc.integer({ min: 1, max: 64 }), (writes, first, pages) => {
      logging.stop();
      start([0, 64 * 4096]);
      const model = new Set<number>();
      for (const { at, size } of writes) {
        logging.mark(at, size);
        for (let page = at >> 12; page <= (at + size - 1) >> 12; page++) if (page < 64) model.add(page);
      }
      const end = Math.min(first + pages, 64);
      expect(report(first * 4096, (end - first) * 4096)).toEqual([...model].filter((page) => page >= first && page < end).map((page) => page - first).sort((a, b) => a - b));
      expect(report(0, 64 * 4096)).toEqual([...model].filter((page) => page < first || page >= end).sort((a, b) => a - b));
    }), { numRuns: 25 });
  });

  it('refuses no range, too many, overlaps, parts of pages, wrong page sizes, a second log, a report without one', () => {
    const refused = (ranges: [number, number][], page = 4096) => world.refused(device.migration.startLogging(ranges.map(([iova, sizeBytes]) => ({ iova, sizeBytes })), page));
    expect(refused([])).toBe('EINVAL');
    expect(refused(Array.from({ length: MAX_LOGGED_RANGES + 1 }, (_, i): [number, number] => [i * 0x1000, 0x1000]))).toBe('E2BIG');
    expect(refused([[0, 0x2000], [0x1000, 0x1000]])).toBe('EINVAL');
    expect(refused([[0x800, 0x1000]])).toBe('EINVAL');
    expect(refused([[0, 0x1000]], 0x2000)).toBe('EINVAL');
    expect(refused([[0, 0x1000]], 0x800)).toBe('EINVAL');
    expect(refused([[0, 0x3000]], 0x3000)).toBe('EINVAL');
    expect(refused([[2 ** 63, 2 ** 63]])).toBe('EOVERFLOW');
    expect(world.refused(device.migration.report(0, 0x1000))).toBe('EINVAL');
    expect(logging.active).toBe(false);
    start([0, 0x1000]);
    expect(refused([[0, 0x1000]])).toBe('EINVAL');
    expect(world.refused(device.migration.report(0, 0x1000, 0x800))).toBe('EINVAL');
    expect(world.refused(device.setFeature(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, new Uint8Array(32)))).toBe('EINVAL');
    expect(world.refused(device.getFeature(VFIO_DEVICE_FEATURE_DMA_LOGGING_START, new Uint8Array(24)))).toBe('EINVAL');
  });

  it('forgets nothing when the bitmap cannot be written', () => {
    start([0, 0x1000]);
    logging.mark(0, 1);
    const record = new DataView(new ArrayBuffer(32));
    for (const [at, value] of [[0, 0n], [8, 0x1000n], [16, 0x1000n], [24, 0x7000_0000_0000n]] as const) record.setBigUint64(at, value, true);
    expect(world.refused(device.getFeature(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, new Uint8Array(record.buffer)))).toBe('EFAULT');
    expect(report(0, 0x1000)).toEqual([0]);
  });
});
