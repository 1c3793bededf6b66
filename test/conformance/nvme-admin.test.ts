/** Admin commands (NVMe 1.4 section 5): bytes that a host reads, statuses that it meets. Status `!` is Do Not Retry. */
import { beforeEach, describe, expect, it } from 'vitest';
import { ACQ, ASQ, BUFFER, CQ1, MEDIUM_BYTES, NvmeWorld, SQ1 } from './nvme-world.js';

const [DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, ASYNC_EVENT] = [0, 1, 2, 4, 5, 6, 8, 9, 0xa, 0xc] as const;

let world: NvmeWorld;

beforeEach(() => {
  world = new NvmeWorld();
  world.enableInterrupts();
  world.enable();
});

function identify(cns: number, nsid = 0): Uint8Array {
  world.ram.fill(BUFFER, 0xaa, 4096);
  expect(world.status(0, IDENTIFY, { nsid, prp1: BUFFER, cdw: [cns] })).toBe('0');
  return world.bytes(BUFFER, 4096);
}

const text = (bytes: Uint8Array, at: number, length: number): string => String.fromCharCode(...bytes.subarray(at, at + length));

describe('completion queue entries', () => {
  it('carry command, queue, head and the phase that changes with each lap', () => {
    const seen: string[] = [];
    for (let i = 0; i < 20; i++) {
      const { cid, sqId, sqHead, phase, status } = world.command(0, GET_FEATURES, { cid: i, cdw: [7] });
      seen.push(`${cid} ${sqId} ${sqHead} ${phase} ${status}`);
    }
    expect(seen.slice(0, 3)).toEqual(['0 0 1 1 0', '1 0 2 1 0', '2 0 3 1 0']);
    expect(seen.slice(14, 18)).toEqual(['14 0 15 1 0', '15 0 0 1 0', '16 0 1 0 0', '17 0 2 0 0']);
  });

  it('stand in memory as the specification lays them out', () => {
    world.ram.fill(ACQ, 0xff, 16);
    world.submit(0, 0x7f, { cid: 0xbeef });
    world.settle();
    // result, reserved, head and queue, identifier; status 0x4001 shifted by the phase bit
    expect([0, 4, 8, 12].map((at) => world.ram.load(ACQ + at, 4))).toEqual([0, 0, 0x0000_0001, 0x8003_beef]);
  });

  it('interrupt through vector 0', () => {
    world.command(0, GET_FEATURES, { cdw: [7] });
    expect(world.takeMessages()).toEqual([0x40]);
  });
});

