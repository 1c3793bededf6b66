/**
 * A window of device registers that is mapped into a guest, as its virtual CPUs reach it. Loads, stores and MOVDIR64B
 * go to the device as they are. ENQCMD and ENQCMDS do not: the CPU replaces the guest's PASID in bits 19:0 of the
 * 64 bytes by the host's (Intel SDM volume 2A, "ENQCMD": PASID translation in VMX non-root operation), so that a guest
 * cannot name anybody else's.
 *
 * Without a translation the instruction causes a VM exit, before anything was written (exit reason 72, ENQCMDS: 73).
 * A VMM may then inject #GP or emulate the instruction. Here it emulates one that found the queue full (ZF = 1): the
 * guest's software sees a device that never takes the command, and an `enqcmd_exit` record says why. Which of the two
 * instructions it was is told by the privilege bit that the guest's CPU inserted.
 */
import type { AccessSize, EnqueueResult, Mmio } from '../../sim/mmio.js';
import { EXIT_REASON_ENQCMD_PASID, EXIT_REASON_ENQCMDS_PASID } from './spec/pasid-translation.js';

/** What the window asks of the virtual machine. */
export interface EnqueueTranslation {
  /** -1: exit. */
  translatePasid(guestPasid: number): number;
  enqcmdExit(guestPasid: number, reason: number): void;
}

export class VcpuWindow implements Mmio {
  private readonly target: Mmio;
  private readonly vm: EnqueueTranslation;
  private readonly untranslated: boolean;
  private readonly bytes = new Uint8Array(64);

  /** @param defects `kvm.enqcmd-untranslated`: the guest's PASID goes to the device */
  constructor(target: Mmio, vm: EnqueueTranslation, defects?: ReadonlySet<string>) {
    this.target = target;
    this.vm = vm;
    this.untranslated = defects?.has('kvm.enqcmd-untranslated') ?? false;
  }

  get high(): number {
    return this.target.high;
  }

  read(offset: number, size: AccessSize): number {
    return this.target.read(offset, size);
  }

  write(offset: number, size: AccessSize, lo: number, hi?: number): void {
    this.target.write(offset, size, lo, hi);
  }

  write64(offset: number, bytes: Uint8Array): void {
    this.target.write64(offset, bytes);
  }

  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    const guest = bytes[0]! | (bytes[1]! << 8) | ((bytes[2]! & 0xf) << 16);
    const host = this.untranslated ? guest : this.vm.translatePasid(guest);
    if (host < 0) {
      this.vm.enqcmdExit(guest, (bytes[3]! & 0x80) !== 0 ? EXIT_REASON_ENQCMDS_PASID : EXIT_REASON_ENQCMD_PASID);
      return 'retry';
    }
    const translated = this.bytes;
    for (let i = 0; i < 64; i++) translated[i] = bytes[i]!;
    translated[0] = host & 0xff;
    translated[1] = (host >>> 8) & 0xff;
    translated[2] = (bytes[2]! & 0xf0) | (host >>> 16);
    return this.target.enqueue64(offset, translated);
  }
}
