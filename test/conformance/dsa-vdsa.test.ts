/**
 * The virtual accelerator as its user sees it: configuration space, registers, commands, interrupts, portals. Layouts and codes
 * as the real one's (devices/dsa/spec); what is emulated and what is carried out follows the idxd VDCM patches.
 */
import { describe, expect, it } from 'vitest';
import { Errno } from '../../sim/errno.js';
import { PCI_BAR0_REGION, PCI_BAR2_REGION, PCI_CONFIG_REGION, PCI_ERR_IRQ, PCI_MSIX_IRQ, PCI_REQ_IRQ, REGION_STRIDE } from '../../vfio/device.js';
import { IdxdMdevParent } from '../../devices/dsa/parent/mdev-parent.js';
import { FLAG, OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { msixPlace, SWERR } from '../../devices/dsa/spec/registers.js';
import { DsaMdevWorld, IOVA, uuid, type DsaMdevWorldOptions, type VdsaUser } from './dsa-mdev-world.js';

const DEDICATED = '1dwq-v1', SHARED = '1swq-v1';

function opened(type = DEDICATED, options: DsaMdevWorldOptions = {}): { world: DsaMdevWorld; user: VdsaUser } {
  const world = new DsaMdevWorld(options);
  world.create(1, type);
  return { world, user: world.open(1) };
}

function refused(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof Errno) return error.code;
    throw error;
  }
  return 'not refused';
}

describe('configuration space', () => {
  it('has the identity of an accelerator, MSI-X with two vectors, PCI Express, and nothing to translate addresses with', () => {
    const { user } = opened();
    expect([user.config(0, 4), user.config(8, 4) >>> 8, user.config(0x0e, 1)]).toEqual([0x0b25_8086, 0x088000, 0]);
    const found: number[] = [];
    for (let at = user.config(0x34, 1); at !== 0; at = user.config(at + 1, 1)) found.push(user.config(at, 1));
    expect(found).toEqual([0x10, 0x11]);
    expect([user.config(0x40 + 2, 2) >> 4 & 0xf, user.config(0x7c + 2, 2) & 0x7ff, user.config(0x7c + 4, 4), user.config(0x7c + 8, 4)]).toEqual([9, 1, 0x2000, 0x3000]);
    // no ATS, PRI, PASID
    expect(user.config(0x100, 4)).toBe(0);
  });

  it('sizes its BARs: 64 KiB and four pages, both 64 bits wide', () => {
    const { user } = opened();
    const sizes = [0x10, 0x18].map((register) => {
      user.configWrite(register, 4, 0xffff_ffff);
      user.configWrite(register + 4, 4, 0xffff_ffff);
      return [user.config(register, 4), user.config(register + 4, 4)];
    });
    expect(sizes).toEqual([[0xffff_000c, 0xffff_ffff], [0xffff_c00c, 0xffff_ffff]]);
    user.configWrite(0x10, 4, 0x8000_0000);
    expect(user.config(0x10, 4)).toBe(0x8000_000c);
    user.configWrite(0x20, 4, 0xffff_ffff);
    expect([user.config(0x20, 4), user.config(0x30, 4)]).toEqual([0, 0]);
  });

  it('is read and written in bytes, words and longer, at any offset', () => {
    const { user } = opened();
    expect([user.config(1, 1), user.config(2, 2), user.device.read(PCI_CONFIG_REGION, 1, 7)]).toEqual([0x80, 0x0b25, Uint8Array.of(0x80, 0x25, 0x0b, 6, 0, 0x10, 0)]);
    user.configWrite(0x0c, 1, 0x10);
    expect(user.device.write(PCI_CONFIG_REGION, 0x3c, Uint8Array.of(5, 9))).toBe(2);
    expect([user.config(0x0c, 4), user.config(0x3c, 2)]).toEqual([0x10, 5]);
  });
});

