/**
 * The tables with which a host tells its CPU what a guest's PASIDs are on the host (spec/pasid-translation.ts), in the
 * host's memory, and the walk that the CPU makes of them at every ENQCMD of a guest. One set for all virtual CPUs of a
 * guest. Who may map what is decided by the caller.
 */
import { hex } from '../../sim/address.js';
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { FrameSource } from '../../host/frame-source.js';
import { directoryOf, directoryOffset, PASID_DIRECTORY_ENTRY, PASID_LIMIT, PASID_TABLE_ENTRY, tableOffset } from './spec/pasid-translation.js';

/** Owner of the frames in the allocator's accounts. */
export const KVM_FRAMES = 'kvm-table';

export class PasidTranslation {
  /** Host-physical addresses as in the VMCS: low directory, high directory. 0 after `destroy`. */
  readonly directories: [number, number];
  private readonly memory: PhysicalMemory;
  private readonly frames: FrameSource;
  private readonly tables: number[] = [];
  private readonly entry = new Uint32Array(2);

  /** Allocates both directories. ENOMEM. */
  constructor(memory: PhysicalMemory, frames: FrameSource) {
    this.memory = memory;
    this.frames = frames;
    const low = frames.alloc(KVM_FRAMES);
    try {
      this.directories = [low, frames.alloc(KVM_FRAMES)];
    } catch (error) {
      frames.free(low);
      throw error;
    }
  }

  /** The host's PASID for a guest's, as the CPU finds it; -1 where it exits instead. */
  translate(guestPasid: number): number {
    const table = this.tableAt(guestPasid);
    if (table < 0) return -1;
    const word = this.memory.load(table + tableOffset(guestPasid), 4);
    if (word < 0) return -1;
    const { entry } = this;
    entry[0] = word;
    const { pasid, reserved, valid } = PASID_TABLE_ENTRY.f;
    return valid.get(entry) === 0 || reserved.get(entry) !== 0 ? -1 : pasid.get(entry);
  }

  /** EINVAL beyond 20 bits, EBUSY the guest's PASID means another one, ENOMEM no frame for a table. */
  set(guestPasid: number, hostPasid: number): void {
    for (const pasid of [guestPasid, hostPasid]) {
      if (!Number.isInteger(pasid) || pasid < 0 || pasid >= PASID_LIMIT) throw new Errno('EINVAL', `PASID ${pasid} does not have 20 bits`);
    }
    const known = this.translate(guestPasid);
    if (known === hostPasid) return;
    if (known >= 0) throw new Errno('EBUSY', `guest PASID ${guestPasid} is host PASID ${known} already`);
    const table = this.tableAt(guestPasid);
    const [word] = PASID_TABLE_ENTRY.encode({ pasid: hostPasid, valid: 1 });
    this.memory.store((table < 0 ? this.addTable(guestPasid) : table) + tableOffset(guestPasid), 4, word!);
  }

  /** The guest's PASID means nothing any more; false when it meant nothing before. */
  clear(guestPasid: number): boolean {
    if (this.translate(guestPasid) < 0) return false;
    this.memory.store(this.tableAt(guestPasid) + tableOffset(guestPasid), 4, 0);
    return true;
  }

  destroy(): void {
    if (this.directories[0] === 0) return;
    for (const table of [...this.tables, ...this.directories]) this.frames.free(table);
    this.tables.length = 0;
    this.directories.fill(0);
  }

  /** Address of the table for a guest's PASID; -1 where the directory has none. */
  private tableAt(guestPasid: number): number {
    const { memory, entry } = this;
    const directory = this.directories[directoryOf(guestPasid)];
    if (directory === 0 || guestPasid < 0 || guestPasid >= PASID_LIMIT || !memory.load64(directory + directoryOffset(guestPasid))) return -1;
    entry[0] = memory.lo;
    entry[1] = memory.hi;
    const { present, reserved, reservedHigh, table } = PASID_DIRECTORY_ENTRY.f;
    return present.get(entry) === 0 || reserved.get(entry) !== 0 || reservedHigh.get(entry) !== 0 ? -1 : table.get(entry);
  }

  private addTable(guestPasid: number): number {
    const directory = this.directories[directoryOf(guestPasid)];
    assert(directory !== 0, 'PASID mapped for a virtual machine that is gone');
    const table = this.frames.alloc(KVM_FRAMES);
    this.tables.push(table);
    const [lo, hi] = PASID_DIRECTORY_ENTRY.encode({ present: 1, table });
    assert(this.memory.store64(directory + directoryOffset(guestPasid), lo!, hi!), `PASID directory at ${hex(directory)} is not in memory`);
    return table;
  }
}
