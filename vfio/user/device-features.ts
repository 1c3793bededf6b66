/**
 * VFIO_USER_DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE. Features of migration go to the device; its stream,
 * which the kernel hands out as a descriptor, is read and written by messages instead. Logging of DMA writes is the
 * server's own: it sees all of them, whatever the device.
 */
import { hex } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { load32, store32 } from '../../sim/little-endian.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Process } from '../../host/process.js';
import type { VfioDeviceOps, VfioFeatureRequest } from '../device.js';
import { MigrationDataFile } from '../migration/data-file.js';
import { checkFeature } from '../migration/feature-check.js';
import {
  DEVICE_FEATURE, FEATURE_MIG_STATE, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
  VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_MASK, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET,
  VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_RESUMING, VFIO_DEVICE_STATE_STOP_COPY, wordsOfBytes,
} from '../uapi/index.js';
import { clientProcess } from './client-process.js';
import type { DirtyLog } from './dirty-log.js';
import { checkArgsz, checkPayload, LOGGING_CONTROL_SIZE, LOGGING_REPORT_SIZE, MIG_DATA_SIZE } from './protocol/records.js';

const HEADER = DEVICE_FEATURE.sizeBytes;
const KNOWN_FLAGS = VFIO_DEVICE_FEATURE_MASK | VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PROBE;
/** No feature of a device has a longer record. */
const DATA_LIMIT = 256;
/** States in which a stream is open. */
const STREAMING: ReadonlySet<number> = new Set([VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_RESUMING]);

export interface DeviceFeaturesOptions {
  readonly ops: VfioDeviceOps;
  readonly scheduler: Scheduler;
  readonly log: DirtyLog;
  /** Most bytes of a message's data. */
  readonly maxTransferBytes: number;
}

export class DeviceFeatures {
  private readonly options: DeviceFeaturesOptions;
  private process: Process | undefined;
  /** The descriptor of the stream in `process`. */
  private stream: number | undefined;

  constructor(options: DeviceFeaturesOptions) {
    this.options = options;
  }

  /** The reply's payload. EINVAL length, argsz, flags, GET and SET without PROBE; ENOTTY unknown feature; what the feature refuses. */
  *feature(payload: Uint8Array): Steps<Uint8Array> {
    const argsz = checkArgsz(payload, HEADER, 'DEVICE_FEATURE');
    const flags = load32(payload, 4);
    if ((flags & ~KNOWN_FLAGS) !== 0) throw new Errno('EINVAL', `DEVICE_FEATURE: flags ${hex(flags)}`);
    const get = (flags & VFIO_DEVICE_FEATURE_GET) !== 0, set = (flags & VFIO_DEVICE_FEATURE_SET) !== 0, probe = (flags & VFIO_DEVICE_FEATURE_PROBE) !== 0;
    if (get && set && !probe) throw new Errno('EINVAL', 'DEVICE_FEATURE: GET and SET exclude each other');
    if (!get && !set && !probe) throw new Errno('EINVAL', 'DEVICE_FEATURE: neither GET, SET nor PROBE');
    const feature = flags & VFIO_DEVICE_FEATURE_MASK;
    const request = { feature, get, set, probe };
    const answer = (yield* this.logging(request, payload, argsz)) ?? (yield* this.ofDevice(request, payload, argsz));
    // a reply to GET says how long it is; the others repeat the request
    if (get && !probe) store32(answer, 0, answer.length);
    return answer;
  }

  /**
   * What the stream of a device that is being saved gives, in a payload of the size that was asked for; less than that
   * inside says that there is no more now. EINVAL length, argsz, more than a message may hold, no stream to read.
   */
  *readStream(payload: Uint8Array): Steps<Uint8Array> {
    checkArgsz(payload, MIG_DATA_SIZE, 'MIG_DATA_READ');
    const size = load32(payload, 4);
    this.checkSize(size);
    const answer = new Uint8Array(MIG_DATA_SIZE + size);
    let count = 0;
    try {
      count = yield* this.openStream().read(answer.subarray(MIG_DATA_SIZE));
    } catch (error) {
      // the device runs and may have more later
      if (!isErrno(error, 'ENOMSG')) throw error;
    }
    store32(answer, 0, MIG_DATA_SIZE + count);
    store32(answer, 4, count);
    return answer;
  }

