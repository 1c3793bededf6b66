/**
 * PASID directory and tables of one function (VT-d 4.1, sections 9.5 and 9.6; Linux: drivers/iommu/intel/pasid.c).
 * The directory is allocated whole, for the PASIDs that function and unit have in common; tables of 64 entries come
 * when their first PASID is used and stay until the function goes. An entry becomes present by its last store and
 * stops being present by the first one.
 */
import { assert } from '../../../sim/assert.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { FrameSource } from '../../../host/frame-source.js';
import {
  PASID_DIRECTORY_ENTRY_SIZE, PASID_ENTRY, PASID_ENTRY_SIZE, PASID_FPD, PASID_P, PASID_TABLE_ENTRIES, PGTT_FIRST_LEVEL, PGTT_PASS_THROUGH,
  PGTT_SECOND_LEVEL, pasidDirectoryEntryAddress, pasidEntryAddress,
} from '../spec/pasid-table.js';

/** Requests without PASID use this entry (RID_PASID of the context entry). */
export const RID_PASID = 0;

const PAGE = 4096;
/** A directory fills at least one frame. */
const SMALLEST_DIRECTORY = PAGE / PASID_DIRECTORY_ENTRY_SIZE;

/** What an entry says, short of Present. */
export type PasidTranslation =
  | { readonly kind: 'first-level'; readonly table: number; readonly levels: 4 | 5; readonly domainId: number }
  | { readonly kind: 'second-level'; readonly table: number; readonly addressWidth: number; readonly domainId: number }
  | { readonly kind: 'pass-through'; readonly domainId: number };

export interface PasidTableOptions {
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  /** Whom the frames are accounted to. */
  readonly owner: string;
  /** PASIDs that function and unit have in common; 0 without PASID support. */
  readonly maxPasids: number;
  /** AGAW code of the unit, for entries without second level. */
  readonly addressWidth: number;
  /** Hardware walks first-level tables through the caches (ECAP.SMPWCS). */
  readonly walkSnoop: boolean;
}

export class PasidTable {
  /** Physical address of the directory, for the context entry. */
  readonly directory: number;
  /** PDTS: the directory has 2^(PDTS + 7) entries. */
  readonly sizeCode: number;
  /** PASIDs the directory can name. */
  readonly capacity: number;
  /** PASIDs whose entry is present, or silenced. */
  readonly used = new Set<number>();
  private readonly options: PasidTableOptions;
  private readonly directoryOrder: number;
  private readonly tables = new Map<number, number>();

  /** ENOMEM */
  constructor(options: PasidTableOptions) {
    this.options = options;
    let entries = SMALLEST_DIRECTORY;
    while (entries * PASID_TABLE_ENTRIES < options.maxPasids) entries *= 2;
    this.capacity = entries * PASID_TABLE_ENTRIES;
    this.sizeCode = Math.log2(entries) - 7;
    this.directoryOrder = Math.log2((entries * PASID_DIRECTORY_ENTRY_SIZE) / PAGE);
    this.directory = options.frames.alloc(options.owner, this.directoryOrder);
  }

  isPresent(pasid: number): boolean {
    return (this.firstWord(pasid) & PASID_P) !== 0;
  }

  /** Faults are off and nothing is translated (M6). */
  isSilent(pasid: number): boolean {
    return (this.firstWord(pasid) & (PASID_P | PASID_FPD)) === PASID_FPD;
  }

  /** Domain id of a present entry. */
  domainIdOf(pasid: number): number {
    const words = this.load(pasid);
    return words === undefined ? 0 : PASID_ENTRY.f.DID.get(words);
  }

  /** PGTT of an entry that has one. */
  translationTypeOf(pasid: number): number {
    const words = this.load(pasid);
    return words === undefined ? 0 : PASID_ENTRY.f.PGTT.get(words);
  }

  /** Makes the entry of a PASID present; it was not. ENOMEM without a frame for its table. */
  set(pasid: number, translation: PasidTranslation): void {
    assert(pasid < this.capacity, `PASID ${pasid} is beyond the directory`);
    const address = this.ensureEntry(pasid);
    const common = { P: 1, DID: translation.domainId, PWSNP: this.options.walkSnoop ? 1 : 0 };
    const words = PASID_ENTRY.encode(
      translation.kind === 'first-level'
        ? { ...common, AW: this.options.addressWidth, PGTT: PGTT_FIRST_LEVEL, FLPM: translation.levels - 4, FLPTPTR: translation.table }
        : translation.kind === 'second-level'
          ? { ...common, AW: translation.addressWidth, PGTT: PGTT_SECOND_LEVEL, SLPTPTR: translation.table }
          : { ...common, AW: this.options.addressWidth, PGTT: PGTT_PASS_THROUGH },
    );
    const { memory } = this.options;
    for (let at = PASID_ENTRY_SIZE - 8; at >= 0; at -= 8) memory.store64(address + at, words[at / 4]!, words[at / 4 + 1]!);
    this.used.add(pasid);
  }

  /** Clears Present and leaves the rest in place: caches are invalidated next (section 6.5.3.3). */
  clearPresent(pasid: number): void {
    const address = this.entry(pasid);
    if (address === undefined) return;
    const { memory } = this.options;
    memory.load64(address);
    memory.store64(address, memory.lo & ~PASID_P, memory.hi);
  }

  /** After the invalidations: an empty entry, or with `silent` one that says nothing but FPD. */
  clear(pasid: number, silent = false): void {
    const address = this.entry(pasid);
    if (address === undefined) return;
    const { memory } = this.options;
    memory.store64(address, silent ? PASID_FPD : 0, 0);
    for (let at = 8; at < PASID_ENTRY_SIZE; at += 8) memory.store64(address + at, 0, 0);
    if (!silent) this.used.delete(pasid);
  }

  /** Clears Present and sets FPD in one store, so that no request in between is logged. */
  silence(pasid: number): void {
    const address = this.entry(pasid);
    if (address === undefined) return;
    const { memory } = this.options;
    memory.load64(address);
    memory.store64(address, (memory.lo & ~PASID_P) | PASID_FPD, memory.hi);
  }

  /** Returns every frame. Hardware must have forgotten the directory. */
  destroy(): void {
    const { frames } = this.options;
    for (const table of this.tables.values()) frames.free(table);
    this.tables.clear();
    this.used.clear();
    frames.free(this.directory, this.directoryOrder);
  }

  private firstWord(pasid: number): number {
    const address = this.entry(pasid);
    if (address === undefined) return 0;
    this.options.memory.load64(address);
    return this.options.memory.lo;
  }

  private load(pasid: number): Uint32Array | undefined {
    const address = this.entry(pasid);
    return address === undefined ? undefined : PASID_ENTRY.load(this.options.memory, address);
  }

  private entry(pasid: number): number | undefined {
    const table = this.tables.get(pasid >>> 6);
    return table === undefined ? undefined : pasidEntryAddress(table, pasid);
  }

  private ensureEntry(pasid: number): number {
    let table = this.tables.get(pasid >>> 6);
    if (table === undefined) {
      const { memory, frames, owner } = this.options;
      table = frames.alloc(owner);
      this.tables.set(pasid >>> 6, table);
      memory.store64(pasidDirectoryEntryAddress(this.directory, pasid), (table | PASID_P) | 0, Math.floor(table / 0x1_0000_0000));
    }
    return pasidEntryAddress(table, pasid);
  }
}
