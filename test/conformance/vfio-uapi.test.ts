/** Records of VFIO's user interface as bytes, against words computed by hand from include/uapi/linux/vfio.h (E27). */
import { describe, expect, it } from 'vitest';
import type { Struct } from '../../sim/layout.js';
import { capability, chainOf, walkChain } from '../../vfio/uapi/capability-chain.js';
import { bytesOf, concatWords, wordsOfBytes } from '../../vfio/uapi/fields.js';
import * as uapi from '../../vfio/uapi/index.js';
import { checkFlags, copyFromUser, copyToUser, recordFromUser, stringFromUser } from '../../vfio/uapi/user-memory.js';
import { VfioWorld } from '../fixtures/vfio-world.js';

const hexOf = (words: ArrayLike<number>): string[] => Array.from(words, (word) => (word >>> 0).toString(16));

describe('numbers', () => {
  it('are _IO(0x3b, 100 + n) without direction and size', () => {
    expect(hexOf([uapi.VFIO_GET_API_VERSION, uapi.VFIO_SET_IOMMU, uapi.VFIO_GROUP_GET_DEVICE_FD, uapi.VFIO_DEVICE_SET_IRQS])).toEqual(['3b64', '3b66', '3b6a', '3b6e']);
    expect(hexOf([uapi.VFIO_IOMMU_MAP_DMA, uapi.VFIO_IOMMU_UNMAP_DMA, uapi.VFIO_IOMMU_BIND, uapi.VFIO_IOMMU_UNBIND])).toEqual(['3b71', '3b72', '3b7a', '3b7b']);
  });

  it('mean different things to containers and devices', () => {
    expect(uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO).toBe(uapi.VFIO_IOMMU_GET_INFO);
    expect(uapi.VFIO_DEVICE_PCI_HOT_RESET).toBe(uapi.VFIO_IOMMU_MAP_DMA);
    expect(uapi.VFIO_DEVICE_FEATURE).toBe(uapi.VFIO_IOMMU_DIRTY_PAGES);
  });
});

describe('records', () => {
  /** What the C compiler gives for the structures of the header. */
  const SIZES: [Struct, number][] = [
    [uapi.GROUP_STATUS, 8], [uapi.DEVICE_INFO, 24], [uapi.REGION_INFO, 32], [uapi.IRQ_INFO, 16], [uapi.IRQ_SET, 20], [uapi.DEVICE_FEATURE, 8],
    [uapi.PCI_HOT_RESET_INFO, 12], [uapi.PCI_DEPENDENT_DEVICE, 8], [uapi.PCI_HOT_RESET, 12], [uapi.FEATURE_MIGRATION, 8], [uapi.FEATURE_MIG_STATE, 8],
    [uapi.FEATURE_DMA_LOGGING_CONTROL, 24], [uapi.FEATURE_DMA_LOGGING_RANGE, 16], [uapi.FEATURE_DMA_LOGGING_REPORT, 32], [uapi.PRECOPY_INFO, 24],
    [uapi.IOMMU_TYPE1_INFO, 24], [uapi.DMA_MAP, 32], [uapi.DMA_UNMAP, 24], [uapi.BITMAP, 24], [uapi.DIRTY_BITMAP, 8], [uapi.DIRTY_BITMAP_GET, 40],
    [uapi.TYPE1_BIND, 8], [uapi.TYPE1_BIND_PROCESS, 12],
  ];

  it('have the sizes of the C structures', () => {
    expect(SIZES.map(([layout]) => [layout.name, layout.sizeBytes])).toEqual(SIZES.map(([layout, bytes]) => [layout.name, bytes]));
  });

  it('lay MAP_DMA out as flags, vaddr, iova, size', () => {
    const words = uapi.DMA_MAP.encode({ argsz: 32, flags: 3, vaddr: 0x7fff_1234_5000, iova: 0xffff_8000_0000_1000n, size: 0x2_0000_0000 });
    expect(hexOf(words)).toEqual(['20', '3', '12345000', '7fff', '1000', 'ffff8000', '0', '2']);
    expect([...bytesOf(words).subarray(8, 16)]).toEqual([0x00, 0x50, 0x34, 0x12, 0xff, 0x7f, 0, 0]);
    expect(wordsOfBytes(bytesOf(words))).toEqual(words);
  });

  it('keep 64 bits of an address', () => {
    const words = uapi.DMA_UNMAP.encode({ argsz: 24, iova: 0xffff_ffff_ffff_f000n, size: 0xffff_ffff_ffff_ffffn });
    expect(hexOf(words)).toEqual(['18', '0', 'fffff000', 'ffffffff', 'ffffffff', 'ffffffff']);
    expect(uapi.DMA_UNMAP.f.size.getBig(words)).toBe(2n ** 64n - 1n);
    expect(uapi.DMA_UNMAP.f.iova.get(words)).toBe(2 ** 64 - 4096);
  });

  it('put group, segment, bus and devfn of a dependent device into two words', () => {
    expect(hexOf(uapi.PCI_DEPENDENT_DEVICE.encode({ group_id: 5, segment: 0x1234, bus: 0x6a, devfn: 0x08 }))).toEqual(['5', '86a1234']);
  });

  it('lay BIND out as argsz, mode, flags, pasid, pid (V1)', () => {
    const words = concatWords(
      uapi.TYPE1_BIND.encode({ argsz: 20, flags: uapi.VFIO_IOMMU_BIND_PROCESS }), uapi.TYPE1_BIND_PROCESS.encode({ flags: uapi.VFIO_IOMMU_BIND_PID, pid: -1 >>> 0 }));
    expect(hexOf(words)).toEqual(['14', '1', '1', '0', 'ffffffff']);
  });

  it('lay the interrupt header, a feature header and a state of migration out', () => {
    expect(hexOf(uapi.IRQ_SET.encode({ argsz: 24, flags: 0x24, index: 2, start: 1, count: 1 }))).toEqual(['18', '24', '2', '1', '1']);
    expect(hexOf(uapi.DEVICE_FEATURE.encode({ argsz: 16, flags: uapi.VFIO_DEVICE_FEATURE_SET | uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE }))).toEqual(['10', '20002']);
    expect(hexOf(uapi.FEATURE_MIG_STATE.encode({ device_state: uapi.VFIO_DEVICE_STATE_RESUMING, data_fd: 0xffff_ffff }))).toEqual(['4', 'ffffffff']);
  });
});