describe('regions and interrupts', () => {
  it('are told to the user (VFIO_DEVICE_GET_*_INFO)', () => {
    const { world, user } = opened();
    expect(world.run(user.device.info())).toEqual({ flags: 3, regions: 9, irqs: 5 });
    const regions = Array.from({ length: 9 }, (_, i) => world.run(user.device.region(i)));
    expect(regions.map(({ flags, sizeBytes }) => [flags, sizeBytes])).toEqual([[3, 0x1_0000], [0, 0], [0xf, 0x4000], [0, 0], [0, 0], [0, 0], [0, 0], [3, 4096], [0, 0]]);
    expect(regions[PCI_BAR2_REGION]!.sparse).toEqual([{ offset: 0x1000, sizeBytes: 0x1000 }]);
    expect([0, 1, PCI_MSIX_IRQ, PCI_ERR_IRQ, PCI_REQ_IRQ].map((i) => world.run(user.device.irq(i)))).toEqual([
      { flags: 0, count: 0 }, { flags: 0, count: 0 }, { flags: 9, count: 2 }, { flags: 1, count: 1 }, { flags: 1, count: 1 },
    ]);
  });

  it('map the limited portal and nothing else (EINVAL)', () => {
    const { world, user } = opened();
    const vdsa = world.vdsa(1);
    for (const [region, offset, size] of [[PCI_BAR2_REGION, 0, 0x1000], [PCI_BAR2_REGION, 0x1000, 0x2000], [PCI_BAR2_REGION, 0x2000, 0x1000], [PCI_BAR0_REGION, 0x1000, 0x1000], [PCI_CONFIG_REGION, 0, 0x1000]] as const) {
      expect(refused(() => vdsa.mmap(region * REGION_STRIDE + offset, size))).toBe('EINVAL');
    }
    expect(user.portal.read(0, 4)).toBe(0xffff_ffff);
  });

  it('refuse accesses outside of regions (EINVAL) and cut those that reach over an end', () => {
    const { world } = opened();
    const vdsa = world.vdsa(1);
    expect(refused(() => vdsa.read(PCI_CONFIG_REGION * REGION_STRIDE + 4096, new Uint8Array(4)))).toBe('EINVAL');
    expect(refused(() => vdsa.read(REGION_STRIDE, new Uint8Array(4)))).toBe('EINVAL');
    expect(refused(() => vdsa.write(9 * REGION_STRIDE, new Uint8Array(4)))).toBe('EINVAL');
    expect(vdsa.read(PCI_CONFIG_REGION * REGION_STRIDE + 4094, new Uint8Array(4))).toBe(2);
  });

  it.each<[string, Parameters<VdsaUser['device']['setIrqs']>[0], string]>([
    ['an index that it does not have', { index: 0, eventfds: [-1] }, 'EINVAL'],
    ['more vectors than it has', { index: PCI_MSIX_IRQ, eventfds: [-1, -1, -1] }, 'EINVAL'],
    ['a range that ends outside', { index: PCI_MSIX_IRQ, start: 1, eventfds: [-1, -1] }, 'EINVAL'],
    ['two notifications', { index: PCI_REQ_IRQ, eventfds: [-1, -1] }, 'EINVAL'],
  ])('refuse %s', (_name, request, code) => {
    const { world, user } = opened();
    expect(world.refusal(user.device.setIrqs(request)).code).toBe(code);
    expect(user.command(1)).toBe(0);
  });

  it('cannot be masked by SET_IRQS (ENOTTY or EINVAL)', () => {
    const { world, user } = opened();
    expect(['ENOTTY', 'EINVAL']).toContain(world.refusal(user.device.setIrqs({ index: PCI_MSIX_IRQ, action: 'mask', count: 1 })).code);
  });
});

