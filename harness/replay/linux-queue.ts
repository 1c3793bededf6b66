/**
 * The invalidation queue of a traced kernel: which descriptor stood in which slot. A trace names descriptors when the
 * unit fetched them; they have to stand in memory before the tail that hands them over is written. A descriptor that
 * the recorder refused on purpose (`inject` IQE) stands in its slot first, spoiled, and what software put in its place
 * is written when software clears IQE.
 */
import { hiOf, loOf } from '../../sim/address.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { DESCRIPTOR } from '../../iommu/intel-vtd/spec/descriptors.js';
import type { TraceLine } from './linux-trace.js';

/** A type that no unit has. */
const SPOILED_TYPE = 0xfn;
/** What software sets the status word of a wait to (Linux: QI_IN_USE). */
const STATUS_IN_USE = 1;

interface Slot {
  readonly line: TraceLine;
  /** Descriptors before it since the queue was set up: its place is this number modulo the ring. */
  readonly sequence: number;
  readonly words: readonly bigint[];
}

export class LinuxQueue {
  private readonly memory: PhysicalMemory;
  private base = 0;
  private entryBytes = 16;
  private ringBytes = 4096;
  /** Descriptors from here on have not been handed over. */
  private filled = 0;
  /** Descriptors after the last IQA write, in the order of the trace. */
  private slots: Slot[] = [];
  private repairs: Slot[] = [];
  private lineOfSpoiled = new Set<number>();

  constructor(memory: PhysicalMemory) {
    this.memory = memory;
  }

  /** IQA was written: descriptors of `lines`, which follow, stand from the start of the ring. */
  setAddress(iqa: bigint, lines: readonly TraceLine[]): void {
    this.base = Number(iqa & ~0xfffn);
    this.ringBytes = 4096 * 2 ** Number(iqa & 7n);
    this.entryBytes = (iqa & 0x800n) !== 0n ? 32 : 16;
    this.filled = 0;
    this.slots = [];
    this.repairs = [];
    let sequence = 0;
    const spoiled = new Set<number>();
    for (const line of lines) {
      if (line.op !== 'desc' && line.op !== 'inject') continue;
      const words = line.words('raw');
      if (line.op === 'inject' && line.text('what') === 'IQE') {
        this.slots.push({ line, sequence, words: [words[0]! | SPOILED_TYPE, ...words.slice(1)] });
        spoiled.add(sequence);
        this.lineOfSpoiled.add(line.number);
        continue;
      }
      const slot = { line, sequence, words };
      if (spoiled.has(sequence)) this.repairs.push(slot);
      else this.slots.push(slot);
      sequence++;
    }
  }

  /** True when a descriptor between the old tail and this one belongs to a device that did not answer. */
  fillUpTo(tail: number): { readonly timesOut: boolean } {
    let timesOut = false;
    const entries = this.ringBytes / this.entryBytes;
    for (; this.filled % entries !== tail / this.entryBytes; this.filled++) {
      const slot = this.slots.find(({ sequence }) => sequence === this.filled);
      if (slot === undefined) continue;
      this.store(slot);
      timesOut ||= slot.line.op === 'inject' && slot.line.text('what') === 'ITE';
    }
    return { timesOut };
  }

  /** Software clears IQE: what it wrote over the refused descriptor goes in. */
  repair(): void {
    const slot = this.repairs.shift();
    if (slot !== undefined) this.store(slot);
  }

  /** The words that stood in memory for a `desc` or `inject` line. */
  expectedWords(line: TraceLine): bigint[] {
    const words = line.words('raw');
    return this.lineOfSpoiled.has(line.number) ? [words[0]! | SPOILED_TYPE, ...words.slice(1)] : words;
  }

  private store({ sequence, words }: Slot): void {
    const address = this.base + (sequence * this.entryBytes) % this.ringBytes;
    for (let i = 0; i < this.entryBytes / 8; i++) {
      const word = words[i] ?? 0n;
      this.memory.store64(address + 8 * i, loOf(word), hiOf(word));
    }
    const status = waitStatus(words);
    if (status !== undefined) this.memory.store(status.address, 4, STATUS_IN_USE);
  }
}

/** Where a wait descriptor with status write stores which word; undefined for other descriptors. */
export function waitStatus(words: readonly bigint[]): { readonly address: number; readonly data: number } | undefined {
  const q0 = words[0]!;
  if (Number(q0 & 0xfn) !== DESCRIPTOR.WAIT || (q0 & 0x20n) === 0n) return undefined;
  return { address: Number(words[1]! & ~3n), data: Number(q0 >> 32n) };
}
