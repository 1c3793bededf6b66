/**
 * The DMA API of kernel drivers (drivers/iommu/dma-iommu.c, Documentation/core-api/dma-api.rst): buffers mapped into
 * the default domain of the device's group, at I/O virtual addresses chosen here. Strict: an unmap returns after its
 * invalidation. Lazy: unmaps are collected, and until the next flush the device can still reach the old memory; only
 * the I/O virtual address is kept from reuse. In an identity domain addresses are physical.
 * Left out: bounce buffers, cache maintenance, DMA attributes.
 */
import { alignUp, hex, PAGE_SIZE } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Alarm } from '../../sim/clock.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { Domains } from './domains.js';
import { PROT_READ, PROT_WRITE } from './ops.js';
import type { CoreContext } from './options.js';
import type { DeviceRecord, IommuGroup } from './records.js';

export type DmaDirection = 'to-device' | 'from-device' | 'bidirectional';

/** One piece of a scatter-gather list: physically contiguous bytes. */
export interface ScatterEntry {
  readonly physical: number;
  readonly length: number;
}

/** What the device is told: contiguous bytes at a DMA address. */
export interface DmaSegment {
  readonly address: number;
  readonly length: number;
}

/** Memory that CPU and device share for long: zeroed, page aligned. */
export interface CoherentMemory {
  readonly address: number;
  readonly physical: number;
  readonly sizeBytes: number;
}

type MappingKind = 'single' | 'sg' | 'coherent';

interface DmaMapping {
  readonly record: DeviceRecord;
  readonly kind: MappingKind;
  readonly sizeBytes: number;
  readonly pages: number;
  /** Another mapping at the same address: only where addresses are physical. */
  next: DmaMapping | undefined;
}

interface GroupDma {
  /** Live mappings by DMA address: first byte where addresses are physical, first page's otherwise. */
  readonly mappings: Map<number, DmaMapping>;
  /** Unmapped, not yet invalidated: page and count alternate. */
  queue: number[];
  alarm: Alarm | undefined;
}

/** Entries of the lazy queue, and its age, at which it is flushed (include/linux/iova.h: 256 entries, 10 ms). */
const LAZY_ENTRIES = 256;
const LAZY_NS = 10_000_000;
/** What dma_get_max_seg_size answers for a device that says nothing. */
const MAX_SEGMENT_BYTES = 0x1_0000;

export class DmaApi {
  private readonly context: CoreContext;
  private readonly domains: Domains;
  private readonly lazy: boolean;
  private readonly groups = new Map<IommuGroup, GroupDma>();

  constructor(context: CoreContext, domains: Domains) {
    this.context = context;
    this.domains = domains;
    this.lazy = context.options.dma === 'lazy';
  }

  /** 4 KiB pages of live mappings. */
  get mappedPages(): number {
    let pages = 0;
    for (const { mappings } of this.groups.values()) {
      for (const first of mappings.values()) {
        for (let mapping: DmaMapping | undefined = first; mapping !== undefined; mapping = mapping.next) pages += mapping.pages;
      }
    }
    return pages;
  }

  /** The device drives `bits` address bits, 32 before this is called. @throws Errno ENODEV, EIO below a page or above 64 */
  dmaSetMask(device: Device, bits: number): void {
    const record = this.context.registry.recordOf(device);
    if (bits <= 12 || bits > 64) throw new Errno('EIO', `${device.name} cannot do DMA with ${bits} address bits`);
    record.dmaEnd = 2 ** bits;
  }

  /**
   * Makes `sizeBytes` at `physical` reachable and returns the DMA address of the first byte.
   * @throws Errno ENODEV; EINVAL nothing to map; EIO a user owns the group, or the memory is above the device's
   * mask; ENOSPC no I/O virtual addresses left below the mask
   */
  *dmaMap(device: Device, physical: number, sizeBytes: number, direction: DmaDirection): Steps<number> {
    const record = this.owner(device);
    if (!(sizeBytes > 0)) throw new Errno('EINVAL', `DMA mapping of ${sizeBytes} bytes`);
    const offset = physical % PAGE_SIZE;
    if (isIdentity(record)) return this.mapIdentity(record, physical, sizeBytes, 'single');
    const pages = pagesOf(offset, sizeBytes);
    const page = yield* this.allocIova(record, pages);
    this.mapPieces(record, page, pages, [{ physical, length: sizeBytes }], protOf(direction));
    this.track(record, page * PAGE_SIZE, { record, kind: 'single', sizeBytes, pages });
    return page * PAGE_SIZE + offset;
  }

