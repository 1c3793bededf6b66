/**
 * A virtual accelerator: what the user of a mediated device sees through VFIO. Its configuration space and BAR 0 are emulated
 * here, commands are carried out on the physical queue, and one page of BAR 2, the limited portal, is the queue's own portal;
 * the other portal pages swallow what is stored. Follows the idxd VDCM patches ("vidxd", v6 of May 2021). Left out: the
 * unlimited portal and those for interrupt message storage, migration.
 */
import { Errno } from '../../../sim/errno.js';
import { load32, loadSized, store32, storeSized } from '../../../sim/little-endian.js';
import type { AccessSize, Mmio } from '../../../sim/mmio.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { MdevHandle } from '../../../mdev/parent.js';
import {
  DEVICE_FLAGS_PCI, DEVICE_FLAGS_RESET, IRQ_INFO_EVENTFD, IRQ_INFO_NORESIZE, PCI_BAR0_REGION, PCI_BAR2_REGION, PCI_CONFIG_REGION, PCI_ERR_IRQ, PCI_MSIX_IRQ,
  PCI_NUM_IRQS, PCI_NUM_REGIONS, PCI_REQ_IRQ, REGION_INFO_CAPS, REGION_INFO_MMAP, REGION_INFO_READ, REGION_INFO_WRITE, REGION_STRIDE, type VfioDeviceInfo,
  type VfioDeviceOps, type VfioIrqInfo, type VfioIrqSet, type VfioRegionInfo,
} from '../../../vfio/device.js';
import { PORTAL_LIMITED, PORTAL_SIZE, REGISTERS_BAR_SIZE, STATE_ENABLED, STATE_HALT, SWERR } from '../spec/registers.js';
import type { QueueLease } from './queue-lease.js';
import { VdsaCommands, type CommandOwner } from './vdsa-commands.js';
import { VDSA_PORTALS_SIZE, VdsaConfig } from './vdsa-config.js';
import { VDSA_VECTORS, VdsaInterrupts } from './vdsa-interrupts.js';
import { VdsaPortal, type PortalUser } from './vdsa-portal.js';
import { VdsaRegisters } from './vdsa-registers.js';

const CONFIG_SIZE = 4096;
const LIMITED_PORTAL = PORTAL_LIMITED * PORTAL_SIZE;
const READ_WRITE = REGION_INFO_READ | REGION_INFO_WRITE;

export interface VdsaParts {
  readonly mdev: MdevHandle;
  readonly lease: QueueLease;
  /** PASID of the mediated device's aux domain; undefined without one. */
  readonly pasid: () => number | undefined;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly trace?: Trace;
  /** `vdsa.guest-pasid-trusted`, `vdsa.posted-to-shared`, `vdsa.portal-stays-mapped` */
  readonly defects: ReadonlySet<string>;
}

/** Trace kinds of virtual accelerators. `vdsa:lease`: the mediated device was made on a queue, perhaps beside others. */
function traceKinds(trace: Trace): { readonly lease: TraceKind; readonly command: TraceKind; readonly refused: TraceKind } {
  return {
    lease: trace.define('vdsa:lease', [['mdev', 'str'], ['device', 'str'], ['wq', 'dec']]),
    command: trace.define('vdsa:command', [['mdev', 'str'], ['command', 'dec'], ['operand', 'hex'], ['status', 'hex']]),
    refused: trace.define('vdsa:portal_refused', [['mdev', 'str'], ['wq', 'dec'], ['pasid', 'dec'], ['posted', 'bool']]),
  };
}

export class Vdsa implements VfioDeviceOps, CommandOwner, PortalUser {
  readonly name: string;
  readonly lease: QueueLease;
  readonly registers: VdsaRegisters;
  /** Submissions that the portal refused: plain stores to a shared queue, foreign PASIDs. */
  refused = 0;
  private readonly parts: VdsaParts;
  private readonly config: VdsaConfig;
  private readonly interrupts: VdsaInterrupts;
  private readonly commands: VdsaCommands;
  private readonly traced: { readonly trace: Trace; readonly kinds: ReturnType<typeof traceKinds>; readonly id: number } | undefined;
  /** Mappings of the portal, until they are taken away. */
  private portals: VdsaPortal[] = [];
  /** For accesses that are trapped instead of mapped. */
  private readonly trappedPortal: VdsaPortal;
  private opened = false;
  /** Resets under way. */
  private resets = 0;
  private readonly keepsPortals: boolean;
  private readonly trustsPasid: boolean;

