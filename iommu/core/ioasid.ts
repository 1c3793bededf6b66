/**
 * The allocator of I/O address space ids, from which PASIDs come: one space, divided into sets, with custom
 * allocators that a virtual IOMMU or a host may put in front (I1–I5; drivers/iommu/ioasid.c of Linux 5.10 and 6.1).
 * Left out: references to one id (ioasid_get and ioasid_put), which the callers here count themselves.
 */
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Random } from '../../sim/random.js';
import { IdBitmap } from './id-bitmap.js';

/** What `alloc` answers instead of an id: -1U. */
export const INVALID_IOASID = 0xffff_ffff;

/** A subset of the space: whoever holds the object may look its ids up. */
export class IoasidSet {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }
}

/** I4: `lowest` is the kernel's; the other two bring a stale user of a freed id to light, or hide him longer. */
export type PasidPolicy = 'lowest' | 'cyclic' | 'random';

/** Functions that replace the default allocator. Registrations with the same two functions share one space (I2). */
export interface CustomAllocator {
  /** An id of first .. last, or INVALID_IOASID. */
  readonly alloc: (first: number, last: number, data: unknown) => number;
  readonly free: (id: number, data: unknown) => void;
  /** Handed to both. */
  readonly data?: unknown;
}

export interface IoasidOptions {
  readonly log: KernelLog;
  /** Needed for policy `random`. */
  readonly random?: Random;
  readonly policy?: PasidPolicy;
  /** First id outside the space; PASIDs have 20 bits (I5). */
  readonly endId?: number;
}

const CHUNK_BITS = 12;
const CHUNK = 1 << CHUNK_BITS;

/** Which ids of one allocator are live, with set and private data per id. */
class IdSpace {
  readonly ids: IdBitmap;
  private readonly setChunks: (Uint16Array | undefined)[] = [];
  private readonly dataChunks: (unknown[] | undefined)[] = [];

  constructor(endId: number) {
    this.ids = new IdBitmap(endId);
  }

  add(id: number, set: number, data: unknown): void {
    const index = id >>> CHUNK_BITS;
    (this.setChunks[index] ??= new Uint16Array(CHUNK))[id & (CHUNK - 1)] = set;
    if (data !== undefined) (this.dataChunks[index] ??= [])[id & (CHUNK - 1)] = data;
  }

  setOf(id: number): number {
    return this.setChunks[id >>> CHUNK_BITS]![id & (CHUNK - 1)]!;
  }

  dataOf(id: number): unknown {
    return this.dataChunks[id >>> CHUNK_BITS]?.[id & (CHUNK - 1)];
  }

  setData(id: number, data: unknown): void {
    (this.dataChunks[id >>> CHUNK_BITS] ??= [])[id & (CHUNK - 1)] = data;
  }

  remove(id: number): void {
    const data = this.dataChunks[id >>> CHUNK_BITS];
    if (data !== undefined) data[id & (CHUNK - 1)] = undefined;
    this.ids.release(id);
  }
}

interface Registered {
  readonly space: IdSpace;
  /** All share `alloc` and `free`; the first serves. */
  readonly sharing: CustomAllocator[];
}

export class IoasidAllocator {
  private readonly log: KernelLog;
  private readonly random: Random | undefined;
  private readonly policy: PasidPolicy;
  private readonly endId: number;
  private readonly defaultSpace: IdSpace;
  private readonly registered: Registered[] = [];
  private readonly sets: IoasidSet[] = [];
  private next = 0;

  constructor(options: IoasidOptions) {
    this.log = options.log;
    this.random = options.random;
    this.policy = options.policy ?? 'lowest';
    this.endId = options.endId ?? 1 << 20;
    assert(this.policy !== 'random' || this.random !== undefined, 'policy random needs a random stream');
    this.defaultSpace = new IdSpace(this.endId);
  }

  /** Ids handed out and not returned, of the active allocator. */
  get live(): number {
    return this.space.ids.count;
  }

  has(id: number): boolean {
    return this.space.ids.has(id);
  }

  /** Takes an id of first .. last, both included, for `set`; INVALID_IOASID on any failure (I1). */
  alloc(set: IoasidSet, first: number, last: number, data?: unknown): number {
    if (first < 0 || last < first) return INVALID_IOASID;
    const active = this.registered[0];
    const id = active === undefined ? this.pick(first, last) : this.allocCustom(active, first, last);
    if (id < 0 || id === INVALID_IOASID) return INVALID_IOASID;
    if (!this.space.ids.take(id)) {
      // only a custom allocator can answer an id that is live; the kernel gives it back (ioasid_alloc)
      this.log.log('err', `Failed to alloc ioasid from ${id}`);
      active!.sharing[0]!.free(id, active!.sharing[0]!.data);
      return INVALID_IOASID;
    }
    this.space.add(id, this.indexOf(set), data);
    return id;
  }

