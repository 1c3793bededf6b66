/** What each opcode does with memory, its completion record, and the error codes of descriptors (include/uapi/linux/idxd.h). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { crc32c } from '../../devices/dsa/hardware/crc32c.js';
import { FLAG, OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { decodeCompletion, encodeDescriptor, type CompletionRecord, type DescriptorFields } from '../../devices/dsa/spec/encode.js';
import { DsaWorld, type DsaWorldOptions } from '../fixtures/dsa-world.js';

const RECORD = 0x1_0000;
const SOURCE = 0x10_0000;
const TARGET = 0x20_0000;

function ready(options: DsaWorldOptions = {}, wq: Partial<Parameters<DsaWorld['start']>[0]> = {}): DsaWorld {
  const world = new DsaWorld(options);
  world.start({ mode: 'dedicated', ...wq });
  return world;
}

function run(world: DsaWorld, fields: DescriptorFields): CompletionRecord {
  world.ram.fill(RECORD, 0, 32);
  world.post(encodeDescriptor({ completion: RECORD, ...fields }));
  world.settle();
  return decodeCompletion(world.bytes(RECORD, 32));
}

function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);
}

describe('the descriptor', () => {
  it('has its fields where the manual puts them', () => {
    const bytes = encodeDescriptor({
      opcode: 3, flags: 2, completion: 0x161d_2700, source: 0x161c_26d0, destination: 0x7ff5_7f06_1000, size: 20000, interruptHandle: 0x1234, pasid: 5, privileged: true,
    });
    // the flags of the recorded descriptor: BOF, CRAV, RCR
    expect(Buffer.from(bytes.subarray(0, 40)).toString('hex')).toBe('050000800e000003' + '00271d1600000000' + 'd0261c1600000000' + '0010067ff57f0000'.replace('0010067f', '0010067f') + '204e000034120000');
  });
});

describe('memory operations', () => {
  it('copies any length at any offset', () => {
    const world = ready();
    fc.assert(fc.property(fc.nat(200_000), fc.nat(4095), fc.nat(4095), (length, from, to) => {
      const size = length + 1, data = pattern(size, length);
      world.ram.fill(TARGET, 0xee, size + 8192);
      world.ram.write(SOURCE + from, data, 0, size);
      const record = run(world, { opcode: OPCODE.MEMMOVE, source: SOURCE + from, destination: TARGET + to, size });
      expect([record.status, record.bytesCompleted, record.result]).toEqual([1, size, 0]);
      expect(Buffer.compare(world.bytes(TARGET + to, size), data)).toBe(0);
      expect([world.ram.load(TARGET + to - 1, 1), world.ram.load(TARGET + to + size, 1)]).toEqual([to === 0 ? world.ram.load(TARGET - 1, 1) : 0xee, 0xee]);
    }), { numRuns: 40 });
  });

  it.each([[1, 100_000], [4096, 300_000], [-1, 100_000], [-5000, 200_000], [63, 64]])('copies overlapping buffers %i bytes apart as if through a third', (distance, size) => {
    const world = ready();
    const data = pattern(size);
    world.ram.write(TARGET, data, 0, size);
    const record = run(world, { opcode: OPCODE.MEMMOVE, source: TARGET, destination: TARGET + distance, size });
    expect([record.status, record.bytesCompleted]).toEqual([1, size]);
    expect(Buffer.compare(world.bytes(TARGET + distance, size), data)).toBe(0);
  });

  it('fills with a pattern of 8 bytes, also beyond one chunk', () => {
    const world = ready();
    expect(run(world, { opcode: OPCODE.MEMFILL, destination: TARGET + 3, pattern: [0x44332211, 0x88776655], size: 70_001 }).status).toBe(1);
    const bytes = world.bytes(TARGET, 70_010);
    expect([...bytes.subarray(0, 13)]).toEqual([0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x11, 0x22]);
    expect(bytes.subarray(3, 70_004).every((byte, i) => byte === 0x11 * ((i % 8) + 1))).toBe(true);
    expect(bytes[70_004]).toBe(0);
  });

  it('finds the first difference', () => {
    const world = ready();
    const data = pattern(100_000);
    world.ram.write(SOURCE, data, 0, data.length);
    world.ram.write(TARGET + 5, data, 0, data.length);
    const compare = { opcode: OPCODE.COMPARE, source: SOURCE, destination: TARGET + 5, size: data.length };
    expect(run(world, compare)).toMatchObject({ status: 1, result: 0, bytesCompleted: 100_000 });
    world.ram.store(TARGET + 5 + 77_777, 1, ~data[77_777]! & 0xff);
    expect(run(world, compare)).toMatchObject({ status: 1, result: 1, bytesCompleted: 77_777 });
  });

  it('reports a false predicate when the result is not the expected one', () => {
    const world = ready();
    const compare = { opcode: OPCODE.COMPARE, source: SOURCE, destination: TARGET, size: 64, flags: FLAG.CR };
    expect(run(world, { ...compare, specific: [0] })).toMatchObject({ status: 1, result: 0 });
    expect(run(world, { ...compare, specific: [1] })).toMatchObject({ status: 2, result: 0 });
  });

  it('compares with a pattern', () => {
    const world = ready();
    run(world, { opcode: OPCODE.MEMFILL, destination: SOURCE, pattern: [1, 2], size: 9000 });
    const compare: DescriptorFields = { opcode: OPCODE.COMPVAL, source: SOURCE, pattern: [1, 2], size: 9000 };
    expect(run(world, compare)).toMatchObject({ status: 1, result: 0, bytesCompleted: 9000 });
    world.ram.store(SOURCE + 8191, 1, 9);
    expect(run(world, compare)).toMatchObject({ status: 1, result: 1, bytesCompleted: 8191 });
  });

  it('casts to two destinations', () => {
    const world = ready();
    const data = pattern(10_000);
    world.ram.write(SOURCE, data, 0, data.length);
    const second = 0x30_0000;
    expect(run(world, { opcode: OPCODE.DUALCAST, source: SOURCE, destination: TARGET + 7, specific: [second + 7, 0], size: data.length })).toMatchObject({ status: 1, bytesCompleted: 10_000 });
    expect(Buffer.compare(world.bytes(TARGET + 7, data.length), data)).toBe(0);
    expect(Buffer.compare(world.bytes(second + 7, data.length), data)).toBe(0);
  });

  it('does nothing for a no-op and still completes', () => {
    expect(run(ready(), { opcode: OPCODE.NOOP })).toMatchObject({ status: 1, bytesCompleted: 0 });
  });
});

describe('CRC-32C', () => {
  const digits = new TextEncoder().encode('123456789');

  it('has the check value of the polynomial', () => {
    expect(crc32c(digits)).toBe(0xe306_9283);
    const world = ready();
    world.ram.write(SOURCE, digits, 0, 9);
    expect(run(world, { opcode: OPCODE.CRCGEN, source: SOURCE, size: 9 })).toMatchObject({ status: 1, bytesCompleted: 9, specific: 0xe306_9283 });
  });

  it('goes on from a seed in the descriptor or in memory', () => {
    const world = ready();
    const data = pattern(70_000);
    world.ram.write(SOURCE, data, 0, data.length);
    const whole = run(world, { opcode: OPCODE.CRCGEN, source: SOURCE, size: 70_000 }).specific;
    const first = run(world, { opcode: OPCODE.CRCGEN, source: SOURCE, size: 12_345 }).specific;
    expect(run(world, { opcode: OPCODE.CRCGEN, source: SOURCE + 12_345, size: 57_655, specific: [first] }).specific).toBe(whole);
    world.ram.store(TARGET, 4, first);
    expect(run(world, { opcode: OPCODE.CRCGEN, source: SOURCE + 12_345, size: 57_655, flags: FLAG.CRC_READ_SEED, specific: [0, 0, TARGET, 0] }).specific).toBe(whole);
  });

  it('copies while it computes', () => {
    const world = ready();
    world.ram.write(SOURCE, digits, 0, 9);
    expect(run(world, { opcode: OPCODE.COPY_CRC, source: SOURCE, destination: TARGET, size: 9 }).specific).toBe(0xe306_9283);
    expect(world.bytes(TARGET, 9)).toEqual(digits);
  });

  it('matches a bit by bit computation with inversion and reflection bypassed', () => {
    // most significant bit first, as in the reference implementation of intel/DML
    const slow = (bytes: Uint8Array, seed: number, bypassInversion: boolean, bypassReflection: boolean): number => {
      const flip = (value: number, width: number): number => {
        let result = 0;
        for (let i = 0; i < width; i++) if ((value >>> i) & 1) result |= 1 << (width - 1 - i);
        return result;
      };
      let crc = bypassInversion ? seed : flip(~seed, 32);
      for (const byte of bytes) {
        crc ^= (bypassReflection ? byte : flip(byte, 8)) << 24;
        for (let i = 0; i < 8; i++) crc = crc < 0 ? (crc << 1) ^ 0x1edc6f41 : crc << 1;
      }
      return (bypassInversion ? crc : flip(~crc, 32)) >>> 0;
    };
    const world = ready();
    const data = pattern(1001);
    world.ram.write(SOURCE, data, 0, data.length);
    for (const [flags, inversion, reflection] of [[0, false, false], [0x2_0000, true, false], [0x4_0000, false, true], [0x6_0000, true, true]] as const) {
      const { specific } = run(world, { opcode: OPCODE.CRCGEN, flags, source: SOURCE, size: 1001, specific: [0x1234_5678] });
      expect(specific).toBe(slow(data, 0x1234_5678, inversion, reflection));
    }
  });
});

describe('batches and drains', () => {
  const LIST = 0x4_0000;

  function batch(world: DsaWorld, parts: readonly DescriptorFields[], fields: Partial<DescriptorFields> = {}): CompletionRecord {
    parts.forEach((part, i) => world.ram.write(LIST + 64 * i, encodeDescriptor(part), 0, 64));
    return run(world, { opcode: OPCODE.BATCH, source: LIST, size: parts.length, ...fields });
  }

  it('runs the descriptors of a batch, each with its own record', () => {
    const world = ready();
    world.ram.write(SOURCE, pattern(100), 0, 100);
    const record = batch(world, [
      { opcode: OPCODE.MEMMOVE, source: SOURCE, destination: TARGET, size: 100, completion: 0x5_0000 },
      { opcode: OPCODE.MEMMOVE, source: TARGET, destination: TARGET + 200, size: 100, completion: 0x5_0020, flags: FLAG.FENCE },
    ]);
    expect(record).toMatchObject({ status: 1, bytesCompleted: 2 });
    expect([world.ram.load(0x5_0000, 1), world.ram.load(0x5_0020, 1)]).toEqual([1, 1]);
    expect(Buffer.compare(world.bytes(TARGET + 200, 100), pattern(100))).toBe(0);
  });

  it('says when one failed, and stops at a fence behind it', () => {
    const world = ready();
    const bad = { opcode: OPCODE.MEMMOVE, source: SOURCE, destination: TARGET, size: 0, completion: 0x5_0000 };
    const good = { opcode: OPCODE.NOOP, completion: 0x5_0020 };
    expect(batch(world, [bad, good])).toMatchObject({ status: 5, bytesCompleted: 2 });
    world.ram.fill(0x5_0000, 0, 64);
    expect(batch(world, [bad, { ...good, flags: FLAG.FENCE }])).toMatchObject({ status: 5, bytesCompleted: 1 });
    expect(world.ram.load(0x5_0020, 1)).toBe(0);
  });

  it('refuses batches and drains inside a batch', () => {
    const world = ready();
    batch(world, [{ opcode: OPCODE.BATCH, source: LIST, size: 2, completion: 0x5_0000 }, { opcode: OPCODE.DRAIN, completion: 0x5_0020 }]);
    expect([world.ram.load(0x5_0000, 1), world.ram.load(0x5_0020, 1)]).toEqual([0x10, 0x10]);
  });

  it('completes a drain descriptor behind everything submitted before it', () => {
    const world = ready();
    const order: number[] = [];
    for (let i = 0; i < 6; i++) world.post(encodeDescriptor({ opcode: OPCODE.MEMMOVE, source: SOURCE, destination: TARGET + i * 0x8_0000, size: 500_000 - i * 50_000, completion: RECORD + 32 * i }));
    world.post(encodeDescriptor({ opcode: OPCODE.DRAIN, completion: RECORD + 0x800 }));
    world.post(encodeDescriptor({ opcode: OPCODE.NOOP, completion: RECORD + 0x820 }));
    world.settle();
    for (const report of world.reports) order.push(report.opcode);
    expect(order).toHaveLength(8);
    expect(order[0]).toBe(OPCODE.NOOP);
    expect(order.at(-1)).toBe(OPCODE.DRAIN);
  });
});

describe('descriptor errors', () => {
  const copy: DescriptorFields = { opcode: OPCODE.MEMMOVE, source: SOURCE, destination: TARGET, size: 64 };

  it.each<[string, number, DescriptorFields]>([
    ['0x10 unknown opcode', 0x10, { opcode: 0x7f }],
    ['0x10 an opcode that is not advertised', 0x10, { ...copy, opcode: 0x12 }],
    ['0x11 a reserved flag', 0x11, { ...copy, flags: 0x40 }],
    ['0x11 block on fault on a queue that may not', 0x11, { ...copy, flags: FLAG.BOF }],
    ['0x11 a fence outside a batch', 0x11, { ...copy, flags: FLAG.FENCE }],
    ['0x12 a reserved field', 0x12, { ...copy, specific: [0, 0, 0, 0, 0, 1] }],
    ['0x12 a source of a no-op', 0x12, { opcode: OPCODE.NOOP, source: SOURCE }],
    ['0x13 nothing to move', 0x13, { ...copy, size: 0 }],
    ['0x13 more than the queue moves', 0x13, { ...copy, size: 2 ** 21 + 1 }],
    ['0x14 a batch of one', 0x14, { opcode: OPCODE.BATCH, source: SOURCE, size: 1 }],
    ['0x14 a batch larger than the queue takes', 0x14, { opcode: OPCODE.BATCH, source: SOURCE, size: 33 }],
    ['0x16 overlapping buffers of a copy with CRC', 0x16, { ...copy, opcode: OPCODE.COPY_CRC, destination: SOURCE + 63 }],
    ['0x17 destinations of a dualcast at different offsets', 0x17, { ...copy, opcode: OPCODE.DUALCAST, specific: [0x30_0001, 0] }],
    ['0x18 a descriptor list out of line', 0x18, { opcode: OPCODE.BATCH, source: SOURCE + 32, size: 2 }],
    ['0x19 an interrupt handle that does not exist', 0x19, { ...copy, flags: FLAG.RCI, interruptHandle: 9 }],
  ])('%s', (_name, status, fields) => {
    const world = ready();
    world.ram.fill(TARGET, 0xee, 64);
    expect(run(world, fields)).toMatchObject({ status, bytesCompleted: 0 });
    expect(world.ram.load(TARGET, 1)).toBe(0xee);
    expect(world.takeError()[0]! & 1).toBe(0);
  });

  it('tells which flags were invalid', () => {
    expect(run(ready(), { ...copy, flags: 0x42 })).toMatchObject({ status: 0x11, specific: 0x42 });
  });

  it('0x1d a privileged descriptor where the PASID capability forbids it', () => {
    const world = new DsaWorld();
    world.config(world.extended(0x1b) + 6, 2, 1);
    world.start({ mode: 'shared' });
    world.ram.fill(RECORD, 0, 32);
    expect(world.enqueue(encodeDescriptor({ opcode: OPCODE.NOOP, completion: RECORD, pasid: 3, privileged: true }))).toBe('accepted');
    world.settle();
    expect(world.ram.load(RECORD, 1)).toBe(0x1d);
  });

  it('an interrupt handle belongs to a PASID', () => {
    const world = ready();
    world.enableInterrupts();
    world.write(0x700 + 8 * 2, (7 << 12) | 8);
    expect(run(world, { ...copy, flags: FLAG.RCI, interruptHandle: 2 }).status).toBe(0x19);
    expect(run(world, { ...copy, flags: FLAG.RCI, interruptHandle: 3 }).status).toBe(1);
    expect(world.messages).toEqual([{ address: 0xfee0_0000, data: 0x43 }]);
  });
});

describe('software errors', () => {
  it('reports a completion address that is not aligned', () => {
    const world = ready();
    world.enableInterrupts();
    world.write(0x88, 1);
    world.post(encodeDescriptor({ opcode: OPCODE.NOOP, completion: RECORD + 8 }));
    world.settle();
    expect(world.messages).toEqual([{ address: 0xfee0_0000, data: 0x40 }]);
    expect(world.read(0x98)).toBe(1);
    // valid, descriptor valid, queue valid, error 0x1b, queue 0, operation 0
    expect(world.takeError().slice(0, 2)).toEqual([0x1b0d, 0]);
  });

  it('reports a descriptor error without a completion record, the first of several', () => {
    const world = ready();
    world.post(encodeDescriptor({ opcode: 0x55 }));
    world.post(encodeDescriptor({ opcode: OPCODE.MEMMOVE, flags: 0x40 }));
    world.settle();
    const error = world.takeError();
    expect([error[0], error[1]! & 0xff]).toEqual([0x100f, 0x55]);
    expect(world.takeError()[0]! & 3).toBe(0);
  });

  it('reports flags without a record to carry them', () => {
    const world = ready();
    world.post(encodeDescriptor({ opcode: OPCODE.MEMMOVE, flags: FLAG.RCR }));
    world.settle();
    const error = world.takeError();
    expect([error[0], error[3]]).toEqual([0x110d, FLAG.RCR]);
  });

  it('reports writes to queues that are off, full, or shared', () => {
    const world = new DsaWorld({ config: { descriptorsPerEngine: 1 } });
    world.post(encodeDescriptor({ opcode: 0 }));
    expect(world.takeError()[0]).toBe(0x6109);
    world.start({ mode: 'dedicated', size: 2, engines: 1 });
    for (let i = 0; i < 3; i++) world.post(encodeDescriptor({ opcode: 0, completion: RECORD + 32 * i }));
    expect(world.takeError()[0]).toBe(0x6209);
    world.settle();
    expect([0, 1, 2].map((i) => world.ram.load(RECORD + 32 * i, 1))).toEqual([1, 1, 0]);
    const shared = new DsaWorld();
    shared.config(shared.extended(0x1b) + 6, 2, 7);
    shared.start({ mode: 'shared' });
    shared.post(encodeDescriptor({ opcode: 0, completion: RECORD }));
    shared.settle();
    expect([shared.takeError()[0], shared.ram.load(RECORD, 1)]).toEqual([0x6309, 0]);
  });
});
