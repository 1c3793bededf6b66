/**
 * A VT-d unit driven by nonsense: register accesses of any size, place and value, queues of random or looping descriptors,
 * page requests, responses, completions nobody asked for, tables that are bytes. It has to answer everything, in
 * bounded time, with values; memory it asks for is declared or absent.
 */
import { describe, expect, it } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import type { AccessSize } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { HARDWARE, WatchedMemory } from './builder.js';

const RAM_END = 0x2_8000;
/** Descriptors below, tables from here on: pages of roots, contexts, directories, PASID entries, paging entries in turn. */
const TABLES = 0x1_0000;
const STYLES = 5;
/** Register-based invalidation exists before version 6. */
const VERSIONS = [0x60, 0x10];

const SIZES: readonly AccessSize[] = [1, 2, 4, 8];

class FuzzedUnit {
  readonly memory = new WatchedMemory(new Ram(RAM_END));
  readonly clock = new VirtualClock({ eventLimit: 50_000 });
  readonly unit: VtdUnit;
  readonly random: Random;
  /** Invalidation requests that the device has not completed. */
  private readonly tags: { sourceId: number; tag: number }[] = [];
  messages = 0;
  responses = 0;

  constructor(seed: number) {
    this.random = new Random(0).split(`unit ${seed}`);
    const hardware = this.random.pick(HARDWARE);
    // registers that a topology would have: fault records at 0x220, IOTLB registers at 0xf0, page-selective, drains
    const cap = hardware.cap | (0x22n << 24n) | (1n << 39n) | (BigInt(this.random.below(8)) << 40n) | (18n << 48n) | (3n << 54n) | (BigInt(this.random.below(2)) << 63n);
    const ecap = hardware.ecap | (0xfn << 8n) | (((hardware.ecap >> 29n) & 1n) << 42n);
    this.unit = new VtdUnit({
      name: 'dmar0',
      capabilities: decodeCapabilities(cap, ecap, { hostAddressWidth: hardware.hostAddressWidth, version: this.random.pick(VERSIONS) }),
      memory: this.memory,
      clock: this.clock,
      timing: new Timing(DEFAULT_TIMING, new Random(seed)),
      trace: new Trace(this.clock, 1 << 10),
      interrupts: { message: () => void this.messages++ },
      iotlbEntries: this.random.pick([0, 16]),
      router: {
        invalidate: (sourceId, tag) => {
          this.tags.push({ sourceId, tag });
          return true;
        },
        pageResponse: () => {
          this.responses++;
          return true;
        },
        releaseHeld: () => {},
      },
    });
  }

  /** Random bytes, or descriptors of real types, or one descriptor over and over. */
  fillMemory(): void {
    const { random, memory } = this;
    const style = random.below(4);
    const repeated = this.descriptor();
    for (let at = TABLES; at < RAM_END; at += 8) {
      const value = random.chance(0.05) ? this.qword() : this.tableWord((at >> 12) % STYLES, at >> 3);
      memory.ram.store64(at, Number(value & 0xffff_ffffn) | 0, Number(value >> 32n) | 0);
    }
    for (let at = 0; at < TABLES; at += 32) {
      const words = style === 0 ? [this.qword(), this.qword(), this.qword(), this.qword()] : style === 1 ? repeated : this.descriptor();
      // 128-bit descriptors stand at every 16 bytes
      const both = random.chance(0.5) ? [words[0]!, words[1]!, words[0]!, words[1]!] : words;
      both.forEach((word, i) => memory.ram.store64(at + i * 8, Number(word & 0xffff_ffffn) | 0, Number(word >> 32n) | 0));
    }
  }

  /** Queue, tables and remapping on, somewhere. */
  enable(): void {
    const { random, unit } = this;
    unit.write(0x90, 8, (random.below(TABLES >> 12) << 12) | 0x800, 0);
    unit.write(0x20, 8, this.pageOfStyle(0) | (random.pick([0, 1, 1, 3]) << 10), 0);
    unit.write(0xd0, 8, random.below(RAM_END >> 12) << 12, 0);
    unit.write(0x18, 4, 0x4400_0000);
    unit.write(0x18, 4, 0x8400_0000);
  }