  /** EINVAL length, argsz, sizes that disagree, more than a message may hold, no stream to write; ENOMEM more than a state of the device can be. */
  *writeStream(payload: Uint8Array): Steps {
    checkArgsz(payload, MIG_DATA_SIZE, 'MIG_DATA_WRITE');
    const size = load32(payload, 4);
    this.checkSize(size);
    if (payload.length - MIG_DATA_SIZE !== size) throw new Errno('EINVAL', `MIG_DATA_WRITE: ${size} bytes are said, ${payload.length - MIG_DATA_SIZE} came`);
    yield* this.openStream().write(payload.subarray(MIG_DATA_SIZE));
  }

  /** The client is gone; a stream half-way is over. */
  *end(): Steps {
    yield* this.closeStream();
    yield* this.process?.exit() ?? nothing();
    this.process = undefined;
  }

  private checkSize(size: number): void {
    const { maxTransferBytes } = this.options;
    if (size > maxTransferBytes) throw new Errno('EINVAL', `${size} bytes of migration data, ${maxTransferBytes} fit into a message`);
  }

  private openStream(): MigrationDataFile {
    const file = this.stream === undefined ? undefined : this.process!.file(this.stream);
    if (!(file instanceof MigrationDataFile)) throw new Errno('EINVAL', `${this.options.ops.name} is in no state with a stream`);
    return file;
  }

  /** Undefined: the device's own feature. */
  // oxlint-disable-next-line require-yield -- like ofDevice
  private *logging({ feature, get, set, probe }: Omit<VfioFeatureRequest, 'data' | 'caller'>, payload: Uint8Array, argsz: number): Steps<Uint8Array | undefined> {
    const { log } = this.options;
    const data = payload.slice(HEADER);
    const request = { feature, get, set, probe, data } as VfioFeatureRequest;
    switch (feature) {
      case VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        if (checkFeature(request, 'set', LOGGING_CONTROL_SIZE)) log.start(data);
        return withHeader(payload, data);
      case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
        if (checkFeature(request, 'set', 0)) log.stop();
        return payload.slice();
      case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        if (!checkFeature(request, 'get', LOGGING_REPORT_SIZE)) return payload.slice();
        return withHeader(payload, log.report(data, Math.min(argsz - HEADER, this.options.maxTransferBytes)));
      default:
        return undefined;
    }
  }

  private *ofDevice(asked: Omit<VfioFeatureRequest, 'data' | 'caller'>, payload: Uint8Array, argsz: number): Steps<Uint8Array> {
    const { ops, scheduler } = this.options;
    if (ops.feature === undefined) throw new Errno('ENOTTY', `${ops.name} has no feature ${asked.feature}`);
    this.process ??= clientProcess(`client of ${ops.name}`, scheduler);
    const said = payload.subarray(HEADER);
    const data = new Uint8Array(asked.get ? Math.min(argsz - HEADER, DATA_LIMIT) : said.length);
    data.set(said.subarray(0, data.length));
    const length = yield* ops.feature({ ...asked, data, caller: this.process });
    if (asked.probe) return payload.slice();
    if (asked.feature === VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE) return yield* this.stateChanged(asked.set, payload, data);
    return asked.set ? payload.slice() : withHeader(payload, data.subarray(0, length));
  }

  /** The client never sees `data_fd`: its descriptor stays here as long as the stream is open. */
  private *stateChanged(set: boolean, payload: Uint8Array, data: Uint8Array): Steps<Uint8Array> {
    if (!set) return withHeader(payload, data.subarray(0, FEATURE_MIG_STATE.sizeBytes));
    const record = wordsOfBytes(data);
    const state = FEATURE_MIG_STATE.f.device_state.get(record), fd = FEATURE_MIG_STATE.f.data_fd.get(record) | 0;
    if (fd >= 0 || !STREAMING.has(state)) yield* this.closeStream();
    if (fd >= 0) this.stream = fd;
    return payload.slice();
  }

  private *closeStream(): Steps {
    if (this.stream === undefined) return;
    const fd = this.stream;
    this.stream = undefined;
    yield* this.process!.close(fd);
  }
}

function withHeader(payload: Uint8Array, data: Uint8Array): Uint8Array {
  checkPayload(payload, HEADER, 'DEVICE_FEATURE');
  const answer = new Uint8Array(HEADER + data.length);
  answer.set(payload.subarray(0, HEADER));
  answer.set(data, HEADER);
  return answer;
}

function* nothing(): Steps {}
