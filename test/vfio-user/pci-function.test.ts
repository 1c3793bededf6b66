/** A function's hardware served to a client: configuration space, BARs, DMA into the client's memory, interrupts by eventfd. */
import { beforeEach, describe, expect, it } from 'vitest';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';
import { EduDevice } from '../../devices/edu/hardware/edu-device.js';
import { SystemBus, X86_INTERRUPT_WINDOW } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import { PciFunctionOps } from '../../vfio/user/index.js';
import { IDLE, Scratch } from '../fixtures/pci-world.js';
import { type FakeDescriptor, MemoryWorld } from './memory-world.js';
import { CMD, dmaMap, EVENTFD_TRIGGER, infoRequest, NONE_TRIGGER, pack, regionAccess, regionWrite, setIrqs, u16, u32, u64 } from './wire.js';

const CONFIG = 7, INTX = 0, MSI = 1, MSIX = 2;
const FACTORIAL = 8, STATUS = 0x20, IRQ_STATUS = 0x24, IRQ_RAISE = 0x60, IRQ_ACK = 0x64;

class Client extends MemoryWorld {
  read(region: number, offset: number, count = 4): number {
    const payload = this.ok(CMD.REGION_READ, regionAccess(region, offset, count));
    return count === 8 ? u64(payload, 16) : count === 2 ? u16(payload, 16) : u32(payload, 16);
  }

  write(region: number, offset: number, value: number, count: 2 | 4 | 8 = 4): void {
    this.ok(CMD.REGION_WRITE, regionWrite(region, offset, pack([count, value])));
  }

  irq(index: number, start = 0): FakeDescriptor {
    const fd = this.fd('eventfd');
    this.ok(CMD.SET_IRQS, setIrqs(index, start, 1, EVENTFD_TRIGGER), [fd]);
    return fd;
  }
}

/** A function alone on a bus whose memory is the client's. */
function served(make: (world: MemoryWorld, timing: Timing, trace: Trace) => PciFunction): { client: Client; pci: PciFunction } {
  let pci: PciFunction | undefined;
  const client = new Client({
    device: (world) => {
      const { clock, scheduler } = world;
      const timing = new Timing(DEFAULT_TIMING, new Random(1));
      const fabric = new Fabric({ clock, timing, memory: world.memory.memory, bus: new SystemBus(), interruptWindow: X86_INTERRUPT_WINDOW, interrupts: { message: () => {} } });
      const complex = new RootComplex({ fabric });
      pci = make(world, timing, new Trace(clock, 1024));
      complex.insert(complex.addRootBus(0), 0x10, pci);
      const ops = new PciFunctionOps(pci);
      scheduler.runNow('open', ops.open());
      return { ops };
    },
  });
  client.negotiate();
  return { client, pci: pci! };
}

