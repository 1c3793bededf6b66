/* oxlint-disable require-yield -- drivers and listeners that have nothing to wait for */
/**
 * What lspci prints of a machine with everything that the kernel's PCI core knows. The texts were compared with
 * pciutils 3.14 reading the hex dump beside them (`lspci -F`), which agrees but for what only a kernel knows: sizes
 * of resources, IOMMU groups, drivers, resources of VFs, and that no I/O window is used. (`lspci -F` also lists the
 * upper half of a 64-bit BAR as a region of its own when it is not zero.)
 */
import { describe, expect, it } from 'vitest';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { lspci, parseHexDump, PciDrivers } from '../../host/pci/kernel/index.js';
import { IDLE, ISOLATING, only, PciWorld, TRANSLATING } from '../fixtures/pci-world.js';
import type { LspciOptions, PciCore } from '../../host/pci/kernel/index.js';

interface Machine {
  readonly core: PciCore;
  readonly world: PciWorld;
  readonly print: (options: LspciOptions) => string;
}

/** A root port with an accelerator and a VF of it, a switch with one endpoint, and an integrated endpoint. */
function machine(): Machine {
  const world = new PciWorld();
  const accelerator = world.rootPort(0x08, { acs: 0x5f });
  world.fn(accelerator.secondary, 0, {
    ...TRANSLATING, vendorId: 0x8086, deviceId: 0x0b25, revision: 1, subsystemVendorId: 0x8086, subsystemId: 0, pm: true, siov: true,
    bars: [{ index: 0, sizeBytes: 0x1_0000, prefetchable: true, is64: true }, { index: 2, sizeBytes: 0x2_0000, prefetchable: true, is64: true }],
    msix: { vectors: 9, tableBar: 0, tableOffset: 0x2000, pbaOffset: 0x3000 },
    sriov: {
      totalVfs: 2, vfDeviceId: 0x0b26, vfBars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }],
      createVf: (physfn, index) => new PciFunction({
        ...IDLE, name: `vf${index}`, physfn, ats: { queueDepth: 32, pageAligned: true }, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }],
      }),
    },
  });
  const upstream = world.upstreamPort(world.rootPort(0x10).secondary);
  world.fn(world.downstreamPort(upstream.secondary, 0x00, { acs: ISOLATING }).secondary, 0, {
    vendorId: 0x1b36, deviceId: 0x0010, classCode: 0x01_0802, bars: [{ index: 0, sizeBytes: 0x4000, prefetchable: false, is64: true }],
  });
  world.downstreamPort(upstream.secondary, 0x08);
  world.fn(world.root, 0x18, { vendorId: 0x1234, deviceId: 0x11e8, classCode: 0x00_ff00, revision: 0x10, deviceType: PCI_EXP_TYPE_RC_END, flr: false, bars: [{ index: 0, sizeBytes: 0x10_0000, prefetchable: false, is64: false }], msi: { vectors: 1 }, intx: 1 });
  const core = world.core();
  core.enumerate();
  const drivers = new PciDrivers({ bus: core, scheduler: world.scheduler, log: world.log });
  world.run(drivers.registerDriver({
    name: 'idxd', ids: [{ vendor: 0x8086, device: 0x0b25 }],
    *probe(device) {
      device.setMaster(true);
      device.allocIrqs('idxd', [() => {}, () => {}]);
      device.enablePasid(4);
      device.enableAts(12);
      device.enablePri(512);
      yield* core.enableSriov(device, 1);
    },
    *remove() {},
  }));
  only(core, '0000:00:03.0').allocMsi('edu', [() => {}]);
  return {
    core, world,
    print: (options) => lspci(core.devices, {
      iommuGroupOf: (fn) => core.groupOf(core.find(`0000:${(fn.bus).toString(16).padStart(2, '0')}:${(fn.devfn >> 3).toString(16).padStart(2, '0')}.${fn.devfn & 7}`)!).id,
      driverOf: (fn) => drivers.driverOf(core.devices.find((device) => device === fn)!)?.name,
      ...options,
    }),
  };
}

