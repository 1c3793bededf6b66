/**
 * A guest's physical memory: memory of its VMM process on the host. An access takes three real steps: the slot turns a
 * guest-physical address into one of the VMM's, the VMM's page tables turn that into a host-physical one (with page
 * faults of the VMM's address space where nothing is there, or where a store needs a page of its own), and the host's
 * memory has the bytes. The result is kept for each page, as an EPT entry would be, until the VMM's address space says
 * that it changed (virt/kvm/kvm_main.c, kvm_mmu_notifier; mmu.c, `kvm_tdp_page_fault`).
 *
 * What is kept after a load does not allow stores: the first store faults once more and marks the VMM's entry dirty.
 * A page that the host cannot provide (no area behind the slot, no memory left, the VMM is exiting) is absent to the
 * guest and reported: its virtual CPU cannot go on. Where the VMM replaces an area by MAP_FIXED and a device that
 * shares the address space is told first, the guest finds nothing there meanwhile; a real virtual CPU would wait.
 *
 * Left out: EPT as bytes, its large pages and its accessed and dirty bits, dirty logging.
 */
import { assert } from '../../sim/assert.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Steps } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { AddressSpace, FaultOutcome, MmNotifier } from '../../host/mm/address-space.js';
import { faultNow } from '../../host/mm/faults.js';
import { leafPhysical } from '../../host/mm/mm-core.js';
import type { Mm } from '../../host/mm/mm.js';
import { pagesOfLevel } from '../../host/page-table/format.js';
import { X86_D, X86_P, X86_RW, X86_US } from '../../host/page-table/x86-64.js';
import { ACCESS_READ, ACCESS_WRITE } from '../../host/pci/dma-port.js';
import { guestTraceKinds, type GuestTraceKinds } from '../trace-kinds.js';
import { MemorySlots, type MemorySlot, type UserMemoryRegion } from './memory-slots.js';

export interface GuestMemoryOptions {
  /** The host's. */
  readonly host: PhysicalMemory;
  /** Of the VMM. */
  readonly mm: Mm;
  readonly trace?: Trace | undefined;
  /** Name of the virtual machine as the trace interned it. */
  readonly vm?: number;
  /** The host has no page for the guest: KVM_RUN would fail with EFAULT. */
  readonly onFailure?: (failure: GuestFault) => void;
  /** An access waits for others who share the VMM's memory: holds the guest until what it returns is called. */
  readonly stall?: () => () => void;
  /** The VMM's address space is gone, and the guest's memory with it. */
  readonly onGone?: () => void;
  /** `kvm.stale-translation`: what is kept outlives changes of the VMM's address space. */
  readonly defects?: ReadonlySet<string>;
}

export interface GuestFault {
  readonly guestPhysical: number;
  readonly hostVirtual: number;
  readonly outcome: FaultOutcome;
}

/** Where a guest-physical address leads, for people. */
export interface GuestTranslation {
  readonly slot: number;
  /** Address in the VMM. */
  readonly hva: number;
  /** Host-physical address; undefined where the VMM has no page yet. */
  readonly hpa: number | undefined;
}

const NO_CHUNKS: Uint32Array[] = [];

export class GuestMemory implements PhysicalMemory, MmNotifier {
  readonly neverSleeps = true;
  generation = 0;
  lo = 0;
  hi = 0;
  readonly slots = new MemorySlots();
  /** Faults of the VMM's address space that guest accesses caused or waited for. */
  faults = 0;
  private readonly host: PhysicalMemory;
  private readonly mm: Mm;
  private readonly trace: Trace | undefined;
  private readonly vm: number;
  private readonly kinds: GuestTraceKinds | undefined;
  private readonly onFailure: ((failure: GuestFault) => void) | undefined;
  private readonly onGone: (() => void) | undefined;
  private readonly stall: () => () => void;
  private readonly stale: boolean;
  private gone = false;
  /** The slot used last; an empty range without one. */
  private slot: MemorySlot | undefined;
  private start = 0;
  private end = 0;
  private chunks = NO_CHUNKS;
  /** Contiguous host bytes that `run` found. */
  private runBytes = 0;

