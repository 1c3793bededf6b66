/**
 * The Intel VT-d driver: `IommuOps` on remapping units found through the DMAR table. It acts through register
 * windows and bytes of memory only, so the units may be silicon, a virtual machine monitor's, or somebody else's
 * model, and the memory a host's or a guest's.
 *
 * Left out: x2APIC mode of interrupt remapping, the register-based invalidation interface, write-buffer flushing (CAP.RWBF), kdump's
 * copied tables, hot-added units, and deferred ("lazy") flushing, which the core does for DMA domains before it calls
 * `flush`.
 */
import { assert } from '../../../sim/assert.js';
import { Errno } from '../../../sim/errno.js';
import { Channel, type Mailbox } from '../../../sim/channel.js';
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { Device } from '../../../host/device.js';
import type { FrameSource } from '../../../host/frame-source.js';
import type { InterruptController } from '../../../host/interrupts.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { AddressSpace } from '../../../host/mm/address-space.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { X86_INTERRUPT_WINDOW } from '../../../host/system-bus.js';
import type { Timing } from '../../../host/timing.js';
import {
  PROT_READ, PROT_WRITE, type DeviceFeature, type DomainType, type FaultReport, type IommuCoreServices, type IommuDomain, type IommuOps,
  type PageResponse, type PageResponseCode, type ProbedDevice,
} from '../../core/ops.js';
import { DMAR_INTR_REMAP, decodeDmar, readDmar, type DmarTable } from '../spec/dmar.js';
import { RESP_FAILURE, RESP_INVALID, RESP_SUCCESS } from '../spec/descriptors.js';
import { DomainAttachment, translationOf } from './attach.js';
import { responseWord0, responseWord1, responseWord2 } from './descriptor-batch.js';
import { DeviceInterrupts } from './device-interrupts.js';
import { atsAllowed, drhdOf, inScope } from './device-scope.js';
import { VtdDomain, limitsOf, type TableKind, type TableLimits } from './domain.js';
import { FLPT_DEFAULT_DID } from './domain-ids.js';
import { Entries, EVERYTHING } from './entries.js';
import { Features } from './features.js';
import { RangeFlush } from './flush.js';
import { RID_PASID } from './pasid-table.js';
import { RemappingUnit, type UnitServices } from './remapping-unit.js';
import { VtdDevice, asPci } from './vtd-device.js';

export interface IntelIommuOptions {
  /** Scalable mode where units have it (`intel_iommu=on,sm_on`). Default true. */
  readonly scalable?: boolean;
  /** DMA domains use first-level tables where every unit walks them. Default true. */
  readonly firstLevel?: boolean;
  /** Identity domains use pass-through where every unit has it; otherwise they map [0, identityEnd). Default true. */
  readonly passThrough?: boolean;
  /** End of what an identity domain maps without pass-through. Default 4 GiB. */
  readonly identityEnd?: number;
  /** The page request queue has 2^order pages of 128 entries, 0 to 7. Default 4, as Linux. */
  readonly prqOrder?: number;
  /** Interrupts of devices are remapped where firmware says so and every unit can (`intremap`). Default true. */
  readonly interruptRemapping?: boolean;
}

export interface IntelIommuParts {
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly trace: Trace;
  readonly timing: Timing;
  readonly log: KernelLog;
  readonly interrupts: InterruptController;
  readonly core: IommuCoreServices;
  readonly mailbox: Mailbox;
  /** The DMAR table: its bytes, or where they stand in memory. */
  readonly dmar: number | Uint8Array;
  readonly mapRegisters: (address: number, sizeBytes: number) => Mmio;
  readonly options?: IntelIommuOptions;
  /** Tests only: names of defects that start with `vtd-driver.` */
  readonly defects?: ReadonlySet<string>;
}

/** Pages of the interrupt window, which no unit translates. */
const MSI_WINDOW = { firstPage: X86_INTERRUPT_WINDOW.start / 4096, endPage: X86_INTERRUPT_WINDOW.end / 4096, name: 'msi' };
const DEFAULT_IDENTITY_END = 0x1_0000_0000;

export class IntelIommu implements IommuOps {
  readonly name = 'intel-iommu';
  readonly faults: Channel<FaultReport>;
  readonly units: RemappingUnit[] = [];
  /** Where PCI functions get their interrupts: remapped ones between `start` and `stop`, plain vectors otherwise. */
  readonly deviceInterrupts: DeviceInterrupts;
  private readonly parts: IntelIommuParts;
  private readonly options: Required<IntelIommuOptions>;
  private readonly entries: Entries;
  private readonly attachment: DomainAttachment;
  private readonly features: Features;
  private readonly rangeFlush: RangeFlush;
  private readonly devices = new Map<Device, VtdDevice>();
  private readonly responseCodes: Readonly<Record<PageResponseCode, number>>;
  private readonly skipDrain: boolean;
  private table: DmarTable | undefined;
  private limits: TableLimits | undefined;
  private nextDomain = 1;