describe('Identify', () => {
  it('the controller', () => {
    const id = identify(1);
    expect([id[0]! | (id[1]! << 8), id[2]! | (id[3]! << 8)]).toEqual([0x1b36, 0x1af4]);
    expect([text(id, 4, 20), text(id, 24, 40), text(id, 64, 8)]).toEqual(['nvme0'.padEnd(20), 'vfiosim NVMe controller'.padEnd(40), '1.0     ']);
    expect([id[77], id[80], id[81], id[82], id[111]]).toEqual([7, 0, 4, 1, 1]);
    expect([id[258], id[259], id[260], id[261], id[262]]).toEqual([3, 3, 3, 6, 63]);
    expect([id[512], id[513], id[516], id[520], id[525]]).toEqual([0x66, 0x44, 1, 0x1d, 7]);
    expect(text(id, 768, 37)).toBe('nqn.2014-08.org.nvmexpress:uuid:' + text(id, 800, 5));
    expect([id[2048]! | (id[2049]! << 8), id[536]]).toEqual([2500, 0]);
  });

  it('the namespace: blocks of 512 bytes, no metadata, zeros where nothing was written', () => {
    const id = identify(0, 1), blocks = MEDIUM_BYTES / 512;
    for (const at of [0, 8, 16]) expect(new DataView(id.buffer).getUint32(at, true)).toBe(blocks);
    expect([id[25], id[26], id[33], id[130], id[128], id[129]]).toEqual([0, 0, 9, 9, 0, 0]);
    expect(identify(0x11, 1)).toEqual(id);
  });

  it('lists of namespaces and controllers', () => {
    for (const cns of [2, 0x10]) {
      expect([identify(cns, 0)[0], identify(cns, 0)[4], identify(cns, 1)[0]]).toEqual([1, 0, 0]);
      expect(world.status(0, IDENTIFY, { nsid: 0xffff_fffe, prp1: BUFFER, cdw: [cns] })).toBe('b!');
    }
    expect([...identify(0x12, 1).subarray(0, 4), ...identify(0x13).subarray(0, 4)]).toEqual([1, 0, 0, 0, 1, 0, 0, 0]);
    expect(identify(0x0001_0013)[0]).toBe(0);
  });

  it('descriptors: EUI64 and UUID, the same for the same serial number', () => {
    const id = identify(3, 1);
    expect([id[0], id[1], id[12], id[13], id[32], id[33]]).toEqual([1, 8, 3, 16, 0, 0]);
    expect(id.subarray(4, 12)).toEqual(identify(0, 1).subarray(120, 128));
    const other = new NvmeWorld({ config: { serial: 'another' } });
    other.enable();
    other.status(0, IDENTIFY, { nsid: 1, prp1: BUFFER, cdw: [3] });
    expect(other.bytes(BUFFER, 32)).not.toEqual(id.subarray(0, 32));
  });

  it.each([[0, 0, 'b!'], [0, 2, 'b!'], [0, 0xffff_ffff, 'b!'], [3, 2, 'b!'], [4, 1, '2!'], [5, 1, '2!'], [6, 0, '2!'], [0x20, 0, '2!']])('CNS %d of namespace %d is refused with %s', (cns, nsid, status) => {
    expect(world.status(0, IDENTIFY, { nsid, prp1: BUFFER, cdw: [cns] })).toBe(status);
  });

  it('reaches over two pages, and only where memory is', () => {
    expect(world.status(0, IDENTIFY, { prp1: BUFFER + 0x800, prp2: BUFFER + 0x4000, cdw: [1] })).toBe('0');
    expect([world.ram.load(BUFFER + 0x800, 2), world.ram.load(BUFFER + 0x4000, 1)]).toEqual([0x1b36, 0xc4]);
    expect(world.status(0, IDENTIFY, { prp1: 0x7000_0000, cdw: [1] })).toBe('4');
    expect(world.status(0, IDENTIFY, { prp1: BUFFER + 2, cdw: [1] })).toBe('13!');
  });
});