  /** Ends a `dmaMap`. What was never mapped is logged and counted as a violation, and nothing else happens. */
  *dmaUnmap(device: Device, address: number, sizeBytes: number): Steps {
    yield* this.unmapTracked(this.context.registry.recordOf(device), address, sizeBytes, 'single');
  }

  /**
   * Maps a scatter-gather list at one range of I/O virtual addresses. Pieces that meet at page boundaries become one
   * segment of up to 64 KiB; each piece keeps its offset in the page.
   * @throws Errno as `dmaMap`; EINVAL also for an empty list or piece
   */
  *dmaMapSg(device: Device, list: readonly ScatterEntry[], direction: DmaDirection): Steps<DmaSegment[]> {
    const record = this.owner(device);
    if (list.length === 0 || list.some(({ length }) => !(length > 0))) throw new Errno('EINVAL', 'scatter-gather list with nothing to map');
    if (isIdentity(record)) return this.mapSgIdentity(record, list);
    let pages = 0, sizeBytes = 0;
    for (const { physical, length } of list) {
      pages += pagesOf(physical % PAGE_SIZE, length);
      sizeBytes += length;
    }
    const page = yield* this.allocIova(record, pages);
    this.mapPieces(record, page, pages, list, protOf(direction));
    this.track(record, page * PAGE_SIZE, { record, kind: 'sg', sizeBytes, pages });
    return segmentsOf(page, list);
  }

  /** Ends a `dmaMapSg`; takes the segments it returned. */
  *dmaUnmapSg(device: Device, segments: readonly DmaSegment[]): Steps {
    const record = this.context.registry.recordOf(device);
    const [first] = segments;
    if (first === undefined) throw new Errno('EINVAL', 'no segments to unmap');
    if (isIdentity(record)) {
      for (const { address, length } of segments) yield* this.unmapTracked(record, address, length, 'sg');
      return;
    }
    yield* this.unmapTracked(record, first.address, segments.reduce((sum, { length }) => sum + length, 0), 'sg');
  }

  /** @throws Errno ENODEV, EINVAL, EIO, ENOSPC as `dmaMap`, ENOMEM no contiguous frames */
  *dmaAllocCoherent(device: Device, sizeBytes: number): Steps<CoherentMemory> {
    const record = this.owner(device);
    const { frames } = this.context;
    if (frames === undefined) throw new Errno('ENOMEM', 'this kernel has no frames for coherent DMA memory');
    if (!(sizeBytes > 0)) throw new Errno('EINVAL', `coherent DMA memory of ${sizeBytes} bytes`);
    const size = alignUp(sizeBytes, PAGE_SIZE);
    const order = orderOf(size);
    const physical = frames.alloc(`dma ${device.name}`, order);
    try {
      if (isIdentity(record)) return { address: this.mapIdentity(record, physical, size, 'coherent'), physical, sizeBytes: size };
      const pages = size / PAGE_SIZE;
      const page = yield* this.allocIova(record, pages);
      this.mapPieces(record, page, pages, [{ physical, length: size }], PROT_READ | PROT_WRITE);
      this.track(record, page * PAGE_SIZE, { record, kind: 'coherent', sizeBytes: size, pages });
      return { address: page * PAGE_SIZE, physical, sizeBytes: size };
    } catch (error) {
      frames.free(physical, order);
      throw error;
    }
  }

  /** Frees the frames after the invalidation, also in lazy mode. */
  *dmaFreeCoherent(device: Device, memory: CoherentMemory): Steps {
    const record = this.context.registry.recordOf(device);
    if (yield* this.unmapTracked(record, memory.address, memory.sizeBytes, 'coherent')) {
      this.context.frames!.free(memory.physical, orderOf(memory.sizeBytes));
    }
  }

  /** A removed device's mappings go; each that is left is its driver's leak. */
  *dropDevice(record: DeviceRecord): Steps {
    const dma = this.groups.get(record.group);
    if (dma === undefined) return;
    const left: [address: number, mapping: DmaMapping][] = [];
    for (const [address, first] of dma.mappings) {
      for (let mapping: DmaMapping | undefined = first; mapping !== undefined; mapping = mapping.next) if (mapping.record === record) left.push([address, mapping]);
    }
    if (left.length > 0) this.violation(record, `device driver has pending DMA allocations while released from device [count=${left.length}]`);
    for (const [address, mapping] of left) {
      yield* this.unmapMapping(record, dma, address, mapping);
    }
    if (record.group.devices.length > 1) return;
    yield* this.flushQueue(record.group, dma);
    this.groups.delete(record.group);
  }

