/** A VMM whose devices are mediated ones of a real accelerator, and a guest kernel with the accelerator's own driver on them (2c, scenario 16). */
import { describe, expect, it } from 'vitest';
import { IdxdDriver } from '../../devices/dsa/driver/idxd.js';
import type { PinnedResult } from '../../devices/dsa/driver/idxd-pinned.js';
import { Vmm, type VmmOptions } from '../../guest/vmm/vmm.js';
import { Malloc } from '../../host/mm/malloc.js';
import { Mm } from '../../host/mm/mm.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { Process } from '../../host/process.js';
import { DirectMapping } from '../../iommu/core/direct-mapping.js';
import { IommuCore } from '../../iommu/core/core.js';
import { Mailbox } from '../../sim/channel.js';
import { Random } from '../../sim/random.js';
import type { Steps } from '../../sim/task.js';
import { VfioPciDriver } from '../../vfio/pci/index.js';
import { DsaMdevWorld, uuid } from './dsa-mdev-world.js';
import { BareGuest, MIB } from './guest-vmm-world.js';

const DEDICATED = '1dwq-v1', SHARED = '1swq-v1';
const RAM = [{ start: 0, end: 16 * MIB }];
const RAM_PAGES = 4096;

function vmmOf(world: DsaMdevWorld, mdevs: readonly number[], options: Partial<VmmOptions> = {}): Vmm {
  const { clock, scheduler, ram: memory, frames, log, trace, vfio } = world;
  const vmm = new Vmm({
    name: `vm${mdevs[0]}`, process: world.process('qemu').process, vfio, memory, frames, clock, scheduler, log, trace, vcpus: 2, ram: RAM,
    devices: mdevs.map((n) => ({ groupId: world.mdevs.find(uuid(n))!.group!, deviceName: uuid(n), devfn: (n + 2) << 3, name: `wq${n}` })), ...options,
  });
  world.run(vmm.start());
  return vmm;
}

class IdxdGuest extends BareGuest {
  readonly idxd: IdxdDriver;
  readonly core: IommuCore;
  private nextPid = 1;

  constructor(world: DsaMdevWorld, vmm: Vmm) {
    super(world.clock, vmm, [{ start: MIB, end: 16 * MIB }]);
    const { clock, memory } = vmm, { scheduler, log, timing, frames, pci } = this;
    const mailbox = new Mailbox((error) => world.clock.fail(error));
    const core = (this.core = new IommuCore({ clock, scheduler, mailbox, trace: world.trace, timing, log, random: new Random(3), frames, options: { scope: vmm.name, defaultDomain: 'identity' } }));
    core.registerDriver(new DirectMapping(mailbox));
    pci.subscribe({
      *deviceAdded(device) {
        yield* core.addDevice(device, pci.groupOf(device).id);
      },
      deviceRemoved: (device) => core.deviceRemove(device),
    });
    this.idxd = new IdxdDriver({ clock, scheduler, timing, log, iommu: core, memory }, () => ({ wqs: [] }));
    this.run(pci.rescan());
    this.run(this.drivers.registerDriver(this.idxd));
  }

  device(n: number): PciFunctionDevice {
    return this.pci.find(`0000:00:0${n + 2}.0`)!;
  }

  /** A process of the guest copies memory by the queue of a device. */
  copies(n: number, size = 50_000): { statuses: readonly string[]; same: boolean } {
    const { frames, scheduler, idxd } = this, { memory } = this.vmm;
    const pid = this.nextPid++, pci = this.device(n);
    const mm = new Mm({ id: 5000 + pid, name: 'app', memory, frames, scheduler });
    const process = new Process(pid, 'app', mm), malloc = new Malloc(mm);
    return this.run((function* (): Steps<{ statuses: readonly string[]; same: boolean }> {
      const file = yield* idxd.openPinned(pci, process, 'wq0.0');
      const from = yield* malloc.malloc(size), to = yield* malloc.malloc(size);
      const data = Uint8Array.from({ length: size }, (_, i) => (i * 7) & 0xff), copied = new Uint8Array(size);
      yield* mm.write(from, data);
      const submission = yield* file.submit([{ kind: 'copy', from, to, sizeBytes: size, pattern: 0n }]);
      const results: readonly PinnedResult[] = yield* submission.wait();
      yield* mm.read(to, copied);
      yield* process.exit();
      return { statuses: results.map(({ status }) => status), same: Buffer.compare(copied, data) === 0 };
    })());
  }
}

