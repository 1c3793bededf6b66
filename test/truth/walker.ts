/**
 * A second opinion on VT-d address translation: one slow, plain reading of the architecture specification (rev 5.10,
 * chapters 3, 4, 7 and 9, with execute requests as revisions before 4.1 had them) that shares nothing with the product's
 * model. Bits are literals; the only input is memory, the raw capability registers, the root table and the request.
 * Nothing is cached and nothing is written: the bits that hardware sets in tables are returned.
 *
 * Second sources: QEMU hw/i386/intel_iommu.c, VirtualBox include/VBox/iommu-intel.h (fault codes, reserved fields), Linux
 * drivers/iommu/intel/{iommu.h,pasid.h,pasid.c,dmar.c}. Where the text leaves the order of two faults open, the order
 * is QEMU's: in first-level and legacy walks a missing right ends the walk where it is missing.
 */

/** What the walker knows of the hardware: CAP_REG, ECAP_REG and the host address width of the platform. */
export interface Hardware {
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly hostAddressWidth: number;
}

export type RequestKind = 'untranslated' | 'translation' | 'translated' | 'page';

export interface Request {
  readonly sourceId: number;
  readonly pasid: number | undefined;
  /** 64 bits; the walk looks at whole pages, so the low 12 bits are 0. */
  readonly address: bigint;
  readonly kind: RequestKind;
  readonly write: boolean;
  /** ER and PR of the PASID prefix. */
  readonly execute: boolean;
  readonly privileged: boolean;
  /** NW of a translation request. */
  readonly noWrite: boolean;
}

export interface Outcome {
  /** Fault reason met; 0 without one. PROTOCOL_ERROR: refused, and there is nothing to record. */
  readonly reason: number;
  /** Completion status; a translation request may succeed with a reason and no rights. */
  readonly status: 'success' | 'UR' | 'CA';
  /** The fault is recorded: no FPD bit on the way suppresses it. */
  readonly recorded: boolean;
  readonly address: bigint;
  /** Bytes that the leaf covers; of both stages the smaller. */
  readonly size: bigint;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
  /** PRIV and U of a translation completion. */
  readonly privileged: boolean;
  readonly untranslatedOnly: boolean;
  /** Bits that are set in table words, by address. */
  readonly sets: ReadonlyMap<bigint, bigint>;
  /** Bits that may be set besides: accessed bits of walks that failed, dirty bits of pages that hold first-level tables. */
  readonly maySet: ReadonlyMap<bigint, bigint>;
}

export const PROTOCOL_ERROR = -1;

/** An aligned 64-bit load; undefined where there is no memory. */
export type Load = (address: bigint) => bigint | undefined;

const bit = (word: bigint, n: number): boolean => ((word >> BigInt(n)) & 1n) === 1n;
const field = (word: bigint, high: number, low: number): bigint => (word >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n);

/** 51:12 of a paging entry. */
const ADDRESS = 0xf_ffff_ffff_f000n;
const A = 0x20n, D = 0x40n, EA = 0x400n, SS_A = 0x100n, SS_D = 0x200n;

/** Table 30, column "Qualified": no. */
const UNQUALIFIED = new Set([0x1, 0x8, 0x9, 0xa, 0x29, 0x30, 0x31, 0x32, 0x33, 0x38, 0x39, 0x3a, 0x40, 0x50, 0x58]);
/** Table 30, columns of translation requests: "Success with R=W=U=S=0" or "with effective permission". */
const RECOVERABLE = new Set([
  0x4, 0x5, 0x6, 0x51, 0x59, 0x5c, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x79, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x91,
]);
/** The same columns: "UR"; what is left is "CA". */
const UNSUPPORTED = new Set([0x1, 0x2, 0xd, 0x31, 0x33, 0x39, 0x41, 0x44, 0x45, 0x46, 0x48, 0x89]);

/** What a stage makes of one address. */
interface Stage {
  readonly address: bigint;
  readonly size: bigint;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
}

interface SecondStageCodes {
  readonly topAccess: number;
  readonly access: number;
  readonly reserved: number;
  readonly noRead: number;
  readonly noWrite: number;
}

