/**
 * A second opinion on VT-d address translation: one slow, plain reading of the architecture specification (rev 4.1,
 * chapters 3, 4, 7 and 9) that shares nothing with the product's model. Bits are literals; the only input is memory,
 * the raw capability registers, the root table and the request. Nothing is cached and nothing is written: the accessed
 * and dirty bits that hardware would set are returned.
 *
 * Checked against QEMU hw/i386/intel_iommu.c, VirtualBox include/VBox/iommu-intel.h (fault codes and reserved fields
 * by table), and Linux drivers/iommu/intel/{iommu.h,pasid.h,pasid.c,dmar.c}.
 */

/** What the walker knows of the hardware: CAP_REG, ECAP_REG and the host address width of the platform. */
export interface Hardware {
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly hostAddressWidth: number;
}

export type RequestKind = 'untranslated' | 'translation' | 'translated';

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
  /** 0: granted. */
  readonly reason: number;
  /** With a reason: no fault processing disable bit suppresses the record. */
  readonly recorded: boolean;
  readonly address: bigint;
  /** Bytes that the leaf covers; of both stages the smaller. */
  readonly size: bigint;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
  /** Supervisor rights hold (the request was privileged and allowed). */
  readonly privileged: boolean;
  /** An untranslated write without PASID to 0xFEEx_xxxx: an interrupt request, outside of DMA remapping. */
  readonly interrupt: boolean;
  /** New values of table words, by address. */
  readonly updates: ReadonlyMap<bigint, bigint>;
}

/** An aligned 64-bit load; undefined where there is no memory. */
export type Load = (address: bigint) => bigint | undefined;

const bit = (word: bigint, n: number): boolean => ((word >> BigInt(n)) & 1n) === 1n;
const field = (word: bigint, high: number, low: number): bigint => (word >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n);

/** A walked table word: where it is and what it held. */
interface Entry {
  readonly address: bigint;
  word: bigint;
}

/** What a stage makes of one address. */
interface Stage {
  readonly address: bigint;
  readonly size: bigint;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
}

/** Chapter 7: faults that FPD does not silence (tables of section 7.1.3, column "qualified" = no). */
const UNQUALIFIED = new Set([0x1, 0x8, 0x9, 0xa, 0x30, 0x31, 0x32, 0x33, 0x38, 0x39, 0x3a, 0x40, 0x50, 0x58]);

/** Section 7.2: what a translation request meets as "no rights here" instead of an error. */
export const RECOVERABLE: ReadonlySet<number> = new Set([
  0x4, 0x5, 0x6, 0x71, 0x74, 0x75, 0x76, 0x77, 0x79, 0x80, 0x81, 0x82, 0x84, 0x85, 0x86,
]);

class Walk {
  /** The first fault met. */
  reason = 0;
  faultProcessingDisabled = false;
  interrupt = false;
  privileged: boolean;
  readonly updates = new Map<bigint, bigint>();
  private readonly load: Load;
  private readonly hardware: Hardware;
  private readonly request: Request;
  /** Second-stage tables in force: root, levels, input width, accessed/dirty enabled; of the context or PASID entry. */
  private ssRoot = 0n;
  private ssLevels = 0;
  private ssAccessedDirty = false;
  private snoopReserved: boolean;

  constructor(load: Load, hardware: Hardware, request: Request) {
    this.load = load;
    this.hardware = hardware;
    this.request = request;
    this.privileged = request.pasid !== undefined && request.privileged;
    // ECAP.SC (7): bit 11 of a second-stage leaf is SNP, without it reserved
    this.snoopReserved = !bit(hardware.ecap, 7);
  }

  run(rootTable: bigint, mode: number): Stage | undefined {
    const { request, hardware } = this;
    const hasPasid = request.pasid !== undefined;
    const inInterruptRange = isInterruptAddress(request.address);
    // section 3.14: without PASID this range never reaches DMA remapping
    if (request.kind === 'untranslated' && !hasPasid && inInterruptRange && request.write) {
      this.interrupt = true;
      return { address: request.address, size: 0x1000n, read: false, write: true, execute: false };
    }
    if (mode === 0) {
      if (hasPasid) return this.fault(0x31);
      return this.legacy(rootTable);
    }
    if (mode === 1 && bit(hardware.ecap, 43)) return this.scalable(rootTable);
    if (mode === 3 && bit(hardware.ecap, 52)) return this.fault(0x33);
    return this.fault(0x30);
  }

