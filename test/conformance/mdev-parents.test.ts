/** Parents of mediated devices, and what happens at the same time: requirements C11, C14, C15, 7.5, R-RACE-12; mdev_core.c of v5.10. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { MdevParentOps } from '../../mdev/parent.js';
import { sleep, type Steps, type Task } from '../../sim/task.js';
import { MdevWorld, outcome, SampleParent, uuid, type User } from './mdev-world.js';

const A = '0000:6a:01.0';
const B = '0000:6a:02.0';

describe('registering a parent', () => {
  it('offers its types as <driver>-<name> (C11, C14)', () => {
    const world = new MdevWorld();
    const parent = world.parent(A, { driver: 'idxd' });
    expect(world.mdevs.parents.map(({ device, types }) => [device, types.map(({ id }) => id)])).toEqual([[parent.device, ['idxd-1', 'idxd-2']]]);
    world.create(parent, 1, 'idxd-2');
    expect(world.refusal(world.mdevs.create(parent.device, '2', uuid(2))).message).toContain('has no type 2; it has idxd-1, idxd-2');
  });

  it('is refused without operations, types or names (C11)', () => {
    const world = new MdevWorld();
    const good = new SampleParent(world, A);
    const ops = (change: Partial<Record<keyof MdevParentOps, unknown>>): MdevParentOps =>
      ({ driver: good.driver, types: good.types, create: (mdev) => good.create(mdev), remove: (mdev) => good.remove(mdev), hotUnplug: true, ...change } as MdevParentOps);
    const [type] = good.types;
    for (const change of [{ create: undefined }, { remove: undefined }, { types: [] }, { types: undefined }, { driver: '' }, { types: [{ ...type, name: '' }] }]) {
      expect(world.refused(() => world.mdevs.registerParent(good.device, ops(change)))).toBe('EINVAL');
    }
    expect(world.refused(() => world.mdevs.registerParent(good.device, ops({ types: [type, type] })))).toBe('EEXIST');
    expect([world.mdevs.parents, world.log.lines]).toEqual([[], []]);
    world.mdevs.registerParent(good.device, ops({}));
  });

  it('is refused for a device that is a parent already, or still (C11)', () => {
    const world = new MdevWorld();
    const parent = world.parent(A);
    const before = world.picture();
    expect(world.refusal(() => world.mdevs.registerParent(parent.device, parent)).errno).toBe(-17);
    expect(world.picture()).toEqual(before);
    world.create(parent, 1);
    parent.removeNs = 100;
    world.start(world.mdevs.unregisterParent(parent.device));
    expect(world.refusal(() => world.mdevs.registerParent(parent.device, parent)).message).toContain('that is being unregistered');
    world.settle();
    world.mdevs.registerParent(parent.device, parent);
  });
});

describe('unregistering a parent', () => {
  it('removes every child, one after the other, and no other parent\'s (C11)', () => {
    const world = new MdevWorld();
    const [a, b] = [world.parent(A), world.parent(B)];
    world.create(a, 1);
    world.create(b, 2);
    world.create(a, 3, 'sample-2');
    world.run(world.mdevs.unregisterParent(a.device));
    expect(a.calls).toEqual(['create 01', 'create 03', 'remove 01', 'remove 03']);
    expect([world.mdevs.parents.map(({ device }) => device.name), world.mdevs.devices.map(({ name }) => name), world.vfio.groupIds]).toEqual([[B], [uuid(2)], [1]]);
    expect(world.refused(world.mdevs.create(a.device, 'sample-1', uuid(1)))).toBe('ENODEV');
    expect(world.story('mdev:').at(-1)).toBe('mdev:unregister_parent');
  });

  it('asks users and waits for them, also where a remove would be refused (C17, 7.5)', () => {
    const world = new MdevWorld();
    const parent = world.parent(A, { hotUnplug: false });
    for (const n of [1, 2, 3]) world.create(parent, n);
    const user = world.run(world.use(uuid(2)));
    const { requests } = parent.instance(uuid(2));
    const unregistering = world.start(world.mdevs.unregisterParent(parent.device));
    expect([1, 2, 3].map((n) => world.mdevs.state(uuid(n)))).toEqual(['ABSENT', 'REMOVING', 'ACTIVE']);
    world.pass(15_000_000_000);
    expect([requests, outcome(unregistering), parent.calls.slice(3)]).toEqual([[0, 1], 'blocked', ['remove 01']]);
    world.run(user.close());
    world.settle();
    expect([outcome(unregistering), parent.calls.slice(3), world.mdevs.parents]).toEqual(['done', ['remove 01', 'remove 02', 'remove 03'], []]);
  });

  it('refuses creates and removes from its first moment on with ENODEV (C12, C13, R-RACE-12)', () => {
    const world = new MdevWorld();
    const parent = world.parent(A);
    for (const n of [1, 2]) world.create(parent, n);
    world.run(world.use(uuid(1)));
    world.start(world.mdevs.unregisterParent(parent.device));
    const before = world.picture();
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(1)))).toBe('EEXIST');
    expect(world.refusal(world.mdevs.create(parent.device, 'sample-1', uuid(3))).errno).toBe(-19);
    expect(world.refused(world.mdevs.create(parent.device, 'none', uuid(3)))).toBe('ENODEV');
    expect([1, 2].map((n) => world.refused(world.mdevs.remove(uuid(n))))).toEqual(['ENODEV', 'ENODEV']);
    expect(world.picture()).toEqual(before);
  });

  it('lets a create that is under way end, then removes what it made (R-RACE-12)', () => {
    const world = new MdevWorld();
    const parent = world.parent(A);
    parent.createNs = 100;
    const creating = world.start(world.mdevs.create(parent.device, 'sample-1', uuid(1)));
    world.pass(50);
    const unregistering = world.start(world.mdevs.unregisterParent(parent.device));
    // the semaphore has a writer that waits: try-locks of others fail already
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(2)))).toBe('ENODEV');
    expect(outcome(unregistering)).toBe('blocked');
    expect(world.scheduler.deadlockReport()).toContain(`test waits for creates and removes under ${A} to end`);
    world.settle();
    expect([outcome(creating), outcome(unregistering), parent.calls, world.mdevs.state(uuid(1))]).toEqual(['done', 'done', ['create 01', 'remove 01'], 'ABSENT']);
  });

  it('waits for a remove that waits for a user (R-RACE-12)', () => {
    const world = new MdevWorld();
    const parent = world.parent(A);
    world.create(parent, 1);
    world.create(parent, 2);
    const user = world.run(world.use(uuid(1)));
    const removing = world.start(world.mdevs.remove(uuid(1)));
    const unregistering = world.start(world.mdevs.unregisterParent(parent.device));
    expect([outcome(removing), outcome(unregistering), world.mdevs.state(uuid(2))]).toEqual(['blocked', 'blocked', 'ACTIVE']);
    expect(world.refused(world.mdevs.remove(uuid(1)))).toBe('EAGAIN');
    world.run(user.close());
    world.settle();
    expect([outcome(removing), outcome(unregistering), parent.calls.slice(2)]).toEqual(['done', 'done', ['remove 01', 'remove 02']]);
  });

  it('does nothing for a device that is no parent, or is being unregistered already', () => {
    const world = new MdevWorld();
    const parent = world.parent(A);
    world.run(world.mdevs.unregisterParent({ name: 'stranger' }));
    world.create(parent, 1);
    parent.removeNs = 100;
    const first = world.start(world.mdevs.unregisterParent(parent.device));
    expect([outcome(world.start(world.mdevs.unregisterParent(parent.device))), outcome(first)]).toEqual(['done', 'blocked']);
    world.settle();
    expect([outcome(first), parent.calls]).toEqual(['done', ['create 01', 'remove 01']]);
  });
});

/** 7.5 for the tests: nothing sleeps but who waits for a user. */
class Model {
  readonly devices = new Map<number, { parent: number; open: boolean; removing: boolean }>();
  readonly parents = new Map<number, { unregistering: boolean }>();
  private readonly instances: number;
  private readonly hotUnplug: (parent: number) => boolean;