/** LCT.4.3, LSS.1, LSS.2, LGN.3, LGN.2 */
const LEGACY: SecondStageCodes = { topAccess: 0x3, access: 0x7, reserved: 0xc, noRead: 0x6, noWrite: 0x5 };
/** SSS.4, SSS.1, SSS.3, SGN.7, SGN.6 */
const SCALABLE: SecondStageCodes = { topAccess: 0x7b, access: 0x78, reserved: 0x7a, noRead: 0x86, noWrite: 0x85 };
/** The address of a first-stage entry: SFS.6 or SFS.7 without the right to read it, SFS.8 without the right to update it. */
const TOP_TABLE: SecondStageCodes = { ...SCALABLE, noRead: 0x75, noWrite: 0x77 };
const TABLE: SecondStageCodes = { ...SCALABLE, noRead: 0x76, noWrite: 0x77 };

class Walk {
  /** The first fault met. */
  reason = 0;
  faultProcessingDisabled = false;
  untranslatedOnly = false;
  /** The privilege that the tables see: PR, or RID_PRIV without PASID. */
  privileged: boolean;
  readonly sets = new Map<bigint, bigint>();
  readonly maySet = new Map<bigint, bigint>();
  private readonly load: Load;
  private readonly hardware: Hardware;
  private readonly request: Request;
  private readonly wantsWrite: boolean;
  // second stage of the context or PASID entry: root, levels, accessed and dirty bits
  private ssRoot = 0n;
  private ssLevels = 0;
  private ssAccessedDirty = false;

  constructor(load: Load, hardware: Hardware, request: Request) {
    this.load = load;
    this.hardware = hardware;
    this.request = request;
    this.privileged = request.pasid !== undefined && request.privileged;
    // ECAP.NWFS (33)
    this.wantsWrite = request.kind === 'translation' ? !(request.noWrite && bit(hardware.ecap, 33)) : request.write;
  }

  run(rootTable: bigint, mode: number): Stage | undefined {
    const { request, hardware } = this;
    const { kind } = request;
    const hasPasid = request.pasid !== undefined;
    // ATS and PRI without ECAP.DT or ECAP.PRS; section 4.2.1 for translated requests with PASID
    if ((kind === 'translation' || kind === 'translated') && !bit(hardware.ecap, 2)) return this.fault(PROTOCOL_ERROR);
    if (kind === 'page' && !bit(hardware.ecap, 29)) return this.fault(PROTOCOL_ERROR);
    if (kind === 'translated' && hasPasid) return this.fault(PROTOCOL_ERROR);
    // section 3.15: untranslated requests without PASID to the interrupt range never reach DMA remapping
    if (kind === 'untranslated' && !hasPasid && isInterruptAddress(request.address)) {
      return request.write ? { address: request.address, size: 0x1000n, read: false, write: true, execute: false } : this.fault(0x29);
    }
    if (mode === 0) {
      if (kind === 'page') return this.fault(0x32);
      if (hasPasid) return this.fault(0x31);
      return this.legacy(rootTable);
    }
    if (mode === 1 && bit(hardware.ecap, 43)) return this.scalable(rootTable);
    return this.fault(mode === 3 && bit(hardware.ecap, 52) ? 0x33 : 0x30);
  }

  // ---- legacy mode (sections 3.4.2, 9.1, 9.3)

