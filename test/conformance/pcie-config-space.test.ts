/** Configuration space bytes: PCIe 6.0 chapters 7, 9, 10; numbers of include/uapi/linux/pci_regs.h (requirements 3.4, section 9). */
import { describe, expect, it } from 'vitest';
import { PlainMmio, type AccessSize } from '../../sim/mmio.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { PciPort } from '../../host/pci/hardware/pci-port.js';
import { createWorld, findCapability, findExtCapability, Listener, plugSva, svaFunction } from '../unit/pci-world.js';

class Registers extends PlainMmio {
  readonly writes: [number, number][] = [];
  read(offset: number, size: AccessSize): number {
    this.high = 0xaaaa_0000;
    return size === 4 ? offset + 1 : offset + size;
  }
  write(offset: number, _size: AccessSize, lo: number): void {
    this.writes.push([offset, lo]);
  }
}

function endpoint(more: Parameters<typeof svaFunction>[1] = {}): PciFunction {
  return new PciFunction(svaFunction(new Listener(createWorld().clock), more));
}

describe('header and capabilities', () => {
  it('identifies itself in a type 0 header (PCIe 6.0 section 7.5.1)', () => {
    const { config } = endpoint({ revision: 3, subsystemVendorId: 0x1234, subsystemId: 0x5678 });
    expect(config.read(0x00, 4)).toBe(0x0b25_8086);
    expect(config.read(0x08, 4)).toBe(0x0880_0003);
    expect(config.read(0x2c, 4)).toBe(0x5678_1234);
    expect(config.read(0x0e, 1)).toBe(0);
    expect(config.read(0x06, 2)).toBe(0x0010);
    config.write(0x00, 4, 0);
    expect(config.read(0x00, 4)).toBe(0x0b25_8086);
  });

  it('chains capabilities and ends both lists with zero (sections 7.5.1.1.11, 7.6.3)', () => {
    const fn = endpoint({ pm: true, siov: true, bars: [{ index: 0, sizeBytes: 0x1_0000, prefetchable: true, is64: true }], msix: { vectors: 9, tableBar: 0, tableOffset: 0x2000, pbaOffset: 0x3000 } });
    const { config } = fn;
    expect([config.read(0x34, 1), config.read(0x40, 2), config.read(0x48, 2), config.read(0x84, 2)]).toEqual([0x40, 0x4801, 0x8410, 0x0011]);
    expect(config.read(0x48 + 2, 2)).toBe(0x0092); // version 2, root complex integrated endpoint
    expect(config.read(0x48 + 4, 4)).toBe(0x1000_8000); // FLR, role-based error reporting
    expect(config.read(0x48 + 0x24, 4)).toBe(0x0060_0000); // end-end prefixes, at most one
    expect(config.read(0x84 + 2, 2)).toBe(8);
    expect([config.read(0x88, 4), config.read(0x8c, 4)]).toEqual([0x2000, 0x3000]);
    const headers = [0x100, 0x110, 0x120, 0x130].map((at) => config.read(at, 4));
    expect(headers).toEqual([0x1101_000f, 0x1201_001b, 0x1301_0013, 0x0001_0023]);
  });

  it('encodes PASID width 20 with execute and privileged mode as 0x1406 (PCI-PASIDCAP)', () => {
    const fn = endpoint();
    const at = findExtCapability(fn, 0x1b);
    expect(fn.config.read(at + 4, 2)).toBe(0x1406);
    fn.config.write(at + 6, 2, 0xffff);
    expect(fn.config.read(at + 6, 2)).toBe(0x0007);
    expect([fn.pasidEnabled, fn.pasidExecuteEnabled, fn.pasidPrivilegedEnabled, fn.pasidWidth]).toEqual([true, true, true, 20]);
  });

  it('has no enable bits for PASID features that it lacks (section 7.8.9.3)', () => {
    const fn = endpoint({ pasid: { width: 16, exec: false, priv: true } });
    const at = findExtCapability(fn, 0x1b);
    expect(fn.config.read(at + 4, 2)).toBe(0x1004);
    fn.config.write(at + 6, 2, 0x7);
    expect(fn.config.read(at + 6, 2)).toBe(0x5);
  });

  it('reads back ATS control for 4 KiB and 16 KiB units (PCI-ATSCTRL, PCI-ATSCTRL16K)', () => {
    const fn = endpoint();
    const at = findExtCapability(fn, 0x0f);
    expect(fn.config.read(at + 4, 2)).toBe(0x0020); // depth 32 is encoded 0, page aligned
    fn.config.write(at + 6, 2, 0x8000);
    expect([fn.config.read(at + 6, 2), fn.atsEnabled]).toEqual([0x8000, true]);
    fn.config.write(at + 6, 2, 0x8002);
    expect(fn.config.read(at + 6, 2)).toBe(0x8002);
    expect(endpoint({ ats: { queueDepth: 5, pageAligned: false } }).config.read(at + 4, 2)).toBe(5);
  });

  it('announces scalable I/O virtualization with the DVSEC that Linux 5.2 looks for (siov_find_pci_dvsec)', () => {
    const fn = endpoint({ siov: true });
    const at = findExtCapability(fn, 0x23);
    expect(fn.config.read(at + 4, 4)).toBe(0x0180_8086); // 24 bytes, revision 0, Intel
    expect(fn.config.read(at + 8, 2)).toBe(5);
    expect(findExtCapability(endpoint(), 0x23)).toBe(0);
  });

  it('reads vendor and device of a virtual function as all ones and gives it no PASID, PRI or BARs (section 9.3.4)', () => {
    const world = createWorld(), client = new Listener(world.clock);
    const pf = new PciFunction(svaFunction(client, {
      sriov: { totalVfs: 4, vfDeviceId: 0x0b26, createVf: (physfn) => new PciFunction({ name: 'vf', vendorId: 0x8086, deviceId: 0x0b26, classCode: 0x088000, client, flr: true, e2eTlpPrefix: true, ats: { queueDepth: 32, pageAligned: true }, physfn }) },
    }));
    world.complex.insert(world.root, 0x10, pf);
    const at = findExtCapability(pf, 0x10);
    expect([pf.config.read(at + 0xe, 2), pf.config.read(at + 0x1a, 2)]).toEqual([4, 0x0b26]);
    pf.config.write(at + 0x10, 2, 2);
    pf.config.write(at + 8, 2, 0x1);
    const [vf] = pf.sriov!.functions;
    expect(pf.sriov!.functions).toHaveLength(2);
    expect(world.complex.configRead(0, 0x11, 0, 4)).toBe(0xffff_ffff);
    expect(world.complex.configRead(0, 0x11, 0x34, 1)).toBe(0x40);
    expect([findExtCapability(vf!, 0x1b), findExtCapability(vf!, 0x13)]).toEqual([0, 0]);
    expect(vf!.config.read(findExtCapability(vf!, 0x0f) + 4, 2)).toBe(0x20); // queue depth 0: the PF's
    expect(vf!.pri).toBe(pf.pri);
    pf.config.write(findExtCapability(pf, 0x1b) + 6, 2, 1);
    expect(vf!.pasidEnabled).toBe(true);
    pf.config.write(at + 8, 2, 0);
    expect(world.complex.configRead(0, 0x11, 0x34, 1)).toBe(0xff);
    expect(pf.sriov!.functions).toHaveLength(0);
  });

  it('keeps NumVFs above TotalVFs and while VFs are enabled as it was (section 9.3.3.7)', () => {
    const fn = endpoint({ sriov: { totalVfs: 4, vfDeviceId: 1, createVf: () => endpoint() } });
    const at = findExtCapability(fn, 0x10);
    fn.config.write(at + 0x10, 2, 5);
    expect(fn.config.read(at + 0x10, 2)).toBe(0);
  });
});

