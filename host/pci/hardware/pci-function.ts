/**
 * An endpoint function: configuration space, BARs, interrupts, its port to the fabric, and what of its state the device
 * behind it needs to know. Everything that is enabled is enabled by bytes in configuration space; the device hears
 * of changes. A virtual function is the same with a `physfn`.
 * PCIe 6.0 chapters 7 (configuration), 9 (SR-IOV), 10 (ATS, PRI), section 6.6.2 (FLR).
 * Left out: power states' effects, expansion ROMs, Advanced Error Reporting.
 */
import { assert } from '../../../sim/assert.js';
import { UnclaimedMmio } from './unclaimed-mmio.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { DmaClient, DmaPort } from '../dma-port.js';
import {
  PCI_ATS_CTRL, PCI_ATS_CTRL_ENABLE, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_FLR,
  PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR, PCI_EXP_DEVSTA, PCI_EXP_DEVSTA_TRPND, PCI_EXP_TYPE_ENDPOINT, PCI_HEADER_TYPE, PCI_PASID_CTRL,
  PCI_MSI_FLAGS, PCI_PASID_CTRL_ENABLE, PCI_PASID_CTRL_EXEC, PCI_PASID_CTRL_PRIV, PCI_PRI_CTRL, PCI_PRI_ALLOC_REQ, PCI_STD_NUM_BARS, type IntxPin, type PciErrorSeverity, type PciExpType,
} from '../spec/index.js';
import { Bar, BarWindow, type BarOptions } from './bar.js';
import { ConfigSpace } from './config-space.js';
import { noteError } from './error-report.js';
import type { Fabric } from './fabric.js';
import {
  addAcs, addAts, addExpress, addPasid, addPowerManagement, addSiov, buildHeader, type AtsOptions, type IdentityOptions, type PasidOptions,
} from './function-config.js';
import { FunctionPort } from './function-port.js';
import { Intx } from './intx.js';
import { Msi, type MsiOptions } from './msi.js';
import { Msix, MsixWindow, type MsixOptions } from './msix.js';
import { PageRequestInterface, type PageRequestOptions } from './page-request-interface.js';
import type { PeerWindow } from './peer-access.js';
import { PciNode } from './pci-node.js';
import { SrIov, type SrIovOptions } from './sr-iov.js';

export type ResetKind = 'flr' | 'bus';
/** What changed in a function; `reset` and `removed` end everything that was under way. */
export type FunctionChange = 'bus-master' | 'ats' | 'pasid' | 'pri' | 'msi' | 'msix' | 'intx' | 'reset' | 'removed';

export interface PciFunctionOptions extends IdentityOptions {
  readonly name: string;
  readonly deviceType?: PciExpType;
  readonly bars?: readonly BarOptions[];
  readonly msi?: MsiOptions;
  readonly msix?: MsixOptions;
  /** Interrupt Pin; a virtual function has none. */
  readonly intx?: IntxPin;
  readonly ats?: AtsOptions;
  readonly pri?: PageRequestOptions;
  readonly pasid?: PasidOptions;
  /** PCI_ACS_* bits of a multifunction device. */
  readonly acs?: number;
  readonly siov?: boolean;
  readonly sriov?: SrIovOptions;
  /** Power management capability. */
  readonly pm?: boolean;
  readonly flr: boolean;
  readonly e2eTlpPrefix: boolean;
  readonly client: DmaClient;
  /** The device forgets its state; registers are back at their reset values when this returns. */
  readonly onReset?: (kind: ResetKind) => void;
  readonly onFeatureChange?: (change: FunctionChange) => void;
  /** Lets a test put a port that holds operations between device and fabric. */
  readonly wrapPort?: (port: FunctionPort) => DmaPort;
  /** The physical function of a virtual one. */
  readonly physfn?: PciFunction;
  /** `pci.ignore-bus-master`, `pci.translated-without-ats`, `pci.ignore-pri-allocation`, `pci.msix-ignore-mask`, `pci.msi-ignore-mask`, `pci.intx-ignore-disable` */
  readonly defects?: ReadonlySet<string>;
}

