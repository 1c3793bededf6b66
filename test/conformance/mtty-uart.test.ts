/**
 * A port of the virtual serial card as software pokes it: 16550A registers (PC16550D data sheet; numbers of
 * include/uapi/linux/serial_reg.h written out here), the loopback plug of Linux' sample, configuration space and
 * interrupts as VFIO's user gets them (samples/vfio-mdev/mtty.c).
 */
import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { EventFd } from '../../host/eventfd.js';
import { MttyParent } from '../../devices/mtty/parent/mtty-parent.js';
import type { MttyDevice } from '../../devices/mtty/parent/mtty-device.js';
import type { VfioIrqSet } from '../../vfio/device.js';
import { CoreWorld } from '../fixtures/core-world.js';
import { NoPinning } from './mtty-world.js';

const RBR = 0, THR = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7;
const CONFIG = 7;
const INTX = 0, MSI = 1, MSIX = 2, ERR = 3, REQ = 4;

class UartWorld extends CoreWorld {
  readonly card: MttyDevice;

  constructor(type = 1, config: ConstructorParameters<typeof MttyParent>[0]['config'] = {}) {
    super();
    const parent = new MttyParent({ clock: this.clock, scheduler: this.scheduler, memory: this.ram, vfio: new NoPinning(), trace: this.trace, config });
    const mdev = { name: 'u', uuid: 'u', type: parent.types[type]! };
    this.run(parent.create(mdev));
    this.card = parent.devices[0]!;
    this.run(this.card.open());
  }

  read(region: number, offset: number, size: 1 | 2 | 4): number {
    const bytes = new Uint8Array(size);
    expect(this.card.read(region * 2 ** 40 + offset, bytes)).toBe(size);
    return bytes.reduceRight((value, byte) => value * 256 + byte, 0);
  }

  write(region: number, offset: number, size: 1 | 2 | 4, value: number): void {
    expect(this.card.write(region * 2 ** 40 + offset, Uint8Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i)))).toBe(size);
  }

  in(register: number, port = 0): number {
    return this.read(port, register, 1);
  }

  out(register: number, value: number, port = 0): void {
    this.write(port, register, 1, value);
  }

  send(text: string, port = 0): void {
    for (const char of text) this.out(THR, char.charCodeAt(0), port);
  }

  receive(count: number, port = 0): string {
    return Array.from({ length: count }, () => String.fromCharCode(this.in(RBR, port))).join('');
  }

  eventFd(index: number): EventFd {
    const fd = new EventFd(this.scheduler);
    this.run(this.card.setIrqs({ index, start: 0, count: 1, action: 'trigger', data: { kind: 'eventfd', fds: [fd] } }));
    return fd;
  }

  irq(index: number, action: VfioIrqSet['action'], data: VfioIrqSet['data'] = { kind: 'none' }, count = 1, start = 0): void {
    this.run(this.card.setIrqs({ index, start, count, action, data }));
  }
}

