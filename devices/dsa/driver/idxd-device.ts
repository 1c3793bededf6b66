/**
 * One accelerator under its driver: probe, configuration of groups and queues, and teardown. Order as in the
 * recorded Linux driver: reset, capabilities, interrupts, IOMMU features (IOPF, then SVA), queue and group
 * configuration, ENABLE_DEVICE, ENABLE_WQ for each queue.
 */
import { hex } from '../../../sim/address.js';
import { Errno, isErrno } from '../../../sim/errno.js';
import { Mutex, type Steps } from '../../../sim/task.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { CMDSTS_ERR, DSA_CMD, PORTALS_BAR, REGISTERS_BAR, SWERROR, WQ_MODE_DEDICATED, WQ_MODE_SHARED, wqMaskOperand } from '../spec/registers.js';
import { IdxdHardware } from './idxd-hardware.js';
import type { IdxdFile } from './idxd-file.js';
import { KernelQueue } from './idxd-kernel.js';
import { DEFAULT_WQ, type IdxdOptions, type IdxdServices, type IdxdWqOptions, type PasidExit, type SoftwareError } from './idxd-options.js';

/** A configured queue. */
export class IdxdWq {
  readonly index: number;
  readonly options: IdxdWqOptions;
  readonly lock: Mutex;
  /** Open files. */
  users = 0;
  enabled = false;
  kernel: KernelQueue | undefined;

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
  readonly wqs: readonly IdxdWq[];
  /** Errors the device reported, oldest first. */
  readonly errors: SoftwareError[] = [];
  onError: ((error: SoftwareError) => void) | undefined;
  halted = false;
  /** Open files of user queues. */
  readonly files = new Set<IdxdFile>();
  /** mm_exit; undefined leaves a dying process's PASID to the IOMMU (M6). One callback for all binds of the device. */
  readonly pasidExit: PasidExit | undefined;
  private readonly portals: Mmio;
  private readonly exitWithoutAbort: boolean;
  private svaOn = false;
  private iopfOn = false;

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
    this.checkOptions();
    const handlers = [() => hardware.miscInterrupt(), ...this.wqs.map((wq) => () => wq.kernel?.interrupt())];
    pci.allocIrqs('idxd', handlers);
    hardware.unmaskErrors();
    try {
      yield* this.enableSva();
      this.configure();
      yield* this.must(DSA_CMD.ENABLE_DEVICE, 0, 'enabling the device');
      for (const wq of this.wqs) yield* this.startWq(wq);
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
    if (!caps.configurable) throw new Errno('EINVAL', `${name} cannot be configured`);
    if (this.wqs.length === 0) throw new Errno('EINVAL', `${name}: no work queue is configured`);
    if (this.wqs.length > caps.wqs) throw new Errno('EINVAL', `${name} has ${caps.wqs} work queues, ${this.wqs.length} are configured`);
    let total = 0;
    for (const { options: wq } of this.wqs) {
      total += wq.size;
      const shared = wq.mode === 'shared';
      if (wq.size < 1) throw new Errno('EINVAL', `${name}: work queue ${wq.name} has size ${wq.size}`);
      if (shared && !caps.shared) throw new Errno('EINVAL', `${name} has no shared work queues, ${wq.name} is one`);
      if (shared && wq.type === 'kernel') throw new Errno('EINVAL', `${name}: kernel work queue ${wq.name} must be dedicated`);
      if (shared && (wq.threshold ?? wq.size) > wq.size) throw new Errno('EINVAL', `${name}: threshold ${wq.threshold} of work queue ${wq.name} exceeds its size ${wq.size}`);
      if ((wq.group ?? 0) >= caps.groups) throw new Errno('EINVAL', `${name} has ${caps.groups} groups, work queue ${wq.name} is in group ${wq.group}`);
      if ((wq.maxTransfer ?? 1) > caps.maxTransfer) throw new Errno('EINVAL', `${name} transfers up to ${caps.maxTransfer} bytes, ${wq.name} asks for ${wq.maxTransfer}`);
      if (wq.blockOnFault === true && !caps.blockOnFault) throw new Errno('EOPNOTSUPP', `${name} cannot block on faults, ${wq.name} asks for it`);
    }
    if (total > caps.totalWqSize) throw new Errno('EINVAL', `${name}: work queues of ${total} entries, the device has ${caps.totalWqSize}`);
  }

  private configure(): void {
    const { hardware, wqs } = this;
    const { capabilities: caps } = hardware;
    for (const wq of wqs) {
      const o = wq.options;
      hardware.writeWqConfig(wq.index, {
        WqSize: o.size, WqThresh: wq.dedicated ? 0 : o.threshold ?? o.size, Mode: wq.dedicated ? WQ_MODE_DEDICATED : WQ_MODE_SHARED,
        Bof: o.blockOnFault === true ? 1 : 0, Priority: o.priority ?? DEFAULT_WQ.priority,
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
    yield* this.enableWq(wq);
    if (wq.options.type === 'kernel') {
      this.hardware.setInterruptPermission(wq.index + 1, undefined);
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
    if (!this.pci.present) this.hardware.cancelCommand();
    for (const file of this.files) yield* file.release();
    yield* this.unwind();
  }

  private *unwind(): Steps {
    const { pci, hardware, services } = this;
    const alive = pci.present && !this.halted;
    if (!alive) hardware.cancelCommand();
    for (const wq of this.wqs) {
      if (alive) yield* this.drainAndResetWq(wq);
      wq.enabled = false;
      const kernel = wq.kernel;
      wq.kernel = undefined;
      if (kernel !== undefined) yield* kernel.stop();
    }
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
    this.errors.push(error);
    raw.forEach((word, i) => this.services.log.log('warn', `idxd ${this.pci.name}: err[${i}]: 0x${word.toString(16).padStart(16, '0')}`));
    this.onError?.(error);
  }

  halt(resetType: number): void {
    this.halted = true;
    this.services.log.log('err', `idxd ${this.pci.name}: idxd halted, need ${resetType === 1 ? 'FLR' : 'system reset'}.`);
  }
}
