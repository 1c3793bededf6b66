/**
 * The accelerator under nonsense: descriptors of any content through every portal, register writes of any size, place and
 * value, pages that are absent, refused or read-only, operations that are held. It comes to rest, answers
 * with values, and writes no byte where it was told to write none.
 */
import { describe, expect, it } from 'vitest';
import { Random } from '../../sim/random.js';
import type { AccessSize } from '../../sim/mmio.js';
import { DSA_DEVFN, DsaWorld } from '../fixtures/dsa-world.js';

const WORLDS = process.env['VFIOSIM_NIGHTLY'] === '1' ? 1000 : 20;
const STEPS = 70;
const SIZES: readonly AccessSize[] = [1, 2, 4, 8];
/** Buffers, completion records and batches stand in these pages; what is beyond is never named. */
const FIRST = 0x10_0000, LAST = 0x20_0000;
const CANARY = 0x30_0000;

class FuzzedDsa {
  readonly world: DsaWorld;
  readonly random: Random;

  constructor(seed: number) {
    this.random = new Random(0).split(`dsa ${seed}`);
    const { random } = this;
    this.world = new DsaWorld({ seed, hold: random.chance(0.3) ? 0.2 : 0 });
    const { world } = this;
    const translation = random.chance(0.7);
    if (translation) world.enableTranslation(random.between(1, 64));
    if (random.chance(0.3)) world.enableInterrupts();
    // shared queues and PASIDs need the PASID capability on
    const mode = translation ? random.pick(['shared', 'dedicated'] as const) : 'dedicated';
    world.start({ mode, bof: random.chance(0.5), size: random.between(1, 32), ...(translation && random.chance(0.5) && mode === 'dedicated' ? { pasid: random.below(0x10_0000) } : {}), maxTransfer: random.between(12, 17) });
    // any PASID may use any interrupt handle
    if (random.chance(0.7)) for (let handle = 0; handle < 9; handle++) world.write((world.read(0x64) & 0xffff) * 0x100 + handle * 8, 4);
    world.ram.fill(CANARY, 0x5a, 0x1000);
    for (let i = 0; i < 12; i++) {
      const page = (FIRST >> 12) + random.below((LAST - FIRST) >> 12);
      switch (random.below(3)) {
        case 0: world.agent.absent.set(page, random.pick(['success', 'invalid', 'failure', 'success'])); break;
        case 1: world.agent.readOnly.add(page); break;
        default: world.agent.broken.add(page);
      }
    }
  }

  step(): void {
    const { random, world } = this;
    switch (random.below(24)) {
      case 0: case 1: case 2: case 3: case 4: case 5: case 6: case 7: case 8: case 9: case 10: case 11: case 12: case 13: {
        const bytes = random.chance(0.15) ? this.bytes() : this.descriptor();
        const offset = random.chance(0.85) ? random.below(4) * 0x1000 : random.below(0x2_0000);
        const aligned = offset - (offset % 64);
        if (random.chance(0.5)) world.bar2.write64(aligned, bytes);
        else expect(['accepted', 'retry']).toContain(world.bar2.enqueue64(aligned, bytes));
        return;
      }
      case 14: {
        const size = random.pick(SIZES);
        return world.bar0.write(random.below(0x3000 / size) * size, size, random.u32(), random.u32());
      }
      case 15: case 16: {
        const size = random.pick(SIZES);
        const value = world.bar0.read(random.below(0x3000 / size) * size, size);
        expect(Number.isInteger(value) && value >= 0).toBe(true);
        return;
      }
      // a command, valid or not
      case 17: return world.write(0xa0, random.chance(0.8) ? random.u32() : ((random.below(20) << 20) | random.below(16)) >>> 0);
      case 18: case 19: case 20: return void world.clock.run({ untilNs: world.clock.now + random.below(20_000) });
      case 21: return random.chance(0.1) ? world.config(4, 2, random.pick([0, 2, 4, 6])) : undefined;
      // a list of descriptors for batches
      default: return this.writeBatch();
    }
  }

  /** Bus mastering on, so that what is held can end; then every event. */
  settle(): void {
    const { world } = this;
    world.config(4, 2, 6);
    expect(world.clock.run()).toBe('idle');
    expect(world.bytes(CANARY, 0x1000).every((byte) => byte === 0x5a)).toBe(true);
    expect(world.complex.configRead(0, DSA_DEVFN, 0, 4)).toBe(0x0b25_8086);
  }

  private address(): number {
    return this.random.between(FIRST, LAST - 0x2_1000);
  }

  private bytes(): Uint8Array {
    const bytes = Uint8Array.from({ length: 64 }, () => this.random.below(256));
    // addresses of 64 bits are nowhere in this memory, and those that are would miss the canary only by luck
    for (const at of [15, 23, 31, 47, 55]) bytes[at] = 0x80;
    return bytes;
  }

  /** A known opcode, flags that are mostly right, buffers in memory. */
  private descriptor(): Uint8Array {
    const { random } = this;
    const bytes = new Uint8Array(64);
    const view = new DataView(bytes.buffer);
    const opcode = random.chance(0.9) ? random.pick([0, 1, 2, 3, 3, 3, 4, 5, 6, 9, 0x10, 0x11]) : random.below(256);
    view.setUint32(0, random.chance(0.9) ? random.below(0x10_0000) : random.u32(), true);
    view.setUint32(4, (0xc | (random.chance(0.3) ? 2 : 0) | (random.chance(0.2) ? 0x10 : 0) | (random.chance(0.1) ? random.below(0x10_0000) << 4 : 0) | (opcode << 24)) >>> 0, true);
    view.setUint32(8, random.chance(0.9) ? this.address() & ~31 : this.address(), true);
    view.setUint32(16, opcode === 1 ? this.address() & ~63 : this.address(), true);
    view.setUint32(24, this.address(), true);
    view.setUint32(32, opcode === 1 ? random.below(40) : random.below(random.chance(0.8) ? 0x4000 : 0x4_0000), true);
    view.setUint16(36, random.below(12), true);
    if (opcode === 9) view.setUint32(40, this.address(), true);
    return bytes;
  }

  private writeBatch(): void {
    const base = this.address() & ~63;
    for (let i = 0; i < 8; i++) this.world.ram.write(base + i * 64, this.descriptor(), 0, 64);
  }
}

describe('the accelerator under nonsense', () => {
  it(`comes to rest after ${WORLDS} × ${STEPS} random steps`, () => {
    let reports = 0, messages = 0;
    for (let seed = 0; seed < WORLDS; seed++) {
      const fuzzed = new FuzzedDsa(seed);
      for (let i = 0; i < STEPS; i++) fuzzed.step();
      fuzzed.settle();
      reports += fuzzed.world.reports.length;
      messages += fuzzed.world.messages.length;
    }
    expect([reports > 10 * WORLDS, messages > 0], `${reports} descriptors, ${messages} interrupts`).toEqual([true, true]);
  });

  it('ignores the interrupt handle of a descriptor that fails before the handle is looked at', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    world.enableInterrupts();
    const bytes = new Uint8Array(64);
    // opcode 0xff with completion address, record and interrupt on success or error, handle 0x351f
    new DataView(bytes.buffer).setUint32(4, 0xff00_001c, true);
    new DataView(bytes.buffer).setUint32(8, FIRST, true);
    new DataView(bytes.buffer).setUint16(36, 0x351f, true);
    world.post(bytes);
    world.settle();
    expect([world.bytes(FIRST, 1)[0], world.messages]).toEqual([0x10, []]);
  });
});