  constructor(parts: IntelIommuParts) {
    this.parts = parts;
    this.options = { scalable: true, firstLevel: true, passThrough: true, identityEnd: DEFAULT_IDENTITY_END, prqOrder: 4, interruptRemapping: true, ...parts.options };
    const defects = parts.defects ?? new Set<string>();
    this.faults = new Channel(parts.mailbox, 'intel-iommu faults');
    this.entries = new Entries({ memory: parts.memory, frames: parts.frames, defects });
    this.attachment = new DomainAttachment(this.entries, parts.log);
    this.features = new Features({
      entries: this.entries, attachment: this.attachment, allUnitsHavePasids: () => this.units.every((unit) => unit.pasids),
      prqDepth: 128 << this.options.prqOrder,
    });
    this.rangeFlush = new RangeFlush(defects);
    this.deviceInterrupts = new DeviceInterrupts(parts.interrupts, parts.log, (device) => this.unitOf(device)?.interruptTable);
    this.skipDrain = defects.has('vtd-driver.skip-prq-drain');
    // the wire's FAILURE is 15, the generic enum's 2: never forward the one as the other
    this.responseCodes = { SUCCESS: RESP_SUCCESS, INVALID: RESP_INVALID, FAILURE: defects.has('vtd-driver.generic-failure-code') ? 2 : RESP_FAILURE };
  }

  /** Interrupts of devices are remapped now, so that none can forge another's. */
  get interruptRemapping(): boolean {
    return this.deviceInterrupts.remapping;
  }

  /**
   * Finds the units and brings them up: queues, interrupt remapping, root tables, interrupts. DMA is not translated yet, so that the devices
   * that are there can be given their domains first (Linux: init_dmars, then the bus is probed). EINVAL: no usable table or
   * unit. ENODEV: the table names no unit. ETIMEDOUT: a unit does not answer. ENOMEM, ENOSPC.
   */
  *start(): Steps {
    const { parts } = this;
    assert(this.units.length === 0, 'intel-iommu started twice');
    const table = typeof parts.dmar === 'number' ? readDmar(parts.memory, parts.dmar) : decodeDmar(parts.dmar);
    this.table = table;
    const services: UnitServices = { ...parts, faults: this.faults, scalable: this.options.scalable, prqOrder: this.options.prqOrder };
    parts.log.log('info', `DMAR: Host address width ${table.hostAddressWidth}`);
    for (const structure of table.structures) {
      if (structure.kind !== 'DRHD') continue;
      parts.log.log('info', `DMAR: DRHD base: 0x${structure.base.toString(16).padStart(14, '0')} flags: 0x${structure.includeAll ? 1 : 0}`);
      this.units.push(new RemappingUnit(services, structure, this.units.length, table.hostAddressWidth));
    }
    if (this.units.length === 0) throw new Errno('ENODEV', 'DMAR: the table names no remapping unit');
    this.limits = limitsOf(this.units);
    for (const unit of this.units) yield* unit.enableQueue();
    yield* this.deviceInterrupts.takeOver(this.units);
    if (this.options.interruptRemapping && (table.flags & DMAR_INTR_REMAP) !== 0) yield* this.deviceInterrupts.start(this.units);
    for (const unit of this.units) yield* unit.setRootTable();
    for (const unit of this.units) unit.enableInterrupts();
  }

  /** From now on DMA is translated; a device without a domain is blocked. ETIMEDOUT. */
  *enableTranslation(): Steps {
    for (const unit of this.units) yield* unit.enableTranslation();
    this.parts.log.log('info', 'DMAR: Intel(R) Virtualization Technology for Directed I/O');
  }

  /** Power-off: translation ends in every unit, then interrupt remapping. */
  *stop(): Steps {
    for (const unit of this.units) yield* unit.disableTranslation();
    yield* this.deviceInterrupts.stop(this.units);
  }

