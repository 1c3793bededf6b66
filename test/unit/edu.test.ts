/** QEMU's educational device (docs/specs/edu.rst), first as a bus sees it, then under its driver. */
import { beforeEach, describe, expect, it } from 'vitest';
import type { Mmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { HoldingPort } from '../../host/pci/hardware/holding-port.js';
import { EduDriver } from '../../devices/edu/driver/edu-driver.js';
import { EduDevice } from '../../devices/edu/hardware/edu-device.js';
import { DsaWorld } from '../fixtures/dsa-world.js';
import { SvaWorld } from '../fixtures/sva-world.js';

class EduWorld extends DsaWorld {
  readonly edu: EduDevice;

  constructor(config: ConstructorParameters<typeof EduDevice>[0]['config'] = {}, defects: readonly string[] = [], holdSeed?: number) {
    super();
    this.edu = new EduDevice({
      name: 'edu0', clock: this.clock, scheduler: this.scheduler, timing: this.fabric.timing, trace: this.trace, config, defects: new Set(defects),
      ...(holdSeed === undefined ? {} : { wrapPort: (port) => new HoldingPort({ port, clock: this.clock, random: new Random(holdSeed), probability: 0.7, maxHoldNs: 2_000 }) }),
    });
    this.complex.insert(this.complex.rootBuses[0]!, 0x10, this.edu.function);
    this.complex.configWrite(0, 0x10, 4, 2, 6);
    const msi = this.edu.function.msi!.offset;
    this.complex.configWrite(0, 0x10, msi + 4, 4, 0xfee0_0000);
    this.complex.configWrite(0, 0x10, msi + 0xc, 2, 0x99);
    this.complex.configWrite(0, 0x10, msi + 2, 2, 1);
  }

  get mmio(): Mmio {
    return this.edu.function.window(0)!;
  }
}

describe('the educational device', () => {
  let world: EduWorld;
  let mmio: Mmio;

  beforeEach(() => {
    world = new EduWorld();
    mmio = world.mmio;
  });

  it('identifies itself', () => {
    expect(world.complex.configRead(0, 0x10, 0, 4)).toBe(0x11e8_1234);
    expect(world.complex.configRead(0, 0x10, 8, 4)).toBe(0x00ff_0010);
    expect(mmio.read(0, 4)).toBe(0x0100_00ed);
  });

  it('inverts the liveness register', () => {
    mmio.write(4, 4, 0x1234_5678);
    expect(mmio.read(4, 4)).toBe(0xedcb_a987);
  });

  it('takes 4 bytes below 0x80, 4 or 8 above, and reads as ones otherwise', () => {
    expect([mmio.read(0, 8), mmio.read(0, 2), mmio.read(0, 1), mmio.read(0x10, 4), mmio.read(0x60, 4), mmio.read(0x1000, 4)]).toEqual([0xffff_ffff, 0xffff, 0xff, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]);
    mmio.write(4, 1, 0);
    mmio.write(0, 4, 0);
    expect([mmio.read(4, 4), mmio.read(0, 4), mmio.read(0x80, 8), mmio.read(0x80, 4)]).toEqual([0, 0x0100_00ed, 0, 0]);
  });

  it.each([[0, 1], [1, 1], [5, 120], [12, 479_001_600], [13, 1_932_053_504], [34, 0], [0xffff_ffff, 0]])('computes %i! modulo 2^32', (n, expected) => {
    mmio.write(8, 4, n);
    expect(mmio.read(0x20, 4) & 1).toBe(1);
    mmio.write(8, 4, 7); // ignored while computing
    world.settle();
    expect([mmio.read(8, 4), mmio.read(0x20, 4)]).toEqual([expected, 0]);
    expect(world.messages).toEqual([]);
  });

  it('interrupts behind a factorial when asked to, until acknowledged', () => {
    mmio.write(0x20, 4, 0xff);
    expect(mmio.read(0x20, 4)).toBe(0x80);
    mmio.write(8, 4, 5);
    world.settle();
    expect([world.messages, mmio.read(0x24, 4)]).toEqual([[{ address: 0xfee0_0000, data: 0x99 }], 1]);
    mmio.write(0x64, 4, 1);
    expect(mmio.read(0x24, 4)).toBe(0);
  });

  it('raises any interrupt bits that software writes', () => {
    mmio.write(0x60, 4, 0x50);
    mmio.write(0x60, 4, 0x05);
    mmio.write(0x64, 4, 0x10);
    world.settle();
    expect([mmio.read(0x24, 4), world.messages.length]).toEqual([0x45, 2]);
  });

  it('has one MSI vector with 64-bit address and without mask, and pin A, as QEMU\'s', () => {
    const msi = world.edu.function.msi!.offset;
    expect([world.complex.configRead(0, 0x10, msi, 1), world.complex.configRead(0, 0x10, msi + 2, 2), world.complex.configRead(0, 0x10, 0x3d, 1)]).toEqual([0x05, 0x0081, 1]);
    expect(world.edu.function.msix).toBeUndefined();
  });

  it('holds its pin while MSI is off and interrupt status is not empty', () => {
    const pending = (): number => world.complex.configRead(0, 0x10, 6, 2) & 8;
    mmio.write(0x60, 4, 1);
    expect(pending()).toBe(0);
    mmio.write(0x64, 4, 1);
    world.complex.configWrite(0, 0x10, world.edu.function.msi!.offset + 2, 2, 0);
    mmio.write(0x60, 4, 0x5);
    mmio.write(0x64, 4, 0x1);
    expect([pending(), world.messages.length]).toEqual([8, 1]);
    mmio.write(0x64, 4, 0x4);
    expect(pending()).toBe(0);
    world.settle();
    expect(world.messages).toHaveLength(1);
  });

  function dma(source: number, target: number, count: number, command: number): void {
    mmio.write(0x80, 8, source % 2 ** 32, Math.floor(source / 2 ** 32));
    mmio.write(0x88, 8, target % 2 ** 32, Math.floor(target / 2 ** 32));
    mmio.write(0x90, 8, count, 0);
    mmio.write(0x98, 8, command, 0);
  }

  it('moves bytes to its buffer and back', () => {
    const data = Uint8Array.from({ length: 100 }, (_, i) => i + 1);
    world.ram.write(0x10_0ffe, data, 0, 100);
    dma(0x10_0ffe, 0x4_0000, 100, 1);
    expect(mmio.read(0x98, 4) & 1).toBe(1);
    mmio.write(0x90, 8, 1, 0); // belongs to the transfer in progress
    world.settle();
    expect([mmio.read(0x98, 4) & 1, mmio.read(0x90, 4), world.messages.length]).toEqual([0, 100, 0]);
    dma(0x4_0000, 0x20_0000, 100, 3 | 4);
    world.settle();
    expect(world.bytes(0x20_0000, 100)).toEqual(data);
    expect([mmio.read(0x24, 4), world.messages.length]).toEqual([0x100, 1]);
  });

  it('moves nothing outside its buffer', () => {
    for (const [target, count] of [[0x4_0001, 4096], [0x3_ffff, 1], [0x4_1000, 1], [0, 16]] as const) {
      dma(0x10_0000, target, count, 1);
      world.settle();
    }
    expect(world.edu.core.rangeErrors).toBe(4);
  });

  it('drives 28 address bits', () => {
    world.ram.store(0x1234, 1, 0x77);
    dma(0x5000_1234, 0x4_0000, 1, 1);
    world.settle();
    dma(0x4_0000, 0x3000, 1, 3);
    world.settle();
    expect(world.ram.load(0x3000, 1)).toBe(0x77);
    const wide = new EduWorld({}, ['edu.ignore-dma-mask']);
    wide.mmio.write(0x80, 8, 0x5000_1234, 0);
    wide.mmio.write(0x88, 8, 0x4_0000, 0);
    wide.mmio.write(0x90, 8, 1, 0);
    wide.mmio.write(0x98, 8, 1, 0);
    wide.settle();
    expect(wide.edu.core.dmaErrors).toBe(1);
  });

  it('forgets work in progress on a function level reset', () => {
    mmio.write(8, 4, 5);
    dma(0x10_0000, 0x4_0000, 100, 5);
    world.edu.function.reset('flr');
    world.settle();
    world.complex.configWrite(0, 0x10, 4, 2, 6);
    expect([mmio.read(8, 4), mmio.read(0x98, 4), mmio.read(0x24, 4), world.messages.length]).toEqual([0, 0, 0, 0]);
  });
});

describe('behind a port that holds at random', () => {
  it('moves the same bytes', () => {
    for (let seed = 1; seed <= 10; seed++) {
      const world = new EduWorld({}, [], seed);
      const data = Uint8Array.from({ length: 4096 }, (_, i) => (i * seed) & 0xff);
      world.ram.write(0x10_0123, data, 0, 4096);
      for (const [source, target, command] of [[0x10_0123, 0x4_0000, 1], [0x4_0000, 0x20_0456, 3]] as const) {
        world.mmio.write(0x80, 8, source, 0);
        world.mmio.write(0x88, 8, target, 0);
        world.mmio.write(0x90, 8, 4096, 0);
        world.mmio.write(0x98, 8, command, 0);
        world.settle();
      }
      expect(Buffer.compare(world.bytes(0x20_0456, 4096), data)).toBe(0);
    }
  });
});

describe('its driver', () => {
  it('checks the device, computes and copies through the DMA API', () => {
    const world = new SvaWorld({ idxd: { wqs: [] } });
    world.run(world.loadDrivers());
    const edu = world.eduDriver.instance(world.eduPci)!;
    expect(world.run(edu.factorial(10))).toBe(3_628_800);
    const source = world.frames.alloc('test', 0), target = world.frames.alloc('test', 0);
    world.ram.fill(source, 0x5a, 4096);
    world.run(edu.roundTrip(target + 96, source, 4000));
    expect([world.ram.load(target + 95, 1), world.ram.load(target + 96, 1), world.ram.load(target + 4095, 1)]).toEqual([0, 0x5a, 0x5a]);
    expect(world.refusal(edu.copyIn(source, 5000)).code).toBe('EINVAL');
    expect(world.refusal(edu.copyOut(target, 0)).code).toBe('EINVAL');
    expect(world.core.usage.dmaPages).toBe(0);
  });

  it('falls back to the shared interrupt line without MSI', () => {
    const world = new SvaWorld({ idxd: { wqs: [] } });
    const { clock, scheduler, log, core, eduPci } = world;
    const driver = new EduDriver({ clock, scheduler, log, dma: core.dma, intxOnly: true });
    world.run(world.drivers.registerDriver(driver));
    const edu = driver.instance(eduPci)!;
    expect([world.run(edu.factorial(10)), world.run(edu.factorial(5)), eduPci.intxInterrupt.requested, world.edu.function.msi!.enabled]).toEqual([3_628_800, 120, true, false]);
    const source = world.frames.alloc('test', 0), target = world.frames.alloc('test', 0);
    world.ram.fill(source, 0x5a, 4096);
    world.run(edu.roundTrip(target, source, 4096));
    expect(world.ram.load(target + 4095, 1)).toBe(0x5a);
    world.run(world.drivers.unregisterDriver('edu'));
    expect([eduPci.intxInterrupt.requested, edu.interrupt()]).toEqual([false, false]);
  });

  it('refuses a device that fails the liveness check', () => {
    const world = new SvaWorld({ idxd: { wqs: [] } });
    world.edu.core.registers.r['LIVENESS']!.onWrite = undefined;
    world.run(world.loadDrivers());
    expect(world.eduDriver.instance(world.eduPci)).toBeUndefined();
  });
});