describe('queues', () => {
  const cq = (fields: { id?: number; size?: number; flags?: number; vector?: number; prp1?: number } = {}): string =>
    world.status(0, CREATE_CQ, { prp1: fields.prp1 ?? CQ1, cdw: [(((fields.size ?? 16) - 1) << 16) | (fields.id ?? 1), (fields.flags ?? 3) | ((fields.vector ?? 1) << 16)] });
  const sq = (fields: { id?: number; size?: number; flags?: number; cq?: number; prp1?: number } = {}): string =>
    world.status(0, CREATE_SQ, { prp1: fields.prp1 ?? SQ1, cdw: [(((fields.size ?? 16) - 1) << 16) | (fields.id ?? 1), (fields.flags ?? 1) | ((fields.cq ?? 1) << 16)] });

  it.each([
    ['identifier 0', { id: 0 }, '101!'], ['an identifier above the number of queues', { id: 5 }, '101!'], ['one entry', { size: 1 }, '102!'], ['more entries than CAP.MQES', { size: 2049 }, '102!'],
    ['a vector that is not there', { vector: 5 }, '108!'], ['memory that is not contiguous', { flags: 2 }, '2!'], ['an address inside a page', { prp1: CQ1 + 0x40 }, '13!'],
  ])('a completion queue with %s is refused', (_what, fields, status) => {
    expect(cq(fields)).toBe(status);
    expect(world.nvme.controller.cqs[1]).toBeUndefined();
    expect(cq()).toBe('0');
  });

  it.each([
    ['identifier 0', { id: 0 }, '101!'], ['an identifier above the number of queues', { id: 5 }, '101!'], ['one entry', { size: 1 }, '102!'], ['more entries than CAP.MQES', { size: 2049 }, '102!'],
    ['a completion queue that is not there', { cq: 2 }, '100!'], ['the admin completion queue', { cq: 0 }, '101!'], ['a completion queue that cannot be', { cq: 5 }, '101!'],
    ['memory that is not contiguous', { flags: 0 }, '2!'], ['an address inside a page', { prp1: SQ1 + 0x200 }, '13!'],
  ])('a submission queue with %s is refused', (_what, fields, status) => {
    cq();
    expect(sq(fields)).toBe(status);
    expect(world.nvme.controller.sqs[1]).toBeUndefined();
    expect(sq()).toBe('0');
  });

  it('exist once', () => {
    expect([cq(), cq(), sq(), sq()]).toEqual(['0', '101!', '0', '101!']);
  });

  it('need CC.IOSQES and CC.IOCQES', () => {
    const plain = new NvmeWorld();
    plain.enable(16, 1);
    expect([plain.status(0, CREATE_CQ, { prp1: CQ1, cdw: [0x000f_0001, 3] }), plain.status(0, CREATE_SQ, { prp1: SQ1, cdw: [0x000f_0001, 0x1_0001] })]).toEqual(['102!', '100!']);
  });

  it('without messages have vector 0 only', () => {
    const plain = new NvmeWorld();
    plain.enable();
    expect(plain.status(0, CREATE_CQ, { prp1: CQ1, cdw: [0x000f_0001, 3 | (1 << 16)] })).toBe('108!');
    expect(plain.status(0, CREATE_CQ, { prp1: CQ1, cdw: [0x000f_0001, 3] })).toBe('0');
  });

  it('go in the right order: a completion queue that is used stays', () => {
    cq();
    sq();
    const removed = (opcode: number, id: number): string => world.status(0, opcode, { cdw: [id] });
    expect([removed(DELETE_CQ, 1), removed(DELETE_SQ, 2), removed(DELETE_SQ, 0), removed(DELETE_CQ, 0), removed(DELETE_SQ, 1), removed(DELETE_SQ, 1), removed(DELETE_CQ, 1), removed(DELETE_CQ, 1)])
      .toEqual(['10c!', '101!', '101!', '101!', '0', '101!', '0', '101!']);
  });

  it('that go take their commands along: what waits at the medium is aborted', () => {
    world = new NvmeWorld({ config: { readNs: 1_000_000 } }).started();
    const cids = [0, 1, 2].map((i) => world.submit(1, 2, { nsid: 1, prp1: BUFFER + i * 0x1000, cdw: [i, 0, 0] }));
    world.clock.run({ stop: () => world.nvme.controller.outstanding === 3 });
    world.clock.run({ untilNs: world.clock.now + 2_000 });
    const before = world.clock.now;
    expect(world.status(0, DELETE_SQ, { cdw: [1] })).toBe('0');
    expect(world.clock.now - before).toBeLessThan(1_000_000);
    expect(world.take(1).map(({ cid, status }) => [cid, status])).toEqual(cids.map((cid) => [cid, 8]));
  });
});

describe('features', () => {
  const set = (feature: number, value: number, nsid = 0): string => world.status(0, SET_FEATURES, { nsid, cdw: [feature, value] });
  const get = (feature: number, select = 0, detail = 0, nsid = 0): number | string => {
    const { status, dw0 } = world.command(0, GET_FEATURES, { nsid, cdw: [feature | (select << 8), detail] });
    return status === 0 ? dw0 : status.toString(16);
  };

  it('number of queues: all there are, before there is one', () => {
    expect(world.command(0, SET_FEATURES, { cdw: [7, 0x0001_0001] }).dw0).toBe(0x0003_0003);
    expect([get(7), set(7, 0xffff), set(7, 0xffff_0000)]).toEqual([0x0003_0003, '2!', '2!']);
    world.createQueues();
    expect(set(7, 0)).toBe('c!');
  });

  it.each([[0x01, 0x0403_0201, 7], [0x06, 0, 1], [0x08, 0x0a05, 0], [0x0a, 1, 0], [0x0b, 0x2, 0]])('%d is kept, and has its default back after a reset', (feature, value, standard) => {
    expect([get(feature), set(feature, value), get(feature), get(feature, 1), get(feature, 2), get(feature, 3)]).toEqual([standard, '0', value, standard, standard, 4]);
    world.write(0x14, 0);
    world.settle();
    world.enable();
    expect(get(feature)).toBe(standard);
  });

  it('interrupt vector configuration belongs to a vector', () => {
    expect([get(9, 0, 0), get(9, 0, 2), set(9, 0x1_0002), get(9, 0, 2), get(9, 0, 5), set(9, 5)]).toEqual([0x1_0000, 2, '0', 0x1_0002, '2', '2!']);
  });

  it('temperature thresholds: above 343 K, below nothing; all sensors are one', () => {
    expect([get(4), get(4, 0, 0x10_0000), get(4, 0, 0x20_0000), get(4, 0, 0x1_0000), set(4, 0x1_0100), set(4, 0x000f_0155), get(4)]).toEqual([343, 0, '2', '2', '2!', '0', 0x155]);
  });

  it('error recovery is the namespace’s; deallocated blocks never fail', () => {
    expect([set(5, 5, 1), get(5, 0, 0, 1), get(5, 3, 0, 1), set(5, 0x1_0000, 1), set(5, 5, 0), set(5, 5, 2)]).toEqual(['0', 5, 6, '2!', 'b!', 'b!']);
  });

  it('that are not there, cannot be saved, or belong to no namespace are refused', () => {
    expect([set(0x0c, 1), get(0x0c), get(0x80), get(7, 4), set(2, 1), set(0x8000_0001, 0), set(1, 0, 1), set(1, 0, 2), set(1, 7, 0xffff_ffff), get(2)]).toEqual(['2!', '2', '2', '2', '2!', '10d!', '10f!', 'b!', '0', 0]);
  });
});