  probe(device: Device): ProbedDevice {
    const pci = asPci(device);
    const unit = pci === undefined ? undefined : this.unitOf(pci);
    if (pci === undefined || unit === undefined) throw new Errno('ENODEV', `no VT-d unit translates device ${device.name}`);
    if (unit.devices[pci.sourceId] !== undefined) throw new Errno('EBUSY', `requester ${pci.sourceId.toString(16)} of ${unit.name} is known already`);
    const { capabilities } = unit;
    const maxPasids = unit.pasids && pci.pasidSupported ? Math.min(2 ** capabilities.pasidBits, pci.maxPasids()) : 0;
    const atsSupported = capabilities.deviceTlb && pci.atsSupported && atsAllowed(this.table!, pci);
    const priSupported = unit.pageRequests !== undefined && atsSupported && pci.priSupported;
    const info = new VtdDevice({ device: pci, unit, nameId: this.parts.trace.intern(pci.name), maxPasids, atsSupported, priSupported });
    this.devices.set(device, info);
    unit.devices[pci.sourceId] = info;
    const rmrrs = this.table!.structures.filter((structure) => structure.kind === 'RMRR')
      .filter((rmrr) => rmrr.segment === pci.segment && rmrr.scopes.some((scope) => inScope(scope, pci)))
      .map(({ base, limit }) => ({ firstPage: Math.floor(base / 4096), endPage: Math.floor(limit / 4096) + 1, name: 'rmrr' }));
    return { maxPasids, reserved: [MSI_WINDOW, ...rmrrs] };
  }

  *release(device: Device): Steps {
    const info = this.devices.get(device);
    if (info === undefined) return;
    if (info.priEnabled) yield* this.features.disableIopf(info);
    for (const domain of info.aux) yield* this.detachAux(domain, info);
    const table = info.pasidTable;
    for (const pasid of info.sva) {
      if (table!.isPresent(pasid)) yield* this.entries.tearDownPasidEntry(info, pasid);
      else table!.clear(pasid);
    }
    info.sva.clear();
    yield* this.attachment.detach(info);
    if (table !== undefined) yield* this.entries.tearDownContext(info, 0);
    this.attachment.disablePciFeatures(info);
    table?.destroy();
    info.pasidTable = undefined;
    info.unit.devices[info.sourceId] = undefined;
    this.devices.delete(device);
  }

  hasFeature(device: Device, feature: DeviceFeature): boolean {
    const info = this.devices.get(device);
    return info !== undefined && this.features.has(info, feature);
  }

  *enableFeature(device: Device, feature: DeviceFeature): Steps {
    yield* this.features.enable(this.known(device, 'EINVAL'), feature);
  }

  *disableFeature(device: Device, feature: DeviceFeature): Steps {
    yield* this.features.disable(this.known(device, 'EINVAL'), feature);
  }

  featureEnabled(device: Device, feature: DeviceFeature): boolean {
    const info = this.devices.get(device);
    return info !== undefined && this.features.enabled(info, feature);
  }

  /** Every unit that is in use nests, as Linux asks (nested_mode_support). */
  canNest(): boolean {
    return this.units.length > 0 && this.units.every((unit) => unit.scalable && unit.capabilities.nested);
  }

  /** ENODEV before `start`; EINVAL for `sva`, whose tables belong to processes; ENOMEM. */
  domainAlloc(type: DomainType): IommuDomain {
    const { limits } = this;
    if (limits === undefined) throw new Errno('ENODEV', 'intel-iommu has not been started');
    if (type === 'sva') throw new Errno('EINVAL', 'a domain of type sva has the tables of a process: see svaAttach');
    const domain = new VtdDomain({
      id: this.nextDomain++, type, kind: this.tableKind(type, limits), limits, memory: this.parts.memory, frames: this.parts.frames,
      onMapped: (mapped, page, pages) => this.rangeFlush.announce(mapped, page, pages),
    });
    if (type === 'identity' && domain.kind !== 'none') {
      domain.map(0, 0, Math.min(Math.ceil(this.options.identityEnd / 4096), domain.endPage), PROT_READ | PROT_WRITE);
    }
    return domain;
  }

  domainFree(domain: IommuDomain): void {
    const own = this.own(domain);
    if (own.attachments.length > 0) throw new Errno('EBUSY', `domain ${own.id} is attached to ${own.attachments[0]!.device.device.name}`);
    own.destroy();
  }

  /** EPERM an unmanaged domain while AUX is enabled (E24); ENODEV, ENOSPC, ENOMEM. */
  *attach(domain: IommuDomain, device: Device): Steps {
    const own = this.own(domain);
    const info = this.known(device, 'ENODEV');
    if (info.auxEnabled && own.type === 'unmanaged') {
      throw new Errno('EPERM', `device ${device.name} has AUX enabled: an unmanaged domain can only be attached as an auxiliary one`);
    }
    yield* this.attachment.attach(own, info);
  }

