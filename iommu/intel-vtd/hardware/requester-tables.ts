/**
 * From a requester and its PASID to the tables that translate for it: root entry, context entry, PASID directory
 * entry, PASID table entry (VT-d rev 4.1, sections 3.4 and 9.1 to 9.6), with the context cache and the PASID cache
 * (section 6.2). Cached entries stay in use until they are invalidated, whatever software does to the tables.
 * Entries that are not present or not valid are never cached, in caching mode neither (hardware may, need not).
 * Left out: memory types, snoop control of page walks (memory is coherent here), and the extensions of rev 5 for trusted devices.
 */
import type { PhysicalMemory } from '../../../sim/memory.js';
import { WORD } from '../../../sim/address.js';
import { ATTR_EXECUTE, ATTR_PRIVILEGED, NO_PASID } from '../../../host/pci/dma-port.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { FAULT } from '../spec/fault-reasons.js';
import {
  CONTEXT_FPD, CONTEXT_P, SM_CONTEXT_DTE, SM_CONTEXT_PASIDE, SM_CONTEXT_PRE, TT_DEVICE_TLB, TT_PASS_THROUGH, TTM_ABORT_DMA, TTM_LEGACY,
  TTM_SCALABLE, bitsOfAddressWidth, contextEntryAddress, levelsOfAddressWidth, pasidsOfDirectory, rootEntryAddress,
} from '../spec/root-context.js';
import {
  FLPM_5_LEVEL, PASID_FPD, PASID_P, PGTT_FIRST_LEVEL, PGTT_NESTED, PGTT_PASS_THROUGH, PGTT_SECOND_LEVEL, pasidDirectoryEntryAddress, pasidEntryAddress,
} from '../spec/pasid-table.js';
import { cacheKey, cacheSalt } from './translation-cache.js';

/** What a walk looks at. */
export type WalkEntryKind = 'root' | 'context' | 'pasid-directory' | 'pasid' | 'first-level' | 'second-level';

/** Told about every entry before it is read. Absent while the machine runs; printers set one. */
export interface WalkObserver {
  /** @param level of a paging entry, 0 for leaves; @param address physical */
  entry(kind: WalkEntryKind, level: number, address: number): void;
}

/** The translation that a context entry (legacy) or PASID entry asks for, decoded and checked. */
export class AddressSpaceRoot {
  /** PGTT; legacy entries are second-level or pass-through. */
  type = 0;
  legacy = false;
  domainId = 0;
  /** PASID that tags its translations: that of the request or RID_PASID; NO_PASID in legacy mode. */
  pasid = NO_PASID;
  /** Byte address of the first-level root table: physical, or guest-physical when nested. */
  firstRoot = 0;
  firstLevels = 4;
  secondRoot = 0;
  secondLevels = 4;
  /** First page beyond the second-level input width. */
  secondEndPage = 0;
  writeProtect = false;
  noExecute = false;
  supervisorNoExecute = false;
  extendedAccessed = false;
  /** SLADE: the second level has accessed and dirty bits. */
  accessedDirty = false;
  /** Attributes of a request that count (none without PASID) and those that are added (RID_PRIV). */
  attributeMask = 0;
  attributeSet = 0;
  /** Attributes that are refused: SRE or ERE is clear. */
  denied = 0;
  /** Fault processing disabled in any of the entries. */
  fpd = false;
  /** Tags in the IOTLB and the first-level structure cache, and in that of the second level. */
  key = 0;
  salt = 0;
  secondKey = 0;
  secondSalt = 0;
}

/** A cached context entry. */
export class ContextSlot {
  sourceId = -1;
  scalable = false;
  fpd = false;
  /** Translation requests and translated requests are allowed. */
  deviceTlb = false;
  pasidEnable = false;
  pageRequests = false;
  /** PASIDs that the directory covers. */
  pasidLimit = 0;
  directory = 0;
  ridPasid = 0;
  ridPrivileged = false;
  /** Legacy mode: the translation itself. */
  readonly root = new AddressSpaceRoot();
}

/** A cached PASID entry. */
class PasidSlot {
  sourceId = -1;
  /** Of the request: NO_PASID for the entry behind RID_PASID. */
  pasid = NO_PASID;
  readonly root = new AddressSpaceRoot();
}

