/**
 * A guest's RAM in its VMM: blocks of the process's memory (QEMU's RAMBlock), each with a memory slot of the virtual
 * machine, and the balloon that gives pages of them back to the host. Memory is reserved by mmap and taken page by page
 * when the guest, or a device's pin, first touches it.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { MemoryRange } from '../../sim/memory.js';
import type { Steps } from '../../sim/task.js';
import type { Process } from '../../host/process.js';
import type { Vm } from '../kvm/vm.js';
import { named, namedNow, tolerant } from './undo.js';
import type { VmmCounters } from './counters.js';

export type HugePages = '2MiB' | '1GiB';

export interface RamBlock extends MemoryRange {
  readonly slot: number;
  /** Where it is in the VMM. */
  readonly hva: number;
}

const LEVELS: { readonly [K in HugePages]: 1 | 2 } = { '2MiB': 1, '1GiB': 2 };
const PAGE = 4096;

export class GuestRam {
  /** In order of their making. */
  readonly blocks: RamBlock[] = [];
  private readonly process: Process;
  private readonly vm: Vm;
  private readonly level: 0 | 1 | 2;
  private readonly counters: VmmCounters;
  /** Guest page numbers in the balloon. */
  private readonly balloon = new Set<number>();

  constructor(process: Process, vm: Vm, counters: VmmCounters, hugePages?: HugePages) {
    this.process = process;
    this.vm = vm;
    this.counters = counters;
    this.level = hugePages === undefined ? 0 : LEVELS[hugePages];
  }

  get sizeBytes(): number {
    return this.blocks.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  /** Pages in the balloon. */
  get ballooned(): number {
    return this.balloon.size;
  }

  /** Memory and a slot for guest-physical [start, end). ENOMEM, EINVAL, EEXIST; nothing is left behind. */
  *add({ start, end }: MemoryRange): Steps<RamBlock> {
    const what = `RAM [${hex(start)}, ${hex(end)})`;
    const slot = this.freeSlot();
    const hva = yield* named(`${what}: mmap`, this.process.mm.mmap(end - start, this.level === 0 ? {} : { hugeLevel: this.level }));
    try {
      this.counters.ioctls++;
      namedNow(`${what}: KVM_SET_USER_MEMORY_REGION`, () => this.vm.setUserMemoryRegion({ slot, guestPhysAddr: start, memorySize: end - start, userspaceAddr: hva }));
    } catch (error) {
      yield* tolerant(this.process.mm.munmap(hva, end - start));
      throw error;
    }
    const block = { start, end, slot, hva };
    this.blocks.push(block);
    return block;
  }

  /** Takes slot and memory away. */
  *remove(block: RamBlock): Steps {
    this.blocks.splice(this.blocks.indexOf(block), 1);
    this.counters.ioctls++;
    this.vm.setUserMemoryRegion({ slot: block.slot, guestPhysAddr: block.start, memorySize: 0, userspaceAddr: 0 });
    yield* this.process.mm.munmap(block.hva, block.end - block.start);
  }

  *removeAll(): Steps {
    for (let block = this.blocks.at(-1); block !== undefined; block = this.blocks.at(-1)) yield* this.remove(block);
  }

  /** Pages that the guest does not use any more go back to the host. EINVAL not RAM, or in the balloon already; nothing has changed then. */
  *inflate(pages: readonly number[]): Steps {
    this.checkPages(pages, (page) => !this.balloon.has(page), 'is in the balloon already');
    for (const page of pages) this.balloon.add(page);
    this.counters.ballooned += pages.length;
    for (const { hva, sizeBytes } of this.discardable(pages)) yield* this.process.mm.madviseDontNeed(hva, sizeBytes);
  }

  /** The guest uses pages again; the host provides them when they are touched. EINVAL not in the balloon. */
  deflate(pages: readonly number[]): void {
    this.checkPages(pages, (page) => this.balloon.has(page), 'is not in the balloon');
    for (const page of pages) this.balloon.delete(page);
    this.counters.deflated += pages.length;
  }

  /** The guest starts again and knows of no balloon. */
  forgetBalloon(): void {
    this.balloon.clear();
  }

  private checkPages(pages: readonly number[], fits: (page: number) => boolean, otherwise: string): void {
    const seen = new Set<number>();
    for (const page of pages) {
      if (this.blockOf(page * PAGE) === undefined) throw new Errno('EINVAL', `balloon: guest page ${hex(page * PAGE)} is not RAM`);
      if (!fits(page) || seen.has(page)) throw new Errno('EINVAL', `balloon: guest page ${hex(page * PAGE)} ${seen.has(page) ? 'is named twice' : otherwise}`);
      seen.add(page);
    }
  }

  /** Runs of host memory that can go: with huge pages, those of which every guest page is in the balloon. */
  private discardable(pages: readonly number[]): { hva: number; sizeBytes: number }[] {
    const unit = 512 ** this.level;
    const units = [...new Set(pages.map((page) => Math.floor(page / unit)))].sort((a, b) => a - b);
    const runs: { hva: number; sizeBytes: number }[] = [];
    for (const first of units) {
      let whole = true;
      for (let page = first * unit; page < (first + 1) * unit && whole; page++) whole = this.balloon.has(page);
      if (!whole) continue;
      const block = this.blockOf(first * unit * PAGE)!;
      const hva = block.hva + first * unit * PAGE - block.start, last = runs.at(-1);
      if (last !== undefined && last.hva + last.sizeBytes === hva) last.sizeBytes += unit * PAGE;
      else runs.push({ hva, sizeBytes: unit * PAGE });
    }
    return runs;
  }

  private blockOf(guestPhysical: number): RamBlock | undefined {
    return this.blocks.find(({ start, end }) => guestPhysical >= start && guestPhysical < end);
  }

  private freeSlot(): number {
    let slot = 0;
    while (this.blocks.some((block) => block.slot === slot)) slot++;
    return slot;
  }
}
