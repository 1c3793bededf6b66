/**
 * A machine with an attacker in it: a guest that holds slices of an accelerator, a whole accelerator, a whole
 * educational device and a serial card, and pokes at all of them with nonsense; a neighbour guest, and a process of the
 * host, that share the accelerator and the card's driver with it and must not notice; somebody who looks at the devices before and after.
 */
import { expect } from 'vitest';
import { createMachineSync, type Machine } from '../../harness/machine.js';
import type { Guest } from '../../harness/guests/guest.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import type { DeviceModel } from '../../harness/compose/devices.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { EventFd } from '../../host/eventfd.js';
import { PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_PM, PCI_EXT_CAP_ID_PRI, PCI_PRI_ALLOC_REQ } from '../../host/pci/spec/index.js';
import type { AccessSize } from '../../sim/mmio.js';
import type { Process } from '../../host/process.js';
import { isErrno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { sleep, type Scheduler, type Steps } from '../../sim/task.js';
import { VfioClient, type ContainerHandle, type DeviceHandle, type GroupHandle } from '../../vfio/client/index.js';
import { PCI_CONFIG_REGION, PCI_NUM_REGIONS, REGION_INFO_READ } from '../../vfio/device.js';

type Guests = NonNullable<TopologyInput['guests']>;
type Step = NonNullable<Guests[number]['processes']>[number]['steps'][number];

export const SIZES: readonly AccessSize[] = [1, 2, 4, 8];
/** What the attacker holds: slices of dsa0, whole devices, a card of software. */
export const LOOT = ['mine', 'place', 'dsa1', 'edu0', 'tty'] as const;
export type Loot = (typeof LOOT)[number];
const UUIDS: Readonly<Record<string, string>> = Object.fromEntries(['mine', 'place', 'tty', 'theirs', 'their-place', 'their-tty'].map((name, i) => [name, `83b8f4f2-509f-382f-3c1e-${(i + 1).toString(16).padStart(12, '0')}`]));

/** Copies of a neighbour's process while the attack is on. */
const ROUNDS = 25;

/** Copies, again and again, with a look at what arrived. */
function copying(devices: readonly string[], rounds: number, seed: number, open: (device: string) => Step = (device) => ({ open: { device } })): Step[] {
  return devices.flatMap((device, i): Step[] => [
    open(device),
    { malloc: { name: `${device}-a`, size: 0x6000 } },
    { malloc: { name: `${device}-b`, size: 0x6000 } },
    { repeat: { times: rounds, steps: [
      { fill: { buffer: `${device}-a`, random: seed + i } },
      { fill: { buffer: `${device}-b`, value: 0 } },
      { submit: { to: device, copy: { from: `${device}-a`, to: `${device}-b` }, chunk: 0x2000 } },
      { wait: { for: device } },
      { verify: { buffer: `${device}-b`, equals: `${device}-a` } },
      { sleep: '5us' },
    ] } },
  ]);
}

/** @param forging interrupts are not remapped: any device can send any */
function topology(forging: boolean): TopologyInput {
  const mdev = (name: string, parent: string, mdev_type: string): NonNullable<TopologyInput['mdevs']>[number] => ({ uuid: UUIDS[name]!, name, parent, mdev_type });
  const loot: Guests[number]['devices'] = [{ mdev: 'mine' }, { mdev: 'place' }, { host: 'dsa1' }, { host: 'edu0' }, { mdev: 'tty' }];
  return {
    version: 1, name: 'hostile',
    host: {
      memory: '256MiB', iommu: { model: 'intel-vtd', 'interrupt-remapping': !forging }, kernel: { 'allow-unsafe-interrupts': forging },
      devices: [
        {
          model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0', engines: 4, 'mdev-slots': 4,
          'work-queues': [
            { name: 'native', mode: 'shared', type: 'user', size: 16 },
            { mode: 'dedicated', type: 'mdev', size: 16, 'block-on-fault': true },
            { mode: 'dedicated', type: 'mdev', size: 16 },
            { mode: 'shared', type: 'mdev', size: 32 },
          ],
        },
        { model: 'dsa', name: 'dsa1', bdf: '0000:6f:01.0' },
        { model: 'edu', name: 'edu0', bdf: '0000:00:05.0' },
      ],
      'mdev-parents': [{ model: 'mtty', name: 'mtty0' }],
    },
    mdevs: [
      mdev('mine', 'dsa0', 'idxd-1dwq-v1'), mdev('theirs', 'dsa0', 'idxd-1dwq-v1'), mdev('place', 'dsa0', 'idxd-1swq-v1'), mdev('their-place', 'dsa0', 'idxd-1swq-v1'),
      mdev('tty', 'mtty0', 'mtty-2'), mdev('their-tty', 'mtty0', 'mtty-2'),
    ],
    guests: [
      // its processes are those of whoever has the devices after the attack
      { name: 'attacker', memory: '16MiB', devices: loot, processes: [{ name: 'copies', steps: copying(['mine', 'place', 'dsa1', 'tty'], 2, 3) }] },
      {
        name: 'neighbour', memory: '16MiB', devices: [{ mdev: 'theirs' }, { mdev: 'their-place' }, { mdev: 'their-tty' }],
        processes: ['theirs', 'their-place', 'their-tty'].map((device, i) => ({ name: `copies${i}`, steps: copying([device], ROUNDS, i) })),
      },
    ],
    processes: [{ name: 'native', steps: copying(['dsa0'], ROUNDS, 9, (device) => ({ open: { device, queue: 'native' } })) }],
    limits: { events: 50_000_000, time: '1000000s' },
  };
}

/** A process that has a device open. */
export interface Held {
  readonly process: Process;
  readonly client: VfioClient;
  readonly container: ContainerHandle;
  readonly group: GroupHandle;
  readonly device: DeviceHandle;
}

/** What a user finds in a device: configuration space, BARs that can be read, interrupts that are pending. */
export type Look = Readonly<Record<string, string>>;

export class HostileMachine {
  readonly machine: Machine;
  readonly random: Random;
  private lookers = 0;

  constructor(seed: number, label: string, options: { readonly forging?: boolean } = {}) {
    this.random = new Random(0).split(`${label} ${seed}`);
    this.machine = createMachineSync(topology(options.forging ?? false), { seed: seed + 1, traceRecords: 1 << 12 });
    this.machine.boot();
  }

  get host() {
    return this.machine.host;
  }

  run<T>(steps: Steps<T>): T {
    return this.machine.execute('test', steps);
  }

  wait(ns: number): void {
    this.host.clock.run({ untilNs: this.host.clock.now + ns });
  }

  /** Starts a guest; it has booted when this returns. The attacker's processes do not begin. */
  start(name: string, as = name): Guest {
    const { scenario, loaded } = this.machine;
    const topology = loaded.topology.guests.find((one) => one.name === name)!;
    const guest = scenario.newGuest({ ...topology, name: as, processes: as === 'attacker' ? [] : topology.processes });
    this.run(guest.start());
    expect([guest.state, guest.reason]).toEqual(['running', '']);
    return guest;
  }

  startNative(): void {
    this.machine.scenario.world.begin(this.machine.loaded.topology.processes);
    this.wait(0);
  }

  /** Every process of the host or of these guests ends, and without a complaint. */
  finishCopies(guests: readonly Guest[] = []): void {
    const worlds = [this.machine.scenario.world, ...guests.map(({ world }) => world!)];
    const left = (): string[] => worlds.flatMap((world) => [...world.programs.values()].filter(({ exited }) => !exited).map(({ name }) => world.fullName(name)));
    this.host.clock.run({ stop: () => left().length === 0 });
    expect(left(), this.machine.deadlockReport().join('\n')).toEqual([]);
    expect(this.machine.scenario.failures).toEqual([]);
  }

  model(name: string): DeviceModel {
    return this.host.devices.models.find((model) => model.name === name)!;
  }

  pci(name: string): PciFunctionDevice {
    return this.host.pci.find(this.model(name).bdf)!;
  }

  /** Bytes of the host's functions that no guest may move: all of a parent's, what is the kernel's of a whole device. */
  hostConfig(): Look {
    const found: Record<string, string> = { vectors: `${this.host.interrupts.list().length}` };
    for (const device of this.host.pci.devices) {
      const whole = device.name === this.model('dsa1').bdf || device.name === this.model('edu0').bdf;
      const words = Array.from({ length: 1024 }, (_, i) => this.host.access.read(device.segment, device.bus, device.devfn, i * 4, 4));
      if (whole) hideUsers(device, words);
      else hideStatus(device, words);
      found[device.name] = words.map((word, i) => (word === 0 ? '' : `${(i * 4).toString(16)}=${word.toString(16)} `)).join('');
    }
    return found;
  }

  /** What the attacker may open: number under /dev/vfio, name for GET_DEVICE_FD. */
  loot(): { readonly loot: Loot; readonly group: number; readonly name: string }[] {
    const { passthrough, pci } = this.host;
    return LOOT.map((loot) => {
      const mdev = UUIDS[loot] === undefined ? undefined : passthrough.mdevs.find(UUIDS[loot])!;
      return mdev === undefined ? { loot, group: pci.groupOf(this.pci(loot)).id, name: this.pci(loot).name } : { loot, group: mdev.group!, name: mdev.uuid };
    });
  }

  /** A process that opens a device as its user does. */
  holding(what: Loot): Held {
    const process = this.machine.scenario.world.newProcess(`holder${this.lookers++}`);
    const client = new VfioClient(this.host.passthrough.vfio, process);
    const { group: id, name } = this.loot().find(({ loot }) => loot === what)!;
    const container = client.openContainer(), group = client.openGroup(id);
    this.run(group.setContainer(container));
    this.run(container.setIommu('type1v2'));
    return { process, client, container, group, device: this.run(group.getDevice(name)) };
  }

  /** Opens every device as a user does and reads what is there. Interrupts are wired so that what is pending comes. */
  look(): Look {
    const { passthrough, scheduler, clock } = this.host;
    const { world } = this.machine.scenario;
    const process = world.newProcess(`looker${this.lookers++}`);
    const client = new VfioClient(passthrough.vfio, process);
    const found: Record<string, string> = {};
    const loots = this.loot();
    this.run((function* (): Steps {
      for (const loot of loots) {
        const group = client.openGroup(loot.group);
        const container = client.openContainer();
        yield* group.setContainer(container);
        yield* container.setIommu('type1v2');
        const device = yield* group.getDevice(loot.name);
        const eventfds: number[] = [];
        let signals = 0;
        for (const index of [1, 2]) {
          const { count } = yield* orNone(device.irq(index));
          if (count === 0) continue;
          for (let i = 0; i < count; i++) eventfds.push(process.open(listening(scheduler, () => void signals++)));
          yield* device.setIrqs({ index, eventfds });
          break;
        }
        let text = '';
        device.writeValue(PCI_CONFIG_REGION, 4, 2, 2);
        for (let region = 0; region < PCI_NUM_REGIONS; region++) {
          const info = yield* orNone(device.region(region));
          if ((info.flags & REGION_INFO_READ) === 0 || info.sizeBytes === 0) continue;
          const bytes = new Uint8Array(Math.min(info.sizeBytes, 0x3000));
          // words, which every device takes
          for (let at = 0; at < bytes.length; at += 4) bytes.set(device.read(region, at, 4), at);
          text += region === 2 && bytes.every((byte) => byte === 0xff) ? '' : `${region}:${Array.from(bytes, (byte, at) => (byte === 0 ? '' : `${at.toString(16)}=${byte.toString(16)}`)).filter((part) => part !== '').join(' ')};`;
        }
        yield* sleep(clock, 50_000);
        found[loot.loot] = `${text} ${signals} signals`;
        yield* device.close();
        yield* group.close();
        yield* container.close();
      }
      yield* process.exit();
    })());
    return found;
  }

  /** Takes the machine down: checkers, leaks, what is left over. */
  finish(): void {
    const { machine } = this;
    machine.takeDown();
    const summary = machine.summary();
    expect(summary.invariants.flatMap(({ violations, name }) => violations.map((text) => `${name}: ${text}`))).toEqual([]);
    expect(summary.leaks).toEqual({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 });
    expect(this.host.passthrough.type1.usage).toEqual({ containers: 0, mappings: 0, domains: 0, binds: 0 });
    expect(summary.end).toBe('finished');
  }
}

/** Registers of a function that its own events change. */
function hideStatus(device: PciFunctionDevice, words: number[]): void {
  words[1]! &= 0xffff;
  const express = device.findCapability(PCI_CAP_ID_EXP);
  if (express !== undefined) words[(express + 8) / 4]! &= 0xffff;
}

/** And those that a user of the whole function has: command, cache line and timers, interrupt line, power state, device control, MSI but for its message; page requests allocated by a bind. */
function hideUsers(device: PciFunctionDevice, words: number[]): void {
  hideStatus(device, words);
  words[1] = 0;
  words[3] = 0;
  words[15]! &= ~0xff;
  const at = (id: number): number => (device.findCapability(id) ?? 0x1000) / 4;
  words[at(PCI_CAP_ID_EXP) + 2] = 0;
  words[at(PCI_CAP_ID_PM) + 1] = 0;
  words[at(PCI_CAP_ID_MSI)] = 0;
  words[at(PCI_CAP_ID_MSIX)] = 0;
  words[((device.findExtCapability(PCI_EXT_CAP_ID_PRI) ?? 0xff0) + PCI_PRI_ALLOC_REQ) / 4] = 0;
}

function listening(scheduler: Scheduler, heard: () => void): EventFd {
  const eventfd = new EventFd(scheduler);
  eventfd.listen(() => {
    if (eventfd.count > 0) eventfd.read();
    heard();
  });
  return eventfd;
}

const NOTHING = { flags: 0, sizeBytes: 0, count: 0 };

/** What an index that the device lacks says. */
function* orNone<T extends object>(steps: Steps<T>): Steps<T | typeof NOTHING> {
  try {
    return yield* steps;
  } catch (error) {
    if (!isErrno(error, 'EINVAL')) throw error;
    return NOTHING;
  }
}