const CONTEXT_SLOTS = 256;
const PASID_SLOTS = 1024;

export interface RequesterTablesOptions {
  readonly memory: PhysicalMemory;
  readonly capabilities: VtdCapabilities;
  /** False: every lookup reads the tables. */
  readonly caching: boolean;
  readonly observer?: WalkObserver;
  /** Defect: translations are tagged with their domain only. */
  readonly untaggedPasids?: boolean;
}

export class RequesterTables {
  /** Latched by SRTP. */
  rootTable = 0;
  mode = TTM_LEGACY;
  /** Why the last lookup found nothing. */
  reason = 0;
  /** Whether an entry that the failed lookup used disables fault processing. */
  fpd = false;
  /** Memory accesses, counted up; the caller resets it. */
  accesses = 0;
  private readonly memory: PhysicalMemory;
  private readonly capabilities: VtdCapabilities;
  private readonly caching: boolean;
  private readonly observer: WalkObserver | undefined;
  private readonly contexts: readonly ContextSlot[];
  private readonly pasids: readonly PasidSlot[];
  /** Bits of a table pointer's high half that are beyond the host address width. */
  private readonly beyondHost: number;
  /** Reserved bits of a scalable context entry: low half of its first word, and of its second. */
  private readonly contextReserved: number;
  private readonly ridReserved: number;
  private readonly pasidReserved: PasidEntryReserved;
  private readonly domainIdMask: number;
  /** First PASID that the unit does not support (PSS). */
  private readonly pasidEnd: number;
  private readonly untaggedPasids: boolean;

  constructor(options: RequesterTablesOptions) {
    this.memory = options.memory;
    this.capabilities = options.capabilities;
    this.caching = options.caching;
    this.observer = options.observer;
    this.contexts = Array.from({ length: options.caching ? CONTEXT_SLOTS : 1 }, () => new ContextSlot());
    this.pasids = Array.from({ length: options.caching ? PASID_SLOTS : 1 }, () => new PasidSlot());
    this.beyondHost = beyondWidth(options.capabilities.hostAddressWidth);
    this.untaggedPasids = options.untaggedPasids === true;
    const c = options.capabilities;
    this.contextReserved = 0x1e0 | (c.deviceTlb ? 0 : SM_CONTEXT_DTE) | (c.pasidBits > 0 ? 0 : SM_CONTEXT_PASIDE) | (c.pageRequests ? 0 : SM_CONTEXT_PRE);
    this.ridReserved = 0xffe0_0000 | (c.ridPrivilege ? 0 : 0x10_0000) | (c.ridPasid ? 0 : 0xf_ffff);
    this.domainIdMask = 2 ** c.domainIdBits - 1;
    this.pasidEnd = 2 ** c.pasidBits;
    this.pasidReserved = reservedOfPasidEntry(c, this.domainIdMask, this.beyondHost);
  }

  /** The context entry of a requester; undefined with `reason` and `fpd`. */
  context(sourceId: number): ContextSlot | undefined {
    const slot = this.contexts[this.caching ? (sourceId ^ (sourceId >>> 8)) & (CONTEXT_SLOTS - 1) : 0]!;
    if (slot.sourceId === sourceId && this.caching) return slot;
    slot.sourceId = -1;
    this.reason = 0;
    this.fpd = false;
    if (this.mode === TTM_SCALABLE && this.capabilities.scalable) this.readScalableContext(sourceId, slot);
    else if (this.mode === TTM_LEGACY) this.readLegacyContext(sourceId, slot);
    // RTA.4; every other mode is an error of programming (RTA.1)
    else this.reason = this.mode === TTM_ABORT_DMA && this.capabilities.abortDma ? FAULT.ABORT_DMA_MODE : FAULT.ROOT_TABLE_ADDRESS;
    if (this.reason !== 0) return undefined;
    slot.sourceId = sourceId;
    return slot;
  }

