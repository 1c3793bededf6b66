/**
 * BAR 0 of a virtual accelerator, in the layouts of the real one: one queue, one group, one engine, whose configuration
 * software reads and cannot change (GENCAP.ConfigEn is 0), but for the PASID fields of the queue, which are remembered and
 * mean nothing. Capabilities are what the physical queue is configured for; block on fault is not among them.
 */
import { RegisterFile } from '../../../sim/registers.js';
import { PlainMmio, type AccessSize } from '../../../sim/mmio.js';
import { OPCAP_VALUE } from '../spec/descriptor.js';
import {
  dsaRegisterSpecs, ENGCAP, GENCAP, GRPCAP, GRPFLGCFG, INTC_CMD, INTC_ERR, INTC_HALT_STATE, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET, REGISTERS_BAR_SIZE, RESET_TYPE_FLR,
  STATE_DISABLED, STATE_HALT, SWERROR, WQ_MODE_DEDICATED, WQ_MODE_SHARED, WQCAP, WQCFG, WQCFG_SIZE_FIELD, WQCFG_STRIDE, WQCFG_TABLE,
} from '../spec/registers.js';
import type { IdxdCapabilities } from '../driver/idxd-hardware.js';
import { DEFAULT_WQ, type IdxdWqOptions } from '../driver/idxd-options.js';
import { VDSA_VECTORS, type VdsaInterrupts } from './vdsa-interrupts.js';

/** Commands 1 to 10, and the two for interrupt handles; PASIDs are none of a virtual device's business. */
const COMMANDS = 0x67fe;
/** WQCFG.Pasid, PasidEn and Priv in dword 2. */
const PASID_FIELDS = 0x3fff_ff00n;
const GENCFG_OFFSET = 0x80;
const SOFTERR_ENABLE = 1;
const HALT_ENABLE = 2;

const TABLE_END = MSIX_TABLE_OFFSET + VDSA_VECTORS * 16;
const PBA_END = MSIX_PBA_OFFSET + 8;

export class VdsaRegisters extends PlainMmio {
  /** Called with what software wrote to CMD. */
  onCommand: ((word: number) => void) | undefined;
  wqEnabled = false;
  private readonly file: RegisterFile;
  private readonly interrupts: VdsaInterrupts;

  constructor(wq: IdxdWqOptions, caps: IdxdCapabilities, interrupts: VdsaInterrupts) {
    super();
    this.interrupts = interrupts;
    this.file = new RegisterFile('vdsa', REGISTERS_BAR_SIZE, registerSpecs(wq, caps));
    const status = this.file.r['WQCFG0_6']!;
    status.onRead = () => {
      status.lo = this.wqEnabled ? 0x4000_0000 : 0;
    };
    this.file.r['CMD']!.onWrite = (lo) => this.onCommand?.(lo);
  }

  get state(): number {
    return this.file.r['GENSTS']!.lo & 3;
  }

  set state(state: number) {
    this.file.r['GENSTS']!.lo = state;
  }

  get commandStatus(): number {
    return this.file.r['CMDSTS']!.lo;
  }

  set commandStatus(status: number) {
    this.file.r['CMDSTS']!.lo = status;
  }

  /** WQCFG.Pasid as software wrote it. */
  get virtualPasid(): number {
    return WQCFG.f.Pasid.get([0, 0, this.file.r['WQCFG0_2']!.lo]);
  }

  /** RESET_DEVICE: its own status stays, and so does the MSI-X table. */
  resetDevice(): void {
    const { commandStatus } = this;
    this.file.reset();
    this.commandStatus = commandStatus;
    this.wqEnabled = false;
  }

  /** A reset of the function: everything. */
  resetFunction(): void {
    this.file.reset();
    this.interrupts.reset();
    this.wqEnabled = false;
  }

  /** A command has ended. */
  commandDone(status: number, interrupt: boolean): void {
    this.commandStatus = status;
    if (interrupt) this.cause(INTC_CMD);
  }

  /**
   * Records an error that no completion record carries; the first stays until software clears Valid, later ones only set
   * Overflow. @param words a SWERROR of the physical device: queue and PASID are replaced by what software knows here
   */
  reportError(error: number, words = SWERROR.encode({ Valid: 1, Error: error, WqIdxValid: 1 })): void {
    const first = this.file.r['SWERROR0']!;
    if ((first.lo & 1) !== 0) {
      if ((first.lo & 2) !== 0) return;
      first.lo |= 2;
    } else {
      SWERROR.f.WqIdx.set(words, 0);
      SWERROR.f.Pasid.set(words, SWERROR.f.DescValid.get(words) === 1 ? this.virtualPasid : 0);
      SWERROR.f.Overflow.set(words, 0);
      for (let i = 0; i < 4; i++) {
        const register = this.file.r[`SWERROR${i}`]!;
        register.lo = words[2 * i]!;
        register.hi = words[2 * i + 1]!;
      }
    }
    if ((this.file.r['GENCTRL']!.lo & SOFTERR_ENABLE) !== 0) this.cause(INTC_ERR);
  }

