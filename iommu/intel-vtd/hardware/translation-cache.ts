/**
 * A set-associative cache of translations in typed arrays (VT-d rev 4.1, section 6.2): the IOTLB, and with other keys
 * the two caches of paging structures. Entries are tagged by domain, PASID, level and the address bits that the level
 * translates, never by requester: two devices in one address space share them. An entry stays until an
 * invalidation matches it or another entry of its set replaces it, whatever software does to the tables.
 */
import { assert } from '../../../sim/assert.js';
import { pagesOfLevel } from '../spec/paging.js';

/** Rights of a cached translation, for user and for privileged requests. */
export const USER_READ = 1;
export const USER_WRITE = 2;
export const USER_EXECUTE = 4;
export const PRIVILEGED_READ = 8;
export const PRIVILEGED_WRITE = 16;
export const PRIVILEGED_EXECUTE = 32;
/** The dirty bits that a write has to set are set, or there are none to set. */
export const DIRTY = 64;
/** The translation went through first-level tables. */
export const FIRST_LEVEL = 128;
/** The translation went through both levels, or a cached table was located through the second level. */
export const NESTED = 256;

const WAYS = 4;

/** What is cached under one tag, for people and reports. */
export interface CachedTranslation {
  readonly domainId: number;
  /** NO_PASID for entries of legacy mode and for second-level structures. */
  readonly pasid: number;
  /** First page that the entry translates. */
  readonly page: number;
  /** 4 KiB pages that it translates. */
  readonly pages: number;
  /** Physical page of the first one, or of the table that a structure entry points to. */
  readonly frame: number;
  readonly flags: number;
}

/**
 * Tags without level of (domain, PASID): a number for `find`, and a salt that spreads address spaces over the sets.
 * @param pasid NO_PASID without one
 */
export function cacheKey(domainId: number, pasid: number): number {
  return (domainId * 0x20_0000 + pasid + 1) * 4;
}

export function cacheSalt(domainId: number, pasid: number): number {
  return Math.imul(domainId, 0x2545f) ^ Math.imul(pasid + 1, 0x9e37);
}

export class TranslationCache {
  readonly entries: number;
  /** Valid entries above level 0: while there are none, a lookup needs one probe. */
  largeEntries = 0;
  /** `cacheKey` plus level, -1 when not valid. */
  readonly keys: Float64Array;
  /** Address bits above the level's offset: page / 512^level. */
  readonly prefixes: Float64Array;
  readonly frames: Float64Array;
  readonly flags: Int32Array;
  readonly levels: Uint8Array;
  private readonly domains: Int32Array;
  private readonly pasids: Int32Array;
  private readonly victims: Uint8Array;
  private readonly setMask: number;

  /** @param entries a power of two from 4 on, or 0: nothing is ever cached */
  constructor(entries: number) {
    assert(entries === 0 || (entries >= WAYS && (entries & (entries - 1)) === 0), `a cache of ${entries} entries: not 0 or a power of two from ${WAYS} on`);
    this.entries = entries;
    // a cache of no entries keeps one set that is never filled, so that lookups need no special case
    const size = Math.max(entries, WAYS);
    this.keys = new Float64Array(size).fill(-1);
    this.prefixes = new Float64Array(size).fill(-1);
    this.frames = new Float64Array(size);
    this.flags = new Int32Array(size);
    this.levels = new Uint8Array(size);
    this.domains = new Int32Array(size);
    this.pasids = new Int32Array(size);
    this.victims = new Uint8Array(size / WAYS);
    this.setMask = size / WAYS - 1;
  }

  /**
   * Index of the entry with that tag, or -1.
   * @param key `cacheKey` + level
   * @param prefix page / 512^level, an integer
   */
  find(key: number, salt: number, prefix: number): number {
    const keys = this.keys, prefixes = this.prefixes;
    let index = ((prefix ^ salt) & this.setMask) * WAYS;
    if (prefixes[index] === prefix && keys[index] === key) return index;
    if (prefixes[++index] === prefix && keys[index] === key) return index;
    if (prefixes[++index] === prefix && keys[index] === key) return index;
    if (prefixes[++index] === prefix && keys[index] === key) return index;
    return -1;
  }

