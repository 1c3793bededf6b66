/** Numbered scenarios of requirements section 10 about groups, virtual functions, feature order and determinism. */
import { describe, expect, it } from 'vitest';
import { ACCESS_READ, PRG_SUCCESS } from '../../host/pci/dma-port.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { Requester } from '../../host/pci/hardware/requester.js';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import { createMachineSync } from '../../harness/machine.js';
import type { Summary } from '../../harness/summary.js';
import { DSA0, probeWorld, World, type WorldOptions } from './world.js';

describe('IOMMU groups', () => {
  const behindSwitch = (acs: boolean): WorldOptions => ({
    ports: [{ name: 'sw', acs }],
    devices: [{ ...DSA0, port: 'sw', bdf: '0000:04:00.0' }, { ...DSA0, name: 'dsa1', port: 'sw', bdf: '0000:05:00.0' }],
  });

  it('scenario 30: two devices behind a switch without ACS are one group, and bind is EINVAL', () => {
    const world = new World(behindSwitch(false));
    const { core, machine: { scenario } } = world;
    const [one, two] = ['dsa0', 'dsa1'].map((name) => scenario.world.device(name).pci);
    expect(core.groupOf(one!)).toBe(core.groupOf(two!));
    const program = world.process('app');
    expect(core.devFeatureEnabled(one!, 'SVA')).toBe(true);
    for (const device of [one!, two!]) expect(world.refused(core.svaBind(device, program.process.mm))).toBe('EINVAL');
    world.finish();
  });

  it('scenario 30: with ACS they are two groups, and both are bound', () => {
    const world = new World(behindSwitch(true));
    const { core, machine: { scenario } } = world;
    const devices = ['dsa0', 'dsa1'].map((name) => scenario.world.device(name).pci);
    expect(new Set(devices.map((device) => core.groupOf(device).id)).size).toBe(2);
    const program = world.process('app');
    const pasids = devices.map((device) => world.run(core.svaBind(device, program.process.mm)));
    expect(pasids).toEqual([1, 1]);
    for (const device of devices) world.run(core.svaUnbind(device, 1));
    world.finish();
  });

  it('scenario 30: without ACS checks the two devices would be apart (defect)', () => {
    const world = new World({ ...behindSwitch(false), defect: 'pci.groups-ignore-acs' });
    const devices = ['dsa0', 'dsa1'].map((name) => world.machine.scenario.world.device(name).pci);
    expect(new Set(devices.map((device) => world.core.groupOf(device).id)).size).toBe(2);
  });
});

/** A probe with one virtual function enabled. */
function withVirtualFunction() {
  const requesters: Requester[] = [];
  const world: World = new World({
    devices: [],
    probes: {
      probe: {
        function: {
          sriov: {
            totalVfs: 2, vfDeviceId: 2,
            createVf: (physfn, index) => {
              const { clock, scheduler, timing } = world.host;
              const requester = new Requester({ name: `vf${index}`, clock, scheduler, timing });
              requesters.push(requester);
              const fn = new PciFunction({
                name: `vf${index}`, vendorId: 0x1234, deviceId: 2, classCode: 0x12_0000, flr: true, e2eTlpPrefix: true, deviceType: PCI_EXP_TYPE_RC_END,
                ats: { queueDepth: 32, pageAligned: true }, client: requester, physfn,
              });
              requester.attach(fn);
              return fn;
            },
          },
        },
      },
    },
  });
  const probe = world.probe();
  const vf = world.run(world.host.pci.enableSriov(probe.pci, 1))[0]!;
  vf.setMaster(true);
  probe.pci.setMaster(true);
  return { world, probe, vf, requester: requesters[0]! };
}

describe('virtual functions', () => {
  it("scenario 31: a virtual function's page requests cannot be enabled without its physical function's", () => {
    const { world, vf } = withVirtualFunction();
    expect(world.refused(world.core.devEnableFeature(vf, 'IOPF'))).toBe('EINVAL');
    expect(world.refused(world.core.devEnableFeature(vf, 'SVA'))).toBe('EINVAL');
    world.finish();
  });

  it('scenario 31: with it they work, under the id of the virtual function', () => {
    const { world, probe, vf, requester } = withVirtualFunction();
    probe.enableSva();
    for (const feature of ['IOPF', 'SVA'] as const) world.run(world.core.devEnableFeature(vf, feature));
    const program = world.process('app');
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(vf, program.process.mm));
    expect(world.run(requester.prefetchPages(page, 1, ACCESS_READ, pasid))).toBe(PRG_SUCCESS);
    expect(world.records('pci:page_request').map(({ source }) => source)).toEqual([vf.sourceId]);
    expect(world.present(program.process.mm, page)).toBe(true);
    world.run(world.core.svaUnbind(vf, pasid));
    world.finish();
  });
});

