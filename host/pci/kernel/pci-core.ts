/**
 * The kernel's PCI core: finds functions, numbers buses, assigns addresses, keeps the list of devices through hot
 * plug and SR-IOV, and forms IOMMU groups (drivers/pci/probe.c, remove.c, iov.c, hotplug/pciehp_pci.c). Works
 * through configuration space bytes alone. Left out: ARI, configuration retry status, firmware's assignments (all
 * numbers and addresses are given anew).
 */
import { assert } from '../../../sim/assert.js';
import { Errno } from '../../../sim/errno.js';
import type { Clock } from '../../../sim/clock.js';
import { sleep, type Steps } from '../../../sim/task.js';
import type { KernelLog } from '../../kernel-log.js';
import type { SystemBus } from '../../system-bus.js';
import {
  devfnOf, formatBdf, PCI_BASE_ADDRESS_0, PCI_BRIDGE_NUM_BARS, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_COMMAND_IO, PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY, PCI_COMMAND_SERR, PCI_EXP_TYPE_DOWNSTREAM, PCI_EXP_TYPE_ROOT_PORT, PCI_PRIMARY_BUS, PCI_SECONDARY_BUS,
  PCI_STD_NUM_BARS, PCI_SUBORDINATE_BUS, PCI_VENDOR_ID,
} from '../spec/index.js';
import { enableAcs } from './acs.js';
import { AddressRange } from './address-range.js';
import { assignResources, releaseResources } from './assign.js';
import { sizeBars } from './bars.js';
import { compareBdf } from './bdf.js';
import { updateWord } from './config-access.js';
import { PciFunctionDevice } from './function-device.js';
import { IommuGroups } from './groups.js';
import { resetBelow } from './reset.js';
import { Sriov } from './sriov.js';
import type { ConfigAccess } from './config-access.js';
import type { FunctionPlace, PciServices } from './function-device.js';
import type { DmaAliases, PciGroup } from './groups.js';
import type { InterruptAllocator } from './msix.js';
import type { PciDevice } from './pci-device.js';

/** A bus that a host bridge makes; what lies behind its bridges gets numbers up to `lastBus`. */
export interface RootBus {
  readonly segment: number;
  readonly bus: number;
  readonly lastBus: number;
}

export interface PciCoreOptions {
  readonly access: ConfigAccess;
  readonly systemBus: SystemBus;
  readonly interrupts: InterruptAllocator;
  readonly clock: Clock;
  readonly log: KernelLog;
  /** Default: bus 0 of segment 0 with all numbers. */
  readonly rootBuses?: readonly RootBus[];
  /** For BARs and bridge windows, below 4 GiB. */
  readonly memory: { readonly start: number; readonly sizeBytes: number };
  /** For 64-bit prefetchable BARs; without it they go to `memory`. */
  readonly prefetchable?: { readonly start: number; readonly sizeBytes: number };
  /** Switch ACS isolation on, as a kernel with an IOMMU does. Default true. */
  readonly requestAcs?: boolean;
  /** Names of ports that lead out of the machine. */
  readonly externalFacing?: ReadonlySet<string>;
  readonly dmaAliases?: DmaAliases;
  readonly defects?: ReadonlySet<string>;
}

/** How often a presence change looks whether a reset has ended. */
const RESET_POLL_NS = 1_000_000;

/** Who follows devices as they come and go. Told in order of subscription on arrival, in reverse on departure. */
export interface PciListener {
  deviceAdded?(device: PciFunctionDevice): Steps;
  /** `device.present` is false when it was pulled out. */
  deviceRemoved?(device: PciFunctionDevice): Steps;
  resetPrepare?(device: PciFunctionDevice): Steps;
  /** Between the two: its DMA has stopped, the reset itself comes next. */
  resetQuiet?(device: PciFunctionDevice): Steps;
  resetDone?(device: PciFunctionDevice): Steps;
}

export class PciCore implements PciServices {
  readonly access: ConfigAccess;
  readonly systemBus: SystemBus;
  readonly interrupts: InterruptAllocator;
  readonly clock: Clock;
  readonly log: KernelLog;
  readonly defects: ReadonlySet<string>;
  readonly requestAcs: boolean;
  readonly groups: IommuGroups;
  private readonly rootBuses: readonly RootBus[];
  private readonly memory: AddressRange;
  private readonly prefetchable: AddressRange | undefined;
  private readonly externalFacing: ReadonlySet<string>;
  /** Both lists are replaced, never changed: who walks one may add and remove. */
  private listeners: readonly PciListener[] = [];
  private sorted: readonly PciFunctionDevice[] = [];

