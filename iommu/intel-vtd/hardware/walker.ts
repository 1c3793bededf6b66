/**
 * The page walks of VT-d (rev 4.1, sections 3.6 to 3.8): first-level, second-level, and nested, where the address of
 * every first-level table and the result go through the second level. One walk for DMA, translation requests and
 * printers; an observer, absent while the machine runs, sees every entry. Accessed and dirty bits are set with
 * compare-and-exchange, level by level on the way down (so also when the walk fails further down); when an entry
 * changed in between, the walk starts again, a bounded number of times.
 *
 * Two caches of paging structures (section 6.2.3) hold the tables that 2 MiB and 1 GiB regions lead to, for the
 * first level with the physical address also when nested.
 */
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { FAULT } from '../spec/fault-reasons.js';
import { FL_A, FL_D, FL_EA, FL_P, FL_PS, FL_RW, FL_US, SL_A, SL_D, SL_PS, SL_R, SL_SNP, SL_W } from '../spec/paging.js';
import { PGTT_NESTED, PGTT_SECOND_LEVEL } from '../spec/pasid-table.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import type { AddressSpaceRoot, WalkObserver } from './requester-tables.js';
import { beyondWidth } from './requester-tables.js';
import {
  DIRTY, FIRST_LEVEL, NESTED, PRIVILEGED_EXECUTE, PRIVILEGED_READ, PRIVILEGED_WRITE, USER_EXECUTE, USER_READ, USER_WRITE,
} from './translation-cache.js';
import type { TranslationCache } from './translation-cache.js';

/** How often a walk starts again because an entry changed while its accessed or dirty bit was set. */
const MAX_RESTARTS = 16;

/** Rights that add up along a first-level walk: RW and US as in the entries, bit 0 for execute. */
const ALL_RIGHTS = FL_RW | FL_US | 1;

/** First page beyond the lower canonical half, for tables of four and five levels. */
const CANONICAL_END_4 = 2 ** 35;
const CANONICAL_END_5 = 2 ** 44;
const PAGE_SPACE = 2 ** 52;

export interface PageWalkerOptions {
  readonly memory: PhysicalMemory;
  readonly capabilities: VtdCapabilities;
  /** Of first-level structures, by (domain, PASID). */
  readonly firstLevelCache: TranslationCache;
  /** Of second-level structures, by domain. */
  readonly secondLevelCache: TranslationCache;
  readonly observer?: WalkObserver;
  /** Walk as hardware would, but set no accessed or dirty bit. */
  readonly readOnly?: boolean;
  /** Defect: U/S is not looked at. */
  readonly ignoreUserBit?: boolean;
  /** Defect: writes set no dirty bit. */
  readonly skipDirtyBit?: boolean;
}

export class PageWalker {
  /** Physical page of the last walk that ended without a reason. */
  page = 0;
  /** Level of the smaller leaf on the way. */
  level = 0;
  /** Rights and marks as the IOTLB keeps them. */
  flags = 0;
  /** Memory accesses, counted up; the caller resets it. */
  accesses = 0;

  private readonly memory: PhysicalMemory;
  private readonly firstLevelCache: TranslationCache;
  private readonly secondLevelCache: TranslationCache;
  private readonly observer: WalkObserver | undefined;
  private readonly readOnly: boolean;
  private readonly userMask: number;
  private readonly dirtyMask: number;
  /** Leaf sizes: bit n for level n. */
  private readonly firstLeaves: number;
  private readonly secondLeaves: number;
  private readonly beyondHost: number;
  private readonly snoopReserved: number;

  // result of `second`
  private secondPage = 0;
  private secondLevel = 0;
  /** SL_R and SL_W that hold on the whole way, SL_D when the leaf is dirty or needs no dirty bit. */
  private secondRights = 0;

  constructor(options: PageWalkerOptions) {
    const { capabilities } = options;
    this.memory = options.memory;
    this.firstLevelCache = options.firstLevelCache;
    this.secondLevelCache = options.secondLevelCache;
    this.observer = options.observer;
    this.readOnly = options.readOnly === true;
    this.userMask = options.ignoreUserBit === true ? 0 : FL_US;
    this.dirtyMask = options.skipDirtyBit === true ? 0 : FL_D;
    this.firstLeaves = 1 | 2 | (capabilities.firstLevel1G ? 4 : 0);
    this.secondLeaves = 1 | (capabilities.secondLevel2M ? 2 : 0) | (capabilities.secondLevel1G ? 4 : 0);
    this.beyondHost = beyondWidth(capabilities.hostAddressWidth) & 0xf_ffff;
    this.snoopReserved = capabilities.snoopControl ? 0 : SL_SNP;
  }

