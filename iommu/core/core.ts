/**
 * The kernel's IOMMU core: the device API of the proposal "IOMMU SVA device driver interface" in our casing, with
 * the errnos and rules that requirements section 0 settles. Drivers register their ops, devices are added as PCI
 * enumeration finds them, and everything that may sleep is a generator. What each part does stands in its file:
 * sva.ts, io-pgfault.ts, fault-reporting.ts, domains.ts, dma-api.ts, ioasid.ts.
 */
import type { Observable } from 'rxjs';
import { Errno, isErrno } from '../../sim/errno.js';
import type { Channel } from '../../sim/channel.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { AddressSpace } from '../../host/mm/address-space.js';
import { DmaApi } from './dma-api.js';
import { Domains } from './domains.js';
import { FaultReporting, type PageResponseMessage } from './fault-reporting.js';
import { Features } from './features.js';
import { IoasidAllocator } from './ioasid.js';
import { FaultQueue } from './io-pgfault.js';
import type { DeviceFeature, DomainType, FaultReport, IommuCoreServices, IommuDomain, IommuOps, IopfQueue, PageResponse, ProbedDevice } from './ops.js';
import { checkOptions, newCounters, type CoreContext, type CoreCounters, type IommuCoreParts } from './options.js';
import { Pasids } from './pasids.js';
import { DeviceRecord, Registry, type BondState, type DeviceFaultHandler, type IommuGroup, type MmExitCallback } from './records.js';
import { Sva, type SvaParam } from './sva.js';
import { CoreTrace } from './trace-kinds.js';

/** What is still in use; all zero after teardown. */
export interface CoreUsage {
  readonly pasids: number;
  readonly domains: number;
  readonly bonds: number;
  readonly pendingRequests: number;
  readonly dmaPages: number;
}

export class IommuCore implements IommuCoreServices {
  /** Every fault of every driver; the core works without listeners. */
  readonly faults: Channel<FaultReport>;
  readonly faults$: Observable<FaultReport>;
  /** Answers on their way to the hardware. */
  readonly responses: Channel<PageResponse>;
  readonly responses$: Observable<PageResponse>;
  readonly counters: CoreCounters;
  readonly dma: DmaApi;
  readonly ioasids: IoasidAllocator;
  private readonly context: CoreContext;
  private readonly registry: Registry;
  private readonly drivers: IommuOps[] = [];
  private readonly pasids: Pasids;
  private readonly sva: Sva;
  private readonly faulting: FaultReporting;
  private readonly domains: Domains;
  private readonly features: Features;

  constructor(parts: IommuCoreParts) {
    const options = parts.options ?? {};
    checkOptions(options);
    this.registry = new Registry();
    this.counters = newCounters();
    this.context = {
      clock: parts.clock, scheduler: parts.scheduler, mailbox: parts.mailbox, timing: parts.timing, log: parts.log, random: parts.random,
      frames: parts.frames, options, defects: parts.defects ?? new Set<string>(), trace: new CoreTrace(parts.trace, options.scope ?? ''),
      registry: this.registry, counters: this.counters,
    };
    this.ioasids = new IoasidAllocator({ log: parts.log, random: parts.random.split('iommu.pasid'), policy: options.pasidPolicy ?? 'lowest' });
    this.pasids = new Pasids(this.context, this.ioasids);
    this.sva = new Sva(this.context, this.pasids);
    this.faulting = new FaultReporting(this.context);
    this.domains = new Domains(this.context);
    this.features = new Features(this.context);
    this.dma = new DmaApi(this.context, this.domains);
    this.faults = this.faulting.faults;
    this.faults$ = this.faults.values$;
    this.responses = this.faulting.responses;
    this.responses$ = this.responses.values$;
  }

  // --- drivers and devices ------------------------------------------------------------------------------------

  /** Makes an architecture's driver known; its fault channel is heard from now on. */
  registerDriver(ops: IommuOps): void {
    this.drivers.push(ops);
    this.faulting.connect(ops);
  }