describe('edu behind vfio-user', () => {
  let client: Client;

  beforeEach(() => {
    ({ client } = served(({ clock, scheduler }, timing, trace) => new EduDevice({ name: 'edu0', clock, scheduler, timing, trace }).function));
  });

  it('has its configuration space, with BAR sizing as hardware does it', () => {
    expect([client.read(CONFIG, 0), u64(client.ok(CMD.GET_REGION_INFO, infoRequest(32, 0)), 16), u64(client.ok(CMD.GET_REGION_INFO, infoRequest(32, CONFIG)), 16)]).toEqual([0x11e8_1234, 2 ** 20, 4096]);
    client.write(CONFIG, 0x10, 0xffff_ffff);
    expect(client.read(CONFIG, 0x10)).toBe(0xfff0_0000);
    const identity = client.ok(CMD.REGION_READ, regionAccess(CONFIG, 0, 64));
    expect([u32(identity, 16), u32(identity, 16 + 0x10), identity.length]).toEqual([0x11e8_1234, 0xfff0_0000, 80]);
  });

  it('its registers answer once memory space is enabled', () => {
    expect(client.read(0, 0)).toBe(0xffff_ffff);
    client.write(CONFIG, 4, 6, 2);
    client.write(0, 4, 0x1234_5678);
    expect([client.read(0, 0), client.read(0, 4)]).toEqual([0x0100_00ed, 0xedcb_a987]);
    client.write(0, FACTORIAL, 5);
    client.clock.run();
    expect([client.read(0, STATUS), client.read(0, FACTORIAL)]).toEqual([0, 120]);
  });

  it('interrupts by MSI through an eventfd when its own capability lets it', () => {
    client.write(CONFIG, 4, 6, 2);
    const fd = client.irq(MSI);
    client.write(0, IRQ_RAISE, 1);
    expect(fd.signals).toBe(0);
    let msi = client.read(CONFIG, 0x34) & 0xff;
    while ((client.read(CONFIG, msi) & 0xff) !== 5) msi = (client.read(CONFIG, msi) >> 8) & 0xff;
    client.write(CONFIG, msi + 2, client.read(CONFIG, msi + 2, 2) | 1, 2);
    client.write(0, IRQ_ACK, 1);
    client.write(0, IRQ_RAISE, 2);
    client.clock.run();
    expect([fd.signals, client.read(0, IRQ_STATUS)]).toEqual([1, 2]);
  });

  it('its pin is masked by its own arrival, and sent again while it is asserted', () => {
    client.write(CONFIG, 4, 6, 2);
    const fd = client.irq(INTX);
    client.write(0, IRQ_RAISE, 1);
    client.write(0, IRQ_RAISE, 2);
    expect(fd.signals).toBe(1);
    client.ok(CMD.SET_IRQS, setIrqs(INTX, 0, 1, 0x11));
    expect(fd.signals).toBe(2);
    client.write(0, IRQ_ACK, 3);
    client.ok(CMD.SET_IRQS, setIrqs(INTX, 0, 1, 0x11));
    expect(fd.signals).toBe(2);
    const unmask = client.fd('eventfd');
    client.ok(CMD.SET_IRQS, setIrqs(INTX, 0, 1, 0x14), [unmask]);
    client.write(0, IRQ_RAISE, 1);
    unmask.listener!();
    expect(fd.signals).toBe(4);
    expect([client.errno(CMD.SET_IRQS, setIrqs(INTX, 0, 1, 0x0c), [client.fd('eventfd')]), client.errno(CMD.SET_IRQS, setIrqs(MSI, 0, 1, 0x09))]).toEqual([25, 25]);
  });

  it('reads and writes the client\'s memory', () => {
    client.write(CONFIG, 4, 6, 2);
    client.ok(CMD.DMA_MAP, dmaMap(0x10_0000, 0x10000), [client.fd()]);
    client.ram.write(0x40, new TextEncoder().encode('from the client'), 0, 15);
    client.write(0, 0x80, 0x10_0040, 8);
    client.write(0, 0x88, 0x4_0000, 8);
    client.write(0, 0x90, 15, 8);
    client.write(0, 0x98, 1, 8);
    client.clock.run();
    client.write(0, 0x80, 0x4_0000, 8);
    client.write(0, 0x88, 0x10_2000, 8);
    client.write(0, 0x98, 3, 8);
    client.clock.run();
    const bytes = new Uint8Array(15);
    client.ram.read(0x2000, bytes, 0, 15);
    expect(new TextDecoder().decode(bytes)).toBe('from the client');
  });

  it('a reset forgets what was programmed', () => {
    client.write(CONFIG, 4, 6, 2);
    client.ok(CMD.RESET);
    expect([client.read(CONFIG, 4, 2), client.read(0, 0)]).toEqual([0, 0xffff_ffff]);
  });
});