  private legacy(rootTable: bigint): Stage | undefined {
    const { request, hardware } = this;
    const bus = BigInt(request.sourceId >> 8), devfn = BigInt(request.sourceId & 0xff);
    const root = this.loadAll(rootTable + bus * 16n, 2);
    if (root === undefined) return this.fault(0x8);
    if (!bit(root[0]!, 0)) return this.fault(0x1);
    if ((root[0]! & 0xffen) !== 0n || this.beyondHost(root[0]!) || root[1] !== 0n) return this.fault(0xa);

    const context = this.loadAll((root[0]! & ~0xfffn) + devfn * 16n, 2);
    if (context === undefined) return this.fault(0x9);
    const [low, high] = context as [bigint, bigint];
    this.faultProcessingDisabled = bit(low, 1);
    if (!bit(low, 0)) return this.fault(0x2);
    const type = field(low, 3, 2);
    // 11:4, 71, 127:88 reserved, 70:67 ignored; SSPTPTR ignored for pass-through; DID beyond CAP.ND reserved
    const domainIdBits = 4n + 2n * field(hardware.cap, 2, 0);
    const pointerReserved = type !== 2n && this.beyondHost(low);
    if ((low & 0xff0n) !== 0n || pointerReserved || bit(high, 7) || high >> 24n !== 0n || field(high, 23, 8) >> domainIdBits !== 0n) return this.fault(0xb);

    const levels = this.secondStageLevels(field(high, 2, 0));
    if (type === 3n || (type === 1n && !bit(hardware.ecap, 2)) || (type === 2n && !bit(hardware.ecap, 6)) || levels === 0) return this.fault(0x3);
    if (request.kind !== 'untranslated' && type !== 1n) return this.fault(0xd);
    if (request.kind === 'translated' || type === 2n) return this.direct(0x4, 0xe);
    if (request.kind === 'translation' && isInterruptAddress(request.address)) return this.interruptRange();

    this.ssRoot = low & ~0xfffn;
    this.ssLevels = levels;
    if (this.beyondWidth(request.address)) return this.fault(0x4);
    const leaf = this.secondStage(request.address, LEGACY, request.write, true);
    return leaf === undefined ? undefined : this.checkOutput(leaf, 0xe);
  }

  // ---- scalable mode (sections 3.4.3, 9.2, 9.4 to 9.6)

  private scalable(rootTable: bigint): Stage | undefined {
    const { request } = this;
    const { ecap } = this.hardware;
    const bus = BigInt(request.sourceId >> 8), devfn = request.sourceId & 0xff;
    // an entry is 16 bytes: devfn 0 to 0x7f in the lower half, 0x80 and up in the upper
    const root = this.load(rootTable + bus * 16n + (devfn >= 0x80 ? 8n : 0n));
    if (root === undefined) return this.fault(0x38);
    if (!bit(root, 0)) return this.fault(0x39);
    if ((root & 0xffen) !== 0n || this.beyondHost(root)) return this.fault(0x3a);

    const context = this.loadAll((root & ~0xfffn) + BigInt(devfn & 0x7f) * 32n, 4);
    if (context === undefined) return this.fault(0x40);
    const [c0, c1, c2, c3] = context as [bigint, bigint, bigint, bigint];
    this.faultProcessingDisabled = bit(c0, 1);
    if (!bit(c0, 0)) return this.fault(0x41);
    const ridPasid = field(c1, 19, 0);
    const reserved =
      (c0 & 0x1e0n) !== 0n || this.beyondHost(c0) || c1 >> 21n !== 0n || c2 !== 0n || c3 !== 0n ||
      (bit(c0, 2) && !bit(ecap, 2)) || // DTE without DT
      (bit(c0, 3) && !bit(ecap, 40)) || // PASIDE without PASID
      (bit(c0, 4) && !bit(ecap, 29)) || // PRE without PRS
      (bit(c1, 20) && !bit(ecap, 53)) || // RID_PRIV without RPRIVS
      (ridPasid !== 0n && !bit(ecap, 49)); // RID_PASID without RPS
    if (reserved) return this.fault(0x42);
    // SCT.4: PRE without DTE; RID_PASID beyond a directory of 2^(PDTS+7) entries, each for 64 PASIDs
    const directoryEntries = 1n << (field(c0, 11, 9) + 7n);
    if ((bit(c0, 4) && !bit(c0, 2)) || ridPasid >> 6n >= directoryEntries) return this.fault(0x43);
    if ((request.kind === 'translation' || request.kind === 'translated') && !bit(c0, 2)) return this.fault(0x44);
    if (request.kind === 'page' && !bit(c0, 4)) return this.fault(0x47);
    if (request.kind === 'translated') return this.direct(0x83, 0x87);
    if (request.kind === 'translation' && request.pasid === undefined && isInterruptAddress(request.address)) return this.interruptRange();
    let pasid = ridPasid;
    if (request.pasid === undefined) this.privileged = bit(c1, 20);
    else {
      pasid = BigInt(request.pasid);
      if (!bit(c0, 3)) return this.fault(0x45);
      if (pasid >> 6n >= directoryEntries) return this.fault(0x46);
      if (pasid === ridPasid) return this.fault(0x48);
      // ECAP.PSS (39:35): PASIDs of PSS + 1 bits
      if (pasid >> (field(ecap, 39, 35) + 1n) !== 0n) return this.fault(0x89);
    }

    const directory = this.load((c0 & ~0xfffn) + (pasid >> 6n) * 8n);
    if (directory === undefined) return this.fault(0x50);
    this.faultProcessingDisabled ||= bit(directory, 1);
    if (!bit(directory, 0)) return this.fault(0x51);
    if ((directory & 0xffcn) !== 0n || this.beyondHost(directory)) return this.fault(0x52);

    const entry = this.loadAll((directory & ~0xfffn) + (pasid & 0x3fn) * 64n, 8);
    if (entry === undefined) return this.fault(0x58);
    this.faultProcessingDisabled ||= bit(entry[0]!, 1);
    if (!bit(entry[0]!, 0)) return this.fault(0x59);
    return this.pasidEntry(entry);
  }

