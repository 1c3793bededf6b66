/** Registers, commands and their errors: Linux drivers/dma/idxd/registers.h, accfg/lib/libaccfg.c, recorded accesses of Linux 7.3. */
import { describe, expect, it } from 'vitest';
import { DsaWorld } from '../fixtures/dsa-world.js';

/** The device of the recorded boots: 4 queues, 1 group, 1 engine. */
const RECORDED = { wqs: 4, engines: 1, groups: 1, totalWqSize: 64, maxTransferShift: 21, maxBatchShift: 9, readBuffers: 8 };

describe('capability registers', () => {
  it('has the identity of an accelerator', () => {
    const { complex } = new DsaWorld();
    expect(complex.configRead(0, 8, 0, 4)).toBe(0x0b25_8086);
    expect(complex.configRead(0, 8, 8, 4) >>> 8).toBe(0x088000);
  });

  it('reads as declared, word by word', () => {
    const { bar0 } = new DsaWorld({ config: RECORDED });
    const dump: Record<string, string> = {};
    for (const offset of [0x00, 0x10, 0x20, 0x30, 0x38, 0x40, 0x48, 0x60, 0x68, 0x80, 0x88, 0x90, 0x98, 0xa0, 0xa8, 0xb0, 0xc0]) {
      const lo = bar0.read(offset, 4), hi = offset % 8 === 0 ? bar0.read(offset + 4, 4) : 0;
      dump[offset.toString(16)] = `${hi.toString(16).padStart(8, '0')}_${lo.toString(16).padStart(8, '0')}`;
    }
    expect(dump).toEqual({
      '0': '00000000_00000100',
      // block on fault, overlapping copy, commands, 2^21 bytes, 2^9 descriptors, configurable
      '10': '00000000_81350013',
      // 64 entries, 4 queues, 64 bytes of configuration each; shared, dedicated, priority, occupancy
      '20': '001b0000_01040040',
      '30': '00000000_00000801',
      '38': '00000000_00000001',
      // NOOP BATCH DRAIN MEMMOVE FILL COMPARE COMPVAL, DUALCAST, CRCGEN COPY_CRC
      '40': '00000000_0003027f',
      '48': '00000000_00000000',
      '60': '00000006_00050004',
      '68': '00000000_00000000',
      '80': '00000000_00000000', '88': '00000000_00000000', '90': '00000000_00000000', '98': '00000000_00000000',
      'a0': '00000000_00000000', 'a8': '00000000_00000000', 'b0': '00000000_00001ffe', 'c0': '00000000_00000000',
    });
  });

  it('reads as ones while memory space is off', () => {
    const world = new DsaWorld();
    world.config(4, 2, 0x0004);
    expect(world.read(0)).toBe(0xffff_ffff);
  });
});

