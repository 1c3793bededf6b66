/**
 * One PCI function in the kernel (`struct pci_dev`): its identity and capabilities as read from config space once,
 * its resources as enumeration assigned them, and the operations of the `PciDevice` interface. Everything acts
 * through config space bytes and BAR windows. Left out: power management, I/O BARs, VPD, ARI.
 */
import { Errno } from '../../../sim/errno.js';
import type { Clock } from '../../../sim/clock.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { Steps } from '../../../sim/task.js';
import type { KernelLog } from '../../kernel-log.js';
import type { SystemBus } from '../../system-bus.js';
import {
  formatBdf, PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CLASS_REVISION, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_DEVICE_ID,
  PCI_EXP_DEVCAP2, PCI_EXP_DEVCAP2_EE_PREFIX, PCI_EXP_FLAGS, PCI_EXP_FLAGS_TYPE, PCI_EXP_TYPE_RC_END, PCI_EXP_TYPE_ROOT_PORT,
  PCI_EXT_CAP_ID_ACS, PCI_HEADER_TYPE, PCI_HEADER_TYPE_BRIDGE, PCI_HEADER_TYPE_MASK, PCI_HEADER_TYPE_MFD, PCI_VENDOR_ID,
  requesterIdOf, SIOV_DVSEC_ID, SIOV_DVSEC_VENDOR,
} from '../spec/index.js';
import { TranslationFeatures } from './ats.js';
import { BarWindow } from './bar-window.js';
import { findDvsec, listCapabilities, listExtCapabilities } from './capability-list.js';
import { FunctionConfig, updateWord } from './config-access.js';
import { IntxInterrupt } from './intx.js';
import { MsiVectors } from './msi.js';
import { MsixVectors } from './msix.js';
import { resetFunction, resetMethods } from './reset.js';
import type { AddressRange } from './address-range.js';
import type { BarResource } from './bars.js';
import type { CapabilityEntry } from './capability-list.js';
import type { ConfigAccess } from './config-access.js';
import type { InterruptAllocator } from './msix.js';
import type { PciDevice, PciResetMethod } from './pci-device.js';
import type { Sriov } from './sriov.js';

/** What functions need of the kernel around them. */
export interface PciServices {
  readonly access: ConfigAccess;
  readonly systemBus: SystemBus;
  readonly interrupts: InterruptAllocator;
  readonly clock: Clock;
  readonly log: KernelLog;
  readonly defects: ReadonlySet<string>;
  /** An IOMMU is there: isolation is switched on where it can be (`pci_request_acs`). */
  readonly requestAcs: boolean;
  /** Told before a function is reset and after its state is back. */
  resetPrepare(device: PciFunctionDevice): Steps;
  /** Told when it does no DMA any more, before the reset itself. */
  resetQuiet(device: PciFunctionDevice): Steps;
  resetDone(device: PciFunctionDevice): Steps;
}

export interface FunctionPlace {
  readonly segment: number;
  readonly bus: number;
  readonly devfn: number;
  /** The bridge above; undefined on a root bus. */
  readonly upstream: PciFunctionDevice | undefined;
  /** The physical function and the VF's number from 0. */
  readonly virtual?: { readonly physfn: PciFunctionDevice; readonly index: number };
  /** A port that leads out of the machine: what is below is not trusted. */
  readonly externalFacing?: boolean;
}

export class PciFunctionDevice implements PciDevice {
  readonly name: string;
  readonly segment: number;
  readonly bus: number;
  readonly devfn: number;
  readonly sourceId: number;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  readonly revision: number;
  readonly multifunction: boolean;
  readonly isBridge: boolean;
  readonly config: FunctionConfig;
  readonly upstream: PciFunctionDevice | undefined;
  readonly physfn: PciFunctionDevice | undefined;
  readonly externalFacing: boolean;
  readonly untrusted: boolean;
  readonly capabilities: readonly CapabilityEntry[];
  readonly extCapabilities: readonly CapabilityEntry[];
  /** Device/port type of the PCI Express capability; undefined for conventional PCI. */
  readonly pcieType: number | undefined;
  readonly acsCapability: number | undefined;
  /** End-end TLP prefixes pass from here to the root complex (`eetlp_prefix_path`). */
  readonly prefixPath: boolean;
  readonly siov: boolean;
  readonly translation: TranslationFeatures;
  readonly msix: MsixVectors;
  readonly msi: MsiVectors;
  readonly intxInterrupt: IntxInterrupt;
  /** Memory BARs in register order. */
  bars: BarResource[] = [];
  /** A bridge's windows, once it forwards memory. */
  memoryWindow: AddressRange | undefined;
  prefetchableWindow: AddressRange | undefined;
  /** The SR-IOV capability of a physical function. */
  sriov: Sriov | undefined;
  /** Functions right below a bridge. */
  readonly children: PciFunctionDevice[] = [];
  /** A reset is on: what config space reads says nothing about presence. */
  resetting = false;
  /** Something was plugged or pulled since the reset began: a function that does not answer is not waited for. */
  presenceChanged = false;
  private readonly services: PciServices;

