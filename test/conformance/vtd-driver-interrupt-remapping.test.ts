/** Interrupt remapping as the driver sets it up and gives it to devices (Linux: drivers/iommu/intel/irq_remapping.c; VT-d 4.1, chapter 5; E33). */
import { describe, expect, it } from 'vitest';
import { createMachineSync } from '../../harness/machine.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import { InterruptController, type IrqVector } from '../../host/interrupts.js';
import { Channel } from '../../sim/channel.js';
import { DeviceInterrupts } from '../../iommu/intel-vtd/driver/device-interrupts.js';
import { DMA_DONE } from '../../host/pci/dma-port.js';
import type { DmarStructure } from '../../iommu/intel-vtd/spec/dmar.js';
import { IRTE, remappableAddress } from '../../iommu/intel-vtd/spec/interrupt-remapping.js';
import { GCMD_CFI, GCMD_IRE, GCMD_QIE, GCMD_SIRTP, REG } from '../../iommu/intel-vtd/spec/registers.js';
import { SvaWorld } from '../fixtures/sva-world.js';
import { DriverWorld, TestFunction, UNIT_BASE, type DriverWorldOptions } from './vtd-driver-world.js';

const WITH_REMAPPING = { 'interrupt-remapping': true } as const;
const ENTRIES = 65_536;

function remapping(options: Omit<DriverWorldOptions, 'capabilities'> = {}): DriverWorld {
  const world = new DriverWorld({ capabilities: WITH_REMAPPING, ...options }).start();
  world.take();
  return world;
}

/** A function sends what was programmed into it, or anything else. */
function send({ unit, interrupts, clock }: DriverWorld, sourceId: number, { address, data }: Pick<IrqVector, 'address' | 'data'>): boolean {
  const passed = unit.remapInterrupt(sourceId, address, data) === DMA_DONE;
  if (passed) interrupts.message(unit.messageAddress, unit.messageData, sourceId);
  clock.run({ untilNs: clock.now + 1_000_000 });
  return passed;
}

function settle({ clock }: DriverWorld): void {
  clock.run({ untilNs: clock.now + 1_000_000 });
}

function irte(world: DriverWorld, index: number): Uint32Array {
  const words = new Uint32Array(4);
  const base = world.driver.units[0]!.interruptTable!.base + index * 16;
  for (let i = 0; i < 4; i++) words[i] = world.ram.load(base + 4 * i, 4);
  return words;
}

/** Descriptors that reach the queue for the interrupt-entry cache. */
function entryInvalidations(world: DriverWorld): string[] {
  return world.takeDescriptors().filter((note) => note.startsWith('d IEC'));
}

function tryAlloc({ frames }: DriverWorld, order: number): number | undefined {
  try {
    return frames.alloc('filler', order);
  } catch {
    return undefined;
  }
}

