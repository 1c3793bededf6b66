/**
 * One controller under its driver: bring-up as Linux' (drivers/nvme/host/pci.c nvme_reset_work, core.c nvme_init_identify: disable,
 * admin queue, enable, identify, number of queues, one pair of I/O queues for each vector), commands with their
 * timeouts, reset, teardown. A command that does not end in time is aborted; when that does not help either, the controller
 * is reset and what was in flight is submitted again by its callers. Left out: several namespaces, multipath, power states,
 * firmware, a block layer: callers map their own buffers.
 */
import { load32, loadSized } from '../../../sim/little-endian.js';
import { Errno, isErrno } from '../../../sim/errno.js';
import { WaitQueue, type Steps } from '../../../sim/task.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { ADMIN, CQ_IEN, DNR, encodeCommand, NSID_ALL, QUEUE_PC, STATUS, STATUS_MASK, statusName, type CommandFields, type Completion } from '../spec/commands.js';
import { CNS, ID_CTRL, ID_NS, IDENTIFY_SIZE, MN_BYTES, SN_BYTES, VWC_PRESENT } from '../spec/identify.js';
import { FEATURE } from '../spec/logs.js';
import { NVME_BAR } from '../spec/registers.js';
import type { NvmeFile } from './nvme-file.js';
import { NvmeHardware } from './nvme-registers.js';
import { NvmeQueue, type PendingCommand } from './nvme-queue.js';
import { ADMIN_DEPTH, ADMIN_TIMEOUT_NS, DEFAULT_QUEUE_DEPTH, IO_TIMEOUT_NS, MAX_RETRIES, MAX_TRANSFER, type NvmeServices } from './nvme-options.js';
import { PrpPool } from './prp-lists.js';

/** The identifier of the asynchronous event request: beyond the slots of the admin queue. */
const EVENT_CID = ADMIN_DEPTH - 1;
/** Temperature warnings. */
const EVENTS = 2;
/** Minimum of what `*MDTS` counts: 4 KiB. */
const MDTS_UNIT = 4096;

/** Like Linux' states of nvme_ctrl. */
export type NvmeState = 'new' | 'live' | 'resetting' | 'deleting' | 'dead';

export interface NvmeIdentity {
  readonly model: string;
  readonly serial: string;
  readonly blocks: number;
  readonly blockShift: number;
  /** Bytes of one command. */
  readonly maxTransfer: number;
  readonly writeCache: boolean;
}

export class NvmeDev {
  readonly pci: PciDevice;
  readonly services: NvmeServices;
  readonly files = new Set<NvmeFile>();
  readonly prps: PrpPool;
  state: NvmeState = 'new';
  /** Resets of the controller since the probe. */
  resets = 0;
  /** Results of asynchronous event requests, oldest first. */
  readonly asyncEvents: number[] = [];
  private readonly hardware: NvmeHardware;
  private readonly admin: NvmeQueue;
  private io: readonly NvmeQueue[] = [];
  private found: NvmeIdentity | undefined;
  private readonly changed: WaitQueue;
  /** Callers between the map and the unmap of a buffer. */
  private users = 0;
  /** A bring-up after a reset is under way. */
  private bringingUp = false;
  /** Vectors beside the first: 0 where one interrupt serves all queues. */
  private ioVectors = 0;

  /** ENODEV; what PCI refuses. */
  constructor(pci: PciDevice, services: NvmeServices) {
    this.pci = pci;
    this.services = services;
    this.hardware = new NvmeHardware(pci, pci.ioremap(NVME_BAR), services);
    this.prps = new PrpPool(pci, services.dma, services.memory);
    this.changed = new WaitQueue(services.scheduler, `state of ${pci.name}`);
    this.admin = this.newQueue(0, ADMIN_DEPTH, 0);
    this.admin.onOther = (completion) => this.asyncEvent(completion);
  }

  get name(): string {
    return this.pci.name;
  }

  get identity(): NvmeIdentity {
    if (this.found === undefined) throw new Errno('ENODEV', `${this.name} has not been identified`);
    return this.found;
  }

