/**
 * Memory of a client as a served device sees it: regions that the client announces, reached through windows where it
 * passed a descriptor and by messages where it did not. One object for the life of a device: clients come and go,
 * and between two of them no memory is there. Other addresses, such as the doorbells of message-signalled interrupts,
 * are reached by messages too, if the client lets them.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { ClientRegions, DMA_PAGE_SIZE, ForeignMemory, piecesOf, type ClientRegion } from './client-regions.js';
import type { ClientRequests, RequestDone } from './client-requests.js';
import { DirtyLog } from './dirty-log.js';
import { DMA_REGION_READ, DMA_REGION_WRITE, DMA_UNMAP_ALL, type DmaMapRequest, type DmaUnmapRequest } from './protocol/records.js';
import type { ReceivedDescriptor } from './transport.js';

/** Physical addresses stay below. */
const ADDRESS_LIMIT = 2 ** 52;

/** Told of regions; a listener gives back what it holds in a range before it returns. */
export interface MemoryListener {
  mapped?(region: ClientRegion): void;
  unmapped(address: number, sizeBytes: number): void;
}

export interface MemoryLimits {
  readonly maxDmaMaps: number;
  /** Mappings of at most 1 GiB that windows are made of. */
  readonly maxMappings: number;
}

/** What a session lends. */
export interface ClientLink {
  readonly requests: ClientRequests;
  /** Most bytes of one message's data. */
  readonly maxTransferBytes: number;
}

export class ClientMemory {
  /** What can be reached at once. Loads are absent where the client gave no descriptor. */
  readonly memory: ForeignMemory & PhysicalMemory;
  readonly log = new DirtyLog();
  private readonly regionList = new ClientRegions();
  private listeners: readonly MemoryListener[] = [];
  private link: ClientLink | undefined;

  constructor() {
    this.memory = new ForeignMemory(this.regionList, this.log);
  }

  /** Ascending. */
  get regions(): readonly ClientRegion[] {
    return this.regionList.all;
  }

  get connected(): boolean {
    return this.link !== undefined;
  }

  /** The result ends it. */
  listen(listener: MemoryListener): () => void {
    this.listeners = [...this.listeners, listener];
    return () => {
      this.listeners = this.listeners.filter((other) => other !== listener);
    };
  }

  /** Copies from the client into `target`: at once through windows, otherwise by messages, one after the other. EFAULT no right to read. */
  read(address: number, target: Uint8Array, done: RequestDone): void {
    if (this.memory.read(address, target, 0, target.length)) done(undefined);
    else if (this.forbidden(address, target.length, false)) done(this.fault('read', address, target.length));
    else this.readByMessages(address, target, done);
  }

  /** Copies `source` to the client. EFAULT no right to write. */
  write(address: number, source: Uint8Array, done: RequestDone): void {
    if (this.memory.write(address, source, 0, source.length)) done(undefined);
    else if (this.forbidden(address, source.length, true)) done(this.fault('write', address, source.length));
    else this.writeByMessages(address, source, done);
  }

  /** The same, whatever windows there are. ECONNRESET, EPROTO, and what the client refuses with. */
  readByMessages(address: number, target: Uint8Array, done: RequestDone): void {
    this.pieces(address, target, done, (link, at, bytes, next) => link.requests.read(at, bytes, next));
  }

  writeByMessages(address: number, source: Uint8Array, done: RequestDone): void {
    this.pieces(address, source, done, (link, at, bytes, next) => {
      if (this.log.active) this.log.mark(at, bytes.length);
      link.requests.write(at, bytes, next);
    });
  }

  // --- the session's side

  /** @internal */
  connect(link: ClientLink): void {
    this.link = link;
  }

  /** @internal the client is gone, and all of its memory; the log too, which was its */
  disconnect(): void {
    this.link = undefined;
    const had = [...this.regions];
    this.regionList.clear();
    this.log.stop();
    for (const { address, sizeBytes } of had) this.tell(address, sizeBytes);
  }

