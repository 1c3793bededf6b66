/** Device files: information, regions, interrupts, resets and features, in bytes (E27; drivers/vfio/vfio_main.c, pci/vfio_pci_core.c, v6.12). */
import { describe, expect, it } from 'vitest';
import type { EventFd } from '../../host/eventfd.js';
import { REGION_STRIDE } from '../../vfio/device.js';
import { DEVICE_FEATURE, DEVICE_INFO, IRQ_SET, REGION_INFO } from '../../vfio/uapi/device.js';
import { bytesOf, concatWords, wordsOfBytes } from '../../vfio/uapi/fields.js';
import {
  VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
} from '../../vfio/uapi/ioctl.js';
import { VfioWorld } from '../fixtures/vfio-world.js';

const GET = 1 << 16, SET = 1 << 17, PROBE = 1 << 18;

function opened() {
  const world = new VfioWorld();
  const { device, ops } = world.registered('0000:00:01.0');
  const client = world.client();
  const { group } = world.inUse(client, device);
  const handle = world.run(group.getDevice(ops.name));
  const raw = (command: number, words: ArrayLike<number>) => {
    const { result, refusal, bytes } = world.run(handle.raw(command, bytesOf(words)));
    return { result, code: refusal?.code, words: Array.from(wordsOfBytes(bytes)) };
  };
  return { world, ops, client, handle, raw };
}

describe('GET_INFO', () => {
  it('answers with flags and numbers of regions and interrupt indices', () => {
    const { world, handle, raw } = opened();
    expect(world.run(handle.info())).toEqual({ flags: 3, regions: 2, irqs: 3 });
    expect(raw(VFIO_DEVICE_GET_INFO, [24, 9, 9, 9, 9, 9]).words).toEqual([24, 3, 2, 3, 0, 9]);
  });

  it('writes no capability offset where the caller has no place for it, and refuses less than it needs', () => {
    const { raw } = opened();
    expect(raw(VFIO_DEVICE_GET_INFO, [16, 9, 9, 9, 9, 9])).toEqual({ result: 0, code: undefined, words: [16, 3, 2, 3, 9, 9] });
    expect(raw(VFIO_DEVICE_GET_INFO, [15, 9, 9, 9, 9, 9])).toEqual({ result: undefined, code: 'EINVAL', words: [15, 9, 9, 9, 9, 9] });
  });
});

describe('GET_REGION_INFO', () => {
  it('answers with size, flags and the place in the device file, index * 2^40', () => {
    const { world, handle, raw } = opened();
    expect(world.run(handle.region(1))).toEqual({ flags: 1, sizeBytes: 4096, offset: REGION_STRIDE });
    expect(raw(VFIO_DEVICE_GET_REGION_INFO, REGION_INFO.encode({ argsz: 32, index: 1 })).words).toEqual([32, 1, 1, 0, 4096, 0, 0, 0x100]);
  });

  it('refuses a region that is not there and an argsz below 32, and changes nothing', () => {
    const { raw } = opened();
    expect(raw(VFIO_DEVICE_GET_REGION_INFO, [32, 5, 2, 5, 5, 5, 5, 5])).toEqual({ result: undefined, code: 'EINVAL', words: [32, 5, 2, 5, 5, 5, 5, 5] });
    expect(raw(VFIO_DEVICE_GET_REGION_INFO, [31, 5, 0, 5, 5, 5, 5, 5]).code).toBe('EINVAL');
  });

  function withCapabilities() {
    const opening = opened();
    opening.ops.regions[1] = {
      flags: 7, sizeBytes: 0x1_0000_2000, sparse: [{ offset: 0, sizeBytes: 0x1000 }, { offset: 0x1_0000_1000, sizeBytes: 0x1000 }],
      type: { type: 0x8000_8086, subtype: 1 }, msixMappable: true,
    };
    return opening;
  }

  it('says how much room the capabilities take, and leaves them out where there is none', () => {
    const { raw } = withCapabilities();
    // 16 + 2 * 16 bytes of areas, 16 of type, 8 without a body
    expect(raw(VFIO_DEVICE_GET_REGION_INFO, REGION_INFO.encode({ argsz: 32, index: 1, cap_offset: 77 })).words).toEqual([32 + 72, 0xf, 1, 0, 0x2000, 1, 0, 0x100]);
    const almost = concatWords(REGION_INFO.encode({ argsz: 103, index: 1 }), new Uint32Array(18).fill(5));
    expect(raw(VFIO_DEVICE_GET_REGION_INFO, almost).words).toEqual([104, 0xf, 1, 0, 0x2000, 1, 0, 0x100, ...Array.from({ length: 18 }, () => 5)]);
  });

  it('chains them behind the record where there is room', () => {
    const { world, handle, raw } = withCapabilities();
    const enough = concatWords(REGION_INFO.encode({ argsz: 104, index: 1 }), new Uint32Array(19).fill(5));
    expect(raw(VFIO_DEVICE_GET_REGION_INFO, enough).words).toEqual([
      104, 0xf, 1, 32, 0x2000, 1, 0, 0x100,
      0x1_0001, 80, 2, 0, 0, 0, 0x1000, 0, 0x1000, 1, 0x1000, 0,
      0x1_0002, 96, 0x8000_8086, 1,
      0x1_0003, 0, 5,
    ]);
    expect(world.run(handle.region(1))).toEqual({
      flags: 0xf, sizeBytes: 0x1_0000_2000, offset: REGION_STRIDE, sparse: [{ offset: 0, sizeBytes: 0x1000 }, { offset: 0x1_0000_1000, sizeBytes: 0x1000 }],
      type: { type: 0x8000_8086, subtype: 1 }, msixMappable: true,
    });
  });

  it('is refused with EFAULT when the capabilities\' memory cannot be written, and the record stays', () => {
    const { world, client, handle } = withCapabilities();
    const page = world.malloc(client.process.mm, 1) * 4096, record = page + 4096 - 32;
    world.run(client.process.mm.munmap(page + 4096, 4096));
    world.run(client.process.mm.write(record, bytesOf(REGION_INFO.encode({ argsz: 104, index: 1 }))));
    expect(world.refused(client.process.ioctl(handle.fd, VFIO_DEVICE_GET_REGION_INFO, record))).toBe('EFAULT');
    const after = new Uint8Array(8);
    world.run(client.process.mm.read(record, after));
    expect([...after]).toEqual([104, 0, 0, 0, 0, 0, 0, 0]);
  });
});

