/**
 * An open device (drivers/vfio/vfio_main.c, the records as vfio-pci answers them): reads, writes and mappings of its
 * regions, and its ioctls, turned from bytes into calls of the driver and back. Not done here: what only one driver
 * knows (hot reset), which goes to its `ioctl`.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Mmio } from '../../sim/mmio.js';
import type { Steps } from '../../sim/task.js';
import type { IoctlFile, Process } from '../../host/process.js';
import { REGION_INFO_CAPS, REGION_STRIDE, type VfioDeviceOps, type VfioFeatureRequest, type VfioRegionInfo } from '../device.js';
import { capability, chainOf, type Capability } from '../uapi/capability-chain.js';
import {
  DEVICE_FEATURE, DEVICE_INFO, DEVICE_INFO_MINSZ, IRQ_INFO, REGION_CAP_SPARSE_MMAP, REGION_CAP_TYPE, REGION_INFO, SPARSE_MMAP_AREA, VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MASK, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_CAP_TYPE,
} from '../uapi/device.js';
import {
  VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_RESET, VFIO_DEVICE_SET_IRQS,
} from '../uapi/ioctl.js';
import { bytesOf, concatWords } from '../uapi/fields.js';
import { checkFlags, copyFromUser, copyToUser, recordFromUser, wordsToUser } from '../uapi/user-memory.js';
import type { RegisteredDevice } from './device.js';
import { irqSetFromUser } from './irq-set.js';

/** No feature's record is longer; what the caller says to have beyond it is not looked at. */
const FEATURE_DATA_LIMIT = 256;
/** Bytes that one pread or pwrite moves at most. */
const TRANSFER_LIMIT = 2 ** 20;
/** With this much the caller can take a capability's offset. */
const DEVICE_INFO_CAPSZ = 20;

export class DeviceFile implements IoctlFile {
  readonly name: string;
  readonly device: RegisteredDevice;
  private readonly ops: VfioDeviceOps;

  constructor(device: RegisteredDevice) {
    this.device = device;
    this.ops = device.registration.ops;
    this.name = `[vfio-device] ${device.name}`;
  }

  /** Closes the device with the last descriptor; then the group may leave its container, then the driver may go on. */
  *release(): Steps {
    yield* this.device.close();
    yield* this.device.group.dropContainerUser();
    this.device.putUser();
  }

  /** Loads from a region as a CPU of the kernel does; bytes read. @param offset index * REGION_STRIDE + offset in the region */
  read(offset: number, target: Uint8Array): number {
    return this.ops.read(offset, target);
  }

  write(offset: number, source: Uint8Array): number {
    return this.ops.write(offset, source);
  }

  /** pread into the caller's memory; bytes read, which may be fewer than asked for. EFAULT, or what the driver says. */
  *pread(caller: Process, address: number, length: number, offset: number): Steps<number> {
    const bytes = new Uint8Array(Math.min(length, TRANSFER_LIMIT));
    const count = this.ops.read(offset, bytes);
    yield* copyToUser(caller, address, bytes.subarray(0, count));
    return count;
  }

  *pwrite(caller: Process, address: number, length: number, offset: number): Steps<number> {
    return this.ops.write(offset, yield* copyFromUser(caller, address, Math.min(length, TRANSFER_LIMIT)));
  }

  /** Part of a region as registers for the CPU. EINVAL not mappable. */
  mmap(offset: number, sizeBytes: number): Mmio {
    return this.ops.mmap(offset, sizeBytes);
  }

  *ioctl(caller: Process, command: number, argument: number): Steps<number> {
    switch (command) {
      case VFIO_DEVICE_GET_INFO: return yield* this.getInfo(caller, argument);
      case VFIO_DEVICE_GET_REGION_INFO: return yield* this.getRegionInfo(caller, argument);
      case VFIO_DEVICE_GET_IRQ_INFO: return yield* this.getIrqInfo(caller, argument);
      case VFIO_DEVICE_SET_IRQS:
        yield* this.ops.setIrqs(yield* irqSetFromUser(caller, argument, this.ops.info().irqs, (index) => this.ops.irqInfo(index)));
        return 0;
      case VFIO_DEVICE_RESET:
        yield* this.ops.reset();
        return 0;
      case VFIO_DEVICE_FEATURE: return yield* this.feature(caller, argument);
      default:
        if (this.ops.ioctl === undefined) throw new Errno('ENOTTY', `${this.name} knows no command ${hex(command)}`);
        return yield* this.ops.ioctl(caller, command, argument);
    }
  }

