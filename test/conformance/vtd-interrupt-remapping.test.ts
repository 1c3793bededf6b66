/** Interrupt remapping of the unit (VT-d 4.1, chapter 5, sections 6.5.2.7, 9.10 and 11.4): entries, registers and descriptors poked as software does. */
import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { Trace } from '../../sim/trace.js';
import { Random } from '../../sim/random.js';
import { read64, write64 } from '../../sim/mmio.js';
import { DMA_DONE, DMA_UR, NO_PASID } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import type { InterruptMessage } from '../../host/interrupts.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities, decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { IRTE, SVT_BUS, SVT_REQUESTER, interruptIndex, remappableAddress } from '../../iommu/intel-vtd/spec/interrupt-remapping.js';
import { FRCD } from '../../iommu/intel-vtd/spec/registers.js';
import { wordsOf } from '../../sim/layout.js';
import { PciWorld } from '../fixtures/pci-world.js';
import { World } from './vtd-front-end-world.js';

const GCMD = 0x18, GSTS = 0x1c, FSTS = 0x34, IQT = 0x88, IQA = 0x90, IQERCD = 0xb0, IRTA = 0xb8, FRCD0 = 0x220;
const QIE = 0x0400_0000, IRE = 0x0200_0000, SIRTP = 0x0100_0000, CFI = 0x0080_0000;
const QUEUE = 0x2000, TABLE = 0x4000, OTHER_TABLE = 0x6000;
/** Entries of the table: S = 7. */
const ENTRIES = 256, SIZE_CODE = 7n;
const DEVICE = 0x08, OTHER = 0x13;

type IrteFields = Partial<Record<keyof typeof IRTE.f, number>>;

interface Options {
  readonly defects?: readonly string[];
  readonly iotlbEntries?: number;
  /** Bits that are set in the built CAP and ECAP. */
  readonly cap?: bigint;
  readonly ecap?: bigint;
}

/** A unit with a table of 256 entries behind a root complex, with one function that masters the bus. */
class RemappingWorld {
  readonly pci = new PciWorld();
  readonly unit: VtdUnit;
  readonly fn: PciFunction;
  readonly messages: InterruptMessage[] = [];
  private readonly memory = this.pci.complex.fabric.memory;
  private tail = 0;

  constructor(options: Options = {}) {
    const built = buildCapabilities({ 'interrupt-remapping': true, 'fault-records': 4 }).capabilities;
    const { clock, complex, interrupts } = this.pci;
    this.unit = new VtdUnit({
      name: 'dmar0', capabilities: decodeCapabilities(built.cap | (options.cap ?? 0n), built.ecap | (options.ecap ?? 0n)), memory: this.memory, clock, interrupts, router: complex.fabric,
      timing: new Timing({ ...DEFAULT_TIMING, jitter: 0 }, new Random(1)), trace: new Trace(clock), defects: new Set(options.defects ?? []), iotlbEntries: options.iotlbEntries ?? 512,
    });
    complex.fabric.setAgent(() => true, this.unit);
    this.fn = this.pci.fn(this.pci.root, DEVICE, { pasid: { width: 20, exec: false, priv: false } });
    complex.configWrite(0, DEVICE, 4, 2, 6);
    interrupts.messages$.subscribe((message) => void this.messages.push(message));
    write64(this.unit, IQA, BigInt(QUEUE));
    this.command(QIE);
  }

  /** Sets the table and switches remapping on. */
  enable(extra = 0): this {
    this.setTable();
    this.command(QIE | IRE | extra);
    return this;
  }

  setTable(table = TABLE, bits = SIZE_CODE): void {
    write64(this.unit, IRTA, BigInt(table) | bits);
    this.command((this.unit.read(GSTS, 4) & (QIE | IRE | CFI)) | SIRTP);
  }

  command(bits: number): void {
    this.unit.write(GCMD, 4, bits);
  }

  poke(index: number, fields: IrteFields, table = TABLE): void {
    this.pokeWords(index, IRTE.encode(fields), table);
  }