  /** Section 9.6. */
  private pasidEntry(entry: readonly bigint[]): Stage | undefined {
    const { request } = this;
    const { cap, ecap } = this.hardware;
    const [e0, e1, e2] = entry as [bigint, bigint, bigint];
    const type = field(e0, 8, 6);
    const usesFirst = type === 1n || type === 3n, usesSecond = type === 2n || type === 3n;
    const domainIdBits = 4n + 2n * field(cap, 2, 0);
    const reserved =
      (e0 & 0xc20n) !== 0n || // 11:10, and 5
      (e1 & 0x7f0000n) !== 0n || // 86:80
      (e2 & 0xf00n) !== 0n || // 139:136
      entry.slice(3).some((word) => word !== 0n) ||
      this.beyondHost(e0) || this.beyondHost(e2) ||
      field(e1, 15, 0) >> domainIdBits !== 0n ||
      (bit(e0, 9) && !bit(ecap, 45)) || // SSADE without SSADS
      (bit(e1, 23) && !bit(ecap, 48)) || // PWSNP without SMPWC
      (bit(e1, 24) && !bit(ecap, 7)) || // PGSNP without SC
      (e1 >> 25n !== 0n && !bit(ecap, 25)) || // CD, EMTE, PAT without MTS
      (bit(e2, 0) && !bit(ecap, 31)) || // SRE without SRS
      (bit(e2, 1) && !bit(ecap, 30)) || // ERE without ERS
      (bit(e2, 7) && !bit(ecap, 34)); // EAFE without EAFS
    if (reserved) return this.fault(0x5a);

    const typeSupported =
      (type === 1n && bit(ecap, 47)) || (type === 2n && bit(ecap, 46)) || (type === 3n && bit(ecap, 26)) || (type === 4n && bit(ecap, 6));
    if (!typeSupported) return this.fault(0x5b);
    if (usesSecond) {
      this.ssLevels = this.secondStageLevels(field(e0, 4, 2));
      if (this.ssLevels === 0) return this.fault(0x5b);
      this.ssRoot = e0 & ~0xfffn;
      this.ssAccessedDirty = bit(e0, 9);
    }
    // FSPM: 0 four levels, 1 five levels (CAP.FS5LP), others reserved; FSPTPTR within the second stage when nested
    const mode = field(e2, 3, 2);
    if (usesFirst && (mode > 1n || (mode === 1n && !bit(cap, 60)))) return this.fault(0x5b);
    if (type === 3n && this.beyondWidth(e2 & ~0xfffn)) return this.fault(0x5b);
    if (request.kind === 'page') return { address: 0n, size: 0n, read: false, write: false, execute: false };
    if (this.privileged && !bit(e2, 0)) return this.fault(0x5d);
    if (request.pasid !== undefined && request.execute && !bit(e2, 1)) return this.fault(0x5c);

    if (type === 4n) return this.direct(0x83, 0x87);
    if (type === 2n) {
      if (this.beyondWidth(request.address)) return this.fault(0x84);
      const leaf = this.secondStage(request.address, SCALABLE, request.write, true);
      return leaf === undefined ? undefined : this.checkOutput(leaf, 0x87);
    }
    const leaf = this.firstStage(e2, mode === 1n ? 5 : 4, type === 3n);
    return leaf === undefined ? undefined : this.checkOutput(leaf, 0x87);
  }

