/**
 * Shared virtual addressing: bonds between devices and address spaces, and the PASIDs of address spaces (B1–B13,
 * M1–M7, sections 7.3 and 7.4). A PASID belongs to an mm from its first bind until the mm is freed. A bond keeps the
 * mm structure, not its users, so that a process may die while its device still works.
 * Left out: supervisor bindings and binding flags, which the contract does not have.
 */
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import { Mutex, WaitQueue, type Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { AddressSpace, MmNotifier } from '../../host/mm/address-space.js';
import type { Pasids } from './pasids.js';
import type { CoreContext } from './options.js';
import { bondOf, type Bond, type BoundMm, type DeviceRecord, type MmExitCallback } from './records.js';
import { missingSvaLink } from './sva-chain.js';

/** -1U: no PASID. */
export const IOMMU_PASID_INVALID = 0xffff_ffff;

/** PASIDs a driver may use when hardware does not tell (U6), both included; `maxPasid` 0 means the hardware's limit. */
export interface SvaParam {
  readonly minPasid: number;
  readonly maxPasid: number;
}

export class Sva implements MmNotifier {
  /** Guards bonds and the lookup of an mm by PASID. Held for moments only; a fault worker takes it. */
  readonly lock: Mutex;
  bonds = 0;
  private readonly context: CoreContext;
  private readonly pasids: Pasids;
  private readonly byMm = new Map<AddressSpace, BoundMm>();
  private readonly exitEnd: WaitQueue;
  private readonly freeEarly: boolean;
  private readonly skipInvalidate: boolean;
  private readonly flushUnderLock: boolean;
  private readonly skipSilence: boolean;
  private readonly exitTwice: boolean;
  private readonly keepPasid: boolean;

  constructor(context: CoreContext, pasids: Pasids) {
    this.context = context;
    this.pasids = pasids;
    this.lock = new Mutex(context.scheduler, 'iommu_sva_lock');
    this.exitEnd = new WaitQueue(context.scheduler, 'the end of mm_exit');
    this.freeEarly = context.defects.has('core.pasid-freed-early');
    this.skipInvalidate = context.defects.has('core.skip-sva-invalidate');
    this.flushUnderLock = context.defects.has('core.flush-under-sva-lock');
    this.skipSilence = context.defects.has('core.skip-sva-silence');
    this.exitTwice = context.defects.has('core.mm-exit-twice');
    this.keepPasid = context.defects.has('core.pasid-never-freed');
  }

  /** U6. @throws Errno ENODEV, EBUSY after the first bind, EINVAL range empty, from 0, or beyond the hardware's */
  setParam(device: Device, { minPasid, maxPasid }: SvaParam): void {
    const record = this.context.registry.recordOf(device);
    const hardwareLast = record.probed.maxPasids - 1;
    const last = maxPasid === 0 ? hardwareLast : maxPasid;
    if (record.everBound) throw new Errno('EBUSY', `SVA: ${device.name} has been bound already`);
    if (minPasid < 1) throw new Errno('EINVAL', `SVA: PASID ${minPasid} cannot be bound`);
    if (minPasid > last) throw new Errno('EINVAL', `SVA: no PASID from ${minPasid} to ${last}`);
    if (last > hardwareLast) throw new Errno('EINVAL', `SVA: ${device.name} and ${record.ops.name} have PASIDs up to ${hardwareLast}, not ${last}`);
    record.firstPasid = minPasid;
    record.lastPasid = last;
  }

  /** See IommuCore.svaBind. */
  *bind(device: Device, mm: AddressSpace, mmExit: MmExitCallback | undefined, drvdata: unknown): Steps<number> {
    const record = this.context.registry.recordOf(device);
    if (mm.exiting || !mm.get()) throw new Errno('ESRCH', `SVA: address space ${mm.id} of ${mm.name} is exiting`);
    try {
      return yield* record.group.lock.with(() => this.bindLocked(record, mm, mmExit, drvdata));
    } finally {
      // after the group's lock: the last put tears the mm down, which takes that lock again (M5)
      mm.putAsync();
    }
  }

  private *bindLocked(record: DeviceRecord, mm: AddressSpace, mmExit: MmExitCallback | undefined, drvdata: unknown): Steps<number> {
    const { device, ops, group } = record;
    this.checkDevice(record);
    const known = this.byMm.get(mm);
    const existing = known === undefined ? undefined : bondOf(known, record);
    if (existing !== undefined) return this.rebind(existing, mmExit, drvdata);
    if (known !== undefined && (known.pasid < record.firstPasid || known.pasid > record.lastPasid)) {
      throw new Errno('ENOSPC', `SVA: PASID ${known.pasid} of ${mm.name} is outside ${record.firstPasid} to ${record.lastPasid} of ${device.name}`);
    }
    ops.svaCheckFormat(device, mm);
    const bound = known ?? this.admit(record, mm);
    const bond = this.link(record, bound, mmExit, drvdata);
    try {
      yield* ops.svaAttach(device, mm, bound.pasid);
    } catch (error) {
      this.unlink(bond);
      throw error;
    }
    assert(group.devices.length === 1, `group ${group.id} changed during bind`);
    bond.state = 'BOUND';
    bound.everBound = true;
    record.everBound = true;
    const { trace } = this.context;
    trace.trace.record(trace.svaBind, bond.correlation, record.name, bound.pasid, mm.id, 1);
    return bound.pasid;
  }

  private checkDevice(record: DeviceRecord): void {
    const { device, ops, group } = record;
    if (record.removed) throw new Errno('ENODEV', `SVA: ${device.name} has been removed`);
    if (group.devices.length !== 1) {
      throw new Errno('EINVAL', `SVA: ${device.name} shares group ${group.id} with ${group.devices.length - 1} other devices`);
    }
    if (!ops.featureEnabled(device, 'SVA')) throw new Errno('ENODEV', `SVA: ${missingSvaLink(record)}`);
  }

  /** B3, E4: the same bond, one more reference. */
  private rebind(bond: Bond, mmExit: MmExitCallback | undefined, drvdata: unknown): number {
    const { bound, record } = bond;
    if (bond.state !== 'BOUND') throw new Errno('ESRCH', `SVA: address space ${bound.mm.id} of ${bound.mm.name} is exiting`);
    if (bond.mmExit !== mmExit || bond.drvdata !== drvdata) {
      throw new Errno('EBUSY', `SVA: PASID ${bound.pasid} is bound to ${record.device.name} with another mm_exit or drvdata`);
    }
    bond.refs++;
    const { trace } = this.context;
    trace.trace.record(trace.svaBind, bond.correlation, record.name, bound.pasid, bound.mm.id, bond.refs);
    return bound.pasid;
  }

  /** Gives the mm its PASID. */
  private admit(record: DeviceRecord, mm: AddressSpace): BoundMm {
    const pasid = this.pasids.alloc(record.firstPasid, record.lastPasid, mm.name, mm);
    if (pasid === undefined) throw new Errno('ENOSPC', `SVA: no PASID from ${record.firstPasid} to ${record.lastPasid} is free`);
    const bound: BoundMm = { mm, pasid, firstBond: undefined, bonds: 0, everBound: false, gone: false, listeners: undefined };
    this.byMm.set(mm, bound);
    this.context.registry.bound.set(pasid, bound);
    mm.onFreed(() => this.retire(bound));
    return bound;
  }

  private link(record: DeviceRecord, bound: BoundMm, mmExit: MmExitCallback | undefined, drvdata: unknown): Bond {
    const correlation = this.context.trace.trace.nextCorrelation();
    const bond: Bond = {
      record, bound, refs: 1, state: 'BINDING', mmExit, drvdata, correlation,
      nextOfMm: bound.firstBond, nextOfDevice: record.firstBond, previousOfDevice: undefined,
    };
    // the notifier hears of changes before the hardware may walk the tables
    if (bound.bonds === 0) {
      bound.mm.grab();
      bound.mm.registerNotifier(this);
    }
    bound.firstBond = bond;
    bound.bonds++;
    bound.listeners = undefined;
    if (record.firstBond !== undefined) record.firstBond.previousOfDevice = bond;
    record.firstBond = bond;
    record.bonds++;
    this.bonds++;
    return bond;
  }

  private unlink(bond: Bond): void {
    const { bound, record } = bond;
    if (bound.firstBond === bond) bound.firstBond = bond.nextOfMm;
    else {
      let previous = bound.firstBond!;
      while (previous.nextOfMm !== bond) previous = previous.nextOfMm!;
      previous.nextOfMm = bond.nextOfMm;
    }
    bound.bonds--;
    bound.listeners = undefined;
    if (bond.previousOfDevice === undefined) record.firstBond = bond.nextOfDevice;
    else bond.previousOfDevice.nextOfDevice = bond.nextOfDevice;
    if (bond.nextOfDevice !== undefined) bond.nextOfDevice.previousOfDevice = bond.previousOfDevice;
    record.bonds--;
    this.bonds--;
    this.exitEnd.wakeAll();
    if (bound.bonds > 0) return;
    // a first bind that failed leaves nothing behind; otherwise the PASID waits for the end of the mm (M7)
    if (!bound.everBound || this.freeEarly) this.retire(bound);
    bound.mm.unregisterNotifier(this);
    bound.mm.drop();
  }

  /** The PASID goes back: no bond is left, queues are drained, and the mm is freed. */
  private retire(bound: BoundMm): void {
    if (bound.gone) return;
    assert(bound.bonds === 0, `PASID ${bound.pasid} returned while ${bound.bonds} bonds use it`);
    bound.gone = true;
    if (this.byMm.get(bound.mm) === bound) this.byMm.delete(bound.mm);
    this.context.registry.bound.delete(bound.pasid);
    if (!this.keepPasid) this.pasids.free(bound.pasid, bound.mm.name);
  }

  /** See IommuCore.svaUnbind. */
  *unbind(device: Device, pasid: number): Steps {
    const record = this.context.registry.recordOf(device);
    for (;;) {
      yield* record.group.lock.lock();
      let bond: Bond;
      try {
        bond = this.requireBond(record, pasid);
        if (bond.state !== 'EXITING' || bond.refs > 1) {
          yield* this.unbindLocked(bond);
          return;
        }
      } finally {
        record.group.lock.unlock();
      }
      // M4: mm_exit uses the bond; wait without the lock, then look again who is to free it
      yield* this.exitEnd.until(() => bond.state !== 'EXITING' || bondOf(bond.bound, record) !== bond);
    }
  }

  private *unbindLocked(bond: Bond): Steps {
    const { record, bound } = bond;
    const { trace } = this.context;
    bond.refs--;
    if (bond.refs > 0) {
      trace.trace.record(trace.svaUnbind, bond.correlation, record.name, bound.pasid, bound.mm.id, bond.refs);
      return;
    }
    yield* this.lock.lock();
    bond.state = 'DRAINING';
    if (!this.flushUnderLock) this.lock.unlock();
    try {
      yield* record.ops.svaDetach(record.device, bound.pasid);
    } finally {
      if (this.flushUnderLock) this.lock.unlock();
      // the bond ends here, after the drain: requests until now are its own
      trace.trace.record(trace.svaUnbind, bond.correlation, record.name, bound.pasid, bound.mm.id, 0);
      this.unlink(bond);
    }
  }

  private requireBond(record: DeviceRecord, pasid: number): Bond {
    const bound = this.context.registry.bound.get(pasid);
    const bond = bound === undefined ? undefined : bondOf(bound, record);
    if (bond === undefined) throw new Errno('ESRCH', `SVA: PASID ${pasid} is not bound to ${record.device.name}`);
    return bond;
  }

  /** B5: the PASID of the bond, or IOMMU_PASID_INVALID. */
  pasidOf(device: Device, mm: AddressSpace): number {
    const record = this.context.registry.devices.get(device);
    const bound = this.byMm.get(mm);
    if (record === undefined || bound === undefined || bondOf(bound, record) === undefined) return IOMMU_PASID_INVALID;
    return bound.pasid;
  }

  bondState(device: Device, pasid: number): Bond['state'] | 'NONE' {
    const record = this.context.registry.devices.get(device);
    const bound = this.context.registry.bound.get(pasid);
    return (record === undefined || bound === undefined ? undefined : bondOf(bound, record))?.state ?? 'NONE';
  }

  /** A removed device forgets its bonds; its context is torn down already, nothing is drained one by one. */
  dropDevice(record: DeviceRecord): void {
    const { trace } = this.context;
    for (let bond = record.firstBond; bond !== undefined; bond = record.firstBond) {
      trace.trace.record(trace.svaUnbind, bond.correlation, record.name, bond.bound.pasid, bond.bound.mm.id, 0);
      this.unlink(bond);
    }
  }

  // MmNotifier. Takes no group lock: an unbind that holds it may wait for a worker that waits for this mm.
  *invalidateRange(mm: AddressSpace, start: number, end: number): Steps {
    const bound = this.byMm.get(mm);
    if (bound === undefined || this.skipInvalidate) return;
    for (const { ops, devices } of (bound.listeners ??= listenersOf(bound))) yield* ops.svaInvalidate(devices, bound.pasid, start, end);
  }

  /** M1–M6: each device either stops by its driver's callback or is silenced by the IOMMU, before the tables go. */
  *release(mm: AddressSpace): Steps {
    const bound = this.byMm.get(mm);
    if (bound === undefined) return;
    for (let bond = this.nextToExit(bound); bond !== undefined; bond = this.nextToExit(bound)) yield* this.exitBond(bond);
  }

  private nextToExit(bound: BoundMm): Bond | undefined {
    let bond = bound.firstBond;
    while (bond !== undefined && bond.state === 'ZOMBIE') bond = bond.nextOfMm;
    return bond;
  }

  private *callExit({ record, bound, drvdata, correlation }: Bond, mmExit: MmExitCallback): Steps<number> {
    const { trace } = this.context;
    trace.trace.record(trace.mmExitCall, correlation, record.name, bound.pasid, bound.mm.id);
    return yield* mmExit(record.device, bound.pasid, drvdata);
  }

  private *exitBond(bond: Bond): Steps {
    const { record, bound, mmExit } = bond;
    const { lock } = record.group;
    let result = 0;
    // an unbind or bind that holds the lock ends first, and may have freed the bond
    yield* lock.lock();
    const alive = bondOf(bound, record) === bond;
    if (alive && mmExit !== undefined) bond.state = 'EXITING';
    lock.unlock();
    if (!alive) return;
    if (mmExit !== undefined) {
      result = yield* this.callExit(bond, mmExit);
      if (this.exitTwice) result = yield* this.callExit(bond, mmExit);
      if (result !== 0) this.context.log.log('warn', `${record.device.name}: possible leak of PASID ${bound.pasid}`);
      // the device is silent now; what it asked before must not outlive the tables (M3)
      if (record.queue !== undefined) yield* record.queue.flushDevice(record.device);
    }
    yield* lock.lock();
    try {
      if (bondOf(bound, record) !== bond) return;
      if (!this.skipSilence) yield* record.ops.svaSilence(record.device, bound.pasid);
      bond.state = 'ZOMBIE';
      bound.listeners = undefined;
      const { trace } = this.context;
      trace.trace.record(trace.mmExit, bond.correlation, record.name, bound.pasid, bound.mm.id, mmExit === undefined ? 0 : 1, result);
    } finally {
      lock.unlock();
      this.exitEnd.wakeAll();
    }
  }
}

function listenersOf(bound: BoundMm): { ops: Bond['record']['ops']; devices: Device[] }[] {
  const listeners: { ops: Bond['record']['ops']; devices: Device[] }[] = [];
  for (let bond = bound.firstBond; bond !== undefined; bond = bond.nextOfMm) {
    if (bond.state === 'ZOMBIE') continue;
    const { ops, device } = bond.record;
    const known = listeners.find((listener) => listener.ops === ops);
    if (known === undefined) listeners.push({ ops, devices: [device] });
    else known.devices.push(device);
  }
  return listeners;
}
