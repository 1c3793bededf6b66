/**
 * The 4096 bytes of a function's configuration space with what software may do to each bit: read-only, read-write
 * or write-1-to-clear; behaviour is attached to registers as hooks. Capabilities chain themselves in the order in
 * which they are added (PCIe 6.0 section 7.5.1.1.11 and 7.6.3). Truth is the bytes: the model reads its enable bits
 * from here.
 */
import { assert } from '../../../sim/assert.js';
import {
  extCapHeader, PCI_CAP_LIST_ID, PCI_CAP_LIST_NEXT, PCI_CAPABILITY_LIST, PCI_CFG_SPACE_EXP_SIZE, PCI_CFG_SPACE_SIZE,
  PCI_EXT_CAP_START, PCI_STATUS, PCI_STATUS_CAP_LIST,
} from '../spec/index.js';

export type ConfigSize = 1 | 2 | 4;

/**
 * Called after a software write reached the register.
 * `written`: the value that software wrote, in the register's own coordinates, zero in bytes it did not touch;
 * `previous`: the register before.
 */
export type ConfigHook = (written: number, previous: number) => void;

interface Hook {
  readonly offset: number;
  readonly size: ConfigSize;
  readonly run: ConfigHook;
}

const NOTHING = new Uint8Array(0);

export class ConfigSpace {
  readonly bytes = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  private readonly view = new DataView(this.bytes.buffer);
  /** Up to the last byte that software can write; there are many functions, and most have nothing behind the first 256 bytes. */
  private rw = new Uint8Array(PCI_CFG_SPACE_SIZE);
  private w1c = new Uint8Array(PCI_CFG_SPACE_SIZE);
  private initial = NOTHING;
  private readonly hooks: Hook[] = [];
  private readonly readHooks: { readonly offset: number; readonly size: ConfigSize; readonly run: () => void }[] = [];
  /** Where the offset of the next capability has to be written. */
  private tail = PCI_CAPABILITY_LIST;
  private nextFree = 0x40;
  private extTail = 0;
  private nextExtFree = PCI_EXT_CAP_START;

  /** What software reads; all ones outside the 4096 bytes. */
  read(offset: number, size: ConfigSize): number {
    if (offset < 0 || offset + size > PCI_CFG_SPACE_EXP_SIZE) return allOnes(size);
    for (const hook of this.readHooks) if (hook.offset < offset + size && offset < hook.offset + hook.size) hook.run();
    return this.get(offset, size);
  }