  pokeWords(index: number, words: ArrayLike<number>, table = TABLE): void {
    this.memory.store64(table + index * 16, words[0]!, words[1]!);
    this.memory.store64(table + index * 16 + 8, words[2]!, words[3]!);
  }

  /** An entry that this function, or the given one, may use. */
  point(index: number, vector: number, fields: IrteFields = {}): void {
    this.poke(index, { P: 1, V: vector, DST: 0x0300, SID: DEVICE, SVT: SVT_REQUESTER, ...fields });
  }

  /** The function sends a message: `vector@destination` as it arrived, or the reason that was recorded, or `dropped`. */
  send(address: number, data = 0): string {
    this.messages.length = 0;
    const before = this.unit.frontEnd.faults.counts.met;
    const status = this.fn.port.messageInterrupt(address, data);
    const message = this.messages[0];
    if (message !== undefined) {
      expect(status).toBe(DMA_DONE);
      return `${message.data & 0xff}@${(message.address >>> 12) & 0xff}`;
    }
    expect(status).toBe(DMA_UR);
    const fault = this.unit.frontEnd.faults.counts.met > before ? this.takeFault() : undefined;
    return fault === undefined ? 'dropped' : `0x${fault.reason.toString(16)}`;
  }

  /** Reads the first record and clears it. */
  takeFault(): { reason: number; index: number; sourceId: number; pasid: boolean } | undefined {
    for (let i = 0; i < 4; i++) {
      const at = FRCD0 + 16 * i;
      const words = wordsOf(read64(this.unit, at), read64(this.unit, at + 8));
      if (FRCD.f.F.get(words) === 0) continue;
      this.unit.write(at + 12, 4, 0x8000_0000);
      return { reason: FRCD.f.FR.get(words), index: words[1]! >>> 16, sourceId: FRCD.f.SID.get(words), pasid: FRCD.f.PP.get(words) === 1 };
    }
    return undefined;
  }

  /** Queues one 128-bit descriptor. */
  submit(word0: number, word1 = 0): void {
    this.memory.store64(QUEUE + this.tail, word0, word1);
    this.memory.store64(QUEUE + this.tail + 8, 0, 0);
    this.tail += 16;
    this.unit.write(IQT, 4, this.tail);
  }

  invalidateAll(): void {
    this.submit(0x4);
  }

  invalidate(index: number, mask = 0): void {
    this.submit((0x14 | (mask << 27)) >>> 0, index);
  }
}

describe('layouts', () => {
  it('puts handle, format and subhandle where Linux does (fill_msi_msg: index 14:0 in 19:5, index 15 in 2, format 4, SHV 3)', () => {
    expect(remappableAddress(0)).toBe(0xfee0_0018);
    expect(remappableAddress(1)).toBe(0xfee0_0038);
    expect(remappableAddress(0x7fff)).toBe(0xfeef_fff8);
    expect(remappableAddress(0x8001)).toBe(0xfee0_003c);
    fc.assert(fc.property(fc.integer({ min: 0, max: 0xffff }), fc.integer({ min: 0, max: 0xffff }), (handle, subhandle) => {
      expect(interruptIndex(remappableAddress(handle), subhandle)).toBe(handle + subhandle);
      expect(interruptIndex(remappableAddress(handle) & ~8, subhandle)).toBe(handle);
    }), { numRuns: 200 });
  });

  it('codes the entry that Linux writes for vector 0x31 of processor 2 and requester 00:04.0 (struct irte)', () => {
    expect([...IRTE.encode({ P: 1, RH: 1, V: 0x31, DST: 2 << 8, SID: 0x20, SVT: SVT_REQUESTER })]).toEqual([0x0031_0009, 0x0000_0200, 0x0004_0020, 0]);
  });
});