  /** Listens to the VMM's address space, which must have a user, until it is gone or `close`. */
  constructor(options: GuestMemoryOptions) {
    this.host = options.host;
    this.mm = options.mm;
    this.trace = options.trace;
    this.vm = options.vm ?? 0;
    this.kinds = options.trace === undefined ? undefined : guestTraceKinds(options.trace);
    this.onFailure = options.onFailure;
    this.onGone = options.onGone;
    this.stall = options.stall ?? (() => () => {});
    this.stale = options.defects?.has('kvm.stale-translation') ?? false;
    this.mm.registerNotifier(this);
  }

  /** KVM_SET_USER_MEMORY_REGION; refusals as `MemorySlots.set`. */
  setSlot(region: UserMemoryRegion): void {
    this.slots.set(region);
    this.leaveSlot();
    this.generation++;
  }

  /** Ends listening; nothing is memory any more. */
  close(): void {
    if (this.gone) return;
    this.mm.unregisterNotifier(this);
    this.vanish();
  }

  /** Where an address leads; undefined outside of every slot. Faults nothing in. */
  translate(guestPhysical: number): GuestTranslation | undefined {
    const slot = this.gone ? undefined : this.slots.find(guestPhysical);
    if (slot === undefined) return undefined;
    const hva = slot.userspaceAddr + guestPhysical - slot.start;
    const hpa = this.mm.physicalOf(hva);
    return { slot: slot.id, hva, hpa: hpa < 0 ? undefined : hpa };
  }

  has(address: number, length: number): boolean {
    const end = address + length;
    if (address >= this.start && end <= this.end) return true;
    do {
      if (!this.select(address)) return false;
      address = this.end;
    } while (address < end);
    return true;
  }

  load64(address: number): boolean {
    const at = this.locate(address, false);
    const { host } = this;
    if (at < 0 || !host.load64(at)) return false;
    this.lo = host.lo;
    this.hi = host.hi;
    return true;
  }

