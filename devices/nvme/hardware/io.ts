/** I/O commands of the NVM command set (NVMe 1.4 section 6): what each checks, moves and does to the medium. */
import { load32 } from '../../../sim/little-endian.js';
import { sleep, type Steps } from '../../../sim/task.js';
import { DNR, DSM_DEALLOCATE, DSM_RANGE_SIZE, DW10, DW11, DW12, FUSE_MASK, IO, NSID_ALL, PSDT_MASK, RW_FUA, STATUS } from '../spec/commands.js';
import type { NvmeController } from './controller.js';
import { zeroRange } from './medium.js';
import type { Command } from './queues.js';
import { FORGOTTEN } from './transfer.js';

/** The one namespace. */
export const NSID = 1;
const MDTS_UNIT = 4096;
/** Made zeros at once. */
const ZERO_BYTES = 2 ** 24;
/** What a write protected namespace refuses (section 8.19). Flush succeeds: there is nothing to do. */
const WRITES: readonly number[] = [IO.WRITE, IO.WRITE_ZEROES, IO.DSM];

interface BlockRange {
  readonly offset: number;
  readonly sizeBytes: number;
}

export class IoUnit {
  private readonly controller: NvmeController;

  constructor(controller: NvmeController) {
    this.controller = controller;
  }

  /** Answers a status, or FORGOTTEN. */
  *execute(command: Command, life: number): Steps<number> {
    // neither fused commands nor SGLs are advertised
    if ((command.words[0]! & (FUSE_MASK | PSDT_MASK)) !== 0) return STATUS.INVALID_FIELD | DNR;
    if (!Object.values<number>(IO).includes(command.opcode)) return STATUS.INVALID_OPCODE | DNR;
    if (command.nsid !== NSID && (command.opcode !== IO.FLUSH || command.nsid !== NSID_ALL)) return STATUS.INVALID_NAMESPACE | DNR;
    if ((this.controller.options.medium.readOnly ?? false) && WRITES.includes(command.opcode)) return STATUS.WRITE_PROTECTED | DNR;
    switch (command.opcode) {
      case IO.FLUSH: return yield* this.flush(command, life);
      case IO.READ: return yield* this.read(command, life);
      case IO.WRITE: return yield* this.write(command, life);
      case IO.COMPARE: return yield* this.compare(command, life);
      case IO.WRITE_ZEROES: return yield* this.writeZeroes(command, life);
      default: return yield* this.manage(command, life);
    }
  }

  private *flush(command: Command, life: number): Steps<number> {
    const { config, options } = this.controller;
    if (!(yield* this.controller.atMedium(command, config.flushNs, 0, life))) return endOf(command);
    return options.medium.flush() ? STATUS.SUCCESS : this.mediaError(STATUS.WRITE_FAULT);
  }

  private *read(command: Command, life: number): Steps<number> {
    const { controller } = this, { config, options, logs } = controller;
    const range = this.rangeOf(command, true);
    if (typeof range === 'number') return range;
    const transfer = controller.transfer(command, life);
    const located = yield* transfer.locate(range.sizeBytes);
    if (located !== STATUS.SUCCESS) return located;
    if (!(yield* controller.pay(transfer, life))) return FORGOTTEN;
    if (!(yield* controller.atMedium(command, config.readNs, range.sizeBytes, life))) return endOf(command);
    const data = new Uint8Array(range.sizeBytes);
    if (!options.medium.read(range.offset, data)) return this.mediaError(STATUS.READ_ERROR);
    if (controller.completionBeforeData) {
      controller.complete(command, STATUS.SUCCESS);
      if (yield* controller.atMedium(command, config.readNs, 0, life)) yield* transfer.store(data);
      return FORGOTTEN;
    }
    const stored = yield* transfer.store(data);
    if (stored !== STATUS.SUCCESS) return stored;
    if (!(yield* controller.pay(transfer, life))) return FORGOTTEN;
    command.bytes = range.sizeBytes;
    logs.hostReads++;
    logs.readBytes += range.sizeBytes;
    return STATUS.SUCCESS;
  }

  private *write(command: Command, life: number): Steps<number> {
    const { controller } = this, { config, options, logs, features } = controller;
    const range = this.rangeOf(command, true);
    if (typeof range === 'number') return range;
    const data = new Uint8Array(range.sizeBytes);
    const fetched = yield* this.fetch(command, data, life);
    if (fetched !== STATUS.SUCCESS) return fetched;
    const safe = !features.writeCache || (command.words[DW12]! & RW_FUA) !== 0;
    if (!(yield* controller.atMedium(command, config.writeNs + (safe ? config.flushNs : 0), range.sizeBytes, life))) return endOf(command);
    if (!options.medium.write(range.offset, data) || (safe && !options.medium.flush())) return this.mediaError(STATUS.WRITE_FAULT);
    command.bytes = range.sizeBytes;
    logs.hostWrites++;
    logs.writtenBytes += range.sizeBytes;
    return STATUS.SUCCESS;
  }