describe('bring-up, as Linux: after the queue, before the root table (intel_prepare_irq_remapping, intel_enable_irq_remapping)', () => {
  it('sets table and pointer, invalidates the cache, enables; then comes DMA remapping', () => {
    const world = new DriverWorld({ capabilities: WITH_REMAPPING });
    world.run(world.driver.start());
    const notes = world.take().map((note) => note.replace(/0x[0-9a-f]+0000f$/, '0x…0000f')).filter((note) => !note.startsWith('r ') || note.startsWith('r GSTS'));
    const from = notes.indexOf('w IRTA 8 0x…0000f');
    expect(notes[from - 1]).toBe('r GSTS 4 0x4000000');
    expect(notes.slice(from, from + 8)).toEqual([
      'w IRTA 8 0x…0000f', 'w GCMD 4 0x5000000', 'r GSTS 4 0x5000000', 'w IQT 4 0x40', 'd IEC 0x4 0x0', 'd WAIT 0x200000025', 'w GCMD 4 0x6000000', 'r GSTS 4 0x7000000',
    ]);
    expect(notes.findIndex((note) => note.startsWith('w RTADDR'))).toBeGreaterThan(from + 7);
    expect([world.driver.interruptRemapping, world.lines(/DMAR-IR/)]).toEqual([true, ['DMAR-IR: Enabled IRQ remapping in xapic mode']]);
    expect(world.frames.usage().find(({ owner }) => owner === 'dmar0 interrupt remapping table')?.frames).toBe(256);
  });

  it('keeps remapping on through the commands of DMA remapping, and switches it off last', () => {
    const world = remapping();
    expect((world.unit.read(REG.GSTS, 4) & GCMD_IRE) !== 0).toBe(true);
    world.run(world.driver.stop());
    const commands = world.take().filter((note) => note.startsWith('w GCMD') || note.startsWith('d IEC'));
    expect(commands).toEqual(['w GCMD 4 0x6000000', 'd IEC 0x4 0x0', 'w GCMD 4 0x4000000']);
    expect([world.driver.interruptRemapping, world.unit.read(REG.GSTS, 4) & GCMD_IRE]).toEqual([false, 0]);
  });

  it('leaves the cache alone with ESIRTPS', () => {
    const built = new DriverWorld({ capabilities: WITH_REMAPPING }).capabilities;
    const world = new DriverWorld({ registers: { cap: built.cap | (1n << 62n), ecap: built.ecap } }).start();
    expect([entryInvalidations(world), world.driver.interruptRemapping]).toEqual([[], true]);
  });

  it.each([
    ['the unit cannot', { capabilities: {}, dmarFlags: 1 }],
    ['firmware does not say that the platform can', { capabilities: WITH_REMAPPING, dmarFlags: 0 }],
    ['it is switched off', { capabilities: WITH_REMAPPING, driver: { interruptRemapping: false } }],
  ] as [string, DriverWorldOptions][])('not when %s', (_why, options) => {
    const world = new DriverWorld(options).start();
    expect([world.driver.interruptRemapping, world.unit.read(REG.GSTS, 4) & (GCMD_IRE | GCMD_SIRTP)]).toEqual([false, 0]);
    const vector = world.driver.deviceInterrupts.request('x', () => {}, world.function());
    expect(vector).toEqual({ vector: 0x23, address: 0xfee0_0000, data: 0x23 });
    expect(world.frames.usage().some(({ owner }) => owner.includes('interrupt'))).toBe(false);
  });

  it('goes on without when there is no memory for the table', () => {
    const world = new DriverWorld({ capabilities: WITH_REMAPPING });
    const taken: number[] = [];
    for (let address = tryAlloc(world, 8); address !== undefined; address = tryAlloc(world, 8)) taken.push(address);
    // room for queues, but for nothing of 1 MiB
    const hole = taken.pop()!;
    world.frames.free(hole, 8);
    world.frames.alloc('small');
    world.start();
    expect([world.driver.interruptRemapping, world.lines(/DMAR-IR/)]).toEqual([false, ['DMAR-IR: Failed to setup irq remapping for dmar0']]);
  });

  it('blocks compatibility format that an earlier owner let pass, and takes its remapping off first', () => {
    const world = new DriverWorld({ capabilities: WITH_REMAPPING });
    world.unit.write(REG.GCMD, 4, GCMD_QIE | GCMD_IRE | GCMD_SIRTP | GCMD_CFI);
    world.start();
    expect(world.lines(/DMAR-IR/)[0]).toBe('DMAR-IR: IRQ remapping was enabled on dmar0 but we are not in kdump mode');
    const status = world.unit.read(REG.GSTS, 4);
    expect([status & GCMD_CFI, status & GCMD_IRE]).toEqual([0, GCMD_IRE]);
  });

  it('is off when one that an earlier owner left on is not wanted', () => {
    const world = new DriverWorld({ capabilities: WITH_REMAPPING, driver: { interruptRemapping: false } });
    world.unit.write(REG.GCMD, 4, GCMD_QIE | GCMD_IRE | GCMD_SIRTP);
    world.start();
    expect(world.unit.read(REG.GSTS, 4) & GCMD_IRE).toBe(0);
  });
});

