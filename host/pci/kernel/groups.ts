/**
 * IOMMU groups: the smallest sets of functions that the IOMMU can tell apart and that cannot reach each other behind
 * its back (C16; `pci_device_group` of drivers/iommu/iommu.c, `pci_for_each_dma_alias` of drivers/pci/search.c).
 * From the function upwards: aliases share a group; ports without isolation (ACS SV, RR, CR, UF) up to the root merge
 * everything below them; functions of one device that lack isolation merge.
 *
 * One switch whose downstream ports are not all isolated is one group (scenario 30). Linux v5.10 and v6.1 look at the
 * upstream port alone there, which needs no ACS when it is a single function (PCIe 6.0 section 6.12.1.2), and give
 * each downstream port a group although their functions reach each other. Left out: vendor quirks beyond a list of
 * extra aliases.
 */
import { assert } from '../../../sim/assert.js';
import { PCI_EXP_TYPE_DOWNSTREAM, PCI_EXP_TYPE_ROOT_PORT, PCI_EXP_TYPE_UPSTREAM, PCI_SECONDARY_BUS, requesterIdOf } from '../spec/index.js';
import { acsEnabled, ISOLATION_FLAGS, PCI_EXP_TYPE_PCI_BRIDGE } from './acs.js';
import type { PciFunctionDevice } from './function-device.js';

export interface PciGroup {
  /** As in /sys/kernel/iommu_groups: the lowest free number when the group was made. */
  readonly id: number;
  /** In the order in which they were added. */
  readonly devices: readonly PciFunctionDevice[];
}

interface MutableGroup extends PciGroup {
  readonly devices: PciFunctionDevice[];
}

/** Extra devfns that a function puts on the wire, by its name (`pci_add_dma_alias`). */
export type DmaAliases = ReadonlyMap<string, readonly number[]>;

export class IommuGroups {
  private readonly members = new Map<PciFunctionDevice, MutableGroup>();
  private readonly byId: (MutableGroup | undefined)[] = [];
  private readonly extraAliases: DmaAliases;
  private readonly everyoneAlone: boolean;

  constructor(extraAliases: DmaAliases, defects: ReadonlySet<string>) {
    this.extraAliases = extraAliases;
    this.everyoneAlone = defects.has('pci.groups-ignore-acs');
  }

  /** Groups that have members, by number. */
  get list(): readonly PciGroup[] {
    return this.byId.filter((group) => group !== undefined).filter(({ devices }) => devices.length > 0);
  }

  /** Lowest number that is no group's, for a group of something else than PCI functions. Pairs with `release`. */
  reserve(): number {
    return this.allocate().id;
  }

  /** Gives a number of `reserve` back. */
  release(id: number): void {
    const group = this.byId[id];
    assert(group !== undefined && group.devices.length === 0, `IOMMU group ${id} was not reserved`);
    this.byId[id] = undefined;
  }

  /** The group of a device that is on the bus. */
  groupOf(device: PciFunctionDevice): PciGroup {
    const group = this.members.get(device);
    assert(group !== undefined, `${device.name} is in no IOMMU group`);
    return group;
  }

  /** Upper bridges before what is below them, the order of the bus, decides the numbers. */
  add(device: PciFunctionDevice): PciGroup {
    assert(!this.members.has(device), `${device.name} is in an IOMMU group already`);
    const group = (this.everyoneAlone ? undefined : this.findGroup(device)) ?? this.allocate();
    group.devices.push(device);
    this.members.set(device, group);
    return group;
  }

  remove(device: PciFunctionDevice): void {
    const group = this.members.get(device);
    if (group === undefined) return;
    this.members.delete(device);
    group.devices.splice(group.devices.indexOf(device), 1);
    if (group.devices.length === 0) this.byId[group.id] = undefined;
  }