  /**
   * Walks for one page; 0, or the fault reason. A request that needs nothing (`needs` 0) fails only where nobody can
   * pass: what its translation permits is in `flags`.
   * @param needs SL_R, SL_W or 0
   * @param setDirty set the dirty bits that a write will need, where writing is permitted
   */
  walk(root: AddressSpaceRoot, page: number, needs: number, execute: boolean, privileged: boolean, setDirty: boolean): number {
    if (root.type === PGTT_SECOND_LEVEL) return this.walkSecondLevel(root, page, needs, setDirty);
    for (let restarts = 0; restarts < MAX_RESTARTS; restarts++) {
      const reason = this.walkFirstLevel(root, page, needs, execute, privileged, setDirty, restarts === 0);
      if (reason !== RESTART) return reason;
    }
    return FAULT.FL_UPDATE;
  }

  private walkSecondLevel(root: AddressSpaceRoot, page: number, needs: number, setDirty: boolean): number {
    if (page >= root.secondEndPage) return root.legacy ? FAULT.L_BEYOND_WIDTH : FAULT.SL_BEYOND_WIDTH;
    const reason = this.second(root, page, needs, setDirty);
    if (reason !== 0) return reason;
    const rights = this.secondRights;
    this.page = this.secondPage;
    this.level = this.secondLevel;
    this.flags =
      ((rights & SL_R) !== 0 ? USER_READ | USER_EXECUTE | PRIVILEGED_READ | PRIVILEGED_EXECUTE : 0) |
      ((rights & SL_W) !== 0 ? USER_WRITE | PRIVILEGED_WRITE : 0) |
      ((rights & SL_D) !== 0 ? DIRTY : 0);
    return 0;
  }