  constructor(services: PciServices, place: FunctionPlace) {
    this.services = services;
    const { segment, bus, devfn, upstream, virtual } = place;
    this.segment = segment;
    this.bus = bus;
    this.devfn = devfn;
    this.sourceId = requesterIdOf(bus, devfn);
    this.name = formatBdf(segment, bus, devfn);
    this.upstream = upstream;
    this.physfn = virtual?.physfn;
    const config = (this.config = new FunctionConfig(services.access, segment, bus, devfn));
    // a VF's ids read as ffff (PCIe 6.0 section 9.3.4.1.1)
    this.vendorId = virtual === undefined ? config.read(PCI_VENDOR_ID, 2) : virtual.physfn.vendorId;
    this.deviceId = virtual === undefined ? config.read(PCI_DEVICE_ID, 2) : virtual.physfn.sriov!.vfDeviceId;
    const revision = config.read(PCI_CLASS_REVISION, 4);
    this.classCode = revision >>> 8;
    this.revision = revision & 0xff;
    const header = config.read(PCI_HEADER_TYPE, 1);
    this.isBridge = (header & PCI_HEADER_TYPE_MASK) === PCI_HEADER_TYPE_BRIDGE;
    this.multifunction = virtual === undefined && (header & PCI_HEADER_TYPE_MFD) !== 0;
    this.externalFacing = place.externalFacing ?? false;
    this.untrusted = upstream !== undefined && (upstream.untrusted || upstream.externalFacing);
    this.capabilities = listCapabilities(config);
    const express = this.findCapability(PCI_CAP_ID_EXP);
    // extended config space is there for PCI Express only
    this.extCapabilities = express === undefined ? [] : listExtCapabilities(config);
    this.pcieType = express === undefined ? undefined : (config.read(express + PCI_EXP_FLAGS, 2) & PCI_EXP_FLAGS_TYPE) >> 4;
    this.acsCapability = this.findExtCapability(PCI_EXT_CAP_ID_ACS);
    this.prefixPath = express !== undefined && this.hasPrefixPath(express);
    this.siov = findDvsec(config, this.extCapabilities, SIOV_DVSEC_VENDOR, SIOV_DVSEC_ID) !== undefined;
    this.translation = new TranslationFeatures({
      name: this.name,
      config,
      findExtCapability: (id) => this.findExtCapability(id),
      physfn: this.physfn?.translation,
      trusted: !this.untrusted,
      prefixPath: this.prefixPath,
      defects: services.defects,
    });
    this.msix = new MsixVectors(this, this.findCapability(PCI_CAP_ID_MSIX), services.interrupts);
    this.msi = new MsiVectors(this, this.findCapability(PCI_CAP_ID_MSI), services.interrupts);
    this.intxInterrupt = new IntxInterrupt({ name: this.name, config, devfn, upstream, interrupts: services.interrupts, virtual: virtual !== undefined || this.isBridge });
  }

  /** False from the first read that nobody answered; asks the PF for a VF, whose ids read as ffff anyway. */
  get present(): boolean {
    if (this.config.disconnected) return false;
    if (this.resetting || this.physfn?.resetting) return true;
    const here = this.physfn === undefined ? this.config.read(PCI_VENDOR_ID, 2) !== 0xffff : this.physfn.present;
    if (!here) this.config.disconnected = true;
    return here;
  }

  findCapability(id: number): number | undefined {
    return this.capabilities.find((entry) => entry.id === id)?.offset;
  }

  findExtCapability(id: number): number | undefined {
    return this.extCapabilities.find((entry) => entry.id === id)?.offset;
  }

  get pasidSupported(): boolean {
    return this.translation.pasidSupported;
  }

  /** Of a VF: its PF's. */
  get pasidEnabled(): boolean {
    return (this.physfn ?? this).translation.pasidEnabled;
  }

  get pasidFeatures(): number {
    return this.translation.pasidFeatures;
  }

  maxPasids(): number {
    return this.translation.maxPasids();
  }

