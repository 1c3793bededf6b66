/** A device in the hands of a program: its regions, its interrupts, resets and features. */
import { Errno } from '../../sim/errno.js';
import { load32, loadSized, store32, storeSized } from '../../sim/little-endian.js';
import type { AccessSize, Mmio } from '../../sim/mmio.js';
import type { Steps } from '../../sim/task.js';
import { DeviceFile } from '../core/device-file.js';
import {
  DEVICE_FLAGS_PCI, DEVICE_FLAGS_RESET, REGION_STRIDE, type SparseArea, type VfioDeviceInfo, type VfioIrqInfo, type VfioRegionInfo,
} from '../device.js';
import { walkChain } from '../uapi/capability-chain.js';
import {
  DEVICE_FEATURE, DEVICE_INFO, IRQ_INFO, IRQ_SET, PCI_DEPENDENT_DEVICE, PCI_HOT_RESET, PCI_HOT_RESET_INFO, REGION_CAP_SPARSE_MMAP, REGION_CAP_TYPE, REGION_INFO,
  SPARSE_MMAP_AREA, VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_TYPE,
} from '../uapi/device.js';
import { bytesOf, concatWords, wordsOfBytes } from '../uapi/fields.js';
import {
  VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_PCI_HOT_RESET, VFIO_DEVICE_RESET, VFIO_DEVICE_SET_IRQS,
} from '../uapi/ioctl.js';
import type { RawAnswer, VfioCalls } from './calls.js';
import type { GroupHandle } from './group.js';
import { MigrationCalls } from './migration.js';

/** A region as its user sees it; `offset` is where it starts in the device file. */
export interface RegionInfo extends VfioRegionInfo {
  readonly offset: number;
}

/** What SET_IRQS is asked for; descriptors of eventfds are numbers, -1 for none. */
export interface IrqRequest {
  readonly index: number;
  readonly start?: number;
  readonly action?: 'mask' | 'unmask' | 'trigger';
  /** The kind of data: one of these, or none with `count`. */
  readonly eventfds?: readonly number[];
  readonly bools?: readonly boolean[];
  readonly count?: number;
}

/** A function that a hot reset resets too. */
export interface DependentDevice {
  readonly groupId: number;
  readonly segment: number;
  readonly bus: number;
  readonly devfn: number;
}

const ACTIONS = { mask: VFIO_IRQ_SET_ACTION_MASK, unmask: VFIO_IRQ_SET_ACTION_UNMASK, trigger: VFIO_IRQ_SET_ACTION_TRIGGER };

export class DeviceHandle {
  readonly fd: number;
  readonly migration: MigrationCalls;
  /** High half of the last `readValue` of 8 bytes. */
  high = 0;
  private readonly calls: VfioCalls;
  /** Buffers of `readValue` and `writeValue`, by size: every access of a guest that traps is one. */
  private readonly loads: Uint8Array[] = [];
  private readonly stores: Uint8Array[] = [];

  constructor(calls: VfioCalls, fd: number) {
    this.calls = calls;
    this.fd = fd;
    this.migration = new MigrationCalls(calls, this);
  }

  *info(): Steps<VfioDeviceInfo> {
    const info = yield* this.record(VFIO_DEVICE_GET_INFO, DEVICE_INFO.encode({ argsz: DEVICE_INFO.sizeBytes }));
    const { f } = DEVICE_INFO;
    return { flags: f.flags.get(info), regions: f.num_regions.get(info), irqs: f.num_irqs.get(info) };
  }

  *canReset(): Steps<boolean> {
    return ((yield* this.info()).flags & DEVICE_FLAGS_RESET) !== 0;
  }

  *isPci(): Steps<boolean> {
    return ((yield* this.info()).flags & DEVICE_FLAGS_PCI) !== 0;
  }

