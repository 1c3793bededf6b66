/** VFIO_IOMMU_BIND on the whole machine (V1): a driver in user space whose accelerator uses the process's own addresses. */
import { describe, expect, it } from 'vitest';
import { OPCODE, FLAG, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { PRG_INVALID } from '../../host/pci/dma-port.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import { PCI_CONFIG_REGION } from '../../vfio/device.js';
import { UserDsa } from './passthrough-dsa-user.js';
import { PAGE, PassthroughWorld, pattern, same, type VfioUser } from './passthrough-world.js';
import { DSA0, type WorldOptions } from './world.js';

function bound(options: WorldOptions = {}) {
  const world = new PassthroughWorld({ devices: [DSA0], ...options });
  const pci = world.give('dsa0');
  const user = world.user('spdk');
  const { container, groups, devices: [device] } = user.assemble(['dsa0']);
  const pasid = world.run(container.bind());
  const dsa = new UserDsa(world, user, device!, { whole: true });
  world.run(dsa.start(pasid));
  return { world, pci, user, container, group: groups[0]!, device: device!, pasid, dsa };
}

describe('a process that drives a whole accelerator', () => {
  it('lets it use addresses that malloc returned: its page faults are served (V1, 2a)', () => {
    const { world, user, pasid, dsa, container } = bound();
    const size = 256 * 1024;
    const source = world.run(user.program.malloc.malloc(size)), target = world.run(user.program.malloc.malloc(size)), record = user.mmap(PAGE);
    user.write(source, pattern(size, 1));
    const { status, bytesCompleted } = world.run(dsa.copy(source, target, size, record));
    expect([status, bytesCompleted]).toEqual([STATUS.SUCCESS, size]);
    expect(same(user.read(target, size), pattern(size, 1))).toBe(true);
    expect(world.records('pci:page_request').length).toBeGreaterThanOrEqual(size / PAGE);
    expect(world.host.frames.pinnedPages).toBe(0);
    world.run(container.unbind());
    expect(world.core.usage).toMatchObject({ bonds: 0, pendingRequests: 0 });
    expect(pasid).toBe(1);
    world.finish();
  });

  /** Copies that nobody's memory is present for, under way until `begun` page requests have been sent. */
  function faulting(world: PassthroughWorld, user: VfioUser, dsa: UserDsa): void {
    const source = user.mmap(64 * 1024), target = user.mmap(64 * 1024), record = user.mmap(PAGE);
    for (let i = 0; i < 8; i++) dsa.submit({ opcode: OPCODE.MEMMOVE, source: source + i * 8192, destination: target + i * 8192, size: 8192, flags: FLAG.BOF }, record + i * 32);
    world.until(() => world.records('pci:page_request').length >= 8);
  }

  function expectNothingOfIt(world: PassthroughWorld, pci: PciFunctionDevice, user: VfioUser): void {
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0, pendingRequests: 0 });
    expect(world.records('pci:page_response')).toHaveLength(world.records('pci:page_request').length);
    // closed and reset: no access comes any more, however long one waits
    const accesses = world.records('pci:dma').length;
    world.wait(10_000_000);
    expect([world.records('pci:dma').length, pci.config.read(4, 2) & 4, user.process.mm.residentPages]).toEqual([accesses, 0, 0]);
    world.finish();
  }

  it('scenario 24: is killed in the middle of faults: all outstanding are answered Invalid, bond and PASID go, the device is silent', () => {
    const { world, pci, user, dsa } = bound();
    faulting(world, user, dsa);
    expect(world.records('iommu:iopf_handle')).toEqual([]);
    const accesses = world.records('pci:dma').length;
    user.exit();
    world.settle();
    expect(world.records('pci:page_response').map(({ code }) => code)).toEqual(Array.from({ length: 8 }, () => PRG_INVALID));
    expect(world.records('pci:dma')).toHaveLength(accesses);
    expectNothingOfIt(world, pci, user);
  });

  it('scenario 24: is killed while workers handle its faults: they keep the memory until they have answered, and nothing comes of it', () => {
    const { world, pci, user, dsa } = bound({ timing: { 'fault-service': '200us' } });
    faulting(world, user, dsa);
    world.until(() => world.records('iommu:iopf_handle').length >= 2);
    expect(world.core.usage.pendingRequests).toBeGreaterThan(1);
    user.exit();
    world.settle();
    expectNothingOfIt(world, pci, user);
  });

  it('is reset in the middle of faults (VFIO_DEVICE_RESET): what was asked for is answered first, the bond stays and works (2g)', () => {
    const { world, user, dsa, device, pasid, container } = bound();
    faulting(world, user, dsa);
    world.run(device.reset());
    // every answer came before the function forgot its questions
    expect(world.records('pci:page_response')).toHaveLength(world.records('pci:page_request').length);
    expect([world.core.usage.pendingRequests, world.core.usage.bonds, dsa.state]).toEqual([0, 1, 0]);
    expect(world.run(container.bind())).toBe(pasid);
    world.run(dsa.start(pasid));
    const size = 32 * 1024, source = user.mmap(size), target = user.mmap(size), record = user.mmap(PAGE);
    user.write(source, pattern(size, 4));
    expect(world.run(dsa.copy(source, target, size, record)).status).toBe(STATUS.SUCCESS);
    expect(same(user.read(target, size), pattern(size, 4))).toBe(true);
    user.exit();
    world.finish();
  });

  it('resets it by its configuration space under load: nothing answers meanwhile, and it comes back disabled (2g)', () => {
    const { world, user, dsa, device } = bound();
    faulting(world, user, dsa);
    const express = capability(device, 0x10);
    device.writeValue(PCI_CONFIG_REGION, express + 8, 2, 0x8000);
    expect([dsa.read(0), device.readValue(PCI_CONFIG_REGION, 0, 4)]).toEqual([0xffff_ffff, 0xffff_ffff]);
    world.settle();
    expect([device.readValue(PCI_CONFIG_REGION, 0, 4), dsa.state, world.core.usage.pendingRequests]).toEqual([0x0b25_8086, 0, 0]);
    user.exit();
    world.finish();
  });

  it('loses it when it is pulled out under load: registers read as ones, the user is asked to let go, and then the kernel forgets it (2g)', () => {
    const { world, user, dsa, device } = bound();
    let asked = 0;
    user.onRequest(device, () => void asked++);
    faulting(world, user, dsa);
    const removal = world.start('unplug', world.machine.scenario.disturb('unplug', 'dsa0'));
    world.wait(5_000_000);
    expect([dsa.read(0), device.readValue(PCI_CONFIG_REGION, 0, 4), asked, removal.ended]).toEqual([0xffff_ffff, 0xffff_ffff, 1, false]);
    // it may still call, to no avail
    expect(world.refused(device.reset(), () => world.books())).not.toBe('no error');
    const start = world.host.clock.now;
    user.exit();
    world.until(() => removal.ended);
    // bounded: no invalidation is waited for that nobody answers
    expect(world.host.clock.now - start).toBeLessThan(100_000_000);
    expect([world.core.usage, world.host.pci.find('0000:6a:01.0')]).toEqual([expect.objectContaining({ bonds: 0, pasids: 0, pendingRequests: 0 }), undefined]);
    world.finish();
  });

  it('loses it in the middle of a reset: the reset is ENOTTY as soon as it could have been over, and the kernel takes notice (2g)', () => {
    const { world, user, device } = bound();
    const reset = world.start('reset', device.reset());
    world.wait(10_000_000);
    const start = world.host.clock.now;
    const removal = world.start('unplug', world.machine.scenario.disturb('unplug', 'dsa0'));
    world.until(() => reset.ended);
    expect([reset.state, String(reset.error)]).toEqual(['failed', expect.stringMatching(/ENOTTY.*pulled out/)]);
    expect(world.host.clock.now - start).toBeLessThan(200_000_000);
    world.wait(5_000_000);
    expect([removal.ended, world.host.pci.find('0000:6a:01.0')?.present]).toEqual([false, false]);
    user.exit();
    world.until(() => removal.ended);
    expect([world.host.pci.find('0000:6a:01.0'), world.core.usage.bonds]).toEqual([undefined, 0]);
    world.finish();
  });

  it('is bound beside what it maps: requests without PASID use one, those with a PASID the other (V3)', () => {
    const { world, user, dsa, container, device } = bound();
    const memory = user.mmap(16 * PAGE), record = user.mmap(PAGE), iova = 0x4000_0000;
    world.run(container.mapDma({ iova, vaddr: memory, sizeBytes: 16 * PAGE }));
    user.write(memory, pattern(8192, 7));
    expect(world.run(dsa.copy(memory, memory + 8192, 8192, record)).status).toBe(STATUS.SUCCESS);
    // the IOVA means nothing under the PASID
    expect(world.run(dsa.copy(iova, memory + 16_384, 8192, record)).status).toBe(STATUS.PAGE_FAULT_IR);
    world.run(device.reset());
    world.run(dsa.start());
    expect(world.run(dsa.copyIova(iova, iova + 32_768, 8192, { iova: iova + 15 * PAGE, address: memory + 15 * PAGE })).status).toBe(STATUS.SUCCESS);
    expect([8192, 32_768].map((at) => same(user.read(memory + at, 8192), pattern(8192, 7)))).toEqual([true, true]);
    user.exit();
    world.finish();
  });
});

/** Where a capability lies in the configuration space that the user sees. */
function capability(device: DeviceHandle, id: number): number {
  const byte = (offset: number): number => device.readValue(PCI_CONFIG_REGION, offset, 1);
  let at = byte(0x34);
  while (at !== 0 && byte(at) !== id) at = byte(at + 1);
  return at;
}