describe('a function with MSI-X behind vfio-user', () => {
  const TABLE = 0x800, PBA = 0xc00, DISABLE = setIrqs(MSIX, 0, 0, NONE_TRIGGER);
  let client: Client, pci: PciFunction;

  beforeEach(() => {
    ({ client, pci } = served(() => new PciFunction({
      ...IDLE, name: 'x', msix: { vectors: 40, tableBar: 0, tableOffset: TABLE, pbaOffset: PBA }, bars: [{ index: 0, sizeBytes: 4096, prefetchable: false, is64: true, mmio: new Scratch() }],
    })));
    client.write(CONFIG, 4, 6, 2);
  });

  const enable = (flags = 0x8000): void => client.write(CONFIG, pci.msix!.offset + 2, flags, 2);
  const control = (vector: number): number => client.read(0, TABLE + vector * 16 + 12);

  it('interrupts a client that keeps the table to itself and only gives eventfds, as QEMU does', () => {
    expect(u32(client.ok(CMD.GET_IRQ_INFO, infoRequest(16, MSIX)), 12)).toBe(40);
    // what QEMU 11.1 sends while Linux's nvme driver asks for two vectors: MSI-X on with all masked, no vector, all off, both
    enable(0xc000);
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 0, 1, EVENTFD_TRIGGER));
    client.ok(CMD.SET_IRQS, DISABLE);
    const first = client.irq(MSIX);
    enable();
    pci.raiseMsix(0);
    expect(first.signals).toBe(1);
    client.ok(CMD.SET_IRQS, DISABLE);
    pci.raiseMsix(0);
    const both = [client.fd('eventfd'), client.fd('eventfd')];
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 0, 2, EVENTFD_TRIGGER), both);
    expect([first.signals, both.map((fd) => fd.signals), client.read(0, PBA, 8)]).toEqual([1, [1, 0], 0]);
    pci.raiseMsix(1);
    expect(both.map((fd) => fd.signals)).toEqual([1, 1]);
  });

  it('what is raised without an eventfd waits for it, and nothing else is sent with it', () => {
    enable();
    pci.raiseMsix(33);
    expect([control(33), client.read(0, PBA + 4)]).toEqual([1, 2]);
    const other = client.irq(MSIX, 32), fd = client.irq(MSIX, 33);
    expect([other.signals, fd.signals, control(33), client.read(0, PBA + 4)]).toEqual([0, 1, 0, 0]);
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 33, 1, EVENTFD_TRIGGER));
    pci.raiseMsix(33);
    expect([fd.signals, control(33), control(32), client.read(0, PBA + 4)]).toEqual([1, 1, 0, 2]);
  });

  it('another eventfd for the same vector takes over, as when a vector moves between KVM and QEMU', () => {
    enable();
    const before = client.irq(MSIX, 5), after = client.irq(MSIX, 5);
    pci.raiseMsix(5);
    expect([before.signals, after.signals]).toEqual([0, 1]);
  });

  it('takes 40 eventfds in pieces of 16 with gaps, as QEMU sends them', () => {
    enable();
    const fds = Array.from({ length: 33 }, () => client.fd('eventfd'));
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 0, 16, EVENTFD_TRIGGER), fds.slice(0, 16));
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 16, 7, EVENTFD_TRIGGER));
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 23, 16, EVENTFD_TRIGGER), fds.slice(16, 32));
    client.ok(CMD.SET_IRQS, setIrqs(MSIX, 39, 1, EVENTFD_TRIGGER), fds.slice(32));
    for (let vector = 0; vector < 40; vector++) pci.raiseMsix(vector);
    expect([fds.map((fd) => fd.signals), client.read(0, PBA, 8)]).toEqual([Array.from({ length: 33 }, () => 1), 0x7f_0000]);
  });

  it('still interrupts after a reset that only the function and the guest know of', () => {
    const fd = client.irq(MSIX);
    enable();
    pci.reset('flr');
    pci.raiseMsix(0);
    expect(fd.signals).toBe(0);
    client.write(CONFIG, 4, 6, 2);
    enable();
    pci.raiseMsix(0);
    expect([fd.signals, control(0), control(1)]).toEqual([1, 0, 1]);
  });

  it('a client that left has masked vectors again', () => {
    enable();
    client.irq(MSIX);
    client.session.disconnected();
    client.clock.run();
    pci.raiseMsix(0);
    expect([pci.msix!.isPending(0), client.table.open]).toEqual([true, 0]);
  });

  it('honours the masks of a client that does write the table, and its pending bits', () => {
    const fds = [client.irq(MSIX, 0), client.irq(MSIX, 3)];
    enable();
    client.write(0, TABLE + 3 * 16 + 12, 1);
    pci.raiseMsix(3);
    expect([fds[1]!.signals, client.read(0, PBA, 8)]).toEqual([0, 8]);
    client.write(0, TABLE + 3 * 16 + 12, 0);
    pci.raiseMsix(0);
    expect([fds[0]!.signals, fds[1]!.signals, client.read(0, PBA, 8)]).toEqual([1, 1, 0]);
  });
});

describe('BARs of a function behind vfio-user', () => {
  it('64 aligned bytes are one write to a BAR', () => {
    const wide: number[] = [];
    const scratch = new (class extends Scratch {
      override write64(offset: number, bytes: Uint8Array): void {
        wide.push(offset, bytes.length);
      }
    })();
    const { client } = served(() => new PciFunction({ ...IDLE, name: 'x', bars: [{ index: 0, sizeBytes: 4096, prefetchable: false, is64: false, mmio: scratch }] }));
    client.write(CONFIG, 4, 6, 2);
    client.ok(CMD.REGION_WRITE, regionWrite(0, 0x40, new Uint8Array(64)));
    client.ok(CMD.REGION_WRITE, regionWrite(0, 0x84, new Uint8Array(64).fill(1)));
    expect([wide, scratch.words[0x84 >> 2], scratch.words[(0x84 + 60) >> 2]]).toEqual([[0x40, 64], 0x0101_0101, 0x0101_0101]);
  });
});