describe('interrupts of a function', () => {
  it('has an entry that only this requester may use, and a message in remappable format', () => {
    const world = remapping();
    const fn = world.function({ sourceId: 0x1a0 });
    world.take();
    let count = 0;
    const message = world.driver.deviceInterrupts.request('edu', () => count++, fn);
    expect(message).toMatchObject({ address: remappableAddress(0), data: 0 });
    const words = irte(world, 0);
    expect(IRTE.decode(words)).toMatchObject({ P: 1n, FPD: 0n, DM: 0n, RH: 1n, TM: 0n, DLM: 0n, V: BigInt(message.vector), DST: 0n, SID: 0x1a0n, SQ: 0n, SVT: 1n });
    settle(world);
    expect(entryInvalidations(world)).toEqual(['d IEC 0x14 0x0']);
    expect([send(world, 0x1a0, message), count]).toEqual([true, 1]);
    expect(world.interrupts.list().find(({ name }) => name === 'edu')?.count).toBe(1);
  });

  it('MSI has a block of entries whose subhandle is its data; what is left over is never present', () => {
    const world = remapping();
    const fn = world.function();
    const heard: number[] = [];
    world.driver.deviceInterrupts.request('one', () => {}, fn);
    const block = world.driver.deviceInterrupts.requestBlock('msi', [0, 1, 2].map((i) => () => heard.push(i)), fn);
    expect(block.map(({ address, data }) => [address, data])).toEqual([0, 1, 2, 3].map((data) => [remappableAddress(4), data]));
    expect(block.map((message) => send(world, fn.sourceId, message))).toEqual([true, true, true, false]);
    expect([heard, world.lines(/INTR-REMAP/)]).toEqual([
      [0, 1, 2], ['DMAR: [INTR-REMAP] Request device [0000:00:04.0] fault index 0x7 [fault reason 0x22] Present field in the IRTE entry is clear'],
    ]);
    const table = world.driver.units[0]!.interruptTable!;
    for (const message of block) world.driver.deviceInterrupts.free(message);
    settle(world);
    expect([table.used, world.interrupts.list().filter(({ name }) => name.startsWith('msi'))]).toEqual([1, []]);
  });

  it('two devices cannot reach each other: neither by the other\'s message nor by a vector of their own choice', () => {
    const world = remapping();
    const a = world.function({ sourceId: 0x20 }), b = world.function({ sourceId: 0x28 });
    const heard: string[] = [];
    const messageA = world.driver.deviceInterrupts.request('a', () => heard.push('a'), a);
    const messageB = world.driver.deviceInterrupts.request('b', () => heard.push('b'), b);
    expect([send(world, 0x28, messageA), send(world, 0x20, messageB), heard]).toEqual([false, false, []]);
    expect(send(world, 0x28, { address: 0xfee0_0000, data: messageA.vector })).toBe(false);
    expect(world.lines(/INTR-REMAP/)).toEqual([
      'DMAR: [INTR-REMAP] Request device [0000:00:05.0] fault index 0x0 [fault reason 0x26] Blocked an interrupt request due to source-id verification failure',
      'DMAR: [INTR-REMAP] Request device [0000:00:04.0] fault index 0x1 [fault reason 0x26] Blocked an interrupt request due to source-id verification failure',
      'DMAR: [INTR-REMAP] Request device [0000:00:05.0] fault index 0x0 [fault reason 0x25] Blocked a compatibility format interrupt request',
    ]);
    expect([send(world, 0x20, messageA), send(world, 0x28, messageB), heard]).toEqual([true, true, ['a', 'b']]);
  });

  it('no fault handler of the device hears of a blocked interrupt: it is no DMA', () => {
    const world = remapping();
    const fn = world.function();
    const reports: unknown[] = [];
    world.driver.faults.values$.subscribe((report) => void reports.push(report));
    send(world, fn.sourceId, { address: 0xfee0_0000, data: 0x30 });
    expect([reports, world.lines(/INTR-REMAP/).length]).toEqual([[], 1]);
  });

  it('a function behind no unit, nobody in particular, and lines go past the table', () => {
    const scopes = [{ type: 1 as const, enumerationId: 0, startBus: 0, path: [{ device: 4, function: 0 }] }];
    const structures: DmarStructure[] = [{ kind: 'DRHD', includeAll: false, segment: 0, base: UNIT_BASE, sizeOrder: 0, scopes }];
    const world = remapping({ structures });
    const fn = world.function({ sourceId: 0x20 });
    const { deviceInterrupts } = world.driver;
    expect(deviceInterrupts.request('mine', () => {}, fn).address).toBe(remappableAddress(0));
    expect(deviceInterrupts.request('other', () => {}, new TestFunction({ sourceId: 0x28 })).address).toBe(0xfee0_0000);
    expect(deviceInterrupts.request('nobody', () => {}).address).toBe(0xfee0_0000);
    let lines = 0;
    const action = deviceInterrupts.requestLine(16, 'line', () => ++lines > 0, true);
    world.interrupts.setLine(16, world, true);
    world.clock.run({ untilNs: world.clock.now + 1500 });
    deviceInterrupts.disableLine(16);
    world.interrupts.setLine(16, world, false);
    deviceInterrupts.enableLine(16);
    deviceInterrupts.freeLine(action);
    expect([lines > 0, world.interrupts.listLines()]).toEqual([true, []]);
  });

  it('refuses without entries or vectors, and nothing has changed (ENOSPC)', () => {
    const world = remapping();
    const fn = world.function();
    const table = world.driver.units[0]!.interruptTable!;
    table.alloc(ENTRIES / 2);
    table.alloc(ENTRIES / 4);
    const vectors = world.interrupts.list().length;
    expect(() => world.driver.deviceInterrupts.requestBlock('x', Array.from({ length: 32_768 }, () => () => {}), fn)).toThrow('ENOSPC');
    expect([world.interrupts.list().length, table.used]).toEqual([vectors, (ENTRIES * 3) / 4]);
    // one processor has 223 vectors: as many of the block are given back
    const interrupts = new InterruptController(world.clock, world.timing, new Channel(world.mailbox, 'small'), { cpus: 1 });
    const small = new DeviceInterrupts(interrupts, world.log, () => table);
    small.remapping = true;
    expect(() => small.requestBlock('x', Array.from({ length: 256 }, () => () => {}), fn)).toThrow('ENOSPC');
    expect([interrupts.list(), table.used]).toEqual([[], (ENTRIES * 3) / 4]);
  });

  it('finds aligned room for a block between entries that are in use', () => {
    const table = remapping().driver.units[0]!.interruptTable!;
    expect([table.alloc(1), table.alloc(4), table.alloc(1), table.alloc(2), table.alloc(4)]).toEqual([0, 4, 1, 2, 8]);
    table.release(5);
    expect([table.alloc(2), table.alloc(1), table.alloc(1)]).toEqual([12, 5, 14]);
  });
});