describe('the recorded probe of the Linux driver', () => {
  it('resets, configures and enables with the recorded values', () => {
    const world = new DsaWorld({ config: RECORDED });
    world.enableTranslation();
    world.enableInterrupts();
    world.write(0xa0, 0x500000);
    expect(world.read(0xa8)).toBe(0x8000_0000);
    world.settle();
    expect(world.read(0xa8)).toBe(0);
    world.write(0x80, 0x1000);
    expect(world.read(0x80)).toBe(0x1000);
    world.write(0x88, 0x3);
    const wqcfg = [0x10, 0, 0xa3, 0xb5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    wqcfg.forEach((word, i) => world.write(0x500 + 4 * i, word));
    for (const [offset, lo] of [[0x400, 1], [0x408, 0], [0x410, 0], [0x418, 0], [0x420, 1], [0x428, 0x800009]] as const) world.bar0.write(offset, 8, lo, 0);
    world.write(0xa0, 0x8010_0000);
    world.settle();
    // the command's interrupt: vector 0, cause "command"
    expect(world.messages).toEqual([{ address: 0xfee0_0000, data: 0x40 }]);
    expect([world.read(0x98), world.read(0xa8), world.read(0x90)]).toEqual([2, 0, 1]);
    world.write(0x98, 2);
    expect(world.read(0x98)).toBe(0);
    world.write(0xa0, 0x8060_0000);
    world.settle();
    expect(world.read(0xa8)).toBe(0);
    // open: DRAIN_WQ, RESET_WQ, PASID 2 in dword 2, ENABLE_WQ
    for (const command of [0x8080_0001, 0x80a0_0001]) {
      world.write(0xa0, command);
      world.settle();
      expect(world.read(0xa8)).toBe(0);
    }
    expect(world.read(0x508)).toBe(0xa3);
    world.write(0x508, 0x1000_02a3);
    world.write(0xa0, 0x8060_0000);
    world.settle();
    expect([world.read(0xa8), world.read(0x508)]).toEqual([0, 0x1000_02a3]);
    expect(world.read(0x518) >>> 30).toBe(1);
    world.write(0xa0, 0x8020_0000);
    world.settle();
    expect([world.read(0xa8), world.read(0x90)]).toEqual([0, 0]);
  });
});

describe('command errors', () => {
  function configured(): DsaWorld {
    const world = new DsaWorld();
    world.write(0x500, 8);
    world.write(0x508, 0xa1);
    world.write(0x50c, 0xb5);
    world.bar0.write(0x400, 8, 1, 0);
    world.bar0.write(0x420, 8, 1, 0);
    world.bar0.write(0x428, 8, 0x0200_0009, 0);
    return world;
  }

  it.each([
    ['0x01 unknown command', 0x01, (w: DsaWorld) => w.command(31)],
    ['0x12 bus mastering off', 0x12, (w: DsaWorld) => { w.config(4, 2, 2); return w.command(1); }],
    ['0x14 more entries than the device has', 0x14, (w: DsaWorld) => { w.write(0x500, 129); return w.command(1); }],
    ['0x15 a group with queues and no engine', 0x15, (w: DsaWorld) => { w.bar0.write(0x420, 8, 0, 0); return w.command(1); }],
    ['0x16 a queue in two groups', 0x16, (w: DsaWorld) => { w.bar0.write(0x440, 8, 1, 0); w.bar0.write(0x460, 8, 2, 0); w.bar0.write(0x468, 8, 0x0200_0009, 0); return w.command(1); }],
    ['0x16 a queue with entries in no group', 0x16, (w: DsaWorld) => { w.write(0x540, 8); return w.command(1); }],
    ['0x17 an engine in two groups', 0x17, (w: DsaWorld) => { w.bar0.write(0x440, 8, 2, 0); w.bar0.write(0x460, 8, 1, 0); return w.command(1); }],
    ['0x17 an engine that does not exist', 0x17, (w: DsaWorld) => { w.bar0.write(0x420, 8, 0x10, 0); return w.command(1); }],
    ['0x18 more read buffers reserved than there are', 0x18, (w: DsaWorld) => { w.bar0.write(0x428, 8, 0x0ff0_2100 | 0, 0); return w.command(1); }],
    ['0x10 the device is on already', 0x10, (w: DsaWorld) => { w.command(1); return w.command(1); }],
    ['0x20 a queue of a device that is off', 0x20, (w: DsaWorld) => w.command(6, 0)],
    ['0x02 a queue that does not exist', 0x02, (w: DsaWorld) => { w.command(1); return w.command(6, 8); }],
    ['0x21 the queue is on already', 0x21, (w: DsaWorld) => { w.command(1); w.command(6, 0); return w.command(6, 0); }],
    ['0x22 a queue without entries', 0x22, (w: DsaWorld) => { w.write(0x500, 0); w.command(1); return w.command(6, 0); }],
    ['0x23 priority 0', 0x23, (w: DsaWorld) => { w.write(0x508, 1); w.command(1); return w.command(6, 0); }],
    ['0x26 PASID on a function without', 0x26, (w: DsaWorld) => { w.write(0x508, 0x1000_02a1); w.command(1); return w.command(6, 0); }],
    ['0x26 a shared queue without PASID', 0x26, (w: DsaWorld) => { w.write(0x508, 0xa0); w.command(1); return w.command(6, 0); }],
    ['0x27 batches larger than the device has', 0x27, (w: DsaWorld) => { w.write(0x50c, 0x175); w.command(1); return w.command(6, 0); }],
    ['0x31 draining a device that is off', 0x31, (w: DsaWorld) => w.command(3)],
    ['0x31 disabling a device that is off', 0x31, (w: DsaWorld) => w.command(2)],
    ['0x32 draining a queue that is off', 0x32, (w: DsaWorld) => { w.command(1); return w.command(8, 1); }],
    ['0x02 draining no queue', 0x02, (w: DsaWorld) => { w.command(1); return w.command(8, 0); }],
  ])('%s', (_name, code, provoke) => {
    expect(provoke(configured())).toBe(code);
  });

  it('0x25 block on fault where the device cannot', () => {
    const world = new DsaWorld({ config: { blockOnFault: false } });
    expect(world.read(0x10) & 1).toBe(0);
    expect(() => world.start({ mode: 'dedicated', bof: true })).toThrow('queue 25');
  });

  it('0x28 transfers larger than the device makes', () => {
    const world = new DsaWorld({ config: { maxTransferShift: 20 } });
    expect(() => world.start({ mode: 'dedicated', maxTransfer: 21 })).toThrow('queue 28');
  });

  it('0x2a a privileged queue while the PASID capability forbids it', () => {
    const world = new DsaWorld();
    world.config(world.extended(0x1b) + 6, 2, 1);
    expect(() => world.start({ mode: 'dedicated', pasid: 5, priv: true })).toThrow('queue 2a');
  });

  it('0x13 page requests on with nothing allocated', () => {
    const world = new DsaWorld();
    world.enableTranslation(0);
    expect(() => world.start({ mode: 'dedicated' })).toThrow('device 13');
  });

  it('a command while one runs is software error 0x52 and has no effect', () => {
    const world = configured();
    world.write(0xa0, 1 << 20);
    world.write(0xa0, 5 << 20);
    world.settle();
    expect(world.read(0x90)).toBe(1);
    expect(world.takeError()[0]).toBe(0x5201);
  });
});

describe('configuration in use', () => {
  it('cannot be written', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated', size: 16 });
    world.write(0x80, 0xff);
    world.bar0.write(0x400, 8, 3, 0);
    world.bar0.write(0x500, 8, 32, 7);
    world.write(0x508, 0);
    expect([world.read(0x80), world.read(0x400), world.read(0x500), world.read(0x504), world.read(0x508)]).toEqual([0, 1, 16, 16, 0xa1]);
    // the queue off, the device on: everything but the size
    expect(world.command(7, 1)).toBe(0);
    world.bar0.write(0x500, 8, 32, 7);
    world.write(0x508, 0xb1);
    expect([world.read(0x500), world.read(0x504), world.read(0x508)]).toEqual([16, 7, 0xb1]);
  });

  it('returns to reset values by RESET_DEVICE, not by RESET_WQ', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    expect(world.command(10, 1)).toBe(0);
    expect([world.read(0x508), world.read(0x518) >>> 30, world.read(0x90)]).toEqual([0xa1, 0, 1]);
    expect(world.command(5)).toBe(0);
    expect([world.read(0x508), world.read(0x400), world.read(0x90)]).toEqual([0, 0, 0]);
  });

  it('is gone after a function level reset, and the device can be set up again', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    const express = world.dsa.function.config.get(0x34, 1);
    let at = express;
    while (world.complex.configRead(0, 8, at, 1) !== 0x10) at = world.complex.configRead(0, 8, at + 1, 1);
    world.config(at + 8, 2, 0x8000);
    world.config(4, 2, 6);
    expect([world.read(0x500), world.read(0x90), world.read(0xa8)]).toEqual([0, 0, 0]);
    world.start({ mode: 'dedicated' });
    expect(world.read(0x90)).toBe(1);
  });
});

describe('bus mastering lost while enabled', () => {
  it('halts the device, which then needs a function level reset', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    world.config(4, 2, 2);
    expect(world.read(0x90)).toBe(0x7);
    expect(world.takeError()[0]).toBe(0x5101);
    world.config(4, 2, 6);
    expect(world.command(1)).toBe(0);
    expect(world.read(0x90)).toBe(0x7);
  });
});