  constructor(options: PciCoreOptions) {
    this.access = options.access;
    this.systemBus = options.systemBus;
    this.interrupts = options.interrupts;
    this.clock = options.clock;
    this.log = options.log;
    this.defects = options.defects ?? new Set();
    this.requestAcs = options.requestAcs ?? true;
    this.groups = new IommuGroups(options.dmaAliases ?? new Map(), this.defects);
    this.rootBuses = options.rootBuses ?? [{ segment: 0, bus: 0, lastBus: 0xff }];
    this.memory = new AddressRange(options.memory.start, options.memory.sizeBytes);
    assert(this.memory.end <= 2 ** 32, 'PCI memory range ends above 4 GiB: 32-bit BARs and bridge windows do not reach it');
    this.prefetchable = options.prefetchable === undefined ? undefined : new AddressRange(options.prefetchable.start, options.prefetchable.sizeBytes);
    this.externalFacing = options.externalFacing ?? new Set();
  }

  /** Every function that is there, bridges too, in order of segment, bus and devfn. */
  get devices(): readonly PciFunctionDevice[] {
    return this.sorted;
  }

  /** The function of that name (`0000:6a:01.0`). */
  find(name: string): PciFunctionDevice | undefined {
    return this.sorted.find((device) => device.name === name);
  }

  /** ENODEV when the device is not, or no more, on this bus. */
  own(device: PciDevice): PciFunctionDevice {
    const found = this.sorted.find((candidate) => candidate === device);
    if (found === undefined) throw new Errno('ENODEV', `device ${device.name} is not on the PCI bus`);
    return found;
  }

  /** The function with that requester id, including those that are known by an alias. */
  findBySourceId(segment: number, sourceId: number): PciFunctionDevice | undefined {
    return this.sorted.find((device) => device.segment === segment && device.sourceId === sourceId);
  }

  /** IOMMU group of a device on this bus (C16). ENODEV when it is not there. */
  groupOf(device: PciDevice): PciGroup {
    return this.groups.groupOf(this.own(device));
  }

  /** Returns the function that undoes the subscription. */
  subscribe(listener: PciListener): () => void {
    this.listeners = [...this.listeners, listener];
    return () => {
      this.listeners = this.listeners.filter((other) => other !== listener);
    };
  }

  /**
   * Looks for functions that are not known yet, gives them bus numbers, addresses and groups, and returns them in
   * bus order. Tells no listener: for boot, before there are any; later `rescan`.
   */
  enumerate(): PciFunctionDevice[] {
    const found: PciFunctionDevice[] = [];
    for (const root of this.rootBuses) this.scanBus(root.segment, root.bus, root.lastBus, undefined, found);
    const roots = [...this.sorted, ...found].filter((device) => device.upstream === undefined);
    assignResources(roots, { memory: this.memory, prefetchable: this.prefetchable }, this.log);
    found.sort(compareBdf);
    for (const device of found) {
      if (this.requestAcs) enableAcs(device);
    }
    for (const device of found) this.insert(device);
    return found;
  }

  /** Hot add: `enumerate`, then tells the listeners about each new device. */
  *rescan(): Steps<PciFunctionDevice[]> {
    const found = this.enumerate();
    for (const device of found) yield* this.announce(device);
    return found;
  }

  /**
   * Orderly removal of a function and everything below it: drivers first, then the silent function, then its
   * addresses and number.
   */
  *remove(device: PciDevice): Steps {
    yield* this.removeTree(this.own(device));
  }

  /** After a presence change: removes what does not answer any more, deepest first, and returns it. A reset under way ends first. */
  *removeAbsent(): Steps<PciFunctionDevice[]> {
    const resetting = this.sorted.filter((device) => device.resetting);
    for (const device of resetting) device.presenceChanged = true;
    const gone = this.sorted.filter((device) => !device.present);
    yield* this.removeAll(gone);
    for (const device of resetting) while (device.resetting) yield* sleep(this.clock, RESET_POLL_NS);
    const late = resetting.filter((device) => this.sorted.includes(device) && !device.present);
    yield* this.removeAll(late);
    return [...gone, ...late];
  }

  private *removeAll(devices: readonly PciFunctionDevice[]): Steps {
    for (const device of devices.toReversed()) {
      if (this.sorted.includes(device)) yield* this.removeTree(device);
    }
  }

