/**
 * Messages about a device's regions and interrupts, from payload to payload, over what every device of VFIO offers
 * (`VfioDeviceOps`). Nothing here sleeps.
 */
import { hex } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { load32, store32 } from '../../sim/little-endian.js';
import {
  REGION_INFO_CAPS, REGION_INFO_MMAP, REGION_INFO_READ, REGION_INFO_WRITE, REGION_STRIDE, type SparseArea, type VfioDeviceOps, type VfioIrqInfo, type VfioRegionInfo,
} from '../device.js';
import {
  bytesOf, capability, chainOf, concatWords, DEVICE_INFO, DEVICE_INFO_MINSZ, IRQ_INFO, REGION_CAP_SPARSE_MMAP, REGION_CAP_TYPE, REGION_INFO, SPARSE_MMAP_AREA,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_TYPE, type Capability,
} from '../uapi/index.js';
import {
  checkArgsz, checkPayload, load64, REGION_ACCESS_SIZE, REGION_IO_FDS_SIZE, store64, WRITE_MULTI_ENTRY_SIZE, WRITE_MULTI_HEADER_SIZE, WRITE_MULTI_MAX_DATA,
} from './protocol/records.js';

/** Memory of a region that the client may map. */
export interface RegionFile {
  /** Stays the device's; a copy goes to the client. */
  readonly descriptor: number;
  /** Where the region begins in the file. */
  readonly fileOffset: number;
  /** What may be mapped; the whole region without it. */
  readonly sparse?: readonly SparseArea[];
}

export interface Reply {
  readonly payload: Uint8Array;
  readonly descriptors?: readonly number[];
}

/** More than QEMU ever puts into one message. */
export const WRITES_PER_TURN = 256;

export class DeviceCommands {
  private readonly ops: VfioDeviceOps;
  private readonly regionFile: (index: number) => RegionFile | undefined;
  private readonly maxTransferBytes: number;
  /** Regions do not change while a client is there; a device that is asked for each access would pay for each. */
  private readonly known: (VfioRegionInfo | undefined)[] = [];

  constructor(ops: VfioDeviceOps, regionFile: (index: number) => RegionFile | undefined, maxTransferBytes: number) {
    this.ops = ops;
    this.regionFile = regionFile;
    this.maxTransferBytes = maxTransferBytes;
  }

  /** DEVICE_GET_INFO. As much of the record as the client sent: some read exactly that (rust-vmm's has cap_offset too, QEMU's has not). EINVAL length, argsz. */
  info(payload: Uint8Array): Reply {
    checkArgsz(payload, DEVICE_INFO_MINSZ, 'DEVICE_GET_INFO');
    const { flags, regions, irqs } = this.ops.info();
    const sizeBytes = Math.min(payload.length & ~3, DEVICE_INFO.sizeBytes);
    return { payload: bytesOf(DEVICE_INFO.encode({ argsz: sizeBytes, flags: flags >>> 0, num_regions: regions, num_irqs: irqs }), sizeBytes) };
  }

  /**
   * DEVICE_GET_REGION_INFO. Capabilities, and the descriptor that goes with them, come when argsz has room for them;
   * argsz of the reply says how much that is. EINVAL length, argsz, index.
   */
  regionInfo(payload: Uint8Array): Reply {
    const argsz = checkArgsz(payload, REGION_INFO.sizeBytes, 'DEVICE_GET_REGION_INFO');
    const index = load32(payload, 8);
    const info = this.regionOf(index);
    const file = this.regionFile(index);
    const chain = chainOf(capabilitiesOf(info, file), REGION_INFO.sizeBytes);
    const needed = REGION_INFO.sizeBytes + chain.length * 4;
    const fits = argsz >= needed;
    // only what lies in a file can be mapped by another process
    const flags = (info.flags & ~(REGION_INFO_MMAP | REGION_INFO_CAPS)) | (file === undefined ? 0 : REGION_INFO_MMAP) | (chain.length === 0 ? 0 : REGION_INFO_CAPS);
    const record = REGION_INFO.encode({
      argsz: needed, flags: flags >>> 0, index, cap_offset: chain.length > 0 && fits ? REGION_INFO.sizeBytes : 0, size: info.sizeBytes, offset: file?.fileOffset ?? 0,
    });
    return { payload: bytesOf(fits ? concatWords(record, chain) : record), ...(file !== undefined && fits ? { descriptors: [file.descriptor] } : {}) };
  }

