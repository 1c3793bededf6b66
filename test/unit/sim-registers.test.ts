import { describe, expect, it } from 'vitest';
import { read64, write64 } from '../../sim/mmio.js';
import { RegisterFile } from '../../sim/registers.js';

function file() {
  return new RegisterFile('unit', 0x40, {
    CAP: { offset: 0x00, size: 8, reset: 0x1122_3344_5566_7788n },
    CTRL: { offset: 0x08, size: 4, rw: 0xff00n, wo: 0x1n },
    STATUS: { offset: 0x0c, size: 4, reset: 0xffn, w1c: 0x0fn },
    QUEUE: { offset: 0x10, size: 8, rw: 0xffff_ffff_ffff_f000n },
  });
}

describe('RegisterFile', () => {
  it('keeps read-only bits, writes RW bits, clears W1C bits', () => {
    const registers = file();
    write64(registers, 0, 0n);
    expect(read64(registers, 0)).toBe(0x1122_3344_5566_7788n);
    registers.write(0x08, 4, 0xffff_ffff);
    expect(registers.read(0x08, 4)).toBe(0xff00);
    registers.write(0x0c, 4, 0xf3);
    expect(registers.read(0x0c, 4)).toBe(0xfc);
  });

  it('tells the hook what was written, also bits that read as zero', () => {
    const registers = file();
    const seen: number[] = [];
    registers.r.CTRL.onWrite = (lo) => seen.push(lo);
    registers.write(0x08, 4, 0x1201);
    expect([seen, registers.read(0x08, 4)]).toEqual([[0x1201], 0x1200]);
  });

  it('lets half of an 8-byte register be accessed, and two 4-byte registers at once', () => {
    const registers = file();
    registers.write(0x14, 4, 0xabcd);
    expect(read64(registers, 0x10)).toBe(0x0000_abcd_0000_0000n);
    expect(registers.read(0x14, 4)).toBe(0xabcd);
    write64(registers, 0x08, 0x0000_000f_0000_1100n);
    expect([registers.read(0x08, 4), registers.read(0x0c, 4)]).toEqual([0x1100, 0xf0]);
  });

  it('reads zero and drops what breaks a rule of size, alignment or place', () => {
    const registers = file();
    expect([registers.read(0x30, 4), registers.read(0x02, 4), registers.read(0x00, 2)]).toEqual([0, 0, 0]);
    registers.write(0x09, 1, 0xff);
    expect([registers.read(0x08, 4), registers.invalidAccesses]).toEqual([0, 4]);
  });
});