  /**
   * Switches `count` VFs of a physical function on and adds their devices. ENOSYS without SR-IOV; otherwise as
   * `Sriov.enable`.
   */
  *enableSriov(device: PciDevice, count: number): Steps<PciFunctionDevice[]> {
    const pf = this.own(device);
    if (pf.sriov === undefined) throw new Errno('ENOSYS', `SR-IOV: ${pf.name} is no physical function`);
    if (count === 0) return [];
    yield* pf.sriov.enable(count, this.lastBusOf(pf));
    const added: PciFunctionDevice[] = [];
    for (let index = 0; index < count; index++) {
      const vf = this.addVirtualFunction(pf, pf.sriov, index);
      added.push(vf);
      yield* this.announce(vf);
    }
    return added;
  }

  /** Removes the VFs' devices and switches them off. Nothing without enabled VFs. */
  *disableSriov(device: PciDevice): Steps {
    const pf = this.own(device);
    if (pf.sriov === undefined || pf.sriov.enabledVfs === 0) return;
    while (pf.sriov.functions.length > 0) yield* this.removeTree(pf.sriov.functions.at(-1)!);
    yield* pf.sriov.disable();
  }

  /**
   * Secondary bus reset below a bridge: every function there is reset and gets its state back, whoever drives it.
   * ENOTTY when it is no bridge, or something does not come back.
   */
  *resetBus(bridge: PciDevice): Steps {
    const own = this.own(bridge);
    if (!own.isBridge) throw new Errno('ENOTTY', `device ${own.name} is no bridge: it has no bus to reset`);
    yield* resetBelow(own, this);
  }

  /** The bus that the function is on, with everybody there (`pci_reset_bus`). ENOTTY on a root bus. */
  *resetBusOf(device: PciDevice): Steps {
    yield* resetBelow(this.bridgeAbove(device), this);
  }

  /** The functions that a reset of the function's bus resets, itself too, in the order of the bus. ENOTTY on a root bus. */
  affectedByBusReset(device: PciDevice): readonly PciFunctionDevice[] {
    return this.bridgeAbove(device).subtree.slice(1);
  }

  *resetPrepare(device: PciFunctionDevice): Steps {
    for (const listener of this.listeners.toReversed()) yield* listener.resetPrepare?.(device) ?? none();
  }

  *resetQuiet(device: PciFunctionDevice): Steps {
    for (const listener of this.listeners.toReversed()) yield* listener.resetQuiet?.(device) ?? none();
  }

  *resetDone(device: PciFunctionDevice): Steps {
    for (const listener of this.listeners) yield* listener.resetDone?.(device) ?? none();
  }

  private bridgeAbove(device: PciDevice): PciFunctionDevice {
    const own = this.own(device);
    if (own.upstream === undefined) throw new Errno('ENOTTY', `device ${own.name} is on a root bus, which nobody resets`);
    return own.upstream;
  }

  // ---- scanning

  /** Scans one bus and what is below it; returns the highest bus number in use. */
  private scanBus(segment: number, bus: number, lastBus: number, upstream: PciFunctionDevice | undefined, found: PciFunctionDevice[]): number {
    // below a port there is one device (PCIe 6.0 section 7.3.1)
    const oneDevice = upstream?.pcieType === PCI_EXP_TYPE_ROOT_PORT || upstream?.pcieType === PCI_EXP_TYPE_DOWNSTREAM;
    const here: PciFunctionDevice[] = [];
    for (let slot = 0; slot < (oneDevice ? 1 : 32); slot++) {
      const first = this.scanFunction({ segment, bus, devfn: devfnOf(slot, 0), upstream }, found);
      if (first === undefined) continue;
      here.push(first);
      for (let fn = 1; fn < 8 && first.multifunction; fn++) {
        const device = this.scanFunction({ segment, bus, devfn: devfnOf(slot, fn), upstream }, found);
        if (device !== undefined) here.push(device);
      }
    }
    let used = here.reduce((most, device) => Math.max(most, Math.min(device.sriov?.lastBus ?? bus, lastBus)), bus);
    const bridges = here.filter((device) => device.isBridge);
    const isNew = (bridge: PciFunctionDevice): boolean => found.includes(bridge);
    for (const bridge of bridges) if (!isNew(bridge)) used = Math.max(used, this.scanKnownBridge(bridge, found));
    for (const bridge of bridges) if (isNew(bridge)) used = this.scanNewBridge(bridge, used, lastBus, found);
    return used;
  }