/** What the way to the root complex allows; the topology computes it. */
export interface FunctionPath {
  readonly forwards: boolean;
  readonly translationBlocked: boolean;
  readonly takesPrefixes: boolean;
  readonly peers: readonly PeerWindow[] | undefined;
  readonly translatedPeers: readonly PeerWindow[] | undefined;
}

/** Takes a function's interrupts as numbers of vectors and the level of its pin. */
export interface InterruptDelivery {
  msi(vector: number): void;
  msix(vector: number): void;
  intx(high: boolean): void;
}

export interface BarDecode {
  readonly bar: number;
  readonly start: number;
  readonly sizeBytes: number;
  readonly mmio: Mmio;
}

const NO_PATH: FunctionPath = { forwards: false, translationBlocked: false, takesPrefixes: false, peers: undefined, translatedPeers: undefined };

export class PciFunction extends PciNode {
  readonly config = new ConfigSpace();
  readonly port: DmaPort;
  /** The fabric's end of `port`; the same unless a test wrapped it. */
  readonly fabricPort: FunctionPort;
  readonly bars: (Bar | undefined)[] = Array.from({ length: PCI_STD_NUM_BARS }, () => undefined);
  readonly msi: Msi | undefined;
  readonly msix: Msix | undefined;
  /** Set by the topology: an error message for the root complex. */
  onErrorMessage: ((severity: PciErrorSeverity) => void) | undefined;
  /** The page request interface, a virtual function's is its physical function's. */
  readonly pri: PageRequestInterface | undefined;
  readonly sriov: SrIov | undefined;
  readonly physfn: PciFunction | undefined;
  /** End-end TLP prefixes are supported (device capabilities 2). */
  readonly e2eTlpPrefix: boolean;
  /** PASID control changed while ATS was on: undefined by PCIe 6.0 section 7.8.9.3 (A2). */
  violations = 0;
  busMaster = false;
  atsEnabled = false;
  private readonly intx: Intx | undefined;
  private readonly express: number;
  private readonly ats: number;
  private readonly pasid: number;
  private readonly pasidOptions: PasidOptions | undefined;
  private readonly windows: (Mmio | undefined)[] = [];
  private readonly listeners: ((change: FunctionChange) => void)[] = [];
  private readonly onReset: ((kind: ResetKind) => void) | undefined;
  private path = NO_PATH;
  private fabric: Fabric | undefined;

  constructor(options: PciFunctionOptions) {
    super(options.name);
    const { config } = this, defects = options.defects ?? new Set<string>();
    const virtual = options.physfn !== undefined;
    assert(!virtual || options.intx === undefined, `${options.name}: a virtual function has no interrupt pin`);
    assert(!virtual || (options.pri === undefined && options.pasid === undefined && options.sriov === undefined), `${options.name}: PRI, PASID and SR-IOV belong to the physical function`);
    this.physfn = options.physfn;
    this.e2eTlpPrefix = options.e2eTlpPrefix;
    this.onReset = options.onReset;
    if (options.onFeatureChange !== undefined) this.listeners.push(options.onFeatureChange);
    buildHeader(config, options, virtual);
    if (options.pm === true) addPowerManagement(config);
    this.express = addExpress(config, options.deviceType ?? PCI_EXP_TYPE_ENDPOINT, options);
    this.msi = options.msi === undefined
      ? undefined
      : new Msi(config, options.msi, (address, data) => this.port.messageInterrupt(address, data), defects.has('pci.msi-ignore-mask'));
    this.intx = options.intx === undefined
      ? undefined
      : new Intx({ pin: options.intx, config, messageSignalled: () => this.messageSignalled, ignoreDisable: defects.has('pci.intx-ignore-disable') });
    this.msix = options.msix === undefined
      ? undefined
      : new Msix(config, options.msix, (address, data) => this.port.messageInterrupt(address, data), defects.has('pci.msix-ignore-mask'));
    if (options.acs !== undefined) addAcs(config, options.acs);
    this.ats = options.ats === undefined ? 0 : addAts(config, options.ats, virtual);
    this.pasidOptions = virtual ? this.physfn!.pasidOptions : options.pasid;
    this.pasid = options.pasid === undefined ? 0 : addPasid(config, options.pasid);
    this.pri = virtual
      ? this.physfn!.pri
      : options.pri === undefined ? undefined : new PageRequestInterface(config, options.pri, defects.has('pci.ignore-pri-allocation'));
    if (options.siov === true) addSiov(config);
    this.sriov = options.sriov === undefined ? undefined : new SrIov(this, options.sriov);
    this.buildBars(options.bars ?? []);
    this.fabricPort = new FunctionPort({ client: options.client, pri: this.pri, defects, onPending: (pending) => this.config.setBits(this.express + PCI_EXP_DEVSTA, 2, PCI_EXP_DEVSTA_TRPND, pending) });
    this.port = options.wrapPort === undefined ? this.fabricPort : options.wrapPort(this.fabricPort);
    this.attachHooks(options);
    config.seal();
  }