  get sizeBytes(): number {
    return this.identity.blocks * 2 ** this.identity.blockShift;
  }

  get queueCount(): number {
    return this.io.length;
  }

  /** Commands will be carried out, now or after a reset. */
  get usable(): boolean {
    return (this.state === 'live' || this.state === 'resetting') && this.pci.present;
  }

  // --- bring-up and teardown ------------------------------------------------------------------------------------

  /** ENODEV the controller does not answer, become ready, or have a namespace; EIO a command of the bring-up failed; what PCI and DMA API refuse. */
  *start(): Steps {
    const { pci, services } = this;
    services.dma.dmaSetMask(pci, 64);
    pci.setMaster(true);
    try {
      yield* this.admin.allocate();
      this.requestInterrupts();
      yield* this.bringUp();
    } catch (error) {
      this.state = 'dead';
      yield* this.tearDown();
      throw error;
    }
    const { model, serial, maxTransfer } = this.identity;
    services.log.log('info', `nvme ${this.name}: ${model}, serial ${serial}: ${this.io.length} I/O queues, ${this.identity.blocks} blocks of ${2 ** this.identity.blockShift} bytes, ${maxTransfer} bytes a command`);
  }

  /** From any state of the controller to live; at the first time queues and vectors are made, later they begin anew. */
  private *bringUp(): Steps {
    const { hardware, admin } = this;
    yield* hardware.disable();
    admin.cancel();
    admin.start();
    yield* hardware.enable(ADMIN_DEPTH, admin.submissions!, admin.completions!);
    this.found = yield* this.identify();
    const granted = yield* this.setQueueCount();
    if (this.io.length === 0) yield* this.allocateIoQueues(granted);
    for (const queue of this.io) yield* this.createQueue(queue);
    yield* this.checked({ opcode: ADMIN.SET_FEATURES, cdw: [FEATURE.EVENTS, EVENTS] }, 'configuring asynchronous events');
    admin.submitOther(encodeCommand({ opcode: ADMIN.ASYNC_EVENT }), EVENT_CID);
    // it may have been told to go meanwhile
    if (this.state !== 'deleting') this.state = 'live';
    this.changed.wakeAll();
  }

  /** Lets the controller go: files end, commands end, the controller shuts down. */
  *stop(): Steps {
    const { present } = this.pci;
    this.state = 'deleting';
    if (!present) this.cancelAll();
    this.changed.wakeAll();
    yield* this.changed.until(() => !this.bringingUp);
    for (const file of this.files) yield* file.orphan();
    yield* this.changed.until(() => this.users === 0);
    yield* this.tearDown();
  }

  private *tearDown(): Steps {
    const { pci } = this;
    if (this.state === 'deleting' && pci.present) {
      try {
        for (const queue of this.io) yield* this.deleteQueue(queue);
        yield* this.hardware.shutdown();
      } catch (error) {
        if (!isErrno(error)) throw error;
        this.services.log.log('warn', `nvme ${this.name}: ${error.message}`);
      }
    }
    yield* this.silence();
    this.cancelAll();
    pci.freeIrqs();
    pci.freeIntx();
    if (pci.present) pci.setMaster(false);
    for (const queue of this.io) yield* queue.free();
    yield* this.prps.drain();
    yield* this.admin.free();
    this.io = [];
  }

  /** No DMA any more when this returns: the controller is disabled, or cut off where it does not obey. */
  private *silence(): Steps {
    const { pci, hardware, services } = this;
    if (!pci.present || hardware.gone) return;
    try {
      yield* hardware.disable();
    } catch (error) {
      if (!isErrno(error)) throw error;
      services.log.log('warn', `nvme ${this.name}: ${error.message}`);
      if (pci.present) pci.setMaster(false);
    }
  }

  private cancelAll(): void {
    for (const queue of [this.admin, ...this.io]) {
      queue.close();
      queue.cancel();
    }
  }

