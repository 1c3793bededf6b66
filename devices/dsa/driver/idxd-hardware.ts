/**
 * The accelerator's registers as its driver uses them: commands with their completion interrupt, capabilities,
 * configuration tables, causes of interrupts. The order of accesses follows the recorded Linux driver (probe: VER,
 * GENSTS, RESET_DEVICE polled; then every command by interrupt).
 */
import { hex } from '../../../sim/address.js';
import { Errno } from '../../../sim/errno.js';
import { read64, write64, type Mmio } from '../../../sim/mmio.js';
import { Completion, Mutex, sleep, type Steps } from '../../../sim/task.js';
import {
  CMDSTS, CMDSTS_ERR, DSA_CMD, GENCAP, GRPCAP, GRPCFG_STRIDE, GRPENGCFG_OFFSET, GRPFLGCFG, GRPFLGCFG_OFFSET, INTC_CMD, INTC_ERR, INTC_HALT_STATE, OFFSETS,
  STATE_ENABLED, STATE_HALT, TABLE_UNIT, WQCAP, WQCFG,
} from '../spec/registers.js';
import type { IdxdServices } from './idxd-options.js';

const GENCTRL_UNMASK = 3;
const GENCFG_USER_INTERRUPTS = 0x1000;
/** While a command takes its time, the device is asked this often whether it is still there, and so many times: a command that never ends is a deadlock. */
const PRESENCE_CHECK_NS = 1_000_000_000;
const PRESENCE_CHECKS = 10;

export interface IdxdCapabilities {
  readonly version: number;
  readonly maxTransfer: number;
  readonly maxBatch: number;
  readonly blockOnFault: boolean;
  readonly configurable: boolean;
  readonly wqs: number;
  readonly totalWqSize: number;
  readonly shared: boolean;
  readonly dedicated: boolean;
  readonly groups: number;
  readonly engines: number;
  readonly readBuffers: number;
  readonly wqcfgStride: number;
  readonly opcap: bigint;
  /** Supported commands, one bit each; 0 when the device does not say. */
  readonly commands: number;
}

export interface HardwareEvents {
  softwareError(words: Uint32Array): void;
  halt(resetType: number): void;
}

export class IdxdHardware {
  readonly mmio: Mmio;
  capabilities: IdxdCapabilities;
  private grpcfg = 0;
  private wqcfg = 0;
  private msixPerm = 0;
  private readonly name: string;
  private readonly services: IdxdServices;
  private readonly events: HardwareEvents;
  private readonly commandLock: Mutex;
  private done: Completion | undefined;

  constructor(name: string, mmio: Mmio, services: IdxdServices, events: HardwareEvents) {
    this.name = name;
    this.mmio = mmio;
    this.services = services;
    this.events = events;
    this.commandLock = new Mutex(services.scheduler, `${name} commands`);
    this.capabilities = { version: 0, maxTransfer: 0, maxBatch: 0, blockOnFault: false, configurable: false, wqs: 0, totalWqSize: 0, shared: false, dedicated: false, groups: 0, engines: 0, readBuffers: 0, wqcfgStride: 0, opcap: 0n, commands: 0 };
  }

  /** Reset by polling, then what the device can do. ENXIO when it is halted or not there. */
  *init(): Steps {
    const { mmio } = this;
    const version = mmio.read(0x00, 4);
    if (version === 0xffff_ffff) throw new Errno('ENXIO', `${this.name}: registers read as ones`);
    if (this.state === STATE_HALT) throw new Errno('ENXIO', `${this.name}: device is halted`);
    mmio.write(0xa0, 4, DSA_CMD.RESET_DEVICE << 20);
    for (let status = mmio.read(0xa8, 4); status >= 0x8000_0000; status = mmio.read(0xa8, 4)) {
      if (status === 0xffff_ffff) throw new Errno('ENXIO', `${this.name}: registers read as ones`);
      yield* sleep(this.services.clock, this.services.timing.options.pollNs);
    }
    mmio.write(0x80, 4, mmio.read(0x80, 4) | GENCFG_USER_INTERRUPTS);
    this.capabilities = this.readCapabilities(version);
  }