describe('a VMM with mediated devices', () => {
  it('runs the accelerator\'s own driver in the guest on a dedicated and a shared queue at once', () => {
    const world = new DsaMdevWorld();
    world.create(1, DEDICATED);
    world.create(2, SHARED);
    const vmm = vmmOf(world, [1, 2]);
    const guest = new IdxdGuest(world, vmm);
    // one container, one aux domain, one PASID; RAM pinned once
    const [first, second] = [1, 2].map((n) => world.vfio.pasidOf(world.mdevs.find(uuid(n))!));
    expect([first, world.type1.usage.containers, world.frames.pinnedPages]).toEqual([second, 1, RAM_PAGES]);
    expect([guest.copies(1), guest.copies(2)]).toEqual([{ statuses: ['success'], same: true }, { statuses: ['success'], same: true }]);
    expect(new Set(world.reports.map(({ pasid }) => pasid))).toEqual(new Set([first]));
    expect([vmm.vm.translatePasid(0), vmm.vm.enqcmdExits, vmm.devices.map(({ interrupts }) => interrupts.mode)]).toEqual([first, 0, ['msix', 'msix']]);
    // registers trap, portals do not
    expect(vmm.counters.traps).toBeGreaterThan(50);
    const { traps } = vmm.counters;
    expect(guest.device(2).ioremap(2).enqueue64(0x1000, new Uint8Array(64))).toBe('accepted');
    expect(vmm.counters.traps).toBe(traps);
    expect(guest.device(2).ioremap(0).read(0, 8)).toBe(world.dsa.function.window(0)!.read(0, 8));
    expect(vmm.counters.traps).toBe(traps + 1);
    expect(vmm.injections).toBeGreaterThan(2);
  });

  it('keeps two guests with the same guest-physical addresses apart (scenario 16)', () => {
    const world = new DsaMdevWorld();
    for (const n of [1, 2]) world.create(n, SHARED);
    const vmms = [1, 2].map((n) => vmmOf(world, [n]));
    const guests = vmms.map((vmm) => new IdxdGuest(world, vmm));
    expect(guests.map((guest, i) => guest.copies(i + 1).same)).toEqual([true, true]);
    const [first, second] = vmms.map(({ vm }) => vm.translatePasid(0));
    expect(first).not.toBe(second);
    world.run(vmms[0]!.process.exit());
    world.settle();
    expect(guests[1]!.copies(2).same).toBe(true);
    world.run(vmms[1]!.powerOff());
    expect([world.frames.pinnedPages, world.core.usage.pasids, world.frames.framesOf('kvm-table')]).toEqual([0, 0, 0]);
    world.run(vmms[1]!.process.exit());
    for (const n of [1, 2]) world.run(world.mdevs.remove(uuid(n)));
  });

  it('exits for a PASID that means nothing: the guest\'s command is not taken', () => {
    const world = new DsaMdevWorld();
    world.create(1, SHARED);
    const vmm = vmmOf(world, [1]);
    const guest = new IdxdGuest(world, vmm);
    vmm.vm.clearPasid(0);
    const portal = guest.device(1).ioremap(2);
    expect([portal.enqueue64(0x1000, new Uint8Array(64)), vmm.vm.enqcmdExits]).toEqual(['retry', 1]);
  });

  it('restarts with a guest that begins again', () => {
    const world = new DsaMdevWorld();
    world.create(1, DEDICATED);
    const vmm = vmmOf(world, [1]);
    expect(new IdxdGuest(world, vmm).copies(1).same).toBe(true);
    const pasid = vmm.vm.translatePasid(0);
    world.run(vmm.reset());
    expect(world.vdsa(1).lease.enabled).toBe(false);
    expect([new IdxdGuest(world, vmm).copies(1).same, vmm.vm.translatePasid(0)]).toEqual([true, pasid]);
  });

  it('stands beside a whole device in one guest', () => {
    const world = new DsaMdevWorld();
    world.create(1, DEDICATED);
    const { drivers, eduPci, pciCore: bus, vfio, core, scheduler, log } = world;
    world.run(drivers.unbind('edu', eduPci));
    world.run(drivers.registerDriver(new VfioPciDriver({ vfio, bus, groups: core, scheduler, log })));
    drivers.setDriverOverride(eduPci, 'vfio-pci');
    world.run(drivers.bind('vfio-pci', eduPci));
    const vmm = vmmOf(world, [1], { devices: [
      { groupId: bus.groupOf(eduPci).id, deviceName: eduPci.name, devfn: 0x30, name: 'edu' },
      { groupId: world.mdevs.find(uuid(1))!.group!, deviceName: uuid(1), devfn: 0x18, name: 'wq' },
    ] });
    const guest = new IdxdGuest(world, vmm);
    expect([guest.copies(1).same, guest.pci.devices.map(({ vendorId }) => vendorId)]).toEqual([true, [0x8086, 0x1234]]);
    world.run(vmm.powerOff());
    expect([world.frames.pinnedPages, world.core.usage.pasids]).toEqual([0, 0]);
  });
});