describe('registers', () => {
  it('show one queue, one group, one engine, read-only', () => {
    const { user } = opened();
    const dump: Record<string, string> = {};
    for (const offset of [0x00, 0x10, 0x20, 0x30, 0x38, 0x40, 0x60, 0x90, 0xb0, 0x400, 0x420, 0x500, 0x508]) {
      dump[offset.toString(16)] = `${user.read(offset + 4).toString(16).padStart(8, '0')}_${user.read(offset).toString(16).padStart(8, '0')}`;
    }
    expect(dump).toEqual({
      '0': '00000000_00000100',
      // overlapping copy, commands, 2^21 bytes, 2^5 descriptors; neither block on fault nor configurable
      '10': '00000000_00b50012',
      // 16 entries, 1 queue, 64 bytes of configuration; dedicated, priority
      '20': '000a0000_01010010',
      '30': '00000000_00000001', '38': '00000000_00000001', '40': '00000000_0003027f', '60': '00000006_00050004', '90': '00000000_00000000',
      // commands 1 to 10, 13 and 14
      'b0': '00000000_000067fe',
      '400': '00000000_00000001', '420': '00000000_00000001',
      '500': '00000000_00000010', '508': '000000b5_000000a1',
    });
    for (const offset of [0x10, 0x20, 0x400, 0x420, 0x428, 0x500, 0x504, 0x50c]) {
      const before = user.read(offset);
      user.write(offset, ~before >>> 0);
      expect(user.read(offset)).toBe(before);
    }
  });

  it('show a shared queue with its threshold', () => {
    const { user } = opened(SHARED);
    expect([user.read(0x24) >>> 16 & 3, user.read(0x500), user.read(0x504), user.read(0x508)]).toEqual([1, 16, 12, 0x1000_00a0]);
  });

  it('remember the PASID fields of the queue while it is off, and only those', () => {
    const { user } = opened();
    user.write(0x508, 0xffff_ffff);
    expect(user.read(0x508)).toBe(0x3fff_ffa1);
    user.start();
    user.write(0x508, 0);
    expect(user.read(0x508)).toBe(0x3fff_ffa1);
    expect(user.read(0x518)).toBe(0x4000_0000);
  });

  it('are read in any size; smaller stores than a word are dropped, as on the real device', () => {
    const { user } = opened();
    expect([user.device.read(PCI_BAR0_REGION, 0x12, 1), user.device.read(PCI_BAR0_REGION, 0x20, 8)]).toEqual([Uint8Array.of(0xb5), Uint8Array.of(0x10, 0, 1, 1, 0, 0, 0x0a, 0)]);
    user.device.write(PCI_BAR0_REGION, 0x88, Uint8Array.of(3));
    expect(user.read(0x88)).toBe(0);
    user.device.write(PCI_BAR0_REGION, 0x88, Uint8Array.of(3, 0, 0, 0));
    expect(user.read(0x88)).toBe(3);
  });
});