describe('a translation unit', () => {
  it("E36: of a virtual function that differs from its physical function's is EINVAL", () => {
    const { world, vf } = withVirtualFunction();
    vf.disableAts();
    expect(world.refused(() => vf.enableAts(13))).toBe('EINVAL');
    vf.enableAts(12);
    world.finish();
  });
});

describe('device features', () => {
  it('scenario 34: SVA before IOPF is EINVAL; IOPF off while SVA is on EBUSY; AUX off with domains EBUSY', () => {
    const world = new World({ devices: [], probes: { probe: {} } });
    const { core } = world;
    const { pci } = world.probe();
    pci.setMaster(true);
    expect(world.refused(core.devEnableFeature(pci, 'SVA'))).toBe('EINVAL');
    world.run(core.devEnableFeature(pci, 'IOPF'));
    world.run(core.devEnableFeature(pci, 'SVA'));
    expect(world.refused(core.devDisableFeature(pci, 'IOPF'))).toBe('EBUSY');
    world.run(core.devDisableFeature(pci, 'SVA'));
    world.run(core.devDisableFeature(pci, 'IOPF'));

    world.run(core.devEnableFeature(pci, 'AUX'));
    const domain = core.domainAlloc(pci, 'unmanaged');
    world.run(core.auxAttach(domain, pci));
    // VT-d of v5.10 does not look; the contract is EBUSY
    expect(world.refused(core.devDisableFeature(pci, 'AUX'))).toBe('EBUSY');
    world.run(core.auxDetach(domain, pci));
    world.run(core.devDisableFeature(pci, 'AUX'));
    core.domainFree(domain);
    world.finish();
  });
});

describe('determinism', () => {
  const topology: TopologyInput = {
    version: 1, name: 'determinism',
    host: { memory: '128MiB', iommu: { model: 'intel-vtd' }, devices: [{ ...DSA0, 'work-queues': [{ mode: 'shared', size: 32 }] }] },
    processes: [{
      name: 'p', count: 3,
      steps: [
        { open: { device: 'dsa0' } }, { malloc: { name: 'a', size: '64KiB' } }, { malloc: { name: 'b', size: '64KiB' } }, { fill: { buffer: 'a', random: 1 } },
        { submit: { copy: { from: 'a', to: 'b' }, chunk: '8KiB' } }, { wait: {} }, { verify: { buffer: 'b', equals: 'a' } }, { close: {} },
      ],
    }],
    inject: [{ at: '60us', kill: 'p-1' }],
    expect: { flows: { 'p-1/dsa0': {} } },
  };
  function run(seed: number): Summary {
    const machine = createMachineSync(topology, { seed });
    machine.run();
    return machine.summary();
  }

  it('scenario 35: one seed, one story; another seed, another story with the same final invariants', () => {
    const first = run(1);
    expect(run(1)).toEqual(first);
    const others = [2, 3, 4, 5].map(run);
    expect(new Set([first, ...others].map(({ traceHash }) => traceHash)).size).toBe(5);
    for (const summary of [first, ...others]) {
      expect(summary.invariants.filter(({ status }) => status !== 'ok')).toEqual([]);
      expect(summary.leaks).toEqual({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 });
      expect(summary.stepFailures).toEqual([]);
      expect(summary.flows.filter(({ process }) => process !== 'p-1').map(({ status, bytes }) => [status, bytes])).toEqual([['ok', 65536], ['ok', 65536]]);
    }
  });

  it('scenario 35: the order of concurrent answers depends on the seed', () => {
    const orders = [1, 2, 3, 4].map((seed) => {
      const { world, probe } = probeWorld({ seed });
      const program = world.process('app');
      const page = world.pages(program, 8);
      const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
      for (let i = 0; i < 8; i++) probe.ask(page + i, ACCESS_READ, true, i, pasid);
      world.settle();
      const order = probe.answers.map(({ group }) => group);
      expect(order.toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
      world.run(world.core.svaUnbind(probe.pci, pasid));
      world.finish();
      return order.join();
    });
    expect(new Set(orders).size).toBeGreaterThan(1);
  });
});