describe('registers (11.4.4, 11.4.10.1)', () => {
  it('echoes IRE, SIRTP and CFI in GSTS and prints them', () => {
    const { unit } = new RemappingWorld().enable(CFI);
    expect(unit.read(GSTS, 4)).toBe(QIE | IRE | SIRTP | CFI);
    const text = (name: string): string => unit.describeRegisters().find((register) => register.name === name)!.text;
    expect([text('GSTS'), text('IRTA')]).toEqual(['QIES IRES IRTPS CFIS', 'S=7 IRTA=0x4000']);
    unit.write(GCMD, 4, QIE);
    expect(unit.read(GSTS, 4)).toBe(QIE | SIRTP);
  });

  it('keeps size and address of IRTA; EIME is reserved without ECAP.EIM', () => {
    const plain = new RemappingWorld().unit, extended = new RemappingWorld({ ecap: 0x10n }).unit;
    for (const unit of [plain, extended]) write64(unit, IRTA, 0xffff_ffff_ffff_ffffn);
    expect([read64(plain, IRTA), read64(extended, IRTA)]).toEqual([0x3fff_ffff_f00fn, 0x3fff_ffff_f80fn]);
  });

  it('without ECAP.IR the commands do nothing, IRTA is zero and the descriptor has an invalid type (6.5.2.7)', () => {
    const world = new World();
    world.write8(IRTA, 0x4007n);
    world.write4(GCMD, IRE | SIRTP | CFI);
    expect([world.read4(GSTS), world.read8(IRTA), world.backEnd.take()]).toEqual([0, 0n, []]);
    world.enableQueue();
    world.submit([0x4n]);
    expect(world.read8(IQERCD) & 0xfn).toBe(3n);
  });

  it('hands the back end what SIRTP latched, not what is written later (11.4.4.1)', () => {
    const world = new World({ options: { 'interrupt-remapping': true } });
    world.write8(IRTA, 0x10_000fn);
    world.write4(GCMD, SIRTP);
    world.write8(IRTA, 0x20_0003n);
    world.write4(GCMD, IRE | CFI);
    world.write4(GCMD, IRE);
    world.write4(GCMD, IRE);
    expect(world.backEnd.take()).toEqual([
      'interrupts enabled=false table=0x100000+65536 eime=false cfi=false', 'interrupts enabled=true table=0x100000+65536 eime=false cfi=true',
      'interrupts enabled=true table=0x100000+65536 eime=false cfi=false',
    ]);
    world.unit.reset();
    expect(world.backEnd.take()).toEqual(expect.arrayContaining(['interrupts enabled=false table=0x0+2 eime=false cfi=false', 'interrupt-entries 0x0+Infinity']));
  });
});