  step(): void {
    const { random, unit } = this;
    switch (random.below(16)) {
      case 0: case 1: case 2: return this.writeRegister();
      case 3: return void this.unit.translate(random.below(0x1_0000), this.pasid(), 0, random.u32(), random.chance(0.5));
      case 4: return this.readRegister();
      case 5: case 6: return this.usefulWrite();
      case 7: {
        const status = unit.translate(random.below(0x1_0000), this.pasid(), random.below(16), this.page(), random.chance(0.5));
        expect([0, 1, 2]).toContain(status);
        return;
      }
      case 8: {
        const status = unit.translationRequest(random.below(0x1_0000), this.pasid(), random.below(16), this.page());
        expect([0, 1, 2]).toContain(status);
        return;
      }
      case 9: case 10: return unit.pageRequest(random.below(0x1_0000), this.pasid(), this.page(), random.below(16), random.chance(0.5), random.below(512));
      case 11: {
        const tag = random.chance(0.7) ? this.tags.splice(random.below(Math.max(1, this.tags.length)), 1)[0] : undefined;
        return unit.invalidateCompletion(tag?.sourceId ?? random.below(0x1_0000), tag?.tag ?? random.below(32));
      }
      case 12: return void this.clock.run({ untilNs: this.clock.now + random.below(2_000) });
      case 13: return unit.frontEnd.write64(random.below(unit.sizeBytes / 64) * 64, Uint8Array.from({ length: 64 }, () => random.below(256)));
      case 14: return void unit.enqueue64(random.below(unit.sizeBytes / 64) * 64, new Uint8Array(64));
      default: {
        const at = random.below(RAM_END / 8) * 8;
        this.memory.store64(at, random.u32() | 0, random.u32() | 0);
        if (random.chance(0.02)) unit.reset();
      }
    }
  }

  /** Nothing is left to happen but what takes time: every event, with a limit. */
  settle(): void {
    expect(this.clock.run()).toBe('idle');
    expect(this.unit.describeRegisters().every(({ value, size }) => value >= 0n && value < 1n << BigInt(size * 8))).toBe(true);
  }

  private writeRegister(): void {
    const { random, unit } = this;
    const size = random.pick(SIZES);
    const offset = random.chance(0.9) ? random.below(Math.floor(unit.sizeBytes / size)) * size : random.below(unit.sizeBytes - size);
    unit.write(offset, size, random.u32(), random.u32());
  }

  private readRegister(): void {
    const { random, unit } = this;
    const size = random.pick(SIZES);
    const value = unit.read(random.below(unit.sizeBytes - size), size);
    expect(Number.isInteger(value) && value >= 0 && value < 2 ** Math.min(32, size * 8) && unit.high >= 0 && unit.high < 2 ** 32).toBe(true);
  }

  /** Writes that reach something: addresses in memory, tails in the queue, commands, status. */
  private usefulWrite(): void {
    const { random, unit } = this;
    const write = (offset: number, lo: number, hi = 0): void => unit.write(offset, random.chance(0.5) ? 8 : 4, lo >>> 0, hi);
    const inside = random.below(RAM_END >> 12) << 12;
    switch (random.below(10)) {
      case 0: return write(0x90, inside | random.below(8) | (random.chance(0.7) ? 0x800 : 0), random.chance(0.05) ? random.u32() : 0); // IQA
      case 1: case 2: return write(0x88, random.below(random.chance(0.8) ? 128 : 0x8000) << (random.chance(0.8) ? 5 : 4)); // IQT
      case 3: return write(0x18, (random.pick([0x8400_0000, 0xc400_0000, 0xc400_0000, 0x8000_0000, random.u32()])) >>> 0); // GCMD
      case 4: return write(0x20, (random.chance(0.8) ? this.pageOfStyle(0) : inside) | (random.below(4) << 10)); // RTADDR
      case 5: return write(0xd0, inside | random.below(8), random.chance(0.2) ? random.u32() : 0); // PQA
      case 6: return write(0xc0, random.below(0x8000) << 5); // PQH
      case 7: return write(0x34, 0xff); // FSTS, so that the queue goes on
      case 8: return write(0xdc, 3); // PRS
      default: return write(random.pick([0x38, 0xa0, 0xe0]), random.chance(0.5) ? 0 : 0x8000_0000); // event masks
    }
  }

  private pageOfStyle(style: number): number {
    const pages = Math.floor((RAM_END - TABLES) / 4096 / STYLES);
    const first = (STYLES - ((TABLES >> 12) % STYLES) + style) % STYLES;
    return TABLES + (first + STYLES * this.random.below(pages)) * 4096;
  }

  /** A word that often leads to a page of the next style. */
  private tableWord(style: number, index: number): bigint {
    const { random } = this;
    const next = BigInt(random.chance(0.95) ? this.pageOfStyle(Math.min(style + 1, STYLES - 1)) : (random.below(0x1000) << 20) >>> 0);
    const small = random.chance(0.9) ? 0n : BigInt(random.below(16));
    switch (style) {
      case 0: return next | 1n;
      case 1: return index % 4 === 0 ? next | 0x1dn | (BigInt(random.below(8)) << 9n) : index % 4 === 1 ? small : 0n;
      case 2: return next | 1n;
      case 3: return index % 8 === 0 ? next | 1n | (BigInt(random.between(1, 3)) << 2n) | (BigInt(random.between(1, 4)) << 6n) : index % 8 === 2 ? next | small : 0n;
      default: return next | 7n;
    }
  }