describe('commands', () => {
  it.each<[string, number, (user: VdsaUser) => number]>([
    ['0x01 unknown command', 0x01, (u) => u.command(31)],
    ['0x01 draining a PASID, which is not offered', 0x01, (u) => u.command(11, 1)],
    ['0x10 the device is on already', 0x10, (u) => { u.command(1); return u.command(1); }],
    ['0x12 bus mastering off', 0x12, (u) => { u.configWrite(4, 2, 2); return u.command(1); }],
    ['0x20 a queue of a device that is off', 0x20, (u) => u.command(6, 0)],
    ['0x02 a queue that does not exist', 0x02, (u) => { u.command(1); return u.command(6, 1); }],
    ['0x02 a mask of queues that do not exist', 0x02, (u) => { u.start(); return u.command(8, 3); }],
    ['0x21 the queue is on already', 0x21, (u) => { u.start(); return u.command(6, 0); }],
    ['0x31 draining a device that is off', 0x31, (u) => u.command(3)],
    ['0x31 disabling a device that is off', 0x31, (u) => u.command(2)],
    ['0x32 draining a queue that is off', 0x32, (u) => { u.command(1); return u.command(8, 1); }],
    ['0x41 no handle for vector 0', 0x41, (u) => u.command(13, 0)],
    ['0x41 no handle for vector 2', 0x41, (u) => u.command(13, 2)],
    ['0x42 no handles of interrupt message storage', 0x42, (u) => u.command(13, 0x1_0001)],
    ['0x43 a handle that was not given', 0x43, (u) => u.command(14, 1)],
    ['0x43 a handle given back twice', 0x43, (u) => { const handle = u.start(); u.command(14, handle); return u.command(14, handle); }],
  ])('fail with %s', (_name, code, act) => {
    expect(act(opened().user)).toBe(code);
  });

  it('0x26: a queue without an aux domain has no PASID', () => {
    const world = new DsaMdevWorld();
    const parent = new IdxdMdevParent({ device: world.idxd.device(world.pci), vfio: { pasidOf: () => undefined }, scheduler: world.scheduler, log: world.log });
    const { ops } = world.run(parent.create({ uuid: uuid(1), name: uuid(1), type: parent.types[0]! }));
    world.run(ops.open());
    const word = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);
    ops.write(PCI_CONFIG_REGION * REGION_STRIDE + 4, word(6).subarray(0, 2));
    const statuses = [0x10_0000, 0x60_0000].map((command) => {
      ops.write(0xa0, word(command));
      world.settle();
      const status = new Uint8Array(4);
      ops.read(0xa8, status);
      return status[0];
    });
    expect(statuses).toEqual([0, 0x26]);
    expect(world.physicalPasid(0)).toEqual([0, 0]);
  });

  it('are active until the physical queue has done them; a second one meanwhile is a software error', () => {
    const { world, user } = opened();
    user.start();
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 });
    user.write(0xa0, 0x80_0001); // drain
    expect(user.read(0xa8)).toBe(0x8000_0000);
    world.clock.run({ untilNs: world.clock.now + 500 });
    expect(user.read(0xa8)).toBe(0x8000_0000);
    user.write(0xa0, 0x10_0000);
    world.settle();
    expect([user.read(0xa8), user.takeError()[0]! >>> 8 & 0xff]).toEqual([0, SWERR.CMD_REG]);
    expect(user.record().status).toBe(STATUS.SUCCESS);
  });

  it('abort drops what the queue has, disable lets it end', () => {
    const { world, user } = opened();
    user.start();
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 });
    expect(user.command(9, 1)).toBe(0);
    expect(world.reports.at(-1)!.status).toBe(0);
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 }, 1);
    expect(user.command(7, 1)).toBe(0);
    expect(user.record(1).status).toBe(STATUS.SUCCESS);
    expect([user.read(0x518), world.physicalPasid(0), world.dsa.core.queues[0]!.state]).toEqual([0, [0, 0], 0]);
    expect(user.command(6, 0)).toBe(0);
  });

  it('reset returns registers to their reset values and turns the queue off', () => {
    const { world, user } = opened();
    user.write(0x88, 3);
    user.start();
    expect(user.command(5)).toBe(0);
    expect([user.read(0x88), user.read(0x90), user.read(0x518), world.physicalPasid(0)]).toEqual([0, 0, 0, [0, 0]]);
    expect(user.start()).toBe(1);
  });
});

