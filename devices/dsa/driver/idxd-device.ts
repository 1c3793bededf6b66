/**
 * One accelerator under its driver: probe, configuration of groups and queues, and teardown. Order as in the
 * recorded Linux driver: reset, capabilities, interrupts, IOMMU features (IOPF, then SVA), queue and group
 * configuration, ENABLE_DEVICE, ENABLE_WQ for each queue. Where the configuration is read-only, as on a virtual device, it is
 * read instead (`idxd_device_load_config`). Queues of type `mdev` are configured here and left to IdxdMdevHooks.
 */
import { hex } from '../../../sim/address.js';
import { Errno, isErrno } from '../../../sim/errno.js';
import { Mutex, type Steps } from '../../../sim/task.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { PCI_CAP_ID_MSIX, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_QSIZE } from '../../../host/pci/spec/index.js';
import { CMDSTS_ERR, DSA_CMD, PORTALS_BAR, REGISTERS_BAR, SWERROR, WQ_MODE_DEDICATED, WQ_MODE_SHARED, WQCFG, wqMaskOperand } from '../spec/registers.js';
import { IdxdHardware } from './idxd-hardware.js';
import type { IdxdFile } from './idxd-file.js';
import type { IdxdPinnedFile } from './idxd-pinned.js';
import { KernelQueue } from './idxd-kernel.js';
import { DEFAULT_WQ, type IdxdOptions, type IdxdServices, type IdxdWqOptions, type PasidExit, type SoftwareError } from './idxd-options.js';

/** Errors that a device remembers: whoever submits descriptors can cause any number. */
const KEPT_ERRORS = 256;

/** A configured queue. */
export class IdxdWq {
  readonly index: number;
  readonly options: IdxdWqOptions;
  readonly lock: Mutex;
  /** Open files. */
  users = 0;
  enabled = false;
  kernel: KernelQueue | undefined;
  /** Told of software errors that name this queue: SWERROR as 8 words. */
  onError: ((words: Uint32Array) => void) | undefined;

  constructor(index: number, options: IdxdWqOptions, lock: Mutex) {
    this.index = index;
    this.options = options;
    this.lock = lock;
  }

  get dedicated(): boolean {
    return this.options.mode === 'dedicated';
  }
}

export class IdxdDevice {
  readonly pci: PciDevice;
  readonly hardware: IdxdHardware;
  readonly services: IdxdServices;
  readonly options: IdxdOptions;
  wqs: readonly IdxdWq[];
  /** The latest errors that the device reported, oldest first. */
  readonly errors: SoftwareError[] = [];
  onError: ((error: SoftwareError) => void) | undefined;
  halted = false;
  /** Open files of user queues. */
  readonly files = new Set<IdxdFile>();
  /** Open files of kernel queues. */
  readonly pinnedFiles = new Set<IdxdPinnedFile>();
  /** By MSI-X vector: who hears of completions beside the kernel's own queues. */
  readonly vectorHandlers: ((() => void) | undefined)[] = [];
  /** Vectors that mediated devices on shared queues may use. */
  sharedMdevVectors: readonly number[] = [];
  /** mm_exit; undefined leaves a dying process's PASID to the IOMMU (M6). One callback for all binds of the device. */
  readonly pasidExit: PasidExit | undefined;
  private readonly portals: Mmio;
  private readonly exitWithoutAbort: boolean;
  private svaOn = false;
  private iopfOn = false;
  private mdevReady = false;

  constructor(pci: PciDevice, services: IdxdServices, options: IdxdOptions) {
    this.pci = pci;
    this.services = services;
    this.options = options;
    this.hardware = new IdxdHardware(pci.name, pci.ioremap(REGISTERS_BAR), services, this);
    this.portals = pci.ioremap(PORTALS_BAR);
    this.exitWithoutAbort = services.defects?.has('idxd.exit-without-abort') ?? false;
    this.pasidExit = (options.mmExit ?? 'none') === 'none' ? undefined : (_device, pasid) => this.exitPasid(pasid);
    this.wqs = options.wqs.map((wq, i) => new IdxdWq(i, wq, new Mutex(services.scheduler, `${pci.name} ${wq.name}`)));
  }

  /** True when processes can open user queues. */
  get sva(): boolean {
    return this.svaOn;
  }

  /** What the kernel enqueues to shared queues as its PASID; undefined where it has none. */
  get kernelPasid(): number | undefined {
    return this.options.kernelPasid ?? (this.hardware.capabilities.configurable ? undefined : 0);
  }

  /** False once nothing reaches the device any more. */
  get alive(): boolean {
    return this.pci.present && !this.halted;
  }

  get portalWindow(): Mmio {
    return this.portals;
  }