  /**
   * @internal DMA_MAP. The descriptor is taken over when this succeeds.
   * EINVAL flags, pages, range; EEXIST over another region; ENOSPC more than `maxDmaMaps` or `maxMappings`; what the descriptor refuses.
   */
  map({ flags, offset, address, sizeBytes }: DmaMapRequest, descriptor: ReceivedDescriptor | undefined, { maxDmaMaps, maxMappings }: MemoryLimits): void {
    if ((flags & ~(DMA_REGION_READ | DMA_REGION_WRITE)) !== 0) throw new Errno('EINVAL', `DMA_MAP: flags ${hex(flags)}`);
    if (sizeBytes === 0 || address % DMA_PAGE_SIZE !== 0 || sizeBytes % DMA_PAGE_SIZE !== 0 || address + sizeBytes > ADDRESS_LIMIT) {
      throw new Errno('EINVAL', `DMA_MAP: ${hex(sizeBytes)} bytes at ${hex(address)} are no range of pages below 2^52`);
    }
    if (this.regionList.overlaps(address, sizeBytes)) throw new Errno('EEXIST', `DMA_MAP: ${hex(sizeBytes)} bytes at ${hex(address)} overlap a region`);
    if (this.regions.length >= maxDmaMaps) throw new Errno('ENOSPC', `DMA_MAP: there are ${maxDmaMaps} regions already`);
    if (descriptor !== undefined && this.regionList.pieces + piecesOf(sizeBytes) > maxMappings) throw new Errno('ENOSPC', `DMA_MAP: ${hex(sizeBytes)} bytes more take more than ${maxMappings} mappings`);
    const readable = (flags & DMA_REGION_READ) !== 0, writable = (flags & DMA_REGION_WRITE) !== 0;
    if (descriptor !== undefined && (offset % DMA_PAGE_SIZE !== 0 || offset + sizeBytes > Number.MAX_SAFE_INTEGER)) throw new Errno('EINVAL', `DMA_MAP: offset ${hex(offset)}`);
    const window = readable || writable ? descriptor?.openWindow(offset, sizeBytes, writable) : undefined;
    const region = { address, sizeBytes, readable, writable, window };
    this.regionList.add(region);
    for (const listener of this.listeners) listener.mapped?.(region);
  }

  /**
   * @internal DMA_UNMAP: no reference is left when this returns. A range takes all regions in it, as in the kernel's
   * type 1: QEMU's own vIOMMUs unmap far more at once than they mapped (hw/i386/intel_iommu.c vtd_address_space_unmap).
   * EINVAL flags, a range together with ALL; ENOENT no region is in this range, or one only in part.
   */
  unmap({ flags, address, sizeBytes }: DmaUnmapRequest): void {
    if ((flags & ~DMA_UNMAP_ALL) !== 0) throw new Errno('EINVAL', `DMA_UNMAP: flags ${hex(flags)}`);
    if ((flags & DMA_UNMAP_ALL) !== 0) {
      if (address !== 0 || sizeBytes !== 0) throw new Errno('EINVAL', 'DMA_UNMAP: all regions, and a range');
      const had = [...this.regions];
      this.regionList.clear();
      for (const region of had) this.tell(region.address, region.sizeBytes);
      return;
    }
    const removed = this.regionList.remove(address, sizeBytes);
    if (removed.length === 0) throw new Errno('ENOENT', `DMA_UNMAP: no whole regions are in ${hex(sizeBytes)} bytes at ${hex(address)}`);
    for (const region of removed) this.tell(region.address, region.sizeBytes);
  }

  private tell(address: number, sizeBytes: number): void {
    for (const listener of this.listeners) listener.unmapped(address, sizeBytes);
  }

  /** A region says no; where there is none the client decides. */
  private forbidden(address: number, length: number, write: boolean): boolean {
    for (let at = address; at < address + length; ) {
      const region = this.regionList.find(at);
      if (region === undefined) return false;
      if (!(write ? region.writable : region.readable)) return true;
      at = region.address + region.sizeBytes;
    }
    return false;
  }

  private fault(what: 'read' | 'write', address: number, length: number): Errno {
    return new Errno('EFAULT', `${length} bytes at ${hex(address)}: the client lets nobody ${what} there`);
  }

  private pieces(address: number, bytes: Uint8Array, done: RequestDone, move: (link: ClientLink, at: number, piece: Uint8Array, next: RequestDone) => void): void {
    let moved = 0;
    const { link } = this;
    const next = (error: Errno | undefined): void => {
      if (error !== undefined || moved === bytes.length) {
        done(error);
        return;
      }
      const count = Math.min(bytes.length - moved, link!.maxTransferBytes), at = address + moved;
      const piece = bytes.subarray(moved, moved + count);
      moved += count;
      move(link!, at, piece, next);
    };
    if (link === undefined) done(new Errno('ECONNRESET', `no client whose memory at ${hex(address)} could be reached`));
    else next(undefined);
  }
}
