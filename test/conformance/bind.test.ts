/** Bind and unbind: requirements B1–B13, U6, E1–E8, M7; sections 7.3 and 7.4. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Device } from '../../host/device.js';
import type { Mm } from '../../host/mm/mm.js';
import { IOMMU_PASID_INVALID } from '../../iommu/core/sva.js';
import { CoreWorld } from '../fixtures/core-world.js';
import { SoftwareDevice } from '../fixtures/software-iommu.js';

function exit(world: CoreWorld, mm: Mm): void {
  world.run(mm.put());
}

/* oxlint-disable-next-line require-yield -- a callback that has nothing to wait for */
function* silent() {
  return 0;
}

describe('iommu_sva_bind', () => {
  it('gives the mm a PASID and installs it for the device (B1)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    expect(pasid).toBe(1);
    expect(world.iommu.tables.get(device)!.pasids.get(pasid)!.mm).toBe(mm);
    expect(world.core.svaGetPasid(device, mm)).toBe(1);
    expect(world.core.findMm(1)).toBe(mm);
    expect(world.core.bondState(device, 1)).toBe('BOUND');
  });

  it('takes the entry out at the last unbind and drains (B2)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.iommu.tables.get(device)!.pasids.size).toBe(0);
    expect(world.iommu.log.at(-1)).toBe('drained dev0 1');
    expect(world.core.bondState(device, pasid)).toBe('NONE');
    expect(mm.hasNotifiers).toBe(false);
  });

  it('counts a second bind of the same device and mm; each needs its unbind (B3, E4)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const first = world.run(world.core.svaBind(device, mm));
    expect(world.run(world.core.svaBind(device, mm))).toBe(first);
    expect(world.iommu.calls('svaAttach')).toHaveLength(1);
    world.run(world.core.svaUnbind(device, first));
    expect(world.core.bondState(device, first)).toBe('BOUND');
    world.run(world.core.svaUnbind(device, first));
    expect(world.iommu.calls('svaDetach')).toHaveLength(1);
    expect(world.refused(world.core.svaUnbind(device, first))).toBe('ESRCH');
  });

  it('refuses a second bind with another mm_exit or drvdata (section 0, B12)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm, silent, 'a'));
    expect(world.refused(world.core.svaBind(device, mm, silent, 'b'))).toBe('EBUSY');
    expect(world.refused(world.core.svaBind(device, mm))).toBe('EBUSY');
    expect(world.run(world.core.svaBind(device, mm, silent, 'a'))).toBe(pasid);
    world.run(world.core.svaUnbind(device, pasid));
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.usage.bonds).toBe(0);
  });

  it('refuses a device without an IOMMU (E1)', () => {
    const world = new CoreWorld();
    expect(world.refused(world.core.svaBind(new SoftwareDevice('stranger'), world.process('app')))).toBe('ENODEV');
  });

  it('refuses without SVA enabled and names the missing link (E2)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    const mm = world.process('app');
    const off = world.refusal(world.core.svaBind(device, mm));
    expect([off.code, off.message]).toEqual(['ENODEV', '-ENODEV: SVA: device dev0 can fault through the IOMMU but IOPF is not enabled']);
    world.run(world.core.devEnableFeature(device, 'IOPF'));
    expect(world.refusal(world.core.svaBind(device, mm)).message).toBe('-ENODEV: SVA: SVA is not enabled on device dev0');
    const poor = world.device('dev1', { maxPasids: 0 });
    expect(world.refusal(world.core.svaBind(poor, mm)).message).toContain('device dev1 and software-iommu have no PASID in common');
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
  });

  it('names what a PCI function has and what is off (E2)', () => {
    const world = new CoreWorld();
    const chain = { pasidSupported: true, pasidEnabled: true, atsSupported: true, atsEnabled: true, priSupported: true, priEnabled: false };
    const device = Object.assign(new SoftwareDevice('0000:6a:01.0'), chain);
    world.run(world.core.addDevice(device, 99));
    expect(world.refusal(world.core.svaBind(device, world.process('app'))).message)
      .toBe('-ENODEV: SVA: device 0000:6a:01.0 has PASID and ATS but PRI is not enabled');
  });

  it('refuses a group of two devices (B3, E3, scenario 30)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    world.device('dev1', {}, world.core.groupOf(device).id);
    expect(world.refused(world.core.svaBind(device, mm))).toBe('EINVAL');
    expect(world.core.usage.pasids).toBe(0);
  });

  it('answers ENOSPC when no PASID is free (E5)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0', { maxPasids: 3 });
    const mms = [1, 2, 3].map((n) => world.process(`app${n}`));
    expect(world.run(world.core.svaBind(device, mms[0]!))).toBe(1);
    expect(world.run(world.core.svaBind(device, mms[1]!))).toBe(2);
    expect(world.refused(world.core.svaBind(device, mms[2]!))).toBe('ENOSPC');
    expect(world.core.usage).toMatchObject({ pasids: 2, bonds: 2 });
    expect(mms[2]!.hasNotifiers).toBe(false);
  });

  it('answers ENOSPC when the PASID of the mm is beyond the device (E6)', () => {
    const world = new CoreWorld();
    const wide = world.svaDevice('wide');
    const narrow = world.svaDevice('narrow', { maxPasids: 4 });
    world.core.setSvaParam(wide, { minPasid: 4, maxPasid: 0 });
    const mm = world.process('app');
    expect(world.run(world.core.svaBind(wide, mm))).toBe(4);
    expect(world.refused(world.core.svaBind(narrow, mm))).toBe('ENOSPC');
    expect(world.core.svaGetPasid(narrow, mm)).toBe(IOMMU_PASID_INVALID);
  });

  it('refuses a dead mm (E7)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    mm.grab();
    exit(world, mm);
    expect(world.refused(world.core.svaBind(device, mm))).toBe('ESRCH');
    mm.drop();
  });

  it('refuses to unbind what is not bound (E8)', () => {
    const world = new CoreWorld();
    const [one, two] = [world.svaDevice('dev0'), world.svaDevice('dev1')];
    const pasid = world.run(world.core.svaBind(one, world.process('app')));
    expect(world.refused(world.core.svaUnbind(one, 77))).toBe('ESRCH');
    expect(world.refused(world.core.svaUnbind(two, pasid))).toBe('ESRCH');
    expect(world.core.bondState(one, pasid)).toBe('BOUND');
  });

  it('undoes everything when the driver refuses the entry (B3)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    world.iommu.failNext = { call: 'svaAttach', code: 'EBUSY' };
    expect(world.refused(world.core.svaBind(device, mm))).toBe('EBUSY');
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
    expect(mm.hasNotifiers).toBe(false);
    expect(world.core.findMm(1)).toBeUndefined();
    expect(world.run(world.core.svaBind(device, mm))).toBe(1);
  });

  it('asks the driver whether it can walk the tables (U7)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = Object.assign(world.process('app'), { levels: 5 });
    expect(world.refused(world.core.svaBind(device, mm))).toBe('EINVAL');
    expect(world.core.usage.pasids).toBe(0);
  });
});