describe('giving an interrupt back', () => {
  it('clears the entry at once; entry and vector are free when hardware has forgotten it', () => {
    const world = remapping();
    const fn = world.function();
    let count = 0;
    const { deviceInterrupts } = world.driver;
    const message = deviceInterrupts.request('edu', () => count++, fn);
    settle(world);
    send(world, fn.sourceId, message);
    world.take();
    deviceInterrupts.free(message);
    // nothing has been executed yet: the entry is cached, and neither it nor the vector is given to anybody
    expect([...irte(world, 0)]).toEqual([0, 0, 0, 0]);
    const next = deviceInterrupts.request('next', () => {}, fn);
    expect([next.address === message.address, next.vector === message.vector]).toEqual([false, false]);
    const late = world.unit.remapInterrupt(fn.sourceId, message.address, message.data);
    expect(late).toBe(DMA_DONE);
    world.interrupts.message(world.unit.messageAddress, world.unit.messageData, fn.sourceId);
    const spurious = world.interrupts.spurious;
    settle(world);
    expect(entryInvalidations(world)).toEqual(['d IEC 0x14 0x0', 'd IEC 0x100000014 0x0']);
    expect([count, world.interrupts.spurious]).toEqual([1, spurious + 1]);
    const again = deviceInterrupts.request('again', () => {}, fn);
    expect([again.address, again.vector]).toEqual([message.address, message.vector]);
  });

  it('keeps both as long as the queue stands still', () => {
    const world = remapping();
    const fn = world.function();
    const { deviceInterrupts } = world.driver;
    const message = deviceInterrupts.request('edu', () => {}, fn);
    settle(world);
    const queue = world.driver.units[0]!.queue;
    const place = world.unit.write.bind(world.unit);
    world.unit.write = (offset, size, lo, hi) => {
      if (offset !== REG.IQT) place(offset, size, lo, hi);
    };
    deviceInterrupts.free(message);
    settle(world);
    expect([world.driver.units[0]!.interruptTable!.used, world.interrupts.list().some(({ name }) => name === 'edu')]).toEqual([1, true]);
    world.unit.write = place;
    place(REG.IQT, 4, (queue.submitted % 256) * 32, 0);
    settle(world);
    expect([world.driver.units[0]!.interruptTable!.used, world.interrupts.list().some(({ name }) => name === 'edu')]).toEqual([0, false]);
  });

  it('a second free and a message of somebody else are nobody\'s business', () => {
    const world = remapping();
    const fn = world.function();
    const message = world.driver.deviceInterrupts.request('edu', () => {}, fn);
    world.driver.deviceInterrupts.free(message);
    settle(world);
    expect(world.driver.units[0]!.interruptTable!.used).toBe(0);
    const plain = world.driver.deviceInterrupts.request('plain', () => {});
    world.driver.deviceInterrupts.free(plain);
    expect(world.interrupts.list().some(({ name }) => name === 'plain')).toBe(false);
  });

  it('with the defect vtd-driver.skip-iec-flush an old message reaches the next owner of its vector', () => {
    for (const [defects, reached] of [[[], 0], [['vtd-driver.skip-iec-flush'], 1]] as const) {
      const world = remapping({ driverDefects: defects });
      const a = world.function({ sourceId: 0x20 }), b = world.function({ sourceId: 0x28 });
      const { deviceInterrupts } = world.driver;
      const message = deviceInterrupts.request('a', () => {}, a);
      send(world, 0x20, message);
      deviceInterrupts.free(message);
      settle(world);
      let count = 0;
      deviceInterrupts.request('b', () => count++, b);
      settle(world);
      send(world, 0x20, message);
      expect([defects, count]).toEqual([defects, reached]);
    }
  });
});