  private readCapabilities(version: number): IdxdCapabilities {
    const gencap = this.words(0x10);
    const commands = GENCAP.f.CmdCap.get(gencap) === 1 ? this.mmio.read(0xb0, 4) : 0;
    const grpcap = this.words(0x30), engcap = this.words(0x38), wqcap = this.words(0x20);
    const opcap = read64(this.mmio, 0x40) | (read64(this.mmio, 0x48) << 64n) | (read64(this.mmio, 0x50) << 128n) | (read64(this.mmio, 0x58) << 192n);
    const offsets = [...this.words(0x60), ...this.words(0x68)];
    this.grpcfg = OFFSETS.f.Grpcfg.get(offsets) * TABLE_UNIT;
    this.wqcfg = OFFSETS.f.Wqcfg.get(offsets) * TABLE_UNIT;
    this.msixPerm = OFFSETS.f.MsixPerm.get(offsets) * TABLE_UNIT;
    return {
      version, opcap, commands,
      maxTransfer: 2 ** GENCAP.f.MaxXferShift.get(gencap), maxBatch: 2 ** GENCAP.f.MaxBatchShift.get(gencap),
      blockOnFault: GENCAP.f.BlockOnFault.get(gencap) === 1, configurable: GENCAP.f.ConfigEn.get(gencap) === 1,
      wqs: WQCAP.f.NumWqs.get(wqcap), totalWqSize: WQCAP.f.TotalWqSize.get(wqcap), shared: WQCAP.f.SharedMode.get(wqcap) === 1,
      dedicated: WQCAP.f.DedicatedMode.get(wqcap) === 1, wqcfgStride: 2 ** (WQCAP.f.WqcfgSize.get(wqcap) + 5),
      groups: GRPCAP.f.NumGroups.get(grpcap), readBuffers: GRPCAP.f.TotalRdbufs.get(grpcap), engines: engcap[0]! & 0xff,
    };
  }

  private words(offset: number): [number, number] {
    const lo = this.mmio.read(offset, 8);
    return [lo, this.mmio.high];
  }

  get state(): number {
    return this.mmio.read(0x90, 4) & 3;
  }

  get enabled(): boolean {
    return this.state === STATE_ENABLED;
  }

  unmaskErrors(): void {
    this.mmio.write(0x88, 4, this.mmio.read(0x88, 4) | GENCTRL_UNMASK);
  }

  maskErrors(): void {
    this.mmio.write(0x88, 4, this.mmio.read(0x88, 4) & ~GENCTRL_UNMASK);
  }

  /** Runs a command and sleeps until its interrupt; returns the error code of CMDSTS, HW_ERR when the device is halted or gone. */
  *command(command: number, operand = 0): Steps<number> {
    return (yield* this.execute(command, operand)) & 0xff;
  }

  /**
   * Asks what a descriptor must name to interrupt through a vector of the MSI-X table: the vector itself where the device has
   * no such command. ENXIO refused.
   */
  *requestIntHandle(vector: number): Steps<number> {
    if ((this.capabilities.commands & (1 << DSA_CMD.REQUEST_INT_HANDLE)) === 0) return vector;
    const status = yield* this.execute(DSA_CMD.REQUEST_INT_HANDLE, vector);
    if ((status & 0xff) !== CMDSTS_ERR.SUCCESS) throw new Errno('ENXIO', `${this.name}: no interrupt handle for vector ${vector}, command status ${hex(status & 0xff)}`);
    return CMDSTS.f.Result.get([status]);
  }

  /** Gives a handle back; nothing where there is no such command. */
  *releaseIntHandle(handle: number): Steps {
    if ((this.capabilities.commands & (1 << DSA_CMD.RELEASE_INT_HANDLE)) !== 0) yield* this.execute(DSA_CMD.RELEASE_INT_HANDLE, handle);
  }

  /** CMDSTS after the command. */
  private *execute(command: number, operand: number): Steps<number> {
    yield* this.commandLock.lock();
    try {
      if (this.mmio.read(0x90, 4) === 0xffff_ffff || this.state === STATE_HALT) return CMDSTS_ERR.HW_ERR;
      const done = new Completion(this.services.scheduler, `${this.name} command ${command}`);
      this.done = done;
      this.mmio.write(0xa0, 4, ((command << 20) | operand | 0x8000_0000) >>> 0);
      // a device that is pulled out before its interrupt reads as ones from then on
      let gone = false;
      for (let check = 0; check < PRESENCE_CHECKS && !gone && !(yield* done.waitFor(PRESENCE_CHECK_NS)); check++) gone = this.mmio.read(0xa8, 4) === 0xffff_ffff;
      if (!gone) yield* done.wait();
      const status = this.mmio.read(0xa8, 4);
      return status === 0xffff_ffff ? CMDSTS_ERR.HW_ERR : status;
    } finally {
      this.done = undefined;
      this.commandLock.unlock();
    }
  }