  /**
   * Probes a device, puts it into the group of that number and attaches the group's domain.
   * @throws Errno ENODEV no driver translates it, EBUSY added already, EINVAL the group is behind another driver
   */
  *addDevice(device: Device, groupId: number): Steps<IommuGroup> {
    if (this.registry.devices.has(device)) throw new Errno('EBUSY', `${device.name} is in a group already`);
    const { ops, probed } = this.probe(device);
    const group = this.domains.groupFor(groupId, ops);
    const record = new DeviceRecord(device, ops, group, probed, this.context.trace.nameOf(device));
    this.registry.devices.set(device, record);
    try {
      yield* group.lock.with(() => this.domains.join(record));
    } catch (error) {
      this.registry.devices.delete(device);
      this.domains.dropIfEmpty(group);
      throw error;
    }
    return group;
  }

  /**
   * The device is gone or leaves: requests are answered INVALID, its context is torn down, its bonds and aux
   * domains end without a drain each.
   * @throws Errno ENODEV unknown device
   */
  *deviceRemove(device: Device): Steps {
    const record = this.registry.recordOf(device);
    yield* record.group.lock.with(() => this.removeLocked(record));
    this.domains.leave(record);
  }

  private *removeLocked(record: DeviceRecord): Steps {
    if (record.removed) throw new Errno('ENODEV', `${record.device.name} has been removed`);
    record.queue?.removeDevice(record.device);
    this.faulting.answerPending(record, 'INVALID');
    record.handler = undefined;
    record.removed = true;
    for (const domain of record.aux === undefined ? [] : [...record.aux.keys()]) yield* this.domains.auxDetachLocked(domain, record, true);
    yield* record.ops.release(record.device);
    this.sva.dropDevice(record);
    yield* this.dma.dropDevice(record);
    this.registry.devices.delete(record.device);
  }

  private probe(device: Device): { ops: IommuOps; probed: ProbedDevice } {
    for (const ops of this.drivers) {
      try {
        return { ops, probed: ops.probe(device) };
      } catch (error) {
        if (!isErrno(error, 'ENODEV')) throw error;
      }
    }
    throw new Errno('ENODEV', `no IOMMU driver translates ${device.name}`);
  }

  /** Stops listening; for teardown. */
  close(): void {
    this.faulting.close();
  }

  // --- features (F1–F6) ---------------------------------------------------------------------------------------

  /** F1: never an error; false without an IOMMU. */
  devHasFeature(device: Device, feature: DeviceFeature): boolean {
    return this.features.has(device, feature);
  }

  /**
   * F2, F6. @throws Errno ENODEV no IOMMU; EBUSY enabled already; EINVAL SVA before IOPF where the device can fault
   * through the IOMMU, or a link of the chain is missing; otherwise what the driver says
   */
  *devEnableFeature(device: Device, feature: DeviceFeature): Steps {
    yield* this.features.enable(device, feature);
  }

  /**
   * F3, F6. @throws Errno EBUSY no IOMMU, or still used: SVA with bonds, IOPF with SVA, AUX with aux domains;
   * EINVAL not enabled
   */
  *devDisableFeature(device: Device, feature: DeviceFeature): Steps {
    yield* this.features.disable(device, feature);
  }

  /** F4: false without an IOMMU. */
  devFeatureEnabled(device: Device, feature: DeviceFeature): boolean {
    return this.features.enabled(device, feature);
  }

  // --- shared virtual addressing (B1–B13, M1–M7) --------------------------------------------------------------

  /**
   * Binds an address space to a device and returns its PASID, one per address space. The caller holds a use of the
   * mm. Binding again adds a reference; each bind needs an unbind.
   * @param mmExit called once when the mm dies before unbind; without it the IOMMU silences the device (M6)
   * @throws Errno ENODEV no IOMMU, or SVA not enabled; EINVAL the device's group has others; ESRCH the mm is dead;
   * EBUSY bound with another mmExit or drvdata; ENOSPC no PASID within the device's limits; or what the driver says
   */
  *svaBind(device: Device, mm: AddressSpace, mmExit?: MmExitCallback, drvdata?: unknown): Steps<number> {
    return yield* this.sva.bind(device, mm, mmExit, drvdata);
  }

