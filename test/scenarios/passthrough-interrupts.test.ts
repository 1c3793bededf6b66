/** Interrupts of devices in the hands of users: they reach the right guest's virtual CPU, and nobody can forge another's. */
import { describe, expect, it } from 'vitest';
import { FLAG, OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import type { Guest } from '../../harness/guests/guest.js';
import { EventFd } from '../../host/eventfd.js';
import type { InterruptMessage } from '../../host/interrupts.js';
import { PCI_MSIX_IRQ } from '../../vfio/device.js';
import { UserDsa } from './passthrough-dsa-user.js';
import { mdevDsa, PAGE, PassthroughWorld, slices, Worker } from './passthrough-world.js';
import { DSA0, type WorldOptions } from './world.js';

const WINDOW = 0xfee0_0000;
const wholeDsa = (name: string, bdf: string) => ({ ...DSA0, name, bdf });

/** Two guests with a whole accelerator and a slice of a third one each. */
function twoGuests(options: WorldOptions = {}): { world: PassthroughWorld; guests: Guest[] } {
  const world = new PassthroughWorld({
    devices: [mdevDsa(1, 1), wholeDsa('dsa1', '0000:6f:01.0'), wholeDsa('dsa2', '0000:74:01.0')], mdevs: slices(1, 1),
    guests: [0, 1].map((i) => ({ name: `vm${i}`, memory: '16MiB', vcpus: 2, devices: [{ mdev: `m${i}`, name: 'slice' }, { host: `dsa${i + 1}`, name: 'whole' }] })),
    ...options,
  });
  return { world, guests: ['vm0', 'vm1'].map((name) => world.started(name)) };
}

/** Messages that come in from now on. */
function messagesOf({ interrupts }: { readonly interrupts: PassthroughWorld['host']['interrupts'] }): InterruptMessage[] {
  const messages: InterruptMessage[] = [];
  interrupts.messages$.subscribe((message) => void messages.push(message));
  return messages;
}

describe('an interrupt', () => {
  it.each(['whole', 'slice'])('of a %s device reaches a virtual CPU of the guest that has it, and no other guest', (device) => {
    const { world, guests } = twoGuests();
    const seen = guests.map(({ kernel }) => messagesOf(kernel!));
    const workers = guests.map((guest) => new Worker(world, guest).open(device));
    for (const [i, worker] of workers.entries()) {
      const before = seen.map(({ length }) => length), injections = guests.map(({ vmm }) => vmm!.injections);
      expect(worker.copies(device)).toBe(true);
      const came = seen.map(({ length }, k) => length - before[k]!);
      expect([came[i]! > 0, came[1 - i]]).toEqual([true, 0]);
      expect(guests.map(({ vmm }, k) => vmm!.injections - injections[k]!)).toEqual(came);
    }
    for (const [i, messages] of seen.entries()) {
      for (const { address } of messages) expect((address >>> 12) & 0xff).toBeLessThan(guests[i]!.topology.vcpus);
      expect(guests[i]!.kernel!.interrupts.spurious).toBe(0);
    }
    expect(world.host.interrupts.spurious).toBe(0);
    world.finish();
  });

  it('of a device in the hands of a process is a signal of its eventfd', () => {
    const world = new PassthroughWorld({ devices: [DSA0] });
    world.give('dsa0');
    const user = world.user('spdk');
    const { container, devices: [device] } = user.assemble(['dsa0']);
    const memory = user.mmap(4 * PAGE);
    world.run(container.mapDma({ iova: 0, vaddr: memory, sizeBytes: 4 * PAGE }));
    const vectors = [0, 1].map((i) => new EventFd(world.host.scheduler, `vector ${i}`));
    world.run(device!.setIrqs({ index: PCI_MSIX_IRQ, eventfds: vectors.map((eventfd) => user.process.open(eventfd)) }));
    const dsa = new UserDsa(world, user, device!, { whole: true });
    world.run(dsa.start());
    dsa.submit({ opcode: OPCODE.MEMMOVE, source: 0, destination: PAGE, size: 64, flags: FLAG.RCI, interruptHandle: 1 }, 2 * PAGE);
    expect(world.run(vectors[1]!.wait())).toBe(1);
    expect([world.run(dsa.wait(memory + 2 * PAGE)).status, vectors[0]!.signals]).toEqual([STATUS.SUCCESS, 0]);
    // torn down: the same again is nobody's interrupt
    world.run(device!.setIrqs({ index: PCI_MSIX_IRQ, count: 0 }));
    dsa.submit({ opcode: OPCODE.NOOP, flags: FLAG.RCI, interruptHandle: 1 }, 2 * PAGE);
    world.settle();
    expect([vectors[1]!.signals, world.host.interrupts.spurious]).toEqual([1, 0]);
    user.exit();
    world.finish();
  });
});

/** What a forging guest tries: messages as without remapping, to every vector; and handles of every interrupt that is remapped. */
const COMPATIBLE = Array.from({ length: 24 }, (_, i) => ({ address: WINDOW, data: 0x21 + i }));
const REMAPPABLE = Array.from({ length: 24 }, (_, i) => ({ address: WINDOW + (1 << 4) + (i << 5), data: 0 }));

/** Lets the guest's device write messages; how each ended, and the messages that arrived on the host. */
function forge(world: PassthroughWorld, guest: Guest, device: string, forgeries: readonly { address: number; data: number }[]) {
  const worker = new Worker(world, guest).open(device);
  const source = worker.malloc(PAGE);
  const arrived = messagesOf(world.host);
  const statuses = forgeries.map(({ address, data }) => {
    worker.write(source, new Uint8Array(Uint32Array.of(data).buffer));
    return worker.copy(device, source, address, 4, { to: true }).status;
  });
  return { statuses, arrived };
}

describe('an interrupt forged by DMA', () => {
  it('of a whole device is blocked by remapping: no vector of the host hears of it', () => {
    const { world, guests } = twoGuests();
    const source = world.host.devices.models.find(({ name }) => name === 'dsa1')!.function.requesterId;
    // handles that are the device's own, which it may use
    new Worker(world, guests[0], 'before').open('whole').copies('whole');
    const own = new Set(world.records('vtd:interrupt').filter((record) => record['source'] === source).map(({ index }) => index));
    const vectors = new Set(world.records('vtd:interrupt').filter((record) => record['source'] === source).map(({ vector }) => vector));
    const forgeries = [...COMPATIBLE, ...REMAPPABLE.filter((_, i) => !own.has(i))];
    const { statuses, arrived } = forge(world, guests[0]!, 'whole', forgeries);
    expect(new Set(statuses)).toEqual(new Set(['error']));
    // completions of its own came in, under its own vectors, and nothing else
    expect(arrived.filter(({ sourceId, vector }) => sourceId === source && !vectors.has(vector))).toEqual([]);
    expect(world.host.interrupts.spurious).toBe(0);
    expect(world.log('INTR-REMAP').length).toBeGreaterThan(0);
    expect(new Worker(world, guests[1], 'after').open('whole').copies('whole')).toBe(true);
    world.finish();
  });

  it('of a mediated device is an address like any other under its PASID, and mapped by nobody', () => {
    const { world, guests } = twoGuests();
    const { statuses } = forge(world, guests[0]!, 'slice', [...COMPATIBLE.slice(0, 4), ...REMAPPABLE.slice(0, 4)]);
    expect(new Set(statuses)).toEqual(new Set(['page-fault']));
    expect(world.host.interrupts.spurious).toBe(0);
    world.finish();
  });

  it('without remapping reaches whatever vector it names: what allow_unsafe_interrupts allows (E33)', () => {
    const { world, guests } = twoGuests({ iommu: { 'interrupt-remapping': false }, kernel: { 'allow-unsafe-interrupts': true } });
    const source = world.host.devices.models.find(({ name }) => name === 'dsa1')!.function.requesterId;
    const { statuses, arrived } = forge(world, guests[0]!, 'whole', COMPATIBLE);
    expect(new Set(statuses)).toEqual(new Set(['success']));
    const named = new Set(arrived.filter(({ sourceId }) => sourceId === source).map(({ vector }) => vector));
    for (const { data } of COMPATIBLE) expect(named.has(data)).toBe(true);
    world.finish();
  });
});
