/**
 * The library of a process that uses an accelerator (what libaccel-config users write around a portal): completion
 * records in the process's memory, submission with retry, polling, and the answer to a partial completion on a queue
 * that does not block: touch the page with the processor, submit the rest.
 */
import { Errno } from '../../../sim/errno.js';
import type { Clock } from '../../../sim/clock.js';
import { sleep, type Steps } from '../../../sim/task.js';
import type { Process } from '../../../host/process.js';
import type { Timing } from '../../../host/timing.js';
import { COMPLETION_SIZE, FLAG, OPCODE, RESULT_BACKWARD, STATUS } from '../spec/descriptor.js';
import { decodeCompletion, encodeDescriptor, type CompletionRecord, type DescriptorFields } from '../spec/encode.js';
import type { IdxdFile } from './idxd-file.js';

/** Longest sleep between two looks at a completion record, in units of `timing.pollNs`. */
const POLL_BACKOFF = 32;

export interface DsaClientOptions {
  readonly process: Process;
  readonly file: Pick<IdxdFile, 'portal'>;
  readonly clock: Clock;
  readonly timing: Timing;
  /** Memory of the process for completion records: 32-byte aligned. */
  readonly memalign: (alignment: number, size: number) => Steps<number>;
  readonly free: (address: number) => Steps;
  /** Submissions carry the block-on-fault flag. */
  readonly blockOnFault?: boolean;
  /** How often a partly completed operation is resumed; default 2^20. */
  readonly maxResumptions?: number;
  /** Default 10 s. */
  readonly timeoutNs?: number;
}

export interface DsaResult extends CompletionRecord {
  /** Bytes completed over all submissions. */
  readonly totalBytes: number;
  /** How often the processor touched a page and the rest was submitted again. */
  readonly resumptions: number;
  /** Enqueues that the queue refused. */
  readonly retries: number;
}

export class DsaClient {
  private readonly options: DsaClientOptions;
  private readonly freeRecords: number[] = [];
  private readonly records: number[] = [];
  private readonly bytes = new Uint8Array(COMPLETION_SIZE);

  constructor(options: DsaClientOptions) {
    this.options = options;
  }

  *memcpy(destination: number, source: number, size: number): Steps<DsaResult> {
    return yield* this.run({ opcode: OPCODE.MEMMOVE, source, destination, size });
  }

  /** Fills with an 8-byte pattern, low half first. */
  *fill(destination: number, pattern: readonly [lo: number, hi: number], size: number): Steps<DsaResult> {
    return yield* this.run({ opcode: OPCODE.MEMFILL, destination, pattern, size });
  }

  /** `result` 0 equal, 1 different; then `totalBytes` is where. */
  *compare(first: number, second: number, size: number): Steps<DsaResult> {
    return yield* this.run({ opcode: OPCODE.COMPARE, source: first, destination: second, size });
  }

  /** CRC-32C in `specific`; `seed` is the CRC of what came before. */
  *crc(source: number, size: number, seed = 0): Steps<DsaResult> {
    return yield* this.run({ opcode: OPCODE.CRCGEN, source, size, specific: [seed] });
  }

  /** One operation to its end, resumed after partial completions. ETIMEDOUT when no completion comes. */
  *run(fields: DescriptorFields): Steps<DsaResult> {
    const record = yield* this.takeRecord();
    const limit = this.options.maxResumptions ?? 2 ** 20;
    let current: DescriptorFields = this.options.blockOnFault === true ? { ...fields, flags: (fields.flags ?? 0) | FLAG.BOF } : fields;
    let totalBytes = 0, resumptions = 0, retries = 0;
    try {
      for (;;) {
        retries += yield* this.submit(current, record);
        const completion = yield* this.wait(record);
        totalBytes += completion.bytesCompleted;
        if (completion.status !== STATUS.PAGE_FAULT_NOBOF || resumptions >= limit) {
          return { ...completion, totalBytes, resumptions, retries };
        }
        yield* this.touch(completion.faultAddress, completion.faultWrite);
        current = remainder(current, completion);
        resumptions++;
      }
    } finally {
      this.freeRecords.push(record);
    }
  }

