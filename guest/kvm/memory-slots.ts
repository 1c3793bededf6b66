/**
 * Memory slots of a virtual machine (KVM_SET_USER_MEMORY_REGION; Documentation/virt/kvm/api.rst section 4.35,
 * virt/kvm/kvm_main.c `__kvm_set_memory_region`): which guest-physical range is which range of the VMM's memory.
 * Left out: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, address spaces (SMM).
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { TASK_SIZE } from '../../host/mm/mm.js';

/** KVM_USER_MEM_SLOTS of x86, v5.10. */
export const USER_MEM_SLOTS = 509;
/** KVM_MEM_MAX_NR_PAGES */
const MAX_PAGES = 2 ** 31 - 1;
/** Guest-physical addresses have 52 bits at most. */
const GUEST_PHYSICAL_END = 2 ** 52;

const CHUNK_SHIFT = 13;
/** Pages of a slot whose translations lie in one array: 32 MiB of guest memory. */
export const CHUNK_PAGES = 1 << CHUNK_SHIFT;
const CHUNK_MASK = CHUNK_PAGES - 1;
/** What every chunk is until a page of it is translated. Never written. */
const EMPTY = new Uint32Array(CHUNK_PAGES);

/** struct kvm_userspace_memory_region */
export interface UserMemoryRegion {
  readonly slot: number;
  readonly flags?: number;
  readonly guestPhysAddr: number;
  /** Bytes; 0 deletes the slot. */
  readonly memorySize: number;
  readonly userspaceAddr: number;
}

export class MemorySlot {
  readonly id: number;
  /** Guest-physical, bytes. */
  readonly start: number;
  readonly end: number;
  readonly userspaceAddr: number;
  /** Host frame number × 2 + writable for each page, 0 where it is not known; in chunks. */
  readonly chunks: Uint32Array[];

  constructor(region: UserMemoryRegion) {
    this.id = region.slot;
    this.start = region.guestPhysAddr;
    this.end = region.guestPhysAddr + region.memorySize;
    this.userspaceAddr = region.userspaceAddr;
    this.chunks = Array.from({ length: Math.ceil(region.memorySize / 4096 / CHUNK_PAGES) }, () => EMPTY);
  }

  get pages(): number {
    return (this.end - this.start) / 4096;
  }

  /** @param page from the slot's start */
  remember(page: number, frame: number, writable: boolean): number {
    const at = page >>> CHUNK_SHIFT;
    let chunk = this.chunks[at]!;
    if (chunk === EMPTY) this.chunks[at] = chunk = new Uint32Array(CHUNK_PAGES);
    return (chunk[page & CHUNK_MASK] = frame * 2 + (writable ? 1 : 0));
  }

  /** Forgets [first, end), pages from the slot's start; true when any of them was known. */
  forget(first: number, end: number): void {
    while (first < end) {
      const at = first >>> CHUNK_SHIFT;
      const stop = Math.min(end, (at + 1) * CHUNK_PAGES);
      const chunk = this.chunks[at]!;
      if (chunk !== EMPTY) {
        if (stop - first === CHUNK_PAGES) this.chunks[at] = EMPTY;
        else chunk.fill(0, first & CHUNK_MASK, (first & CHUNK_MASK) + stop - first);
      }
      first = stop;
    }
  }
}

export class MemorySlots {
  /** In ascending guest-physical order. */
  list: readonly MemorySlot[] = [];

  /**
   * Creates, moves or deletes a slot. EINVAL slot number, flags, alignment, addresses out of range, deleting what is
   * not there, resizing, or giving a slot other memory; EEXIST overlap in guest-physical space.
   */
  set(region: UserMemoryRegion): void {
    const { slot, guestPhysAddr, memorySize, userspaceAddr } = region;
    const what = `memory slot ${slot}`;
    if (!Number.isInteger(slot) || slot < 0 || slot >= USER_MEM_SLOTS) throw new Errno('EINVAL', `${what}: slots are 0 to ${USER_MEM_SLOTS - 1}`);
    if ((region.flags ?? 0) !== 0) throw new Errno('EINVAL', `${what}: flags ${hex(region.flags!)} are not supported`);
    for (const [name, value] of [['size', memorySize], ['guest-physical address', guestPhysAddr], ['userspace address', userspaceAddr]] as const) {
      if (!(value >= 0) || value % 4096 !== 0) throw new Errno('EINVAL', `${what}: ${name} ${hex(value)} is not aligned to a page`);
    }
    if (userspaceAddr + memorySize > TASK_SIZE) throw new Errno('EINVAL', `${what}: ${hex(userspaceAddr)} is not an address of user space`);
    if (guestPhysAddr + memorySize > GUEST_PHYSICAL_END || memorySize / 4096 > MAX_PAGES) throw new Errno('EINVAL', `${what}: ${hex(memorySize)} bytes at ${hex(guestPhysAddr)} are beyond guest-physical memory`);
    const old = this.list.find(({ id }) => id === slot);
    const others = this.list.filter(({ id }) => id !== slot);
    if (memorySize === 0) {
      if (old === undefined) throw new Errno('EINVAL', `${what} does not exist`);
      this.list = others;
      return;
    }
    if (old !== undefined && (old.end - old.start !== memorySize || old.userspaceAddr !== userspaceAddr)) {
      throw new Errno('EINVAL', `${what} exists: it can be moved or deleted, not resized or given other memory`);
    }
    if (old?.start === guestPhysAddr) return;
    const overlap = others.find(({ start, end }) => guestPhysAddr < end && start < guestPhysAddr + memorySize);
    if (overlap !== undefined) throw new Errno('EEXIST', `${what}: [${hex(guestPhysAddr)}, ${hex(guestPhysAddr + memorySize)}) overlaps slot ${overlap.id} at ${hex(overlap.start)}`);
    this.list = [...others, new MemorySlot(region)].sort((a, b) => a.start - b.start);
  }

  /** The slot that contains a guest-physical address. */
  find(address: number): MemorySlot | undefined {
    return this.list.find(({ start, end }) => address >= start && address < end);
  }
}