describe('log pages', () => {
  const log = (id: number, bytes: number, fields: { offset?: number; nsid?: number; retain?: boolean } = {}): string =>
    world.status(0, GET_LOG, { nsid: fields.nsid ?? 0xffff_ffff, prp1: BUFFER, prp2: BUFFER + 0x1000, cdw: [(id | (fields.retain === true ? 0x8000 : 0) | ((bytes / 4 - 1) << 16)) >>> 0, 0, fields.offset ?? 0] });

  it('SMART: temperature, spare, what was read and written in units of 512000 bytes, errors', () => {
    world.createQueues();
    for (let i = 0; i < 3; i++) world.status(1, 2, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 7] });
    world.status(1, 1, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 7] });
    world.status(1, 0x77, { nsid: 1 });
    expect(log(2, 512)).toBe('0');
    const page = new DataView(world.bytes(BUFFER, 512).buffer);
    expect([page.getUint8(0), page.getUint16(1, true), page.getUint8(3)]).toEqual([0, 323, 100]);
    expect([32, 48, 64, 80, 112, 176].map((at) => page.getUint32(at, true))).toEqual([1, 1, 3, 1, 1, 1]);
  });

  it('errors, newest first: count, queue, command, status, block, namespace', () => {
    world.createQueues();
    world.status(1, 2, { cid: 0x21, nsid: 1, prp1: BUFFER, cdw: [0x1234_5678, 1, 0] });
    world.status(0, 0x7f, { cid: 0x22, nsid: 3 });
    expect(log(1, 128)).toBe('0');
    const page = new DataView(world.bytes(BUFFER, 128).buffer);
    const entry = (at: number): (number | bigint)[] => [page.getUint32(at, true), page.getUint16(at + 8, true), page.getUint16(at + 10, true), page.getUint16(at + 12, true), page.getBigUint64(at + 16, true), page.getUint32(at + 24, true)];
    expect([entry(0), entry(64)]).toEqual([[2, 0, 0x22, 0x8002, 0n, 3], [1, 1, 0x21, 0x8100, 0x1_1234_5678n, 1]]);
  });

  it('firmware and commands supported', () => {
    expect(log(3, 512)).toBe('0');
    expect([world.ram.load(BUFFER, 1), world.ram.load(BUFFER + 8, 4)]).toEqual([1, 0x2030_2e31]);
    expect(log(5, 4096)).toBe('0');
    // identify; write; nothing under format
    expect([world.ram.load(BUFFER + 6 * 4, 4), world.ram.load(BUFFER + 1024 + 4, 4), world.ram.load(BUFFER + 0x80 * 4, 4)]).toEqual([1, 3, 0]);
  });

  it('begin at an offset, and end where they end', () => {
    world.ram.fill(BUFFER, 0xee, 4096);
    expect([log(2, 512, { offset: 500 }), log(2, 16, { offset: 512 }), log(2, 16, { offset: 2 }), log(2, 16, { offset: 516 })]).toEqual(['0', '0', '2!', '2!']);
    expect([world.ram.load(BUFFER + 8, 4), world.ram.load(BUFFER + 12, 4)]).toEqual([0, 0xeeee_eeee]);
  });

  it('that are not there, or not of a namespace, are refused', () => {
    expect([log(4, 16), log(0x80, 16), log(2, 16, { nsid: 1 }), log(2, 16, { nsid: 0 })]).toEqual(['109!', '109!', '2!', '0']);
  });

  describe('and asynchronous events', () => {
    it('park up to four requests; one more is refused', () => {
      for (let i = 0; i < 4; i++) world.submit(0, ASYNC_EVENT);
      world.settle();
      expect([world.take(0).length, world.nvme.controller.outstanding]).toEqual([0, 4]);
      expect(world.status(0, ASYNC_EVENT)).toBe('105!');
      // others pass
      expect(world.status(0, GET_FEATURES, { cdw: [7] })).toBe('0');
    });

    it('tell of a doorbell that is not there or a value that cannot be, once until the error log was read', () => {
      world.write(0x1010, 1);
      const first = world.submit(0, ASYNC_EVENT), second = world.submit(0, ASYNC_EVENT);
      world.settle();
      // nobody had asked when it happened
      expect(world.take(0)).toEqual([]);
      world.write(0x1010, 1);
      world.write(0x1000, 16);
      world.settle();
      expect(world.take(0).map(({ cid, dw0 }) => [cid, dw0])).toEqual([[first, 0x0001_0000]]);
      expect(log(1, 64, { retain: true })).toBe('0');
      world.settle();
      expect(world.take(0)).toEqual([]);
      world.submit(0, GET_LOG, { cid: 9, nsid: 0, prp1: BUFFER, cdw: [1 | (15 << 16)] });
      world.settle();
      expect(world.take(0).map(({ cid, dw0 }) => [cid, dw0]).toSorted((a, b) => a[0]! - b[0]!)).toEqual([[9, 0], [second, 0x0001_0100]]);
    });

    it('tell of a temperature over its threshold, when they are asked to', () => {
      const cid = world.submit(0, ASYNC_EVENT);
      world.status(0, SET_FEATURES, { cdw: [4, 300] });
      world.submit(0, SET_FEATURES, { cid: 7, cdw: [0x0b, 2] });
      world.settle();
      expect(world.take(0).map((cqe) => [cqe.cid, cqe.dw0]).toSorted((a, b) => a[0]! - b[0]!)).toEqual([[7, 0], [cid, 0x0002_0101]]);
      log(2, 512);
      expect(world.ram.load(BUFFER, 1)).toBe(2);
    });
  });
});