describe('registers that behave', () => {
  it('resets on the FLR bit, which reads as zero (section 6.6.2)', () => {
    const resets: string[] = [];
    const fn = endpoint({ onReset: (kind) => void resets.push(kind) });
    const express = findCapability(fn, 0x10), ats = findExtCapability(fn, 0x0f);
    fn.config.write(0x04, 2, 0x6);
    fn.config.write(ats + 6, 2, 0x8000);
    fn.config.write(express + 8, 2, 0x8000);
    expect(resets).toEqual(['flr']);
    expect([fn.config.read(express + 8, 2), fn.config.read(0x04, 2), fn.config.read(ats + 6, 2), fn.atsEnabled, fn.busMaster]).toEqual([0x2000, 0, 0, false, false]);
  });

  it('ignores the FLR bit without the capability', () => {
    const resets: string[] = [];
    const fn = endpoint({ flr: false, onReset: (kind) => void resets.push(kind) });
    fn.config.write(findCapability(fn, 0x10) + 8, 2, 0x8000);
    expect(resets).toEqual([]);
  });

  it('runs the page request interface from stopped to enabled and back (section 10.5.2, E37)', () => {
    const fn = endpoint();
    const at = findExtCapability(fn, 0x13);
    expect([fn.config.read(at + 4, 2), fn.config.read(at + 6, 2), fn.config.read(at + 8, 4), fn.config.read(at + 0xc, 4)]).toEqual([0, 0x8100, 64, 0]);
    fn.config.write(at + 0xc, 4, 512);
    expect(fn.priAllocation).toBe(64); // never above the capacity
    fn.config.write(at + 4, 2, 1);
    expect([fn.priEnabled, fn.config.read(at + 6, 2)]).toEqual([true, 0x8000]);
    expect(fn.pri!.take(3)).toBe(true);
    fn.config.write(at + 4, 2, 0);
    expect([fn.priEnabled, fn.config.read(at + 6, 2)]).toEqual([false, 0x8000]); // not stopped: 3 outstanding
    fn.pri!.give(3);
    expect(fn.config.read(at + 6, 2)).toBe(0x8100);
  });

  it('forgets pending page requests on reset, and only while disabled (section 10.5.2.2)', () => {
    const fn = endpoint();
    const at = findExtCapability(fn, 0x13);
    fn.config.write(at + 0xc, 4, 8);
    fn.config.write(at + 4, 2, 1);
    fn.pri!.take(5);
    fn.config.write(at + 4, 2, 3);
    expect(fn.pri!.outstanding).toBe(5);
    fn.config.write(at + 4, 2, 0);
    fn.config.write(at + 4, 2, 2);
    expect([fn.pri!.outstanding, fn.config.read(at + 4, 2), fn.config.read(at + 6, 2)]).toEqual([0, 0, 0x8100]);
  });

  it('clears RF and UPRGI by writing ones, and on a rising enable (section 10.5.2.3)', () => {
    const fn = endpoint();
    const at = findExtCapability(fn, 0x13);
    fn.pri!.unexpectedResponse();
    fn.pri!.responseFailure();
    expect(fn.config.read(at + 6, 2)).toBe(0x8103);
    fn.config.write(at + 6, 2, 0x2);
    expect(fn.config.read(at + 6, 2)).toBe(0x8101);
    fn.config.write(at + 4, 2, 1);
    expect([fn.config.read(at + 6, 2), fn.pri!.active]).toEqual([0x8000, true]);
  });

  it('counts a PASID change while ATS is on as a violation (A2)', () => {
    const world = createWorld();
    const { fn } = plugSva(world);
    expect(fn.violations).toBe(0);
    fn.config.write(findExtCapability(fn, 0x1b) + 6, 2, 0x1);
    expect(fn.violations).toBe(1);
    expect(world.records('pci:violation')).toHaveLength(1);
  });
});