  /**
   * Drops one reference; the last one drains the device's requests for the PASID and removes it from the hardware.
   * Waits for a running mm_exit (M4). The driver has stopped the device's use of the PASID before.
   * @throws Errno ENODEV no IOMMU, ESRCH not bound
   */
  *svaUnbind(device: Device, pasid: number): Steps {
    yield* this.sva.unbind(device, pasid);
  }

  /** The PASID of a bond, IOMMU_PASID_INVALID without one (B5). */
  svaGetPasid(device: Device, mm: AddressSpace): number {
    return this.sva.pasidOf(device, mm);
  }

  /** Limits the PASIDs of a device before its first bind (U6). @throws Errno ENODEV, EBUSY, EINVAL */
  setSvaParam(device: Device, param: SvaParam): void {
    this.sva.setParam(device, param);
  }

  /** The address space that owns a PASID; undefined for none. No reference is taken: `get()` it before use. */
  findMm(pasid: number): AddressSpace | undefined {
    return this.registry.bound.get(pasid)?.mm;
  }

  /** Where a bond is in its life (7.3). */
  bondState(device: Device, pasid: number): BondState | 'NONE' {
    return this.sva.bondState(device, pasid);
  }

  // --- faults (R1–R9) -----------------------------------------------------------------------------------------

  /** R1. @throws Errno EINVAL unknown device, EBUSY it has a handler */
  registerDeviceFaultHandler(device: Device, handler: DeviceFaultHandler, data?: unknown): void {
    this.faulting.register(device, handler, data);
  }

  /** R2. @throws Errno EINVAL unknown device, EBUSY requests wait for an answer */
  unregisterDeviceFaultHandler(device: Device): void {
    this.faulting.unregister(device);
  }

  /**
   * R3: hands in a fault beside the driver's channel. A refused recoverable fault is answered by the caller.
   * @throws Errno EINVAL nobody handles it, ENOMEM, or what the handler says
   */
  reportDeviceFault(device: Device, report: FaultReport): void {
    this.faulting.report(device, report);
  }

  /** R4: a handler's answer. @throws Errno ENODEV; EINVAL wrong version, flags or code, nothing pending, no match */
  pageResponse(device: Device, message: PageResponseMessage): void {
    this.faulting.respond(device, message);
  }

  /** Answers everything that waits for the device's handler: its owner is gone (7.1). @throws Errno ENODEV */
  answerPendingFaults(device: Device, code: 'INVALID' | 'FAILURE'): void {
    this.faulting.answerPending(this.registry.recordOf(device), code);
  }

  /**
   * The device is about to be reset, and its DMA has stopped: everything it asked for is answered before it forgets having
   * asked, and groups that it cannot complete any more are dropped (2g, 7.1). Bonds and domains stay.
   */
  *deviceDrain(device: Device): Steps {
    const record = this.registry.devices.get(device);
    if (record === undefined || record.removed) return;
    this.faulting.answerPending(record, 'INVALID');
    if (record.ops.drainPageRequests !== undefined) yield* record.ops.drainPageRequests(device);
    record.queue?.forgetPartial(record);
  }

  // --- groups and domains (C6, X1, X2) ------------------------------------------------------------------------

  /** @throws Errno ENODEV */
  groupOf(device: Device): IommuGroup {
    return this.registry.recordOf(device).group;
  }

  group(id: number): IommuGroup | undefined {
    return this.registry.groups.get(id);
  }

  /** A domain of the driver that serves `device`. @throws Errno ENODEV, or what the driver says */
  domainAlloc(device: Device, type: DomainType): IommuDomain {
    return this.domains.alloc(this.registry.recordOf(device).ops, type);
  }

  /** The device's IOMMU nests: an unmanaged domain can be the second stage of a guest's tables. */
  devCanNest(device: Device): boolean {
    return this.registry.recordOf(device).ops.canNest?.(device) ?? false;
  }

