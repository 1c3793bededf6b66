/** Log pages and what they count (NVMe 1.4 section 5.14.1). Counters live as long as the power, through every reset. */
import { store32, storeSized } from '../../../sim/little-endian.js';
import { ADMIN, IO, storeAddress } from '../spec/commands.js';
import {
  DATA_UNIT_BYTES, EFFECT_CONTENT, EFFECT_SUPPORTED, EFFECTS_SIZE, ERROR_ENTRY, ERROR_ENTRY_SIZE, FIRMWARE_SIZE, LOG, SMART, SMART_SIZE, WARNING_TEMPERATURE,
} from '../spec/logs.js';
import { TEMPERATURE } from './features.js';
import { ERROR_ENTRIES, FIRMWARE } from './identify.js';

const HOUR_NS = 3600e9;

export interface ErrorEntry {
  readonly sqid: number;
  readonly cid: number;
  /** Without phase. */
  readonly status: number;
  readonly lba: number;
  readonly nsid: number;
}

export class Logs {
  readBytes = 0;
  writtenBytes = 0;
  hostReads = 0;
  hostWrites = 0;
  mediaErrors = 0;
  /** Errors ever; the log keeps the last ones. */
  errorCount = 0;
  private readonly errors: { readonly count: number; readonly entry: ErrorEntry }[] = [];

  noteError(entry: ErrorEntry): void {
    this.errors.unshift({ count: ++this.errorCount, entry });
    if (this.errors.length > ERROR_ENTRIES) this.errors.pop();
  }

  /** The page as a whole; undefined for one that does not exist. */
  page(id: number, nowNs: number, temperatureWarning: boolean): Uint8Array | undefined {
    switch (id) {
      case LOG.ERROR: return this.errorLog();
      case LOG.SMART: return this.smartLog(nowNs, temperatureWarning);
      case LOG.FIRMWARE: return firmwareLog();
      case LOG.EFFECTS: return effectsLog();
      default: return undefined;
    }
  }

  private errorLog(): Uint8Array {
    const data = new Uint8Array(ERROR_ENTRIES * ERROR_ENTRY_SIZE);
    this.errors.forEach(({ count, entry }, i) => {
      const at = i * ERROR_ENTRY_SIZE;
      storeAddress(data, at + ERROR_ENTRY.COUNT, count);
      storeSized(data, at + ERROR_ENTRY.SQID, 2, entry.sqid);
      storeSized(data, at + ERROR_ENTRY.CID, 2, entry.cid);
      storeSized(data, at + ERROR_ENTRY.STATUS, 2, entry.status << 1);
      // the error is nobody's parameter
      storeSized(data, at + ERROR_ENTRY.LOCATION, 2, 0xffff);
      storeAddress(data, at + ERROR_ENTRY.LBA, entry.lba);
      store32(data, at + ERROR_ENTRY.NSID, entry.nsid);
    });
    return data;
  }

  private smartLog(nowNs: number, temperatureWarning: boolean): Uint8Array {
    const data = new Uint8Array(SMART_SIZE);
    data[SMART.CRITICAL_WARNING] = temperatureWarning ? WARNING_TEMPERATURE : 0;
    storeSized(data, SMART.TEMPERATURE, 2, TEMPERATURE);
    data[SMART.AVAILABLE_SPARE] = 100;
    data[SMART.SPARE_THRESHOLD] = 10;
    storeAddress(data, SMART.DATA_UNITS_READ, Math.ceil(this.readBytes / DATA_UNIT_BYTES));
    storeAddress(data, SMART.DATA_UNITS_WRITTEN, Math.ceil(this.writtenBytes / DATA_UNIT_BYTES));
    storeAddress(data, SMART.HOST_READS, this.hostReads);
    storeAddress(data, SMART.HOST_WRITES, this.hostWrites);
    storeAddress(data, SMART.POWER_CYCLES, 1);
    storeAddress(data, SMART.POWER_ON_HOURS, Math.max(0, Math.floor(nowNs / HOUR_NS)));
    storeAddress(data, SMART.MEDIA_ERRORS, this.mediaErrors);
    storeAddress(data, SMART.ERROR_ENTRIES, this.errorCount);
    return data;
  }
}

/** Slot 1 is active. */
function firmwareLog(): Uint8Array {
  const data = new Uint8Array(FIRMWARE_SIZE);
  data[0] = 1;
  for (let i = 0; i < 8; i++) data[8 + i] = FIRMWARE.charCodeAt(i) || 0x20;
  return data;
}

/** Admin commands in the first 256 words, I/O commands in the next. */
function effectsLog(): Uint8Array {
  const data = new Uint8Array(EFFECTS_SIZE);
  for (const opcode of Object.values(ADMIN)) store32(data, opcode * 4, EFFECT_SUPPORTED);
  for (const opcode of Object.values(IO)) {
    const changes = opcode === IO.WRITE || opcode === IO.WRITE_ZEROES || opcode === IO.DSM;
    store32(data, 1024 + opcode * 4, EFFECT_SUPPORTED | (changes ? EFFECT_CONTENT : 0));
  }
  return data;
}