  /**
   * The PASID entry for a request of a context in scalable mode; undefined with `reason` and `fpd`.
   * @param pasid NO_PASID: the entry that RID_PASID names
   */
  addressSpace(context: ContextSlot, pasid: number): AddressSpaceRoot | undefined {
    const sourceId = context.sourceId;
    const slot = this.pasids[this.caching ? (Math.imul(pasid + 1, 0x9e5) ^ sourceId) & (PASID_SLOTS - 1) : 0]!;
    if (slot.sourceId === sourceId && slot.pasid === pasid && this.caching) return slot.root;
    slot.sourceId = -1;
    this.reason = 0;
    this.fpd = context.fpd;
    this.readPasidEntry(context, pasid, slot.root);
    if (this.reason !== 0) return undefined;
    slot.sourceId = sourceId;
    slot.pasid = pasid;
    return slot.root;
  }

  invalidateAll(): void {
    for (const slot of this.contexts) slot.sourceId = -1;
    for (const slot of this.pasids) slot.sourceId = -1;
  }

  invalidateContexts(): void {
    for (const slot of this.contexts) slot.sourceId = -1;
  }

  /** Legacy entries carry their domain; those of scalable mode do not, so all of them go. */
  invalidateContextsOfDomain(domainId: number): void {
    for (const slot of this.contexts) if (slot.scalable || slot.root.domainId === domainId) slot.sourceId = -1;
  }

  /** @param functionMask FM: 1 ignores bit 2 of the function number, 2 bits 2:1, 3 all three */
  invalidateContextsOfDevice(sourceId: number, functionMask: number): void {
    const ignored = [0, 4, 6, 7][functionMask & 3]!;
    for (const slot of this.contexts) if ((slot.sourceId & ~ignored) === (sourceId & ~ignored)) slot.sourceId = -1;
  }

  invalidatePasids(): void {
    for (const slot of this.pasids) slot.sourceId = -1;
  }

  invalidatePasidsOfDomain(domainId: number): void {
    for (const slot of this.pasids) if (slot.root.domainId === domainId) slot.sourceId = -1;
  }

  invalidatePasid(domainId: number, pasid: number): void {
    for (const slot of this.pasids) if (slot.root.pasid === pasid && slot.root.domainId === domainId) slot.sourceId = -1;
  }

  private load(kind: WalkEntryKind, address: number): boolean {
    this.observer?.entry(kind, 0, address);
    this.accesses++;
    return this.memory.load64(address);
  }

  /** Sections 9.1 and 9.3, conditions LRT and LCT. */
  private readLegacyContext(sourceId: number, slot: ContextSlot): void {
    const { memory } = this;
    const rootAddress = rootEntryAddress(this.rootTable, sourceId);
    if (!this.load('root', rootAddress)) return this.fail(FAULT.L_ROOT_ACCESS);
    const rootLo = memory.lo, rootHi = memory.hi;
    if ((rootLo & 1) === 0) return this.fail(FAULT.L_ROOT_P);
    if (!memory.load64(rootAddress + 8)) return this.fail(FAULT.L_ROOT_ACCESS);
    if ((rootLo & 0xffe) !== 0 || (rootHi & this.beyondHost) !== 0 || memory.lo !== 0 || memory.hi !== 0) return this.fail(FAULT.L_ROOT_RESERVED);

    const address = contextEntryAddress(pointer(rootLo, rootHi), sourceId, false);
    if (!this.load('context', address)) return this.fail(FAULT.L_CONTEXT_ACCESS);
    const lo = memory.lo, hi = memory.hi;
    if (!memory.load64(address + 8)) return this.fail(FAULT.L_CONTEXT_ACCESS);
    const upperLo = memory.lo, upperHi = memory.hi;
    this.fpd = (lo & CONTEXT_FPD) !== 0;
    if ((lo & CONTEXT_P) === 0) return this.fail(FAULT.L_CONTEXT_P);
    const type = (lo >>> 2) & 3;
    // SSPTPTR is ignored for pass-through; bits of DID that the unit does not have are reserved (section 9.3)
    const beyond = type === TT_PASS_THROUGH ? 0 : hi & this.beyondHost;
    if ((lo & 0xff0) !== 0 || beyond !== 0 || (upperLo & 0xff00_0080) !== 0 || upperHi !== 0 || (upperLo >>> 8) > this.domainIdMask) return this.fail(FAULT.L_CONTEXT_RESERVED);

    const aw = upperLo & 7;
    const capabilities = this.capabilities;
    const typeSupported = type === 0 || (type === TT_DEVICE_TLB && capabilities.deviceTlb) || (type === TT_PASS_THROUGH && capabilities.passThrough);
    if (!typeSupported || !this.widthSupported(aw)) return this.fail(FAULT.L_CONTEXT_INVALID);
    slot.scalable = false;
    slot.fpd = this.fpd;
    slot.deviceTlb = type === TT_DEVICE_TLB;
    slot.pasidEnable = false;
    slot.pageRequests = false;
    const root = slot.root;
    root.legacy = true;
    root.type = type === TT_PASS_THROUGH ? PGTT_PASS_THROUGH : PGTT_SECOND_LEVEL;
    root.accessedDirty = false;
    root.attributeMask = 0;
    root.attributeSet = 0;
    root.denied = 0;
    root.fpd = this.fpd;
    this.setSecondLevel(root, aw, pointer(lo, hi));
    setTags(root, (upperLo >>> 8) & 0xffff, NO_PASID, NO_PASID);
  }

