/** The life of guests on the whole machine: every call in every state, kills and pulls in the middle, memory, determinism. */
import { describe, expect, it } from 'vitest';
import type { Guest } from '../../harness/guests/guest.js';
import { isErrno } from '../../sim/errno.js';
import type { Steps, Task } from '../../sim/task.js';
import { guestsOf, mdevDsa, MIB, PassthroughWorld, pattern, same, slices, uuid, Worker } from './passthrough-world.js';
import { DSA0, type WorldOptions } from './world.js';

const SMALL = { memory: '8MiB' } as const;

function oneGuest(options: WorldOptions = {}): PassthroughWorld {
  return new PassthroughWorld({
    devices: [mdevDsa(2), { ...DSA0, name: 'dsa1', bdf: '0000:6f:01.0' }], mdevs: slices(2), guests: guestsOf(1, { ...SMALL, devices: [{ mdev: 'm0', name: 'wq' }, { host: 'dsa1', name: 'whole' }] }), ...options,
  });
}

/** Everything that can be asked of a guest. */
const CALLS: Readonly<Record<string, (guest: Guest) => Steps<unknown> | (() => unknown)>> = {
  start: (guest) => guest.start(),
  pause: (guest) => () => guest.pause(),
  resume: (guest) => () => guest.resume(),
  reboot: (guest) => guest.reboot(),
  shutdown: (guest) => guest.shutdown(),
  kill: (guest) => guest.kill(),
  balloon: (guest) => guest.balloon(4 * MIB),
  'add-memory': (guest) => guest.addMemory(8 * MIB),
};

/** Brings vm0 into a state; what is under way then goes on afterwards. */
const STATES: Readonly<Record<string, (world: PassthroughWorld, guest: Guest) => Task | undefined>> = {
  off: () => undefined,
  'being made': (world, guest) => stoppedAt(world, guest.start(), () => guest.state === 'starting' && guest.vmm !== undefined),
  booting: (world, guest) => stoppedAt(world, guest.start(), () => guest.kernel !== undefined && guest.kernel.pci.devices.length > 0),
  running: (world, guest) => {
    world.run(guest.start());
    return undefined;
  },
  paused: (world, guest) => {
    world.run(guest.start());
    guest.pause();
    return undefined;
  },
  'being reset': (world, guest) => {
    world.run(guest.start());
    return stoppedAt(world, guest.reboot(), () => guest.state === 'starting');
  },
  'booting again': (world, guest) => {
    world.run(guest.start());
    return stoppedAt(world, guest.reboot(), () => guest.boots === 2 && guest.kernel!.pci.devices.length > 0);
  },
  'shutting down': (world, guest) => {
    world.run(guest.start());
    return stoppedAt(world, guest.shutdown(), () => world.records('vdsa:command').length > 0 && guest.kernel!.drivers.driverOf(guest.kernel!.pci.devices[0]!) !== undefined);
  },
  'shut down': (world, guest) => {
    world.run(guest.start());
    world.run(guest.shutdown());
    return undefined;
  },
  killed: (world, guest) => {
    world.run(guest.start());
    world.run(guest.kill());
    return undefined;
  },
  refused: (world, guest) => {
    // somebody else has its device
    const user = world.user('other');
    user.assemble(['m0']);
    world.run(guest.start());
    user.exit();
    return undefined;
  },
};

function stoppedAt(world: PassthroughWorld, steps: Steps, there: () => boolean): Task {
  const task = world.start('under way', steps);
  world.until(there);
  expect(task.ended).toBe(false);
  return task;
}

/** What is refused in which state; everything else is done. */
const REFUSED: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  off: { pause: 'EINVAL', resume: 'EINVAL', reboot: 'EINVAL', shutdown: 'EINVAL', kill: 'ESRCH', balloon: 'EINVAL', 'add-memory': 'EINVAL' },
  'being made': { start: 'EBUSY', pause: 'EINVAL', resume: 'EINVAL', reboot: 'EINVAL', shutdown: 'EINVAL', balloon: 'EINVAL', 'add-memory': 'EINVAL' },
  running: { start: 'EBUSY', resume: 'EINVAL', balloon: 'EBUSY' },
  paused: { start: 'EBUSY', pause: 'EINVAL', reboot: 'EINVAL', shutdown: 'EINVAL', balloon: 'EINVAL', 'add-memory': 'EINVAL' },
  'shutting down': { start: 'EBUSY', resume: 'EINVAL', reboot: 'EBUSY', shutdown: 'EBUSY', balloon: 'EBUSY', 'add-memory': 'EBUSY' },
};
const LIKE: Readonly<Record<string, string>> = { booting: 'being made', 'being reset': 'being made', 'booting again': 'being made', 'shut down': 'off', killed: 'off', refused: 'off' };
/** Where a guest stands when everything that was under way has ended. */
const AFTER: Readonly<Record<string, string>> = {
  start: 'running', pause: 'paused', resume: 'running', reboot: 'running', shutdown: 'off', kill: 'killed', 'add-memory': 'running',
};