describe('the PASID of an mm', () => {
  it('is one for all devices; each device has its own bond (B11, R-RACE-8)', () => {
    const world = new CoreWorld();
    const [one, two] = [world.svaDevice('dev0'), world.svaDevice('dev1')];
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(one, mm));
    expect(world.core.svaGetPasid(two, mm)).toBe(IOMMU_PASID_INVALID);
    expect(world.run(world.core.svaBind(two, mm))).toBe(pasid);
    world.run(world.core.svaUnbind(one, pasid));
    expect(world.core.bondState(two, pasid)).toBe('BOUND');
    expect(world.core.usage).toMatchObject({ pasids: 1, bonds: 1 });
  });

  it('stays with the mm after the last unbind and returns when the mm is freed (M7)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.usage.pasids).toBe(1);
    expect(world.run(world.core.svaBind(device, mm))).toBe(pasid);
    exit(world, mm);
    expect(world.core.usage.pasids).toBe(1);
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.usage.pasids).toBe(0);
    expect(world.story().filter((name) => name.startsWith('iommu:pasid'))).toEqual(['iommu:pasid_alloc', 'iommu:pasid_free']);
    expect(world.run(world.core.svaBind(device, world.process('next')))).toBe(pasid);
  });

  it('is not another mm\'s while a device may still carry it; a PASID freed early is seen (M7, scenario 13)', () => {
    const reused = (defects: string[]): boolean => {
      const world = new CoreWorld({ defects });
      const device = world.svaDevice('dev0');
      const [one, two] = [world.process('one'), world.process('two')];
      const pasid = world.run(world.core.svaBind(device, one));
      world.run(world.core.svaUnbind(device, pasid));
      return world.run(world.core.svaBind(device, two)) === pasid;
    };
    expect(reused([])).toBe(false);
    expect(reused(['core.pasid-freed-early'])).toBe(true);
  });

  it('is not inherited by fork (B13)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    world.run(world.core.svaBind(device, mm));
    const child = world.run(mm.fork(50, 'child'));
    expect(world.core.svaGetPasid(device, child)).toBe(IOMMU_PASID_INVALID);
    expect(world.run(world.core.svaBind(device, child))).toBe(2);
  });

  it('tells exactly the bound devices of a changed range before munmap returns (B1, R-RACE-7)', () => {
    const world = new CoreWorld();
    const [one, two] = [world.svaDevice('dev0'), world.svaDevice('dev1')];
    const mm = world.process('app');
    const page = world.malloc(mm, 4);
    const pasid = world.run(world.core.svaBind(one, mm));
    world.run(world.core.svaBind(two, mm));
    world.run(mm.handleFault(page * 4096, 2));
    world.run(mm.munmap(page * 4096, 4096));
    const range = `${(page * 4096).toString(16)} ${((page + 1) * 4096).toString(16)}`;
    expect(world.iommu.calls('svaInvalidate')).toEqual([`svaInvalidate dev1,dev0 ${pasid} ${range}`]);
    world.run(world.core.svaUnbind(one, pasid));
    world.run(mm.handleFault((page + 1) * 4096, 2));
    world.run(mm.munmap((page + 1) * 4096, 4096));
    expect(world.iommu.calls('svaInvalidate').at(-1)).toContain(`svaInvalidate dev1 ${pasid}`);
  });
});

