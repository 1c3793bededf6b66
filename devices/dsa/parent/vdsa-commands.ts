/**
 * The command register of a virtual accelerator. A command is carried out by the parent's commands on the physical queue,
 * and CMDSTS.Active stays set until they are done. Which error stands for which mistake: spec/registers.ts (CMDSTS_ERR).
 */
import { Mutex, type Scheduler, type Steps } from '../../../sim/task.js';
import { CMD, CMDSTS, CMDSTS_ERR, DSA_CMD, INT_HANDLE_IMS, STATE_DISABLED, STATE_ENABLED, STATE_HALT, SWERR } from '../spec/registers.js';
import type { QueueLease } from './queue-lease.js';
import { VDSA_VECTORS } from './vdsa-interrupts.js';
import type { VdsaRegisters } from './vdsa-registers.js';

export interface CommandOwner {
  readonly name: string;
  readonly registers: VdsaRegisters;
  readonly lease: QueueLease;
  readonly busMaster: boolean;
  /** What ENABLE_WQ puts into the hardware; undefined without an aux domain. */
  queuePasid(): number | undefined;
  commandEnded(command: number, operand: number, status: number): void;
}

export class VdsaCommands {
  private readonly owner: CommandOwner;
  private readonly scheduler: Scheduler;
  /** One at a time acts on the physical queue. */
  private readonly lock: Mutex;
  /** Grows with every reset: a command that began before it reports nothing after it. */
  private life = 0;
  private handleGiven = false;

  constructor(owner: CommandOwner, scheduler: Scheduler) {
    this.owner = owner;
    this.scheduler = scheduler;
    this.lock = new Mutex(scheduler, `commands of ${owner.name}`);
  }

  /** Software wrote CMD. A second command while one is active is a software error. */
  start(word: number): void {
    const { registers, name } = this.owner;
    if (CMDSTS.f.Active.get([registers.commandStatus]) === 1) {
      registers.reportError(SWERR.CMD_REG);
      return;
    }
    if (registers.state === STATE_HALT) return;
    registers.commandStatus = 0x8000_0000;
    const command = CMD.f.Cmd.get([word]), operand = CMD.f.Operand.get([word]);
    this.scheduler.spawn(`${name} command ${command}`, this.run(command, operand, CMD.f.IntReq.get([word]) === 1, this.life), { daemon: true });
  }

  private *run(command: number, operand: number, interrupt: boolean, life: number): Steps {
    yield* this.lock.lock();
    let status: number;
    try {
      if (life !== this.life) return;
      status = yield* this.execute(command, operand, () => life === this.life);
    } finally {
      this.lock.unlock();
    }
    this.owner.commandEnded(command, operand, status);
    if (life === this.life) this.owner.registers.commandDone(status, interrupt);
  }

  /** What is under way reports nothing any more; `reset` follows. */
  cut(): void {
    this.life++;
    this.owner.registers.wqEnabled = false;
  }

  /** Everything that was under way has no effect any more; the queue's descriptors are dropped and it is off, without PASID. */
  *reset(): Steps {
    this.cut();
    yield* this.lock.lock();
    try {
      this.takeHandle();
      yield* this.owner.lease.disable(false);
    } finally {
      this.lock.unlock();
    }
  }

