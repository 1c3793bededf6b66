/** Submission and completion queues as the controller keeps them, and commands under way (NVMe 1.4 section 4.1). */
import { pageOfWords } from '../../../sim/address.js';
import { WaitQueue, type Scheduler } from '../../../sim/task.js';
import { DW_NSID, DW_OPCODE, SQE_WORDS } from '../spec/commands.js';

/** Where a queue's entries lie: physically contiguous from a page on. */
export interface QueuePlace {
  /** 4 KiB page. */
  readonly page: number;
  /** Entries, 2 or more. */
  readonly size: number;
}

export function placeOf(lo: number, hi: number, size: number): QueuePlace {
  return { page: pageOfWords(lo, hi), size };
}

/** A completion that waits for its place in the queue. */
export interface PendingCompletion {
  readonly command: Command;
  readonly status: number;
}

export class CompletionQueue {
  readonly id: number;
  readonly page: number;
  readonly size: number;
  readonly vector: number;
  readonly interrupts: boolean;
  head = 0;
  tail = 0;
  phase = 1;
  /** Submission queues that complete here. */
  users = 0;
  readonly backlog: PendingCompletion[] = [];
  /** A task writes entries. */
  posting = false;
  readonly room: WaitQueue;

  constructor(id: number, place: QueuePlace, options: { readonly vector: number; readonly interrupts: boolean; readonly scheduler: Scheduler; readonly name: string }) {
    this.id = id;
    this.page = place.page;
    this.size = place.size;
    this.vector = options.vector;
    this.interrupts = options.interrupts;
    this.room = new WaitQueue(options.scheduler, `room in completion queue ${id} of ${options.name}`);
  }

  get full(): boolean {
    return (this.tail + 1) % this.size === this.head;
  }

  /** The entry at the tail was written. */
  advance(): void {
    if (++this.tail < this.size) return;
    this.tail = 0;
    this.phase ^= 1;
  }
}

export class SubmissionQueue {
  readonly id: number;
  readonly page: number;
  readonly size: number;
  readonly completions: CompletionQueue;
  head = 0;
  tail = 0;
  /** An entry is being read. */
  fetching = false;
  /** Commands read and not completed, without those that are parked. */
  inFlight = 0;
  deleting = false;
  /** Commands under way by identifier. */
  readonly commands = new Map<number, Command>();

  constructor(id: number, place: QueuePlace, completions: CompletionQueue) {
    this.id = id;
    this.page = place.page;
    this.size = place.size;
    this.completions = completions;
    completions.users++;
  }
}

export class Command {
  readonly sq: SubmissionQueue;
  readonly words: Uint32Array;
  /** Word 0 of the completion. */
  result = 0;
  bytes = 0;
  /** At the medium: can be taken back. */
  waiting = false;
  /** An asynchronous event request that waits for an event. */
  parked = false;
  /** Status with which it was taken back; 0: it was not. */
  cancelled = 0;
  /** Its completion was written, or it never gets one. */
  ended = false;
  readonly signal: WaitQueue;

  constructor(sq: SubmissionQueue, words: Uint32Array, scheduler: Scheduler) {
    this.sq = sq;
    this.words = words;
    this.signal = new WaitQueue(scheduler, 'the medium');
  }

  get opcode(): number {
    return this.words[DW_OPCODE]! & 0xff;
  }

  get cid(): number {
    return this.words[DW_OPCODE]! >>> 16;
  }

  get nsid(): number {
    return this.words[DW_NSID]!;
  }

  /** Takes back what waits at the medium. */
  cancel(status: number): void {
    this.cancelled = status;
    this.signal.wakeAll();
  }
}

export function newWords(): Uint32Array {
  return new Uint32Array(SQE_WORDS);
}