  /** A descriptor of a valid type and often valid fields; waits for ever included. */
  private descriptor(): bigint[] {
    const { random } = this;
    const type = BigInt(random.pick([1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]));
    const source = BigInt(random.below(0x1_0000)), pasid = BigInt(random.below(0x10_0000));
    const address = this.qword() & ~0xfffn;
    switch (type) {
      case 1n: return [1n | (BigInt(random.below(4)) << 4n) | (source << 16n) | (source << 32n), 0n, 0n, 0n];
      case 2n: return [2n | (BigInt(random.below(4)) << 4n) | (BigInt(random.below(4)) << 6n) | (source << 16n), address | BigInt(random.below(0x80)), 0n, 0n];
      case 3n: return [3n | (source << 32n), address | BigInt(random.below(2)), 0n, 0n];
      case 5n: return [5n | (BigInt(random.below(16)) << 4n) | (pasid << 32n), BigInt(random.below(2 * RAM_END)) & ~3n, 0n, 0n];
      case 6n: return [6n | (BigInt(random.below(4)) << 4n) | (source << 16n) | (pasid << 32n), address | BigInt(random.below(0x80)), 0n, 0n];
      case 7n: return [7n | (BigInt(random.below(4)) << 4n) | (source << 16n) | (pasid << 32n), 0n, 0n, 0n];
      case 8n: return [8n | (source << 16n) | (pasid << 32n), address | (BigInt(random.below(2)) << 11n) | BigInt(random.below(2)), 0n, 0n];
      case 9n: return [9n | (BigInt(random.below(2)) << 4n) | (BigInt(random.below(16)) << 12n) | (source << 16n) | (pasid << 32n), BigInt(random.below(0x200)) << 3n, 0n, 0n];
      default: return [type | (this.qword() & ~0xfn), this.qword(), this.qword(), this.qword()];
    }
  }

  private qword(): bigint {
    return (BigInt(this.random.u32()) << 32n) | BigInt(this.random.u32());
  }

  private pasid(): number {
    return this.random.chance(0.3) ? NO_PASID : this.random.below(0x10_0000);
  }

  private page(): number {
    return this.random.chance(0.5) ? this.random.u32() : this.random.u32() * 2 ** 20 + this.random.below(2 ** 20);
  }
}

const WORLDS = process.env['VFIOSIM_NIGHTLY'] === '1' ? 3000 : 80;
const STEPS = 300;

describe('a VT-d unit under nonsense', () => {
  it(`answers ${WORLDS} × ${STEPS} random steps and comes to rest`, () => {
    let messages = 0, responses = 0, absent = 0, loads = 0;
    for (let seed = 0; seed < WORLDS; seed++) {
      const fuzzed = new FuzzedUnit(seed);
      fuzzed.fillMemory();
      if (seed % 3 !== 0) fuzzed.enable();
      for (let i = 0; i < STEPS; i++) fuzzed.step();
      fuzzed.settle();
      messages += fuzzed.messages;
      responses += fuzzed.responses;
      absent += fuzzed.memory.absent;
      loads += fuzzed.memory.loads;
    }
    // the nonsense reached something
    const reached = { messages: messages > 15, responses: responses > 300, absent: absent > 20, loads: loads > 2000 };
    expect(reached, JSON.stringify({ messages, responses, absent, loads })).toEqual({ messages: true, responses: true, absent: true, loads: true });
  });

  it('ends a queue whose head cannot meet its tail any more', () => {
    const fuzzed = new FuzzedUnit(1);
    const { unit, memory } = fuzzed;
    // global context-cache invalidations: one of 128 bits, then ones of 256 bits that are shifted by half
    memory.ram.store64(0, 0x11, 0);
    for (let at = 0x10; at < 0x2000; at += 32) memory.ram.store64(at, 0x11, 0);
    unit.write(0x90, 8, 0, 0);
    unit.write(0x18, 4, 0x0400_0000);
    unit.write(0x88, 4, 0x10);
    expect(unit.read(0x80, 4)).toBe(0x10);
    // 256-bit descriptors from here on, with the head between two of them
    unit.write(0x90, 8, 0x800, 0);
    unit.write(0x88, 4, 0x40);
    fuzzed.settle();
    // it reads from a multiple of 32 on, and what stands there has the wrong width: IQE, reserved field
    expect([unit.read(0x80, 4), unit.read(0x34, 4) & 0x10, unit.read(0xb0, 4)]).toEqual([0x10, 0x10, 4]);
  });

  it('comes to rest when the status write of a wait descriptor rewrites the queue itself', () => {
    const fuzzed = new FuzzedUnit(2);
    const { unit, memory } = fuzzed;
    for (let i = 0; i < 128; i++) memory.ram.store64(i * 32, 0x65 | 0, 5);
    for (let i = 0; i < 128; i++) memory.ram.store64(i * 32 + 8, ((i + 1) % 128) * 32 + 4, 0);
    unit.write(0x90, 8, 0x800, 0);
    unit.write(0x18, 4, 0x0400_0000);
    unit.write(0x88, 4, 0xfe0);
    fuzzed.settle();
    expect(unit.read(0x80, 4)).toBeLessThanOrEqual(0xfe0);
  });
});
