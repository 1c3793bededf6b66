/** The life of guests on the whole machine: every call in every state, kills and pulls in the middle, memory, determinism. */
import { describe, expect, it } from 'vitest';
import type { Guest } from '../../harness/guests/guest.js';
import { isErrno } from '../../sim/errno.js';
import type { Steps, Task } from '../../sim/task.js';
import { guestsOf, mdevDsa, MIB, PassthroughWorld, slices, uuid, Worker } from './passthrough-world.js';
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
  running: (world, guest) => void world.run(guest.start()),
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
const MOMENTS = 4;

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
    for (let at = 0; at < MOMENTS; at++) {
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
