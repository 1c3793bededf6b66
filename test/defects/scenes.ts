/**
 * Small topologies, each with a race or a rule in it that some defect of the product breaks. Without defects every
 * one of them passes.
 */
import type { TopologyInput } from '../../harness/topology/schema.js';

type Host = NonNullable<TopologyInput['host']>;
type Device = Extract<NonNullable<Host['devices']>[number], { model: 'dsa' }>;
type Process = NonNullable<TopologyInput['processes']>[number];
type Step = Process['steps'][number];

interface Scene {
  readonly device?: Partial<Device>;
  readonly iommu?: Partial<NonNullable<Host['iommu']>>;
  readonly kernel?: Host['kernel'];
  readonly more?: Omit<TopologyInput, 'version' | 'host' | 'processes'>;
  readonly processes: readonly { readonly name: string; readonly count?: number; readonly steps: readonly Step[] }[];
}

function scene({ device, iommu, kernel, more, processes }: Scene): TopologyInput {
  return {
    version: 1, limits: { time: '20s', events: 1_000_000 }, ...more,
    host: {
      memory: '256MiB', kernel: kernel ?? {}, iommu: { model: 'intel-vtd', ...iommu } as NonNullable<Host['iommu']>,
      devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0', ...device }],
    },
    processes: processes.map((process) => ({ ...process, steps: [...process.steps] })),
  };
}

const KILLED: Scene['processes'] = [
  { name: 'victim', steps: [{ open: { device: 'dsa0' } }, ...buffers('256KiB'), copy('4KiB'), { wait: { status: 'any' } }] },
  { name: 'bystander', steps: [{ open: { device: 'dsa0' } }, ...buffers('64KiB'), { fill: { buffer: 'source', random: 7 } }, copy('4KiB'), { wait: {} }, same(), { close: {} }] },
];

function buffers(size: string): Step[] {
  return [{ malloc: { name: 'source', size } }, { malloc: { name: 'target', size } }];
}

function copy(chunk?: string): Step {
  return { submit: { copy: { from: 'source', to: 'target' }, ...(chunk === undefined ? {} : { chunk }) } };
}

function same(): Step {
  return { verify: { buffer: 'target', equals: 'source' } };
}

const SHARED: Partial<Device> = { 'work-queues': [{ mode: 'shared', size: 64 }] };