  /** What software writes: masks apply, then hooks of the registers it touched run in ascending order. */
  write(offset: number, size: ConfigSize, value: number): void {
    if (offset < 0 || offset + size > PCI_CFG_SPACE_EXP_SIZE) return;
    const touched: Hook[] = [], previous: number[] = [];
    for (const hook of this.hooks) {
      if (hook.offset >= offset + size || offset >= hook.offset + hook.size) continue;
      touched.push(hook);
      previous.push(this.get(hook.offset, hook.size));
    }
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      const rw = this.rw[at] ?? 0;
      this.bytes[at] = ((this.bytes[at]! & ~rw) | (byte & rw)) & ~(byte & (this.w1c[at] ?? 0));
    }
    for (let i = 0; i < touched.length; i++) touched[i]!.run(writtenTo(touched[i]!, offset, size, value), previous[i]!);
  }

  /** The model's own view: no masks, no hooks. */
  get(offset: number, size: ConfigSize): number {
    if (size === 4) return this.view.getUint32(offset, true);
    return size === 2 ? this.view.getUint16(offset, true) : this.bytes[offset]!;
  }

  set(offset: number, size: ConfigSize, value: number): void {
    if (size === 4) this.view.setUint32(offset, value, true);
    else if (size === 2) this.view.setUint16(offset, value, true);
    else this.bytes[offset] = value;
  }

  /** Sets bits of a register from the model's side. */
  setBits(offset: number, size: ConfigSize, mask: number, on: boolean): void {
    const value = this.get(offset, size);
    this.set(offset, size, on ? value | mask : value & ~mask);
  }

  /** Declares a register: its value after reset, which bits software writes, which a written 1 clears. */
  define(offset: number, size: ConfigSize, value: number, access: { rw?: number; w1c?: number } = {}): void {
    const { rw = 0, w1c = 0 } = access;
    assert((rw & w1c) === 0, `config register ${offset}: a bit is both RW and W1C`);
    this.set(offset, size, value);
    if (offset + size > this.rw.length) this.extendMasks();
    for (let i = 0; i < size; i++) {
      this.rw[offset + i] = (rw >>> (8 * i)) & 0xff;
      this.w1c[offset + i] = (w1c >>> (8 * i)) & 0xff;
    }
  }

  onWrite(offset: number, size: ConfigSize, run: ConfigHook): void {
    const behind = this.hooks.findLastIndex((hook) => hook.offset <= offset);
    this.hooks.splice(behind + 1, 0, { offset, size, run });
  }

  /** Called before software reads the register: a function whose truth is elsewhere (a passed-through device) brings the bytes up to date. */
  onRead(offset: number, size: ConfigSize, run: () => void): void {
    this.readHooks.push({ offset, size, run });
  }

  /** Appends a standard capability of `sizeBytes`; returns its offset. */
  addCapability(id: number, sizeBytes: number, at = this.nextFree): number {
    assert(at % 4 === 0 && at >= this.nextFree && at + sizeBytes <= PCI_CFG_SPACE_SIZE, `no room for capability ${id} at ${at}`);
    this.bytes[at + PCI_CAP_LIST_ID] = id;
    this.bytes[at + PCI_CAP_LIST_NEXT] = 0;
    this.bytes[this.tail] = at;
    this.tail = at + PCI_CAP_LIST_NEXT;
    this.nextFree = (at + sizeBytes + 3) & ~3;
    this.setBits(PCI_STATUS, 2, PCI_STATUS_CAP_LIST, true);
    return at;
  }

  /** Appends an extended capability; returns its offset. The first one stands at 0x100. */
  addExtCapability(id: number, version: number, sizeBytes: number, at = this.nextExtFree): number {
    assert(at % 4 === 0 && at >= this.nextExtFree && at + sizeBytes <= PCI_CFG_SPACE_EXP_SIZE, `no room for extended capability ${id} at ${at}`);
    assert(this.extTail !== 0 || at === PCI_EXT_CAP_START, 'the first extended capability stands at 0x100');
    this.set(at, 4, extCapHeader(id, version, 0));
    if (this.extTail !== 0) this.set(this.extTail, 4, (this.get(this.extTail, 4) & 0xf_ffff) | (at << 20));
    this.extTail = at;
    this.nextExtFree = (at + sizeBytes + 15) & ~15;
    return at;
  }

  private extendMasks(): void {
    const { rw, w1c } = this;
    this.rw = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
    this.rw.set(rw);
    this.w1c = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
    this.w1c.set(w1c);
  }

  /** Ends construction: what the bytes are now is what a reset restores. */
  seal(): void {
    let end = PCI_CFG_SPACE_EXP_SIZE;
    while (end > 0 && this.bytes[end - 1] === 0) end--;
    this.initial = this.bytes.slice(0, end);
  }

  /** Values after reset; hooks do not run. */
  reset(): void {
    this.bytes.fill(0, this.initial.length);
    this.bytes.set(this.initial);
  }
}

export function allOnes(size: ConfigSize): number {
  return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
}

function writtenTo(hook: Hook, offset: number, size: number, value: number): number {
  let written = 0;
  for (let i = 0; i < hook.size; i++) {
    const from = hook.offset + i - offset;
    if (from >= 0 && from < size) written |= ((value >>> (8 * from)) & 0xff) << (8 * i);
  }
  return written >>> 0;
}
