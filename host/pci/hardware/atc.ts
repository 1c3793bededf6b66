/**
 * The address translation cache of a function (PCIe 6.0 section 10.1): translations that the function asked for,
 * tagged with PASID and privilege, of any power-of-two size. Set-associative in typed arrays, replaced round-robin
 * within a set. A size that is in the cache costs one probe per lookup; usually there is one size.
 */
import { assert } from '../../../sim/assert.js';
import { NO_PASID, type TranslationCompletion } from '../dma-port.js';

export const ATC_READ = 1;
export const ATC_WRITE = 2;
export const ATC_EXECUTE = 4;
/** The translation may be used with untranslated requests only (U). */
export const ATC_UNTRANSLATED_ONLY = 8;
/** The translation is the same for every PASID (G). */
export const ATC_GLOBAL = 16;

const WAYS = 4;
/** Free entries have this tag. */
const FREE = -1;

export interface AtcOptions {
  /** Entries, a power of two, at least 4. */
  readonly entries: number;
  /** `pci.atc-pasid-less-invalidation`: an invalidation without PASID misses entries that have one (against A5). */
  readonly defects?: ReadonlySet<string>;
}

export class Atc {
  readonly capacity: number;
  hits = 0;
  misses = 0;
  /** Entries in use. */
  size = 0;
  private readonly setMask: number;
  /** First page of the range, FREE when unused. */
  private readonly tags: Float64Array;
  /** (pasid + 1) * 2 + privileged */
  private readonly spaces: Int32Array;
  private readonly translated: Float64Array;
  /** log2 of the pages that the entry covers. */
  private readonly orders: Uint8Array;
  private readonly flags: Uint8Array;
  private readonly victims: Uint8Array;
  /** How many entries of each order there are; `used` lists the orders that have any. */
  private readonly perOrder = new Int32Array(53);
  private used: number[] = [];
  private readonly onlyExact: boolean;

  constructor(options: AtcOptions) {
    const { entries } = options;
    assert(entries >= WAYS && Number.isInteger(Math.log2(entries)), `an ATC of ${entries} entries`);
    this.capacity = entries;
    this.setMask = entries / WAYS - 1;
    this.tags = new Float64Array(entries).fill(FREE);
    this.spaces = new Int32Array(entries);
    this.translated = new Float64Array(entries);
    this.orders = new Uint8Array(entries);
    this.flags = new Uint8Array(entries);
    this.victims = new Uint8Array(entries / WAYS);
    this.onlyExact = options.defects?.has('pci.atc-pasid-less-invalidation') ?? false;
  }

  /** Index of the entry that translates `page` in that address space, -1 without one. */
  lookup(page: number, pasid: number, privileged: boolean): number {
    const space = (pasid + 1) * 2 + (privileged ? 1 : 0);
    const used = this.used;
    for (let i = 0; i < used.length; i++) {
      const order = used[i]!;
      const tag = order === 0 ? page : page - (page % 2 ** order);
      const first = this.setOf(tag, space, order) * WAYS;
      for (let way = first; way < first + WAYS; way++) {
        if (this.tags[way] === tag && this.spaces[way] === space && this.orders[way] === order) {
          this.hits++;
          return way;
        }
      }
    }
    this.misses++;
    return -1;
  }

  /** Translated page of `page` by entry `index`. */
  pageAt(index: number, page: number): number {
    return this.translated[index]! + (page - this.tags[index]!);
  }

  /** ATC_* bits of an entry. */
  flagsAt(index: number): number {
    return this.flags[index]!;
  }

  /**
   * Keeps a completion for `page`. Entries that the new one overlaps go, so that a lookup has one answer. The
   * completion's range is the naturally aligned one around `page`.
   */
  insert(page: number, pasid: number, privileged: boolean, completion: TranslationCompletion): void {
    const { pages } = completion;
    const order = Math.log2(pages);
    assert(Number.isInteger(order), `a translation of ${pages} pages`);
    const space = (pasid + 1) * 2 + (privileged ? 1 : 0);
    const tag = page - (page % pages);
    this.drop(tag, pages, space);
    const set = this.setOf(tag, space, order);
    const slot = this.freeWay(set);
    this.tags[slot] = tag;
    this.spaces[slot] = space;
    this.translated[slot] = completion.page;
    this.orders[slot] = order;
    this.flags[slot] = (completion.read ? ATC_READ : 0) | (completion.write ? ATC_WRITE : 0) | (completion.execute ? ATC_EXECUTE : 0)
      | (completion.untranslatedOnly ? ATC_UNTRANSLATED_ONLY : 0) | (completion.global ? ATC_GLOBAL : 0);
    this.size++;
    if (this.perOrder[order]!++ === 0) this.listOrders();
  }

  /**
   * Drops what overlaps [page, page + pages): of one PASID; of every PASID when `global`; and without a PASID
   * everything in the range, PASID or not (A5, PCIe 6.0 section 10.3.8).
   */
  invalidate(page: number, pages: number, pasid: number, global: boolean): void {
    if (this.size === 0) return;
    const end = page + pages;
    for (let i = 0; i < this.capacity; i++) {
      const tag = this.tags[i]!;
      if (tag === FREE || tag >= end || tag + 2 ** this.orders[i]! <= page) continue;
      const owner = (this.spaces[i]! >> 1) - 1;
      if (pasid === NO_PASID ? !this.onlyExact || owner === NO_PASID : owner === pasid || (global && owner !== NO_PASID)) this.free(i);
    }
  }

  clear(): void {
    this.tags.fill(FREE);
    this.perOrder.fill(0);
    this.size = 0;
    this.listOrders();
  }

  private drop(tag: number, pages: number, space: number): void {
    // the common case: only single pages are here, and the new one is a single page
    if (pages === 1 && this.used.length <= 1 && (this.used.length === 0 || this.used[0] === 0)) {
      const first = this.setOf(tag, space, 0) * WAYS;
      for (let i = first; i < first + WAYS; i++) if (this.tags[i] === tag && this.spaces[i] === space) this.free(i);
      return;
    }
    for (let i = 0; i < this.capacity; i++) {
      const other = this.tags[i]!;
      if (other !== FREE && this.spaces[i] === space && other < tag + pages && other + 2 ** this.orders[i]! > tag) this.free(i);
    }
  }

  private free(index: number): void {
    const order = this.orders[index]!;
    this.tags[index] = FREE;
    this.size--;
    if (--this.perOrder[order]! === 0) this.listOrders();
  }

  private freeWay(set: number): number {
    const first = set * WAYS;
    for (let way = first; way < first + WAYS; way++) if (this.tags[way] === FREE) return way;
    const victim = first + this.victims[set]!;
    this.victims[set] = (this.victims[set]! + 1) % WAYS;
    this.free(victim);
    return victim;
  }

  private setOf(tag: number, space: number, order: number): number {
    const lo = order === 0 ? tag >>> 0 : (tag / 2 ** order) >>> 0;
    const mixed = Math.imul(lo ^ (space << 7) ^ (space >>> 9), 0x9e3779b1);
    return ((mixed >>> 16) ^ mixed) & this.setMask;
  }

  private listOrders(): void {
    const used: number[] = [];
    for (let order = 0; order < this.perOrder.length; order++) if (this.perOrder[order]! > 0) used.push(order);
    this.used = used;
  }
}
