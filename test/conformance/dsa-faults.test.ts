/** Page faults, retries, drains, aborts, resets and removal, behind translation and behind a port that holds at random. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { FLAG, OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { DSA_CMD, wqMaskOperand } from '../../devices/dsa/spec/registers.js';
import { decodeCompletion, encodeDescriptor, type CompletionRecord, type DescriptorFields } from '../../devices/dsa/spec/encode.js';
import { DsaWorld, type DsaWorldOptions } from '../fixtures/dsa-world.js';

const RECORD = 0x1_0000;
const SOURCE = 0x10_0000;
const TARGET = 0x20_0000;
const PAGE = 4096;
const PASID = 5;

function translated(options: DsaWorldOptions = {}, wq: Partial<Parameters<DsaWorld['start']>[0]> = {}): DsaWorld {
  const world = new DsaWorld(options);
  world.enableTranslation();
  world.start({ mode: 'dedicated', pasid: PASID, bof: true, ...wq });
  return world;
}

function record(world: DsaWorld, at = RECORD): CompletionRecord {
  return decodeCompletion(world.bytes(at, 32));
}

const copy: DescriptorFields = { opcode: OPCODE.MEMMOVE, source: SOURCE, destination: TARGET, size: 3 * PAGE, completion: RECORD };

function data(world: DsaWorld, size = 3 * PAGE): Uint8Array {
  const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 13 + 5) & 0xff);
  world.ram.write(SOURCE, bytes, 0, size);
  return bytes;
}

describe('a fault without blocking', () => {
  it('ends the operation with what was moved and where it stopped, 0x03 with the write bit', () => {
    const world = translated();
    const bytes = data(world);
    world.agent.absent.set(TARGET / PAGE + 1, 'success');
    world.post(encodeDescriptor({ ...copy, destination: TARGET + 100 }));
    world.settle();
    const moved = PAGE - 100;
    expect(world.ram.load(RECORD, 1)).toBe(0x83);
    expect(record(world)).toMatchObject({ status: 3, faultWrite: true, bytesCompleted: moved, faultAddress: TARGET + PAGE });
    expect(Buffer.compare(world.bytes(TARGET + 100, moved), bytes.subarray(0, moved))).toBe(0);
    expect(world.agent.requests).toEqual([]);
  });

  it('tells a read fault from a write fault', () => {
    const world = translated();
    data(world);
    world.agent.absent.set(SOURCE / PAGE + 2, 'success');
    world.post(encodeDescriptor(copy));
    world.settle();
    expect(record(world)).toMatchObject({ status: 3, faultWrite: false, bytesCompleted: 2 * PAGE, faultAddress: SOURCE + 2 * PAGE });
  });

  it('completes a backward copy from its end', () => {
    const world = translated();
    data(world);
    world.agent.absent.set(SOURCE / PAGE, 'success');
    world.post(encodeDescriptor({ ...copy, destination: SOURCE + PAGE }));
    world.settle();
    expect(record(world)).toMatchObject({ status: 3, result: 1, bytesCompleted: 2 * PAGE, faultAddress: SOURCE });
  });

  it('gives the CRC so far', () => {
    const world = translated();
    data(world);
    world.post(encodeDescriptor({ ...copy, opcode: OPCODE.CRCGEN, destination: 0, size: PAGE }));
    world.settle();
    const { specific } = record(world);
    world.agent.absent.set(SOURCE / PAGE + 1, 'success');
    world.dsa.requester.atc.clear();
    world.post(encodeDescriptor({ ...copy, opcode: OPCODE.CRCGEN, destination: 0, completion: RECORD + 32 }));
    world.settle();
    expect(record(world, RECORD + 32)).toMatchObject({ status: 3, bytesCompleted: PAGE, specific });
  });

  it('of a batch list is 0x06', () => {
    const world = translated();
    world.agent.absent.set(SOURCE / PAGE, 'success');
    world.post(encodeDescriptor({ opcode: OPCODE.BATCH, source: SOURCE, size: 2, completion: RECORD }));
    world.settle();
    expect(record(world)).toMatchObject({ status: 6, bytesCompleted: 0, faultAddress: SOURCE });
  });

  it('that is refused by the IOMMU is 0x22', () => {
    const world = translated();
    data(world);
    world.agent.broken.add(TARGET / PAGE + 1);
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.settle();
    expect(record(world)).toMatchObject({ status: 0x22, bytesCompleted: PAGE });
  });
});

describe('blocking on faults', () => {
  it('asks for each page with PASID and access, waits, and goes on', () => {
    const world = translated();
    const bytes = data(world);
    for (let i = 0; i < 3; i++) world.agent.absent.set(TARGET / PAGE + i, 'success');
    world.agent.absent.set(SOURCE / PAGE, 'success');
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.settle();
    expect(record(world)).toMatchObject({ status: 1, bytesCompleted: 3 * PAGE });
    expect(Buffer.compare(world.bytes(TARGET, 3 * PAGE), bytes)).toBe(0);
    expect(world.agent.requests.map(({ page, access, last, pasid }) => [page * PAGE, access & 3, last, pasid])).toEqual([
      [SOURCE, 1, true, PASID], [TARGET, 2, true, PASID], [TARGET + PAGE, 2, true, PASID], [TARGET + 2 * PAGE, 2, true, PASID],
    ]);
    expect(world.reports[0]).toMatchObject({ status: 1, pageRequests: 4, responses: { success: 4, invalid: 0, failure: 0 }, pasid: PASID });
    expect([...world.agent.pasids]).toEqual([PASID]);
  });

  it('asks for a group of pages when set up so', () => {
    const world = translated({ config: { pri: { groupPages: 8 } } });
    data(world);
    for (let i = 0; i < 3; i++) world.agent.absent.set(TARGET / PAGE + i, 'success');
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.settle();
    expect(world.agent.requests.map(({ last, prgIndex }) => [last, prgIndex])).toEqual([[false, 0], [false, 0], [true, 0]]);
    expect(world.reports[0]).toMatchObject({ status: 1, pageRequests: 3, responses: { success: 1 } });
  });

  it.each([['invalid', { success: 0, invalid: 1, failure: 0 }], ['failure', { success: 0, invalid: 0, failure: 1 }]] as const)('ends with 0x04 when the answer is %s', (answer, responses) => {
    const world = translated();
    data(world);
    world.agent.absent.set(TARGET / PAGE + 1, answer);
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.settle();
    expect(record(world)).toMatchObject({ status: 4, faultWrite: true, bytesCompleted: PAGE, faultAddress: TARGET + PAGE });
    expect(world.reports[0]!.responses).toEqual(responses);
  });

  it('holds up one descriptor, not the engine', () => {
    const world = translated({}, { engines: 1 });
    data(world);
    world.agent.absent.set(TARGET / PAGE, 'never');
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.post(encodeDescriptor({ ...copy, destination: TARGET + 0x10_0000, completion: RECORD + 32 }));
    world.settle();
    expect([record(world).status, record(world, RECORD + 32).status]).toEqual([0, 1]);
  });

  it('waits for the completion record on a queue that may block, whatever the descriptor says', () => {
    const world = translated();
    data(world);
    world.agent.absent.set(RECORD / PAGE, 'success');
    world.post(encodeDescriptor(copy));
    world.settle();
    expect(record(world).status).toBe(1);
  });

  it('reports a completion record without page to software where the queue may not block (0x1a)', () => {
    const world = translated({}, { bof: false });
    data(world);
    world.agent.absent.set(RECORD / PAGE, 'success');
    world.post(encodeDescriptor(copy));
    world.settle();
    const error = world.takeError();
    // valid, descriptor, queue, write; error 0x1a; operation 3; PASID 5; the record's address
    expect([error[0], error[1], error[4]]).toEqual([0x1a2d, (PASID << 8) | 3, RECORD]);
    expect(record(world).status).toBe(0);
  });
});

describe('shared queues', () => {
  function shared(options: DsaWorldOptions = {}, wq: Partial<Parameters<DsaWorld['start']>[0]> = {}): DsaWorld {
    const world = new DsaWorld({ config: { descriptorsPerEngine: 1 }, ...options });
    world.enableTranslation();
    world.start({ mode: 'shared', size: 8, threshold: 4, engines: 1, bof: true, ...wq });
    return world;
  }

  it('take PASID and privilege from the descriptor', () => {
    const world = shared();
    data(world);
    expect(world.enqueue(encodeDescriptor({ ...copy, pasid: 9 }))).toBe('accepted');
    world.settle();
    expect(record(world).status).toBe(1);
    expect([...world.agent.pasids]).toEqual([9]);
  });

  it('answer retry above the threshold of the limited portal, and above the size of the other', () => {
    const world = shared();
    const nop = (i: number): Uint8Array => encodeDescriptor({ opcode: OPCODE.NOOP, completion: RECORD + 32 * i, pasid: 1 });
    const limited = Array.from({ length: 6 }, (_, i) => world.enqueue(nop(i)));
    expect(limited).toEqual(['accepted', 'accepted', 'accepted', 'accepted', 'retry', 'retry']);
    expect(world.read(0x518) & 0xffff).toBe(4);
    const unlimited = Array.from({ length: 6 }, (_, i) => world.enqueue(nop(4 + i), 0, 0));
    expect(unlimited).toEqual(['accepted', 'accepted', 'accepted', 'accepted', 'retry', 'retry']);
    world.settle();
    expect(Array.from({ length: 10 }, (_, i) => record(world, RECORD + 32 * i).status)).toEqual([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    expect(world.enqueue(nop(8))).toBe('accepted');
  });

  it('answer retry while off, without an error', () => {
    const world = new DsaWorld();
    expect(world.enqueue(encodeDescriptor({ opcode: 0 }))).toBe('retry');
    expect(world.takeError()[0]! & 1).toBe(0);
  });

  it('are not dedicated ones: an enqueue there answers retry', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    expect(world.enqueue(encodeDescriptor({ opcode: 0 }))).toBe('retry');
  });

  it('drain one PASID and leave the others', () => {
    const world = shared({ config: { descriptorsPerEngine: 4 } });
    data(world);
    world.agent.absent.set(TARGET / PAGE, 'never');
    world.enqueue(encodeDescriptor({ ...copy, flags: FLAG.BOF, pasid: 7 }));
    world.enqueue(encodeDescriptor({ ...copy, destination: TARGET + 0x10_0000, completion: RECORD + 32, pasid: 8 }));
    expect(world.command(DSA_CMD.DRAIN_PASID, 8)).toBe(0);
    expect(record(world, RECORD + 32).status).toBe(1);
    world.write(0xa0, (DSA_CMD.DRAIN_PASID << 20) | 7);
    world.settle();
    expect(world.read(0xa8)).toBe(0x8000_0000);
    world.fabric.pageResponse(8, 0, 1, 7);
    world.settle();
    expect([world.read(0xa8), record(world).status]).toEqual([0, 4]);
  });

  it('abort one PASID: no completion, no further DMA', () => {
    const world = shared({ config: { descriptorsPerEngine: 4 } });
    data(world);
    world.agent.absent.set(TARGET / PAGE, 'never');
    world.enqueue(encodeDescriptor({ ...copy, flags: FLAG.BOF, pasid: 7 }));
    world.settle();
    world.write(0xa0, (DSA_CMD.ABORT_PASID << 20) | 7);
    world.settle();
    // the page request is still out: the command waits for its answer
    expect(world.read(0xa8)).toBe(0x8000_0000);
    const before = world.agent.accesses.length;
    world.agent.absent.delete(TARGET / PAGE);
    world.fabric.pageResponse(8, 0, 0, 7);
    world.settle();
    expect([world.read(0xa8), record(world).status, world.agent.accesses.length]).toEqual([0, 0, before]);
    expect(world.reports[0]!.status).toBe(0);
  });
});

describe('priorities', () => {
  it('give queues turns by weight, in the same order every time', () => {
    const order = (): number[] => {
      const world = new DsaWorld({ config: { descriptorsPerEngine: 1 } });
      world.write(0x540, 16);
      world.write(0x548, 0x31);
      world.write(0x54c, 0xb5);
      world.write(0x500, 16);
      world.write(0x508, 0x11);
      world.write(0x50c, 0xb5);
      world.bar0.write(0x400, 8, 3, 0);
      world.bar0.write(0x420, 8, 1, 0);
      world.bar0.write(0x428, 8, 0x0200_0009, 0);
      expect([world.command(1), world.command(6, 0), world.command(6, 1)]).toEqual([0, 0, 0]);
      for (let i = 0; i < 8; i++) for (const wq of [0, 1]) world.post(encodeDescriptor({ opcode: 0 }), wq);
      world.settle();
      return world.reports.map(({ wq }) => wq);
    };
    expect(order()).toEqual([0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0]);
    expect(order()).toEqual(order());
  });
});

describe('commands that wait', () => {
  it.each([['DRAIN_WQ', DSA_CMD.DRAIN_WQ], ['DISABLE_WQ', DSA_CMD.DISABLE_WQ], ['DRAIN_ALL', DSA_CMD.DRAIN_ALL], ['DISABLE_DEVICE', DSA_CMD.DISABLE_DEVICE]])('%s ends behind what was submitted before it', (_name, command) => {
    const world = translated();
    data(world);
    world.agent.absent.set(TARGET / PAGE, 'never');
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.write(0xa0, ((command << 20) | wqMaskOperand(0)) >>> 0);
    world.settle();
    expect([world.read(0xa8), record(world).status]).toEqual([0x8000_0000, 0]);
    world.agent.absent.delete(TARGET / PAGE);
    world.fabric.pageResponse(8, 0, 0, PASID);
    world.settle();
    expect([world.read(0xa8), record(world).status]).toEqual([0, 1]);
  });

  it('DISABLE_WQ takes nothing new while it waits', () => {
    const world = translated();
    world.agent.absent.set(TARGET / PAGE, 'never');
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    world.write(0xa0, (DSA_CMD.DISABLE_WQ << 20) | 1);
    world.settle();
    world.post(encodeDescriptor({ opcode: 0, completion: RECORD + 32 }));
    world.settle();
    expect([world.takeError()[0], record(world, RECORD + 32).status]).toEqual([0x6109, 0]);
  });

  it('RESET_WQ drops what waits and what runs', () => {
    const world = new DsaWorld({ config: { descriptorsPerEngine: 1 } });
    world.start({ mode: 'dedicated', engines: 1 });
    for (let i = 0; i < 4; i++) world.post(encodeDescriptor({ ...copy, size: 2 ** 21, completion: RECORD + 32 * i }));
    expect(world.command(DSA_CMD.RESET_WQ, 1)).toBe(0);
    expect(Array.from({ length: 4 }, (_, i) => record(world, RECORD + 32 * i).status)).toEqual([0, 0, 0, 0]);
    expect(world.reports.map(({ status }) => status)).toEqual([0, 0, 0, 0]);
    expect(world.dsa.core.outstanding).toBe(0);
  });
});

describe('the end of a function', () => {
  const started = (): DsaWorld => {
    const world = translated();
    data(world);
    world.agent.absent.set(TARGET / PAGE, 'never');
    world.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    for (let i = 1; i < 12; i++) world.post(encodeDescriptor({ ...copy, destination: TARGET + i * 0x10_0000, size: 2 ** 20, completion: RECORD + 32 * i }));
    world.clock.run({ untilNs: world.clock.now + 5_000 });
    return world;
  };

  it.each<[string, (world: DsaWorld) => void]>([
    ['function level reset', (world) => world.dsa.function.reset('flr')],
    ['surprise removal', (world) => world.complex.remove(world.dsa.function, { surprise: true })],
    ['bus mastering off, and the answer to the page request that was out,', (world) => {
      world.config(4, 2, 2);
      world.fabric.pageResponse(8, 0, 0, PASID);
    }],
  ])('%s ends every descriptor at once; no byte moves afterwards', (_name, end) => {
    const world = started();
    end(world);
    const accesses = world.agent.accesses.length, records = world.bytes(RECORD, 4096);
    world.settle();
    expect(world.agent.accesses.length).toBe(accesses);
    expect(Buffer.compare(world.bytes(RECORD, 4096), records)).toBe(0);
    expect(world.dsa.core.outstanding).toBe(0);
    expect(world.scheduler.blocked()).toEqual([]);
    expect(world.reports).toHaveLength(12);
    // whatever waited for a command is not left with one that never ends
    world.config(4, 2, 2);
    if (world.dsa.function.present) expect(world.read(0xa8) >>> 31).toBe(0);
  });
});

describe('portals', () => {
  it('take eight stores of 8 bytes as one submission, with the last byte', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    const view = new DataView(encodeDescriptor({ opcode: 0, completion: RECORD }).buffer);
    for (let i = 0; i < 64; i += 8) {
      expect(world.dsa.core.outstanding).toBe(0);
      world.bar2.write(0x1000 + 0x340 + i, 8, view.getUint32(i, true), view.getUint32(i + 4, true));
    }
    expect(world.dsa.core.outstanding).toBe(1);
    world.settle();
    expect(record(world).status).toBe(1);
  });

  it('forget a submission that was not finished', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    world.bar2.write(0x1038, 8, 1, 1);
    world.bar2.write(0x1000, 8, 1, 1);
    expect(world.dsa.core.outstanding).toBe(0);
    world.bar2.write(0x1000, 2, 1);
    expect(world.takeError()[0]).toBe(0x6409);
    expect(world.bar2.read(0x1000, 8)).toBe(0xffff_ffff);
  });

  it('are four pages a queue; those for interrupt message storage carry no MSI-X handles', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    expect(world.dsa.core.portals.sizeBytes).toBe(8 * 0x4000);
    for (const [i, page] of [0, 1, 2, 3].entries()) world.bar2.write64(page * 0x1000, encodeDescriptor({ opcode: 0, flags: FLAG.RCI, completion: RECORD + 32 * i, interruptHandle: 1 }));
    world.settle();
    expect([0, 1, 2, 3].map((i) => record(world, RECORD + 32 * i).status)).toEqual([1, 1, 0x19, 0x19]);
  });
});

describe('behind a port that holds at random', () => {
  it('moves the same bytes', () => {
    fc.assert(fc.property(fc.nat(0xffff), fc.nat(60_000), (seed, length) => {
      const world = new DsaWorld({ hold: 0.3, seed });
      world.start({ mode: 'dedicated', bof: true });
      const size = length + 1, bytes = data(world, size);
      world.post(encodeDescriptor({ ...copy, size }));
      world.post(encodeDescriptor({ opcode: OPCODE.CRCGEN, source: SOURCE, size, completion: RECORD + 32 }));
      world.post(encodeDescriptor({ opcode: OPCODE.COMPARE, source: SOURCE, destination: SOURCE, size, completion: RECORD + 64 }));
      world.settle();
      expect([0, 1, 2].map((i) => record(world, RECORD + 32 * i).status)).toEqual([1, 1, 1]);
      expect(Buffer.compare(world.bytes(TARGET, size), bytes)).toBe(0);
    }), { numRuns: 25 });
  });

  it('ends cleanly when reset under held operations', () => {
    fc.assert(fc.property(fc.nat(0xffff), fc.nat(20_000), (seed, after) => {
      const world = new DsaWorld({ hold: 0.5, seed });
      world.start({ mode: 'dedicated' });
      for (let i = 0; i < 10; i++) world.post(encodeDescriptor({ ...copy, size: 300_000, destination: TARGET + i * 0x10_0000, completion: RECORD + 32 * i }));
      world.clock.run({ untilNs: world.clock.now + after });
      world.dsa.function.reset('flr');
      const before = world.bytes(TARGET, 0x20_0000);
      world.settle();
      expect(Buffer.compare(world.bytes(TARGET, 0x20_0000), before)).toBe(0);
      expect([world.dsa.core.outstanding, world.reports.length]).toEqual([0, 10]);
    }), { numRuns: 15 });
  });
});

describe('defects', () => {
  it('are visible to these tests', () => {
    // dsa.drain-returns-early
    const early = translated({ defects: ['dsa.drain-returns-early'] });
    early.agent.absent.set(TARGET / PAGE, 'never');
    early.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    expect(early.command(DSA_CMD.DRAIN_WQ, 1)).toBe(0);
    // dsa.drop-pasid
    const dropped = translated({ defects: ['dsa.drop-pasid'] });
    dropped.post(encodeDescriptor(copy));
    dropped.settle();
    expect([...dropped.agent.pasids]).toEqual([NO_PASID]);
    // dsa.completion-before-data
    const hasty = translated({ defects: ['dsa.completion-before-data'] });
    hasty.agent.absent.set(TARGET / PAGE, 'never');
    hasty.post(encodeDescriptor({ ...copy, flags: FLAG.BOF }));
    hasty.settle();
    expect(record(hasty).status).toBe(1);
    // dsa.ignore-abort
    const deaf = new DsaWorld({ defects: ['dsa.ignore-abort'] });
    deaf.start({ mode: 'dedicated' });
    deaf.post(encodeDescriptor({ ...copy, size: 2 ** 20 }));
    deaf.clock.run({ untilNs: deaf.clock.now + 1_000 });
    deaf.command(DSA_CMD.ABORT_WQ, 1);
    expect(record(deaf).status).toBe(1);
    // dsa.ignore-threshold
    const greedy = new DsaWorld({ defects: ['dsa.ignore-threshold'] });
    greedy.enableTranslation();
    greedy.start({ mode: 'shared', size: 8, threshold: 1 });
    expect([0, 1].map(() => greedy.enqueue(encodeDescriptor({ opcode: 0, pasid: 1 })))).toEqual(['accepted', 'accepted']);
  });
});