  /** One attempt of a first-level or nested walk; RESTART when an entry changed or the cached table does not do. */
  private walkFirstLevel(root: AddressSpaceRoot, page: number, needs: number, execute: boolean, privileged: boolean, setDirty: boolean, useCache: boolean): number {
    const canonicalEnd = root.firstLevels === 4 ? CANONICAL_END_4 : CANONICAL_END_5;
    if (page >= canonicalEnd && page < PAGE_SPACE - canonicalEnd) return FAULT.NOT_CANONICAL;
    const { memory, firstLevelCache, observer } = this;
    const nested = root.type === PGTT_NESTED;
    const user = privileged ? 0 : this.userMask;
    const writes = (needs & SL_W) !== 0;
    const checkWrite = writes && (!privileged || root.writeProtect);
    const noExecute = root.noExecute;
    const accessed = root.extendedAccessed ? FL_A | FL_EA : FL_A;
    const low = page & 0x7ff_ffff;
    const high = Math.floor(page / 0x800_0000);

    let level = root.firstLevels - 1;
    let rights = ALL_RIGHTS;
    let table = root.firstRoot;
    // page of the table as the entries name it, -1 when only its physical place is known
    let tableGuestPage = -1;
    let cached = false;
    if (useCache) {
      let index = firstLevelCache.find(root.key + 1, root.salt, Math.floor(page / 512));
      if (index >= 0) level = 0;
      else {
        index = firstLevelCache.find(root.key + 2, root.salt, Math.floor(page / 0x4_0000));
        if (index >= 0) level = 1;
      }
      if (index >= 0) {
        cached = true;
        rights = firstLevelCache.flags[index]! & ALL_RIGHTS;
        table = firstLevelCache.frames[index]! * 4096;
        // what is cached does not permit it: what stands in memory decides
        if ((rights & user) !== user || (checkWrite && (rights & FL_RW) === 0) || (execute && (rights & 1) === 0)) return RESTART;
      }
    }
    if (nested && !cached) {
      tableGuestPage = table / 4096;
      const reason = this.locateTable(root, tableGuestPage, FAULT.FL_ROOT_READ);
      if (reason !== 0) return reason;
      table = this.secondPage * 4096;
    }

    for (;;) {
      const index = level < 3 ? (low >>> (9 * level)) & 511 : (high >>> (9 * (level - 3))) & 511;
      const address = table + index * 8;
      if (observer !== undefined) observer.entry('first-level', level, address);
      this.accesses++;
      if (!memory.load64(address)) return level === root.firstLevels - 1 ? FAULT.FL_ROOT_ACCESS : FAULT.FL_ACCESS;
      const lo = memory.lo, hi = memory.hi;
      if ((lo & FL_P) === 0) return FAULT.FL_P;
      if ((lo & user) !== user) return FAULT.PRIVILEGE;
      if (checkWrite && (lo & FL_RW) === 0) return FAULT.WRITE;
      const noExecuteHere = noExecute && hi < 0;
      if (execute && noExecuteHere) return FAULT.EXECUTE;
      const leaf = level === 0 || ((lo & FL_PS) !== 0 && level <= 2 && (this.firstLeaves & (1 << level)) !== 0);
      // 51:HAW are reserved in nested walks too (section 9.7); guest-physical widths below HAW are checked when the second level is asked
      if ((lo & (leaf ? FIRST_LEAF_RESERVED[level]! : FIRST_TABLE_RESERVED[level]!)) !== 0 || (hi & this.beyondHost) !== 0) return FAULT.FL_RESERVED;
      rights &= (lo & (FL_RW | FL_US)) | (noExecuteHere ? 0 : 1);
      // SMEP: privileged requests execute no user pages
      if (leaf && execute && privileged && root.supervisorNoExecute && (rights & FL_US) !== 0) return FAULT.EXECUTE;
      const dirties = leaf && setDirty && ((rights & FL_RW) !== 0 || (privileged && !root.writeProtect));
      // nested: the dirty bit waits until the second level has let the write pass
      const bits = dirties && !nested ? accessed | this.dirtyMask : accessed;
      if ((lo & bits) !== bits && !this.readOnly) {
        if (nested) {
          if (tableGuestPage < 0) return RESTART;
          const reason = this.second(root, tableGuestPage, SL_W, true);
          if (reason !== 0) return isPermission(reason) ? FAULT.FL_WRITE : reason;
        }
        this.accesses++;
        if (!memory.compareExchange64(address, lo, hi, lo | bits, hi)) return RESTART;
      }
      const frame = (hi & 0xf_ffff) * 0x10_0000 + (lo >>> 12);
      if (leaf) {
        if (!nested) return this.finishFirstLevel(root, page, frame, level, rights, lo | bits);
        return this.finishNested(root, page, frame, level, rights, address, lo | bits, hi, needs, dirties, tableGuestPage);
      }
      table = frame * 4096;
      if (nested) {
        tableGuestPage = frame;
        // SFS.5: the address in a first-level entry is beyond the second-level width
        if (frame >= root.secondEndPage) return FAULT.FL_BEYOND_WIDTH;
        const reason = this.locateTable(root, frame, FAULT.FL_READ);
        if (reason !== 0) return reason;
        table = this.secondPage * 4096;
      }
      if (level <= 2) {
        const prefix = level === 1 ? Math.floor(page / 512) : Math.floor(page / 0x4_0000);
        firstLevelCache.insert(root.domainId, root.pasid, root.key, root.salt, level, prefix, table / 4096, rights | FIRST_LEVEL | (nested ? NESTED : 0));
      }
      level--;
    }
  }

  /** @param leaf low half of the leaf as it stands in memory now */
  private finishFirstLevel(root: AddressSpaceRoot, page: number, frame: number, level: number, rights: number, leaf: number): number {
    const writable = (rights & FL_RW) !== 0;
    const user = this.userMask === 0 || (rights & FL_US) !== 0;
    const execute = (rights & 1) !== 0;
    let flags = FIRST_LEVEL | PRIVILEGED_READ;
    if (user) flags |= USER_READ | (writable ? USER_WRITE : 0) | (execute ? USER_EXECUTE : 0);
    if (writable || !root.writeProtect) flags |= PRIVILEGED_WRITE;
    if (execute && !(root.supervisorNoExecute && (rights & FL_US) !== 0)) flags |= PRIVILEGED_EXECUTE;
    if ((leaf & FL_D) !== 0) flags |= DIRTY;
    // bit 12 of a large leaf is PAT, not part of its address
    this.page = level === 0 ? frame : withinLeaf(frame, page, level);
    this.level = level;
    this.flags = flags;
    return 0;
  }