  // --- mapping ------------------------------------------------------------------------------------------------

  private owner(device: Device): DeviceRecord {
    const record = this.context.registry.recordOf(device);
    const { group } = record;
    if (group.domain !== group.defaultDomain) throw new Errno('EIO', `DMA of ${device.name} belongs to a user: group ${group.id} is not on its default domain`);
    return record;
  }

  private *allocIova(record: DeviceRecord, pages: number): Steps<number> {
    const iova = record.group.iova!;
    const limit = Math.min(record.group.defaultDomain.endPage, Math.floor(record.dmaEnd / PAGE_SIZE));
    let page = iova.alloc(pages, limit);
    const dma = this.groups.get(record.group);
    if (page === undefined && dma !== undefined && dma.queue.length > 0) {
      yield* this.flushQueue(record.group, dma);
      page = iova.alloc(pages, limit);
    }
    if (page === undefined) throw new Errno('ENOSPC', `no ${pages} free I/O virtual pages below ${hex(record.dmaEnd)} for ${record.device.name}`);
    return page;
  }

  /** Maps all pieces one after the other from `page` on, or none. */
  private mapPieces(record: DeviceRecord, page: number, pages: number, pieces: readonly ScatterEntry[], prot: number): void {
    const { defaultDomain, iova } = record.group;
    let next = page;
    try {
      for (const { physical, length } of pieces) {
        const offset = physical % PAGE_SIZE;
        const count = pagesOf(offset, length);
        this.domains.map(defaultDomain, next, physical - offset, count, prot);
        next += count;
      }
    } catch (error) {
      if (next > page) this.domains.unmapWithoutFlush(defaultDomain, page, next - page);
      iova!.free(page, pages);
      throw error;
    }
  }

  private mapIdentity(record: DeviceRecord, physical: number, sizeBytes: number, kind: MappingKind): number {
    if (physical + sizeBytes > record.dmaEnd) {
      throw new Errno('EIO', `${record.device.name}: DMA address ${hex(physical)}+${sizeBytes} overflows its mask, and its domain does not translate`);
    }
    this.track(record, physical, { record, kind, sizeBytes, pages: pagesOf(physical % PAGE_SIZE, sizeBytes) });
    return physical;
  }

  private mapSgIdentity(record: DeviceRecord, list: readonly ScatterEntry[]): DmaSegment[] {
    const beyond = list.find(({ physical, length }) => physical + length > record.dmaEnd);
    if (beyond !== undefined) throw new Errno('EIO', `${record.device.name}: DMA address ${hex(beyond.physical)}+${beyond.length} overflows its mask`);
    return list.map(({ physical, length }) => ({ address: this.mapIdentity(record, physical, length, 'sg'), length }));
  }

  private track(record: DeviceRecord, address: number, mapping: Omit<DmaMapping, 'next'>): void {
    const { mappings } = this.dmaOf(record.group);
    mappings.set(address, { ...mapping, next: mappings.get(address) });
    record.dmaPages += mapping.pages;
  }

  private dmaOf(group: IommuGroup): GroupDma {
    let dma = this.groups.get(group);
    if (dma === undefined) this.groups.set(group, (dma = { mappings: new Map<number, DmaMapping>(), queue: [], alarm: undefined }));
    return dma;
  }

  // --- unmapping ----------------------------------------------------------------------------------------------

  /** True when there was such a mapping. */
  private *unmapTracked(record: DeviceRecord, address: number, sizeBytes: number, kind: MappingKind): Steps<boolean> {
    const dma = this.dmaOf(record.group);
    const key = isIdentity(record) ? address : address - (address % PAGE_SIZE);
    const mapping = bestMatch(dma.mappings.get(key), record, kind, sizeBytes);
    const what = (): string => `[device address=${hex(address, 16)}] [size=${sizeBytes} bytes]`;
    if (mapping === undefined) {
      this.violation(record, `device driver tries to free DMA memory it has not allocated ${what()}`);
      return false;
    }
    if (mapping.kind !== kind) {
      this.violation(record, `device driver frees DMA memory with wrong function ${what()} [mapped as ${mapping.kind}] [unmapped as ${kind}]`);
      return false;
    }
    if (mapping.sizeBytes !== sizeBytes) this.violation(record, `device driver frees DMA memory with different size ${what()} [map size=${mapping.sizeBytes} bytes]`);
    yield* this.unmapMapping(record, dma, key, mapping);
    return true;
  }