  /** DEVICE_GET_REGION_IO_FDS: every access is a message, so there are none. EINVAL length, argsz, flags, count, index. */
  regionIoFds(payload: Uint8Array): Reply {
    checkArgsz(payload, REGION_IO_FDS_SIZE, 'DEVICE_GET_REGION_IO_FDS');
    const flags = load32(payload, 4), index = load32(payload, 8), count = load32(payload, 12);
    if (flags !== 0 || count !== 0) throw new Errno('EINVAL', `DEVICE_GET_REGION_IO_FDS: flags ${hex(flags)}, count ${count}`);
    this.regionOf(index);
    const answer = new Uint8Array(REGION_IO_FDS_SIZE);
    store32(answer, 0, REGION_IO_FDS_SIZE);
    store32(answer, 8, index);
    return { payload: answer };
  }

  /** DEVICE_GET_IRQ_INFO; an index that this device does not have has no interrupts. EINVAL length, argsz, index. */
  irqInfo(payload: Uint8Array): Reply {
    checkArgsz(payload, IRQ_INFO.sizeBytes, 'DEVICE_GET_IRQ_INFO');
    const index = load32(payload, 8);
    const { irqs } = this.ops.info();
    if (index >= irqs) throw new Errno('EINVAL', `DEVICE_GET_IRQ_INFO: index ${index} of ${irqs}`);
    const { flags, count } = lacking(() => this.ops.irqInfo(index), NO_IRQ);
    return { payload: bytesOf(IRQ_INFO.encode({ argsz: IRQ_INFO.sizeBytes, flags: flags >>> 0, index, count })) };
  }

  /** REGION_READ. EINVAL length, region, range, count; what the device refuses. */
  read(payload: Uint8Array): Reply {
    checkPayload(payload, REGION_ACCESS_SIZE, 'REGION_READ');
    const offset = load64(payload, 0, 'offset'), region = load32(payload, 8), count = load32(payload, 12);
    this.checkAccess(region, offset, count, REGION_INFO_READ);
    const answer = new Uint8Array(REGION_ACCESS_SIZE + count);
    answer.set(payload.subarray(0, REGION_ACCESS_SIZE));
    const done = count === 0 ? 0 : this.ops.read(region * REGION_STRIDE + offset, answer.subarray(REGION_ACCESS_SIZE));
    if (done !== count) throw new Errno('EINVAL', `REGION_READ: ${done} of ${count} bytes of region ${region} at ${hex(offset)}`);
    return { payload: answer };
  }

  /** REGION_WRITE. EINVAL length, region, range, count; what the device refuses. */
  write(payload: Uint8Array): Reply {
    checkPayload(payload, REGION_ACCESS_SIZE, 'REGION_WRITE');
    const count = load32(payload, 12);
    if (payload.length - REGION_ACCESS_SIZE !== count) throw new Errno('EINVAL', `REGION_WRITE: ${count} bytes are said, ${payload.length - REGION_ACCESS_SIZE} came`);
    this.store(load32(payload, 8), load64(payload, 0, 'offset'), payload.subarray(REGION_ACCESS_SIZE));
    return { payload: payload.slice(0, REGION_ACCESS_SIZE) };
  }

  /** So many writes in one message that they are not made at once. */
  writesInTurns(payload: Uint8Array): boolean {
    return payload.length > WRITE_MULTI_HEADER_SIZE + WRITES_PER_TURN * WRITE_MULTI_ENTRY_SIZE;
  }