  /** The device is gone or was reset behind the driver's back: whoever waits for a command stops waiting. */
  cancelCommand(): void {
    this.done?.complete();
  }

  /** Vector 0: errors, command completions, halt. Runs until no cause is left. */
  miscInterrupt(): void {
    for (;;) {
      const cause = this.mmio.read(0x98, 4);
      if (cause === 0 || cause === 0xffff_ffff) return;
      this.mmio.write(0x98, 4, cause);
      if ((cause & INTC_ERR) !== 0) this.readSoftwareError();
      if ((cause & INTC_CMD) !== 0) this.done?.complete();
      if ((cause & INTC_HALT_STATE) !== 0 && this.state === STATE_HALT) {
        this.events.halt((this.mmio.read(0x90, 4) >>> 2) & 3);
        this.cancelCommand();
      }
    }
  }

  private readSoftwareError(): void {
    const words = new Uint32Array(8);
    for (let i = 0; i < 4; i++) {
      words[2 * i] = this.mmio.read(0xc0 + 8 * i, 8);
      words[2 * i + 1] = this.mmio.high;
    }
    this.mmio.write(0xc0, 8, words[0]! & 3, 0);
    if ((words[0]! & 1) !== 0) this.events.softwareError(words);
  }

  /** Reads, then writes a queue's whole configuration: what the hardware keeps stays, `fields` replace. */
  writeWqConfig(wq: number, fields: Partial<Record<keyof typeof WQCFG.f, number>>): void {
    const base = this.wqcfg + wq * this.capabilities.wqcfgStride;
    const words: number[] = [];
    for (let i = 0; i < this.capabilities.wqcfgStride / 4; i++) words.push(this.mmio.read(base + 4 * i, 4));
    for (const [name, value] of Object.entries(fields)) WQCFG.f[name as keyof typeof WQCFG.f].set(words, value);
    words.forEach((word, i) => this.mmio.write(base + 4 * i, 4, word));
  }

  /** A queue's configuration as the hardware has it (`idxd_wq_load_config`). */
  readWqConfig(wq: number): number[] {
    const base = this.wqcfg + wq * this.capabilities.wqcfgStride;
    return [0, 1, 2, 3, 4, 5, 6, 7].map((i) => this.mmio.read(base + 4 * i, 4));
  }

  /** Mask of the queues of a group. */
  readGroupQueues(group: number): bigint {
    const base = this.grpcfg + group * GRPCFG_STRIDE;
    return [0, 1, 2, 3].reduce((mask, i) => mask | (read64(this.mmio, base + 8 * i) << BigInt(64 * i)), 0n);
  }

  /** PASID of a dedicated queue that is off; undefined takes it away. */
  setWqPasid(wq: number, pasid: number | undefined): void {
    const at = this.wqcfg + wq * this.capabilities.wqcfgStride + 8;
    const words = [0, 0, this.mmio.read(at, 4)];
    WQCFG.f.PasidEn.set(words, pasid === undefined ? 0 : 1);
    WQCFG.f.Pasid.set(words, pasid ?? 0);
    this.mmio.write(at, 4, words[2]!);
  }

  writeGroup(group: number, wqMask: bigint, engineMask: bigint): void {
    const base = this.grpcfg + group * GRPCFG_STRIDE;
    for (let i = 0; i < 4; i++) write64(this.mmio, base + 8 * i, (wqMask >> BigInt(64 * i)) & 0xffff_ffff_ffff_ffffn);
    write64(this.mmio, base + GRPENGCFG_OFFSET, engineMask);
    const flags = GRPFLGCFG.encode({ TcA: 1, TcB: 1, RdbufsAllowed: this.capabilities.readBuffers });
    this.mmio.write(base + GRPFLGCFG_OFFSET, 8, flags[0]!, flags[1]!);
  }

  /** Lets descriptors without PASID (or with `pasid`) use an interrupt vector. */
  setInterruptPermission(vector: number, pasid: number | undefined): void {
    this.mmio.write(this.msixPerm + vector * 8, 4, pasid === undefined ? 0 : ((pasid << 12) | 8) >>> 0);
  }
}