  private requestInterrupts(): void {
    const { pci, services } = this;
    const all = (): boolean => [this.admin, ...this.io].map((queue) => queue.process()).includes(true);
    if (pci.msixVectors === 0 || services.intxOnly === true) {
      pci.requestIntx('nvme', all);
      pci.intx(true);
      return;
    }
    this.ioVectors = Math.min(pci.msixVectors - 1, services.ioQueues ?? Infinity);
    if (this.ioVectors === 0) return pci.allocIrqs('nvme', [() => void all()]);
    pci.allocIrqs('nvme', [() => void this.admin.process(), ...Array.from({ length: this.ioVectors }, (_, i) => () => void this.io[i]?.process())]);
  }

  private *identify(): Steps<NvmeIdentity> {
    const controller = yield* this.identifyPage(CNS.CONTROLLER, 0);
    const list = yield* this.identifyPage(CNS.ACTIVE_NAMESPACES, 0);
    const nsid = load32(list, 0);
    if (nsid !== 1) throw new Errno('ENODEV', `${this.name}: no namespace 1`);
    const namespace = yield* this.identifyPage(CNS.NAMESPACE, nsid);
    const format = namespace[ID_NS.FLBAS]! & 0xf, mdts = controller[ID_CTRL.MDTS]!;
    return {
      model: ascii(controller, ID_CTRL.MN, MN_BYTES), serial: ascii(controller, ID_CTRL.SN, SN_BYTES),
      blocks: load32(namespace, ID_NS.NSZE) + load32(namespace, ID_NS.NSZE + 4) * 0x1_0000_0000, blockShift: namespace[ID_NS.LBAF0 + 4 * format + 2]!,
      maxTransfer: mdts === 0 ? MAX_TRANSFER : Math.min(MAX_TRANSFER, MDTS_UNIT * 2 ** mdts), writeCache: (loadSized(controller, ID_CTRL.VWC, 1) & VWC_PRESENT) !== 0,
    };
  }

  private identifyPage(cns: number, nsid: number): Steps<Uint8Array> {
    return this.answered({ opcode: ADMIN.IDENTIFY, nsid, cdw: [cns] }, IDENTIFY_SIZE, `identify ${cns}`);
  }

  /** I/O queue pairs that the controller gives. */
  private *setQueueCount(): Steps<number> {
    const wanted = Math.max(1, this.services.ioQueues ?? this.ioVectors);
    const result = yield* this.checked({ opcode: ADMIN.SET_FEATURES, cdw: [FEATURE.QUEUES, (wanted - 1) | ((wanted - 1) << 16)] }, 'setting the number of queues');
    return Math.min(wanted, (result & 0xffff) + 1, (result >>> 16) + 1);
  }

  private *allocateIoQueues(count: number): Steps {
    const depth = Math.min(this.services.queueDepth ?? DEFAULT_QUEUE_DEPTH, this.hardware.queueEntries);
    const pairs = this.ioVectors === 0 ? count : Math.min(count, this.ioVectors);
    const made: NvmeQueue[] = [];
    for (let id = 1; id <= pairs; id++) {
      const queue = this.newQueue(id, depth, this.ioVectors === 0 ? 0 : id);
      yield* queue.allocate();
      made.push(queue);
      // a failure of the next one finds it here
      this.io = made;
    }
  }

  private newQueue(id: number, depth: number, vector: number): NvmeQueue {
    return new NvmeQueue({ pci: this.pci, services: this.services, mmio: this.hardware.mmio, stride: this.hardware.stride, id, depth, vector });
  }

  private *createQueue(queue: NvmeQueue): Steps {
    const { id, depth, vector } = queue;
    queue.start();
    const size = (depth - 1) * 0x1_0000 + id;
    yield* this.checked({ opcode: ADMIN.CREATE_CQ, prp1: queue.completions!.address, cdw: [size, QUEUE_PC | CQ_IEN | (vector << 16)] }, `creating completion queue ${id}`);
    yield* this.checked({ opcode: ADMIN.CREATE_SQ, prp1: queue.submissions!.address, cdw: [size, QUEUE_PC | (id << 16)] }, `creating submission queue ${id}`);
  }