  // ---- legacy mode (sections 3.4.2, 9.1, 9.3)

  private legacy(rootTable: bigint): Stage | undefined {
    const { request, hardware } = this;
    const bus = BigInt(request.sourceId >> 8), devfn = BigInt(request.sourceId & 0xff);
    const rootLow = this.load(rootTable + bus * 16n), rootHigh = this.load(rootTable + bus * 16n + 8n);
    if (rootLow === undefined || rootHigh === undefined) return this.fault(0x8);
    if (!bit(rootLow, 0)) return this.fault(0x1);
    if ((rootLow & 0xffen) !== 0n || this.beyondHost(rootLow) || rootHigh !== 0n) return this.fault(0xa);

    const context = (rootLow & ~0xfffn) + devfn * 16n;
    const low = this.load(context), high = this.load(context + 8n);
    if (low === undefined || high === undefined) return this.fault(0x9);
    this.faultProcessingDisabled = bit(low, 1);
    if (!bit(low, 0)) return this.fault(0x2);
    // 11:4 reserved; 7 and 63:24 of the high word reserved, 6:3 ignored
    if ((low & 0xff0n) !== 0n || this.beyondHost(low) || bit(high, 7) || high >> 24n !== 0n) return this.fault(0xb);

    const type = field(low, 3, 2);
    const levels = this.secondStageLevels(field(high, 2, 0));
    if (type === 3n || (type === 1n && !bit(hardware.ecap, 2)) || (type === 2n && !bit(hardware.ecap, 6))) return this.fault(0x3);
    // also for pass-through, where software has to program the largest width
    if (levels === 0) return this.fault(0x3);
    if (request.kind !== 'untranslated' && type !== 1n) return this.fault(0xd);
    if (request.kind === 'translated') return this.direct(0x4, 0xe);
    if (type === 2n) return this.direct(0x4, 0xe);

    this.ssRoot = low & ~0xfffn;
    this.ssLevels = levels;
    const leaf = this.secondStage(request.address, LEGACY, request.write ? 'write' : 'read', true);
    return leaf === undefined ? undefined : this.checkOutput(leaf, 0xe);
  }

  // ---- scalable mode (sections 3.4.3, 9.2, 9.4 to 9.6)