  // ---- second stage (sections 3.7, 9.8)

  /** Levels for an AW field; 0 where CAP.SAGAW does not have the width. */
  private secondStageLevels(aw: bigint): number {
    if (aw < 1n || aw > 3n || !bit(this.hardware.cap, 8 + Number(aw))) return 0;
    return Number(aw) + 2;
  }

  /** Above the smaller of MGAW and the entry's AW. */
  private beyondWidth(address: bigint): boolean {
    const width = Math.min(Number(field(this.hardware.cap, 21, 16)) + 1, this.ssLevels * 9 + 12);
    return address >> BigInt(width) !== 0n;
  }

  /**
   * One address through the second stage.
   * @param write the right that is needed; the result of a translation request needs none and reports all
   * @param final false for the address of a first-stage entry
   */
  private secondStage(address: bigint, codes: SecondStageCodes, write: boolean, final: boolean): Stage | undefined {
    const asks = final && this.request.kind === 'translation';
    const legacy = codes === LEGACY;
    let table = this.ssRoot;
    let reads = true, writes = true;
    for (let level = this.ssLevels - 1; ; level--) {
      const shift = BigInt(12 + 9 * level);
      const at = table + ((address >> shift) & 0x1ffn) * 8n;
      const word = this.load(at);
      if (word === undefined) return this.fault(level === this.ssLevels - 1 ? codes.topAccess : codes.access);
      const missing = write ? codes.noWrite : codes.noRead;
      if (!bit(word, 0) && !bit(word, 1)) return this.fault(legacy ? missing : 0x79);
      if (legacy && !asks && !bit(word, write ? 1 : 0)) return this.fault(missing);
      const leaf = level === 0 || (bit(word, 7) && (level === 1 || level === 2));
      if (this.secondStageReserved(word, level, leaf)) return this.fault(codes.reserved);
      reads &&= bit(word, 0);
      writes &&= bit(word, 1);
      if (this.ssAccessedDirty) this.mark(at, SS_A);
      if (!leaf) {
        table = word & ADDRESS;
        continue;
      }
      // SSS.2: nothing is permitted by all entries
      if (!reads && !writes) return this.fault(legacy ? missing : 0x79);
      if (!asks) {
        if (write && !writes) return this.fault(codes.noWrite);
        if (!write && !reads) return this.fault(codes.noRead);
        // section 3.8.1: with SSADE first-stage tables have to be writable even to be read
        if (!final && this.ssAccessedDirty && !writes) return this.fault(0x77);
      }
      if (this.ssAccessedDirty) {
        if (!final) {
          if (write) this.mark(at, SS_D);
          this.allow(at, SS_D);
        } else if (writes && this.wantsWrite) this.dirty.push([at, SS_D]);
      }
      const size = 1n << shift;
      const base = word & ADDRESS & ~(size - 1n);
      return { address: base | (address & (size - 1n)), size, read: reads, write: writes, execute: reads };
    }
  }

  private secondStageReserved(word: bigint, level: number, leaf: boolean): boolean {
    if ((word & ADDRESS) >> BigInt(this.hardware.hostAddressWidth) !== 0n || bit(word, 62)) return true;
    if (!leaf) return bit(word, 11) || bit(word, 7);
    // SNP needs ECAP.SC (7); CAP.SSLPS: bit 34 for 2 MiB, 35 for 1 GiB, else bit 7 is reserved
    if (bit(word, 11) && !bit(this.hardware.ecap, 7)) return true;
    if (level === 1) return !bit(this.hardware.cap, 34) || (word & 0x1f_f000n) !== 0n;
    if (level === 2) return !bit(this.hardware.cap, 35) || (word & 0x3fff_f000n) !== 0n;
    return false;
  }

