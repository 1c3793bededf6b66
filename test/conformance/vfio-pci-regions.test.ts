/** BARs in the hands of a user (drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core.c): the kernel's reads and writes, and windows for the user's CPU. */
import { beforeEach, describe, expect, it } from 'vitest';
import { PlainMmio, type AccessSize } from '../../sim/mmio.js';
import { EDU_ID, EDU_REG } from '../../devices/edu/spec/registers.js';
import { REGION_INFO_MMAP, REGION_INFO_READ, REGION_INFO_WRITE, REGION_STRIDE } from '../../vfio/device.js';
import { ConfigPokes, VfioPciWorld, type DeviceUser } from '../fixtures/vfio-pci-world.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';

const RW = REGION_INFO_READ | REGION_INFO_WRITE, COMMAND = 0x04, EXP_CONTROL = 8;

/** Registers that log how they are reached and hold bytes. */
class Registers extends PlainMmio {
  readonly bytes = new Uint8Array(0x4000);
  readonly story: string[] = [];
  private readonly view = new DataView(this.bytes.buffer);

  read(offset: number, size: AccessSize): number {
    this.story.push(`read ${offset} ${size}`);
    this.high = size === 8 ? this.view.getUint32(offset + 4, true) : 0;
    return size >= 4 ? this.view.getUint32(offset, true) : size === 2 ? this.view.getUint16(offset, true) : this.bytes[offset]!;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    this.story.push(`write ${offset} ${size}`);
    const all = [lo, hi];
    for (let i = 0; i < size; i++) this.bytes[offset + i] = all[i >> 2]! >>> (8 * (i & 3));
  }

  override write64(offset: number, bytes: Uint8Array): void {
    this.story.push(`write64 ${offset}`);
    this.bytes.set(bytes, offset);
  }

  override enqueue64(offset: number): 'accepted' {
    this.story.push(`enqueue ${offset}`);
    return 'accepted';
  }
}

