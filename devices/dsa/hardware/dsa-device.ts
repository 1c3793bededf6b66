/**
 * The accelerator as a PCI function 8086:0b25: BAR 0 registers and MSI-X, BAR 2 portals, ATS, PRI, PASID, function
 * level reset. What is enabled follows from the function's configuration bytes; the core behind it does the work.
 * Left out: SR-IOV, power management.
 */
import type { Clock } from '../../../sim/clock.js';
import type { Scheduler } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { DmaPort } from '../../../host/pci/dma-port.js';
import type { FunctionPort } from '../../../host/pci/hardware/function-port.js';
import { PciFunction, type FunctionChange } from '../../../host/pci/hardware/pci-function.js';
import { Requester } from '../../../host/pci/hardware/requester.js';
import { PCI_EXP_TYPE_ENDPOINT, PCI_EXP_TYPE_RC_END } from '../../../host/pci/spec/index.js';
import type { Timing } from '../../../host/timing.js';
import { DSA_CLASS_CODE, DSA_DEVICE_ID, DSA_VENDOR_ID, msixPlace, PORTALS_BAR, REGISTERS_BAR } from '../spec/registers.js';
import { DEFAULT_DSA_CONFIG, DsaCore, layoutOf, type DsaConfig, type FunctionSide } from './dsa-core.js';
import type { MemoryAccess } from './access.js';
import type { DescriptorReport } from './job.js';
import { RequesterAccess } from './requester-access.js';

export interface DsaDeviceConfig extends Partial<DsaConfig> {
  /** Address translation services; on unless false. */
  readonly ats?: boolean;
  /** Page requests: capacity (default 512), and how many pages a group asks for (default 1). False: no PRI. */
  readonly pri?: { readonly maxRequests?: number; readonly groupPages?: number; readonly prgResponsePasidRequired?: boolean } | false;
  /** 1..20, default 20; 0 is no PASID capability. */
  readonly pasidBits?: number;
  /** Announces scalable I/O virtualization. */
  readonly siov?: boolean;
  /** ATS invalidate queue depth, default 32. */
  readonly invalidateQueueDepth?: number;
  /** Root complex integrated endpoint, as the real part; false for one behind a port. Default true. */
  readonly integrated?: boolean;
  /** Entries of the translation cache, a power of two. */
  readonly atcEntries?: number;
}

export interface DsaDeviceOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly config?: DsaDeviceConfig;
  /** Called at the end of every descriptor, dropped ones included. */
  readonly onComplete?: (report: DescriptorReport) => void;
  /** Lets a test put a port that holds operations between device and fabric. */
  readonly wrapPort?: (port: FunctionPort) => DmaPort;
  /**
   * `dsa.completion-before-data`, `dsa.ignore-abort`, `dsa.drain-returns-early`, `dsa.ignore-threshold`,
   * `dsa.drop-pasid`; those of the PCI function and requester are passed on.
   */
  readonly defects?: ReadonlySet<string>;
}

const DEFAULT_PAGE_REQUESTS = 512;

export class DsaDevice implements FunctionSide {
  /** What is plugged into a bus. */
  readonly function: PciFunction;
  readonly core: DsaCore;
  readonly requester: Requester;
  private readonly clock: Clock;
  private readonly groupPages: number;
  private readonly defects: ReadonlySet<string>;

