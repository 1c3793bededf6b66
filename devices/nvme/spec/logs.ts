/** Log pages and features (NVMe 1.4 sections 5.14.1, 5.21.1; numbers and offsets agree with SPDK's nvme_spec.h). */
export const LOG = { ERROR: 0x01, SMART: 0x02, FIRMWARE: 0x03, EFFECTS: 0x05 } as const;

export const ERROR_ENTRY_SIZE = 64;
/** Offsets in an entry of the error log. */
export const ERROR_ENTRY = { COUNT: 0, SQID: 8, CID: 10, STATUS: 12, LOCATION: 14, LBA: 16, NSID: 24 } as const;

export const SMART_SIZE = 512;
/** Offsets in the SMART log; counters have 16 bytes. */
export const SMART = {
  CRITICAL_WARNING: 0, TEMPERATURE: 1, AVAILABLE_SPARE: 3, SPARE_THRESHOLD: 4, PERCENTAGE_USED: 5, DATA_UNITS_READ: 32, DATA_UNITS_WRITTEN: 48, HOST_READS: 64,
  HOST_WRITES: 80, BUSY_MINUTES: 96, POWER_CYCLES: 112, POWER_ON_HOURS: 128, UNSAFE_SHUTDOWNS: 144, MEDIA_ERRORS: 160, ERROR_ENTRIES: 176,
} as const;
/** A data unit: thousand times 512 bytes. */
export const DATA_UNIT_BYTES = 512_000;
/** Critical warning: a temperature is above or below its threshold. */
export const WARNING_TEMPERATURE = 2;

export const FIRMWARE_SIZE = 512;
export const EFFECTS_SIZE = 4096;
/** Words of the effects log: command supported, logical block content change. */
export const EFFECT_SUPPORTED = 1;
export const EFFECT_CONTENT = 2;

export const FEATURE = {
  ARBITRATION: 0x01, POWER: 0x02, TEMPERATURE: 0x04, ERROR_RECOVERY: 0x05, WRITE_CACHE: 0x06, QUEUES: 0x07, COALESCING: 0x08, VECTOR: 0x09, WRITE_ATOMICITY: 0x0a, EVENTS: 0x0b,
} as const;

/** Select field of Get Features (word 10, bits 10:8). */
export const SELECT = { CURRENT: 0, DEFAULT: 1, SAVED: 2, CAPABILITIES: 3 } as const;
/** What SELECT.CAPABILITIES answers. */
export const FEATURE_NAMESPACE_SPECIFIC = 2;
export const FEATURE_CHANGEABLE = 4;