describe('interrupts', () => {
  it('tell of commands through vector 0 and of descriptors through vector 1', () => {
    const { user } = opened();
    user.write(0xa0, 0x8010_0000);
    user.world.settle();
    expect([user.misc.count, user.read(0x98)]).toEqual([1, 2]);
    user.write(0x98, 2);
    expect(user.read(0x98)).toBe(0);
    user.command(6, 0);
    const handle = user.command(13, 1) >>> 8;
    expect(user.submit({ opcode: OPCODE.NOOP, flags: FLAG.RCI, interruptHandle: handle }).status).toBe(STATUS.SUCCESS);
    expect([user.misc.count, user.completion.count]).toEqual([1, 1]);
  });

  it('need a handle that was asked for: others are invalid (0x19)', () => {
    const { user } = opened();
    user.command(1);
    user.command(6, 0);
    const use = (handle: number): number => user.submit({ opcode: OPCODE.NOOP, flags: FLAG.RCI, interruptHandle: handle }).status;
    expect([use(1), use(0), use(3)]).toEqual([STATUS.INT_HANDLE_INVAL, STATUS.INT_HANDLE_INVAL, STATUS.INT_HANDLE_INVAL]);
    user.command(13, 1);
    expect(use(1)).toBe(STATUS.SUCCESS);
    user.command(14, 1);
    expect(use(1)).toBe(STATUS.INT_HANDLE_INVAL);
    expect(user.completion.count).toBe(1);
  });

  it('are pending while an entry is masked, the function is, or nobody listens', () => {
    const { world, user } = opened();
    const handle = user.start();
    const complete = (): void => void user.submit({ opcode: OPCODE.NOOP, flags: FLAG.RCI, interruptHandle: handle });
    user.write(0x201c, 1);
    complete();
    expect([user.completion.count, user.read(0x3000)]).toEqual([0, 2]);
    user.write(0x201c, 0);
    expect([user.completion.count, user.read(0x3000)]).toEqual([1, 0]);
    user.configWrite(0x7e, 2, 0xc000);
    complete();
    expect(user.completion.count).toBe(1);
    user.configWrite(0x7e, 2, 0x8000);
    expect(user.completion.count).toBe(2);
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, start: 1, eventfds: [-1] }));
    complete();
    expect([user.completion.count, user.read(0x3000)]).toEqual([2, 2]);
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, start: 1, eventfds: [user.process.open(user.completion)] }));
    expect(user.completion.count).toBe(3);
  });

  it('can be triggered by the user itself, and torn down', () => {
    const { world, user } = opened();
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, bools: [false, true] }));
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, count: 2 }));
    expect([user.misc.count, user.completion.count]).toEqual([1, 2]);
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, count: 0 }));
    user.write(0xa0, 0x8010_0000);
    world.settle();
    expect([user.misc.count, user.read(0x3000)]).toEqual([1, 1]);
  });
});

describe('software errors', () => {
  it('of descriptors without a record come from the physical device, with the queue and the PASID that the user knows', () => {
    const { world, user } = opened();
    user.write(0x508, (0x1000_0000 | (77 << 8)) >>> 0);
    user.write(0x88, 1);
    user.start();
    user.portal.write64(0, encodeDescriptor({ opcode: 0x3f }));
    world.settle();
    const words = user.takeError();
    expect([words[0]! & 0xff0f, words[0]! >>> 16 & 0xff, words[1]! & 0xff, words[1]! >>> 8 & 0xf_ffff]).toEqual([(STATUS.BAD_OPCODE << 8) | 0xd, 0, 0x3f, 77]);
    expect([user.misc.count, user.read(0x98)]).toEqual([1, 1]);
    expect(user.takeError()[0]! & 3).toBe(0);
  });

  it('keep the first, and overflow', () => {
    const { world, user } = opened();
    user.start();
    for (const opcode of [0x3e, 0x3f]) {
      user.portal.write64(0, encodeDescriptor({ opcode }));
      world.settle();
    }
    const words = user.takeError();
    expect([words[0]! & 3, words[1]! & 0xff]).toEqual([3, 0x3e]);
  });
});