  constructor(instances: number, hotUnplug: (parent: number) => boolean) {
    this.instances = instances;
    this.hotUnplug = hotUnplug;
  }

  register(p: number): string {
    if (this.parents.has(p)) return 'EEXIST';
    this.parents.set(p, { unregistering: false });
    return 'done';
  }

  create(p: number, n: number): string {
    const parent = this.parents.get(p);
    if (this.devices.has(n)) return 'EEXIST';
    if (parent === undefined || parent.unregistering) return 'ENODEV';
    if (this.children(p).length === this.instances) return 'EUSERS';
    this.devices.set(n, { parent: p, open: false, removing: false });
    return 'done';
  }

  open(n: number): string {
    const device = this.devices.get(n);
    if (device === undefined) return 'ENODEV';
    if (device.open) return 'EBUSY';
    device.open = true;
    return 'done';
  }

  close(n: number): string {
    this.devices.get(n)!.open = false;
    this.progress();
    return 'done';
  }

  remove(n: number): string {
    const device = this.devices.get(n);
    if (device === undefined) return 'ENODEV';
    if (device.removing) return 'EAGAIN';
    if (this.parents.get(device.parent)!.unregistering) return 'ENODEV';
    if (device.open && !this.hotUnplug(device.parent)) return 'EBUSY';
    device.removing = true;
    this.progress();
    return this.devices.get(n) === device ? 'blocked' : 'done';
  }