  enablePasid(features: number): void {
    this.translation.enablePasid(features);
  }

  disablePasid(): void {
    this.translation.disablePasid();
  }

  get atsSupported(): boolean {
    return this.translation.atsSupported;
  }

  get atsEnabled(): boolean {
    return this.translation.atsEnabled;
  }

  get atsQueueDepth(): number {
    return this.translation.atsQueueDepth;
  }

  enableAts(pageShift: number): void {
    this.translation.enableAts(pageShift);
  }

  disableAts(): void {
    this.translation.disableAts();
  }

  get priSupported(): boolean {
    return this.translation.priSupported;
  }

  /** Of a VF: its PF's. */
  get priEnabled(): boolean {
    return (this.physfn ?? this).translation.priEnabled;
  }

  get prgResponsePasidRequired(): boolean {
    return this.translation.prgResponsePasidRequired;
  }

  enablePri(maxRequests: number): void {
    this.translation.enablePri(maxRequests);
  }

  disablePri(): void {
    this.translation.disablePri();
  }

  resetPri(): void {
    this.translation.resetPri();
  }

  setMaster(on: boolean): void {
    updateWord(this.config, PCI_COMMAND, on ? 0 : PCI_COMMAND_MASTER, on ? PCI_COMMAND_MASTER : 0);
  }

  ioremap(bar: number): Mmio {
    const resource = this.resource(bar);
    if (resource === undefined) throw new Errno('EINVAL', `BAR ${bar} of ${this.name} is not implemented or has no address`);
    return new BarWindow(this.services.systemBus, resource.start);
  }

  resource(bar: number): { readonly start: number; readonly sizeBytes: number } | undefined {
    const found = this.bars.find((entry) => entry.index === bar);
    return found?.start === undefined ? undefined : { start: found.start, sizeBytes: found.sizeBytes };
  }

  get msixVectors(): number {
    return this.msix.supported;
  }

  get msiVectors(): number {
    return this.msi.supported;
  }

  allocIrqs(name: string, handlers: readonly (() => void)[]): void {
    if (this.findCapability(PCI_CAP_ID_MSIX) === undefined && this.findCapability(PCI_CAP_ID_MSI) !== undefined) {
      this.allocMsi(name, handlers);
      return;
    }
    if (this.msi.count > 0) throw new Errno('EINVAL', `MSI-X: device ${this.name} has MSI enabled`);
    this.msix.enable(name, handlers);
  }

  allocMsi(name: string, handlers: readonly (() => void)[]): void {
    if (this.msix.count > 0) throw new Errno('EINVAL', `MSI: device ${this.name} has MSI-X enabled`);
    this.msi.enable(name, handlers);
  }

  freeIrqs(): void {
    this.msix.disable();
    this.msi.disable();
  }

  get interruptPin(): number {
    return this.intxInterrupt.pin;
  }

  requestIntx(name: string, handler: () => boolean, options: { readonly exclusive?: boolean } = {}): void {
    this.intxInterrupt.request(name, handler, options.exclusive);
  }

  freeIntx(): void {
    this.intxInterrupt.free();
  }

  intx(enable: boolean): void {
    this.intxInterrupt.set(enable);
  }

  get intxMaskSupported(): boolean {
    return this.intxInterrupt.maskSupported;
  }

  checkAndMaskIntx(): boolean {
    return this.intxInterrupt.checkAndMask();
  }

  checkAndUnmaskIntx(): boolean {
    return this.intxInterrupt.checkAndUnmask();
  }

  disableIntxLine(): void {
    this.intxInterrupt.disableLine();
  }

  enableIntxLine(): void {
    this.intxInterrupt.enableLine();
  }

  /** This function, its virtual functions, and everything below when it is a bridge; parents first, in the order of the bus. */
  get subtree(): PciFunctionDevice[] {
    return [this, ...(this.sriov?.functions ?? []), ...this.children.flatMap((child) => child.subtree)];
  }

  get resetMethods(): readonly PciResetMethod[] {
    return resetMethods(this);
  }

  reset(): Steps {
    return resetFunction(this, this.services);
  }

  private hasPrefixPath(express: number): boolean {
    if ((this.config.read(express + PCI_EXP_DEVCAP2, 4) & PCI_EXP_DEVCAP2_EE_PREFIX) === 0) return false;
    if (this.pcieType === PCI_EXP_TYPE_ROOT_PORT || this.pcieType === PCI_EXP_TYPE_RC_END) return true;
    return this.upstream?.prefixPath ?? false;
  }
}