  /** Sections 9.2 and 9.4, conditions SRT and SCT.1 to SCT.4. */
  private readScalableContext(sourceId: number, slot: ContextSlot): void {
    const { memory } = this;
    if (!this.load('root', rootEntryAddress(this.rootTable, sourceId) + ((sourceId & 0x80) === 0 ? 0 : 8))) return this.fail(FAULT.S_ROOT_ACCESS);
    const rootLo = memory.lo, rootHi = memory.hi;
    if ((rootLo & 1) === 0) return this.fail(FAULT.S_ROOT_P);
    if ((rootLo & 0xffe) !== 0 || (rootHi & this.beyondHost) !== 0) return this.fail(FAULT.S_ROOT_RESERVED);

    const address = contextEntryAddress(pointer(rootLo, rootHi), sourceId, true);
    if (!this.load('context', address)) return this.fail(FAULT.S_CONTEXT_ACCESS);
    const lo = memory.lo, hi = memory.hi;
    if (!memory.load64(address + 8)) return this.fail(FAULT.S_CONTEXT_ACCESS);
    const upperLo = memory.lo, upperHi = memory.hi;
    this.fpd = (lo & CONTEXT_FPD) !== 0;
    if ((lo & CONTEXT_P) === 0) return this.fail(FAULT.S_CONTEXT_P);
    // fields of features that the unit does not have are reserved (section 9.4)
    let reserved = (lo & this.contextReserved) | (hi & this.beyondHost) | (upperLo & this.ridReserved) | upperHi;
    for (let offset = 16; offset < 32; offset += 8) {
      if (!memory.load64(address + offset)) return this.fail(FAULT.S_CONTEXT_ACCESS);
      reserved |= memory.lo | memory.hi;
    }
    if (reserved !== 0) return this.fail(FAULT.S_CONTEXT_RESERVED);
    const pasidLimit = pasidsOfDirectory((lo >>> 9) & 7);
    // SCT.4: page requests need the device TLB, and RID_PASID has to be one of the directory
    if ((lo & (SM_CONTEXT_DTE | SM_CONTEXT_PRE)) === SM_CONTEXT_PRE || (upperLo & 0xf_ffff) >= pasidLimit) return this.fail(FAULT.S_CONTEXT_INVALID);
    slot.scalable = true;
    slot.fpd = this.fpd;
    slot.deviceTlb = (lo & SM_CONTEXT_DTE) !== 0;
    slot.pasidEnable = (lo & SM_CONTEXT_PASIDE) !== 0;
    slot.pageRequests = (lo & SM_CONTEXT_PRE) !== 0;
    slot.pasidLimit = pasidLimit;
    slot.directory = pointer(lo, hi);
    slot.ridPasid = upperLo & 0xf_ffff;
    slot.ridPrivileged = (upperLo & 0x10_0000) !== 0;
  }