describe('through configuration space and BARs', () => {
  it('MSI-X tables and MSI registers hold handles; interrupts arrive; what the device forges does not', () => {
    const world = new SvaWorld({ idxd: { wqs: [{ name: 'wq', mode: 'dedicated', type: 'user', size: 8, blockOnFault: true }] }, vtd: WITH_REMAPPING });
    world.run(world.loadDrivers());
    const address = world.dsa.function.msix!.table[0]!, handle = (address >>> 5) & 0x7fff;
    expect([address & 0xfff0_001c, world.dsa.function.msix!.table[2]]).toEqual([0xfee0_0018 | 0, 0]);
    const { dsa, edu } = world;
    const before = world.log.lines.length;
    const send = (at: number, data: number): void => {
      edu.function.port.messageInterrupt(at, data);
      world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    };
    send(remappableAddress(handle), 0);
    send(0xfee0_0000, 0x30);
    // a liar on a bus without source validation is whom it says it is: that is what ACS is for
    dsa.function.forgeRequesterId(edu.function.requesterId);
    dsa.function.port.messageInterrupt(remappableAddress(handle), 0);
    dsa.function.forgeRequesterId(undefined);
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    const edu0 = world.eduPci.name;
    expect(world.log.lines.slice(before).map(({ text }) => text).filter((text) => text.includes('INTR-REMAP'))).toEqual([
      `DMAR: [INTR-REMAP] Request device [${edu0}] fault index 0x${handle.toString(16)} [fault reason 0x26] Blocked an interrupt request due to source-id verification failure`,
      `DMAR: [INTR-REMAP] Request device [${edu0}] fault index 0x0 [fault reason 0x25] Blocked a compatibility format interrupt request`,
      `DMAR: [INTR-REMAP] Request device [${edu0}] fault index 0x${handle.toString(16)} [fault reason 0x26] Blocked an interrupt request due to source-id verification failure`,
    ]);
  });
});

describe('a machine', () => {
  const topology = (iommu: object): TopologyInput => ({
    version: 1, name: 'ir', processes: [],
    host: { memory: '256MiB', iommu: { model: 'intel-vtd', ...iommu }, devices: [{ model: 'edu', name: 'edu0', bdf: '0000:00:03.0' }] },
  } as TopologyInput);

  it('remaps unless its unit cannot, and all entries are given back at shutdown', () => {
    const machine = createMachineSync(topology({}));
    machine.boot();
    const { iommu, devices, interrupts } = machine.host;
    expect(iommu!.interruptRemapping).toBe(true);
    const { port } = devices.models[0]!.function;
    port.messageInterrupt(0xfee0_0000, interrupts.list()[0]!.vector);
    machine.clock.run({ untilNs: machine.clock.now + 1_000_000 });
    expect(machine.dmesg().at(-1)).toMatch(/DMAR: \[INTR-REMAP\] Request device \[0000:00:03\.0\] fault index 0x0 \[fault reason 0x25\] Blocked a compatibility format interrupt request$/);
    machine.run();
    expect([machine.summary().leaks, iommu!.interruptRemapping]).toEqual([{ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 }, false]);
    const plain = createMachineSync(topology({ 'interrupt-remapping': false }));
    plain.boot();
    expect(plain.host.iommu!.interruptRemapping).toBe(false);
  });
});