describe('base address registers', () => {
  it('answer sizing with their size and type (section 7.5.1.2.1)', () => {
    const { config } = endpoint({ bars: [
      { index: 0, sizeBytes: 0x1_0000, prefetchable: true, is64: true }, { index: 2, sizeBytes: 0x1000, prefetchable: false, is64: false },
      { index: 3, sizeBytes: 2 ** 33, prefetchable: true, is64: true },
    ] });
    for (let at = 0x10; at < 0x28; at += 4) config.write(at, 4, 0xffff_ffff);
    expect([0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map((at) => config.read(at, 4))).toEqual([0xffff_000c, 0xffff_ffff, 0xffff_f000, 0x0000_000c, 0xffff_fffe, 0]);
  });

  it('decode on the system bus while memory space is enabled, and move (section 7.5.1.1.3)', () => {
    const world = createWorld(), registers = new Registers();
    const fn = new PciFunction(svaFunction(new Listener(world.clock), { bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true, mmio: registers }] }));
    world.complex.insert(world.root, 8, fn);
    fn.config.write(0x10, 4, 0xe000_0000);
    fn.config.write(0x14, 4, 1);
    expect(world.systemBus.find(0x1_e000_0010)).toBeUndefined();
    expect(fn.window(0)!.read(0x10, 4)).toBe(0xffff_ffff);
    fn.config.write(0x04, 2, 0x2);
    expect(world.systemBus.find(0x1_e000_0010)!.mmio.read(0x10, 4)).toBe(0x11);
    fn.config.write(0x14, 4, 2);
    expect(world.systemBus.find(0x1_e000_0010)).toBeUndefined();
    expect(world.systemBus.find(0x2_e000_0010)?.start).toBe(0x2_e000_0000);
    fn.config.write(0x04, 2, 0);
    expect(world.systemBus.list()).toHaveLength(0);
  });

  it('stay silent where another window is (no two owners of an address)', () => {
    const world = createWorld();
    for (const devfn of [8, 16]) {
      const fn = new PciFunction(svaFunction(new Listener(world.clock), { name: `dev${devfn}`, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: false }] }));
      world.complex.insert(world.root, devfn, fn);
      fn.config.write(0x10, 4, 0xe000_0000);
      fn.config.write(0x04, 2, 0x2);
    }
    expect(world.systemBus.list().map((window) => window.name)).toEqual(['dev8 BAR 0']);
    expect(world.complex.conflicts).toBeGreaterThan(0);
  });
});