describe('reading, writing and mapping', () => {
  it('reaches the region\'s bytes, short at its end', () => {
    const { world, handle, ops } = opened();
    expect(handle.write(0, 8, Uint8Array.of(1, 2, 3, 4))).toBe(4);
    expect(handle.readValue(0, 8, 4)).toBe(0x0403_0201);
    handle.writeValue(0, 9, 2, 0xbeef);
    expect([...ops.memory.subarray(8, 12)]).toEqual([1, 0xef, 0xbe, 4]);
    expect(handle.read(0, 4094, 8).length).toBe(2);
    expect(() => handle.readValue(0, 4094, 4)).toThrow('-EIO');
    const mmio = handle.mmap(0, 0, 4096);
    mmio.write(16, 4, 0x1234_5678);
    expect(mmio.read(16, 4)).toBe(handle.readValue(0, 16, 4));
    expect(world.refused(() => handle.mmap(1, 0, 4096))).toBe('EINVAL');
    expect(world.refused(() => handle.read(1, 0, 4))).toBe('EINVAL');
  });

  it('copies from and to the caller\'s memory, with EFAULT where there is none', () => {
    const { world, handle, client, ops } = opened();
    const page = world.malloc(client.process.mm, 1) * 4096;
    world.run(client.process.mm.write(page, Uint8Array.of(9, 8, 7)));
    expect(world.run(handle.file.pwrite(client.process, page, 3, 100))).toBe(3);
    expect([...ops.memory.subarray(100, 103)]).toEqual([9, 8, 7]);
    expect(world.run(handle.file.pread(client.process, page + 50, 8, 4092))).toBe(4);
    expect(world.refused(handle.file.pread(client.process, 0, 4, 0))).toBe('EFAULT');
    expect(world.refused(handle.file.pwrite(client.process, 0, 4, 0))).toBe('EFAULT');
    expect(ops.memory[0]).toBe(0);
  });

  it('needs an open descriptor', () => {
    const { world, handle } = opened();
    world.run(handle.close());
    expect(world.refused(() => handle.read(0, 0, 4))).toBe('EBADF');
  });
});

describe('GET_IRQ_INFO', () => {
  it('answers with flags and count', () => {
    const { world, handle, raw } = opened();
    expect(world.run(handle.irq(1))).toEqual({ flags: 9, count: 4 });
    expect(raw(VFIO_DEVICE_GET_IRQ_INFO, [16, 5, 0, 5]).words).toEqual([16, 7, 0, 1]);
    expect(raw(VFIO_DEVICE_GET_IRQ_INFO, [15, 5, 0, 5])).toMatchObject({ code: 'EINVAL', words: [15, 5, 0, 5] });
    expect(raw(VFIO_DEVICE_GET_IRQ_INFO, [16, 5, 3, 5]).code).toBe('EINVAL');
  });
});