  /** ENODEV no queue of that name. */
  wq(name: string): IdxdWq {
    const found = this.wqs.find((wq) => wq.options.name === name);
    if (found === undefined) throw new Errno('ENODEV', `${this.pci.name} has no work queue ${name}; it has ${this.wqs.map((wq) => wq.options.name).join(', ') || 'none'}`);
    return found;
  }

  /**
   * @throws Errno ENXIO the device is halted or refuses a command; EINVAL a configuration the device cannot have;
   * EOPNOTSUPP user queues without SVA
   */
  *start(): Steps {
    const { pci, hardware, services } = this;
    services.iommu.dma.dmaSetMask(pci, 64);
    pci.setMaster(true);
    yield* hardware.init();
    const { configurable } = hardware.capabilities;
    if (configurable) this.checkOptions();
    else this.loadConfig();
    this.allocIrqs();
    hardware.unmaskErrors();
    try {
      yield* this.enableSva();
      if (services.mdev !== undefined && this.wqs.some((wq) => wq.options.type === 'mdev')) this.mdevReady = yield* services.mdev.prepare(this);
      if (configurable) this.configure();
      yield* this.must(DSA_CMD.ENABLE_DEVICE, 0, 'enabling the device');
      for (const wq of this.wqs) yield* this.startWq(wq);
      if (this.mdevReady) yield* services.mdev!.register(this);
    } catch (error) {
      yield* this.unwind();
      throw error;
    }
    services.log.log('info', `idxd ${pci.name}: Intel(R) Accelerator Device (v${hardware.capabilities.version.toString(16)})`);
  }

  /** IOPF, then SVA (F6). Without SVA there are no user queues, and the log says which link is missing. */
  private *enableSva(): Steps {
    const { iommu, log } = this.services;
    try {
      if (iommu.devHasFeature(this.pci, 'IOPF') && !iommu.devFeatureEnabled(this.pci, 'IOPF')) {
        yield* iommu.devEnableFeature(this.pci, 'IOPF');
        this.iopfOn = true;
      }
      yield* iommu.devEnableFeature(this.pci, 'SVA');
      this.svaOn = true;
    } catch (error) {
      if (!isErrno(error)) throw error;
      log.log('warn', `idxd ${this.pci.name}: Unable to turn on user SVA feature. ${error.message}`);
    }
    const user = this.wqs.find((wq) => wq.options.type === 'user');
    if (!this.svaOn && user !== undefined) {
      throw new Errno('EOPNOTSUPP', `${this.pci.name}: user work queue ${user.options.name} cannot be enabled without SVA`);
    }
  }

  private checkOptions(): void {
    const { capabilities: caps } = this.hardware;
    const { name } = this.pci;
    if (this.wqs.length === 0) throw new Errno('EINVAL', `${name}: no work queue is configured`);
    if (this.wqs.length > caps.wqs) throw new Errno('EINVAL', `${name} has ${caps.wqs} work queues, ${this.wqs.length} are configured`);
    let total = 0;
    for (const { options: wq } of this.wqs) {
      total += wq.size;
      const shared = wq.mode === 'shared';
      if (wq.size < 1) throw new Errno('EINVAL', `${name}: work queue ${wq.name} has size ${wq.size}`);
      if (shared && !caps.shared) throw new Errno('EINVAL', `${name} has no shared work queues, ${wq.name} is one`);
      if (shared && wq.type === 'kernel' && this.kernelPasid === undefined) {
        throw new Errno('EINVAL', `${name}: kernel work queue ${wq.name} must be dedicated, because the kernel has no PASID to enqueue with`);
      }
      if (shared && (wq.threshold ?? wq.size) > wq.size) throw new Errno('EINVAL', `${name}: threshold ${wq.threshold} of work queue ${wq.name} exceeds its size ${wq.size}`);
      if ((wq.group ?? 0) >= caps.groups) throw new Errno('EINVAL', `${name} has ${caps.groups} groups, work queue ${wq.name} is in group ${wq.group}`);
      if ((wq.maxTransfer ?? 1) > caps.maxTransfer) throw new Errno('EINVAL', `${name} transfers up to ${caps.maxTransfer} bytes, ${wq.name} asks for ${wq.maxTransfer}`);
      if (wq.blockOnFault === true && !caps.blockOnFault) throw new Errno('EOPNOTSUPP', `${name} cannot block on faults, ${wq.name} asks for it`);
    }
    if (total > caps.totalWqSize) throw new Errno('EINVAL', `${name}: work queues of ${total} entries, the device has ${caps.totalWqSize}`);
  }