describe('MSI-X (sections 7.7.2, 6.1.4)', () => {
  function msixWorld(defects: ReadonlySet<string> = new Set()) {
    const world = createWorld(), registers = new Registers();
    const fn = new PciFunction(svaFunction(new Listener(world.clock), {
      bars: [{ index: 0, sizeBytes: 0x4000, prefetchable: false, is64: false, mmio: registers }], msix: { vectors: 3, tableBar: 0, tableOffset: 0x2000, pbaOffset: 0x3000 }, defects,
    }));
    world.complex.insert(world.root, 8, fn);
    fn.config.write(0x10, 4, 0xe000_0000);
    fn.config.write(0x04, 2, 0x6);
    const bar = world.systemBus.find(0xe000_0000)!.mmio;
    bar.write(0x2010, 4, 0xfee0_1000);
    bar.write(0x2018, 4, 0x41);
    return { world, fn, bar, registers, flags: findCapability(fn, 0x11) + 2 };
  }

  it('keeps table and pending bits in the BAR beside the device\'s registers', () => {
    const { bar, registers } = msixWorld();
    expect([bar.read(0x2010, 4), bar.read(0x2018, 4), bar.read(0x201c, 4)]).toEqual([0xfee0_1000, 0x41, 1]);
    expect([bar.read(0x2010, 8), bar.high]).toEqual([0xfee0_1000, 0]);
    expect(bar.read(0x100, 4)).toBe(0x101);
    bar.write(0x100, 4, 7);
    bar.write(0x3000, 4, 0xffff_ffff);
    expect(registers.writes).toEqual([[0x100, 7]]);
    expect(bar.read(0x3000, 4)).toBe(0);
  });

  it('sends nothing while disabled, pends under a mask, and sends late after unmasking', () => {
    const { world, fn, bar, flags } = msixWorld();
    fn.raiseMsix(1);
    expect([world.messages.length, fn.msix!.dropped]).toEqual([0, 1]);
    fn.config.write(flags, 2, 0x8000);
    fn.raiseMsix(1);
    expect([world.messages.length, bar.read(0x3000, 4)]).toEqual([0, 2]);
    bar.write(0x201c, 4, 0);
    expect(world.messages).toEqual([{ address: 0xfee0_1000, data: 0x41, sourceId: 8 }]);
    expect(bar.read(0x3000, 4)).toBe(0);
    fn.config.write(flags, 2, 0xc000);
    fn.raiseMsix(1);
    expect(world.messages).toHaveLength(1);
    fn.config.write(flags, 2, 0x8000);
    expect(world.messages).toHaveLength(2);
  });

  it('cannot interrupt without bus mastering', () => {
    const { world, fn, bar, flags } = msixWorld();
    fn.config.write(flags, 2, 0x8000);
    bar.write(0x201c, 4, 0);
    fn.config.write(0x04, 2, 0x2);
    fn.raiseMsix(1);
    expect(world.messages).toHaveLength(0);
  });

  it('is caught when a device ignores its masks (defect pci.msix-ignore-mask)', () => {
    const { world, fn, flags } = msixWorld(new Set(['pci.msix-ignore-mask']));
    fn.config.write(flags, 2, 0x8000);
    fn.raiseMsix(1);
    expect(world.messages).toHaveLength(1);
  });
});

describe('bridges', () => {
  it('have a type 1 header whose bus numbers and windows software programs (section 7.5.1.3)', () => {
    const { config } = new PciPort({ name: 'rp', type: 4, e2eTlpPrefix: true, acs: 0x1f, portNumber: 3 });
    expect([config.read(0x0e, 1), config.read(0x0a, 2)]).toEqual([1, 0x0604]);
    config.write(0x18, 4, 0xffff_ffff);
    expect(config.read(0x18, 4)).toBe(0x00ff_ffff);
    config.write(0x20, 4, 0xffff_ffff);
    expect(config.read(0x20, 4)).toBe(0xfff0_fff0);
    expect(config.read(0x24, 4)).toBe(0x0001_0001);
    expect(config.read(0x42, 2)).toBe(0x0042);
    expect(config.read(0x40 + 0x0c, 4)).toBe(0x0300_0000);
    config.write(0x106, 2, 0xffff);
    expect([config.read(0x104, 2), config.read(0x106, 2)]).toEqual([0x1f, 0x1f]);
  });
});