describe('the 16550 of a port', () => {
  let world: UartWorld;

  beforeEach(() => {
    world = new UartWorld();
  });

  it('comes up with an empty FIFO, no interrupt, and the lines of a plug', () => {
    expect([IER, IIR, LCR, MCR, LSR, MSR, SCR].map((register) => world.in(register))).toEqual([0, 0x01, 0, 0, 0x60, 0xb0, 0]);
  });

  it('receives what it transmits, in order', () => {
    world.out(FCR, 0x01);
    world.send('mediated');
    expect([world.in(LSR), world.receive(8), world.in(LSR)]).toEqual([0x01, 'mediated', 0x60]);
  });

  it('keeps both ports of a dual card apart', () => {
    world.out(FCR, 1);
    world.out(FCR, 1, 1);
    world.send('zero');
    world.send('one', 1);
    expect([world.receive(3, 1), world.receive(4, 0)]).toEqual(['one', 'zero']);
  });

  it('reads zero from an empty receiver and all ones beside the registers', () => {
    expect([world.in(RBR), world.read(0, 8, 4), world.read(0, 0x200, 2), world.read(0, 0x80, 1)]).toEqual([0, 0xffff_ffff, 0xffff, 0xff]);
  });

  it('has the divisor latch behind DLAB, and remembers it', () => {
    world.out(LCR, 0x83);
    world.out(0, 0x34);
    world.out(1, 0x12);
    expect([world.in(0), world.in(1)]).toEqual([0x34, 0x12]);
    world.out(LCR, 0x03);
    expect([world.in(LSR), world.in(IER)]).toEqual([0x60, 0]);
    world.out(LCR, 0x80);
    expect([world.in(0), world.in(1)]).toEqual([0x34, 0x12]);
  });

  it('remembers the scratch register, four enables and six modem controls, and no more', () => {
    for (const register of [SCR, IER, MCR]) world.out(register, 0xff);
    expect([SCR, IER, MCR].map((register) => world.in(register))).toEqual([0xff, 0x0f, 0x3f]);
  });

  it('shows the FIFO in the upper bits of IIR while it is on', () => {
    expect(world.in(IIR)).toBe(0x01);
    world.out(FCR, 0x01);
    expect(world.in(IIR)).toBe(0xc1);
    world.out(FCR, 0x00);
    expect(world.in(IIR)).toBe(0x01);
  });

  it('takes a four-byte access as four registers in ascending order', () => {
    world.out(LCR, 0x03);
    expect(world.read(0, 4, 4)).toBe(0x00b0_6000);
    world.write(0, 4, 4, 0x5a00_0003);
    expect([world.in(MCR), world.in(SCR)]).toEqual([0x03, 0x5a]);
  });

  it('loses what comes into a full FIFO and says so until LSR is read', () => {
    world.out(FCR, 0x01);
    world.send('0123456789abcdefX');
    expect([world.in(LSR), world.in(LSR)]).toEqual([0x03, 0x01]);
    expect(world.receive(16)).toBe('0123456789abcdef');
    expect(world.in(LSR)).toBe(0x60);
  });

  it('without FIFO holds one character, the newest', () => {
    world.send('ab');
    expect([world.in(LSR), world.receive(1), world.in(LSR)]).toEqual([0x03, 'b', 0x60]);
  });

  it.each([[0x02], [0x04]])('clears the FIFO with FCR bit %i', (clear) => {
    world.out(FCR, 0x01);
    world.send('abc');
    world.out(FCR, 0x01 | clear);
    expect([world.in(LSR), world.in(RBR)]).toEqual([0x60, 0]);
  });

  it('clears the FIFO when it is switched, and ignores other bits without the enable', () => {
    world.out(FCR, 0x01);
    world.send('abc');
    world.out(FCR, 0xc0);
    expect(world.in(LSR)).toBe(0x60);
    world.out(IER, 0x01);
    world.send('a');
    expect(world.in(IIR)).toBe(0x04);
  });

  it.each([[0x01, 1], [0x41, 4], [0x81, 8], [0xc1, 14]])('interrupts at the trigger level of FCR %i: %i bytes', (fcr, level) => {
    world.out(FCR, fcr);
    world.out(IER, 0x01);
    world.send('x'.repeat(level - 1));
    expect(world.in(IIR)).toBe(0xc1);
    world.send('x');
    expect(world.in(IIR)).toBe(0xc4);
    world.in(RBR);
    expect(world.in(IIR)).toBe(0xc1);
  });

  it('reports bytes below the trigger level after four characters of silence', () => {
    world.out(LCR, 0x83);
    world.out(0, 12); // 9600 bits per second, 10 bits a character
    world.out(LCR, 0x03);
    world.out(FCR, 0xc1);
    world.out(IER, 0x01);
    world.send('ab');
    const silence = 4 * Math.ceil((10 * 12 * 1e9) / 115_200);
    world.clock.run({ untilNs: silence - 1 });
    expect(world.in(IIR)).toBe(0xc1);
    world.clock.run({ untilNs: silence });
    expect(world.in(IIR)).toBe(0xcc);
    world.in(RBR);
    expect(world.in(IIR)).toBe(0xc1);
    world.settle();
    expect(world.in(IIR)).toBe(0xcc);
    world.in(RBR);
    world.settle();
    expect(world.in(IIR)).toBe(0xc1);
  });

  it('tells once that the transmitter is empty: when it becomes so or its enable is set, until IIR or THR', () => {
    world.out(FCR, 0x01);
    world.out(IER, 0x02);
    expect([world.in(IIR), world.in(IIR)]).toEqual([0xc2, 0xc1]);
    world.send('a');
    expect(world.in(IIR)).toBe(0xc1);
    world.in(RBR);
    world.send('b');
    expect(world.in(IIR)).toBe(0xc1);
    world.in(RBR);
    expect([world.in(IIR), world.in(IIR)]).toEqual([0xc2, 0xc1]);
  });

  it('names causes by priority: line status, timeout or data, transmitter, modem', () => {
    world.out(FCR, 0x01);
    world.send('0123456789abcdefX');
    world.out(MCR, 0x10);
    world.out(IER, 0x0f);
    expect(world.in(IIR)).toBe(0xc6);
    world.in(LSR);
    expect(world.in(IIR)).toBe(0xc4);
    world.receive(16);
    expect(world.in(IIR)).toBe(0xc2);
    expect(world.in(IIR)).toBe(0xc0);
    world.in(MSR);
    expect(world.in(IIR)).toBe(0xc1);
  });

  it('in diagnostic loop turns modem controls into status lines, with deltas until MSR is read', () => {
    world.out(MCR, 0x10);
    expect(world.in(MSR)).toBe(0x0b); // CTS, DSR and DCD fell
    world.out(MCR, 0x1a); // OUT2, RTS: how the 8250 driver looks for a 16550
    expect([world.in(MSR) & 0xf0, world.in(MSR)]).toEqual([0x90, 0x90]);
    world.out(MCR, 0x1f);
    expect(world.in(MSR)).toBe(0xf2);
    world.out(MCR, 0x1b);
    expect(world.in(MSR)).toBe(0xb4); // the ring ended
  });

  it('takes CTS away from automatic flow control while the FIFO is full', () => {
    world.out(FCR, 0x01);
    world.out(MCR, 0x20);
    world.in(MSR);
    world.send('0123456789abcdef');
    expect(world.in(MSR)).toBe(0xa1);
    world.in(RBR);
    expect(world.in(MSR)).toBe(0xb1);
  });

  it('hands over any stream whole when the writer heeds THRE', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, fifo) => {
      const { card } = world;
      world.run(card.reset());
      if (fifo) world.out(FCR, 0x01);
      const got: number[] = [];
      for (let sent = 0; got.length < bytes.length; ) {
        if ((world.in(LSR) & 0x20) !== 0) for (let room = fifo ? 16 : 1; room > 0 && sent < bytes.length; room--) world.out(THR, bytes[sent++]!);
        while ((world.in(LSR) & 0x01) !== 0) got.push(world.in(RBR));
      }
      expect([Uint8Array.from(got), world.in(LSR)]).toEqual([bytes, 0x60]);
    }), { numRuns: 30 });
  });

  it('is as after power-on when it was reset', () => {
    for (const [register, value] of [[FCR, 1], [IER, 15], [LCR, 3], [MCR, 31], [SCR, 9]] as const) world.out(register, value);
    world.send('abc');
    world.run(world.card.reset());
    expect([IER, IIR, LCR, MCR, LSR, MSR, SCR].map((register) => world.in(register))).toEqual([0, 0x01, 0, 0, 0x60, 0xb0, 0]);
  });
});