  /** @throws Errno EBUSY attached, EINVAL unknown */
  domainFree(domain: IommuDomain): void {
    this.domains.free(domain);
  }

  /**
   * Lets a domain translate all requests without PASID of a group.
   * @throws Errno EBUSY attached to another domain, or bound address spaces or aux domains are left; EPERM AUX is
   * enabled and the domain is unmanaged (E24); EINVAL another driver's domain
   */
  *attachGroup(domain: IommuDomain, group: IommuGroup): Steps {
    yield* this.domains.attach(domain, group);
  }

  /** Back to the default domain, or to blocked while a user owns the group. @throws Errno EINVAL not attached */
  *detachGroup(domain: IommuDomain, group: IommuGroup): Steps {
    yield* this.domains.detach(domain, group);
  }

  /** Maps [page, page + pages) of a domain. @throws Errno EEXIST overlap, ERANGE aperture, EINVAL misaligned */
  // oxlint-disable-next-line require-yield -- a caching-mode IOMMU may have to wait here
  *map(domain: IommuDomain, page: number, physical: number, pages: number, prot: number): Steps {
    this.domains.map(domain, page, physical, pages, prot);
  }

  /** Unmaps and waits until nobody uses the old entries; returns the pages that were mapped. */
  *unmap(domain: IommuDomain, page: number, pages: number): Steps<number> {
    return yield* this.domains.unmap(domain, page, pages);
  }

  iovaToPhys(domain: IommuDomain, page: number, offset = 0): number | undefined {
    return domain.iovaToPhys(page, offset);
  }

  /**
   * Takes a group's DMA for a user; its devices are blocked until a domain is attached (C6).
   * @throws Errno EPERM it has an owner; EBUSY not on its default domain, or bound address spaces
   */
  *claimDmaOwner(group: IommuGroup, owner: object): Steps {
    yield* this.domains.claim(group, owner);
  }

  /** Back to the kernel, on the default domain. @throws Errno EINVAL not the owner, EBUSY a domain is attached */
  *releaseDmaOwner(group: IommuGroup, owner: object): Steps {
    yield* this.domains.release(group, owner);
  }

  /** A kernel driver binds to a device of the group and uses the DMA API. @throws Errno EBUSY a user owns the group */
  useDefaultDomain(device: Device): void {
    this.domains.useDefault(this.registry.recordOf(device).group);
  }

  unuseDefaultDomain(device: Device): void {
    this.domains.unuseDefault(this.registry.recordOf(device).group);
  }

  /**
   * Lets a domain translate the device's requests with the domain's own PASID; may be repeated, each needs a detach.
   * @throws Errno ENODEV no IOMMU or no PASID; EPERM AUX not enabled (E22) or domain not unmanaged (E23)
   */
  *auxAttach(domain: IommuDomain, device: Device): Steps {
    yield* this.domains.auxAttach(domain, this.registry.recordOf(device));
  }

  /** @throws Errno ENODEV, EINVAL not attached */
  *auxDetach(domain: IommuDomain, device: Device): Steps {
    yield* this.domains.auxDetach(domain, this.registry.recordOf(device));
  }

  /** @throws Errno ENODEV, EINVAL the domain has none on this device (X2) */
  auxGetPasid(domain: IommuDomain, device: Device): number {
    return this.domains.auxPasid(domain, this.registry.recordOf(device));
  }

  // --- what drivers use ---------------------------------------------------------------------------------------

  createIopfQueue(name: string): IopfQueue {
    return new FaultQueue(this.context, name, this.faulting.answer, this.sva.lock);
  }

  allocPasid(first: number, last: number, owner: string): number | undefined {
    return this.pasids.alloc(first, last, owner);
  }

  freePasid(pasid: number): void {
    this.pasids.release(pasid);
  }

  get usage(): CoreUsage {
    let pendingRequests = 0;
    for (const record of this.registry.devices.values()) pendingRequests += record.pending.length + record.groups + record.partials.length;
    return { pasids: this.pasids.live, domains: this.domains.live, bonds: this.sva.bonds, pendingRequests, dmaPages: this.dma.mappedPages };
  }
}