  /** Clears the record and submits, again and again while the queue is full; returns how often it was. */
  *submit(fields: DescriptorFields, record: number): Steps<number> {
    const { process, file, clock, timing } = this.options;
    yield* process.mm.fill(record, 0, COMPLETION_SIZE);
    const descriptor = encodeDescriptor({ ...fields, completion: record });
    let retries = 0;
    while (file.portal.submit(descriptor) === 'retry') {
      retries++;
      yield* sleep(clock, timing.options.mmioNs + timing.options.pollNs * Math.min(retries, POLL_BACKOFF));
    }
    yield* sleep(clock, timing.options.mmioNs);
    return retries;
  }

  /** Polls a completion record. ETIMEDOUT. */
  *wait(record: number): Steps<CompletionRecord> {
    const { process, clock, timing } = this.options;
    const deadline = clock.now + (this.options.timeoutNs ?? 10_000_000_000);
    for (let step = 1; ; step = Math.min(step * 2, POLL_BACKOFF)) {
      yield* process.mm.read(record, this.bytes, 0, COMPLETION_SIZE);
      if (this.bytes[0] !== 0) return decodeCompletion(this.bytes);
      if (clock.now >= deadline) throw new Errno('ETIMEDOUT', `${process.name}: no completion record at 0x${record.toString(16)}`);
      yield* sleep(clock, timing.options.pollNs * step);
    }
  }

  /** Makes the processor fault on the address, as a load or as a store of what is there. */
  private *touch(address: number, write: boolean): Steps {
    const { mm } = this.options.process;
    const byte = new Uint8Array(1);
    yield* mm.read(address, byte);
    if (write) yield* mm.write(address, byte);
  }

  private *takeRecord(): Steps<number> {
    const free = this.freeRecords.pop();
    if (free !== undefined) return free;
    const record = yield* this.options.memalign(COMPLETION_SIZE, COMPLETION_SIZE);
    this.records.push(record);
    return record;
  }

  /** Gives the completion records back. */
  *close(): Steps {
    for (const record of this.records) yield* this.options.free(record);
    this.records.length = 0;
    this.freeRecords.length = 0;
  }
}

/** What is left of an operation after a partial completion. */
export function remainder(fields: DescriptorFields, completion: CompletionRecord): DescriptorFields {
  const done = completion.bytesCompleted;
  const size = (fields.size ?? 0) - done;
  // a backward copy completes from the end
  if (fields.opcode === OPCODE.MEMMOVE && completion.result === RESULT_BACKWARD) return { ...fields, size };
  const moved = {
    ...fields, size,
    ...(fields.source === undefined ? {} : { source: fields.source + done }),
    ...(fields.destination === undefined ? {} : { destination: fields.destination + done }),
    ...(fields.pattern === undefined ? {} : { pattern: rotate(fields.pattern, done % 8) }),
  };
  switch (fields.opcode) {
    case OPCODE.CRCGEN:
    case OPCODE.COPY_CRC:
      // the seed stands in the record; a seed in memory has been read unless nothing happened yet
      if (done === 0) return fields;
      return { ...moved, flags: (fields.flags ?? 0) & ~FLAG.CRC_READ_SEED, specific: [completion.specific] };
    case OPCODE.DUALCAST: {
      const [lo = 0, hi = 0] = fields.specific ?? [];
      const second = lo + hi * 0x1_0000_0000 + done;
      return { ...moved, specific: [second % 0x1_0000_0000, Math.floor(second / 0x1_0000_0000)] };
    }
  }
  return moved;
}

/** The pattern as it reads from byte `by` on. */
export function rotate([lo, hi]: readonly [lo: number, hi: number], by: number): [number, number] {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  for (const at of [0, 8]) {
    view.setUint32(at, lo, true);
    view.setUint32(at + 4, hi, true);
  }
  return [view.getUint32(by, true), view.getUint32(by + 4, true)];
}