  /** Requester ids under which the function's DMA may arrive, its own first. */
  dmaAliases(device: PciFunctionDevice): number[] {
    const ids = [device.sourceId, ...(this.extraAliases.get(device.name) ?? []).map((devfn) => requesterIdOf(device.bus, devfn))];
    for (const bridge of aliasBridges(device)) {
      const secondary = bridge.config.read(PCI_SECONDARY_BUS, 1);
      ids.push(bridge.pcieType === PCI_EXP_TYPE_PCI_BRIDGE ? requesterIdOf(secondary, 0) : bridge.sourceId);
    }
    return ids;
  }

  private allocate(): MutableGroup {
    const free = this.byId.indexOf(undefined);
    const id = free >= 0 ? free : this.byId.length;
    const group: MutableGroup = { id, devices: [] };
    this.byId[id] = group;
    return group;
  }

  private findGroup(device: PciFunctionDevice): MutableGroup | undefined {
    let top = device;
    for (const bridge of aliasBridges(device)) {
      const group = this.members.get(bridge);
      if (group !== undefined) return group;
      top = bridge;
    }
    for (let bridge = top.upstream; bridge !== undefined && !isolatedPath(bridge); bridge = bridge.upstream) {
      const group = this.members.get(bridge);
      if (group !== undefined) return group;
      top = bridge;
    }
    const visited = new Set<PciFunctionDevice>();
    return this.aliasGroup(top, visited) ?? this.functionGroup(top, visited);
  }

  /** The group of the function, or of one on its bus that aliases it or that it aliases. */
  private aliasGroup(device: PciFunctionDevice, visited: Set<PciFunctionDevice>): MutableGroup | undefined {
    if (visited.has(device)) return undefined;
    visited.add(device);
    const own = this.members.get(device);
    if (own !== undefined) return own;
    for (const other of this.members.keys()) {
      if (!sameBus(device, other) || !this.aliased(device, other)) continue;
      const group = this.aliasGroup(other, visited) ?? this.functionGroup(other, visited);
      if (group !== undefined) return group;
    }
    return undefined;
  }

  /** Of a function without isolation: the group of another such function of the same device. */
  private functionGroup(device: PciFunctionDevice, visited: Set<PciFunctionDevice>): MutableGroup | undefined {
    if (!device.multifunction || acsEnabled(device, ISOLATION_FLAGS)) return undefined;
    for (const other of this.members.keys()) {
      if (!sameBus(device, other) || other.devfn >> 3 !== device.devfn >> 3 || acsEnabled(other, ISOLATION_FLAGS)) continue;
      const group = this.aliasGroup(other, visited);
      if (group !== undefined) return group;
    }
    return undefined;
  }

  private aliased(a: PciFunctionDevice, b: PciFunctionDevice): boolean {
    return (this.extraAliases.get(a.name)?.includes(b.devfn) ?? false) || (this.extraAliases.get(b.name)?.includes(a.devfn) ?? false);
  }
}

function sameBus(a: PciFunctionDevice, b: PciFunctionDevice): boolean {
  return a !== b && a.segment === b.segment && a.bus === b.bus;
}

/** Bridges above that replace the requester id: all but PCI Express ports. */
function aliasBridges(device: PciFunctionDevice): PciFunctionDevice[] {
  const found: PciFunctionDevice[] = [];
  for (let bridge = device.upstream; bridge !== undefined; bridge = bridge.upstream) {
    const port = bridge.pcieType === PCI_EXP_TYPE_ROOT_PORT || bridge.pcieType === PCI_EXP_TYPE_UPSTREAM || bridge.pcieType === PCI_EXP_TYPE_DOWNSTREAM;
    if (!port) found.push(bridge);
  }
  return found;
}

/** Every port from `bridge` to the root keeps what is below it apart. */
function isolatedPath(bridge: PciFunctionDevice): boolean {
  for (let port: PciFunctionDevice | undefined = bridge; port !== undefined; port = port.upstream) {
    if (!acsEnabled(port, ISOLATION_FLAGS)) return false;
    if (port.pcieType === PCI_EXP_TYPE_UPSTREAM && !port.children.every((child) => acsEnabled(child, ISOLATION_FLAGS))) return false;
  }
  return true;
}