describe('lspci', () => {
  it('lists the machine: -nn', async () => {
    await expect(machine().print({ numeric: 2 })).toMatchFileSnapshot('lspci-nn.txt');
  });

  it('shows every register: -vv -nn', async () => {
    await expect(machine().print({ verbose: 2, numeric: 2 })).toMatchFileSnapshot('lspci-vv-nn.txt');
  });

  it('shows one function briefly: -v -s', async () => {
    await expect(machine().print({ verbose: 1, slot: '01:00.0' })).toMatchFileSnapshot('lspci-v-one.txt');
  });

  it('draws the tree: -t, -tv', async () => {
    const { print } = machine();
    await expect(print({ tree: true }) + print({ tree: true, verbose: 1 })).toMatchFileSnapshot('lspci-t.txt');
  });

  it('draws one branch: -t -s', () => {
    expect(machine().print({ tree: true, slot: '03:01.0' })).toBe('-[0000:00]---02.0-[02-05]----00.0-[03-05]----01.0-[05]--\n');
    expect(machine().print({ tree: true, slot: '02:00.0' })).toBe(
      '-[0000:00]---02.0-[02-05]----00.0-[03-05]--+-00.0-[04]----00.0\n                                           \\-01.0-[05]--\n',
    );
  });

  it('dumps configuration space: -xxxx', async () => {
    await expect(machine().print({ numeric: 1, hex: 4 })).toMatchFileSnapshot('lspci-xxxx.txt');
  });

  it('reads its own dump back, without what only the kernel knows', () => {
    const { core, print } = machine();
    const dump = print({ numeric: 1, hex: 4 });
    expect(lspci(parseHexDump(dump), { numeric: 1, hex: 4 })).toBe(dump.replace('8086:0b26', 'ffff:ffff'));
    const express = (text: string): string[] => text.split('\n').filter((line) => line.startsWith('\tCapabilities') || line.startsWith('\t\t'));
    // that a VF has memory, and so what atomic operations it completes, stands in no register of its own
    const known = express(lspci(core.devices.filter((device) => device.physfn === undefined), { verbose: 2 }));
    expect(express(lspci(parseHexDump(dump).filter((fn) => fn.vendorId !== 0xffff), { verbose: 2 }))).toEqual(known);
  });

  it('changes nothing', () => {
    const { core, world, print } = machine();
    const before = core.devices.map((device) => world.bytesOf(device)), writes = world.writes;
    print({ verbose: 2, hex: 4 });
    expect(core.devices.map((device) => world.bytesOf(device))).toEqual(before);
    expect(world.writes).toBe(writes);
  });

  it('prints nothing for a slot that is not there, segments when there are several', () => {
    const { core, print } = machine();
    expect(print({ slot: '7f:00.0' })).toBe('');
    expect(print({ slot: 'nonsense' })).toBe('');
    expect(print({ slot: '00:03.0', segments: true })).toBe('0000:00:03.0 Unclassified device [00ff]: Device 1234:11e8 (rev 10)\n');
    const { bus, devfn, config, vendorId, deviceId } = only(core, '0000:00:03.0');
    const elsewhere = { segment: 0x10, bus, devfn, config, vendorId, deviceId };
    expect(lspci([only(core, '0000:00:01.0'), elsewhere])).toBe('0000:00:01.0 PCI bridge: Red Hat, Inc. QEMU PCIe Root port\n0010:00:03.0 Unclassified device [00ff]: Device 1234:11e8 (rev 10)\n');
  });

  it('ends at a ring of capabilities', () => {
    const ring = ['00:00.0 x', '00: 86 80 25 0b 00 00 10 00 00 00 80 08 00 00 00 00', '30: 00 00 00 00 40 00 00 00 00 00 00 00 00 00 00 00', '40: 0f 50 00 00 00 00 00 00 00 00 00 00 00 00 00 00', '50: 0c 40 00 00'].join('\n');
    expect(lspci(parseHexDump(ring), { verbose: 2 }).split('\n').filter((line) => line.includes('Capab'))).toEqual([
      '\tCapabilities: [40] Secure device <?>', '\tCapabilities: [50] Hot-plug capable', '\tCapabilities: [40] <chain looped>',
    ]);
  });
});