  /** Returns an id. An unknown one is logged and otherwise ignored; false then (I1). */
  free(id: number): boolean {
    const { space } = this;
    if (!space.ids.has(id)) {
      this.log.log('err', `Trying to free unknown IOASID ${id}`);
      return false;
    }
    const custom = this.registered[0]?.sharing[0];
    custom?.free(id, custom.data);
    space.remove(id);
    return true;
  }

  /**
   * The private data of an id; undefined also when `getter` refuses it (I1).
   * @throws Errno ENOENT unknown id, EACCES id of another set (E41); without a set, any is accepted
   */
  find(set: IoasidSet | undefined, id: number, getter?: (data: unknown) => boolean): unknown {
    const { space } = this;
    if (!space.ids.has(id)) throw new Errno('ENOENT', `IOASID ${id} is not allocated`);
    const owner = this.sets[space.setOf(id)]!;
    if (set !== undefined && owner !== set) {
      throw new Errno('EACCES', `IOASID ${id} belongs to set ${owner.name}, not to ${set.name}`);
    }
    const data = space.dataOf(id);
    return getter !== undefined && !getter(data) ? undefined : data;
  }

  /** @throws Errno ENOENT unknown id */
  setData(id: number, data: unknown): void {
    if (!this.space.ids.has(id)) throw new Errno('ENOENT', `IOASID ${id} is not allocated`);
    this.space.setData(id, data);
  }

  /**
   * Puts a custom allocator in front; the first registered serves, later ones wait (I2).
   * @throws Errno EAGAIN while the default allocator has live ids, EEXIST registered already
   */
  registerAllocator(allocator: CustomAllocator): void {
    if (this.registered.length === 0 && this.defaultSpace.ids.count > 0) {
      throw new Errno('EAGAIN', `the default IOASID allocator has ${this.defaultSpace.ids.count} live ids`);
    }
    if (this.registered.some((known) => known.sharing.includes(allocator))) {
      throw new Errno('EEXIST', 'IOASID allocator already registered');
    }
    const same = this.registered.find((known) => sameFunctions(known.sharing[0]!, allocator));
    if (same === undefined) this.registered.push({ space: new IdSpace(this.endId), sharing: [allocator] });
    else same.sharing.push(allocator);
  }

  /** Takes a custom allocator out; live ids of the last one that shares its functions are orphaned, with a warning (I2). */
  unregisterAllocator(allocator: CustomAllocator): void {
    const index = this.registered.findIndex((known) => known.sharing.includes(allocator));
    if (index < 0) {
      this.log.log('warn', 'No custom IOASID allocators active!');
      return;
    }
    const known = this.registered[index]!;
    known.sharing.splice(known.sharing.indexOf(allocator), 1);
    if (known.sharing.length > 0) return;
    this.registered.splice(index, 1);
    if (known.space.ids.count > 0) this.log.log('warn', `IOASID allocator unregistered, ${known.space.ids.count} IOASIDs orphaned`);
    if (this.registered.length === 0) this.log.log('info', 'No custom IOASID allocators, switch to default.');
    else if (index === 0) this.log.log('info', 'IOASID allocator changed');
  }

  private get space(): IdSpace {
    return this.registered.length === 0 ? this.defaultSpace : this.registered[0]!.space;
  }

  private allocCustom(active: Registered, first: number, last: number): number {
    const serving = active.sharing[0]!;
    const id = serving.alloc(first, last, serving.data);
    return id < this.endId ? id : INVALID_IOASID;
  }

  private pick(first: number, last: number): number {
    const { ids } = this.defaultSpace;
    const end = Math.min(last, this.endId - 1);
    if (first > end) return -1;
    let start = first;
    if (this.policy === 'random') start = this.random!.between(first, end);
    else if (this.policy === 'cyclic') start = this.next >= first && this.next <= end ? this.next : first;
    let id = ids.lowestFree(start, end);
    if (id < 0 && start > first) id = ids.lowestFree(first, start - 1);
    if (id >= 0) this.next = id + 1;
    return id;
  }

  private indexOf(set: IoasidSet): number {
    let index = this.sets.indexOf(set);
    if (index < 0) {
      index = this.sets.push(set) - 1;
      assert(index < 0x1_0000, 'more than 65536 IOASID sets');
    }
    return index;
  }
}

function sameFunctions(a: CustomAllocator, b: CustomAllocator): boolean {
  return a.alloc === b.alloc && a.free === b.free;
}