export const SCENES = {
  /** Untouched buffers: every page comes through a page request; each group asks for four. */
  copy: scene({
    device: { 'prefetch-pages': 4 },
    processes: [{ name: 'app', steps: [{ open: { device: 'dsa0' } }, ...buffers('256KiB'), { fill: { buffer: 'source', random: 1 } }, copy('16KiB'), { wait: {} }, same(), { close: {} }] }],
  }),
  /** The same, but the process does not wait: what is unanswered keeps the device from stopping. */
  leave: scene({
    processes: [{ name: 'app', steps: [{ open: { device: 'dsa0' } }, ...buffers('64KiB'), copy('4KiB'), { sleep: '100us' }, { exit: {} }] }],
    more: { expect: { 'no-log': ['DMAR: [DMA', 'Invalid page request'] } },
  }),
  /** Memory that the device has translations of goes, and other memory comes to the same addresses. */
  remap: scene({
    processes: [{
      name: 'app', steps: [
        { open: { device: 'dsa0' } }, { mmap: { name: 'target', size: '64KiB' } }, { mmap: { name: 'source', size: '64KiB' } },
        { fill: { buffer: 'source', random: 1 } }, copy('4KiB'), { wait: {} }, same(),
        { munmap: 'source' }, { mmap: { name: 'other', size: '4KiB' } }, { fill: { buffer: 'other', value: 9 } }, { mmap: { name: 'source', size: '64KiB' } }, { fill: { buffer: 'source', random: 2 } },
        copy('4KiB'), { wait: {} }, same(), { close: {} },
      ],
    }],
  }),
  /** Memory goes while the device works on it. */
  'unmap-during-dma': scene({
    processes: [{
      name: 'app', steps: [
        { open: { device: 'dsa0' } }, { mmap: { name: 'source', size: '256KiB' } }, { mmap: { name: 'target', size: '256KiB' } },
        { fill: { buffer: 'source', random: 1 } }, { fill: { buffer: 'target', value: 1 } }, copy('4KiB'), { sleep: '2us' }, { munmap: 'target' }, { munmap: 'source' },
        { mmap: { name: 'other', size: '256KiB' } }, { fill: { buffer: 'other', value: 0x77 } }, { wait: { status: 'any' } }, { verify: { buffer: 'other', value: 0x77 } }, { close: {} },
      ],
    }],
  }),
  /** The device is told to write where the process may only read. */
  'read-only': scene({
    device: { 'prefetch-pages': 4 },
    processes: [{
      name: 'app', steps: [
        { open: { device: 'dsa0' } }, ...buffers('32KiB'), { fill: { buffer: 'source', random: 3 } }, { mmap: { name: 'ro', size: '32KiB', prot: 'r' } },
        { submit: { copy: { from: 'source', to: 'ro' } } }, { wait: { status: 'page-fault' } }, { verify: { buffer: 'ro', value: 0 } }, { close: {} },
      ],
    }],
    more: { expect: { flows: { 'app/dsa0': { invalid: 1 } } } },
  }),
  /** A buffer that only its first half may be written: the group of its border has a request that fails in the middle. */
  'half-read-only': scene({
    device: { 'prefetch-pages': 8 },
    processes: [{
      name: 'app', steps: [
        { open: { device: 'dsa0' } }, ...buffers('64KiB'), { mprotect: { buffer: 'target', offset: '16KiB', size: '16KiB', prot: 'r' } },
        copy(), { wait: { status: 'page-fault' } }, { close: {} },
      ],
    }],
  }),
  /** A child is forked while the device works; both write. */
  fork: scene({
    processes: [{
      name: 'parent', steps: [
        { open: { device: 'dsa0' } }, ...buffers('128KiB'), { fill: { buffer: 'source', random: 1 } }, { fill: { buffer: 'target', value: 0x11 } }, copy('4KiB'), { sleep: '1us' },
        { fork: { name: 'child', steps: [{ fill: { buffer: 'source', value: 0x22 } }, { sleep: '200us' }, { verify: { buffer: 'source', value: 0x22 } }] } },
        { wait: {} }, same(), copy(), { wait: {} }, same(), { join: { process: 'child' } }, { close: {} },
      ],
    }],
  }),
  'kill-without-mm-exit': scene({ device: SHARED, processes: KILLED, more: { inject: [{ at: '30us', kill: 'victim' }], expect: { flows: { 'victim/dsa0': { status: 'failed' } } } } }),
  /** The same with an mm_exit that aborts what is in progress. */
  'kill-with-mm-exit': scene({ device: { ...SHARED, 'mm-exit': true }, processes: KILLED, more: { inject: [{ at: '30us', kill: 'victim' }], expect: { flows: { 'victim/dsa0': { status: 'failed' } } } } }),
  /** A process ends in the middle of its page requests, another gets its PASID and its memory. */
  recycle: scene({
    processes: [
      { name: 'a', steps: [{ open: { device: 'dsa0' } }, ...buffers('128KiB'), copy('4KiB'), { sleep: '3us' }, { exit: {} }] },
      {
        name: 'b', steps: [
          { join: { process: 'a' } }, { open: { device: 'dsa0' } }, ...buffers('128KiB'), { fill: { buffer: 'source', random: 11 } }, copy('4KiB'), { wait: {} }, same(), { close: {} },
        ],
      },
    ],
  }),
  /** What a process left in memory is not for the next one to see. */
  secret: scene({
    processes: [
      { name: 'a', steps: [{ malloc: { name: 'secret', size: '256KiB' } }, { fill: { buffer: 'secret', value: 0x5e } }, { exit: {} }] },
      { name: 'b', steps: [{ join: { process: 'a' } }, { open: { device: 'dsa0' } }, ...buffers('128KiB'), copy(), { wait: {} }, { verify: { buffer: 'target', value: 0 } }, { close: {} }] },
    ],
  }),
  /** More requests than the page request queue holds, in groups of four. */
  overflow: scene({
    iommu: { 'page-request-queue': 128 },
    device: { pri: { 'max-requests': 512 }, engines: 16, 'engine-slots': 32, 'prefetch-pages': 4, 'work-queues': [{ mode: 'shared', size: 256, threshold: 256 }] },
    processes: [{ name: 'flood', steps: [{ open: { device: 'dsa0' } }, ...buffers('2MiB'), { submit: { copy: { from: 'source', to: 'target' }, chunk: '16KiB' } }, { wait: {} }, same(), { close: {} }] }],
    more: { timing: { 'thread-wake': '40us' }, expect: { counters: { 'vtd:prq_overflow': { min: 1 } } } },
  }),
  /** The same with a process that leaves after a while. */
  'overflow-leave': scene({
    iommu: { 'page-request-queue': 128 },
    device: { pri: { 'max-requests': 512 }, engines: 16, 'engine-slots': 32, 'work-queues': [{ mode: 'shared', size: 256, threshold: 256 }] },
    processes: [{ name: 'flood', steps: [{ open: { device: 'dsa0' } }, ...buffers('1MiB'), { submit: { copy: { from: 'source', to: 'target' }, chunk: '4KiB' } }, { sleep: '1ms' }, { exit: {} }] }],
    more: { timing: { 'thread-wake': '40us' }, expect: { counters: { 'vtd:prq_overflow': { min: 1 } } } },
  }),
  /** Processes with the same addresses on one queue. */
  neighbours: scene({
    device: SHARED,
    processes: [0, 1, 2].map((i) => ({
      name: `p${i}`, steps: [{ open: { device: 'dsa0' } }, ...buffers('32KiB'), { fill: { buffer: 'source', random: i } }, copy('4KiB'), { wait: {} }, same(), { close: {} }] as Step[],
    })),
  }),
  /** A device that may have four requests outstanding. */
  'small-allocation': scene({
    device: { pri: { 'max-requests': 4 } },
    processes: [{ name: 'app', steps: [{ open: { device: 'dsa0' } }, ...buffers('64KiB'), copy('4KiB'), { wait: {} }, same(), { close: {} }] }],
  }),
  /** The queue is closed while page requests are on their way. */
  'close-in-flight': scene({
    processes: [{
      name: 'app', steps: [{ open: { device: 'dsa0' } }, ...buffers('64KiB'), copy('4KiB'), { sleep: '3us' }, { close: {} }, { open: { device: 'dsa0', as: 'again' } }, { submit: { to: 'again', copy: { from: 'source', to: 'target' } } }, { wait: { for: 'again' } }, same(), { close: { handle: 'again' } }],
    }],
  }),
  /** Two functions behind a switch that does not isolate them. */
  group: {
    version: 1,
    host: {
      memory: '256MiB', iommu: { model: 'intel-vtd' }, ports: [{ name: 'sw', acs: false }],
      devices: [{ model: 'dsa', name: 'dsa0', port: 'sw', bdf: '0000:04:00.0' }, { model: 'dsa', name: 'dsa1', port: 'sw', bdf: '0000:05:00.0' }],
    },
    processes: [{ name: 'app', steps: [{ bind: { device: 'dsa0' }, expect: 'EINVAL' }] }],
  },
  /** A process writes to a disk and reads it back. */
  disk: {
    version: 1,
    host: { memory: '256MiB', iommu: { model: 'intel-vtd' }, kernel: { 'iommu-mode': 'strict' }, devices: [{ model: 'nvme', name: 'nvme0', bdf: '0000:03:00.0', size: '1MiB' }] },
    processes: [{
      name: 'app', steps: [
        { open: { device: 'nvme0' } }, { mmap: { name: 'source', size: '64KiB' } }, { mmap: { name: 'target', size: '64KiB' } }, { fill: { buffer: 'source', random: 1 } },
        { pwrite: { buffer: 'source', offset: '64KiB' } }, { pread: { buffer: 'target', offset: '64KiB' } }, same(), { close: {} },
      ],
    }],
  },
} satisfies Record<string, TopologyInput>;

export type SceneName = keyof typeof SCENES;