  /**
   * The result of the first level through the second (section 3.8), then the dirty bit of the first-level leaf: a request
   * that the second level refuses is no write and dirties nothing.
   * @param address of the leaf; `lo`, `hi`: the leaf as it stands in memory now
   * @param dirties the first level permits the write for which a dirty bit is to be set
   */
  private finishNested(
    root: AddressSpaceRoot, page: number, frame: number, level: number, rights: number, address: number, lo: number, hi: number, needs: number, dirties: boolean,
    tableGuestPage: number,
  ): number {
    const guestPage = level === 0 ? frame : withinLeaf(frame, page, level);
    if (guestPage >= root.secondEndPage) return FAULT.FL_BEYOND_WIDTH;
    let reason = this.second(root, guestPage, needs, false);
    if (reason !== 0) return reason;
    let resultPage = this.secondPage, resultLevel = this.secondLevel, resultRights = this.secondRights;
    let leaf = lo;
    if (dirties && (resultRights & SL_W) !== 0 && this.dirtyMask !== 0 && !this.readOnly) {
      if ((lo & FL_D) === 0) {
        if (tableGuestPage < 0) return RESTART;
        reason = this.second(root, tableGuestPage, SL_W, true);
        if (reason !== 0) return isPermission(reason) ? FAULT.FL_WRITE : reason;
        this.accesses++;
        if (!this.memory.compareExchange64(address, lo, hi, lo | FL_D, hi)) return RESTART;
        leaf |= FL_D;
      }
      if ((resultRights & SL_D) === 0) {
        reason = this.second(root, guestPage, needs, true);
        if (reason !== 0) return reason;
        resultPage = this.secondPage;
        resultLevel = this.secondLevel;
        resultRights = this.secondRights;
      }
    }
    this.finishFirstLevel(root, page, frame, level, rights, leaf);
    let flags = this.flags | NESTED;
    if ((resultRights & SL_R) === 0) flags &= ~(USER_READ | PRIVILEGED_READ | USER_EXECUTE | PRIVILEGED_EXECUTE);
    if ((resultRights & SL_W) === 0) flags &= ~(USER_WRITE | PRIVILEGED_WRITE);
    if ((resultRights & SL_D) === 0) flags &= ~DIRTY;
    this.flags = flags;
    this.page = resultPage;
    if (resultLevel < level) this.level = resultLevel;
    return 0;
  }

  /** Second-level translation of a first-level table's page (section 3.8.1); the result is in `secondPage`. */
  private locateTable(root: AddressSpaceRoot, guestPage: number, notReadable: number): number {
    const reason = this.second(root, guestPage, SL_R, false);
    if (reason === FAULT.READ) return notReadable;
    // with accessed and dirty bits in the second level, first-level tables need the right to be written even to be read
    if (reason === 0 && root.accessedDirty && (this.secondRights & SL_W) === 0) return FAULT.FL_WRITE;
    return reason;
  }

  /** Second-level walk for a page below `secondEndPage`; 0 or the reason. */
  private second(root: AddressSpaceRoot, page: number, needs: number, setDirty: boolean): number {
    for (let restarts = 0; restarts < MAX_RESTARTS; restarts++) {
      const reason = this.trySecond(root, page, needs, setDirty, restarts === 0);
      if (reason !== RESTART) return reason;
    }
    return root.legacy ? FAULT.L_PAGING_ACCESS : FAULT.SL_UPDATE;
  }