  /**
   * REGION_WRITE_MULTI: in order, up to the first that is refused. EINVAL length, number, counts above 8; as `write`.
   * @param first at most `WRITES_PER_TURN` are made from here on; undefined when there are more
   */
  writeMulti(payload: Uint8Array, first = 0): Reply | undefined {
    checkPayload(payload, WRITE_MULTI_HEADER_SIZE, 'REGION_WRITE_MULTI');
    const writes = load64(payload, 0, 'number of writes'), end = Math.min(writes, first + WRITES_PER_TURN);
    if (payload.length - WRITE_MULTI_HEADER_SIZE !== writes * WRITE_MULTI_ENTRY_SIZE) throw new Errno('EINVAL', `REGION_WRITE_MULTI: ${writes} writes in ${payload.length} bytes`);
    for (let i = first; i < end; i++) {
      const entry = payload.subarray(WRITE_MULTI_HEADER_SIZE + i * WRITE_MULTI_ENTRY_SIZE);
      const count = load32(entry, 12);
      if (count > WRITE_MULTI_MAX_DATA) throw new Errno('EINVAL', `REGION_WRITE_MULTI: write ${i} of ${count} bytes`);
      this.store(load32(entry, 8), load64(entry, 0, 'offset'), entry.subarray(REGION_ACCESS_SIZE, REGION_ACCESS_SIZE + count));
    }
    if (end < writes) return undefined;
    const answer = new Uint8Array(WRITE_MULTI_HEADER_SIZE);
    store64(answer, 0, writes);
    return { payload: answer };
  }

  private store(region: number, offset: number, bytes: Uint8Array): void {
    this.checkAccess(region, offset, bytes.length, REGION_INFO_WRITE);
    const done = bytes.length === 0 ? 0 : this.ops.write(region * REGION_STRIDE + offset, bytes);
    if (done !== bytes.length) throw new Errno('EINVAL', `${done} of ${bytes.length} bytes written to region ${region} at ${hex(offset)}`);
  }

  private checkAccess(region: number, offset: number, count: number, right: number): void {
    if (count > this.maxTransferBytes) throw new Errno('EINVAL', `${count} bytes of a region, ${this.maxTransferBytes} fit into a message`);
    const { sizeBytes, flags } = this.regionOf(region);
    if (offset + count > sizeBytes) throw new Errno('EINVAL', `${count} bytes at ${hex(offset)} of region ${region}, which has ${hex(sizeBytes)}`);
    if ((flags & right) === 0) throw new Errno('EINVAL', `region ${region} is not for ${right === REGION_INFO_READ ? 'reading' : 'writing'}`);
  }

  /** A region that this device does not have is empty. EINVAL beyond the last one. */
  private regionOf(index: number): VfioRegionInfo {
    const known = this.known[index];
    if (known !== undefined) return known;
    const { regions } = this.ops.info();
    if (index >= regions) throw new Errno('EINVAL', `region ${index} of ${regions}`);
    return (this.known[index] = lacking(() => this.ops.regionInfo(index), NO_REGION));
  }
}

const NO_REGION: VfioRegionInfo = { flags: 0, sizeBytes: 0 };
const NO_IRQ: VfioIrqInfo = { flags: 0, count: 0 };

/** Clients ask for every index below the number they were told. */
function lacking<T>(ask: () => T, nothing: T): T {
  try {
    return ask();
  } catch (error) {
    if (isErrno(error, 'EINVAL')) return nothing;
    throw error;
  }
}

/** Sparse areas are those of the file; mapping of MSI-X tables is no matter between processes. */
function capabilitiesOf({ type }: VfioRegionInfo, file: RegionFile | undefined): Capability[] {
  const found: Capability[] = [];
  if (file?.sparse !== undefined) {
    const areas = file.sparse.map(({ offset, sizeBytes }) => SPARSE_MMAP_AREA.encode({ offset, size: sizeBytes }));
    found.push(capability(VFIO_REGION_INFO_CAP_SPARSE_MMAP, concatWords(REGION_CAP_SPARSE_MMAP.encode({ nr_areas: areas.length }), ...areas)));
  }
  if (type !== undefined) found.push(capability(VFIO_REGION_INFO_CAP_TYPE, REGION_CAP_TYPE.encode({ type: type.type >>> 0, subtype: type.subtype >>> 0 })));
  return found;
}