  /** Reads what cannot be written: the administrator only names the queues and says who uses them (`idxd_device_load_config`). */
  private loadConfig(): void {
    const { hardware, pci, services } = this;
    const { capabilities: caps } = hardware;
    const masks = Array.from({ length: caps.groups }, (_, group) => hardware.readGroupQueues(group));
    this.wqs = Array.from({ length: caps.wqs }, (_, i) => {
      const words = hardware.readWqConfig(i);
      const get = (field: keyof typeof WQCFG.f): number => WQCFG.f[field].get(words);
      const given = this.options.wqs[i];
      const name = given?.name ?? `wq0.${i}`;
      if (given?.type === 'mdev') throw new Errno('EINVAL', `${pci.name} cannot be configured, so its work queue ${name} cannot be given to mediated devices`);
      return new IdxdWq(i, {
        name, type: given?.type ?? 'kernel', mode: get('Mode') === WQ_MODE_DEDICATED ? 'dedicated' : 'shared', size: get('WqSize'), threshold: get('WqThresh'),
        priority: get('Priority'), group: Math.max(masks.findIndex((mask) => ((mask >> BigInt(i)) & 1n) === 1n), 0), blockOnFault: get('Bof') === 1,
        maxTransfer: 2 ** get('MaxXferShift'), maxBatch: 2 ** get('MaxBatchShift'),
      }, new Mutex(services.scheduler, `${pci.name} ${name}`));
    });
  }