describe.each(Object.keys(STATES))('a guest that is %s', (state) => {
  it('takes what is possible and refuses the rest by name, unchanged', () => {
    const refusals = REFUSED[LIKE[state] ?? state]!;
    // one world for all refusals, a world of its own for each call that is carried out
    const world = oneGuest(), guest = world.guest();
    STATES[state]!(world, guest);
    const unchanged = (): unknown => [guest.state, guest.boots];
    for (const [call, code] of Object.entries(refusals)) expect([call, world.refused(CALLS[call]!(guest), unchanged)]).toEqual([call, code]);
    world.settle();
    world.finish();

    for (const call of Object.keys(CALLS).filter((name) => refusals[name] === undefined)) {
      const another = oneGuest(), subject = another.guest();
      const underWay = STATES[state]!(another, subject);
      const steps = CALLS[call]!(subject);
      if (typeof steps === 'function') steps();
      else another.run(steps);
      expect([call, subject.state]).toEqual([call, AFTER[call]]);
      if (subject.state === 'paused') subject.resume();
      another.settle();
      expect([call, underWay?.state ?? 'done', another.host.scheduler.deadlockReport()]).toEqual([call, 'done', []]);
      expect([call, subject.state]).toEqual([call, call === 'pause' ? (state === 'shutting down' ? 'off' : 'running') : AFTER[call]]);
      another.finish();
    }
  });
});

/** What takes a guest some time. Each begins with a guest that works, or is off. */
const PHASES: Readonly<Record<string, (world: PassthroughWorld, guest: Guest) => Steps>> = {
  start: (_world, guest) => guest.start(),
  reboot: (_world, guest) => guest.reboot(),
  shutdown: (_world, guest) => guest.shutdown(),
  'eject of a mediated device': (world) => world.host.passthrough.stopMdev('m0'),
  'eject of a whole device': (world) => world.machine.scenario.disturb('remove', 'dsa1'),
};
/** What comes in between. */
const DISTURBANCES: Readonly<Record<string, (world: PassthroughWorld, guest: Guest) => Steps>> = {
  kill: (_world, guest) => guest.kill(),
  reboot: (_world, guest) => guest.reboot(),
  shutdown: (_world, guest) => guest.shutdown(),
  'removal of the mediated device': (world) => world.host.passthrough.stopMdev('m0'),
  'removal of the whole device': (world) => world.machine.scenario.disturb('remove', 'dsa1'),
  'loss of the whole device': (world) => world.machine.scenario.disturb('unplug', 'dsa1'),
  'loss of the parent': (world) => world.machine.scenario.disturb('unplug', 'dsa0'),
};
const MOMENTS = 8;
const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';

/** A world in the middle of a phase: `at` of `MOMENTS`, counted in events. */
function during(phase: string, at: number): { world: PassthroughWorld; guest: Guest; underWay: Task } {
  const begin = (): { world: PassthroughWorld; guest: Guest; underWay: Task } => {
    const world = oneGuest(), guest = world.guest();
    if (phase !== 'start') {
      world.run(guest.start());
      new Worker(world, guest).open('wq').open('whole').copies('wq', 4096);
    }
    return { world, guest, underWay: world.start(phase, PHASES[phase]!(world, guest)) };
  };
  const begun = begin(), { clock } = begun.world.host;
  const total = (lengths[phase] ??= ((): number => {
    const { world, underWay } = begin();
    const before = world.host.clock.events;
    world.until(() => underWay.ended);
    return world.host.clock.events - before;
  })());
  const end = clock.events + Math.max(1, Math.floor((total * at) / MOMENTS));
  clock.run({ stop: () => clock.events >= end });
  return begun;
}
/** Events of each phase when nothing comes in between. */
const lengths: Record<string, number> = {};

describe.each(Object.keys(PHASES))('in the middle of a %s', (phase) => {
  it.each(Object.keys(DISTURBANCES))('a %s is refused or done, ends what it must, and nothing is left', (disturbance) => {
    // every night all moments, otherwise another one for each pair
    const one = (Object.keys(PHASES).indexOf(phase) * 3 + Object.keys(DISTURBANCES).indexOf(disturbance)) % MOMENTS;
    for (const at of NIGHTLY ? Array.from({ length: MOMENTS }, (_, i) => i) : [one]) {
      const { world, guest, underWay } = during(phase, at);
      const other = world.start(disturbance, DISTURBANCES[disturbance]!(world, guest));
      // who is asked for a device gets half a minute
      world.wait(30e9);
      world.settle();
      const where = `${phase}, ${at}: ${disturbance}`;
      for (const task of [underWay, other]) {
        expect([where, task.name, task.ended, task.state === 'failed' && !isErrno(task.error) ? task.error : undefined]).toEqual([where, task.name, true, undefined]);
      }
      expect([where, world.host.scheduler.deadlockReport(), guest.state]).toEqual([where, [], expect.stringMatching(/^(running|paused|off|killed|refused)$/)]);
      world.finish();
    }
  });
});

