/** The topologies that ship with the product, run whole. */
import { readdirSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { createMachineSync, type Machine } from '../../harness/machine.js';
import type { Summary } from '../../harness/summary.js';
import { loadTopology } from '../../harness/topology/load.js';

const DIRECTORY = resolve(import.meta.dirname, '../../configs');
const TOPOLOGIES = readdirSync(DIRECTORY).filter((file) => file.endsWith('.yaml')).sort();
/** Those with an external guest are served to a virtual machine: test/linux/ runs them. */
export const SERVED = TOPOLOGIES.filter((file) => loadTopology(resolve(DIRECTORY, file)).topology.guests.some(({ external }) => external !== undefined));
export const CONFIGS = TOPOLOGIES.filter((file) => !SERVED.includes(file));
export const NO_LEAKS = { pasids: 0, pinnedPages: 0, domains: 0, frames: 0 };

export function hasGuests(file: string): boolean {
  return /^guests:/m.test(readFileSync(resolve(DIRECTORY, file), 'utf8'));
}

export function runConfig(file: string, seed?: number): Machine {
  const machine = createMachineSync(resolve(DIRECTORY, file), seed === undefined ? {} : { seed });
  machine.run();
  return machine;
}

/**
 * What a run must have seen for an invariant to have something to judge: a record of one of these kinds. An invariant
 * that is not named here has something to judge in every run.
 */
const SUBJECTS: Readonly<Record<string, readonly string[]>> = {
  'no translation is used after its invalidation': ['pci:translation'],
  'no DMA lands outside a live mapping': ['pci:dma'],
  'DMA of assigned devices stays in what their container mapped': ['vfio:container_device'],
  'a device goes only after its user has closed it': ['vfio:open_device'],
  'a UUID names one mediated device': ['mdev:create'],
  'bus mastering is off when a user has closed a device': ['vfio_pci:reset'],
  'a stopped device moves nothing': ['vfio:mig_state', 'mtty:dma_end'],
  'pages are given back only after the invalidation': ['vfio:container_device'],
  'drivers give the pages back that their user unmaps': ['vfio:pin_pages'],
  "a guest's devices and its processors see one memory": ['vfio:map_dma'],
  "a mediated device's queue takes only its user's descriptors": ['vdsa:lease'],
  'an interrupt leads where the entry of its device says': ['vtd:interrupt'],
  'every page request group answered exactly once': ['pci:page_request'],
  'a page request group index is used by one group at a time': ['pci:page_request'],
  'page requests stay within their allocation': ['pci:page_request'],
  'a device gets the answer that the kernel gave': ['pci:page_request'],
  'a page request group is handled as a whole': ['pci:page_request'],
  'a fault never reaches another mm': ['pci:page_request'],
  'no use of a PASID after unbind': ['iommu:sva_bind'],
  // PASIDs of processes and of aux domains end with a flush
  'no flush of a fault queue that its workers cannot pass': ['iommu:pasid_alloc'],
  'a device is silent after its mm_exit': ['pci:dma'],
  'nothing is logged for a PASID whose process has died': ['iommu:sva_bind'],
  'a PASID has one owner at a time': ['iommu:pasid_alloc'],
  // who holds one lock takes another: binds and containers do
  'locks are taken in one order': ['iommu:pasid_alloc', 'vfio:attach_group'],
};

/** Names of invariants that saw nothing although there was something to see: they prove nothing. */
export function idleInvariants({ invariants, counters }: Summary): string[] {
  return invariants.filter(({ name, checked }) => checked === 0 && (SUBJECTS[name]?.some((kind) => (counters[kind] ?? 0) > 0) ?? true)).map(({ name }) => name);
}

/** Invariants with one story here: whole devices and cards without an IOMMU are in more of test/defects/guest-scenes.ts. */
export const RARELY_BUSY: readonly string[] = [
  'bus mastering is off when a user has closed a device', 'a stopped device moves nothing', 'drivers give the pages back that their user unmaps',
];

/** Names of invariants that a run may not need, for a test that they exist. */
export const SOMETIMES_IDLE = Object.keys(SUBJECTS);
