/**
 * What vendors' drivers of mediated devices do with the memory of their user (C10): pages pinned one by one and counted
 * for each address (`struct vfio_pfn`), and copies by the CPU. A page that a domain of the container pinned already is
 * not charged again.
 */
import { hex, hexPage } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import { SegmentationFault } from '../../host/mm/mm.js';
import { PROT_READ, PROT_WRITE } from '../../iommu/core/ops.js';
import type { DmaUnmapNotifier } from '../device.js';
import { unpinVendorPage } from './backing.js';
import { markDirty } from './dirty.js';
import type { DmaMapping } from './dma-list.js';
import type { AttachedGroup, ContainerState } from './state.js';

/**
 * vfio_pin_pages. Physical addresses in the order of `iovas`, which are bytes. EACCES version 1; EINVAL no notifier, misaligned
 * or not mapped; EPERM protection; ENODEV the mapper is gone; EFAULT, ENOMEM. Nothing stays pinned on failure.
 */
export function* pinPages(state: ContainerState, attached: AttachedGroup, device: Device, iovas: readonly number[], prot: number): Steps<number[]> {
  checkVersion(state);
  return yield* state.lock.with(function* () {
    if (state.notifiers.size === 0) throw new Errno('EINVAL', `nobody of ${state.name} listens to unmaps: ${device.name} may not pin`);
    const pinned: number[] = [];
    try {
      for (const iova of iovas) pinned.push(yield* pinOne(state, device, iova, prot));
    } catch (error) {
      for (let i = 0; i < pinned.length; i++) unpinOne(state, iovas[i]!);
      throw error;
    }
    // from now on its pins tell what it dirties
    attached.pinnedPageDirtyScope = true;
    const { trace } = state.context;
    if (iovas.length > 0) trace?.trace.record(trace.pinPages, 0, state.number, trace.nameOf(device), Math.floor(iovas[0]! / 4096), iovas.length, prot);
    return pinned;
  });
}

function* pinOne(state: ContainerState, device: Device, iova: number, prot: number): Steps<number> {
  if (iova % 4096 !== 0) throw new Errno('EINVAL', `${device.name} pins ${hex(iova)}, which is no page`);
  const page = iova / 4096;
  const mapping = state.mappings.find(page);
  if (mapping === undefined) throw new Errno('EINVAL', `${device.name} pins ${hex(iova)}, which ${state.name} does not map`);
  if ((mapping.prot & prot) !== prot) throw new Errno('EPERM', `${device.name} pins ${hex(iova)} for ${words(prot)}, which is mapped for ${words(mapping.prot)}`);
  const known = mapping.vendorPins.get(page);
  if (known !== undefined) {
    known.references++;
    return known.physical;
  }
  const physical = yield* pinUserPage(mapping, page);
  mapping.vendorPins.set(page, { physical, references: 1 });
  markDirty(mapping, page, page + 1);
  const { trace } = state.context;
  trace?.trace.record(trace.pinRun, 0, state.number, page, physical / 4096, 1, 1);
  return physical;
}

function* pinUserPage(mapping: DmaMapping, page: number): Steps<number> {
  const { mm } = mapping;
  if (!mm.get()) throw new Errno('ENODEV', `${mm.name}, who mapped ${hexPage(page)}, is gone`);
  try {
    const physical = (yield* mm.pinPages(mapping.vaddr + (page - mapping.page) * 4096, 1, (mapping.prot & PROT_WRITE) !== 0))[0]!;
    try {
      if (!mapping.charged) mm.accountLocked(1, mapping.ipcLock);
    } catch (error) {
      mm.unpinPages([physical]);
      throw error;
    }
    return physical;
  } finally {
    // whoever ends the address space here would call back into containers
    mm.putAsync();
  }
}

/** vfio_unpin_pages: number of references dropped; it ends at the first address that is not mapped. EACCES version 1. */
export function unpinPages(state: ContainerState, device: Device, iovas: readonly number[]): number {
  checkVersion(state);
  let count = 0;
  for (const iova of iovas) {
    if (state.mappings.find(Math.floor(iova / 4096)) === undefined) break;
    if (unpinOne(state, iova)) count++;
  }
  const { trace } = state.context;
  if (count > 0) trace?.trace.record(trace.unpinPages, 0, state.number, trace.nameOf(device), Math.floor(iovas[0]! / 4096), count);
  return count;
}

function unpinOne(state: ContainerState, iova: number): boolean {
  const page = Math.floor(iova / 4096);
  const mapping = state.mappings.find(page);
  const pin = mapping?.vendorPins.get(page);
  if (mapping === undefined || pin === undefined) return false;
  if (--pin.references === 0) unpinVendorPage(state, mapping, page);
  return true;
}

/** vfio_dma_rw: the CPU reads or writes the user's memory at `iova`. EINVAL not mapped; EPERM protection, or the mapper is gone; EFAULT. */
export function* dmaRw(state: ContainerState, iova: number, bytes: Uint8Array, write: boolean): Steps {
  yield* state.lock.with(function* () {
    for (let done = 0; done < bytes.length; ) done += yield* moveChunk(state, iova + done, bytes, done, write);
  });
}

/** Moves what lies in one mapping; bytes moved. */
function* moveChunk(state: ContainerState, iova: number, bytes: Uint8Array, done: number, write: boolean): Steps<number> {
  const page = Math.floor(iova / 4096);
  const mapping = state.mappings.find(page);
  if (mapping === undefined) throw new Errno('EINVAL', `${hex(iova)} is not mapped in ${state.name}`);
  // reading is asked for always, as in Linux
  const needed = write ? PROT_READ | PROT_WRITE : PROT_READ;
  if ((mapping.prot & needed) !== needed) throw new Errno('EPERM', `${hex(iova)} is mapped for ${words(mapping.prot)}`);
  const { mm } = mapping;
  if (!mm.get()) throw new Errno('EPERM', `${mm.name}, who mapped ${hex(iova)}, is gone`);
  const offset = iova - mapping.page * 4096;
  const count = Math.min(bytes.length - done, mapping.pages * 4096 - offset);
  try {
    if (write) yield* mm.write(mapping.vaddr + offset, bytes, done, count);
    else yield* mm.read(mapping.vaddr + offset, bytes, done, count);
  } catch (error) {
    if (error instanceof SegmentationFault) throw new Errno('EFAULT', error.message);
    throw error;
  } finally {
    mm.putAsync();
  }
  if (write) markDirty(mapping, page, Math.floor((iova + count - 1) / 4096) + 1);
  return count;
}

/** @throws Errno EBUSY the device's driver listens already */
export function registerNotifier(state: ContainerState, device: Device, notifier: DmaUnmapNotifier): void {
  if (state.notifiers.has(device)) throw new Errno('EBUSY', `the driver of ${device.name} listens to unmaps already`);
  state.notifiers.set(device, notifier);
}

export function unregisterNotifier(state: ContainerState, device: Device, notifier: DmaUnmapNotifier): void {
  if (state.notifiers.get(device) === notifier) state.notifiers.delete(device);
}

function checkVersion(state: ContainerState): void {
  if (!state.v2) throw new Errno('EACCES', `${state.name} is of version 1, whose pages no driver may pin`);
}

function words(prot: number): string {
  const names = [(prot & PROT_READ) !== 0 ? 'reading' : '', (prot & PROT_WRITE) !== 0 ? 'writing' : ''].filter((name) => name !== '');
  return names.length === 0 ? 'nothing' : names.join(' and ');
}