  /** Fills an entry, over the one with the same tag or the next one of the set in turn. Returns its index, or -1 when nothing is cached. */
  insert(domainId: number, pasid: number, key: number, salt: number, level: number, prefix: number, frame: number, flags: number): number {
    if (this.entries === 0) return -1;
    const index = this.find(key + level, salt, prefix);
    if (index < 0) return this.add(domainId, pasid, key, salt, level, prefix, frame, flags);
    this.frames[index] = frame;
    this.flags[index] = flags;
    return index;
  }

  /** Like `insert`, of a tag that is known not to be there, in a cache that has entries. */
  add(domainId: number, pasid: number, key: number, salt: number, level: number, prefix: number, frame: number, flags: number): number {
    const set = (prefix ^ salt) & this.setMask;
    const way = this.victims[set]!;
    this.victims[set] = (way + 1) & (WAYS - 1);
    const index = set * WAYS + way;
    // the level of an entry that is not valid counts for nothing
    if (this.levels[index]! > 0 && this.keys[index]! >= 0) this.largeEntries--;
    if (level > 0) this.largeEntries++;
    this.keys[index] = key + level;
    this.prefixes[index] = prefix;
    this.levels[index] = level;
    this.domains[index] = domainId;
    this.pasids[index] = pasid;
    this.frames[index] = frame;
    this.flags[index] = flags;
    return index;
  }

  invalidateAll(): void {
    this.keys.fill(-1);
    this.prefixes.fill(-1);
    this.largeEntries = 0;
  }

  /** Drops what is tagged with the domain and has any of the `flags`; 0: whatever flags. */
  invalidateDomain(domainId: number, flags = 0): void {
    const { keys, domains } = this;
    for (let i = 0; i < keys.length; i++) {
      if (keys[i]! >= 0 && domains[i] === domainId && (flags === 0 || (this.flags[i]! & flags) !== 0)) this.forget(i);
    }
  }

  /** Drops what is tagged with the domain and translates a page of [page, page + pages). */
  invalidateDomainPages(domainId: number, page: number, pages: number): void {
    const { keys, domains } = this;
    for (let i = 0; i < keys.length; i++) {
      if (keys[i]! >= 0 && domains[i] === domainId && this.overlaps(i, page, pages)) this.forget(i);
    }
  }

  invalidatePasid(domainId: number, pasid: number): void {
    const { keys, domains, pasids } = this;
    for (let i = 0; i < keys.length; i++) {
      if (keys[i]! >= 0 && pasids[i] === pasid && domains[i] === domainId) this.forget(i);
    }
  }

  /** Drops what came from first-level tables of (domain, PASID) and translates a page of [page, page + pages). */
  invalidatePasidPages(domainId: number, pasid: number, page: number, pages: number): void {
    const { keys, domains, pasids } = this;
    for (let i = 0; i < keys.length; i++) {
      if (keys[i]! >= 0 && pasids[i] === pasid && domains[i] === domainId && (this.flags[i]! & FIRST_LEVEL) !== 0 && this.overlaps(i, page, pages)) this.forget(i);
    }
  }

  /** Drops the entries of every level that translate one page of one address space, without a scan. */
  invalidatePage(key: number, salt: number, page: number): void {
    for (let level = 0; level < 3; level++) {
      const index = this.find(key + level, salt, Math.floor(page / pagesOfLevel(level)));
      if (index >= 0) this.forget(index);
    }
  }

  /** The entry at an index, undefined when it is not valid. */
  describe(index: number): CachedTranslation | undefined {
    if (index < 0 || this.keys[index]! < 0) return undefined;
    const pages = pagesOfLevel(this.levels[index]!);
    return {
      domainId: this.domains[index]!,
      pasid: this.pasids[index]!,
      page: this.prefixes[index]! * pages,
      pages,
      frame: this.frames[index]!,
      flags: this.flags[index]!,
    };
  }

  /** All valid entries, in the order in which they stand. */
  list(): CachedTranslation[] {
    const found: CachedTranslation[] = [];
    for (let i = 0; i < this.keys.length; i++) {
      const entry = this.describe(i);
      if (entry !== undefined) found.push(entry);
    }
    return found;
  }

  private overlaps(index: number, page: number, pages: number): boolean {
    const span = pagesOfLevel(this.levels[index]!);
    const first = this.prefixes[index]! * span;
    return first < page + pages && page < first + span;
  }

  private forget(index: number): void {
    if (this.levels[index]! > 0) this.largeEntries--;
    this.keys[index] = -1;
    this.prefixes[index] = -1;
  }
}
