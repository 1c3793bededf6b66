/**
 * The command register: configuration checks, and what each command waits for. One command at a time; a write while
 * one is active is a software error. Which error stands for which mistake: spec/registers.ts (CMDSTS_ERR).
 * RESET_WQ leaves the queue's configuration as it is; RESET_DEVICE returns all registers to their reset values.
 */
import { NO_PASID } from '../../../host/pci/dma-port.js';
import type { Steps } from '../../../sim/task.js';
import { CMDSTS_ERR, DSA_CMD, GENCAP, GRPFLGCFG, STATE_DISABLED, STATE_ENABLED, WQ_MODE_DEDICATED, WQ_MODE_SHARED, WQCFG } from '../spec/registers.js';
import type { RegisterWindow } from './register-window.js';
import { Group, WQ_DISABLED, WQ_ENABLED, type WorkQueue } from './work-queue.js';
import type { Job } from './job.js';

export interface CommandOwner {
  readonly registers: RegisterWindow;
  readonly queues: readonly WorkQueue[];
  groups: readonly Group[];
  state: number;
  readonly limits: { readonly groups: number; readonly engines: number; readonly totalSize: number; readonly readBuffers: number; readonly descriptorsPerEngine: number };
  readonly busMaster: boolean;
  readonly pasidEnabled: boolean;
  readonly privilegedAllowed: boolean;
  /** Outstanding page request allocation is 0 although page requests are enabled. */
  readonly pageRequestsStarved: boolean;
  /** Waits until the selected descriptors that are accepted now have ended. */
  drain(selected: (job: Job) => boolean): Steps;
  /** Discards the selected descriptors and waits until none of them touches memory any more. */
  abort(selected: (job: Job) => boolean): Steps;
  /** All registers to their reset values. */
  resetRegisters(): void;
}

export class CommandUnit {
  private readonly owner: CommandOwner;
  private readonly skipDrain: boolean;

  constructor(owner: CommandOwner, defects: ReadonlySet<string>) {
    this.owner = owner;
    this.skipDrain = defects.has('dsa.drain-returns-early');
  }

  /** Runs one command; returns the error code for CMDSTS. */
  *execute(command: number, operand: number): Steps<number> {
    const { owner } = this;
    switch (command) {
      case DSA_CMD.ENABLE_DEVICE: return this.enableDevice();
      case DSA_CMD.ENABLE_WQ: return this.enableWq(operand);
      case DSA_CMD.RESET_DEVICE:
        yield* owner.abort(() => true);
        this.allOff();
        owner.resetRegisters();
        return CMDSTS_ERR.SUCCESS;
      case DSA_CMD.DISABLE_WQ:
      case DSA_CMD.DRAIN_WQ:
      case DSA_CMD.ABORT_WQ:
      case DSA_CMD.RESET_WQ:
        return yield* this.queueCommand(command, operand);
    }
    if (command === 0 || command > DSA_CMD.ABORT_PASID) return CMDSTS_ERR.INVAL_CMD;
    if (owner.state !== STATE_ENABLED) return CMDSTS_ERR.DIS_DEV_EN;
    switch (command) {
      case DSA_CMD.DISABLE_DEVICE:
        for (const queue of owner.queues) queue.closing = true;
        yield* this.drain(() => true);
        this.allOff();
        break;
      case DSA_CMD.DRAIN_ALL: yield* this.drain(() => true); break;
      case DSA_CMD.ABORT_ALL: yield* owner.abort(() => true); break;
      case DSA_CMD.DRAIN_PASID: yield* this.drain((job) => job.pasid === operand); break;
      case DSA_CMD.ABORT_PASID: yield* owner.abort((job) => job.pasid === operand); break;
    }
    return CMDSTS_ERR.SUCCESS;
  }

  private *drain(selected: (job: Job) => boolean): Steps {
    if (!this.skipDrain) yield* this.owner.drain(selected);
  }

  private allOff(): void {
    for (const queue of this.owner.queues) queue.turnOff();
    this.owner.groups = [];
    this.owner.state = STATE_DISABLED;
  }

  private *queueCommand(command: number, operand: number): Steps<number> {
    const { owner } = this;
    const first = (operand >>> 16) * 16;
    const selected: WorkQueue[] = [];
    for (let i = 0; i < 16; i++) {
      if ((operand & (1 << i)) === 0) continue;
      const queue = owner.queues[first + i];
      if (queue === undefined) return CMDSTS_ERR.INVAL_WQIDX;
      selected.push(queue);
    }
    if (selected.length === 0) return CMDSTS_ERR.INVAL_WQIDX;
    if (selected.some((queue) => queue.state !== WQ_ENABLED)) return CMDSTS_ERR.WQ_NOT_EN;
    const mine = (job: Job): boolean => selected.includes(job.wq);
    const closes = command === DSA_CMD.DISABLE_WQ || command === DSA_CMD.RESET_WQ;
    if (closes) for (const queue of selected) queue.closing = true;
    if (command === DSA_CMD.DISABLE_WQ || command === DSA_CMD.DRAIN_WQ) yield* this.drain(mine);
    else yield* owner.abort(mine);
    if (closes) for (const queue of selected) queue.turnOff();
    return CMDSTS_ERR.SUCCESS;
  }