describe('a message of a function', () => {
  it('passes as it is while remapping is off, also with bits of the remappable format', () => {
    const world = new RemappingWorld();
    world.setTable();
    expect([world.send(0xfee0_5000, 0x44), world.send(remappableAddress(3), 0x45)]).toEqual(['68@5', `69@0`]);
  });

  it('gets vector, destination, hints, delivery and trigger mode from the entry (5.1.3)', () => {
    const world = new RemappingWorld().enable();
    world.point(3, 0x61);
    expect(world.send(remappableAddress(3))).toBe('97@3');
    world.point(4, 0x62, { DST: 0x1100, RH: 1, DM: 1, TM: 1, DLM: 4, AVAIL: 0xf });
    world.send(remappableAddress(4));
    expect(world.messages).toMatchObject([{ address: 0xfee1_100c, data: 0xc462, sourceId: DEVICE }]);
  });

  it('adds the subhandle to the handle, and ignores the data where it is not valid (5.1.2.2)', () => {
    const world = new RemappingWorld().enable();
    for (const index of [8, 9, 10, 11]) world.point(index, 0x40 + index);
    expect([0, 1, 2, 3].map((data) => world.send(remappableAddress(8), data))).toEqual(['72@3', '73@3', '74@3', '75@3']);
    expect(world.send((remappableAddress(8) & ~8) >>> 0, 0xffff_0002)).toBe('72@3');
  });

  it('needs no DMA translation; reads, other sizes, and requests with PASID are no interrupts (3.14)', () => {
    const world = new RemappingWorld().enable();
    world.point(0, 0x50);
    const { port } = world.fn, bytes = new Uint8Array(8);
    const page = 0xfee00;
    expect(port.read(page, 0x18, bytes, 0, 4, NO_PASID, 0)).toBe(DMA_UR);
    expect(port.write(page, 0x18, bytes, 0, 8, NO_PASID, 0)).toBe(DMA_UR);
    expect(port.write(page, 0x1a, bytes, 0, 4, NO_PASID, 0)).toBe(DMA_UR);
    expect(port.write(page, 0x18, bytes, 0, 4, 5, 0)).toBe(DMA_UR);
    expect([world.messages.length, world.unit.frontEnd.faults.counts.met]).toEqual([0, 0]);
    expect(world.send(remappableAddress(0))).toBe('80@3');
  });

  it("the unit's own events are not remapped (5.1.6)", () => {
    const world = new RemappingWorld().enable();
    for (const [offset, value] of [[0x3c, 0x77], [0x40, 0xfee0_6000], [0x44, 0], [0x38, 0]] as const) world.unit.write(offset, 4, value);
    world.fn.port.messageInterrupt(0xfee0_1000, 0x41);
    expect(world.messages.map(({ address, data }) => [address, data])).toEqual([[0xfee0_6000, 0x77]]);
  });

  it('with EIME has 32-bit destinations; one that does not exist is spurious', () => {
    const world = new RemappingWorld({ ecap: 0x10n });
    world.setTable(TABLE, SIZE_CODE | 0x800n);
    world.command(QIE | IRE);
    const irq = world.pci.interrupts.request('x', () => {});
    world.point(1, irq.vector, { DST: 0 });
    world.point(2, irq.vector, { DST: 0x100 });
    for (const index of [1, 2]) world.send(remappableAddress(index));
    world.pci.clock.run();
    expect([world.pci.interrupts.list()[0]!.count, world.pci.interrupts.spurious]).toEqual([1, 1]);
  });

  it('walks one memory access, and none when the entry is cached', () => {
    const world = new RemappingWorld().enable();
    world.point(1, 0x40);
    const { fn } = world, costs = [1, 2].map(() => {
      world.send(remappableAddress(1));
      return fn.port.costNs;
    });
    expect(costs[0]! - costs[1]!).toBe(DEFAULT_TIMING.memoryAccessNs);
  });
});

describe('faults (5.1.4, 7.1.3): blocked, recorded with requester and index', () => {
  const FAULTS: readonly [string, number, (world: RemappingWorld) => readonly [address: number, data: number, index: number]][] = [
    ['reserved data bits with a valid subhandle', 0x20, (world) => {
      world.point(5, 0x40);
      return [remappableAddress(5), 0x1_0000, 5];
    }],
    ['an index beyond the table', 0x21, () => [remappableAddress(ENTRIES), 0, ENTRIES]],
    ['a subhandle that leads beyond the table', 0x21, () => [remappableAddress(ENTRIES - 1), 1, ENTRIES]],
    ['an entry that is not present', 0x22, () => [remappableAddress(7), 0, 7]],
    ['a table that is not memory', 0x23, (world) => {
      world.setTable(0x4000_0000);
      return [remappableAddress(9), 0, 9];
    }],
    ['a reserved bit', 0x24, (world) => {
      world.pokeWords(6, [0x0040_1001, 0x300, 0x4_0008, 0]);
      return [remappableAddress(6), 0, 6];
    }],
    ['the mode of posted interrupts, which the unit lacks', 0x24, (world) => {
      world.pokeWords(6, [0x0040_8001, 0x300, 0x4_0008, 0]);
      return [remappableAddress(6), 0, 6];
    }],
    ['destination bits that xAPIC mode reserves', 0x24, (world) => {
      world.point(6, 0x40, { DST: 0x1_0300 });
      return [remappableAddress(6), 0, 6];
    }],
    ['compatibility format', 0x25, () => [0xfee0_1000, 0x40, 0]],
    ['another requester', 0x26, (world) => {
      world.point(4, 0x40, { SID: OTHER });
      return [remappableAddress(4), 0, 4];
    }],
  ];

  it.each(FAULTS.map(([what, reason, prepare]) => ({ what: `0x${reason.toString(16)}: ${what}`, reason, prepare })))('$what', ({ reason, prepare }) => {
    const world = new RemappingWorld().enable();
    const [address, data, index] = prepare(world);
    expect(world.fn.port.messageInterrupt(address, data)).toBe(DMA_UR);
    expect([world.takeFault(), world.messages]).toEqual([{ reason, index, sourceId: DEVICE, pasid: false }, []]);
  });

  it('sets PPF and the fault event as a DMA fault does', () => {
    const world = new RemappingWorld().enable();
    world.fn.port.messageInterrupt(0xfee0_1000, 0);
    expect(world.unit.read(FSTS, 4) & 2).toBe(2);
  });

  it('FPD keeps what was found in an entry from being recorded, present or not, and nothing else (5.1.4)', () => {
    const world = new RemappingWorld().enable();
    world.poke(1, { FPD: 1 });
    world.pokeWords(2, [0x0040_1003, 0x300, 0x4_0008, 0]);
    world.point(3, 0x40, { FPD: 1, SID: OTHER });
    world.point(4, 0x40, { FPD: 1 });
    expect([1, 2, 3, 4].map((index) => world.send(remappableAddress(index)))).toEqual(['dropped', 'dropped', 'dropped', '64@3']);
    expect([world.send(remappableAddress(4), 0x10_0000), world.send(remappableAddress(ENTRIES)), world.send(0xfee0_0000)]).toEqual(['0x20', '0x21', '0x25']);
    expect(new RemappingWorld({ defects: ['vtd.ignore-fpd'] }).enable().send(remappableAddress(1))).toBe('0x22');
  });
});

