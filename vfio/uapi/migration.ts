/**
 * Device features of migration, version 2 (include/uapi/linux/vfio.h, v6.12): capabilities, the device's state, the
 * size of what is to be copied, and logging of the device's writes.
 */
import { struct } from '../../sim/layout.js';
import { u32, u64 } from './fields.js';

export const VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0;
export const VFIO_DEVICE_FEATURE_MIGRATION = 1;
export const VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_START = 6;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP = 7;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = 8;
export const VFIO_DEVICE_FEATURE_MIG_DATA_SIZE = 9;

export const FEATURE_MIGRATION = struct('vfio_device_feature_migration', 8, { flags: u64(0) });
export const VFIO_MIGRATION_STOP_COPY = 1 << 0;
export const VFIO_MIGRATION_P2P = 1 << 1;
export const VFIO_MIGRATION_PRE_COPY = 1 << 2;

/** data_fd is signed, -1 for none. */
export const FEATURE_MIG_STATE = struct('vfio_device_feature_mig_state', 8, { device_state: u32(0), data_fd: u32(4) });
/** enum vfio_device_mig_state */
export const VFIO_DEVICE_STATE_ERROR = 0;
export const VFIO_DEVICE_STATE_STOP = 1;
export const VFIO_DEVICE_STATE_RUNNING = 2;
export const VFIO_DEVICE_STATE_STOP_COPY = 3;
export const VFIO_DEVICE_STATE_RESUMING = 4;
export const VFIO_DEVICE_STATE_RUNNING_P2P = 5;
export const VFIO_DEVICE_STATE_PRE_COPY = 6;
export const VFIO_DEVICE_STATE_PRE_COPY_P2P = 7;
export const VFIO_DEVICE_STATE_NR = 8;

export const FEATURE_MIG_DATA_SIZE = struct('vfio_device_feature_mig_data_size', 8, { stop_copy_length: u64(0) });

/** For VFIO_MIG_GET_PRECOPY_INFO. */
export const PRECOPY_INFO = struct('vfio_precopy_info', 24, { argsz: u32(0), flags: u32(4), initial_bytes: u64(8), dirty_bytes: u64(16) });

/** `ranges` is the address of `num_ranges` ranges in the caller's memory. */
export const FEATURE_DMA_LOGGING_CONTROL = struct('vfio_device_feature_dma_logging_control', 24, {
  page_size: u64(0), num_ranges: u32(8), reserved: u32(12), ranges: u64(16),
});
export const FEATURE_DMA_LOGGING_RANGE = struct('vfio_device_feature_dma_logging_range', 16, { iova: u64(0), length: u64(8) });
/** `bitmap` is the address of 64-bit words in the caller's memory, a bit for each `page_size` bytes; bits are only set. */
export const FEATURE_DMA_LOGGING_REPORT = struct('vfio_device_feature_dma_logging_report', 32, {
  iova: u64(0), length: u64(8), page_size: u64(16), bitmap: u64(24),
});