  private enableDevice(): number {
    const { owner } = this;
    if (owner.state !== STATE_DISABLED) return CMDSTS_ERR.DEV_ENABLED;
    if (!owner.busMaster) return CMDSTS_ERR.BUSMASTER_EN;
    if (owner.pageRequestsStarved) return CMDSTS_ERR.PRS_ALLOC;
    let total = 0;
    for (const queue of owner.queues) total += this.wqcfg(queue.index, 'WqSize');
    if (total > owner.limits.totalSize) return CMDSTS_ERR.WQ_SIZE_ERANGE;
    const groups: Group[] = [];
    const queueOwner: number[] = [], engineOwner: number[] = [];
    let reserved = 0;
    for (let g = 0; g < owner.limits.groups; g++) {
      const queues = this.bitsOf([0, 1, 2, 3].map((i) => owner.registers.r[`GRPWQCFG${g}_${i}`]!.value));
      const engines = this.bitsOf([owner.registers.r[`GRPENGCFG${g}`]!.value]);
      if ((queues.length === 0) !== (engines.length === 0)) return CMDSTS_ERR.GRP_CONFIG;
      for (const wq of queues) {
        if (wq >= owner.queues.length || queueOwner[wq] !== undefined) return CMDSTS_ERR.GRP_CONFIG_WQ;
        queueOwner[wq] = g;
      }
      for (const engine of engines) {
        if (engine >= owner.limits.engines || engineOwner[engine] !== undefined) return CMDSTS_ERR.GRP_CONFIG_ENGINE;
        engineOwner[engine] = g;
      }
      const flags = this.groupFlags(g);
      reserved += GRPFLGCFG.f.RdbufsReserved.get(flags);
      if (queues.length > 0 && GRPFLGCFG.f.RdbufsAllowed.get(flags) < GRPFLGCFG.f.RdbufsReserved.get(flags)) return CMDSTS_ERR.GRP_CONFIG_RDBUF;
      groups.push(new Group(g, queues.map((wq) => owner.queues[wq]!), engines, owner.limits.descriptorsPerEngine));
    }
    if (reserved > owner.limits.readBuffers) return CMDSTS_ERR.GRP_CONFIG_RDBUF;
    // a queue with entries and no group could never be emptied
    if (owner.queues.some((queue) => queueOwner[queue.index] === undefined && this.wqcfg(queue.index, 'WqSize') > 0)) return CMDSTS_ERR.GRP_CONFIG_WQ;
    owner.groups = groups;
    owner.state = STATE_ENABLED;
    return CMDSTS_ERR.SUCCESS;
  }

  private enableWq(index: number): number {
    const { owner } = this;
    if (owner.state !== STATE_ENABLED) return CMDSTS_ERR.DEV_NOTEN;
    const queue = owner.queues[index];
    if (queue === undefined) return CMDSTS_ERR.INVAL_WQIDX;
    if (queue.state !== WQ_DISABLED) return CMDSTS_ERR.WQ_ENABLED;
    const get = (field: keyof typeof WQCFG.f): number => this.wqcfg(index, field);
    if (get('WqSize') === 0) return CMDSTS_ERR.WQ_SIZE;
    if (get('Priority') === 0) return CMDSTS_ERR.WQ_PRIOR;
    const dedicated = get('Mode') === WQ_MODE_DEDICATED;
    const pasidEnable = get('PasidEn') === 1;
    const capabilities = this.words('GENCAP');
    if (get('Bof') === 1 && GENCAP.f.BlockOnFault.get(capabilities) === 0) return CMDSTS_ERR.BOF_EN;
    // descriptors of a shared queue carry their PASID, so it must be on there
    if ((pasidEnable && !owner.pasidEnabled) || (get('Mode') === WQ_MODE_SHARED && !pasidEnable)) return CMDSTS_ERR.PASID_EN;
    if (get('MaxBatchShift') > GENCAP.f.MaxBatchShift.get(capabilities)) return CMDSTS_ERR.MAX_BATCH_SIZE;
    if (get('MaxXferShift') > GENCAP.f.MaxXferShift.get(capabilities)) return CMDSTS_ERR.MAX_XFER_SIZE;
    if (dedicated && pasidEnable && get('Priv') === 1 && !owner.privilegedAllowed) return CMDSTS_ERR.PRIV;
    queue.config = {
      size: get('WqSize'), threshold: get('WqThresh'), dedicated, blockOnFault: get('Bof') === 1, priority: get('Priority'),
      pasid: dedicated && pasidEnable ? get('Pasid') : NO_PASID, privileged: get('Priv') === 1,
      maxTransfer: 2 ** get('MaxXferShift'), maxBatch: 2 ** get('MaxBatchShift'),
    };
    queue.credit = queue.config.priority;
    queue.state = WQ_ENABLED;
    queue.life++;
    return CMDSTS_ERR.SUCCESS;
  }

  private wqcfg(index: number, field: keyof typeof WQCFG.f): number {
    const words: number[] = [];
    for (let i = 0; i < 8; i++) words.push(this.owner.registers.r[`WQCFG${index}_${i}`]!.lo);
    return WQCFG.f[field].get(words);
  }

  private words(name: string): number[] {
    const register = this.owner.registers.r[name]!;
    return [register.lo, register.hi];
  }

  private groupFlags(group: number): number[] {
    return this.words(`GRPFLGCFG${group}`);
  }

  private bitsOf(qwords: readonly bigint[]): number[] {
    const set: number[] = [];
    qwords.forEach((qword, i) => {
      for (let b = 0; b < 64; b++) if ((qword >> BigInt(b)) & 1n) set.push(i * 64 + b);
    });
    return set;
  }
}