describe('compatibility format (5.1.1, 11.4.4.2)', () => {
  it('passes with CFIS, and not without', () => {
    const world = new RemappingWorld().enable(CFI);
    expect(world.send(0xfee0_2000, 0x35)).toBe('53@2');
    world.command(QIE | IRE);
    expect(world.send(0xfee0_2000, 0x35)).toBe('0x25');
  });

  it('never passes with EIME', () => {
    const world = new RemappingWorld({ ecap: 0x10n });
    world.setTable(TABLE, SIZE_CODE | 0x800n);
    world.command(QIE | IRE | CFI);
    expect(world.send(0xfee0_2000, 0x35)).toBe('0x25');
  });
});

describe('source validation (9.10)', () => {
  const as = (world: RemappingWorld, requesterId: number, index: number): string => {
    world.fn.forgeRequesterId(requesterId);
    const result = world.send(remappableAddress(index));
    world.fn.forgeRequesterId(undefined);
    return result;
  };

  it('a function that forges its requester id is who it says it is; one that does not cannot use the entry of another', () => {
    const world = new RemappingWorld().enable();
    world.point(2, 0x40, { SID: OTHER });
    expect([world.send(remappableAddress(2)), as(world, OTHER, 2)]).toEqual(['0x26', '64@3']);
    world.point(3, 0x41);
    expect([world.send(remappableAddress(3)), as(world, OTHER, 3)]).toEqual(['65@3', '0x26']);
  });

  it.each([[0, 'all', 0xffff], [1, 'all but bit 2', 0xfffb], [2, 'all but bits 2 and 1', 0xfff9], [3, 'all but the function', 0xfff8]] as const)('SQ %i compares %s', (sq, _bits, mask) => {
    const world = new RemappingWorld().enable();
    world.point(1, 0x40, { SID: 0x1234, SQ: sq });
    for (let bit = 0; bit < 16; bit++) expect(as(world, 0x1234 ^ (1 << bit), 1), `bit ${bit}`).toBe((mask & (1 << bit)) === 0 ? '64@3' : '0x26');
  });

  it('SVT 2 takes buses from the high byte of SID to the low one; SVT 0 takes anybody, SVT 3 nobody', () => {
    const world = new RemappingWorld().enable();
    world.point(1, 0x40, { SVT: SVT_BUS, SID: 0x1012 });
    expect([0x0fff, 0x1000, 0x1105, 0x12ff, 0x1300].map((id) => as(world, id, 1))).toEqual(['0x26', '64@3', '64@3', '64@3', '0x26']);
    world.point(2, 0x40, { SVT: 0, SID: OTHER });
    world.point(3, 0x40, { SVT: 3 });
    expect([as(world, 0xabcd, 2), world.send(remappableAddress(3))]).toEqual(['64@3', '0x26']);
  });

  it('with the defect vtd.ignore-irte-source whoever names an entry uses it', () => {
    const world = new RemappingWorld({ defects: ['vtd.ignore-irte-source'] }).enable();
    world.point(2, 0x40, { SID: OTHER });
    expect(world.send(remappableAddress(2))).toBe('64@3');
  });
});