  *detach(domain: IommuDomain, device: Device): Steps {
    const info = this.known(device, 'ENODEV');
    if (info.domain !== domain) throw new Errno('EINVAL', `domain ${domain.id} is not attached to device ${device.name}`);
    yield* this.attachment.detach(info);
  }

  *flush(domain: IommuDomain, page: number, pages: number): Steps {
    yield* this.rangeFlush.domain(this.own(domain), page, pages);
  }

  *auxAttach(domain: IommuDomain, device: Device): Steps {
    const own = this.own(domain);
    const info = this.known(device, 'ENODEV');
    if (!info.auxEnabled) throw new Errno('EPERM', `AUX is not enabled on device ${device.name}`);
    if (own.type !== 'unmanaged') throw new Errno('EPERM', `domain ${own.id} is of type ${own.type}: auxiliary domains are unmanaged ones`);
    if (info.aux.has(own)) throw new Errno('EBUSY', `domain ${own.id} is attached to device ${device.name} already`);
    if (own.auxPasid === 0) {
      const fresh = this.parts.core.allocPasid(1, info.maxPasids - 1, `aux domain ${own.id}`);
      if (fresh === undefined) throw new Errno('ENODEV', `no PASID below ${info.maxPasids} is left for domain ${own.id} on device ${device.name}`);
      own.auxPasid = fresh;
    }
    const pasid = own.auxPasid;
    try {
      yield* this.installAux(own, info, pasid);
    } catch (error) {
      this.dropAuxPasid(own);
      throw error;
    }
    info.aux.add(own);
  }

  *auxDetach(domain: IommuDomain, device: Device): Steps {
    const info = this.known(device, 'ENODEV');
    const own = this.own(domain);
    if (!info.aux.has(own)) throw new Errno('EINVAL', `domain ${own.id} is no auxiliary domain of device ${device.name}`);
    yield* this.detachAux(own, info);
  }

  auxGetPasid(domain: IommuDomain, _device: Device): number {
    const { auxPasid } = this.own(domain);
    if (auxPasid === 0) throw new Errno('EINVAL', `domain ${domain.id} has no PASID: it is attached nowhere as an auxiliary domain`);
    return auxPasid;
  }

  *svaAttach(device: Device, mm: AddressSpace, pasid: number): Steps {
    const info = this.known(device, 'ENODEV');
    if (!info.svaEnabled) throw new Errno('ENODEV', `SVA is not enabled on device ${device.name}`);
    if (pasid < 1) throw new Errno('EINVAL', `PASID ${pasid} is not a process' (0 is for requests without one)`);
    if (pasid >= info.maxPasids) throw new Errno('ENOSPC', `PASID ${pasid} is beyond the ${info.maxPasids} of device ${device.name} and ${info.unit.name}`);
    this.svaCheckFormat(device, mm);
    yield* this.entries.setPasidEntry(info, pasid, { kind: 'first-level', table: mm.pgd, levels: mm.levels, domainId: FLPT_DEFAULT_DID });
    info.sva.add(pasid);
  }

  *svaSilence(device: Device, pasid: number): Steps {
    const info = this.devices.get(device);
    if (info?.pasidTable?.isPresent(pasid) !== true) return;
    yield* this.entries.tearDownPasidEntry(info, pasid, true);
  }

  *svaDetach(device: Device, pasid: number): Steps {
    const info = this.known(device, 'ENODEV');
    if (!info.sva.has(pasid)) throw new Errno('ESRCH', `PASID ${pasid} is not installed for device ${device.name}`);
    if (info.requirePasidTable().isPresent(pasid)) yield* this.entries.tearDownPasidEntry(info, pasid);
    else yield* this.entries.clearSilenced(info, pasid, FLPT_DEFAULT_DID);
    yield* this.drain(info, pasid, FLPT_DEFAULT_DID);
    info.sva.delete(pasid);
  }

  *svaInvalidate(devices: readonly Device[], pasid: number, start: number, end: number): Steps {
    const infos: VtdDevice[] = [];
    for (const device of devices) {
      const info = this.devices.get(device);
      if (info !== undefined && info.sva.has(pasid)) infos.push(info);
    }
    if (end > start && infos.length > 0) yield* this.rangeFlush.process(infos, pasid, start, end);
  }

