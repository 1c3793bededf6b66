/**
 * Root table and context tables of one unit (VT-d 4.1, sections 9.1 to 9.4), in memory. Entries become present by
 * their last store. Context tables come with the first function of their bus (or half bus, in scalable mode) and
 * stay, as in Linux.
 */
import { assert } from '../../../sim/assert.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { FrameSource } from '../../../host/frame-source.js';
import {
  CONTEXT_ENTRY, CONTEXT_P, SM_CONTEXT_ENTRY, SM_CONTEXT_ENTRY_SIZE, SM_CONTEXT_PRE, contextEntryAddress, rootEntryAddress,
} from '../spec/root-context.js';
import type { PasidTable } from './pasid-table.js';
import { RID_PASID } from './pasid-table.js';

export interface ContextTableOptions {
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly owner: string;
  readonly scalable: boolean;
}

/** What a context entry of legacy mode says. */
export interface LegacyContext {
  /** TT_* of spec/root-context.ts. */
  readonly translationType: number;
  /** Second-level root; 0 for pass-through. */
  readonly table: number;
  readonly addressWidth: number;
  readonly domainId: number;
}

export class ContextTable {
  /** Physical address of the root table. */
  readonly root: number;
  readonly scalable: boolean;
  private readonly memory: PhysicalMemory;
  private readonly frames: FrameSource;
  private readonly owner: string;

  /** ENOMEM */
  constructor(options: ContextTableOptions) {
    this.memory = options.memory;
    this.frames = options.frames;
    this.owner = options.owner;
    this.scalable = options.scalable;
    this.root = this.frames.alloc(this.owner);
  }

  isPresent(sourceId: number): boolean {
    const address = this.entry(sourceId);
    if (address === undefined) return false;
    this.memory.load64(address);
    return (this.memory.lo & CONTEXT_P) !== 0;
  }

  /** Scalable mode: points the function at its PASID directory. ENOMEM. */
  setScalable(sourceId: number, table: PasidTable, deviceTlb: boolean, pasids: boolean): void {
    assert(this.scalable, 'a scalable-mode context entry in legacy mode');
    const address = this.ensureEntry(sourceId);
    const words = SM_CONTEXT_ENTRY.encode({
      P: 1, DTE: deviceTlb ? 1 : 0, PASIDE: pasids ? 1 : 0, PDTS: table.sizeCode, PASIDDIRPTR: table.directory, RID_PASID,
    });
    for (let at = SM_CONTEXT_ENTRY_SIZE - 8; at >= 0; at -= 8) this.memory.store64(address + at, words[at / 4]!, words[at / 4 + 1]!);
  }

  /** Scalable mode: whether page requests of the function are taken. */
  setPageRequests(sourceId: number, on: boolean): void {
    const address = this.entry(sourceId);
    assert(address !== undefined && this.scalable, 'page requests without a scalable-mode context entry');
    this.memory.load64(address);
    const lo = on ? this.memory.lo | SM_CONTEXT_PRE : this.memory.lo & ~SM_CONTEXT_PRE;
    this.memory.store64(address, lo, this.memory.hi);
  }

  /** ENOMEM */
  setLegacy(sourceId: number, context: LegacyContext): void {
    assert(!this.scalable, 'a legacy context entry in scalable mode');
    const address = this.ensureEntry(sourceId);
    const words = CONTEXT_ENTRY.encode({
      P: 1, TT: context.translationType, SLPTPTR: context.table, AW: context.addressWidth, DID: context.domainId,
    });
    this.memory.store64(address + 8, words[2]!, words[3]!);
    this.memory.store64(address, words[0]!, words[1]!);
  }

  clear(sourceId: number): void {
    const address = this.entry(sourceId);
    if (address === undefined) return;
    const size = this.scalable ? SM_CONTEXT_ENTRY_SIZE : 16;
    for (let at = 0; at < size; at += 8) this.memory.store64(address + at, 0, 0);
  }

  private entry(sourceId: number): number | undefined {
    const table = this.tableOf(sourceId);
    return table === 0 ? undefined : contextEntryAddress(table, sourceId, this.scalable);
  }

  private ensureEntry(sourceId: number): number {
    let table = this.tableOf(sourceId);
    if (table === 0) {
      table = this.frames.alloc(this.owner);
      this.memory.store64(this.slot(sourceId), (table | CONTEXT_P) | 0, Math.floor(table / 0x1_0000_0000));
    }
    return contextEntryAddress(table, sourceId, this.scalable);
  }

  /** Context table of a requester, 0 when there is none. */
  private tableOf(sourceId: number): number {
    this.memory.load64(this.slot(sourceId));
    if ((this.memory.lo & CONTEXT_P) === 0) return 0;
    return (this.memory.hi >>> 0) * 0x1_0000_0000 + ((this.memory.lo & 0xffff_f000) >>> 0);
  }

  /** Half of a root entry that names the context table. */
  private slot(sourceId: number): number {
    return rootEntryAddress(this.root, sourceId) + (this.scalable && (sourceId & 0x80) !== 0 ? 8 : 0);
  }
}