  get requesterId(): number {
    return this.fabricPort.requesterId;
  }

  /** Makes the device a liar: its requests carry another requester id (undefined: its own again). For tests of source validation. */
  forgeRequesterId(requesterId: number | undefined): void {
    this.fabricPort.forgedId = requesterId;
    this.fabricPort.sourceId = requesterId ?? this.fabricPort.requesterId;
    this.onRoutingChange?.('tree');
  }

  get pasidEnabled(): boolean {
    return (this.pasidControl & PCI_PASID_CTRL_ENABLE) !== 0;
  }

  get pasidExecuteEnabled(): boolean {
    return (this.pasidControl & PCI_PASID_CTRL_EXEC) !== 0;
  }

  get pasidPrivilegedEnabled(): boolean {
    return (this.pasidControl & PCI_PASID_CTRL_PRIV) !== 0;
  }

  /** Bits of a PASID; 0 without the capability. */
  get pasidWidth(): number {
    return this.pasidOptions?.width ?? 0;
  }

  get priEnabled(): boolean {
    return this.pri?.enabled ?? false;
  }

  /** Outstanding page requests that software allows; 0 without the capability. */
  get priAllocation(): number {
    return this.pri?.allocation ?? 0;
  }

  get prgResponsePasidRequired(): boolean {
    return this.pri?.prgResponsePasidRequired ?? false;
  }