  svaCheckFormat(device: Device, mm: AddressSpace): void {
    const { unit } = this.known(device, 'ENODEV');
    if (mm.usesGigantic && !unit.capabilities.firstLevel1G) {
      throw new Errno('EINVAL', `${unit.name}: SVM disabled, incompatible 1GB page capability: ${mm.name} may have such pages`);
    }
    if (mm.levels === 5 && !unit.capabilities.fiveLevel) {
      throw new Errno('EINVAL', `${unit.name}: SVM disabled, incompatible paging mode: ${mm.name} has five levels`);
    }
  }

  pageResponse(response: PageResponse): void {
    const info = this.devices.get(response.device);
    // a function that has left waits for no answer
    if (info === undefined) return;
    const { request } = response;
    const present = request.pasid !== NO_PASID;
    info.unit.queue.post(
      responseWord0(info.sourceId, present, this.responseCodes[response.code]), present ? responseWord1(request.pasid) : 0,
      responseWord2(request.prgIndex, request.last), 0,
    );
  }

  *drainPageRequests(device: Device): Steps {
    const info = this.devices.get(device);
    const pageRequests = info?.unit.pageRequests;
    if (info === undefined || this.skipDrain || !info.priEnabled || pageRequests === undefined) return;
    // the device TLB's completion comes behind every answer that is on its way to the device
    const batch = info.unit.queue.batch().fence();
    if (info.hasDeviceTlb) batch.deviceTlb(info.tlb, RID_PASID, EVERYTHING);
    yield* pageRequests.drain(info.device, info.sourceId, undefined, batch);
  }

  /** Fence, IOTLB, device TLB, and a wait that drains page requests, until nothing of the PASID is under way (7.10). */
  private *drain(info: VtdDevice, pasid: number, domainId: number): Steps {
    const { pageRequests, queue } = info.unit;
    if (this.skipDrain || !info.priEnabled || pageRequests === undefined) return;
    const batch = queue.batch().fence().pasidIotlb(domainId, pasid);
    if (info.hasDeviceTlb) batch.deviceTlb(info.tlb, pasid, EVERYTHING);
    yield* pageRequests.drain(info.device, info.sourceId, pasid, batch);
  }

  private *detachAux(domain: VtdDomain, info: VtdDevice): Steps {
    const pasid = domain.auxPasid;
    const domainId = domain.idIn(info.unit);
    yield* this.entries.tearDownPasidEntry(info, pasid);
    yield* this.drain(info, pasid, domainId);
    domain.removeAttachment(info, pasid);
    domain.dropId(info.unit);
    info.aux.delete(domain);
    this.dropAuxPasid(domain);
  }

  private *installAux(domain: VtdDomain, info: VtdDevice, pasid: number): Steps {
    if (pasid >= info.maxPasids) throw new Errno('ENODEV', `PASID ${pasid} of domain ${domain.id} is beyond the ${info.maxPasids} of device ${info.device.name}`);
    const domainId = domain.takeId(info.unit);
    domain.addAttachment(info, pasid);
    try {
      yield* this.entries.setPasidEntry(info, pasid, translationOf(domain, domainId));
    } catch (error) {
      domain.removeAttachment(info, pasid);
      domain.dropId(info.unit);
      throw error;
    }
  }

  /** X2: the PASID goes with the last device that the domain is attached to. */
  private dropAuxPasid(domain: VtdDomain): void {
    if (domain.attachments.some((attachment) => attachment.pasid === domain.auxPasid)) return;
    this.parts.core.freePasid(domain.auxPasid);
    domain.auxPasid = 0;
  }

  private tableKind(type: DomainType, limits: TableLimits): TableKind {
    if (type === 'blocked' || (type === 'identity' && limits.passThrough && this.options.passThrough)) return 'none';
    const firstLevel = limits.firstLevel && (!limits.secondLevel || (type === 'dma' && this.options.firstLevel));
    if (firstLevel) return 'first-level';
    if (limits.secondLevel) return 'second-level';
    throw new Errno('ENODEV', 'no kind of table is walked by every VT-d unit');
  }

  /** The unit that serves a function, by the table. */
  private unitOf(device: PciDevice): RemappingUnit | undefined {
    const drhd = this.table === undefined ? undefined : drhdOf(this.table, device);
    return drhd === undefined ? undefined : this.units.find((candidate) => candidate.drhd === drhd);
  }

  private own(domain: IommuDomain): VtdDomain {
    assert(domain instanceof VtdDomain, `domain ${domain.id} is not one of intel-iommu`);
    return domain;
  }

  private known(device: Device, code: 'ENODEV' | 'EINVAL'): VtdDevice {
    const info = this.devices.get(device);
    if (info === undefined) throw new Errno(code, `device ${device.name} is not behind a VT-d unit`);
    return info;
  }
}