describe('the group of a device', () => {
  it('is held by unbind: a bind of the same mm waits for the drain and makes a new bond (B3, B4)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm));
    world.iommu.request(device, pasid, 1, page);
    const unbind = world.scheduler.spawn('unbind', world.core.svaUnbind(device, pasid), { joined: true });
    const bind = world.scheduler.spawn('bind', world.core.svaBind(device, mm), { joined: true });
    world.clock.run({ stop: () => unbind.ended });
    expect([bind.ended, world.iommu.codes()]).toEqual([false, ['SUCCESS']]);
    world.settle();
    expect([unbind.state, bind.result]).toEqual(['done', pasid]);
    expect(world.iommu.log.filter((line) => /^(svaAttach|svaDetach|drained)/.test(line))).toEqual([
      `svaAttach dev0 ${pasid}`, `svaDetach dev0 ${pasid}`, `drained dev0 ${pasid}`, `svaAttach dev0 ${pasid}`,
    ]);
    expect(world.core.usage).toMatchObject({ bonds: 1, pasids: 1 });
  });

  it('does not grow while a bind is under way: the second device waits (B3)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const group = world.core.groupOf(device);
    const bind = world.scheduler.spawn('bind', world.core.svaBind(device, world.process('app')), { joined: true });
    const add = world.scheduler.spawn('add', world.core.addDevice(new SoftwareDevice('dev1'), group.id), { joined: true });
    world.clock.run({ stop: () => bind.ended });
    expect([bind.state, add.ended, group.devices.length]).toEqual(['done', false, 1]);
    world.settle();
    expect(group.devices.length).toBe(2);
    expect(world.refused(world.core.svaBind(device, world.process('late')))).toBe('EINVAL');
  });

  it('is gone with its device: unbind says so, and nothing is left (B4)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    world.run(world.core.deviceRemove(device));
    expect(world.refused(world.core.svaUnbind(device, pasid))).toBe('ENODEV');
    exit(world, mm);
    expect(world.core.usage).toMatchObject({ bonds: 0, pasids: 0 });
  });
});