  /** Sections 9.5 and 9.6, conditions SCT.6, SCT.7, SCT.9, SGN.10, SPD and SPT.1 to SPT.4. */
  private readPasidEntry(context: ContextSlot, requestPasid: number, root: AddressSpaceRoot): void {
    const { memory } = this;
    const pasid = requestPasid === NO_PASID ? context.ridPasid : requestPasid;
    if (requestPasid !== NO_PASID) {
      if (!context.pasidEnable) return this.fail(FAULT.S_PASIDE);
      if (pasid >= context.pasidLimit) return this.fail(FAULT.S_PASID_RANGE);
      if (pasid === context.ridPasid) return this.fail(FAULT.S_RID_PASID);
      if (pasid >= this.pasidEnd) return this.fail(FAULT.PASID_SIZE);
    }

    if (!this.load('pasid-directory', pasidDirectoryEntryAddress(context.directory, pasid))) return this.fail(FAULT.S_DIRECTORY_ACCESS);
    const directoryLo = memory.lo, directoryHi = memory.hi;
    if ((directoryLo & PASID_FPD) !== 0) this.fpd = true;
    if ((directoryLo & PASID_P) === 0) return this.fail(FAULT.S_DIRECTORY_P);
    if ((directoryLo & 0xffc) !== 0 || (directoryHi & this.beyondHost) !== 0) return this.fail(FAULT.S_DIRECTORY_RESERVED);

    const address = pasidEntryAddress(pointer(directoryLo, directoryHi), pasid);
    if (!this.load('pasid', address)) return this.fail(FAULT.S_PASID_ACCESS);
    if ((memory.lo & PASID_FPD) !== 0) this.fpd = true;
    if ((memory.lo & PASID_P) === 0) return this.fail(FAULT.S_PASID_P);
    root.legacy = false;
    root.fpd = this.fpd;
    this.decodePasidEntry(address, memory.lo, memory.hi, root);
    if (this.reason !== 0) return;
    setTags(root, root.domainId, pasid, this.untaggedPasids ? 0 : pasid);
    root.attributeMask = requestPasid === NO_PASID ? 0 : ATTR_PRIVILEGED | ATTR_EXECUTE;
    root.attributeSet = requestPasid === NO_PASID && context.ridPrivileged ? ATTR_PRIVILEGED : 0;
  }

  /** Section 9.6: reserved fields first (SPT.3), then what the unit does not support (SPT.4). */
  private decodePasidEntry(address: number, lo0: number, hi0: number, root: AddressSpaceRoot): void {
    const { memory, capabilities } = this;
    if (!memory.load64(address + 8)) return this.fail(FAULT.S_PASID_ACCESS);
    const lo1 = memory.lo, hi1 = memory.hi;
    if (!memory.load64(address + 16)) return this.fail(FAULT.S_PASID_ACCESS);
    const lo2 = memory.lo, hi2 = memory.hi;
    const mask = this.pasidReserved;
    let reserved = (lo0 & mask.lo0) | (hi0 & mask.hi0) | (lo1 & mask.lo1) | (hi1 & mask.hi1) | (lo2 & mask.lo2) | (hi2 & mask.hi2);
    for (let offset = 24; offset < 64; offset += 8) {
      if (!memory.load64(address + offset)) return this.fail(FAULT.S_PASID_ACCESS);
      reserved |= memory.lo | memory.hi;
    }
    if (reserved !== 0) return this.fail(FAULT.S_PASID_RESERVED);

    const type = (lo0 >>> 6) & 7;
    const first = type === PGTT_FIRST_LEVEL || type === PGTT_NESTED;
    const second = type === PGTT_SECOND_LEVEL || type === PGTT_NESTED;
    const aw = (lo0 >>> 2) & 7;
    const mode = (lo2 >>> 2) & 3;
    if (!this.typeSupported(type) || (second && !this.widthSupported(aw)) || (first && mode > (capabilities.fiveLevel ? FLPM_5_LEVEL : 0))) {
      return this.fail(FAULT.S_PASID_INVALID);
    }
    root.type = type;
    root.domainId = lo1 & 0xffff;
    root.accessedDirty = second && (lo0 & 0x200) !== 0;
    if (second) this.setSecondLevel(root, aw, pointer(lo0, hi0));
    root.firstRoot = pointer(lo2, hi2);
    // SPT.4: guest-physical, so within the second-level width
    if (type === PGTT_NESTED && root.firstRoot / 4096 >= root.secondEndPage) return this.fail(FAULT.S_PASID_INVALID);
    root.firstLevels = 4 + mode;
    root.writeProtect = (lo2 & 0x10) !== 0;
    root.noExecute = (lo2 & 0x20) !== 0;
    root.supervisorNoExecute = (lo2 & 0x40) !== 0;
    root.extendedAccessed = (lo2 & 0x80) !== 0;
    root.denied = ((lo2 & 1) === 0 ? ATTR_PRIVILEGED : 0) | ((lo2 & 2) === 0 ? ATTR_EXECUTE : 0);
  }