  private *deleteQueue({ id }: NvmeQueue): Steps {
    yield* this.checked({ opcode: ADMIN.DELETE_SQ, cdw: [id] }, `deleting submission queue ${id}`);
    yield* this.checked({ opcode: ADMIN.DELETE_CQ, cdw: [id] }, `deleting completion queue ${id}`);
  }

  // --- reset ----------------------------------------------------------------------------------------------------

  /** Stops the controller before somebody resets its function: no DMA is under way when this returns. */
  *prepareReset(): Steps {
    if (this.state !== 'live') return;
    this.state = 'resetting';
    for (const queue of this.io) queue.close();
    yield* this.silence();
    this.cancelAll();
  }

  /** Brings the controller up again after `prepareReset`; a controller that does not come back is dead. */
  *finishReset(): Steps {
    if (this.state !== 'resetting') return;
    this.resets++;
    this.bringingUp = true;
    try {
      this.pci.setMaster(true);
      yield* this.bringUp();
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.services.log.log('err', `nvme ${this.name}: Removing after probe failure: ${error.message}`);
      if (this.state === 'resetting') this.state = 'dead';
      yield* this.silence();
      this.cancelAll();
    } finally {
      this.bringingUp = false;
    }
    this.changed.wakeAll();
  }

  /** Resets the controller, once for all who find it unwell at the same time. */
  *reset(reason: string): Steps {
    if (this.state === 'live') {
      this.services.log.log('warn', `nvme ${this.name}: ${reason}, reset controller`);
      yield* this.prepareReset();
      yield* this.finishReset();
    } else yield* this.settled();
  }

  /** Waits for the end of a reset. */
  private *settled(): Steps {
    yield* this.changed.until(() => this.state !== 'resetting' || !this.pci.present);
  }

  // --- commands -------------------------------------------------------------------------------------------------

  /** Runs `steps` while a buffer is mapped; the teardown waits for it. EIO the controller is not usable. */
  *using<T>(steps: () => Steps<T>): Steps<T> {
    if (!this.usable) throw this.deadError();
    this.users++;
    try {
      return yield* steps();
    } finally {
      this.users--;
      this.changed.wakeAll();
    }
  }

  /**
   * Carries an I/O command out, again after a reset and after errors that may pass.
   * @param queue which pair, modulo their number
   * @throws Errno EIO, EINVAL, ENOSPC by the command's status; EIO the controller is dead or goes away
   */
  *ioCommand(fields: CommandFields, queue: number): Steps<Completion> {
    for (let tries = 0; ; tries++) {
      if (this.state === 'resetting') yield* this.settled();
      const target = this.io[queue % Math.max(1, this.io.length)];
      if (!this.usable || target === undefined) throw this.deadError();
      const completion = yield* this.run(target, fields, this.services.ioTimeoutNs ?? IO_TIMEOUT_NS);
      if (completion !== undefined && (completion.status & STATUS_MASK) === STATUS.SUCCESS) return completion;
      const retry = tries < MAX_RETRIES && (completion === undefined ? this.usable : (completion.status & DNR) === 0);
      if (!retry) throw completion === undefined ? this.deadError() : this.errorOf(completion.status);
    }
  }

  /** Result of an admin command. EIO with its status; ENODEV the controller is gone. */
  *adminCommand(fields: CommandFields): Steps<number> {
    const completion = yield* this.run(this.admin, fields, ADMIN_TIMEOUT_NS);
    if (completion === undefined) throw new Errno('ENODEV', `${this.name}: the controller went away`);
    if ((completion.status & STATUS_MASK) !== STATUS.SUCCESS) throw this.errorOf(completion.status);
    return completion.result;
  }

  private *checked(fields: CommandFields, what: string): Steps<number> {
    try {
      return yield* this.adminCommand(fields);
    } catch (error) {
      if (!isErrno(error)) throw error;
      throw new Errno(error.code, `${what}: ${error.message}`);
    }
  }