describe('a dedicated portal', () => {
  it('runs operations in the memory that was mapped for the device', () => {
    const { user } = opened();
    user.start();
    user.poke(0, Uint8Array.from({ length: 9_000 }, (_, i) => i & 0xff));
    expect(user.submit({ opcode: OPCODE.MEMMOVE, source: IOVA, destination: IOVA + 0x8000, size: 9_000 })).toMatchObject({ status: STATUS.SUCCESS, bytesCompleted: 9_000 });
    expect(Buffer.compare(user.peek(0x8000, 9_000), user.peek(0, 9_000))).toBe(0);
  });

  it('takes eight stores that fill a line, mapped or trapped; other pages swallow everything', () => {
    const { world, user } = opened();
    user.start();
    const fields = { opcode: OPCODE.NOOP, completion: IOVA + 0x3_f000 };
    const bytes = encodeDescriptor(fields);
    const view = new DataView(bytes.buffer);
    for (const page of [0, 2, 3]) for (let i = 0; i < 64; i += 8) user.device.write(PCI_BAR2_REGION, page * 0x1000 + i, bytes.slice(i, i + 8));
    world.settle();
    expect(world.reports).toHaveLength(0);
    for (let i = 0; i < 64; i += 8) user.portal.write(i, 8, view.getUint32(i, true), view.getUint32(i + 4, true));
    user.device.write(PCI_BAR2_REGION, 0x1000, bytes);
    world.settle();
    expect(world.reports.map(({ status, pasid }) => [status, pasid])).toEqual([[STATUS.SUCCESS, user.pasid], [STATUS.SUCCESS, user.pasid]]);
    expect(user.device.read(PCI_BAR2_REGION, 0x1000, 8)).toEqual(new Uint8Array(8).fill(0xff));
  });

  it('is refused by the queue while that is off, and the user is told', () => {
    const { world, user } = opened();
    user.portal.write64(0, encodeDescriptor({ opcode: OPCODE.NOOP }));
    world.settle();
    expect([world.reports.length, user.takeError()[0]! >>> 8 & 0xff]).toEqual([0, SWERR.WQ_NOT_ENABLED]);
  });
});

describe('a shared portal', () => {
  it('takes enqueues with the PASID of the aux domain', () => {
    const { user } = opened(SHARED);
    user.start();
    expect(user.submit({ opcode: OPCODE.MEMFILL, destination: IOVA, pattern: [7, 7], size: 64 }).status).toBe(STATUS.SUCCESS);
    expect(user.peek(0, 4)).toEqual(Uint8Array.of(7, 0, 0, 0));
  });

  it('lets no plain store through: the user sees an error, the hardware nothing', () => {
    const { world, user } = opened(SHARED);
    user.start();
    const bytes = encodeDescriptor({ opcode: OPCODE.NOOP, pasid: user.pasid });
    user.portal.write64(0, bytes);
    user.portal.write(0, 8, 0, 0);
    user.device.write(PCI_BAR2_REGION, 0x1000, bytes);
    world.settle();
    expect(user.takeError()[0]! >>> 8 & 0xff).toBe(SWERR.POSTED_TO_SHARED);
    expect([world.reports.length, world.idxd.device(world.pci).errors.length, world.vdsa(1).refused]).toEqual([0, 0, 10]);
  });

  it('refuses and records any other PASID', () => {
    const { world, user } = opened(SHARED);
    user.start();
    for (const pasid of [0, user.pasid + 1, 0xf_ffff]) expect(user.put({ opcode: OPCODE.NOOP, pasid })).toBe('retry');
    world.settle();
    expect([world.reports.length, world.vdsa(1).refused]).toEqual([0, 3]);
  });

  it('takes nothing more once it is being turned off: disabling waits for everything that was taken', () => {
    const { world, user } = opened(SHARED);
    user.start();
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 });
    user.write(0xa0, 0x70_0001);
    world.clock.run({ untilNs: world.clock.now + 300 });
    expect(user.put({ opcode: OPCODE.NOOP }, 1)).toBe('retry');
    while ((user.read(0xa8) & 0x8000_0000) !== 0) world.clock.run({ untilNs: world.clock.now + 100 });
    expect([user.record().status, world.dsa.core.outstanding]).toEqual([STATUS.SUCCESS, 0]);
  });

  it('takes nothing while the virtual queue is off', () => {
    const { user } = opened(SHARED);
    expect(user.put({ opcode: OPCODE.NOOP })).toBe('retry');
    user.start();
    user.command(7, 1);
    expect(user.put({ opcode: OPCODE.NOOP })).toBe('retry');
  });
});