  private *getInfo(caller: Process, address: number): Steps<number> {
    const record = yield* recordFromUser(caller, address, DEVICE_INFO, DEVICE_INFO_MINSZ);
    const { f } = DEVICE_INFO;
    const { flags, regions, irqs } = this.ops.info();
    f.flags.set(record, flags >>> 0);
    f.num_regions.set(record, regions);
    f.num_irqs.set(record, irqs);
    const length = f.argsz.get(record) >= DEVICE_INFO_CAPSZ ? DEVICE_INFO_CAPSZ : DEVICE_INFO_MINSZ;
    yield* copyToUser(caller, address, bytesOf(record, length));
    return 0;
  }

  /** Capabilities that argsz has no room for are left out, and argsz then says how much they take. */
  private *getRegionInfo(caller: Process, address: number): Steps<number> {
    const record = yield* recordFromUser(caller, address, REGION_INFO);
    const { f } = REGION_INFO;
    const index = f.index.get(record);
    const info = this.ops.regionInfo(index);
    const chain = chainOf(regionCapabilities(info), REGION_INFO.sizeBytes);
    const needed = REGION_INFO.sizeBytes + chain.length * 4;
    f.flags.set(record, (info.flags | (chain.length > 0 ? REGION_INFO_CAPS : 0)) >>> 0);
    f.size.set(record, info.sizeBytes);
    f.offset.set(record, index * REGION_STRIDE);
    if (chain.length > 0) {
      const fits = f.argsz.get(record) >= needed;
      if (fits) yield* wordsToUser(caller, address + REGION_INFO.sizeBytes, chain);
      else f.argsz.set(record, needed);
      f.cap_offset.set(record, fits ? REGION_INFO.sizeBytes : 0);
    }
    yield* wordsToUser(caller, address, record);
    return 0;
  }

  private *getIrqInfo(caller: Process, address: number): Steps<number> {
    const record = yield* recordFromUser(caller, address, IRQ_INFO);
    const { f } = IRQ_INFO;
    const { flags, count } = this.ops.irqInfo(f.index.get(record));
    f.flags.set(record, flags >>> 0);
    f.count.set(record, count);
    yield* wordsToUser(caller, address, record);
    return 0;
  }

  /** GET and SET exclude each other except in a PROBE; which of them a feature has, its driver knows (vfio/migration/feature-check.ts). */
  private *feature(caller: Process, address: number): Steps<number> {
    const header = yield* recordFromUser(caller, address, DEVICE_FEATURE);
    const flags = DEVICE_FEATURE.f.flags.get(header);
    checkFlags(DEVICE_FEATURE.name, flags, VFIO_DEVICE_FEATURE_MASK | VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PROBE);
    const get = (flags & VFIO_DEVICE_FEATURE_GET) !== 0, set = (flags & VFIO_DEVICE_FEATURE_SET) !== 0, probe = (flags & VFIO_DEVICE_FEATURE_PROBE) !== 0;
    if (get && set && !probe) throw new Errno('EINVAL', 'GET and SET of a feature exclude each other');
    const feature = flags & VFIO_DEVICE_FEATURE_MASK;
    if (this.ops.feature === undefined) throw new Errno('ENOTTY', `${this.name} has no feature ${feature}`);
    const at = address + DEVICE_FEATURE.sizeBytes;
    const length = Math.min(DEVICE_FEATURE.f.argsz.get(header) - DEVICE_FEATURE.sizeBytes, FEATURE_DATA_LIMIT);
    const data = probe ? new Uint8Array(0) : yield* copyFromUser(caller, at, length);
    const before = data.slice();
    const request: VfioFeatureRequest = { feature, get, set, probe, data, caller };
    const result = yield* this.ops.feature(request);
    if (probe || !(get || data.some((byte, i) => byte !== before[i]))) return result;
    try {
      yield* copyToUser(caller, at, data);
    } catch (error) {
      yield* request.undo?.() ?? [];
      throw error;
    }
    return result;
  }
}

function regionCapabilities({ sparse, type, msixMappable }: VfioRegionInfo): Capability[] {
  const found: Capability[] = [];
  if (sparse !== undefined) {
    const areas = sparse.map(({ offset, sizeBytes }) => SPARSE_MMAP_AREA.encode({ offset, size: sizeBytes }));
    found.push(capability(VFIO_REGION_INFO_CAP_SPARSE_MMAP, concatWords(REGION_CAP_SPARSE_MMAP.encode({ nr_areas: areas.length }), ...areas)));
  }
  if (type !== undefined) found.push(capability(VFIO_REGION_INFO_CAP_TYPE, REGION_CAP_TYPE.encode({ type: type.type >>> 0, subtype: type.subtype >>> 0 })));
  if (msixMappable === true) found.push(capability(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, []));
  return found;
}