describe('Abort', () => {
  it('takes back what waits at the medium; its completion comes first', () => {
    world = new NvmeWorld({ config: { writeNs: 1_000_000 } }).started();
    world.ram.fill(BUFFER, 0x55, 512);
    const cid = world.submit(1, 1, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    world.clock.run({ untilNs: world.clock.now + 10_000 });
    world.takeMessages();
    const { dw0, status } = world.command(0, ABORT, { cdw: [(cid << 16) | 1] });
    expect([dw0, status, world.takeMessages()]).toEqual([0, 0, [0x41, 0x40]]);
    expect(world.take(1).map((cqe) => [cqe.cid, cqe.status])).toEqual([[cid, 7]]);
    expect(world.stored(0, 1)[0]).toBe(0);
  });

  it('takes back a parked event request', () => {
    const cid = world.submit(0, ASYNC_EVENT);
    world.settle();
    const abort = world.submit(0, ABORT, { cdw: [cid << 16] });
    world.settle();
    expect(world.take(0).map((cqe) => [cqe.cid, cqe.status, cqe.dw0])).toEqual([[cid, 7, 0], [abort, 0, 0]]);
  });

  it('says so when it did not: nothing there, or data under way', () => {
    expect(world.command(0, ABORT, { cdw: [(0x77 << 16) | 1] })).toMatchObject({ dw0: 1, status: 0 });
  });
});

describe('the admin queue', () => {
  it('refuses unknown commands, fused ones, SGLs, and an identifier twice', () => {
    expect([world.status(0, 0x10), world.status(0, 0x80), world.status(0, IDENTIFY, { flags: 0x100 }), world.status(0, IDENTIFY, { flags: 0x4000 })]).toEqual(['1!', '1!', '2!', '2!']);
    world.submit(0, ASYNC_EVENT, { cid: 5 });
    expect(world.status(0, ASYNC_EVENT, { cid: 5 })).toBe('3!');
  });

  it('is read entry by entry up to its doorbell', () => {
    for (let i = 0; i < 3; i++) world.ram.store(ASQ + i * 64, 4, (0x0a | (i << 16)) >>> 0);
    for (let i = 0; i < 3; i++) world.ram.store(ASQ + i * 64 + 40, 4, 7);
    world.write(0x1000, 2);
    world.settle();
    expect(world.take(0).map(({ cid }) => cid)).toEqual([0, 1]);
  });
});