  /** Vector 0 for commands and errors, one for each queue, and what the table has left for mediated devices on shared queues. */
  private allocIrqs(): void {
    const { pci, hardware, wqs } = this;
    const own = wqs.filter((wq) => wq.options.type === 'mdev' && !wq.dedicated).map((wq) => wq.index + 1);
    const most = this.options.mdevSlots ?? Infinity;
    const capability = own.length === 0 ? undefined : pci.findCapability(PCI_CAP_ID_MSIX);
    const size = capability === undefined ? 0 : (pci.config.read(capability + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1;
    const extra = Math.max(0, Math.min(size - 1 - wqs.length, most - own.length));
    this.sharedMdevVectors = [...own, ...Array.from({ length: extra }, (_, i) => 1 + wqs.length + i)].slice(0, most);
    const interrupt = (vector: number) => (): void => {
      this.wqs[vector - 1]?.kernel?.interrupt();
      this.vectorHandlers[vector]?.();
    };
    pci.allocIrqs('idxd', [() => hardware.miscInterrupt(), ...Array.from({ length: wqs.length + extra }, (_, i) => interrupt(i + 1))]);
  }

  private configure(): void {
    const { hardware, wqs } = this;
    const { capabilities: caps } = hardware;
    for (const wq of wqs) {
      const o = wq.options;
      hardware.writeWqConfig(wq.index, {
        WqSize: o.size, WqThresh: wq.dedicated ? 0 : o.threshold ?? o.size, Mode: wq.dedicated ? WQ_MODE_DEDICATED : WQ_MODE_SHARED,
        // what a mediated device reaches is pinned: it has no faults to wait for
        Bof: o.blockOnFault === true && o.type !== 'mdev' ? 1 : 0, Priority: o.priority ?? DEFAULT_WQ.priority,
        // descriptors of a shared queue bring their PASID; a dedicated one gets it when a process opens it
        PasidEn: wq.dedicated ? 0 : 1, Pasid: 0,
        MaxXferShift: Math.log2(o.maxTransfer ?? Math.min(DEFAULT_WQ.maxTransfer, caps.maxTransfer)),
        MaxBatchShift: Math.log2(o.maxBatch ?? Math.min(DEFAULT_WQ.maxBatch, caps.maxBatch)),
      });
    }
    const groups = [...new Set(wqs.map((wq) => wq.options.group ?? 0))].toSorted((a, b) => a - b);
    for (let group = 0; group < caps.groups; group++) {
      let mask = 0n, engines = 0n;
      for (const wq of wqs) if ((wq.options.group ?? 0) === group) mask |= 1n << BigInt(wq.index);
      for (let engine = 0; engine < caps.engines; engine++) {
        const owner = this.options.engines === undefined ? groups[engine % groups.length] : this.options.engines[engine];
        if (owner === group) engines |= 1n << BigInt(engine);
      }
      hardware.writeGroup(group, mask, engines);
    }
  }

  private *startWq(wq: IdxdWq): Steps {
    const { type } = wq.options;
    // a dedicated queue of a mediated device has no PASID yet
    if (type === 'mdev' && (wq.dedicated || !this.mdevReady)) return;
    yield* this.enableWq(wq);
    if (type === 'kernel') {
      this.hardware.setInterruptPermission(wq.index + 1, wq.dedicated ? undefined : this.kernelPasid);
      const kernel = new KernelQueue(this, wq);
      yield* kernel.start();
      wq.kernel = kernel;
    }
  }

  *enableWq(wq: IdxdWq): Steps {
    yield* this.must(DSA_CMD.ENABLE_WQ, wq.index, `enabling work queue ${wq.options.name}`);
    wq.enabled = true;
  }

  /** Waits for the queue's descriptors, then turns it off; configuration stays. */
  *drainAndResetWq(wq: IdxdWq): Steps {
    if (!wq.enabled) return;
    yield* this.hardware.command(DSA_CMD.DRAIN_WQ, wqMaskOperand(wq.index));
    yield* this.hardware.command(DSA_CMD.RESET_WQ, wqMaskOperand(wq.index));
    wq.enabled = false;
  }

  /** Drops the queue's descriptors and turns it off. */
  *abortAndResetWq(wq: IdxdWq): Steps {
    if (!wq.enabled) return;
    yield* this.hardware.command(DSA_CMD.ABORT_WQ, wqMaskOperand(wq.index));
    yield* this.hardware.command(DSA_CMD.RESET_WQ, wqMaskOperand(wq.index));
    wq.enabled = false;
  }

  /** The process is dying: after this the device is silent for its PASID (M2). */
  private *exitPasid(pasid: number): Steps<number> {
    for (const file of this.files) if (file.pasid === pasid) file.portal.unmap();
    if (this.exitWithoutAbort) return 0;
    const command = this.options.mmExit === 'drain' ? DSA_CMD.DRAIN_PASID : DSA_CMD.ABORT_PASID;
    return yield* this.hardware.command(command, pasid);
  }

  private *must(command: number, operand: number, what: string): Steps {
    const error = yield* this.hardware.command(command, operand);
    if (error !== CMDSTS_ERR.SUCCESS) throw new Errno('ENXIO', `${this.pci.name}: ${what} failed with command status ${hex(error)}`);
  }

  /** Lets the device go: open files are released, queues drained, the device off, IOMMU features off in reverse order. */
  *stop(): Steps {
    if (!this.pci.present) {
      this.hardware.cancelCommand();
      if (this.mdevReady) this.services.mdev!.lost(this);
    }
    for (const file of this.files) yield* file.release();
    for (const file of this.pinnedFiles) file.refuse();
    yield* this.unwind();
  }

  private *unwind(): Steps {
    const { pci, hardware, services } = this;
    if (!this.alive) hardware.cancelCommand();
    if (this.mdevReady) {
      this.mdevReady = false;
      yield* services.mdev!.unregister(this);
    }
    const { alive } = this;
    if (!alive) hardware.cancelCommand();
    for (const wq of this.wqs) {
      if (alive) yield* this.drainAndResetWq(wq);
      wq.enabled = false;
      const kernel = wq.kernel;
      wq.kernel = undefined;
      if (kernel !== undefined) yield* kernel.stop();
    }
    for (const file of this.pinnedFiles) yield* file.idle();
    if (alive) {
      if (hardware.enabled) yield* hardware.command(DSA_CMD.DISABLE_DEVICE);
      hardware.maskErrors();
    }
    if (this.svaOn && pci.present) yield* services.iommu.devDisableFeature(pci, 'SVA');
    this.svaOn = false;
    if (this.iopfOn && pci.present) yield* services.iommu.devDisableFeature(pci, 'IOPF');
    this.iopfOn = false;
    pci.freeIrqs();
    if (pci.present) pci.setMaster(false);
  }

  // HardwareEvents

  softwareError(words: Uint32Array): void {
    const field = (name: keyof typeof SWERROR.f): number => SWERROR.f[name].get(words);
    const raw = [0, 1, 2, 3].map((i) => (BigInt(words[2 * i + 1]!) << 32n) | BigInt(words[2 * i]!));
    const error: SoftwareError = {
      error: field('Error'), wq: field('WqIdxValid') === 1 ? this.wqs[field('WqIdx')]?.options.name : undefined, operation: field('Operation'),
      pasid: field('Pasid'), faultAddress: raw[2]!, overflow: field('Overflow') === 1, raw,
    };
    if (this.errors.push(error) > KEPT_ERRORS) this.errors.shift();
    if (field('WqIdxValid') === 1) this.wqs[field('WqIdx')]?.onError?.(words);
    raw.forEach((word, i) => this.services.log.limited(`idxd ${this.pci.name} err`, 'warn', `idxd ${this.pci.name}: err[${i}]: 0x${word.toString(16).padStart(16, '0')}`));
    this.onError?.(error);
  }

  halt(resetType: number): void {
    this.halted = true;
    this.services.log.log('err', `idxd ${this.pci.name}: idxd halted, need ${resetType === 1 ? 'FLR' : 'system reset'}.`);
    for (const wq of this.wqs) wq.kernel?.fail();
    if (this.mdevReady) this.services.mdev!.lost(this);
  }
}