  private scanFunction(place: FunctionPlace, found: PciFunctionDevice[]): PciFunctionDevice | undefined {
    const { segment, bus, devfn, upstream } = place;
    const known = this.sorted.find((device) => device.segment === segment && device.bus === bus && device.devfn === devfn);
    if (known !== undefined) return known.present ? known : undefined;
    const id = this.access.read(segment, bus, devfn, PCI_VENDOR_ID, 4);
    if (id === 0xffff_ffff || id === 0 || (id & 0xffff) === 0xffff) return undefined;
    const externalFacing = this.externalFacing.has(formatBdf(segment, bus, devfn));
    const device = new PciFunctionDevice(this, { ...place, externalFacing });
    updateWord(device.config, PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY, 0);
    device.bars = sizeBars(device.config, PCI_BASE_ADDRESS_0, device.isBridge ? PCI_BRIDGE_NUM_BARS : PCI_STD_NUM_BARS, 1);
    device.sriov = Sriov.find(device, this.clock);
    device.intxInterrupt.writeLine();
    upstream?.children.push(device);
    found.push(device);
    return device;
  }

  private scanKnownBridge(bridge: PciFunctionDevice, found: PciFunctionDevice[]): number {
    const secondary = bridge.config.read(PCI_SECONDARY_BUS, 1);
    const subordinate = bridge.config.read(PCI_SUBORDINATE_BUS, 1);
    if (secondary !== 0) this.scanBus(bridge.segment, secondary, subordinate, bridge, found);
    return subordinate;
  }

  private scanNewBridge(bridge: PciFunctionDevice, used: number, lastBus: number, found: PciFunctionDevice[]): number {
    const secondary = used + 1;
    if (secondary > lastBus) {
      this.log.log('err', `pci ${bridge.name}: no bus number left for what is behind the bridge`);
      return used;
    }
    bridge.config.write(PCI_PRIMARY_BUS, 1, bridge.bus);
    bridge.config.write(PCI_SECONDARY_BUS, 1, secondary);
    // while the number of buses below is unknown, everything is forwarded
    bridge.config.write(PCI_SUBORDINATE_BUS, 1, lastBus);
    const subordinate = this.scanBus(bridge.segment, secondary, lastBus, bridge, found);
    bridge.config.write(PCI_SUBORDINATE_BUS, 1, subordinate);
    return subordinate;
  }

  private lastBusOf(pf: PciFunctionDevice): number {
    if (pf.upstream !== undefined) return pf.upstream.config.read(PCI_SUBORDINATE_BUS, 1);
    return this.rootBuses.find((root) => root.segment === pf.segment && root.bus === pf.bus)?.lastBus ?? pf.bus;
  }

  // ---- the list of devices

  private addVirtualFunction(pf: PciFunctionDevice, sriov: Sriov, index: number): PciFunctionDevice {
    const routingId = sriov.routingId(index);
    const place = { segment: pf.segment, bus: routingId >> 8, devfn: routingId & 0xff, upstream: pf.upstream, virtual: { physfn: pf, index } };
    const vf = new PciFunctionDevice(this, place);
    vf.bars = sriov.bars.map((bar) => ({ ...bar, count: 1, start: bar.start! + index * bar.sizeBytes, range: undefined }));
    sriov.functions.push(vf);
    this.insert(vf);
    return vf;
  }

  private insert(device: PciFunctionDevice): void {
    this.sorted = [...this.sorted, device].sort(compareBdf);
    this.groups.add(device);
  }

  private *announce(device: PciFunctionDevice): Steps {
    for (const listener of this.listeners) yield* listener.deviceAdded?.(device) ?? none();
  }

  private *removeTree(device: PciFunctionDevice): Steps {
    for (const child of device.children.toReversed()) yield* this.removeTree(child);
    if (device.sriov !== undefined) {
      for (const vf of device.sriov.functions.toReversed()) yield* this.removeTree(vf);
    }
    for (const listener of this.listeners.toReversed()) yield* listener.deviceRemoved?.(device) ?? none();
    // a driver should have done it
    if (device.sriov !== undefined && device.sriov.enabledVfs > 0 && device.present) yield* device.sriov.disable();
    device.freeIrqs();
    device.freeIntx();
    if (device.physfn === undefined) {
      // no request leaves any more, no window is decoded (`pciehp_unconfigure_device`)
      updateWord(device.config, PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_SERR | PCI_COMMAND_MEMORY, PCI_COMMAND_INTX_DISABLE);
      releaseResources(device);
      removeFrom(device.upstream?.children ?? [], device);
    } else {
      removeFrom(device.physfn.sriov!.functions, device);
    }
    this.groups.remove(device);
    this.sorted = this.sorted.filter((other) => other !== device);
    device.config.disconnected = true;
  }
}

function removeFrom(list: PciFunctionDevice[], device: PciFunctionDevice): void {
  const at = list.indexOf(device);
  if (at >= 0) list.splice(at, 1);
}

function* none(): Steps {}