  /** Asks again with more room when the kernel has capabilities to tell. */
  *region(index: number): Steps<RegionInfo> {
    const { f, sizeBytes } = REGION_INFO;
    let info = yield* this.record(VFIO_DEVICE_GET_REGION_INFO, REGION_INFO.encode({ argsz: sizeBytes, index }));
    const argsz = f.argsz.get(info);
    if (argsz > sizeBytes) info = yield* this.record(VFIO_DEVICE_GET_REGION_INFO, concatWords(REGION_INFO.encode({ argsz, index }), new Uint32Array((argsz - sizeBytes) / 4)));
    let sparse: SparseArea[] | undefined, type: VfioRegionInfo['type'], msixMappable = false;
    for (const { id, at } of walkChain(info, f.cap_offset.get(info))) {
      if (id === VFIO_REGION_INFO_CAP_SPARSE_MMAP) sparse = sparseAreas(info, at);
      if (id === VFIO_REGION_INFO_CAP_TYPE) type = { type: REGION_CAP_TYPE.f.type.get(info, at), subtype: REGION_CAP_TYPE.f.subtype.get(info, at) };
      if (id === VFIO_REGION_INFO_CAP_MSIX_MAPPABLE) msixMappable = true;
    }
    return {
      flags: f.flags.get(info), sizeBytes: f.size.get(info), offset: f.offset.get(info),
      ...(sparse !== undefined && { sparse }), ...(type !== undefined && { type }), ...(msixMappable && { msixMappable }),
    };
  }

  *irq(index: number): Steps<VfioIrqInfo> {
    const info = yield* this.record(VFIO_DEVICE_GET_IRQ_INFO, IRQ_INFO.encode({ argsz: IRQ_INFO.sizeBytes, index }));
    return { flags: IRQ_INFO.f.flags.get(info), count: IRQ_INFO.f.count.get(info) };
  }

  /** Wires interrupts to eventfds, masks, unmasks or triggers them. `{ index, count: 0 }` tears those of an index down. */
  *setIrqs(request: IrqRequest): Steps {
    const { index, start = 0, action = 'trigger', eventfds, bools } = request;
    let kind = VFIO_IRQ_SET_DATA_NONE, data: Uint8Array = new Uint8Array(0), count = request.count ?? 0;
    if (eventfds !== undefined) {
      kind = VFIO_IRQ_SET_DATA_EVENTFD;
      data = bytesOf(Int32Array.from(eventfds));
      count = eventfds.length;
    } else if (bools !== undefined) {
      kind = VFIO_IRQ_SET_DATA_BOOL;
      data = Uint8Array.from(bools, Number);
      count = bools.length;
    }
    const header = bytesOf(IRQ_SET.encode({ argsz: IRQ_SET.sizeBytes + data.length, flags: kind | ACTIONS[action], index, start, count }));
    yield* this.checked(VFIO_DEVICE_SET_IRQS, joined(header, data));
  }

  *reset(): Steps {
    yield* this.calls.process.ioctl(this.fd, VFIO_DEVICE_RESET, 0);
  }

  /** Which functions a hot reset would reset. ENODEV when there is none. */
  *hotResetInfo(): Steps<DependentDevice[]> {
    const { f, sizeBytes, sizeWords } = PCI_HOT_RESET_INFO;
    const first = yield* this.raw(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytesOf(PCI_HOT_RESET_INFO.encode({ argsz: sizeBytes })));
    if (first.refusal !== undefined && first.refusal.code !== 'ENOSPC') throw first.refusal;
    const room = f.count.get(wordsOfBytes(first.bytes));
    const argsz = sizeBytes + room * PCI_DEPENDENT_DEVICE.sizeBytes;
    const info = yield* this.record(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, concatWords(PCI_HOT_RESET_INFO.encode({ argsz }), new Uint32Array(room * PCI_DEPENDENT_DEVICE.sizeWords)));
    return Array.from({ length: f.count.get(info) }, (_, i) => {
      const at = sizeWords + i * PCI_DEPENDENT_DEVICE.sizeWords, { f: d } = PCI_DEPENDENT_DEVICE;
      return { groupId: d.group_id.get(info, at), segment: d.segment.get(info, at), bus: d.bus.get(info, at), devfn: d.devfn.get(info, at) };
    });
  }

  /** Resets everything on the bus; the caller shows that it has all groups. */
  *hotReset(groups: readonly GroupHandle[]): Steps {
    const argsz = PCI_HOT_RESET.sizeBytes + groups.length * 4;
    yield* this.record(VFIO_DEVICE_PCI_HOT_RESET, concatWords(PCI_HOT_RESET.encode({ argsz, count: groups.length }), groups.map(({ fd }) => fd)));
  }

  /** pread of a region. */
  read(region: number, offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    const count = this.file.read(region * REGION_STRIDE + offset, bytes);
    return count === length ? bytes : bytes.slice(0, count);
  }

  /** pwrite of a region; bytes written. */
  write(region: number, offset: number, bytes: Uint8Array): number {
    return this.file.write(region * REGION_STRIDE + offset, bytes);
  }