  private scalable(rootTable: bigint): Stage | undefined {
    const { request, hardware } = this;
    const { ecap } = hardware;
    const bus = BigInt(request.sourceId >> 8), devfn = request.sourceId & 0xff;
    // an entry is 16 bytes: devfn 0 to 0x7f in the lower half, 0x80 and up in the upper
    const root = this.load(rootTable + bus * 16n + (devfn >= 0x80 ? 8n : 0n));
    if (root === undefined) return this.fault(0x38);
    if (!bit(root, 0)) return this.fault(0x39);
    if ((root & 0xffen) !== 0n || this.beyondHost(root)) return this.fault(0x3a);

    const at = (root & ~0xfffn) + BigInt(devfn & 0x7f) * 32n;
    const context = this.loadAll(at, 4);
    if (context === undefined) return this.fault(0x40);
    const [c0, c1, c2, c3] = context as [bigint, bigint, bigint, bigint];
    this.faultProcessingDisabled = bit(c0, 1);
    if (!bit(c0, 0)) return this.fault(0x41);
    const contextReserved =
      (c0 & 0x1e0n) !== 0n || this.beyondHost(c0) || c1 >> 21n !== 0n || c2 !== 0n || c3 !== 0n ||
      (bit(c0, 2) && !bit(ecap, 2)) || // DTE without ECAP.DT
      (bit(c0, 3) && !bit(ecap, 40)) || // PASIDE without ECAP.PASID
      (bit(c0, 4) && !bit(ecap, 29)) || // PRE without ECAP.PRS
      (bit(c1, 20) && !bit(ecap, 53)); // RID_PRIV without ECAP.RPRIVS
    if (contextReserved) return this.fault(0x42);
    if (request.kind !== 'untranslated' && !bit(c0, 2)) return this.fault(0x44);
    if (request.pasid !== undefined && !bit(c0, 3)) return this.fault(0x45);
    const pasid = request.pasid === undefined ? field(c1, 19, 0) : BigInt(request.pasid);
    // a directory has 2^(PDTS+7) entries, each for 64 PASIDs
    if (pasid >> 6n >= 1n << (field(c0, 11, 9) + 7n)) return this.fault(request.pasid === undefined ? 0x48 : 0x46);
    if (request.pasid === undefined) this.privileged = bit(c1, 20);
    if (request.kind === 'translated') return this.direct(0x83, 0x87);

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
    const { request, hardware } = this;
    const { cap, ecap } = hardware;
    const [e0, e1, e2] = entry as [bigint, bigint, bigint];
    const type = field(e0, 8, 6);
    const usesFirst = type === 1n || type === 3n, usesSecond = type === 2n || type === 3n;
    const reserved =
      (e0 & 0xc20n) !== 0n || // 11:10, and 5
      (e1 & 0x7f0000n) !== 0n || // 86:80
      (e2 & 0xf00n) !== 0n || // 139:136
      entry.slice(3).some((word) => word !== 0n) ||
      (bit(e0, 9) && !bit(ecap, 45)) || // SSADE without SSADS
      (bit(e2, 0) && !bit(ecap, 31)) || // SRE without SRS
      (bit(e2, 1) && !bit(ecap, 30)) || // ERE without ERS
      (bit(e2, 7) && !bit(ecap, 34)) || // EAFE without EAFS
      (usesSecond && this.beyondHost(e0)) ||
      (type === 1n && this.beyondHost(e2));
    if (reserved) return this.fault(0x5a);

    const typeSupported =
      (type === 1n && bit(ecap, 47)) || (type === 2n && bit(ecap, 46)) || (type === 3n && bit(ecap, 26)) || (type === 4n && bit(ecap, 6));
    if (!typeSupported) return this.fault(0x5b);
    const levels = usesSecond ? this.secondStageLevels(field(e0, 4, 2)) : 0;
    if (usesSecond && levels === 0) return this.fault(0x5b);
    // FSPM: 0 four levels, 1 five levels (CAP.FL5LP), others reserved
    const mode = field(e2, 3, 2);
    if (usesFirst && (mode > 1n || (mode === 1n && !bit(cap, 60)))) return this.fault(0x5b);
    if (request.pasid !== undefined && request.execute && !bit(e2, 1)) return this.fault(0x5c);
    if (this.privileged && !bit(e2, 0)) return this.fault(0x5d);

    if (type === 4n) return this.direct(0x83, 0x87);
    this.ssRoot = e0 & ~0xfffn;
    this.ssLevels = levels;
    this.ssAccessedDirty = bit(e0, 9);
    const access = request.write ? 'write' : 'read';
    if (type === 2n) {
      const leaf = this.secondStage(request.address, SCALABLE, access, true);
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

  /**
   * One address through the second stage.
   * @param access the right that is needed; for a translation request of a leaf no right is needed, all are reported
   * @param final false for the address of a first-stage entry
   */
  private secondStage(address: bigint, codes: SecondStageCodes, access: 'read' | 'write', final: boolean): Stage | undefined {
    const { cap } = this.hardware;
    const width = BigInt(Math.min(Number(field(cap, 21, 16)) + 1, this.ssLevels * 9 + 12));
    if (address >> width !== 0n) return this.fault(codes.beyondWidth);
    const walked: Entry[] = [];
    let table = this.ssRoot;
    let read = true, write = true;
    for (let level = this.ssLevels - 1; ; level--) {
      const shift = BigInt(12 + 9 * level);
      const at = table + ((address >> shift) & 0x1ffn) * 8n;
      const word = this.current(at);
      if (word === undefined) return this.fault(level === this.ssLevels - 1 ? codes.topAccess : codes.access);
      if (!bit(word, 0) && !bit(word, 1)) return this.fault(codes.notPresent ?? (access === 'write' ? codes.noWrite : codes.noRead));
      const leaf = level === 0 || (bit(word, 7) && (level === 1 || level === 2));
      if (this.secondStageReserved(word, level, leaf)) return this.fault(codes.reserved);
      walked.push({ address: at, word });
      read &&= bit(word, 0);
      write &&= bit(word, 1);
      if (!leaf) {
        table = word & 0xf_ffff_ffff_f000n;
        continue;
      }
      const translation = final && this.request.kind === 'translation';
      if (!translation) {
        if (access === 'write' && !write) return this.fault(codes.noWrite);
        if (access === 'read' && !read) return this.fault(codes.noRead);
      }
      if (this.ssAccessedDirty && (!translation || read || write)) {
        const dirties = translation ? write && !this.request.noWrite : access === 'write';
        walked.forEach((entry, i) => this.set(entry, 0x100n | (dirties && i === walked.length - 1 ? 0x200n : 0n)));
      }
      const size = 1n << shift;
      const base = word & 0xf_ffff_ffff_f000n & ~(size - 1n);
      return { address: base | (address & (size - 1n)), size, read, write, execute: read };
    }
  }

  private secondStageReserved(word: bigint, level: number, leaf: boolean): boolean {
    if ((word & 0xf_ffff_ffff_f000n) >> BigInt(this.hardware.hostAddressWidth) !== 0n) return true;
    if (bit(word, 62)) return true;
    if (!leaf) return bit(word, 11) || bit(word, 7);
    if (bit(word, 11) && this.snoopReserved) return true;
    // CAP.SPS: bit 34 for 2 MiB, 35 for 1 GiB; without it bit 7 is reserved
    if (level === 1) return !bit(this.hardware.cap, 34) || (word & 0x1f_f000n) !== 0n;
    if (level === 2) return !bit(this.hardware.cap, 35) || (word & 0x3fff_f000n) !== 0n;
    return false;
  }

  // ---- first stage (sections 3.6, 9.7), nested (3.8)

  private firstStage(e2: bigint, levels: number, nested: boolean): Stage | undefined {
    const { request, hardware } = this;
    const { address } = request;
    const width = BigInt(levels * 9 + 12);
    const high = address >> (width - 1n);
    if (high !== 0n && high !== (1n << (65n - width)) - 1n) return this.fault(0x80);
    const nxe = bit(e2, 5), wpe = bit(e2, 4), smep = bit(e2, 6), eafe = bit(e2, 7);
    const walked: { entry: Entry; host: Stage | undefined; guest: bigint }[] = [];
    let table = e2 & ~0xfffn;
    let user = true, writable = true, executable = true;
    for (let level = levels - 1; ; level--) {
      const top = level === levels - 1;
      const shift = BigInt(12 + 9 * level);
      const guest = table + ((address >> shift) & 0x1ffn) * 8n;
      let host: Stage | undefined;
      if (nested) {
        host = this.secondStage(guest, top ? NESTED_TOP_ENTRY : NESTED_ENTRY, 'read', false);
        if (host === undefined) return undefined;
      }
      const at = host?.address ?? guest;
      const word = this.current(at);
      if (word === undefined) return this.fault(top ? 0x73 : 0x70);
      if (!bit(word, 0)) return this.fault(0x71);
      const leaf = level === 0 || (bit(word, 7) && (level === 1 || level === 2));
      const reserved =
        (word & 0xf_ffff_ffff_f000n) >> BigInt(hardware.hostAddressWidth) !== 0n ||
        (bit(word, 63) && !nxe) ||
        (bit(word, 7) && !leaf) ||
        (leaf && level === 1 && (word & 0x1f_e000n) !== 0n) ||
        (leaf && level === 2 && ((word & 0x3fff_e000n) !== 0n || !bit(hardware.cap, 56)));
      if (reserved) return this.fault(0x72);
      walked.push({ entry: { address: at, word }, host, guest });
      user &&= bit(word, 2);
      writable &&= bit(word, 1);
      executable &&= !bit(word, 63);
      if (!leaf) {
        table = word & 0xf_ffff_ffff_f000n;
        continue;
      }

      const size = 1n << shift;
      const output = (word & 0xf_ffff_ffff_f000n & ~(size - 1n)) | (address & (size - 1n));
      const readRight = user || this.privileged;
      const writeRight = readRight && (writable || (this.privileged && !wpe));
      const executeRight = readRight && executable && !(this.privileged && smep && user);
      const translation = request.kind === 'translation';
      if (!readRight) return this.fault(0x81);
      if (!translation) {
        if (request.execute && !executeRight) return this.fault(0x82);
        if (request.write && !writeRight) return this.fault(0x85);
      }
      return this.finishFirstStage({ address: output, size, read: readRight, write: writeRight, execute: executeRight }, walked, nested, eafe);
    }
  }

  /** The leaf's own address through the second stage, then accessed and dirty bits of the first (section 3.6.2). */
  private finishFirstStage(
    first: Stage,
    walked: readonly { entry: Entry; host: Stage | undefined; guest: bigint }[],
    nested: boolean,
    eafe: boolean,
  ): Stage | undefined {
    const { request } = this;
    const translation = request.kind === 'translation';
    let result = first;
    if (nested) {
      const second = this.secondStage(first.address, SCALABLE, request.write ? 'write' : 'read', true);
      if (second === undefined) return undefined;
      result = {
        address: second.address,
        size: second.size < first.size ? second.size : first.size,
        read: first.read && second.read,
        write: first.write && second.write,
        execute: first.execute && second.execute,
      };
    }
    if (translation && !result.read && !result.write) return result;
    const dirties = translation ? result.write && !request.noWrite : request.write;
    for (const [i, { entry, host, guest }] of walked.entries()) {
      const last = i === walked.length - 1;
      const bits = 0x20n | (eafe ? 0x400n : 0n) | (dirties && last ? 0x40n : 0n);
      if ((entry.word & bits) === bits) continue;
      // the update is a write to the entry's guest address (section 3.8.2)
      if (host !== undefined) {
        if (!host.write) return this.fault(0x77);
        if (this.secondStage(guest, NESTED_ENTRY, 'write', false) === undefined) return undefined;
      }
      this.set(entry, bits);
    }
    return result;
  }

  // ---- ends

  /** Pass-through and translated requests: the address itself. */
  private direct(beyondHost: number, interruptRange: number): Stage | undefined {
    const { address } = this.request;
    if (address >> BigInt(this.hardware.hostAddressWidth) !== 0n) return this.fault(beyondHost);
    if (isInterruptAddress(address)) return this.fault(interruptRange);
    return { address, size: 0x1000n, read: true, write: true, execute: true };
  }

  /** Section 3.14: no request may be translated into the interrupt address range. */
  private checkOutput(leaf: Stage, reason: number): Stage | undefined {
    return isInterruptAddress(leaf.address) ? this.fault(reason) : leaf;
  }

  private fault(reason: number): undefined {
    this.reason ||= reason;
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

  /** A table word with the bits that this walk has already set. */
  private current(address: bigint): bigint | undefined {
    return this.updates.get(address) ?? this.load(address);
  }

  private set(entry: Entry, bits: bigint): void {
    const word = this.current(entry.address)!;
    if ((word & bits) !== bits) this.updates.set(entry.address, word | bits);
  }
}

interface SecondStageCodes {
  readonly topAccess: number;
  readonly access: number;
  /** Undefined: the right that is missing names the reason. */
  readonly notPresent: number | undefined;
  readonly reserved: number;
  readonly noRead: number;
  readonly noWrite: number;
  readonly beyondWidth: number;
}

/** LCT.4, LSL.1, LGN.3, LGN.2, LSL.2, LGN.1 */
const LEGACY: SecondStageCodes = { topAccess: 0x3, access: 0x7, notPresent: undefined, reserved: 0xc, noRead: 0x6, noWrite: 0x5, beyondWidth: 0x4 };
/** SSS.4, SSS.1, SSS.2, SSS.3, SGN.7, SGN.6, SGN.5 */
const SCALABLE: SecondStageCodes = { topAccess: 0x7b, access: 0x78, notPresent: 0x79, reserved: 0x7a, noRead: 0x86, noWrite: 0x85, beyondWidth: 0x84 };
/** Of a first-stage entry's own address: SFS.6 and SFS.7 for the right, SFS.5 for the width. */
const NESTED_TOP_ENTRY: SecondStageCodes = { topAccess: 0x7b, access: 0x78, notPresent: 0x75, reserved: 0x7a, noRead: 0x75, noWrite: 0x77, beyondWidth: 0x74 };
const NESTED_ENTRY: SecondStageCodes = { topAccess: 0x7b, access: 0x78, notPresent: 0x76, reserved: 0x7a, noRead: 0x76, noWrite: 0x77, beyondWidth: 0x74 };

function isInterruptAddress(address: bigint): boolean {
  return address >> 20n === 0xfeen;
}

/** Translates one request. Reads memory through `load` and changes nothing. */
export function walk(load: Load, hardware: Hardware, rootTable: bigint, mode: number, request: Request): Outcome {
  const walker = new Walk(load, hardware, request);
  const stage = walker.run(rootTable, mode);
  return {
    reason: walker.reason,
    recorded: walker.reason !== 0 && (UNQUALIFIED.has(walker.reason) || !walker.faultProcessingDisabled),
    address: stage?.address ?? 0n,
    size: stage?.size ?? 0n,
    read: stage?.read ?? false,
    write: stage?.write ?? false,
    execute: stage?.execute ?? false,
    privileged: walker.privileged,
    interrupt: walker.interrupt,
    updates: walker.updates,
  };
}