describe('a guest at work', () => {
  it('is paused during DMA: the device goes on, the guest notices when it runs again', () => {
    const world = oneGuest(), guest = world.started();
    const worker = new Worker(world, guest).open('wq');
    const size = 256 * 1024, from = worker.malloc(size), to = worker.malloc(size);
    worker.write(from, pattern(size, 1));
    const copying = guest.kernel!.scheduler.spawn('copy', worker.copying('wq', from, to, size), { joined: true });
    world.until(() => world.records('dsa:start').length > 0);
    guest.pause();
    const completed = world.records('dsa:complete').length, injected = guest.vmm!.injections;
    world.wait(10_000_000);
    // everything the device had to do is done, and its interrupts wait with the virtual CPUs
    expect([world.records('dsa:complete').length > completed, guest.vmm!.injections > injected, copying.ended]).toEqual([true, true, false]);
    guest.resume();
    world.until(() => copying.ended);
    expect([copying.result!.status, same(worker.read(to, size), pattern(size, 1))]).toEqual(['success', true]);
    world.finish();
  });

  it('is reset during DMA: not a byte is written any more, and the next boot has its devices', () => {
    const world = oneGuest(), guest = world.started();
    const worker = new Worker(world, guest).open('wq').open('whole');
    for (const device of ['wq', 'whole']) {
      const from = worker.malloc(1 << 20), to = worker.malloc(1 << 20);
      guest.kernel!.scheduler.spawn('copy', worker.copying(device, from, to, 1 << 20), { joined: true });
    }
    world.until(() => world.records('dsa:start').length > 1);
    world.run(guest.reboot());
    const accesses = world.records('pci:dma').length;
    world.wait(10_000_000);
    expect([guest.state, guest.boots, world.records('pci:dma').length]).toEqual(['running', 2, accesses]);
    const next = new Worker(world, guest).open('wq').open('whole');
    expect([next.copies('wq'), next.copies('whole')]).toEqual([true, true]);
    world.finish();
  });

  it('gets memory, which a later process uses for DMA; more than the host has is ENOMEM and changes nothing', () => {
    const world = oneGuest({ memory: '64MiB' }), guest = world.started();
    const pinned = world.host.frames.pinnedPages;
    expect(world.refused(guest.addMemory(128 * MIB), () => [world.books(), guest.kernel!.frames.inUse])).toBe('ENOMEM');
    expect(world.refused(guest.addMemory(1000), () => world.books())).toBe('EINVAL');
    world.run(guest.addMemory(16 * MIB));
    expect(world.host.frames.pinnedPages).toBe(pinned + 16 * MIB / 4096);
    // more than the guest was born with
    const worker = new Worker(world, guest).open('wq'), size = 10 * MIB;
    const buffer = worker.malloc(size);
    worker.run(worker.program.process.mm.fill(buffer, 0x5a, size));
    const high = buffer + size - 8192;
    expect(worker.copy('wq', buffer, high, 8192).status).toBe('success');
    expect(worker.program.process.mm.physicalOf(high)).toBeGreaterThanOrEqual(2 ** 32);
    world.finish();
  });

  it('without devices has no container and nothing pinned: its memory comes as it is touched, and goes with the balloon', () => {
    const world = oneGuest({ guests: [{ name: 'vm0', memory: '64MiB', devices: [] }] }), guest = world.started();
    const { frames, passthrough: { type1 } } = world.host;
    expect([frames.pinnedPages, type1.usage.containers]).toEqual([0, 0]);
    const worker = new Worker(world, guest), buffer = worker.malloc(8 * MIB);
    const before = frames.inUse;
    worker.run(worker.program.process.mm.fill(buffer, 1, 8 * MIB));
    expect(frames.inUse - before).toBeGreaterThanOrEqual(8 * MIB / 4096);
    worker.run(worker.program.exit());
    const touched = frames.inUse;
    world.run(guest.balloon(32 * MIB));
    expect(touched - frames.inUse).toBeGreaterThan(7 * MIB / 4096);
    world.run(guest.reboot());
    expect(guest.boots).toBe(2);
    world.finish();
  });

  it('shares a host that has less than all guests were promised: what is pinned is refused in time, what is not goes on', () => {
    const world = new PassthroughWorld({
      memory: '64MiB', mdevs: slices(2), guests: [...guestsOf(2, { memory: '32MiB' }), { name: 'light', memory: '64MiB', devices: [] }],
    });
    const light = world.started('light');
    world.started('vm0');
    const refused = world.guest('vm1');
    const before = world.books();
    world.run(refused.start());
    expect([refused.state, refused.reason, world.books()]).toEqual(['refused', expect.stringContaining('-ENOMEM'), before]);
    expect(new Worker(world, world.guest('vm0')).open('wq').copies('wq')).toBe(true);
    world.run(world.guest('vm0').shutdown());
    world.run(refused.start());
    expect([refused.state, light.state]).toEqual(['running', 'running']);
    world.finish();
  });
});