  /** pread of a little-endian value; its low half, the high one is in `high`. EIO when it is cut off. */
  readValue(region: number, offset: number, size: AccessSize): number {
    const bytes = (this.loads[size] ??= new Uint8Array(size));
    const count = this.file.read(region * REGION_STRIDE + offset, bytes);
    if (count !== size) throw new Errno('EIO', `read ${count} of ${size} bytes at ${offset} of region ${region}`);
    this.high = size === 8 ? load32(bytes, 4) : 0;
    return loadSized(bytes, 0, size === 8 ? 4 : size);
  }

  /** pwrite of a little-endian value. EIO when it is cut off. */
  writeValue(region: number, offset: number, size: AccessSize, value: number, high = 0): void {
    const bytes = (this.stores[size] ??= new Uint8Array(size));
    storeSized(bytes, 0, size === 8 ? 4 : size, value);
    if (size === 8) store32(bytes, 4, high);
    const written = this.write(region, offset, bytes);
    if (written !== size) throw new Errno('EIO', `wrote ${written} of ${size} bytes at ${offset} of region ${region}`);
  }

  /** Part of a region as registers. EINVAL not mappable. */
  mmap(region: number, offset: number, sizeBytes: number): Mmio {
    return this.file.mmap(region * REGION_STRIDE + offset, sizeBytes);
  }

  /** GET of a feature: its bytes. */
  *getFeature(feature: number, data: Uint8Array): Steps<Uint8Array> {
    const bytes = yield* this.checked(VFIO_DEVICE_FEATURE, featureRecord(feature | VFIO_DEVICE_FEATURE_GET, data));
    return bytes.subarray(DEVICE_FEATURE.sizeBytes);
  }

  /** SET of a feature: its bytes as the kernel left them. */
  *setFeature(feature: number, data = new Uint8Array(0)): Steps<Uint8Array> {
    const bytes = yield* this.checked(VFIO_DEVICE_FEATURE, featureRecord(feature | VFIO_DEVICE_FEATURE_SET, data));
    return bytes.subarray(DEVICE_FEATURE.sizeBytes);
  }

  /** ENOTTY unknown feature, EINVAL it has not what is asked for. */
  *probeFeature(feature: number, how: { readonly get?: boolean; readonly set?: boolean } = {}): Steps {
    const flags = VFIO_DEVICE_FEATURE_PROBE | (how.get === true ? VFIO_DEVICE_FEATURE_GET : 0) | (how.set === true ? VFIO_DEVICE_FEATURE_SET : 0);
    yield* this.checked(VFIO_DEVICE_FEATURE, featureRecord(feature | flags, new Uint8Array(0)));
  }

  /** Any command with any bytes as its record. */
  *raw(command: number, bytes: Uint8Array): Steps<RawAnswer> {
    return yield* this.calls.raw(this.fd, command, bytes);
  }

  *close(): Steps {
    yield* this.calls.process.close(this.fd);
  }

  /** The open file behind the descriptor. EBADF closed. */
  get file(): DeviceFile {
    const file = this.calls.process.file(this.fd);
    if (!(file instanceof DeviceFile)) throw new Errno('EBADF', `descriptor ${this.fd} is ${file.name}, not a device`);
    return file;
  }

  private *record(command: number, words: Uint32Array): Steps<Uint32Array> {
    return yield* this.calls.record(this.fd, command, words);
  }

  private *checked(command: number, bytes: Uint8Array): Steps<Uint8Array> {
    const answer = yield* this.raw(command, bytes);
    if (answer.refusal !== undefined) throw answer.refusal;
    return answer.bytes;
  }
}

function featureRecord(flags: number, data: Uint8Array): Uint8Array {
  return joined(bytesOf(DEVICE_FEATURE.encode({ argsz: DEVICE_FEATURE.sizeBytes + data.length, flags })), data);
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(first.length + second.length);
  bytes.set(first);
  bytes.set(second, first.length);
  return bytes;
}

function sparseAreas(info: Uint32Array, at: number): SparseArea[] {
  const first = at + REGION_CAP_SPARSE_MMAP.sizeWords;
  return Array.from({ length: REGION_CAP_SPARSE_MMAP.f.nr_areas.get(info, at) }, (_, i) => {
    const area = first + i * SPARSE_MMAP_AREA.sizeWords;
    return { offset: SPARSE_MMAP_AREA.f.offset.get(info, area), sizeBytes: SPARSE_MMAP_AREA.f.size.get(info, area) };
  });
}