  /** One attempt; undefined when it was cancelled by a reset or the end of the controller. */
  private *run(queue: NvmeQueue, fields: CommandFields, timeoutNs: number): Steps<Completion | undefined> {
    let pending: PendingCommand;
    try {
      pending = yield* queue.submit(encodeCommand(fields));
    } catch (error) {
      if (isErrno(error, 'ECANCELED')) return undefined;
      throw error;
    }
    while (!(yield* queue.changed.untilOrTimeout(() => pending.ended, timeoutNs))) {
      if (queue.process() && pending.ended) {
        this.services.log.log('warn', `nvme ${this.name}: I/O tag ${fields.opcode} QID ${queue.id} timeout, completion polled`);
        break;
      }
      yield* this.timeout(queue, pending);
    }
    return pending.completion;
  }

  /** Linux' nvme_timeout: reset at once where the controller is unwell or it is the admin queue, else abort first. */
  private *timeout(queue: NvmeQueue, pending: PendingCommand): Steps {
    const { hardware, state } = this, cid = queue.cidOf(pending);
    if (cid === undefined) return;
    // who brings it up or takes it down learns that a command did not end
    if (hardware.gone || state !== 'live') {
      yield* this.silence();
      return this.cancelAll();
    }
    if (queue === this.admin) {
      return yield* this.reset(`I/O QID 0 timeout, status 0x${hardware.status.toString(16)}`);
    }
    if (pending.aborted || hardware.failed) return yield* this.reset(`QID ${queue.id} timeout, status 0x${hardware.status.toString(16)}`);
    pending.aborted = true;
    this.services.log.log('warn', `nvme ${this.name}: I/O tag ${cid} QID ${queue.id} timeout, aborting`);
    try {
      yield* this.adminCommand({ opcode: ADMIN.ABORT, cdw: [queue.id | (cid << 16)] });
    } catch (error) {
      if (!isErrno(error)) throw error;
    }
  }

  private asyncEvent({ result, status }: Completion): void {
    if ((status & STATUS_MASK) !== STATUS.SUCCESS) return;
    this.asyncEvents.push(result);
    this.services.log.log('warn', `nvme ${this.name}: asynchronous event 0x${result.toString(16)}`);
    this.admin.submitOther(encodeCommand({ opcode: ADMIN.ASYNC_EVENT }), EVENT_CID);
  }

  private deadError(): Errno {
    return new Errno('EIO', `${this.name}: the controller is ${this.pci.present ? this.state : 'gone'}`);
  }

  /** What a block device answers (nvme_error_status, blk_status_to_errno), as far as there are such names. */
  private errorOf(status: number): Errno {
    const code = status & STATUS_MASK;
    const name = code === STATUS.INVALID_FIELD || code === STATUS.INVALID_PRP_OFFSET ? 'EINVAL' : 'EIO';
    return new Errno(name, `${this.name}: command ended with ${statusName(status)} (0x${code.toString(16)})`);
  }

  /** A log page's first bytes, a multiple of four up to 4 KiB. EIO, ENODEV, what the DMA API refuses. */
  *logPage(id: number, sizeBytes: number): Steps<Uint8Array> {
    const words = sizeBytes / 4 - 1;
    return yield* this.using(() => this.answered({ opcode: ADMIN.GET_LOG_PAGE, nsid: NSID_ALL, cdw: [id | (words << 16)] }, sizeBytes, `log page ${id}`));
  }

  /** An admin command whose answer comes into one page. */
  private *answered(fields: CommandFields, sizeBytes: number, what: string): Steps<Uint8Array> {
    const { dma, memory } = this.services;
    const page = yield* dma.dmaAllocCoherent(this.pci, IDENTIFY_SIZE);
    try {
      yield* this.checked({ ...fields, prp1: page.address }, what);
      const data = new Uint8Array(sizeBytes);
      memory.read(page.physical, data, 0, sizeBytes);
      return data;
    } finally {
      yield* dma.dmaFreeCoherent(this.pci, page);
    }
  }
}

function ascii(data: Uint8Array, at: number, length: number): string {
  return String.fromCharCode(...data.subarray(at, at + length)).trim();
}
