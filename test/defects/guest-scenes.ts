/**
 * Small topologies with guests and mediated devices, each with a moment in it that some defect of passthrough breaks.
 * Without defects every one of them passes.
 */
import type { TopologyInput } from '../../harness/topology/schema.js';

type Host = NonNullable<TopologyInput['host']>;
type Guest = NonNullable<TopologyInput['guests']>[number];
type Process = NonNullable<TopologyInput['processes']>[number];
type Step = Process['steps'][number];
type WorkQueues = NonNullable<Extract<NonNullable<Host['devices']>[number], { model: 'dsa' }>['work-queues']>;

const LIMITS = { time: '80ms', events: 2_000_000 } as const;

const DEDICATED: WorkQueues[number] = { mode: 'dedicated', type: 'mdev', size: 16, 'block-on-fault': false };
const SHARED: WorkQueues[number] = { mode: 'shared', type: 'mdev', size: 16, 'block-on-fault': false };

function host(queues: WorkQueues, more: Partial<Host> = {}): Host {
  return { memory: '256MiB', iommu: { model: 'intel-vtd' }, devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0', 'work-queues': queues }], ...more };
}

/** UUID of the mediated device of that number. */
export function uuid(number: number): string {
  return `83b8f4f2-509f-382f-3c1e-e6bfe0fa${String(number).padStart(4, '0')}`;
}

function slice(number: number, type: '1dwq' | '1swq' = '1dwq'): NonNullable<TopologyInput['mdevs']>[number] {
  return { uuid: uuid(number), name: `slice${number}`, parent: 'dsa0', mdev_type: `idxd-${type}-v1` };
}

function guest(name: string, devices: Guest['devices'], steps: readonly Step[], more: Partial<Guest> = {}): Guest {
  return { name, memory: '32MiB', devices, processes: steps.length === 0 ? [] : [{ name: 'app', steps: [...steps] }], ...more };
}

function buffers(size: string): Step[] {
  return [{ malloc: { name: 'source', size } }, { malloc: { name: 'target', size } }, { fill: { buffer: 'source', random: 1 } }];
}

/** Copies `source` and looks at the copy. */
function copied(to: string, chunk = '16KiB'): Step[] {
  return [{ submit: { to, copy: { from: 'source', to: 'target' }, chunk } }, { wait: { for: to } }, { verify: { buffer: 'target', equals: 'source' } }];
}

function work(device: string, size = '64KiB'): Step[] {
  return [{ open: { device } }, ...buffers(size), ...copied(device), { close: { handle: device } }];
}

const SERIAL_HOST: Host = { memory: '256MiB', iommu: { model: 'intel-vtd' }, 'mdev-parents': [{ model: 'mtty', name: 'mtty0' }] };
const SERIAL = { uuid: uuid(1), name: 'serial0', parent: 'mtty0', mdev_type: 'mtty-2' };

/** A NOOP descriptor under PASID 1, a host process's. */
const FOREIGN_NOOP = `01000000${'0'.repeat(120)}`;

export const GUEST_SCENES = {
  /** A guest with a dedicated queue of an accelerator. */
  guest: { version: 1, limits: LIMITS, host: host([DEDICATED]), mdevs: [slice(1)], guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], work('dsa'))] },

  /** Two guests on a shared queue. */
  shared: {
    version: 1, limits: { ...LIMITS, time: '200us' }, host: host([SHARED]), mdevs: [slice(1, '1swq'), slice(2, '1swq')],
    guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], work('dsa')), guest('vm1', [{ mdev: 'slice2', name: 'dsa' }], work('dsa'))],
  },

  /** A whole accelerator, in whose configuration the guest looks for what it must not have; its VMM is killed in the middle of a copy. */
  whole: {
    version: 1, limits: { ...LIMITS, time: '10s' }, host: { ...host([]), devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0' }] },
    guests: [
      guest('vm0', [{ host: 'dsa0', name: 'dsa' }], [
        { open: { device: 'dsa' } }, ...buffers('1MiB'), { submit: { to: 'dsa', copy: { from: 'source', to: 'target' }, chunk: '16KiB' } }, { wait: { for: 'dsa' } },
      ]),
      guest('vm1', [{ host: 'dsa0', name: 'dsa' }], work('dsa'), { start: '2s' }),
    ],
    inject: [{ when: { event: 'dsa:submit', count: 12 }, kill: 'vm0' }],
    expect: { guests: { vm0: 'killed', vm1: 'running' }, flows: { 'vm0/app/dsa': { status: 'failed' } } },
  },

  /** The administrator takes a mediated device back while its guest works with it, and makes another one. */
  removed: {
    version: 1, limits: LIMITS, host: host([DEDICATED]), mdevs: [slice(1), { ...slice(2), start: 'manual' }],
    guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], [
      { open: { device: 'dsa' } }, ...buffers('1MiB'), { submit: { copy: { from: 'source', to: 'target' }, chunk: '16KiB' } }, { wait: { status: 'any' } },
    ])],
    inject: [{ when: { event: 'dsa:submit', count: 12 }, 'stop-mdev': 'slice1' }, { at: '10ms', 'start-mdev': 'slice2' }],
  },

  /** A guest whose VMM may not lock as much memory as the guest has. */
  'over-limit': {
    version: 1, limits: LIMITS, host: host([DEDICATED]), mdevs: [slice(1)], guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], [], { 'memlock-limit': '16MiB' })],
    expect: { guests: { vm0: 'refused' } },
  },

  /** Memory that comes later is the guest's as well for its devices. */
  'hot-add': {
    version: 1, limits: LIMITS, host: host([DEDICATED]), mdevs: [slice(1)],
    guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], [{ sleep: '10ms' }, ...work('dsa')])],
    inject: [{ at: '5ms', 'add-memory': { guest: 'vm0', size: '32MiB' } }],
  },

  /** A guest's process gives memory away while the device works on it; somebody else gets no page of it before. */
  'munmap-in-guest': {
    version: 1, limits: LIMITS, host: host([{ ...DEDICATED, 'block-on-fault': true }]), mdevs: [slice(1)],
    guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], [
      { open: { device: 'dsa' } }, { mmap: { name: 'source', size: '1MiB' } }, { mmap: { name: 'target', size: '1MiB' } },
      { fill: { buffer: 'source', random: 1 } }, { fill: { buffer: 'target', value: 1 } },
      { submit: { copy: { from: 'source', to: 'target' }, chunk: '64KiB' } }, { sleep: '3us' }, { munmap: 'target' },
      { mmap: { name: 'other', size: '1MiB' } }, { fill: { buffer: 'other', value: 0x77 } }, { wait: { status: 'any' } }, { verify: { buffer: 'other', value: 0x77 } },
    ])],
  },

  /** Another PASID in the configuration of the guest's queue, which it has switched off for a moment. */
  'another-pasid': {
    version: 1, limits: LIMITS, host: host([DEDICATED, { mode: 'shared', type: 'user', size: 16 }]), mdevs: [slice(1)],
    processes: [{ name: 'native', steps: [{ open: { device: 'dsa0', queue: 'wq0.1' } }, { malloc: { name: 'secret', size: '16KiB' } }, { sleep: '40ms' }] }],
    guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], [
      { open: { device: 'dsa' } }, ...buffers('16KiB'),
      { poke: { device: 'dsa', space: 'bar0', offset: '0xa0', value: '0x700001' } }, { sleep: '50us' },
      { poke: { device: 'dsa', space: 'bar0', offset: '0x508', value: '0x10000100' } },
      { poke: { device: 'dsa', space: 'bar0', offset: '0xa0', value: '0x600000' } }, { sleep: '50us' },
      ...copied('dsa'),
    ])],
  },

  /** A plain store to a shared portal. */
  'posted-to-shared': {
    version: 1, limits: LIMITS, host: host([SHARED]), mdevs: [slice(1, '1swq')],
    guests: [guest('vm0', [{ mdev: 'slice1', name: 'dsa' }], [
      { open: { device: 'dsa' } }, { poke: { device: 'dsa', space: 'bar2', offset: '0x1000', bytes: FOREIGN_NOOP } }, { sleep: '20us' }, ...buffers('16KiB'), ...copied('dsa'),
    ])],
  },

  /** A card whose driver on the host pins the guest's pages for each transfer. */
  serial: { version: 1, limits: LIMITS, host: SERIAL_HOST, mdevs: [SERIAL], guests: [guest('vm0', [{ mdev: 'serial0', name: 'serial' }], work('serial'))] },

  /** The guest's balloon takes memory that its processes have used, and gives other memory back; what was taken goes to a process of the host. */
  balloon: {
    version: 1, limits: LIMITS, host: SERIAL_HOST, mdevs: [SERIAL],
    guests: [guest('vm0', [{ mdev: 'serial0', name: 'serial' }], [
      { mmap: { name: 'around', size: '1MiB' } }, { fill: { buffer: 'around', value: 1 } }, { munmap: { buffer: 'around', offset: '256KiB', size: '512KiB' } }, { sleep: '30ms' },
      { mmap: { name: 'inside', size: '512KiB' } }, { fill: { buffer: 'inside', value: 2 } }, { sleep: '20ms' }, { verify: { buffer: 'inside', value: 2 } },
    ])],
    processes: [{ name: 'native', start: '40ms', steps: [{ malloc: { name: 'b', size: '16MiB' } }, { fill: { buffer: 'b', value: 3 } }] }],
    inject: [{ at: '10ms', balloon: { guest: 'vm0', size: '24MiB' } }, { at: '20ms', balloon: { guest: 'vm0', size: '32MiB' } }],
  },
} satisfies Record<string, TopologyInput>;

export type GuestSceneName = keyof typeof GUEST_SCENES;
