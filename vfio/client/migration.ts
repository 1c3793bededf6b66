/** Migration of a device by its user: states of version 2, the size of what is to be copied, logging of its writes. */
import type { Steps } from '../../sim/task.js';
import { bytesOf, concatWords, wordsOfBytes } from '../uapi/fields.js';
import {
  FEATURE_DMA_LOGGING_CONTROL, FEATURE_DMA_LOGGING_RANGE, FEATURE_DMA_LOGGING_REPORT, FEATURE_MIG_DATA_SIZE, FEATURE_MIG_STATE, FEATURE_MIGRATION,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_MIGRATION,
} from '../uapi/migration.js';
import type { VfioCalls } from './calls.js';
import { bitmapBytes, type U64 } from './container.js';

/** What a device handle offers for features. */
interface FeatureCalls {
  getFeature(feature: number, data: Uint8Array): Steps<Uint8Array>;
  setFeature(feature: number, data?: Uint8Array): Steps<Uint8Array>;
}

export interface IovaRange {
  readonly iova: U64;
  readonly sizeBytes: U64;
}

export class MigrationCalls {
  private readonly calls: VfioCalls;
  private readonly device: FeatureCalls;

  constructor(calls: VfioCalls, device: FeatureCalls) {
    this.calls = calls;
    this.device = device;
  }

  /** VFIO_MIGRATION_* flags. ENOTTY: the device does not migrate. */
  *flags(): Steps<number> {
    const words = wordsOfBytes(yield* this.device.getFeature(VFIO_DEVICE_FEATURE_MIGRATION, new Uint8Array(FEATURE_MIGRATION.sizeBytes)));
    return FEATURE_MIGRATION.f.flags.get(words);
  }

  /** VFIO_DEVICE_STATE_* of the device. */
  *state(): Steps<number> {
    const words = wordsOfBytes(yield* this.device.getFeature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, new Uint8Array(FEATURE_MIG_STATE.sizeBytes)));
    return FEATURE_MIG_STATE.f.device_state.get(words);
  }

  /** Moves the device to a state; a descriptor of the data stream when the state has one. */
  *setState(state: number): Steps<number | undefined> {
    const wanted = FEATURE_MIG_STATE.encode({ device_state: state, data_fd: 0xffff_ffff });
    const words = wordsOfBytes(yield* this.device.setFeature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, bytesOf(wanted)));
    const fd = FEATURE_MIG_STATE.f.data_fd.get(words) | 0;
    return fd < 0 ? undefined : fd;
  }

  /** Estimated bytes of the device's state. */
  *dataSize(): Steps<number> {
    const words = wordsOfBytes(yield* this.device.getFeature(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, new Uint8Array(FEATURE_MIG_DATA_SIZE.sizeBytes)));
    return FEATURE_MIG_DATA_SIZE.f.stop_copy_length.get(words);
  }

  /** The device logs where it writes; the page size that it chose, bytes. */
  *startLogging(ranges: readonly IovaRange[], pageBytes = 4096): Steps<number> {
    const list = concatWords(...ranges.map(({ iova, sizeBytes }) => FEATURE_DMA_LOGGING_RANGE.encode({ iova, length: sizeBytes })));
    return yield* this.calls.withMemory(list.length * 4, (address) => this.startWith(address, list, ranges.length, pageBytes));
  }

  private *startWith(address: number, list: Uint32Array, count: number, pageBytes: number): Steps<number> {
    yield* this.calls.process.mm.write(address, bytesOf(list));
    const control = FEATURE_DMA_LOGGING_CONTROL.encode({ page_size: pageBytes, num_ranges: count, ranges: address });
    const words = wordsOfBytes(yield* this.device.setFeature(VFIO_DEVICE_FEATURE_DMA_LOGGING_START, bytesOf(control)));
    return FEATURE_DMA_LOGGING_CONTROL.f.page_size.get(words);
  }

  *stopLogging(): Steps {
    yield* this.device.setFeature(VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP);
  }

  /** What the device wrote in a range since the last question; a bit for each `pageBytes`. */
  *report(iova: U64, sizeBytes: number, pageBytes = 4096): Steps<Uint8Array> {
    return yield* this.calls.withMemory(bitmapBytes(sizeBytes, pageBytes), (bitmap) => this.reportInto(bitmap, iova, sizeBytes, pageBytes));
  }

  private *reportInto(bitmap: number, iova: U64, sizeBytes: number, pageBytes: number): Steps<Uint8Array> {
    const report = FEATURE_DMA_LOGGING_REPORT.encode({ iova, length: sizeBytes, page_size: pageBytes, bitmap });
    yield* this.device.getFeature(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, bytesOf(report));
    const bytes = new Uint8Array(bitmapBytes(sizeBytes, pageBytes));
    yield* this.calls.process.mm.read(bitmap, bytes);
    return bytes;
  }
}