describe('configuration space of the card', () => {
  it('names vendor, device, class, subsystem, pin and the sample\'s text', () => {
    const world = new UartWorld();
    expect([0x00, 0x08, 0x2c].map((offset) => world.read(CONFIG, offset, 4))).toEqual([0x3253_4348, 0x0700_0210, 0x3253_4348]);
    expect([world.read(CONFIG, 0x3d, 1), world.read(CONFIG, 0x34, 1), world.read(CONFIG, 0x06, 2)]).toEqual([1, 0x50, 0x0210]);
    const text = new Uint8Array(15);
    world.card.read(CONFIG * 2 ** 40 + 0x60, text);
    expect(new TextDecoder().decode(text)).toBe('PCI Serial/UART');
  });

  it.each([[0, [0xffff_f000, 0]], [1, [0xffff_f000, 0xffff_f000]]])('type %i: sizes its BARs, 4 KiB of memory for each port', (type, sizes) => {
    const world = new UartWorld(type);
    for (const bar of [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24]) world.write(CONFIG, bar, 4, 0xffff_ffff);
    expect([0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map((bar) => world.read(CONFIG, bar, 4))).toEqual([...sizes, 0, 0, 0, 0]);
    world.write(CONFIG, 0x10, 4, 0xc000_1234);
    expect(world.read(CONFIG, 0x10, 4)).toBe(0xc000_1000);
  });

  it('lets software write command, interrupt line and MSI, and nothing of the identity', () => {
    const world = new UartWorld();
    for (let offset = 0; offset < 0x100; offset += 4) world.write(CONFIG, offset, 4, 0xffff_ffff);
    expect([0x00, 0x08, 0x2c, 0x60].map((offset) => world.read(CONFIG, offset, 4))).toEqual([0x3253_4348, 0x0700_0210, 0x3253_4348, 0x2049_4350]);
    expect([world.read(CONFIG, 0x04, 4), world.read(CONFIG, 0x3c, 2)]).toEqual([0x0210_0406, 0x01ff]);
    expect([0x50, 0x54, 0x58, 0x5c].map((offset) => world.read(CONFIG, offset, 4))).toEqual([0x0081_0005, 0xffff_fffc, 0xffff_ffff, 0x0000_ffff]);
  });

  it('has the regions of a PCI device; only configuration and ports have bytes, none can be mapped', () => {
    const world = new UartWorld();
    expect(world.card.info()).toEqual({ flags: 3, regions: 9, irqs: 5 });
    expect(Array.from({ length: 9 }, (_, i) => world.card.regionInfo(i).sizeBytes)).toEqual([4096, 4096, 0, 0, 0, 0, 0, 256, 0]);
    expect(world.refused(() => world.card.regionInfo(9))).toBe('EINVAL');
    expect(world.refused(() => world.card.mmap(0, 4096))).toBe('EINVAL');
    for (const offset of [2 * 2 ** 40, 2 ** 40 + 4096, 9 * 2 ** 40, CONFIG * 2 ** 40 + 256]) expect(world.refused(() => world.card.read(offset, new Uint8Array(1)))).toBe('EINVAL');
    expect(world.card.read(CONFIG * 2 ** 40 + 254, new Uint8Array(8))).toBe(2);
  });
});

describe('interrupts of the card', () => {
  let world: UartWorld;

  beforeEach(() => {
    world = new UartWorld();
    for (const port of [0, 1]) {
      world.out(FCR, 0x01, port);
      world.out(IER, 0x01, port);
    }
  });

  it('offers INTx, maskable and masked by itself, and one MSI', () => {
    expect([world.card.irqInfo(INTX), world.card.irqInfo(MSI)]).toEqual([{ flags: 0b0111, count: 1 }, { flags: 0b1001, count: 1 }]);
    for (const index of [MSIX, ERR, REQ, 5]) expect(world.refused(() => world.card.irqInfo(index))).toBe('EINVAL');
  });

  it('signals MSI for every new cause of either port', () => {
    const fd = world.eventFd(MSI);
    world.send('ab');
    expect(fd.read()).toBe(1);
    world.send('c', 1);
    expect(fd.read()).toBe(1);
    world.receive(2);
    world.send('d');
    expect(fd.read()).toBe(1);
  });

  it('signals MSI for what was pending before it had an eventfd', () => {
    world.send('a');
    expect(world.eventFd(MSI).read()).toBe(1);
  });

  it('signals INTx once, and again at the unmask while the level is high', () => {
    const fd = world.eventFd(INTX);
    world.send('ab');
    expect([fd.read(), world.read(CONFIG, 0x06, 2) & 8]).toEqual([1, 8]);
    world.send('c', 1);
    expect(fd.count).toBe(0);
    world.receive(2);
    world.irq(INTX, 'unmask');
    expect(fd.read()).toBe(1);
    world.receive(1, 1);
    world.irq(INTX, 'unmask', { kind: 'bool', values: [true] });
    expect([fd.count, world.read(CONFIG, 0x06, 2) & 8]).toEqual([0, 0]);
  });

  it('keeps INTx still while it is masked or disabled in the command register', () => {
    const fd = world.eventFd(INTX);
    world.irq(INTX, 'mask');
    world.send('a');
    expect(fd.count).toBe(0);
    world.write(CONFIG, 0x04, 2, 0x400);
    world.irq(INTX, 'unmask');
    expect(fd.count).toBe(0);
    world.write(CONFIG, 0x04, 2, 0);
    expect(fd.read()).toBe(1);
  });

  it('lets the user trigger its own interrupt', () => {
    const fd = world.eventFd(MSI);
    world.irq(MSI, 'trigger');
    world.irq(MSI, 'trigger', { kind: 'bool', values: [false] });
    world.irq(MSI, 'trigger', { kind: 'bool', values: [true] });
    expect(fd.read()).toBe(2);
  });

  it.each([
    ['another index while one is in use', 'EINVAL', INTX, 'trigger', { kind: 'eventfd', fds: [undefined] }, 1, 0],
    ['to mask INTx while it is not in use', 'EINVAL', INTX, 'mask', { kind: 'none' }, 1, 0],
    ['to mask MSI', 'ENOTTY', MSI, 'mask', { kind: 'none' }, 1, 0],
    ['a second MSI vector', 'EINVAL', MSI, 'trigger', { kind: 'none' }, 1, 1],
    ['two MSI vectors', 'EINVAL', MSI, 'trigger', { kind: 'eventfd', fds: [undefined, undefined] }, 2, 0],
    ['MSI-X', 'ENOTTY', MSIX, 'trigger', { kind: 'none' }, 0, 0],
    ['error reports', 'ENOTTY', ERR, 'trigger', { kind: 'none' }, 0, 0],
    ['requests of a parent without hot unplug', 'ENOTTY', REQ, 'trigger', { kind: 'none' }, 0, 0],
    ['an unknown index', 'EINVAL', 5, 'trigger', { kind: 'none' }, 0, 0],
  ] as const)('refuses %s with %s and leaves MSI as it is', (_what, code, index, action, data, count, start) => {
    const fd = world.eventFd(MSI);
    expect(world.refused(world.card.setIrqs({ index, action, data, count, start }))).toBe(code);
    world.send('a');
    expect(fd.read()).toBe(1);
  });

  it('changes from MSI to INTx when MSI is torn down; a trigger without eventfd is EINVAL', () => {
    const msi = world.eventFd(MSI);
    world.irq(MSI, 'trigger', { kind: 'none' }, 0);
    expect(world.refused(world.card.setIrqs({ index: MSI, start: 0, count: 1, action: 'trigger', data: { kind: 'none' } }))).toBe('EINVAL');
    const intx = world.eventFd(INTX);
    world.send('a');
    expect([msi.count, intx.count]).toEqual([0, 1]);
    expect(world.refused(world.card.setIrqs({ index: INTX, start: 0, count: 1, action: 'mask', data: { kind: 'eventfd', fds: [msi] } }))).toBe('ENOTTY');
  });

  it('asks its user through the request interrupt where the parent can unplug (7.5)', () => {
    world = new UartWorld(0, { hotUnplug: true });
    world.card.request();
    const fd = world.eventFd(REQ);
    world.card.request();
    expect([world.card.irqInfo(REQ), fd.read()]).toEqual([{ flags: 0b1001, count: 1 }, 1]);
    world.irq(REQ, 'trigger', { kind: 'none' }, 0);
    world.card.request();
    expect(fd.count).toBe(0);
  });

  it('signals nobody after close, and the next user finds it as after power-on (C18)', () => {
    const fd = world.eventFd(MSI);
    world.write(CONFIG, 0x04, 2, 6);
    world.write(CONFIG, 0x10, 4, 0xc000_0000);
    world.run(world.card.close());
    world.send('a');
    expect([fd.count, world.read(CONFIG, 0x04, 2), world.read(CONFIG, 0x10, 4), world.in(IER)]).toEqual([0, 0, 0, 0]);
  });
});