  private trySecond(root: AddressSpaceRoot, page: number, needs: number, setDirty: boolean, useCache: boolean): number {
    const { memory, secondLevelCache, observer } = this;
    const legacy = root.legacy;
    const low = page & 0x7ff_ffff;
    const high = Math.floor(page / 0x800_0000);
    let level = root.secondLevels - 1;
    let table = root.secondRoot;
    let rights = SL_R | SL_W;
    if (useCache) {
      let index = secondLevelCache.find(root.secondKey + 1, root.secondSalt, Math.floor(page / 512));
      if (index >= 0) level = 0;
      else {
        index = secondLevelCache.find(root.secondKey + 2, root.secondSalt, Math.floor(page / 0x4_0000));
        if (index >= 0) level = 1;
      }
      if (index >= 0) {
        rights = secondLevelCache.flags[index]!;
        table = secondLevelCache.frames[index]! * 4096;
        if ((rights & needs) !== needs) return RESTART;
      }
    }
    for (;;) {
      const index = level < 3 ? (low >>> (9 * level)) & 511 : (high >>> (9 * (level - 3))) & 511;
      const address = table + index * 8;
      if (observer !== undefined) observer.entry('second-level', level, address);
      this.accesses++;
      if (!memory.load64(address)) return secondAccessFault(legacy, level === root.secondLevels - 1);
      const lo = memory.lo, hi = memory.hi;
      // legacy mode: a missing right ends the walk where it is missing, as recorded implementations do; scalable mode:
      // rights are what the whole walk permits (section 3.7.1, SSS.2)
      if ((lo & (SL_R | SL_W)) === 0 || (legacy && (lo & needs) !== needs)) return secondPermissionFault(legacy, 0, needs);
      const leaf = level === 0 || ((lo & SL_PS) !== 0 && level <= 2 && (this.secondLeaves & (1 << level)) !== 0);
      const reserved = leaf ? SECOND_LEAF_RESERVED[level]! | this.snoopReserved : SECOND_TABLE_RESERVED[level]!;
      if ((lo & reserved) !== 0 || (hi & (this.beyondHost | SECOND_RESERVED_HI)) !== 0) return legacy ? FAULT.L_PAGING_RESERVED : FAULT.SL_RESERVED;
      rights &= lo;
      let dirty = SL_D;
      if (root.accessedDirty) {
        // a request that is refused dirties nothing (section 3.7.2)
        const bits = leaf && setDirty && (rights & (needs | SL_W)) === (needs | SL_W) ? SL_A | SL_D : SL_A;
        if ((lo & bits) !== bits && !this.readOnly) {
          this.accesses++;
          if (!memory.compareExchange64(address, lo, hi, lo | bits, hi)) return RESTART;
        }
        dirty = (lo | bits) & SL_D;
      }
      const frame = (hi & 0xf_ffff) * 0x10_0000 + (lo >>> 12);
      if (leaf) {
        if ((rights & needs) !== needs || rights === 0) return secondPermissionFault(legacy, rights, needs);
        this.secondPage = level === 0 ? frame : withinLeaf(frame, page, level);
        this.secondLevel = level;
        this.secondRights = rights | dirty;
        return 0;
      }
      table = frame * 4096;
      if (level <= 2) {
        const prefix = level === 1 ? Math.floor(page / 512) : Math.floor(page / 0x4_0000);
        secondLevelCache.insert(root.domainId, NO_PASID, root.secondKey, root.secondSalt, level, prefix, frame, rights);
      }
      level--;
    }
  }
}

/** Not a fault: the walk has to start again without cached tables. */
const RESTART = -2;

/** Reserved bits of the low half, by level. Bit 7 is PS where a leaf is possible, and PAT in 4 KiB leaves. */
const FIRST_LEAF_RESERVED = [0, 0x001f_e000, 0x3fff_e000] as const;
const FIRST_TABLE_RESERVED = [0, 0x80, 0x80, 0x80, 0x80] as const;
const SECOND_LEAF_RESERVED = [0, 0x001f_f000, 0x3fff_f000] as const;
const SECOND_TABLE_RESERVED = [0, SL_PS | SL_SNP, SL_PS | SL_SNP, SL_PS | SL_SNP, SL_PS | SL_SNP] as const;
/** Bit 62. */
const SECOND_RESERVED_HI = 0x4000_0000;

/** The 4 KiB page of a large leaf at `frame` that `page` falls on. */
function withinLeaf(frame: number, page: number, level: number): number {
  const mask = level === 1 ? 0x1ff : 0x3_ffff;
  return frame - (frame & mask) + (page & mask);
}

function secondAccessFault(legacy: boolean, top: boolean): number {
  if (legacy) return top ? FAULT.L_CONTEXT_INVALID : FAULT.L_PAGING_ACCESS;
  return top ? FAULT.SL_ROOT_ACCESS : FAULT.SL_ACCESS;
}

function secondPermissionFault(legacy: boolean, lo: number, needs: number): number {
  const write = (needs & SL_W) !== 0;
  if (legacy) return write ? FAULT.L_WRITE : FAULT.L_READ;
  if ((lo & (SL_R | SL_W)) === 0) return FAULT.SL_PERMISSION;
  return write ? FAULT.WRITE : FAULT.READ;
}

function isPermission(reason: number): boolean {
  return reason === FAULT.SL_PERMISSION || reason === FAULT.WRITE || reason === FAULT.READ;
}
