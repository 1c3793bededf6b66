/** VFIO_IOMMU_BIND on the whole machine (V1): a driver in user space whose accelerator uses the process's own addresses. */
import { describe, expect, it } from 'vitest';
import { OPCODE, FLAG, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { PRG_INVALID } from '../../host/pci/dma-port.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
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
});