describe('SET_IRQS', () => {
  const NONE = 1, BOOL = 2, EVENTFD = 4, MASK = 8, UNMASK = 16, TRIGGER = 32;
  const set = (flags: number, index: number, start: number, count: number, data: number[] = [], argsz = 20 + data.length * 4) =>
    concatWords(IRQ_SET.encode({ argsz, flags, index, start, count }), data.map((value) => value >>> 0));

  it('finds the eventfds of the caller\'s descriptors, -1 for none', () => {
    const { world, ops, client, handle } = opened();
    const first = world.eventFd(client.process), second = world.eventFd(client.process);
    world.run(handle.setIrqs({ index: 1, start: 1, eventfds: [first.fd, -1, second.fd] }));
    expect(ops.irqSets).toEqual([{ index: 1, start: 1, count: 3, action: 'trigger', data: { kind: 'eventfd', fds: [first.event, undefined, second.event] } }]);
    const { data } = ops.irqSets[0]!;
    const fds: readonly (EventFd | undefined)[] = data.kind === 'eventfd' ? data.fds : [];
    fds[2]!.signal();
    expect(second.event.read()).toBe(1);
  });

  it('takes masks and triggers for all or for some of a range', () => {
    const { world, ops, handle } = opened();
    world.run(handle.setIrqs({ index: 1, action: 'mask', bools: [true, false, true] }));
    world.run(handle.setIrqs({ index: 0, action: 'unmask', count: 1 }));
    world.run(handle.setIrqs({ index: 0, count: 0 }));
    expect(ops.irqSets).toEqual([
      { index: 1, start: 0, count: 3, action: 'mask', data: { kind: 'bool', values: [true, false, true] } },
      { index: 0, start: 0, count: 1, action: 'unmask', data: { kind: 'none' } },
      { index: 0, start: 0, count: 0, action: 'trigger', data: { kind: 'none' } },
    ]);
  });

  it.each([
    ['an argsz below 20', set(NONE | TRIGGER, 0, 0, 1, [], 19), 'EINVAL'],
    ['an argsz that does not hold the data', set(EVENTFD | TRIGGER, 1, 0, 3, [-1, -1], 28), 'EINVAL'],
    ['an argsz one byte short', set(BOOL | MASK, 1, 0, 4, [0], 23), 'EINVAL'],
    ['unknown flags', set(64 | NONE | TRIGGER, 0, 0, 1), 'EINVAL'],
    ['an index that does not exist', set(NONE | TRIGGER, 3, 0, 0), 'EINVAL'],
    ['an index without interrupts, even for none of them', set(NONE | TRIGGER, 2, 0, 0), 'EINVAL'],
    ['a start beyond the interrupts', set(NONE | TRIGGER, 1, 4, 0), 'EINVAL'],
    ['a range beyond the interrupts', set(NONE | TRIGGER, 1, 2, 3), 'EINVAL'],
    ['a range that wraps', set(NONE | TRIGGER, 1, 2, 0xffff_fffe), 'EINVAL'],
    ['no kind of data', set(TRIGGER, 0, 0, 1), 'EINVAL'],
    ['two kinds of data', set(NONE | BOOL | TRIGGER, 0, 0, 1, [1]), 'EINVAL'],
    ['no action', set(NONE, 0, 0, 1), 'ENOTTY'],
    ['two actions', set(NONE | MASK | UNMASK, 0, 0, 1), 'ENOTTY'],
    ['a closed descriptor', set(EVENTFD | TRIGGER, 1, 0, 2, [-1, 99]), 'EBADF'],
    ['a descriptor of something else', set(EVENTFD | TRIGGER, 1, 0, 1, [0]), 'EINVAL'],
    ['a descriptor below -1', set(EVENTFD | TRIGGER, 1, 0, 1, [-2]), 'EINVAL'],
  ] as const)('refuses %s', (_what, words, code) => {
    const { ops, raw } = opened();
    expect(raw(VFIO_DEVICE_SET_IRQS, words).code).toBe(code);
    expect(ops.irqSets).toEqual([]);
  });

  it('is refused with EFAULT when the data\'s memory cannot be read', () => {
    const { world, ops, client, handle } = opened();
    const page = world.malloc(client.process.mm, 1) * 4096, record = page + 4096 - 20;
    world.run(client.process.mm.munmap(page + 4096, 4096));
    world.run(client.process.mm.write(record, bytesOf(set(EVENTFD | TRIGGER, 1, 0, 1, [], 24))));
    expect(world.refused(client.process.ioctl(handle.fd, VFIO_DEVICE_SET_IRQS, record))).toBe('EFAULT');
    expect(ops.irqSets).toEqual([]);
  });
});