  private typeSupported(type: number): boolean {
    const { capabilities } = this;
    switch (type) {
      case PGTT_FIRST_LEVEL: return capabilities.firstLevel;
      case PGTT_SECOND_LEVEL: return capabilities.secondLevel;
      case PGTT_NESTED: return capabilities.nested;
      case PGTT_PASS_THROUGH: return capabilities.passThrough;
      default: return false;
    }
  }

  private widthSupported(aw: number): boolean {
    return aw < 5 && ((this.capabilities.adjustedWidths >>> aw) & 1) === 1;
  }

  private setSecondLevel(root: AddressSpaceRoot, aw: number, table: number): void {
    root.secondRoot = table;
    root.secondLevels = levelsOfAddressWidth(aw);
    root.secondEndPage = 2 ** (Math.min(bitsOfAddressWidth(aw), this.capabilities.guestAddressWidth) - 12);
  }

  private fail(reason: number): void {
    this.reason = reason;
  }
}

/** Reserved bits of the halves of a PASID entry's first three words; the others are reserved as a whole. */
interface PasidEntryReserved {
  readonly lo0: number;
  readonly hi0: number;
  readonly lo1: number;
  readonly hi1: number;
  readonly lo2: number;
  readonly hi2: number;
}

/**
 * Section 9.6: bits of features that a unit does not have are reserved, whatever the entry asks for. AW, FSPM and the
 * pointers of a level that the unit does not have are ignored instead, since Linux sets AW in every entry.
 */
function reservedOfPasidEntry(c: VtdCapabilities, domainIdMask: number, beyondHost: number): PasidEntryReserved {
  const memoryTypes = ((c.ecap >> 25n) & 1n) === 1n;
  return {
    // 11:10, 5; SSADE
    lo0: 0xc20 | (c.secondLevelAccessedDirty ? 0 : 0x200),
    hi0: beyondHost,
    // 86:80, DID beyond ND; PWSNP; PGSNP; memory types (those of early revisions, 95:91, with them)
    lo1: 0x7f_0000 | (0xffff & ~domainIdMask) | (c.scalableCoherent ? 0 : 0x80_0000) | (c.snoopControl ? 0 : 0x100_0000) | (memoryTypes ? 0 : ~0x1ff_ffff),
    hi1: memoryTypes ? 0 : -1,
    // 139:136; SRE; ERE; EAFE
    lo2: 0xf00 | (c.supervisorRequests ? 0 : 1) | (c.executeRequests ? 0 : 2) | (c.extendedAccessed ? 0 : 0x80),
    hi2: beyondHost,
  };
}

function setTags(root: AddressSpaceRoot, domainId: number, pasid: number, tag: number): void {
  root.domainId = domainId;
  root.pasid = pasid;
  root.key = cacheKey(domainId, tag);
  root.salt = cacheSalt(domainId, tag);
  root.secondKey = cacheKey(domainId, NO_PASID);
  root.secondSalt = cacheSalt(domainId, NO_PASID);
}

/** Address of a table from the halves of an entry whose bits 63:12 point to it. */
function pointer(lo: number, hi: number): number {
  return (hi >>> 0) * WORD + ((lo & ~0xfff) >>> 0);
}

/** Bits of the high half of a 64-bit address at and above `width`, which is at least 32. */
export function beyondWidth(width: number): number {
  return width >= 64 ? 0 : -(2 ** (width - 32)) | 0;
}