  unregister(p: number): string {
    const parent = this.parents.get(p);
    if (parent === undefined || parent.unregistering) return 'done';
    parent.unregistering = true;
    this.progress();
    return this.parents.get(p) === parent ? 'blocked' : 'done';
  }

  states(): string[] {
    return [...this.devices].map(([n, { open, parent, removing }]) => {
      const first = this.parents.get(parent)!.unregistering && !this.children(parent).some(([, other]) => other.removing) && this.children(parent)[0]![0] === n;
      return `${uuid(n)} ${removing || first ? 'REMOVING' : open ? 'OPEN' : 'ACTIVE'}`;
    }).sort();
  }

  /** Removes that nobody's use holds up end; then unregistrations go on, child after child. */
  private progress(): void {
    for (const [n, { open, removing }] of this.devices) if (removing && !open) this.devices.delete(n);
    for (const [p, { unregistering }] of this.parents) {
      if (!unregistering || this.children(p).some(([, { removing }]) => removing)) continue;
      for (const [n, { open }] of this.children(p)) {
        if (open) break;
        this.devices.delete(n);
      }
      if (this.children(p).length === 0) this.parents.delete(p);
    }
  }

  private children(p: number) {
    return [...this.devices].filter(([, { parent }]) => parent === p);
  }
}

