/** A page-table walk as data, for people: which table, which entry, what it says. Never used to translate. */
import { toU64 } from '../../sim/address.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { indexAtLevel, physicalOf, type PageTableFormat } from './format.js';

export interface WalkEntry {
  /** 0 is the leaf level. */
  readonly level: number;
  /** Physical address of the table. */
  readonly table: number;
  readonly index: number;
  /** Physical address of the entry. */
  readonly address: number;
  /** The raw 64-bit entry; undefined when the table lies outside memory. */
  readonly entry: bigint | undefined;
  readonly present: boolean;
  /** A leaf ends the walk; an empty or absent entry does too. */
  readonly leaf: boolean;
  /** Physical address in the entry: of the next table or of the leaf's memory. */
  readonly physical: number;
  /** Set flags as the manual spells them. */
  readonly flags: readonly string[];
}

/**
 * The entries that a walk for `page` meets, from the root down to a leaf or to where it ends.
 * @param root physical address of the root table, which stands at level `levels - 1`
 */
export function walkEntries(memory: PhysicalMemory, format: PageTableFormat, root: number, levels: number, page: number): WalkEntry[] {
  const entries: WalkEntry[] = [];
  let table = root;
  for (let level = levels - 1; level >= 0; level--) {
    const index = indexAtLevel(page, level);
    const address = table + index * 8;
    if (!memory.load64(address)) {
      entries.push({ level, table, index, address, entry: undefined, present: false, leaf: false, physical: 0, flags: [] });
      break;
    }
    const lo = memory.lo, hi = memory.hi;
    const present = format.isPresent(lo, hi);
    const leaf = (lo | hi) !== 0 && format.isLeaf(lo, hi, level);
    const below = level === 0 || !leaf ? 0xfff : level === 1 ? 0x1f_ffff : 0x3fff_ffff;
    const physical = physicalOf(lo & ~below, hi, format.addressHi);
    entries.push({ level, table, index, address, entry: toU64(lo, hi), present, leaf, physical, flags: format.flags(lo, hi, level) });
    if (!present || leaf) break;
    table = physical;
  }
  return entries;
}