  constructor(options: DsaDeviceOptions) {
    const { name, clock, scheduler, timing, trace } = options;
    const config = options.config ?? {};
    const defects = options.defects ?? new Set<string>();
    this.clock = clock;
    this.defects = defects;
    const pri = config.pri ?? {};
    this.groupPages = pri === false ? 1 : pri.groupPages ?? 1;
    const core = coreConfig(config);
    const layout = layoutOf(core), msix = msixPlace(layout);
    this.core = new DsaCore({
      name, clock, scheduler, timing, trace, config: core, side: this, defects,
      ...(options.onComplete === undefined ? {} : { onComplete: options.onComplete }),
    });
    this.requester = new Requester({ name, clock, scheduler, timing, defects, ...(config.atcEntries === undefined ? {} : { atcEntries: config.atcEntries }) });
    const pasidBits = config.pasidBits ?? 20;
    this.function = new PciFunction({
      name, vendorId: DSA_VENDOR_ID, deviceId: DSA_DEVICE_ID, classCode: DSA_CLASS_CODE, client: this.requester, defects,
      deviceType: config.integrated === false ? PCI_EXP_TYPE_ENDPOINT : PCI_EXP_TYPE_RC_END,
      bars: [
        { index: REGISTERS_BAR, sizeBytes: msix.barBytes, prefetchable: true, is64: true, mmio: this.core.registers },
        { index: PORTALS_BAR, sizeBytes: this.core.portals.sizeBytes, prefetchable: true, is64: true, mmio: this.core.portals },
      ],
      msix: { vectors: layout.vectors, tableBar: REGISTERS_BAR, tableOffset: msix.tableOffset, pbaOffset: msix.pbaOffset },
      ...(config.ats === false ? {} : { ats: { queueDepth: config.invalidateQueueDepth ?? 32, pageAligned: true } }),
      ...(pri === false ? {} : { pri: { maxRequests: pri.maxRequests ?? DEFAULT_PAGE_REQUESTS, prgResponsePasidRequired: pri.prgResponsePasidRequired ?? true } }),
      ...(pasidBits === 0 ? {} : { pasid: { width: pasidBits, exec: true, priv: true } }),
      siov: config.siov ?? false, flr: true, e2eTlpPrefix: pasidBits > 0,
      onReset: () => this.core.functionReset(),
      onFeatureChange: (change) => this.changed(change),
      ...(options.wrapPort === undefined ? {} : { wrapPort: options.wrapPort }),
    });
    this.requester.attach(this.function);
  }

  get busMaster(): boolean {
    return this.function.busMaster;
  }

  get pasidEnabled(): boolean {
    return this.function.pasidEnabled;
  }

  get privilegedAllowed(): boolean {
    return this.function.pasidPrivilegedEnabled;
  }

  get pageRequestsStarved(): boolean {
    return this.function.priEnabled && this.function.priAllocation === 0;
  }

  raise(vector: number): void {
    this.function.raiseMsix(vector);
  }

  newAccess(): MemoryAccess {
    return new RequesterAccess({ clock: this.clock, requester: this.requester, fn: () => this.function, groupPages: this.groupPages, defects: this.defects });
  }

  private changed(change: FunctionChange): void {
    if (change === 'removed') this.core.functionReset();
    else if (change === 'bus-master' && !this.function.busMaster) this.core.busMasterLost();
  }
}

function coreConfig(config: DsaDeviceConfig): DsaConfig {
  const wqs = config.wqs ?? DEFAULT_DSA_CONFIG.wqs;
  return {
    wqs, engines: config.engines ?? DEFAULT_DSA_CONFIG.engines, groups: config.groups ?? DEFAULT_DSA_CONFIG.groups,
    totalWqSize: config.totalWqSize ?? DEFAULT_DSA_CONFIG.totalWqSize, maxTransferShift: config.maxTransferShift ?? DEFAULT_DSA_CONFIG.maxTransferShift,
    maxBatchShift: config.maxBatchShift ?? DEFAULT_DSA_CONFIG.maxBatchShift, readBuffers: config.readBuffers ?? DEFAULT_DSA_CONFIG.readBuffers,
    descriptorsPerEngine: config.descriptorsPerEngine ?? DEFAULT_DSA_CONFIG.descriptorsPerEngine, blockOnFault: config.blockOnFault ?? DEFAULT_DSA_CONFIG.blockOnFault,
    mdevVectors: config.mdevVectors ?? DEFAULT_DSA_CONFIG.mdevVectors,
  };
}
