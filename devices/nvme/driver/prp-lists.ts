/**
 * Buffers as a controller takes them: cut into commands, each described by PRP entries and, from three pages on, a list of
 * them in a page of coherent memory (drivers/nvme/host/pci.c, nvme_pci_setup_prps). Pages for lists are kept and used again.
 */
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import { storeAddress } from '../spec/commands.js';
import type { CoherentMemory, DmaSegment, NvmeDma } from './nvme-options.js';

const PAGE = 4096;

/** What one command moves: DMA addresses. Every piece but the first begins a page, every one but the last ends one. */
export interface CommandPieces {
  readonly pieces: DmaSegment[];
  sizeBytes: number;
}

/** Cuts where pieces do not meet at page boundaries (the virtual boundary of nvme's queues) and at `maxBytes`. */
export function commandsOf(segments: readonly DmaSegment[], maxBytes: number): CommandPieces[] {
  const commands: CommandPieces[] = [];
  for (let { address, length } of segments) {
    while (length > 0) {
      let last = commands.at(-1);
      const end = last === undefined ? 0 : last.pieces.at(-1)!.address + last.pieces.at(-1)!.length;
      if (last === undefined || last.sizeBytes >= maxBytes || (end !== address && (end % PAGE !== 0 || address % PAGE !== 0))) {
        commands.push((last = { pieces: [], sizeBytes: 0 }));
      }
      // a command that is not the last ends at a page, so that the next one needs no more entries
      const most = maxBytes - last.sizeBytes - (last.pieces.length === 0 && length > maxBytes ? address % PAGE : 0);
      const taken = Math.min(length, most);
      last.pieces.push({ address, length: taken });
      last.sizeBytes += taken;
      address += taken;
      length -= taken;
    }
  }
  return commands;
}

/** Addresses of the memory pages that pieces touch, the first with its offset. */
export function entriesOf(pieces: readonly DmaSegment[]): number[] {
  const entries: number[] = [];
  let end = -1;
  for (const { address, length } of pieces) {
    // a piece that goes on in the page of the one before it has no entry there
    for (let at = address === end && address % PAGE !== 0 ? address - (address % PAGE) + PAGE : address; at < address + length; at += PAGE - (at % PAGE)) entries.push(at);
    end = address + length;
  }
  return entries;
}

/** PRP1 and PRP2 of a command, and the pages that hold its list. */
export interface Prps {
  readonly prp1: number;
  readonly prp2: number;
  readonly lists: readonly CoherentMemory[];
}

/** Pages of coherent memory for lists. */
export class PrpPool {
  private readonly device: Device;
  private readonly dma: NvmeDma;
  private readonly memory: PhysicalMemory;
  private readonly free: CoherentMemory[] = [];

  constructor(device: Device, dma: NvmeDma, memory: PhysicalMemory) {
    this.device = device;
    this.dma = dma;
    this.memory = memory;
  }

  /** What the DMA API refuses. Give it back with `put`. */
  *describe(pieces: readonly DmaSegment[]): Steps<Prps> {
    const entries = entriesOf(pieces), [prp1 = 0, second = 0] = entries;
    if (entries.length <= 2) return { prp1, prp2: second, lists: [] };
    const lists: CoherentMemory[] = [];
    try {
      // the last entry of a page leads to the next one where entries are left
      for (let at = 1; at < entries.length; ) {
        const page = this.free.pop() ?? (yield* this.dma.dmaAllocCoherent(this.device, PAGE));
        const before = lists.at(-1);
        lists.push(page);
        if (before !== undefined) this.store(before, PAGE / 8 - 1, page.address);
        const count = entries.length - at <= PAGE / 8 ? entries.length - at : PAGE / 8 - 1;
        for (let i = 0; i < count; i++) this.store(page, i, entries[at + i]!);
        at += count;
      }
    } catch (error) {
      this.free.push(...lists);
      throw error;
    }
    return { prp1, prp2: lists[0]!.address, lists };
  }

  put({ lists }: Prps): void {
    this.free.push(...lists);
  }

  /** Every list is back: frees the pages. */
  *drain(): Steps {
    for (let page = this.free.pop(); page !== undefined; page = this.free.pop()) yield* this.dma.dmaFreeCoherent(this.device, page);
  }

  private store(page: CoherentMemory, index: number, address: number): void {
    const bytes = new Uint8Array(8);
    storeAddress(bytes, 0, address);
    this.memory.write(page.physical + index * 8, bytes, 0, 8);
  }
}