describe('the PASID of a bond', () => {
  it('is -1U for whoever is not bound, before and after (B5)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0'), other = world.svaDevice('dev1');
    const mm = world.process('app');
    expect(IOMMU_PASID_INVALID).toBe(0xffff_ffff);
    expect(world.core.svaGetPasid(device, mm)).toBe(IOMMU_PASID_INVALID);
    const pasid = world.run(world.core.svaBind(device, mm));
    expect([device, other].map((one) => world.core.svaGetPasid(one, mm))).toEqual([pasid, IOMMU_PASID_INVALID]);
    expect(world.core.svaGetPasid(device, world.process('stranger'))).toBe(IOMMU_PASID_INVALID);
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.svaGetPasid(device, mm)).toBe(IOMMU_PASID_INVALID);
    expect(world.core.svaGetPasid(new SoftwareDevice('none'), mm)).toBe(IOMMU_PASID_INVALID);
  });

  it("must lie between the limits of every device it is bound to, else ENOSPC (B6, B10, section 0)", () => {
    const world = new CoreWorld();
    const first = world.svaDevice('dev0'), above = world.svaDevice('dev1'), below = world.svaDevice('dev2');
    world.core.setSvaParam(first, { minPasid: 10, maxPasid: 20 });
    world.core.setSvaParam(above, { minPasid: 11, maxPasid: 20 });
    world.core.setSvaParam(below, { minPasid: 1, maxPasid: 9 });
    const mm = world.process('app');
    expect(world.run(world.core.svaBind(first, mm))).toBe(10);
    for (const device of [above, below]) {
      expect(world.refused(world.core.svaBind(device, mm))).toBe('ENOSPC');
      expect(world.core.bondState(device, 10)).toBe('NONE');
    }
    const exact = world.svaDevice('dev3');
    world.core.setSvaParam(exact, { minPasid: 10, maxPasid: 10 });
    expect(world.run(world.core.svaBind(exact, mm))).toBe(10);
    expect(world.core.usage).toMatchObject({ bonds: 2, pasids: 1 });
  });
});

describe('a notifier that forgets the devices', () => {
  it('is seen: munmap returns without an invalidation (defect)', () => {
    const world = new CoreWorld({ defects: ['core.skip-sva-invalidate'] });
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    world.run(world.core.svaBind(device, mm));
    world.run(mm.handleFault(page * 4096, 2));
    world.run(mm.munmap(page * 4096, 4096));
    expect(world.iommu.calls('svaInvalidate')).toEqual([]);
  });
});

