/**
 * A register file declared as data: offset, width, which bits software may write and how, reset value. Behaviour is
 * attached by name. Rules of access size and alignment live here once: an access must be naturally aligned, of an
 * allowed size, and inside one declared register; a 4-byte access to half of an 8-byte register is allowed, an
 * 8-byte access may cover two adjacent 4-byte registers. Anything else reads zero and is dropped, and is counted.
 */
import { assert } from './assert.js';
import { hiOf, loOf, toU64 } from './address.js';
import { PlainMmio, type AccessSize } from './mmio.js';

export interface RegisterSpec {
  readonly offset: number;
  readonly size: 4 | 8;
  readonly reset?: bigint;
  /** Bits that software writes and reads back. Bits in no mask are read-only. */
  readonly rw?: bigint;
  /** Bits that a written 1 clears. */
  readonly w1c?: bigint;
  /** Bits that read as zero but reach the write hook (commands). */
  readonly wo?: bigint;
}

/** Called after a software write took effect. `lo`, `hi`: what was written, zero outside the written bytes; */
export type WriteHook = (lo: number, hi: number) => void;
export type ReadHook = () => void;

/** One register: its value as two unsigned halves, for the model that owns it. */
export class Register {
  readonly name: string;
  readonly offset: number;
  readonly size: 4 | 8;
  private readonly words: Uint32Array;
  private readonly index: number;
  private readonly resetLo: number;
  private readonly resetHi: number;
  readonly rwLo: number;
  readonly rwHi: number;
  readonly w1cLo: number;
  readonly w1cHi: number;
  onWrite: WriteHook | undefined;
  onRead: ReadHook | undefined;

  constructor(name: string, spec: RegisterSpec, words: Uint32Array, index: number) {
    this.name = name;
    this.offset = spec.offset;
    this.size = spec.size;
    this.words = words;
    this.index = index;
    const { reset = 0n, rw = 0n, w1c = 0n } = spec;
    this.resetLo = loOf(reset);
    this.resetHi = hiOf(reset);
    assert((rw & w1c) === 0n, `${name}: a bit is both RW and W1C`);
    this.rwLo = loOf(rw);
    this.rwHi = hiOf(rw);
    this.w1cLo = loOf(w1c);
    this.w1cHi = hiOf(w1c);
    this.reset();
  }

  get lo(): number {
    return this.words[this.index]!;
  }

  set lo(value: number) {
    this.words[this.index] = value;
  }

  get hi(): number {
    return this.size === 8 ? this.words[this.index + 1]! : 0;
  }

  set hi(value: number) {
    assert(this.size === 8, `${this.name} has 4 bytes`);
    this.words[this.index + 1] = value;
  }

  /** For the cold side: printing, tests, set-up. */
  get value(): bigint {
    return toU64(this.lo, this.hi);
  }

  set value(value: bigint) {
    this.lo = loOf(value);
    if (this.size === 8) this.hi = hiOf(value);
  }

  reset(): void {
    this.words[this.index] = this.resetLo;
    if (this.size === 8) this.words[this.index + 1] = this.resetHi;
  }

  /** A software write of the bytes selected by the masks. */
  writeMasked(lo: number, hi: number, maskLo: number, maskHi: number): void {
    const rwLo = this.rwLo & maskLo, w1cLo = this.w1cLo & maskLo & lo;
    this.lo = ((this.lo & ~rwLo) | (lo & rwLo)) & ~w1cLo;
    if (this.size === 8) {
      const rwHi = this.rwHi & maskHi, w1cHi = this.w1cHi & maskHi & hi;
      this.hi = ((this.hi & ~rwHi) | (hi & rwHi)) & ~w1cHi;
    }
    this.onWrite?.((lo & maskLo) >>> 0, (hi & maskHi) >>> 0);
  }
}

export class RegisterFile<Names extends string = string> extends PlainMmio {
  readonly name: string;
  readonly sizeBytes: number;
  readonly r: { readonly [N in Names]: Register };
  /** Accesses that broke a rule (size, alignment, undeclared offset). */
  invalidAccesses = 0;
  /** Up to the end of the last register: windows are much larger than what is in them. */
  private readonly words: Uint32Array;
  /** Register that covers each of these words. */
  private readonly map: (Register | undefined)[];
  /** As declared. */
  private readonly all: readonly Register[];
  private readonly minSize: number;

  /** @param minSize smallest access the model accepts, 4 for most; 1 where bytes are allowed */
  constructor(name: string, sizeBytes: number, specs: Record<Names, RegisterSpec>, options: { minSize?: 1 | 2 | 4 } = {}) {
    super();
    this.name = name;
    this.sizeBytes = sizeBytes;
    this.minSize = options.minSize ?? 4;
    const declared = Object.entries(specs) as [Names, RegisterSpec][];
    const extent = declared.reduce((end, [, { offset, size }]) => Math.max(end, offset + size), 0) / 4;
    this.words = new Uint32Array(extent);
    this.map = Array.from<Register | undefined>({ length: extent }).fill(undefined);
    const registers: Record<string, Register> = {};
    for (const [registerName, spec] of declared) {
      const index = spec.offset / 4;
      assert(spec.offset % spec.size === 0 && spec.offset + spec.size <= sizeBytes, `${name}.${registerName}: bad offset ${spec.offset}`);
      const register = new Register(`${name}.${registerName}`, spec, this.words, index);
      for (let i = 0; i < spec.size / 4; i++) {
        assert(this.map[index + i] === undefined, `${name}.${registerName} overlaps ${this.map[index + i]?.name ?? ''}`);
        this.map[index + i] = register;
      }
      registers[registerName] = register;
    }
    this.r = registers as { [N in Names]: Register };
    this.all = Object.values(registers);
  }

  /** Registers in order of their offsets, for printing. */
  *[Symbol.iterator](): Generator<Register> {
    let previous: Register | undefined;
    for (const register of this.map) {
      if (register !== undefined && register !== previous) yield register;
      previous = register;
    }
  }

  reset(): void {
    for (const register of this.all) register.reset();
  }

  read(offset: number, size: AccessSize): number {
    this.high = 0;
    const register = this.map[offset >> 2];
    if (register === undefined || !this.allowed(offset, size)) return this.invalid();
    register.onRead?.();
    const word = this.words[offset >> 2]!;
    if (size === 4) return word;
    if (size === 8) {
      const upper = this.map[(offset >> 2) + 1];
      if (upper !== register) upper?.onRead?.();
      this.high = upper === undefined ? 0 : this.words[(offset >> 2) + 1]!;
      return word;
    }
    return (word >>> ((offset & 3) * 8)) & (size === 1 ? 0xff : 0xffff);
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const register = this.map[offset >> 2];
    if (register === undefined || !this.allowed(offset, size)) {
      this.invalid();
      return;
    }
    if (size === 8) {
      if (register.size === 8) {
        register.writeMasked(lo, hi, -1, -1);
        return;
      }
      register.writeMasked(lo, 0, -1, 0);
      this.map[(offset >> 2) + 1]?.writeMasked(hi, 0, -1, 0);
      return;
    }
    const shift = (offset & 3) * 8;
    const mask = size === 4 ? -1 : ((size === 1 ? 0xff : 0xffff) << shift);
    const value = lo << shift;
    if (register.size === 8 && register.offset !== (offset & ~3)) register.writeMasked(0, value, 0, mask);
    else register.writeMasked(value, 0, mask, 0);
  }

  private allowed(offset: number, size: number): boolean {
    return size >= this.minSize && offset % size === 0;
  }

  private invalid(): number {
    this.invalidAccesses++;
    return 0;
  }
}