  private *unmapMapping(record: DeviceRecord, dma: GroupDma, key: number, mapping: DmaMapping): Steps {
    const { group } = record;
    const { pages } = mapping;
    // off the list before anything sleeps: a second unmap must find nothing
    untrack(dma.mappings, key, mapping);
    record.dmaPages -= pages;
    if (isIdentity(record)) return;
    const page = key / PAGE_SIZE;
    if (this.lazy && mapping.kind !== 'coherent') {
      this.domains.unmapWithoutFlush(group.defaultDomain, page, pages);
      yield* this.queueFree(group, dma, page, pages);
    } else {
      yield* this.domains.unmap(group.defaultDomain, page, pages);
      group.iova!.free(page, pages);
    }
  }

  private *queueFree(group: IommuGroup, dma: GroupDma, page: number, pages: number): Steps {
    dma.queue.push(page, pages);
    if (dma.queue.length >= 2 * LAZY_ENTRIES) yield* this.flushQueue(group, dma);
    else if (dma.alarm === undefined) {
      const { clock, scheduler } = this.context;
      dma.alarm = clock.after(LAZY_NS, () => {
        dma.alarm = undefined;
        scheduler.spawn(`iova flush of group ${group.id}`, this.flushQueue(group, dma));
      });
    }
  }

  private *flushQueue(group: IommuGroup, dma: GroupDma): Steps {
    const { queue } = dma;
    dma.alarm?.cancel();
    dma.alarm = undefined;
    if (queue.length === 0) return;
    dma.queue = [];
    yield* this.domains.flush(group.defaultDomain, 0, group.defaultDomain.endPage);
    for (let i = 0; i < queue.length; i += 2) group.iova!.free(queue[i]!, queue[i + 1]!);
  }

  private violation(record: DeviceRecord, text: string): void {
    this.context.counters.violations++;
    this.context.log.log('err', `DMA-API: ${record.device.name}: ${text}`);
  }
}

function isIdentity(record: DeviceRecord): boolean {
  return record.group.defaultDomain.type === 'identity';
}

/** The device's mapping in the chain that fits the unmap best: same function and size, same function, any. */
function bestMatch(first: DmaMapping | undefined, record: DeviceRecord, kind: MappingKind, sizeBytes: number): DmaMapping | undefined {
  let best: DmaMapping | undefined, bestFit = 0;
  for (let mapping = first; mapping !== undefined; mapping = mapping.next) {
    if (mapping.record !== record) continue;
    const fit = 1 + (mapping.kind === kind ? 2 : 0) + (mapping.kind === kind && mapping.sizeBytes === sizeBytes ? 1 : 0);
    if (fit > bestFit) {
      best = mapping;
      bestFit = fit;
    }
  }
  return best;
}

function untrack(mappings: Map<number, DmaMapping>, key: number, mapping: DmaMapping): void {
  const first = mappings.get(key);
  if (first === mapping) {
    if (mapping.next === undefined) mappings.delete(key);
    else mappings.set(key, mapping.next);
    return;
  }
  let previous = first!;
  while (previous.next !== mapping) previous = previous.next!;
  previous.next = mapping.next;
}

function pagesOf(offset: number, length: number): number {
  return Math.ceil((offset + length) / PAGE_SIZE);
}

function orderOf(sizeBytes: number): number {
  return Math.ceil(Math.log2(sizeBytes / PAGE_SIZE));
}

function protOf(direction: DmaDirection): number {
  if (direction === 'to-device') return PROT_READ;
  return direction === 'from-device' ? PROT_WRITE : PROT_READ | PROT_WRITE;
}

function segmentsOf(page: number, list: readonly ScatterEntry[]): DmaSegment[] {
  const segments: { address: number; length: number }[] = [];
  let next = page;
  for (const { physical, length } of list) {
    const offset = physical % PAGE_SIZE;
    const address = next * PAGE_SIZE + offset;
    const last = segments.at(-1);
    const joins = last !== undefined && last.address + last.length === address && last.length + length <= MAX_SEGMENT_BYTES;
    if (joins) last.length += length;
    else segments.push({ address, length });
    next += pagesOf(offset, length);
  }
  return segments;
}