  /** @param current false once a reset overtook the command */
  private *execute(command: number, operand: number, current: () => boolean): Steps<number> {
    const { registers, lease } = this.owner;
    switch (command) {
      case DSA_CMD.ENABLE_DEVICE:
        if (registers.state !== STATE_DISABLED) return CMDSTS_ERR.DEV_ENABLED;
        if (!this.owner.busMaster) return CMDSTS_ERR.BUSMASTER_EN;
        registers.state = STATE_ENABLED;
        return CMDSTS_ERR.SUCCESS;
      case DSA_CMD.ENABLE_WQ: return yield* this.enableWq(operand, current);
      case DSA_CMD.RESET_DEVICE:
        this.takeHandle();
        yield* lease.disable(false);
        if (current()) registers.resetDevice();
        return CMDSTS_ERR.SUCCESS;
      case DSA_CMD.DISABLE_WQ:
      case DSA_CMD.DRAIN_WQ:
      case DSA_CMD.ABORT_WQ:
      case DSA_CMD.RESET_WQ:
        if (operand !== 1) return CMDSTS_ERR.INVAL_WQIDX;
        if (!registers.wqEnabled) return CMDSTS_ERR.WQ_NOT_EN;
        return yield* this.queueCommand(command);
      case DSA_CMD.DISABLE_DEVICE:
      case DSA_CMD.DRAIN_ALL:
      case DSA_CMD.ABORT_ALL: {
        if (registers.state !== STATE_ENABLED) return CMDSTS_ERR.DIS_DEV_EN;
        const same = command === DSA_CMD.DRAIN_ALL ? DSA_CMD.DRAIN_WQ : command === DSA_CMD.ABORT_ALL ? DSA_CMD.ABORT_WQ : DSA_CMD.DISABLE_WQ;
        const error = registers.wqEnabled ? yield* this.queueCommand(same) : CMDSTS_ERR.SUCCESS;
        if (command === DSA_CMD.DISABLE_DEVICE && error === CMDSTS_ERR.SUCCESS && current()) registers.state = STATE_DISABLED;
        return error;
      }
      case DSA_CMD.REQUEST_INT_HANDLE: return this.requestHandle(operand);
      case DSA_CMD.RELEASE_INT_HANDLE:
        if (!this.handleGiven || operand !== lease.vector) return CMDSTS_ERR.INVAL_INT_IDX_RELEASE;
        this.takeHandle();
        return CMDSTS_ERR.SUCCESS;
    }
    return CMDSTS_ERR.INVAL_CMD;
  }

  private *enableWq(index: number, current: () => boolean): Steps<number> {
    const { registers, lease } = this.owner;
    if (registers.state !== STATE_ENABLED) return CMDSTS_ERR.DEV_NOTEN;
    if (index !== 0) return CMDSTS_ERR.INVAL_WQIDX;
    if (registers.wqEnabled) return CMDSTS_ERR.WQ_ENABLED;
    const pasid = this.owner.queuePasid();
    if (pasid === undefined) return CMDSTS_ERR.PASID_EN;
    if ((yield* lease.enable(pasid)) !== CMDSTS_ERR.SUCCESS) return CMDSTS_ERR.HW_ERR;
    if (current()) registers.wqEnabled = true;
    return CMDSTS_ERR.SUCCESS;
  }

  private *queueCommand(command: number): Steps<number> {
    const { registers, lease } = this.owner;
    let error: number;
    switch (command) {
      case DSA_CMD.DRAIN_WQ:
        error = yield* lease.drain();
        break;
      case DSA_CMD.ABORT_WQ:
        error = yield* lease.abort();
        break;
      default:
        error = yield* lease.disable(command === DSA_CMD.DISABLE_WQ);
        registers.wqEnabled = false;
    }
    return error === CMDSTS_ERR.SUCCESS ? CMDSTS_ERR.SUCCESS : CMDSTS_ERR.HW_ERR;
  }

  /** The handle of vector 1 is the number of the physical vector behind it; vector 0 is emulated and needs none. */
  private requestHandle(operand: number): number {
    if ((operand & INT_HANDLE_IMS) !== 0) return CMDSTS_ERR.NO_HANDLE;
    if ((operand & 0xffff) < 1 || (operand & 0xffff) >= VDSA_VECTORS) return CMDSTS_ERR.INVAL_INT_IDX;
    this.handleGiven = true;
    this.owner.lease.permitInterrupts(true);
    return CMDSTS_ERR.SUCCESS | (this.owner.lease.vector << 8);
  }

  private takeHandle(): void {
    this.handleGiven = false;
    this.owner.lease.permitInterrupts(false);
  }
}