describe('iommu_dev_set_sva_param', () => {
  it('limits PASIDs before the first bind (U6)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0', { maxPasids: 16 });
    world.core.setSvaParam(device, { minPasid: 8, maxPasid: 9 });
    const [one, two, three] = ['one', 'two', 'three'].map((name) => world.process(name));
    expect(world.run(world.core.svaBind(device, one!))).toBe(8);
    expect(world.run(world.core.svaBind(device, two!))).toBe(9);
    expect(world.refused(world.core.svaBind(device, three!))).toBe('ENOSPC');
    expect(world.refused(() => world.core.setSvaParam(device, { minPasid: 1, maxPasid: 0 }))).toBe('EBUSY');
  });

  it('refuses ranges that are empty, start at 0 or exceed the hardware (U6)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0', { maxPasids: 16 });
    for (const param of [{ minPasid: 0, maxPasid: 4 }, { minPasid: 5, maxPasid: 4 }, { minPasid: 1, maxPasid: 16 }]) {
      expect(world.refused(() => world.core.setSvaParam(device, param))).toBe('EINVAL');
    }
    expect(world.refused(() => world.core.setSvaParam(new SoftwareDevice('x'), { minPasid: 1, maxPasid: 2 }))).toBe('ENODEV');
    expect(world.run(world.core.svaBind(device, world.process('app')))).toBe(1);
  });
});

describe('any sequence of binds, unbinds and exits', () => {
  it('never gives a PASID two owners and balances at the end (section 5: 2, 6; scenario 35)', () => {
    const action = fc.tuple(fc.constantFrom('bind', 'unbind', 'exit'), fc.nat(1), fc.nat(3));
    fc.assert(fc.property(fc.array(action, { maxLength: 40 }), fc.constantFrom('lowest' as const, 'cyclic' as const, 'random' as const), (actions, pasidPolicy) => {
      const world = new CoreWorld({ options: { pasidPolicy } });
      const devices = [world.svaDevice('dev0'), world.svaDevice('dev1', { maxPasids: 1 << 20 })];
      const mms = [0, 1, 2, 3].map((n) => world.process(`app${n}`));
      const held: { device: Device; mm: Mm; pasid: number }[] = [];
      for (const [what, d, m] of actions) {
        const device = devices[d]!, mm = mms[m]!;
        if (what === 'bind' && !mm.exiting) held.push({ device, mm, pasid: world.run(world.core.svaBind(device, mm)) });
        else if (what === 'bind' && mm.alive) expect(world.refused(world.core.svaBind(device, mm))).toBe('ESRCH');
        else if (what === 'unbind') {
          const i = held.findIndex((bond) => bond.device === device && bond.mm === mm);
          if (i >= 0) world.run(world.core.svaUnbind(device, held.splice(i, 1)[0]!.pasid));
        } else if (what === 'exit' && !mm.exiting) world.run(mm.put());
        const owners = new Map(held.map((bond) => [bond.pasid, bond.mm]));
        for (const bond of held) expect(owners.get(bond.pasid)).toBe(bond.mm);
        for (const [pasid, mm] of owners) expect(world.core.findMm(pasid)).toBe(mm);
      }
      for (const { device, pasid } of held) world.run(world.core.svaUnbind(device, pasid));
      for (const mm of mms) if (!mm.exiting) world.run(mm.put());
      expect(world.core.usage).toEqual({ pasids: 0, domains: 0, bonds: 0, pendingRequests: 0, dmaPages: 0 });
      expect(mms.some((mm) => mm.alive)).toBe(false);
    }), { numRuns: 40 });
  });

  it('finds each of 20,000 bound mms by its PASID (section 8, growth)', () => {
    const world = new CoreWorld({ traceCapacity: 1024 });
    const device = world.svaDevice('dev0');
    const count = 20_000;
    const mms = Array.from({ length: count }, (_, n) => world.process(`p${n % 8}`));
    world.run((function* () {
      for (const mm of mms) yield* world.core.svaBind(device, mm);
    })());
    expect(world.core.usage).toMatchObject({ pasids: count, bonds: count });
    expect(world.core.findMm(count)).toBe(mms[count - 1]);
    world.run((function* () {
      for (let pasid = 1; pasid <= count; pasid++) yield* world.core.svaUnbind(device, pasid);
    })());
    expect(world.core.usage).toMatchObject({ pasids: count, bonds: 0 });
  });
});