  store64(address: number, lo: number, hi: number): boolean {
    const at = this.locate(address, true);
    return at >= 0 && this.host.store64(at, lo, hi);
  }

  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    const at = this.locate(address, true);
    return at >= 0 && this.host.compareExchange64(at, expectLo, expectHi, lo, hi);
  }

  load(address: number, size: 1 | 2 | 4): number {
    const at = this.locate(address, false);
    return at < 0 ? -1 : this.host.load(at, size);
  }

  store(address: number, size: 1 | 2 | 4, value: number): boolean {
    const at = this.locate(address, true);
    return at >= 0 && this.host.store(at, size, value);
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    if (!this.ready(address, length, false)) return false;
    while (length > 0) {
      const at = this.run(address, length, false), count = this.runBytes;
      this.host.read(at, target, targetOffset, count);
      address += count;
      targetOffset += count;
      length -= count;
    }
    return true;
  }

  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    if (!this.ready(address, length, true)) return false;
    while (length > 0) {
      const at = this.run(address, length, true), count = this.runBytes;
      this.host.write(at, source, sourceOffset, count);
      address += count;
      sourceOffset += count;
      length -= count;
    }
    return true;
  }

  fill(address: number, value: number, length: number): boolean {
    if (!this.ready(address, length, true)) return false;
    while (length > 0) {
      const at = this.run(address, length, true), count = this.runBytes;
      this.host.fill(at, value, count);
      address += count;
      length -= count;
    }
    return true;
  }

  copy(target: number, source: number, length: number): boolean {
    if (!this.ready(target, length, true) || !this.ready(source, length, false)) return false;
    if (Math.abs(target - source) < length) {
      // through a buffer: pieces of overlapping ranges would be copied from what was just written
      const bytes = new Uint8Array(length);
      return this.read(source, bytes, 0, length) && this.write(target, bytes, 0, length);
    }
    while (length > 0) {
      const from = this.run(source, length, false), readable = this.runBytes;
      const to = this.run(target, readable, true), count = this.runBytes;
      this.host.copy(to, from, count);
      source += count;
      target += count;
      length -= count;
    }
    return true;
  }

  // oxlint-disable-next-line require-yield -- forgetting takes no time
  *invalidateRange(_mm: AddressSpace, start: number, end: number): Steps {
    if (this.kinds !== undefined) this.trace!.record(this.kinds.unmapHvaRange, 0, this.vm, start / 4096, end / 4096);
    if (this.stale) return;
    for (const slot of this.slots.list) {
      const first = Math.max(start, slot.userspaceAddr), last = Math.min(end, slot.userspaceAddr + slot.pages * 4096);
      if (first < last) slot.forget(Math.floor((first - slot.userspaceAddr) / 4096), Math.ceil((last - slot.userspaceAddr) / 4096));
    }
  }

  // oxlint-disable-next-line require-yield -- as above
  *release(): Steps {
    this.vanish();
    this.onGone?.();
  }

  /** Host-physical address of a byte that may be loaded or stored now, faulted in if need be; -1 when absent. */
  private locate(address: number, write: boolean): number {
    if ((address < this.start || address >= this.end) && !this.select(address)) return -1;
    const page = ((address - this.start) / 4096) | 0;
    let entry = this.chunks[page >>> 13]![page & 0x1fff]!;
    if (entry === 0 || (write && (entry & 1) === 0)) {
      entry = this.fault(page, write);
      if (entry === 0) return -1;
    }
    return (entry >>> 1) * 4096 + (address & 0xfff);
  }

  /** True when every page of [address, address + length) can be accessed now. */
  private ready(address: number, length: number, write: boolean): boolean {
    if (length === 0) return this.has(address, 0);
    const end = address + length;
    // the first address of each page touched
    for (let at = address; at < end; at += 4096 - (at & 0xfff)) if (this.locate(at, write) < 0) return false;
    return true;
  }

  /** Host-physical address of `address`, all of whose pages are ready; `runBytes` says how far the host's bytes go on from there. */
  private run(address: number, length: number, write: boolean): number {
    const first = this.locate(address, write);
    let count = 4096 - (address & 0xfff);
    while (count < length && this.locate(address + count, write) === first + count) count += 4096;
    this.runBytes = Math.min(count, length);
    return first;
  }

  private select(address: number): boolean {
    const slot = this.gone ? undefined : this.slots.find(address);
    if (slot === undefined) return false;
    this.slot = slot;
    this.start = slot.start;
    this.end = slot.end;
    this.chunks = slot.chunks;
    return true;
  }

  private leaveSlot(): void {
    this.slot = undefined;
    this.start = this.end = 0;
    this.chunks = NO_CHUNKS;
  }

  private vanish(): void {
    this.gone = true;
    this.generation++;
    this.slots.list = [];
    this.leaveSlot();
  }

  /** Finds the host's frame for a page of the current slot, and keeps it. 0 when the host has none. */
  private fault(page: number, write: boolean): number {
    const slot = this.slot!, { mm } = this;
    const hva = slot.userspaceAddr + page * 4096;
    const required = write ? X86_P | X86_US | X86_RW | X86_D : X86_P | X86_US;
    this.faults++;
    for (let tries = 0; tries < 4; tries++) {
      const { tables } = mm;
      if (tables.find(hva / 4096) && (tables.lo & required) === required) {
        const inside = (hva / 4096) % pagesOfLevel(tables.level);
        const frame = leafPhysical(tables.lo, tables.hi, tables.level) / 4096 + inside;
        if (this.kinds !== undefined) this.trace!.record(this.kinds.pageFault, 0, this.vm, slot.start / 4096 + page, hva / 4096, frame, write ? 1 : 0);
        return slot.remember(page, frame, write);
      }
      const outcome = faultNow(mm, hva, write ? ACCESS_WRITE : ACCESS_READ, this.stall);
      if (outcome !== 'handled') {
        this.onFailure?.({ guestPhysical: slot.start + page * 4096, hostVirtual: hva, outcome });
        return 0;
      }
    }
    assert(false, `a handled fault of ${mm.name} does not let its guest through`);
  }
}