describe('resets', () => {
  it('by the user (VFIO_DEVICE_RESET) drop descriptors, turn the queue off and keep configuration space', () => {
    const { world, user } = opened();
    user.start();
    user.configWrite(0x10, 4, 0x8000_0000);
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 });
    world.run(user.device.reset());
    world.settle();
    expect([world.reports.at(-1)!.status, user.record().status]).toEqual([0, 0]);
    expect([user.read(0x90), user.read(0x508), user.config(4, 2), user.config(0x10, 4), world.physicalPasid(0)]).toEqual([0, 0xa1, 6, 0x8000_000c, [0, 0]]);
    user.start();
    expect(user.submit({ opcode: OPCODE.NOOP }).status).toBe(STATUS.SUCCESS);
  });

  it('overtake a command: it reports nothing afterwards', () => {
    const { world, user } = opened();
    user.start();
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 });
    user.write(0xa0, 0x8080_0001);
    world.clock.run({ untilNs: world.clock.now + 100 });
    world.run(user.device.reset());
    world.settle();
    expect([user.read(0xa8), user.read(0x98), user.misc.count]).toEqual([0, 0, 0]);
  });

  it('of the function by its configuration space return that to its reset values too', () => {
    const { world, user } = opened();
    user.start();
    user.configWrite(0x10, 4, 0x8000_0000);
    user.configWrite(0x40 + 8, 2, 0x8000);
    world.settle();
    expect([user.config(4, 2), user.config(0x10, 4), user.read(0x90), world.physicalPasid(0)]).toEqual([0, 0xc, 0, [0, 0]]);
  });

  it('are what helps once bus mastering went off while the device was on', () => {
    const { world, user } = opened();
    user.write(0x88, 3);
    user.start();
    user.put({ opcode: OPCODE.MEMFILL, destination: IOVA, size: 0x3_0000 });
    user.configWrite(4, 2, 2);
    world.settle();
    expect([user.read(0x90), user.takeError()[0]! >>> 8 & 0xff, world.physicalPasid(0), user.misc.count > 0]).toEqual([7, SWERR.PCI_CFG, [0, 0], true]);
    user.put({ opcode: OPCODE.NOOP }, 1);
    const before = user.read(0xa8);
    expect([user.command(1), user.read(0x90) & 3, user.record(1).status]).toEqual([before, 3, 0]);
    user.configWrite(0x40 + 8, 2, 0x8000);
    world.settle();
    user.configWrite(4, 2, 6);
    user.start();
    expect(user.submit({ opcode: OPCODE.NOOP }).status).toBe(STATUS.SUCCESS);
  });
});

describe('the vectors of the accelerator', () => {
  it('leave the default layout of BAR 0 alone, and move tables that would not fit', () => {
    expect(msixPlace({ wqs: 8, groups: 4 })).toEqual({ tableOffset: 0x2000, pbaOffset: 0x3000, barBytes: 0x1_0000 });
    expect(msixPlace({ wqs: 8, groups: 4, vectors: 256 })).toEqual({ tableOffset: 0x2000, pbaOffset: 0x3000, barBytes: 0x1_0000 });
    for (const [wqs, vectors] of [[8, 257], [8, 2048], [128, 2048], [112, 113]] as const) {
      const { tableOffset, pbaOffset, barBytes } = msixPlace({ wqs, groups: 4, vectors });
      const permEnd = 0x500 + Math.ceil((wqs * 64) / 256) * 256 + vectors * 8;
      expect([permEnd <= tableOffset, tableOffset + vectors * 16 <= pbaOffset, pbaOffset + vectors / 8 <= barBytes, Number.isInteger(Math.log2(barBytes))]).toEqual([true, true, true, true]);
    }
  });

  it('serve a thousand mediated devices on one shared queue', () => {
    const world = new DsaMdevWorld({ dsa: { mdevVectors: 1000 } });
    expect(world.instances(SHARED)).toBe(1 + 3 + 1000);
    world.create(1, SHARED);
    expect(world.instances(SHARED)).toBe(1003);
    const user = world.open(1);
    const handle = user.start();
    expect(user.submit({ opcode: OPCODE.NOOP, flags: FLAG.RCI, interruptHandle: handle }).status).toBe(STATUS.SUCCESS);
    expect(user.completion.count).toBe(1);
  });
});
