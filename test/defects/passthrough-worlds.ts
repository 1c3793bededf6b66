/**
 * Worlds for defects of passthrough that no topology shows: a process of the host holds devices through VFIO and does what no
 * VMM does. Each builds its world with the given defect, or without any, and says what it saw.
 */
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { EventFd } from '../../host/eventfd.js';
import { PCI_BASE_ADDRESS_0, PCI_CAP_ID_MSI, PCI_COMMAND, PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_ID_PRI } from '../../host/pci/spec/index.js';
import { OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { PORTAL_LIMITED, PORTAL_SIZE } from '../../devices/dsa/spec/registers.js';
import { DMA_COMMAND_START, DMA_REG, DMA_WINDOW } from '../../devices/mtty/spec/registers.js';
import { remappableAddress } from '../../iommu/intel-vtd/spec/interrupt-remapping.js';
import type { ContainerHandle, DeviceHandle } from '../../vfio/client/index.js';
import { PCI_BAR2_REGION, PCI_CONFIG_REGION, PCI_MSIX_IRQ } from '../../vfio/device.js';
import { VFIO_DEVICE_STATE_STOP } from '../../vfio/uapi/migration.js';
import { PciWorld } from '../fixtures/pci-world.js';
import { UserDsa } from '../scenarios/passthrough-dsa-user.js';
import { mdevDsa, PAGE, PassthroughWorld, slices, uuid, type VfioUser } from '../scenarios/passthrough-world.js';
import { DSA0, type WorldOptions } from '../scenarios/world.js';
import { createWorld, findCapability, Listener, svaFunction } from '../unit/pci-world.js';

const IOVA = 0x10_0000;
const MASTER = 4, INTX_DISABLE = 0x400;

/** A machine with two slices of an accelerator, m0 and m1, and a serial card. */
function machine(defect: string | undefined, more: WorldOptions = {}): PassthroughWorld {
  return new PassthroughWorld({
    mdevs: [...slices(2), { uuid: uuid(9), name: 'card', parent: 'mtty0', mdev_type: 'mtty-1' }], mdevParents: [{ model: 'mtty', name: 'mtty0' }],
    ...more, ...(defect === undefined ? {} : { defect }),
  });
}

/** A machine whose only accelerator a process has as a whole. */
function whole(defect: string | undefined): { world: PassthroughWorld; fn: PciFunction; device: DeviceHandle } {
  const world = new PassthroughWorld({ devices: [DSA0], ...(defect === undefined ? {} : { defect }) });
  world.give('dsa0');
  return { world, fn: world.host.devices.models[0]!.function, device: world.user('dpdk').assemble(['dsa0']).devices[0]! };
}

/** Names of invariants that are violated so far. */
function violated({ machine: { checkers } }: PassthroughWorld): string[] {
  return checkers.summaries().filter(({ status }) => status === 'violated').map(({ name }) => name);
}

/** The same when everybody has ended and the books are balanced. */
function violatedAtEnd({ machine: model }: PassthroughWorld): string[] {
  model.takeDown();
  return model.summary().invariants.filter(({ status }) => status === 'violated').map(({ name }) => name);
}

/** Fresh memory of a user at an I/O virtual address; where it is in the process. */
function mapped(user: VfioUser, container: ContainerHandle, pages: number, iova = IOVA): number {
  const vaddr = user.mmap(pages * PAGE);
  user.run(container.mapDma({ iova, vaddr, sizeBytes: pages * PAGE }));
  return vaddr;
}

/** A process with the serial card, and `pages` of memory at IOVA. */
function cardUser(world: PassthroughWorld, pages: number): { container: ContainerHandle; card: DeviceHandle } {
  const user = world.user('vmm');
  const { container, devices: [card] } = user.assemble(['card']);
  mapped(user, container, pages);
  card!.writeValue(PCI_CONFIG_REGION, PCI_COMMAND, 2, MASTER);
  return { container, card: card! };
}

/** The card sends `length` bytes at IOVA to itself, `rx` is where they go. */
function transfer(card: DeviceHandle, rx: number, length: number): void {
  const registers = [[DMA_REG.TX_ADDRESS, IOVA], [DMA_REG.RX_ADDRESS, rx], [DMA_REG.TX_LENGTH, length], [DMA_REG.RX_LENGTH, length], [DMA_REG.COMMAND, DMA_COMMAND_START]] as const;
  for (const [register, value] of registers) card.writeValue(0, DMA_WINDOW + register, 4, value);
}

/** Names of violated invariants. */
export const INVARIANTS = {
  'mdev.uuid-unique-per-parent': (defect) => {
    const world = machine(defect);
    const { mdevs, mttyParents: [card] } = world.host.passthrough;
    world.refused(mdevs.create(card!.device, 'mtty-1', uuid(1)), () => 0);
    return violated(world);
  },

  'migration.keep-running-in-stop-copy': (defect) => {
    const world = machine(defect);
    const { card } = cardUser(world, 16);
    transfer(card, IOVA + 8 * PAGE, 8 * PAGE);
    world.wait(2_000);
    world.run(card.migration.setState(VFIO_DEVICE_STATE_STOP));
    world.settle();
    return violatedAtEnd(world);
  },

  'vfio.skip-dma-unmap-notify': (defect) => {
    const world = machine(defect);
    const { container, card } = cardUser(world, 16);
    transfer(card, IOVA + 8 * PAGE, 8 * PAGE);
    world.wait(2_000);
    world.run(container.unmapDma(IOVA, 16 * PAGE));
    return violatedAtEnd(world);
  },

  'vfio.skip-replay-rollback': (defect) => {
    const world = machine(defect);
    const user = world.user('vmm', 4 * PAGE);
    // without an IOMMU behind the card nothing is pinned
    const { container } = user.assemble(['card']);
    mapped(user, container, 2);
    mapped(user, container, 3, IOVA + 0x1_0000);
    world.refused(user.client.openGroup(world.groupId('m0')).setContainer(container), () => 0);
    return violatedAtEnd(world);
  },

  'vfio.unpin-before-flush': (defect) => {
    const world = machine(defect);
    const user = world.user('dpdk');
    const { container } = user.assemble(['m0']);
    mapped(user, container, 16);
    world.run(container.unmapDma(IOVA, 16 * PAGE));
    return violatedAtEnd(world);
  },

  'vfio.unset-with-open-devices': (defect) => {
    const world = machine(defect);
    const { groups: [group] } = world.user('dpdk').assemble(['m0']);
    world.refused(group!.unsetContainer(), () => 0);
    return violatedAtEnd(world);
  },

  'vtd.ignore-irte-source': (defect) => {
    const world = machine(defect, { probes: { probe: {} } });
    const probe = world.probe();
    probe.pci.setMaster(true);
    // an entry of the accelerator's
    const { index } = world.records('intel_iommu:irte').find(({ source, present }) => present === 1 && source === world.pci('dsa0').sourceId)!;
    probe.fn.port.messageInterrupt(remappableAddress(index!), 0);
    world.settle();
    return violatedAtEnd(world);
  },

  'vtd-driver.skip-iec-flush': (defect) => {
    const world = machine(defect, { devices: [mdevDsa(2), { ...DSA0, name: 'dsa1', bdf: '0000:6f:01.0' }] });
    world.give('dsa1');
    const user = world.user('dpdk');
    const { devices: [device] } = user.assemble(['dsa1']);
    const wire = (): void => world.run(device!.setIrqs({ index: PCI_MSIX_IRQ, eventfds: [user.process.open(new EventFd(world.host.scheduler, 'vector'))] }));
    wire();
    world.run(device!.setIrqs({ index: PCI_MSIX_IRQ, count: 0 }));
    wire();
    return violatedAtEnd(world);
  },
} satisfies Record<string, (defect: string | undefined) => string[]>;

/** True when it went wrong. */
export const BEHAVIOUR = {
  'mtty.lose-dirty': (defect) => {
    const world = machine(defect);
    const { card } = cardUser(world, 4);
    world.run(card.migration.startLogging([{ iova: IOVA, sizeBytes: 4 * PAGE }]));
    transfer(card, IOVA + 2 * PAGE, PAGE + 1);
    world.settle();
    // the third and fourth page
    return world.run(card.migration.report(IOVA, 4 * PAGE))[0] !== 0b1100;
  },

  'pci.intx-ignore-disable': (defect) => {
    const world = new PciWorld();
    const fn = world.fn(world.root, 0x08, { intx: 1, defects: new Set(defect === undefined ? [] : [defect]) });
    world.complex.configWrite(0, 0x08, PCI_COMMAND, 2, INTX_DISABLE);
    fn.setIntx(true);
    return world.interrupts.lineIsHigh(17);
  },

  'pci.msi-ignore-mask': (defect) => {
    const world = createWorld();
    const fn = new PciFunction({ ...svaFunction(new Listener(world.clock), { msi: { vectors: 1, maskable: true } }), defects: new Set(defect === undefined ? [] : [defect]) });
    world.complex.insert(world.root, 0x08, fn);
    const at = findCapability(fn, PCI_CAP_ID_MSI);
    for (const [offset, value] of [[PCI_COMMAND, MASTER], [at + 4, 0xfee0_0000], [at + 0x10, 1], [at + 2, 1]] as const) fn.config.write(offset, offset === at + 2 ? 2 : 4, value);
    fn.raiseMsi(0);
    world.clock.run();
    return world.messages.length > 0;
  },

  'vdsa.portal-stays-mapped': (defect) => {
    const world = machine(defect);
    const former = world.user('former'), present = world.user('present');
    const first = former.assemble(['m0']);
    const portal = first.devices[0]!.mmap(PCI_BAR2_REGION, PORTAL_LIMITED * PORTAL_SIZE, PORTAL_SIZE);
    for (const handle of [...first.devices, ...first.groups, first.container]) world.run(handle.close());
    const { container, devices: [device] } = present.assemble(['m0']);
    const vaddr = mapped(present, container, 1);
    world.run(new UserDsa(world, present, device!, { whole: false }).start());
    portal.write64(0, encodeDescriptor({ opcode: OPCODE.MEMFILL, source: 0x7777_7777, destination: IOVA, size: 8 }));
    world.settle();
    return present.read(vaddr, 1)[0] !== 0;
  },

  'vfio-pci.ats-not-hidden': (defect) => {
    const { device } = whole(defect);
    const hidden: readonly number[] = [PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_PRI, PCI_EXT_CAP_ID_PASID];
    for (let at = 0x100; at !== 0; ) {
      const header = device.readValue(PCI_CONFIG_REGION, at, 4);
      if (hidden.includes(header & 0xffff)) return true;
      at = header >>> 20;
    }
    return false;
  },

  'vfio-pci.bar-write-through': (defect) => {
    const { fn, device } = whole(defect);
    const before = fn.config.get(PCI_BASE_ADDRESS_0, 4);
    device.writeValue(PCI_CONFIG_REGION, PCI_BASE_ADDRESS_0, 4, 0xdead_0000);
    return fn.config.get(PCI_BASE_ADDRESS_0, 4) !== before;
  },
} satisfies Record<string, (defect: string | undefined) => boolean>;