describe('the interrupt-entry cache (6.2.7, 6.5.2.7)', () => {
  it('answers with the old entry until it is invalidated, one, several by the mask, or all', () => {
    const world = new RemappingWorld().enable();
    const send = (): string[] => [4, 5, 6, 7, 8].map((index) => world.send(remappableAddress(index)));
    for (const index of [4, 5, 6, 7, 8]) world.point(index, 0x40);
    send();
    for (const index of [4, 5, 6, 7, 8]) world.point(index, 0x50);
    expect(send()).toEqual(['64@3', '64@3', '64@3', '64@3', '64@3']);
    world.invalidate(8);
    expect(send()).toEqual(['64@3', '64@3', '64@3', '64@3', '80@3']);
    // the mask names low bits that do not count: 5 with one bit is 4 and 5
    world.invalidate(5, 1);
    expect(send()).toEqual(['80@3', '80@3', '64@3', '64@3', '80@3']);
    world.invalidateAll();
    expect(send()).toEqual(['80@3', '80@3', '80@3', '80@3', '80@3']);
  });

  it('a cached entry is verified for each sender, and a cleared one stays usable until the invalidation', () => {
    const world = new RemappingWorld().enable();
    world.point(1, 0x40);
    world.send(remappableAddress(1));
    world.fn.forgeRequesterId(OTHER);
    expect(world.send(remappableAddress(1))).toBe('0x26');
    world.fn.forgeRequesterId(undefined);
    world.poke(1, {});
    expect(world.send(remappableAddress(1))).toBe('64@3');
    world.invalidate(1);
    expect(world.send(remappableAddress(1))).toBe('0x22');
  });

  it('never holds what is not present or reserved, so that an entry that becomes present needs no invalidation (6.1)', () => {
    const world = new RemappingWorld().enable();
    expect(world.send(remappableAddress(1))).toBe('0x22');
    world.pokeWords(1, [0x0040_1001, 0x300, 0x4_0008, 0]);
    expect(world.send(remappableAddress(1))).toBe('0x24');
    world.point(1, 0x40);
    expect(world.send(remappableAddress(1))).toBe('64@3');
  });

  it('survives SIRTP unless the unit has ESIRTPS; IRTA without SIRTP changes nothing', () => {
    for (const [cap, expected] of [[0n, '64@3'], [1n << 62n, '80@3']] as const) {
      const world = new RemappingWorld({ cap }).enable();
      world.point(1, 0x40);
      world.poke(1, { P: 1, V: 0x50, DST: 0x300, SID: DEVICE, SVT: SVT_REQUESTER }, OTHER_TABLE);
      world.send(remappableAddress(1));
      write64(world.unit, IRTA, BigInt(OTHER_TABLE) | SIZE_CODE);
      expect(world.send(remappableAddress(1))).toBe('64@3');
      world.setTable(OTHER_TABLE);
      expect(world.send(remappableAddress(1))).toBe(expected);
      world.invalidateAll();
      expect(world.send(remappableAddress(1))).toBe('80@3');
    }
  });

  it('is not there with iotlb-entries 0', () => {
    const world = new RemappingWorld({ iotlbEntries: 0 }).enable();
    world.point(1, 0x40);
    world.send(remappableAddress(1));
    world.point(1, 0x50);
    expect(world.send(remappableAddress(1))).toBe('80@3');
  });

  it('refuses an index mask above ECAP.MHMV and reserved bits of the descriptor', () => {
    const world = new RemappingWorld().enable();
    world.invalidate(0, 16);
    expect([world.unit.read(FSTS, 4) & 0x10, world.unit.read(IQERCD, 4) & 0xf]).toEqual([0x10, 4]);
    const reserved = new RemappingWorld().enable();
    reserved.submit(0x24);
    expect(reserved.unit.read(IQERCD, 4) & 0xf).toBe(4);
  });
});