describe('guests side by side', () => {
  it('start in the same instant, each with its own; of two that want the same device one has it', () => {
    const world = new PassthroughWorld({ mdevs: slices(2), guests: [...guestsOf(2, SMALL), { name: 'vm2', ...SMALL, devices: [{ mdev: 'm1', name: 'wq' }] }] });
    const guests = ['vm0', 'vm1', 'vm2'].map((name) => world.guest(name));
    const starts = guests.map((guest) => world.start(`start of ${guest.name}`, guest.start()));
    world.until(() => starts.every(({ ended }) => ended));
    expect(guests.map(({ state }) => state)).toEqual(['running', 'running', 'refused']);
    expect(guests[2]!.reason).toContain('-EBUSY');
    expect(guests.slice(0, 2).map((guest) => new Worker(world, guest).open('wq').copies('wq'))).toEqual([true, true]);
    // what one has given back the other gets
    world.run(guests[1]!.shutdown());
    world.run(guests[2]!.start());
    expect(new Worker(world, guests[2]).open('wq').copies('wq')).toBe(true);
    world.finish();
  });

  it('work on while mediated devices come and go beside them', () => {
    const world = new PassthroughWorld({ devices: [mdevDsa(3, 1)], mdevs: [...slices(1), ...slices(3, 1, { start: 'manual' }).slice(1)], guests: guestsOf(1, SMALL) });
    const guest = world.started(), worker = new Worker(world, guest).open('wq');
    const { passthrough } = world.host;
    const copying = guest.kernel!.scheduler.spawn('copies', (function* (): Steps {
      const from = yield* worker.program.malloc.malloc(1 << 20), to = yield* worker.program.malloc.malloc(1 << 20);
      for (let i = 0; i < 10; i++) expect((yield* worker.copying('wq', from, to, 1 << 20)).status).toBe('success');
    })(), { joined: true });
    for (const round of [1, 2]) {
      for (const name of ['m1', 'm2', 'm3']) world.run(passthrough.startMdev(name));
      expect([round, world.refused(passthrough.startMdev('m1'), () => world.books())]).toEqual([round, 'EEXIST']);
      for (const name of ['m3', 'm1', 'm2']) world.run(passthrough.stopMdev(name));
    }
    expect(copying.ended).toBe(false);
    world.until(() => copying.ended);
    expect(copying.state).toBe('done');
    expect(passthrough.mdevs.devices.map(({ uuid: name }) => name)).toEqual([uuid(1)]);
    world.finish();
  });

  it('live the same lives with the same seed, and others with another (scenario 35)', () => {
    const lives = (seed: number): string => {
      const world = new PassthroughWorld({
        seed, devices: [mdevDsa(2, 1), { ...DSA0, name: 'dsa1', bdf: '0000:6f:01.0' }], mdevs: slices(2, 1),
        guests: [...guestsOf(2, SMALL), { name: 'vm2', ...SMALL, devices: [{ mdev: 'm2', name: 'wq' }, { host: 'dsa1', name: 'whole' }] }],
      });
      const guests = ['vm0', 'vm1', 'vm2'].map((name) => world.guest(name));
      for (const guest of guests) world.start(`start of ${guest.name}`, guest.start());
      world.settle();
      const workers = guests.map((guest) => new Worker(world, guest).open('wq'));
      const copies = workers.map((worker, i) => {
        const from = worker.malloc(1 << 20), to = worker.malloc(1 << 20);
        return guests[i]!.kernel!.scheduler.spawn('copy', worker.copying('wq', from, to, 1 << 20), { joined: true });
      });
      world.until(() => world.records('dsa:start').length > 2);
      guests[0]!.pause();
      world.start('reboot', guests[1]!.reboot());
      world.start('remove', world.host.passthrough.stopMdev('m2'));
      world.wait(1_000_000);
      guests[0]!.resume();
      world.until(() => copies[0]!.ended);
      world.settle();
      world.run(guests[1]!.kill());
      expect(guests.map(({ state }) => state)).toEqual(['running', 'killed', 'running']);
      return world.finish().traceHash;
    };
    const first = lives(1);
    expect(lives(1)).toBe(first);
    expect(lives(2)).not.toBe(first);
  });
});