describe('any sequence of operations', () => {
  it('goes as the state machine says (7.5)', () => {
    const device = fc.integer({ min: 1, max: 4 }), parent = fc.integer({ min: 0, max: 2 });
    const operation = fc.oneof(
      fc.record({ what: fc.constant('create' as const), p: parent, n: device }), fc.record({ what: fc.constant('create' as const), p: parent, n: device }),
      fc.record({ what: fc.constantFrom('open' as const, 'close' as const, 'remove' as const), p: fc.constant(0), n: device }),
      fc.record({ what: fc.constantFrom('unregister' as const, 'register' as const), p: parent, n: fc.constant(0) }),
    );
    fc.assert(fc.property(fc.array(operation, { maxLength: 40 }), (operations) => {
      const world = new MdevWorld();
      const parents = [0, 1, 2].map((p) => world.parent(`parent${p}`, { instances: 2, hotUnplug: p !== 1 }));
      const model = new Model(2, (p) => p !== 1);
      for (const p of [0, 1, 2]) model.register(p);
      const users = new Map<number, User>();
      // oxlint-disable-next-line require-yield -- runs as a task like the others
      const register = function* (p: SampleParent): Steps {
        world.mdevs.registerParent(p.device, p);
      };
      for (const { what, p, n } of operations) {
        if (what === 'close' && !users.has(n)) continue;
        const steps = (): Steps<unknown> => {
          switch (what) {
            case 'create': return world.mdevs.create(parents[p]!.device, 'sample-1', uuid(n));
            case 'remove': return world.mdevs.remove(uuid(n));
            case 'open': return world.use(uuid(n));
            case 'close': return users.get(n)!.close();
            case 'register': return register(parents[p]!);
            case 'unregister': return world.mdevs.unregisterParent(parents[p]!.device);
          }
        };
        const before = world.picture();
        const task = world.start(steps(), what);
        const expected = what === 'create' ? model.create(p, n) : what === 'register' || what === 'unregister' ? model[what](p) : model[what](n);
        expect(`${what} ${p} ${n}: ${outcome(task)}`).toBe(`${what} ${p} ${n}: ${expected}`);
        if (what === 'open' && task.state === 'done') users.set(n, task.result as User);
        if (what === 'close') users.delete(n);
        if (expected.startsWith('E')) expect(world.picture()).toEqual(before);
        expect(world.mdevs.parents.flatMap(({ children }) => [...children.values()].map(({ name, state }) => `${name} ${state}`)).sort()).toEqual(model.states());
      }
      for (const user of users.values()) world.run(user.close());
      world.pass(20_000_000_000);
      expect(world.scheduler.blocked()).toEqual([]);
      for (const one of parents) expect(one.available + one.live.size).toBe(2);
    }), { numRuns: 120 });
  });

  it('keeps its promises when everything sleeps and overlaps (C15, R-RACE-12)', () => {
    const ns = fc.integer({ min: 0, max: 300 });
    const actor = fc.record({ what: fc.constantFrom('create', 'create', 'remove', 'use', 'unregister'), at: fc.integer({ min: 0, max: 1500 }), n: fc.integer({ min: 1, max: 3 }), p: fc.nat(1), holdNs: ns });
    fc.assert(fc.property(fc.array(actor, { maxLength: 30 }), fc.record({ createNs: ns, removeNs: ns, openNs: ns }), (actors, delays) => {
      const world = new MdevWorld();
      const parents = [world.parent(A, { instances: 2 }), world.parent(B, { instances: 2, hotUnplug: false })];
      for (const parent of parents) Object.assign(parent, delays);
      const { clock, mdevs } = world;
      const act = function* ({ what, at, n, p, holdNs }: (typeof actors)[number]): Steps {
        yield* sleep(clock, at);
        const { device } = parents[p]!;
        if (what === 'create') yield* mdevs.create(device, 'sample-1', uuid(n));
        else if (what === 'remove') yield* mdevs.remove(uuid(n));
        else if (what === 'unregister') yield* mdevs.unregisterParent(device);
        else {
          const user = yield* world.use(uuid(n));
          yield* sleep(clock, holdNs);
          yield* user.close();
        }
      };
      const tasks: Task[] = actors.map((one) => world.scheduler.spawn(`${one.what} ${one.n}`, act(one), { joined: true }));
      world.settle();
      expect(world.scheduler.deadlockReport()).toEqual([]);
      const results = tasks.map((task, i) => `${actors[i]!.what} ${outcome(task)}`);
      for (const result of results) expect(result).toMatch(/^(create (done|EEXIST|ENODEV|EUSERS|ENOSPC)|remove (done|ENODEV|EAGAIN|EBUSY)|use (done|ENODEV|EBUSY)|unregister done)$/);
      // what was made and not removed is there, in a group of its own, once; nobody ended what was in use
      const live = parents.flatMap((parent) => [...parent.live.keys()].map(({ uuid: name }) => name)).sort();
      expect(mdevs.devices.map(({ name }) => name).sort()).toEqual(live);
      expect(new Set(live).size).toBe(live.length);
      expect(mdevs.devices.every(({ state }) => state === 'ACTIVE')).toBe(true);
      expect(world.vfio.groupIds).toEqual(mdevs.devices.map(({ group }) => group!).sort((x, y) => x - y));
      for (const parent of parents) {
        expect(parent.available + parent.live.size).toBe(2);
        expect(parent.calls.filter((call) => call.includes('in use'))).toEqual([]);
      }
      const count = (name: string): number => world.story('mdev:').filter((kind) => kind === name).length;
      expect(count('mdev:create') - count('mdev:remove')).toBe(live.length);
    }), { numRuns: 120 });
  });
});