describe('any entry and any message', () => {
  /** A second reading of sections 5.1 and 9.10, on the whole entry as one number. */
  function oracle(irte: bigint, address: number, data: number, sourceId: number, extended: boolean): string {
    const field = (hi: number, lo: number): number => Number((irte >> BigInt(lo)) & ((1n << BigInt(hi - lo + 1)) - 1n));
    if (((address >> 4) & 1) === 0) return '0x25';
    const valid = ((address >> 3) & 1) === 1;
    if (valid && data > 0xffff) return '0x20';
    if ((((address >> 5) & 0x7fff) | (((address >> 2) & 1) << 15)) + (valid ? data & 0xffff : 0) >= ENTRIES) return '0x21';
    const silent = field(1, 1) === 1;
    if (field(0, 0) === 0) return silent ? 'dropped' : '0x22';
    const reserved = field(15, 12) !== 0 || field(31, 24) !== 0 || (irte >> 84n) !== 0n || (!extended && (field(39, 32) !== 0 || field(63, 48) !== 0));
    if (reserved) return silent ? 'dropped' : '0x24';
    const sid = field(79, 64), low = [0, 4, 6, 7][field(81, 80)]!;
    const allowed = [true, (sid & ~low) === (sourceId & ~low), sourceId >> 8 >= sid >> 8 && sourceId >> 8 <= (sid & 0xff), false][field(83, 82)]!;
    if (!allowed) return silent ? 'dropped' : '0x26';
    return `${field(23, 16)}@${extended ? field(39, 32) : field(47, 40)}`;
  }

  it.each([false, true])('EIME %s: as a second reading of the text says', (extended) => {
    const world = new RemappingWorld({ ecap: 0x10n, iotlbEntries: 0 });
    world.setTable(TABLE, SIZE_CODE | (extended ? 0x800n : 0n));
    world.command(QIE | IRE);
    const bits = (...kept: readonly [number, number][]): bigint => kept.reduce((mask, [hi, lo]) => mask | (((1n << BigInt(hi - lo + 1)) - 1n) << BigInt(lo)), 0n);
    // mostly entries without reserved bits, so that what comes after is reached
    const sound = bits([11, 0], [23, 16], [47, 40], [83, 64]);
    const entry = fc.tuple(fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), fc.integer({ min: 0, max: 9 })).map(([value, kind]) => (kind === 0 ? value : (value & sound) | 1n));
    const seen = new Set<string>();
    fc.assert(fc.property(entry, fc.integer({ min: 0, max: 260 }), fc.boolean(), fc.integer({ min: 0, max: 31 }), fc.integer({ min: 0, max: 2 }), fc.integer({ min: 0, max: 0xffff }), fc.boolean(), (irte, handle, valid, format, subhandle, random, own) => {
      const address = (remappableAddress(handle) & ~(valid ? 0 : 8) & ~(format === 0 ? 0x10 : 0)) >>> 0;
      const data = format === 1 ? 0x1_0000 : subhandle;
      const index = interruptIndex(address, data);
      const sourceId = own ? Number((irte >> 64n) & 0xffffn) : random;
      if (index < ENTRIES) world.pokeWords(index, wordsOf(irte & 0xffff_ffff_ffff_ffffn, irte >> 64n));
      world.fn.forgeRequesterId(sourceId);
      const expected = oracle(irte, address, data, sourceId, extended);
      seen.add(expected.startsWith('0x') || expected === 'dropped' ? expected : 'delivered');
      expect(world.send(address, data)).toBe(expected);
    }), { numRuns: 400, seed: 5 });
    expect([...seen]).toEqual(expect.arrayContaining(['0x20', '0x21', '0x24', '0x25', '0x26', 'delivered', 'dropped']));
  });
});