  private *compare(command: Command, life: number): Steps<number> {
    const { controller } = this, { config, options, logs } = controller;
    const range = this.rangeOf(command, true);
    if (typeof range === 'number') return range;
    const data = new Uint8Array(range.sizeBytes), here = new Uint8Array(range.sizeBytes);
    const fetched = yield* this.fetch(command, data, life);
    if (fetched !== STATUS.SUCCESS) return fetched;
    if (!(yield* controller.atMedium(command, config.readNs, range.sizeBytes, life))) return endOf(command);
    if (!options.medium.read(range.offset, here)) return this.mediaError(STATUS.READ_ERROR);
    logs.hostReads++;
    return data.every((byte, i) => byte === here[i]) ? STATUS.SUCCESS : STATUS.COMPARE_FAILED | DNR;
  }

  private *writeZeroes(command: Command, life: number): Steps<number> {
    const { config, logs } = this.controller;
    const range = this.rangeOf(command, false);
    if (typeof range === 'number') return range;
    if (!(yield* this.controller.atMedium(command, config.writeNs, 0, life))) return endOf(command);
    logs.hostWrites++;
    return yield* this.zero(range, life);
  }

  /** Dataset management: deallocated blocks read as zeros from now on; the other attributes are hints. */
  private *manage(command: Command, life: number): Steps<number> {
    const { config } = this.controller;
    const data = new Uint8Array(((command.words[DW10]! & 0xff) + 1) * DSM_RANGE_SIZE);
    const fetched = yield* this.fetch(command, data, life);
    if (fetched !== STATUS.SUCCESS) return fetched;
    if ((command.words[DW11]! & DSM_DEALLOCATE) === 0) return STATUS.SUCCESS;
    const ranges: BlockRange[] = [];
    for (let at = 0; at < data.length; at += DSM_RANGE_SIZE) {
      const range = this.blocksAt(load32(data, at + 8) + load32(data, at + 12) * 0x1_0000_0000, load32(data, at + 4));
      if (range === undefined) return STATUS.LBA_RANGE | DNR;
      ranges.push(range);
    }
    if (!(yield* this.controller.atMedium(command, config.writeNs, 0, life))) return endOf(command);
    for (const range of ranges) {
      const status = yield* this.zero(range, life);
      if (status !== STATUS.SUCCESS) return status;
    }
    return STATUS.SUCCESS;
  }

  /** In pieces: a disk may be large, and whatever else there is goes on between them. */
  private *zero({ offset, sizeBytes }: BlockRange, life: number): Steps<number> {
    const { controller } = this, { medium, clock } = controller.options;
    for (let done = 0; done < sizeBytes; done += ZERO_BYTES) {
      if (done > 0) yield* sleep(clock, 0);
      if (life !== controller.life) return FORGOTTEN;
      if (!zeroRange(medium, offset + done, Math.min(ZERO_BYTES, sizeBytes - done))) return this.mediaError(STATUS.WRITE_FAULT);
    }
    return STATUS.SUCCESS;
  }

  /** Memory to `data`, with the time it takes. */
  private *fetch(command: Command, data: Uint8Array, life: number): Steps<number> {
    const transfer = this.controller.transfer(command, life);
    let status = yield* transfer.locate(data.length);
    if (status === STATUS.SUCCESS) status = yield* transfer.fetch(data);
    if (status !== STATUS.SUCCESS) return status;
    return (yield* this.controller.pay(transfer, life)) ? STATUS.SUCCESS : FORGOTTEN;
  }

  /** Words 10 to 12; a status when they cannot be. @param moves data: MDTS holds */
  private rangeOf({ words }: Command, moves: boolean): BlockRange | number {
    const { mdts } = this.controller.config;
    const range = this.blocksAt(words[DW11]! * 0x1_0000_0000 + words[DW10]!, (words[DW12]! & 0xffff) + 1);
    const sizeBytes = ((words[DW12]! & 0xffff) + 1) * 2 ** this.controller.config.blockShift;
    if (moves && mdts > 0 && sizeBytes > MDTS_UNIT * 2 ** mdts) return STATUS.INVALID_FIELD | DNR;
    return range ?? (STATUS.LBA_RANGE | DNR);
  }

  private blocksAt(lba: number, blocks: number): BlockRange | undefined {
    const { config, options } = this.controller;
    const all = Math.floor(options.medium.sizeBytes / 2 ** config.blockShift);
    return lba + blocks > all ? undefined : { offset: lba * 2 ** config.blockShift, sizeBytes: blocks * 2 ** config.blockShift };
  }

  private mediaError(status: number): number {
    this.controller.logs.mediaErrors++;
    return status;
  }
}

/** A command that did not come through the medium: taken back with a status of its own, or forgotten. */
function endOf(command: Command): number {
  return command.cancelled === 0 ? FORGOTTEN : command.cancelled;
}