  /** Memory space enable; a virtual function's is in its physical function's SR-IOV control. */
  get memoryEnabled(): boolean {
    if (this.physfn !== undefined) return this.physfn.sriov!.memoryEnabled;
    return (this.config.get(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) !== 0;
  }

  /** Calls `listener` after every change, until the end of the function. */
  listen(listener: (change: FunctionChange) => void): void {
    this.listeners.push(listener);
  }

  /** Has an interrupt pin. */
  get hasIntx(): boolean {
    return this.intx !== undefined;
  }

  /**
   * Hands interrupts, behind their masks and enables, to who serves this function to somebody else's machine, instead
   * of to the fabric and the interrupt controller; undefined ends that.
   */
  deliverInterrupts(sink: InterruptDelivery | undefined): void {
    if (this.msi !== undefined) this.msi.deliver = sink === undefined ? undefined : (vector) => sink.msi(vector);
    if (this.msix !== undefined) this.msix.deliver = sink === undefined ? undefined : (vector) => sink.msix(vector);
    this.intx?.deliverTo(sink === undefined ? undefined : (high) => sink.intx(high));
  }

  /** The device wants to interrupt; masks, pending bits and enables are honoured. */
  raiseMsix(vector: number): void {
    assert(this.msix !== undefined, `${this.name} has no MSI-X`);
    this.msix.raise(vector);
  }

  /** The same with MSI. */
  raiseMsi(vector: number): void {
    assert(this.msi !== undefined, `${this.name} has no MSI`);
    this.msi.raise(vector);
  }

  /** MSI or MSI-X is enabled: the function must not use INTx. */
  get messageSignalled(): boolean {
    return (this.msi?.enabled ?? false) || (this.msix?.enabled ?? false);
  }

  /** The device's legacy interrupt, level-triggered; Interrupt Disable and enabled MSI or MSI-X are honoured. */
  setIntx(level: boolean): void {
    assert(this.intx !== undefined, `${this.name} has no interrupt pin`);
    this.intx.set(level);
  }

  /** The function detected an error: status bits, and a message to the root complex where software enabled it. */
  reportError(severity: PciErrorSeverity): void {
    if (!this.present && this.physfn?.present !== true) return;
    if (noteError(this.config, this.express, severity)) this.onErrorMessage?.(severity);
  }

  /** The registers behind a BAR, as a CPU reaches them: all ones while memory space is disabled or the function gone. */
  window(bar: number): Mmio | undefined {
    return this.windows[bar];
  }

  /** BARs that decode now. */
  decodes(): BarDecode[] {
    if (!this.present || !this.memoryEnabled) return [];
    if (this.physfn !== undefined) return this.physfn.sriov!.decodesOf(this);
    return this.bars.flatMap((bar, index) => {
      const start = bar?.address, mmio = this.windows[index];
      return bar === undefined || start === undefined || mmio === undefined ? [] : [{ bar: index, start, sizeBytes: bar.sizeBytes, mmio }];
    });
  }

  /** Function level reset, or a reset of the bus it is on: everything enabled is off, everything under way has ended. */
  reset(kind: ResetKind): void {
    this.fabricPort.abandon();
    this.sriov?.disable();
    const traced = this.fabric?.traced;
    traced?.trace.record(traced.reset, 0, this.requesterId, traced.trace.intern(kind));
    const multifunction = this.config.get(PCI_HEADER_TYPE, 1);
    this.config.reset();
    this.config.set(PCI_HEADER_TYPE, 1, multifunction);
    this.busMaster = false;
    this.atsEnabled = false;
    this.msix?.functionReset();
    this.intx?.set(false);
    if (this.physfn === undefined) this.pri?.functionReset();
    this.updateRights();
    this.notify('reset');
    this.onReset?.(kind);
    this.onRoutingChange?.('tree');
  }

  /** @internal the topology tells the way to the root complex */
  setPath(fabric: Fabric, path: FunctionPath): void {
    this.fabric = fabric;
    this.fabricPort.connect(fabric);
    this.path = path;
    this.intx?.route(this, fabric.interrupts);
    this.updateRights();
  }

  /** @internal the function is gone, from one moment to the next */
  removed(): void {
    if (this.path === NO_PATH) return;
    this.sriov?.disable();
    this.path = NO_PATH;
    this.intx?.route(this, undefined);
    this.updateRights();
    this.notify('removed');
  }

  private buildBars(declared: readonly BarOptions[]): void {
    for (const options of declared) {
      const { index } = options;
      assert(this.bars[index] === undefined && this.windows[index] === undefined, `${this.name}: BAR ${index} twice`);
      if (this.physfn === undefined) this.bars[index] = new Bar(this.config, options);
      let target: Mmio | undefined = options.mmio;
      if (this.msix !== undefined && (this.msix.options.tableBar === index || this.msix.options.pbaBar === index)) {
        target = new MsixWindow(this.msix, index, target);
      }
      this.windows[index] = new BarWindow(target ?? new UnclaimedMmio(), () => this.present && this.memoryEnabled);
    }
    const table = this.msix?.options.tableBar;
    assert(table === undefined || this.windows[table] !== undefined, `${this.name}: the MSI-X table is in BAR ${table}, which does not exist`);
  }

  private get pasidControl(): number {
    const owner = this.physfn ?? this;
    return owner.pasid === 0 ? 0 : owner.config.get(owner.pasid + PCI_PASID_CTRL, 2);
  }

  private attachHooks(options: PciFunctionOptions): void {
    const { config } = this;
    config.onWrite(PCI_COMMAND, 2, (_written, previous) => this.writeCommand(previous));
    for (const bar of this.bars) {
      if (bar === undefined) continue;
      config.onWrite(bar.offset, 4, () => this.onRoutingChange?.('windows'));
      if (bar.is64) config.onWrite(bar.offset + 4, 4, () => this.onRoutingChange?.('windows'));
    }
    config.onWrite(this.express + PCI_EXP_DEVCTL, 2, (written) => {
      const capable = (config.get(this.express + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR) !== 0;
      if (capable && (written & PCI_EXP_DEVCTL_BCR_FLR) !== 0) this.reset('flr');
    });
    if (this.ats !== 0) config.onWrite(this.ats + PCI_ATS_CTRL, 2, () => this.writeAts());
    if (this.pasid !== 0) config.onWrite(this.pasid + PCI_PASID_CTRL, 2, (_written, previous) => this.writePasid(previous));
    if (options.pri !== undefined && this.pri !== undefined) {
      const at = this.pri.offset;
      config.onWrite(at + PCI_PRI_CTRL, 2, (written) => this.traceWrite('pri_ctrl', written));
      config.onWrite(at + PCI_PRI_ALLOC_REQ, 4, (written) => {
        this.traceWrite('pri_alloc', written);
        this.notify('pri');
      });
      this.pri.listen((event) => {
        if (event === 'enabled' || event === 'disabled' || event === 'failed') this.featureChanged('pri');
      });
    }
    if (this.msi !== undefined) config.onWrite(this.msi.offset + PCI_MSI_FLAGS, 2, () => this.interruptsChanged('msi'));
    if (this.msix !== undefined) config.onWrite(this.msix.offset + 2, 2, () => this.interruptsChanged('msix'));
  }

  private writeCommand(previous: number): void {
    const command = this.config.get(PCI_COMMAND, 2);
    if (((command ^ previous) & PCI_COMMAND_MASTER) !== 0) {
      this.busMaster = (command & PCI_COMMAND_MASTER) !== 0;
      this.traceWrite('command', command);
      this.featureChanged('bus-master');
    }
    if (this.intx !== undefined && ((command ^ previous) & PCI_COMMAND_INTX_DISABLE) !== 0) this.interruptsChanged('intx');
    if (((command ^ previous) & PCI_COMMAND_MEMORY) !== 0) this.onRoutingChange?.('windows');
  }

  private writeAts(): void {
    const control = this.config.get(this.ats + PCI_ATS_CTRL, 2);
    this.atsEnabled = (control & PCI_ATS_CTRL_ENABLE) !== 0;
    this.traceWrite('ats_ctrl', control);
    this.featureChanged('ats');
  }

  private writePasid(previous: number): void {
    const control = this.config.get(this.pasid + PCI_PASID_CTRL, 2);
    this.traceWrite('pasid_ctrl', control);
    if (control === previous) return;
    if (this.atsEnabled) {
      this.violations++;
      const traced = this.fabric?.traced;
      traced?.trace.record(traced.violation, 0, this.requesterId, traced.trace.intern('PASID control changed while ATS is enabled'));
    }
    this.featureChanged('pasid');
    for (const vf of this.sriov?.functions ?? []) vf.featureChanged('pasid');
  }

  private interruptsChanged(change: FunctionChange): void {
    this.intx?.update();
    this.notify(change);
  }

  private featureChanged(change: FunctionChange): void {
    this.updateRights();
    this.notify(change);
  }

  private traceWrite(register: string, value: number): void {
    const traced = this.fabric?.traced;
    traced?.trace.record(traced.configWrite, 0, this.requesterId, traced.trace.intern(register), value);
  }

  private notify(change: FunctionChange): void {
    for (const listener of this.listeners) listener(change);
  }

  private updateRights(): void {
    const { path } = this;
    this.fabricPort.setRights({
      present: this.present,
      busMaster: this.busMaster,
      pathForwards: path.forwards,
      translationBlocked: path.translationBlocked,
      atsCapable: this.ats !== 0,
      atsEnabled: this.atsEnabled,
      pasidLimit: this.pasidEnabled && path.takesPrefixes ? 2 ** this.pasidWidth : 0,
      executeEnabled: this.pasidExecuteEnabled,
      privilegedEnabled: this.pasidPrivilegedEnabled,
      peers: path.peers,
      translatedPeers: path.translatedPeers,
    });
  }
}