  // ---- first stage (sections 3.6, 9.7), nested (3.8)

  private firstStage(e2: bigint, levels: number, nested: boolean): Stage | undefined {
    const { request, hardware, privileged } = this;
    const { address } = request;
    const asks = request.kind === 'translation';
    const width = BigInt(levels * 9 + 12);
    const high = address >> (width - 1n);
    if (high !== 0n && high !== (1n << (65n - width)) - 1n) return this.fault(0x80);
    // WPE, NXE, SMEP, EAFE
    const writeProtect = bit(e2, 4), noExecute = bit(e2, 5), smep = bit(e2, 6), eafe = bit(e2, 7);
    const accessed = eafe ? A | EA : A;
    let table = e2 & ~0xfffn;
    let user = true, writable = true, executable = true;
    for (let level = levels - 1; ; level--) {
      const top = level === levels - 1;
      const shift = BigInt(12 + 9 * level);
      const guest = table + ((address >> shift) & 0x1ffn) * 8n;
      const host = nested ? this.secondStage(guest, top ? TOP_TABLE : TABLE, false, false) : undefined;
      if (nested && host === undefined) return undefined;
      const at = host?.address ?? guest;
      const word = this.load(at);
      if (word === undefined) return this.fault(top ? 0x73 : 0x70);
      if (!bit(word, 0)) return this.fault(0x71);
      user &&= bit(word, 2);
      writable &&= bit(word, 1);
      executable &&= !(noExecute && bit(word, 63));
      if (!user && !privileged) return this.fault(0x81);
      const writeRight = writable || (privileged && !writeProtect);
      if (!asks && request.write && !writeRight) return this.fault(0x85);
      const ask = !asks && request.pasid !== undefined && request.execute;
      if (ask && !executable) return this.fault(0x82);
      const leaf = level === 0 || (bit(word, 7) && (level === 1 || level === 2));
      const reserved =
        (word & ADDRESS) >> BigInt(hardware.hostAddressWidth) !== 0n ||
        (bit(word, 7) && !leaf) ||
        (leaf && level === 1 && (word & 0x1f_e000n) !== 0n) ||
        (leaf && level === 2 && ((word & 0x3fff_e000n) !== 0n || !bit(hardware.cap, 56)));
      if (reserved) return this.fault(0x72);
      const executeRight = executable && !(privileged && smep && user);
      if (leaf && ask && !executeRight) return this.fault(0x82);
      if (!this.update(at, word, accessed, nested, guest, top)) return undefined;
      const size = leaf ? 1n << shift : 0x1000n;
      const output = leaf ? (word & ADDRESS & ~(size - 1n)) | (address & (size - 1n)) : word & ADDRESS;
      if (nested && this.beyondWidth(output)) return this.fault(0x74);
      if (!leaf) {
        table = output;
        continue;
      }
      const first: Stage = { address: output, size, read: true, write: writeRight, execute: executeRight };
      let result = first;
      if (nested) {
        const second = this.secondStage(output, SCALABLE, request.write, true);
        if (second === undefined) return undefined;
        result = {
          address: second.address,
          size: second.size < size ? second.size : size,
          read: second.read,
          write: writeRight && second.write,
          execute: executeRight && second.execute,
        };
        if (!result.write) this.dirty.length = 0;
      }
      if (result.write && this.wantsWrite && !this.update(at, word, D, nested, guest, top)) return undefined;
      return result;
    }
  }

  /** Sets flags of a first-stage entry, which is a write to its guest address when nested. */
  private update(at: bigint, word: bigint, flags: bigint, nested: boolean, guest: bigint, top: boolean): boolean {
    if ((word & flags) === flags) return true;
    if (nested && this.secondStage(guest, top ? TOP_TABLE : TABLE, true, false) === undefined) return false;
    this.mark(at, flags);
    return true;
  }