describe('capability chains', () => {
  it('name the next capability by its offset from the start of the record, aligned to 8 bytes', () => {
    const chain = chainOf([capability(2, [7]), capability(3, []), capability(1, [8, 9])], 24);
    // id 2 of 12 bytes padded to 16, id 3 of 8, id 1 of 16
    expect(hexOf(chain)).toEqual(['10002', '28', '7', '0', '10003', '30', '10001', '0', '8', '9']);
  });

  it('are found again, with where their bodies start', () => {
    const record = concatWords(new Uint32Array(6), chainOf([capability(2, [7]), capability(3, [])], 24));
    expect(walkChain(record, 24)).toEqual([{ id: 2, version: 1, at: 8 }, { id: 3, version: 1, at: 12 }]);
    expect(walkChain(record, 0)).toEqual([]);
  });

  it('do not lead out of the record or round in circles', () => {
    expect(() => walkChain(new Uint32Array([1, 0]), 8)).toThrow('capability at byte 8');
    expect(() => walkChain(new Uint32Array([1, 0, 1, 8]), 8)).toThrow('capability at byte 8');
  });
});

describe('user memory', () => {
  function memory() {
    const world = new VfioWorld();
    const process = world.user();
    const page = world.malloc(process.mm, 1) * 4096;
    return { world, process, page };
  }

  it('refuses with EFAULT what the process could not reach itself (E27)', () => {
    const { world, process, page } = memory();
    const readOnly = world.malloc(process.mm, 1, 1) * 4096;
    expect(world.refused(copyFromUser(process, 0, 4))).toBe('EFAULT');
    expect(world.refused(copyFromUser(process, 0xffff_8000_0000_0000, 4))).toBe('EFAULT');
    expect(world.refused(copyFromUser(process, page + 4094, 4))).toBe('EFAULT');
    expect(world.refused(copyToUser(process, readOnly, new Uint8Array(4)))).toBe('EFAULT');
    expect(world.refusal(copyToUser(process, 16, new Uint8Array(4))).message).toContain('cannot write 4 bytes at 0x10 of vmm');
    world.run(process.exit());
    expect(world.refused(copyFromUser(process, page, 4))).toBe('EFAULT');
  });

  it('reads no more of a record than the call needs, and refuses a smaller argsz with EINVAL (E27)', () => {
    const { world, process, page } = memory();
    const at = page + 4096 - 16;
    world.run(process.mm.write(at, bytesOf(uapi.DEVICE_INFO.encode({ argsz: 16, flags: 5 }).subarray(0, 4))));
    const record = world.run(recordFromUser(process, at, uapi.DEVICE_INFO, 16));
    expect(hexOf(record)).toEqual(['10', '5', '0', '0', '0', '0']);
    expect(world.refused(recordFromUser(process, at, uapi.DEVICE_INFO))).toBe('EFAULT');
    world.run(process.mm.write(at, Uint8Array.of(15)));
    expect(world.refusal(recordFromUser(process, at, uapi.DEVICE_INFO, 16)).message).toBe('-EINVAL: argsz 15 of vfio_device_info is below 16');
  });

  it('refuses flags that nobody knows, the highest included', () => {
    expect(() => checkFlags('x', 0x8000_0001, 1)).toThrow('-EINVAL: flags 0x80000001 of x: 0x80000000 means nothing');
    checkFlags('x', 3, 7);
  });

  it('takes a string up to its end, wherever the page ends', () => {
    const { world, process, page: highest } = memory();
    const page = world.malloc(process.mm, 2) * 4096;
    world.run(process.mm.write(page + 4090, new TextEncoder().encode('0000:00:01.0\0')));
    expect(world.run(stringFromUser(process, page + 4090))).toBe('0000:00:01.0');
    world.run(process.mm.write(page + 8190, new TextEncoder().encode('a\0')));
    expect(world.run(stringFromUser(process, page + 8190))).toBe('a');
    world.run(process.mm.fill(page, 0x41, 8192));
    expect(world.refused(stringFromUser(process, page))).toBe('EINVAL');
    world.run(process.mm.fill(highest, 0x41, 4096));
    expect(world.refused(stringFromUser(process, highest + 4090))).toBe('EFAULT');
  });
});