describe('RESET and what only the driver knows', () => {
  it('go to the driver', () => {
    const { world, ops, client, handle } = opened();
    world.run(handle.reset());
    expect(world.calls.at(-1)).toBe(`reset ${ops.name}`);
    expect(world.run(client.process.ioctl(handle.fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, 0x5000))).toBe(42);
    expect(world.calls.at(-1)).toBe('ioctl 112 20480');
  });

  it('are ENOTTY where the driver has none', () => {
    const { world, ops, client, handle } = opened();
    Object.assign(ops, { ioctl: undefined, feature: undefined });
    expect(world.refused(client.process.ioctl(handle.fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, 0))).toBe('ENOTTY');
    expect(world.refused(handle.probeFeature(7, { get: true }))).toBe('ENOTTY');
    world.run(client.process.ioctl(handle.fd, VFIO_DEVICE_RESET, 0));
  });
});

describe('DEVICE_FEATURE', () => {
  it('hands the bytes behind the header over and what a GET returns back', () => {
    const { world, ops, handle } = opened();
    expect([...world.run(handle.getFeature(7, Uint8Array.of(9, 9, 9, 9)))]).toEqual([1, 2, 3, 4]);
    world.run(handle.setFeature(7, Uint8Array.of(5, 6, 7, 8)));
    expect([...ops.featureBytes]).toEqual([5, 6, 7, 8]);
    expect(ops.features.map(({ feature, get, set, probe, data }) => [feature, get, set, probe, [...data]])).toEqual([
      [7, true, false, false, [9, 9, 9, 9]], [7, false, true, false, [5, 6, 7, 8]],
    ]);
  });

  it('probes without data, also for GET and SET together', () => {
    const { world, ops, handle } = opened();
    world.run(handle.probeFeature(7, { get: true, set: true }));
    expect(ops.features).toMatchObject([{ feature: 7, get: true, set: true, probe: true }]);
    expect(world.refused(handle.probeFeature(8, { get: true }))).toBe('ENOTTY');
  });

  it.each([
    ['an argsz below 8', [7, GET | 7, 0], 'EINVAL'],
    ['unknown flags', [12, (1 << 19) | GET | 7, 0], 'EINVAL'],
    ['GET and SET together', [12, GET | SET | 7, 0], 'EINVAL'],
  ] as const)('refuses %s, and the driver hears nothing', (_what, words, code) => {
    const { ops, raw } = opened();
    expect(raw(VFIO_DEVICE_FEATURE, words)).toMatchObject({ code, words });
    expect(ops.features).toEqual([]);
  });

  it('writes nothing back for a SET that changed nothing, so read-only memory will do', () => {
    const { world, client, handle, ops } = opened();
    const content = bytesOf(concatWords(DEVICE_FEATURE.encode({ argsz: 12, flags: SET | 7 }), [0x0102_0304]));
    const record = world.run(client.process.mm.mmapFile(content, { prot: 1 }));
    expect(world.run(client.process.ioctl(handle.fd, VFIO_DEVICE_FEATURE, record))).toBe(0);
    expect([...ops.featureBytes]).toEqual([4, 3, 2, 1]);
    const get = world.run(client.process.mm.mmapFile(bytesOf([12, GET | 7, 0]), { prot: 1 }));
    expect(world.refused(client.process.ioctl(handle.fd, VFIO_DEVICE_FEATURE, get))).toBe('EFAULT');
    const probe = world.run(client.process.mm.mmapFile(bytesOf([0xffff_ffff, PROBE | GET | 7]), { prot: 1 }));
    expect(world.run(client.process.ioctl(handle.fd, VFIO_DEVICE_FEATURE, probe))).toBe(0);
  });
});

describe('the client\'s memory', () => {
  it('is the process\'s own, used again, and not shared by calls that overlap', () => {
    const { world, client, handle } = opened();
    const before = client.process.mm.areas.count;
    for (let i = 0; i < 20; i++) world.run(handle.info());
    expect(client.process.mm.areas.count).toBe(before);
    const seen: number[] = [];
    world.run(client.calls.withMemory(8, function* (outer) {
      seen.push(outer);
      yield* client.calls.withMemory(8, function* (inner) {
        seen.push(inner);
        yield* client.process.mm.write(inner, Uint8Array.of(1));
      });
    }));
    expect(new Set(seen).size).toBe(2);
    const clean = new Uint8Array(4);
    world.run(client.calls.withMemory(4, function* (address) { yield* client.process.mm.read(address, clean); }));
    expect(clean).toEqual(new Uint8Array(4));
  });

  it('holds records as large as a bitmap needs', () => {
    const { world, client } = opened();
    const { bytes, refusal } = world.run(client.calls.raw(0, DEVICE_INFO.sizeBytes, new Uint8Array(100_000).fill(3)));
    expect([bytes.length, bytes[99_999], refusal?.code]).toEqual([100_000, 3, 'ENOTTY']);
  });
});