describe('regions', () => {
  let world: VfioPciWorld, hardware: PciFunction, registers: Registers, user: DeviceUser;

  beforeEach(() => {
    world = new VfioPciWorld();
    registers = new Registers();
    // the table of 8 entries stands in the middle of the BAR
    hardware = world.plug(world.root, 0x08, {
      msix: { vectors: 8, tableBar: 0, tableOffset: 0x1000, pbaOffset: 0x3000 },
      bars: [{ index: 0, sizeBytes: 0x4000, is64: false, prefetchable: false, mmio: registers }, { index: 2, sizeBytes: 0x1000, is64: true, prefetchable: true }],
    });
    world.boot();
    world.bind('0000:00:01.0');
    user = world.open('0000:00:01.0');
  });

  const config = (): ConfigPokes => new ConfigPokes(user.device.file);
  const memory = (on: boolean): void => config().poke(COMMAND, 2, on ? 2 : 0);

  it('tells sizes and what may be done; the BAR of the MSI-X table may be mapped as a whole (MSIX_MAPPABLE)', () => {
    const region = (index: number) => world.run(user.device.region(index));
    expect(region(0)).toMatchObject({ flags: RW | REGION_INFO_MMAP | 8, sizeBytes: 0x4000, msixMappable: true, offset: 0 });
    expect(region(2)).toEqual({ flags: RW | REGION_INFO_MMAP, sizeBytes: 0x1000, offset: 2 * REGION_STRIDE });
    expect([region(1).sizeBytes, region(1).flags, region(3).sizeBytes, region(6).sizeBytes, region(6).flags]).toEqual([0, 0, 0, 0, 0]);
    expect(region(7)).toEqual({ flags: RW, sizeBytes: 4096, offset: 7 * REGION_STRIDE });
    for (const index of [8, 9, 100]) expect(world.refused(user.device.region(index))).toBe('EINVAL');
    expect(world.run(user.device.info())).toEqual({ flags: 3, regions: 9, irqs: 5 });
  });

  it('reads and writes by the largest aligned accesses', () => {
    const { device } = user;
    expect(device.write(0, 1, Uint8Array.from({ length: 16 }, (_, i) => i + 1))).toBe(16);
    expect(registers.story).toEqual(['write 1 1', 'write 2 2', 'write 4 4', 'write 8 8', 'write 16 1']);
    expect([...device.read(0, 1, 16)]).toEqual(Array.from({ length: 16 }, (_, i) => i + 1));
    expect(device.readValue(0, 8, 4)).toBe(0x0b0a_0908);
    device.writeValue(0, 0x20, 2, 0xbeef);
    expect([device.readValue(0, 0x20, 1), device.readValue(0, 0x21, 1)]).toEqual([0xef, 0xbe]);
  });

  it('shortens what goes beyond the BAR and refuses what begins there, and regions that are not', () => {
    const { device } = user;
    expect([device.read(0, 0x3ffe, 8).length, device.write(0, 0x3ffc, new Uint8Array(8))]).toEqual([2, 4]);
    for (const [region, offset] of [[0, 0x4000], [1, 0], [6, 0], [8, 0], [9, 0]] as const) {
      expect(world.refused(() => device.read(region, offset, 4))).toBe('EINVAL');
      expect(world.refused(() => device.write(region, offset, new Uint8Array(4)))).toBe('EINVAL');
    }
    expect(device.read(0, 0, 0).length).toBe(0);
  });

  it('keeps the MSI-X table from reads and writes of the kernel', () => {
    const { device } = user;
    const before = hardware.window(0)!.read(0x1000, 4);
    device.write(0, 0xffc, Uint8Array.from({ length: 0x90 }, () => 0x5a));
    expect(hardware.window(0)!.read(0x1000, 4)).toBe(before);
    expect(registers.story).toEqual(['write 4092 4', 'write 4224 8', 'write 4232 4']);
    expect([device.readValue(0, 0x1000, 4), device.readValue(0, 0x107c, 4), device.readValue(0, 0x1080, 4)]).toEqual([0xffff_ffff, 0xffff_ffff, 0x5a5a_5a5a]);
  });

  it('refuses with -EIO while memory space is disabled, and lets again', () => {
    memory(false);
    expect(world.refused(() => user.device.read(0, 0, 4))).toBe('EIO');
    expect(world.refused(() => user.device.write(0, 0, new Uint8Array(4)))).toBe('EIO');
    expect(registers.story).toEqual([]);
    memory(true);
    expect(user.device.read(0, 0, 4).length).toBe(4);
  });

  it('maps whole pages of a BAR: loads, stores, 64-byte stores and enqueues reach the hardware', () => {
    const window = user.device.mmap(0, 0x2000, 0x1000);
    window.write(0, 8, 0x1122_3344, 0x5566_7788);
    expect([window.read(0, 8), window.high, window.read(3, 1)]).toEqual([0x1122_3344, 0x5566_7788, 0x11]);
    window.write64(0x40, new Uint8Array(64).fill(7));
    expect([window.enqueue64(0x80, new Uint8Array(64)), registers.bytes[0x2040]]).toEqual(['accepted', 7]);
    expect([window.read(0x1000, 4), window.enqueue64(0x1000, new Uint8Array(64))]).toEqual([0xffff_ffff, 'retry']);
  });

  it('lets the user map the MSI-X table with the rest', () => {
    const window = user.device.mmap(0, 0, 0x4000);
    window.write(0x1000, 4, 0xfee0_0000);
    expect(hardware.window(0)!.read(0x1000, 4)).toBe(0xfee0_0000);
  });

  it('refuses to map parts of pages, beyond the BAR, and what is no BAR', () => {
    for (const [region, offset, size] of [[0, 0x800, 0x1000], [0, 0, 0x800], [0, 0, 0], [0, 0x3000, 0x2000], [1, 0, 0x1000], [6, 0, 0x1000], [7, 0, 0x1000], [9, 0, 0x1000]] as const) {
      expect(world.refused(() => user.device.mmap(region, offset, size))).toBe('EINVAL');
    }
  });

  it('takes windows away while memory space is disabled, during a reset, and for good at the close', () => {
    const window = user.device.mmap(0, 0, 0x1000);
    const alive = (): boolean => {
      window.write(0, 4, 0x77);
      return window.read(0, 4) === 0x77;
    };
    expect(alive()).toBe(true);
    memory(false);
    expect(alive()).toBe(false);
    memory(true);
    expect(alive()).toBe(true);
    const express = world.fn('0000:00:01.0').findCapability(0x10)!;
    config().poke(express + EXP_CONTROL, 2, 0x8000);
    expect([alive(), window.read(0, 8), window.high]).toEqual([false, 0xffff_ffff, 0xffff_ffff]);
    expect(world.refused(() => user.device.read(0, 0, 4))).toBe('EIO');
    world.settle();
    expect(alive()).toBe(true);
    world.run(user.device.close());
    expect(alive()).toBe(false);
    const again = world.run(user.group.getDevice('0000:00:01.0'));
    expect([again.readValue(0, 0, 4), alive()]).toEqual([0x77, false]);
  });

  it('gives all ones for a function that was pulled out, and loses what is written', () => {
    const window = user.device.mmap(0, 0, 0x1000);
    world.complex.remove(hardware, { surprise: true });
    registers.story.length = 0;
    window.write(0, 4, 1);
    expect([window.read(0, 4), user.device.readValue(0, 0, 4), config().peek(0, 4), config().peek(0x10, 4)]).toEqual([0xffff_ffff, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]);
    expect(registers.story).toEqual([]);
  });
});

describe('a device behind it', () => {
  it('answers a driver in user space as it answers the kernel (edu)', () => {
    const world = new VfioPciWorld();
    world.plugEdu(world.rootPort(0x10).secondary, 0);
    world.boot();
    world.bind('0000:01:00.0');
    const { device } = world.open('0000:01:00.0');
    const registers = device.mmap(0, 0, 0x1000);
    expect([registers.read(EDU_REG.ID, 4), device.readValue(0, EDU_REG.ID, 4)]).toEqual([EDU_ID, EDU_ID]);
    registers.write(EDU_REG.LIVENESS, 4, 0x1234_5678);
    expect(device.readValue(0, EDU_REG.LIVENESS, 4)).toBe(0xedcb_a987);
  });
});