  constructor(parts: VdsaParts) {
    const { mdev, lease, trace, scheduler, defects } = parts;
    this.parts = parts;
    this.name = mdev.uuid;
    this.lease = lease;
    this.keepsPortals = defects.has('vdsa.portal-stays-mapped');
    this.trustsPasid = defects.has('vdsa.guest-pasid-trusted');
    this.traced = trace === undefined ? undefined : { trace, kinds: traceKinds(trace), id: trace.intern(this.name) };
    trace?.record(this.traced!.kinds.lease, 0, this.traced!.id, trace.intern(lease.device.pci.name), lease.wq.index);
    this.interrupts = new VdsaInterrupts(this.name, () => this.config.msixMasked);
    this.config = new VdsaConfig({
      busMasterLost: () => this.busMasterLost(),
      functionLevelReset: () => this.functionLevelReset(),
      msixControl: () => this.interrupts.flush(),
    });
    this.registers = new VdsaRegisters(lease.wq.options, lease.device.hardware.capabilities, this.interrupts);
    this.commands = new VdsaCommands(this, scheduler);
    this.registers.onCommand = (word) => this.commands.start(word);
    this.trappedPortal = new VdsaPortal(lease, this, defects);
  }

  // life

  /** ENODEV the accelerator is halted or gone. */
  // oxlint-disable-next-line require-yield -- VfioDeviceOps.open may sleep
  *open(): Steps {
    if (!this.lease.device.alive) throw new Errno('ENODEV', `${this.lease.device.pci.name}, the parent of ${this.name}, is halted or gone`);
    this.opened = true;
  }

  /** The user's mappings go first, then the queue's descriptors, then the PASID; what the next user finds is fresh. */
  *close(): Steps {
    this.opened = false;
    if (!this.keepsPortals) for (const portal of this.portals) portal.unmapped = true;
    this.portals = [];
    yield* this.commands.reset();
    this.interrupts.tearDown();
    this.registers.resetFunction();
    this.config.space.reset();
  }

  /** VFIO_DEVICE_RESET: configuration space stays, as vfio-pci restores it. */
  *reset(): Steps {
    this.resets++;
    try {
      yield* this.commands.reset();
      this.registers.resetFunction();
    } finally {
      this.resets--;
    }
  }

  request(count: number): void {
    const heard = this.interrupts.notify(PCI_REQ_IRQ);
    const { log } = this.parts;
    if (heard && count % 10 === 0) log.log('info', `idxd-mdev ${this.name}: Relaying device request to user (#${count})`);
    else if (!heard && count === 0) log.log('warn', `idxd-mdev ${this.name}: No device request channel registered, blocked until released by user`);
  }

  /** The accelerator is halted or gone. */
  lost(): void {
    for (const portal of this.portals) portal.unmapped = true;
    // a halted accelerator is an error; one that is gone is asked back by `request`
    if (this.lease.device.pci.present) this.interrupts.notify(PCI_ERR_IRQ);
  }

  /** A completion of the physical queue. */
  completion(): void {
    if (this.opened) this.interrupts.raise(1);
  }

  /** The physical device reports a software error of this queue. @param words SWERROR */
  softwareError(words: Uint32Array): void {
    if (this.opened) this.registers.reportError((words[0]! >>> 8) & 0xff, words.slice());
  }

  // what a user is told

  info(): VfioDeviceInfo {
    return { flags: DEVICE_FLAGS_RESET | DEVICE_FLAGS_PCI, regions: PCI_NUM_REGIONS, irqs: PCI_NUM_IRQS };
  }

  regionInfo(index: number): VfioRegionInfo {
    if (!(index >= 0 && index < PCI_NUM_REGIONS)) throw new Errno('EINVAL', `${this.name} has no region ${index}`);
    switch (index) {
      case PCI_CONFIG_REGION: return { flags: READ_WRITE, sizeBytes: CONFIG_SIZE };
      case PCI_BAR0_REGION: return { flags: READ_WRITE, sizeBytes: REGISTERS_BAR_SIZE };
      case PCI_BAR2_REGION:
        return { flags: READ_WRITE | REGION_INFO_MMAP | REGION_INFO_CAPS, sizeBytes: VDSA_PORTALS_SIZE, sparse: [{ offset: LIMITED_PORTAL, sizeBytes: PORTAL_SIZE }] };
    }
    return { flags: 0, sizeBytes: 0 };
  }