  /** Only a function level reset helps now. */
  halt(): void {
    this.file.r['GENSTS']!.lo = STATE_HALT | (RESET_TYPE_FLR << 2);
    if ((this.file.r['GENCTRL']!.lo & HALT_ENABLE) !== 0) this.cause(INTC_HALT_STATE);
  }

  read(offset: number, size: AccessSize): number {
    this.high = 0;
    if (size < 4) return (this.read(offset - (offset % 4), 4) >>> (8 * (offset % 4))) & (size === 1 ? 0xff : 0xffff);
    const { table, pending } = this.interrupts;
    if (offset >= MSIX_TABLE_OFFSET && offset < TABLE_END) {
      if (size === 8) this.high = table[((offset - MSIX_TABLE_OFFSET) >>> 2) + 1]!;
      return table[(offset - MSIX_TABLE_OFFSET) >>> 2]!;
    }
    if (offset >= MSIX_PBA_OFFSET && offset < PBA_END) return offset === MSIX_PBA_OFFSET ? pending : 0;
    const value = this.file.read(offset, size);
    this.high = this.file.high;
    return value;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    // registers take whole words, like the real device's
    if (size < 4 || (offset >= MSIX_PBA_OFFSET && offset < PBA_END)) return;
    if (offset >= MSIX_TABLE_OFFSET && offset < TABLE_END) {
      this.interrupts.writeTable(offset - MSIX_TABLE_OFFSET, lo);
      if (size === 8) this.interrupts.writeTable(offset - MSIX_TABLE_OFFSET + 4, hi);
    } else if (!this.locked(offset)) {
      this.file.write(offset, size, lo, hi);
    }
  }

  /** General configuration is fixed while the device is on, a queue's while the queue is. */
  private locked(offset: number): boolean {
    if (offset >= WQCFG_TABLE && offset < WQCFG_TABLE + WQCFG_STRIDE) return this.wqEnabled;
    return this.state !== STATE_DISABLED && offset >= GENCFG_OFFSET && offset < GENCFG_OFFSET + 4;
  }

  private cause(bits: number): void {
    this.file.r['INTCAUSE']!.lo |= bits;
    this.interrupts.raise(0);
  }
}

function registerSpecs(wq: IdxdWqOptions, caps: IdxdCapabilities): ReturnType<typeof dsaRegisterSpecs> {
  const shared = wq.mode === 'shared';
  const MaxXferShift = Math.log2(Math.min(wq.maxTransfer ?? DEFAULT_WQ.maxTransfer, caps.maxTransfer));
  const MaxBatchShift = Math.log2(Math.min(wq.maxBatch ?? DEFAULT_WQ.maxBatch, caps.maxBatch));
  const qword = (words: Uint32Array): bigint => BigInt(words[0]!) | (BigInt(words[1] ?? 0) << 32n);
  const specs = dsaRegisterSpecs({ wqs: 1, groups: 1, vectors: VDSA_VECTORS }, {
    gencap: qword(GENCAP.encode({ OverlapCopy: 1, CmdCap: 1, MaxXferShift, MaxBatchShift })),
    wqcap: qword(WQCAP.encode({ TotalWqSize: wq.size, NumWqs: 1, WqcfgSize: WQCFG_SIZE_FIELD, SharedMode: shared ? 1 : 0, DedicatedMode: shared ? 0 : 1, Priority: 1 })),
    grpcap: qword(GRPCAP.encode({ NumGroups: 1 })),
    engcap: qword(ENGCAP.encode({ NumEngines: 1 })),
    opcap: caps.opcap & OPCAP_VALUE,
    cmdcap: COMMANDS,
  });
  const fix = (name: string, reset: bigint, rw = 0n): void => {
    const { offset, size } = specs[name]!;
    specs[name] = { offset, size, reset, rw };
  };
  for (let i = 0; i < 4; i++) fix(`GRPWQCFG0_${i}`, i === 0 ? 1n : 0n);
  fix('GRPENGCFG0', 1n);
  fix('GRPFLGCFG0', qword(GRPFLGCFG.encode({ TcA: 1, TcB: 1 })));
  const config = WQCFG.encode({
    WqSize: wq.size, WqThresh: shared ? wq.threshold ?? wq.size : 0, Mode: shared ? WQ_MODE_SHARED : WQ_MODE_DEDICATED, Priority: wq.priority ?? DEFAULT_WQ.priority,
    PasidEn: shared ? 1 : 0, MaxXferShift, MaxBatchShift,
  });
  for (let i = 0; i < 4; i++) fix(`WQCFG0_${i}`, BigInt(config[i]!), i === 2 ? PASID_FIELDS : 0n);
  return specs;
}