  // ---- ends

  /** Dirty bits that the final access sets once nothing stands against it. */
  private readonly dirty: [bigint, bigint][] = [];

  settle(granted: boolean): void {
    if (granted) for (const [at, flags] of this.dirty) this.mark(at, flags);
    else {
      // section 3.6.2: accessed bits may be set for requests that fail; dirty bits only where the tables let the request
      // pass and its result was refused (SGN.8)
      for (const [at, flags] of this.sets) this.allow(at, flags);
      if (this.reason === 0x87) for (const [at, flags] of this.dirty) this.allow(at, flags);
      this.sets.clear();
    }
  }

  /** Pass-through and translated requests: the address itself. */
  private direct(beyondHost: number, interruptRange: number): Stage | undefined {
    const { address } = this.request;
    if (address >> BigInt(this.hardware.hostAddressWidth) !== 0n) return this.fault(beyondHost);
    if (isInterruptAddress(address)) return this.fault(interruptRange);
    return { address, size: 0x1000n, read: true, write: true, execute: true };
  }

  /** Table 30, S.1 and S.2: a translation request without PASID for the interrupt range. */
  private interruptRange(): Stage {
    this.untranslatedOnly = this.wantsWrite;
    return { address: this.request.address, size: 0x1000n, read: false, write: this.wantsWrite, execute: false };
  }

  /** Section 3.15: no request may be translated into the interrupt address range. */
  private checkOutput(leaf: Stage, reason: number): Stage | undefined {
    return isInterruptAddress(leaf.address) ? this.fault(reason) : leaf;
  }

  private fault(reason: number): undefined {
    this.reason = this.reason === 0 ? reason : this.reason;
    return undefined;
  }

  private beyondHost(word: bigint): boolean {
    return word >> BigInt(this.hardware.hostAddressWidth) !== 0n;
  }

  private loadAll(address: bigint, count: number): bigint[] | undefined {
    const words: bigint[] = [];
    for (let i = 0; i < count; i++) {
      const word = this.load(address + BigInt(8 * i));
      if (word === undefined) return undefined;
      words.push(word);
    }
    return words;
  }

  private mark(address: bigint, flags: bigint): void {
    this.sets.set(address, (this.sets.get(address) ?? 0n) | flags);
  }

  private allow(address: bigint, flags: bigint): void {
    this.maySet.set(address, (this.maySet.get(address) ?? 0n) | flags);
  }
}

function isInterruptAddress(address: bigint): boolean {
  return address >> 20n === 0xfeen;
}

/** Translates one request. Reads memory through `load` and changes nothing. */
export function walk(load: Load, hardware: Hardware, rootTable: bigint, mode: number, request: Request): Outcome {
  const walker = new Walk(load, hardware, request);
  const stage = walker.run(rootTable, mode);
  const { reason } = walker;
  walker.settle(reason === 0);
  const asks = request.kind === 'translation';
  const recoverable = asks && RECOVERABLE.has(reason);
  let recorded = reason > 0 && (UNQUALIFIED.has(reason) || !walker.faultProcessingDisabled);
  // section 7.1.2: not reported, but for SFS.10
  if (recoverable && reason !== 0x91) recorded = false;
  let status: Outcome['status'] = reason === 0 || recoverable ? 'success' : 'UR';
  if (asks && status === 'UR' && reason > 0 && !UNSUPPORTED.has(reason)) status = 'CA';
  const wantsWrite = !(request.noWrite && bit(hardware.ecap, 33));
  return {
    reason, status, recorded,
    address: stage?.address ?? 0n,
    size: stage?.size ?? 0n,
    read: stage?.read ?? false,
    write: (stage?.write ?? false) && (!asks || wantsWrite),
    execute: (stage?.execute ?? false) && (!asks || (request.execute && request.pasid !== undefined)),
    privileged: asks && status === 'success' && request.pasid !== undefined && request.privileged,
    untranslatedOnly: walker.untranslatedOnly,
    sets: walker.sets,
    maySet: walker.maySet,
  };
}