  irqInfo(index: number): VfioIrqInfo {
    if (!(index >= 0 && index < PCI_NUM_IRQS)) throw new Errno('EINVAL', `${this.name} has no interrupt index ${index}`);
    if (index === PCI_MSIX_IRQ) return { flags: IRQ_INFO_EVENTFD | IRQ_INFO_NORESIZE, count: VDSA_VECTORS };
    if (index === PCI_ERR_IRQ || index === PCI_REQ_IRQ) return { flags: IRQ_INFO_EVENTFD, count: 1 };
    return { flags: 0, count: 0 };
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps.setIrqs may sleep
  *setIrqs(request: VfioIrqSet): Steps {
    this.interrupts.set(request);
  }

  // accesses

  read(offset: number, target: Uint8Array): number {
    const { index, at, length } = this.place(offset, target.length);
    if (!this.lease.device.alive) {
      target.fill(0xff, 0, length);
      return length;
    }
    for (let done = 0; done < length; ) {
      const size = stepOf(at + done, length - done, index === PCI_CONFIG_REGION ? 4 : 8);
      const lo = this.load(index, at + done, size);
      storeSized(target, done, size === 8 ? 4 : size, lo);
      if (size === 8) store32(target, done + 4, this.loadedHigh(index));
      done += size;
    }
    return length;
  }

  write(offset: number, source: Uint8Array): number {
    const { index, at, length } = this.place(offset, source.length);
    if (!this.lease.device.alive) return length;
    for (let done = 0; done < length; ) {
      const size = stepOf(at + done, length - done, index === PCI_CONFIG_REGION ? 4 : 8);
      this.store(index, at + done, size, loadSized(source, done, size === 8 ? 4 : size), size === 8 ? load32(source, done + 4) : 0);
      done += size;
    }
    return length;
  }

  mmap(offset: number, sizeBytes: number): Mmio {
    const index = Math.floor(offset / REGION_STRIDE), at = offset % REGION_STRIDE;
    if (index !== PCI_BAR2_REGION || at !== LIMITED_PORTAL || sizeBytes !== PORTAL_SIZE) {
      throw new Errno('EINVAL', `only the limited portal of ${this.name} can be mapped: region ${PCI_BAR2_REGION}, one page from 0x${LIMITED_PORTAL.toString(16)} on`);
    }
    const portal = new VdsaPortal(this.lease, this, this.parts.defects);
    portal.unmapped = !this.opened;
    this.portals.push(portal);
    return portal;
  }

  /** @throws Errno EINVAL outside of every region */
  private place(offset: number, length: number): { index: number; at: number; length: number } {
    const index = Math.floor(offset / REGION_STRIDE), at = offset % REGION_STRIDE;
    const { sizeBytes } = this.regionInfo(index);
    if (at >= sizeBytes) throw new Errno('EINVAL', `offset 0x${at.toString(16)} is outside of region ${index} of ${this.name}`);
    return { index, at, length: Math.min(length, sizeBytes - at) };
  }

  private load(index: number, at: number, size: AccessSize): number {
    if (index === PCI_CONFIG_REGION) return this.config.space.read(at, size as 1 | 2 | 4);
    if (index === PCI_BAR0_REGION) return this.registers.read(at, size);
    return this.trappedPortal.read(at, size);
  }

  private loadedHigh(index: number): number {
    return index === PCI_BAR0_REGION ? this.registers.high : this.trappedPortal.high;
  }

  private store(index: number, at: number, size: AccessSize, lo: number, hi: number): void {
    if (index === PCI_CONFIG_REGION) this.config.space.write(at, size as 1 | 2 | 4, lo);
    else if (index === PCI_BAR0_REGION) this.registers.write(at, size, lo, hi);
    else if (at >= LIMITED_PORTAL && at < LIMITED_PORTAL + PORTAL_SIZE) this.trappedPortal.write(at - LIMITED_PORTAL, size, lo, hi);
  }

  // CommandOwner

  get busMaster(): boolean {
    return this.config.busMaster;
  }

  queuePasid(): number | undefined {
    return this.trustsPasid ? this.registers.virtualPasid : this.parts.pasid();
  }

  commandEnded(command: number, operand: number, status: number): void {
    const { traced } = this;
    traced?.trace.record(traced.kinds.command, 0, traced.id, command, operand, status);
  }

  // PortalUser

  get reachesQueue(): boolean {
    return (this.opened || this.keepsPortals) && this.resets === 0 && this.registers.state !== STATE_HALT && this.lease.device.alive;
  }

  postedToShared(): void {
    this.refuse(0, true);
    this.registers.reportError(SWERR.POSTED_TO_SHARED);
  }

  foreignPasid(pasid: number): void {
    this.refuse(pasid, false);
  }

  private refuse(pasid: number, posted: boolean): void {
    this.refused++;
    const { traced } = this;
    traced?.trace.record(traced.kinds.refused, 0, traced.id, this.lease.wq.index, pasid, posted ? 1 : 0);
  }

  // configuration space

  /** As on the real device: it halts, and only a function level reset helps. */
  private busMasterLost(): void {
    if (this.registers.state !== STATE_ENABLED) return;
    this.registers.reportError(SWERR.PCI_CFG);
    this.registers.halt();
    this.commands.cut();
    this.parts.scheduler.spawn(`halt of ${this.name}`, this.commands.reset(), { daemon: true });
  }

  private functionLevelReset(): void {
    this.config.space.reset();
    this.registers.resetFunction();
    this.commands.cut();
    this.parts.scheduler.spawn(`function level reset of ${this.name}`, this.reset(), { daemon: true });
  }
}

/** Largest aligned access at `at` within `left` bytes. */
function stepOf(at: number, left: number, most: 4 | 8): AccessSize {
  for (let size = most as AccessSize; size > 1; size = (size / 2) as AccessSize) if (at % size === 0 && size <= left) return size;
  return 1;
}
