/**
 * Physical memory as a recorded unit sees it. Keeps what a replay's memory would hold, page by page; when the unit
 * reads a word for the first time, or one that differs from that, every changed word of the page is reported as
 * software's. What the unit writes is reported as the hardware's.
 */
import type { PhysicalMemory } from '../../sim/memory.js';

const PAGE = 4096;
const WORDS = PAGE / 4;

export interface MemoryObserver {
  /** Software wrote these bytes some time after the unit's last look. */
  softwareWrote(address: number, bytes: Uint8Array): void;
  /** Hardware wrote the 32-bit words of [address, address + length), aligned to 4. */
  hardwareWrote(address: number, length: number): void;
}

class Shadow {
  /** What a replay's memory holds: zero, then what was reported. */
  readonly words = new Int32Array(WORDS);
  /** False until the unit read anything here. */
  read = false;
}

export class RecordedMemory implements PhysicalMemory {
  private readonly memory: PhysicalMemory;
  private readonly observer: MemoryObserver;
  private readonly shadows = new Map<number, Shadow>();
  private readonly actual = new Uint8Array(PAGE);
  private readonly actualWords = new Int32Array(this.actual.buffer);
  private lastIndex = -1;
  private lastShadow = new Shadow();

  constructor(memory: PhysicalMemory, observer: MemoryObserver) {
    this.memory = memory;
    this.observer = observer;
  }

  get generation(): number {
    return this.memory.generation;
  }

  get lo(): number {
    return this.memory.lo;
  }

  get hi(): number {
    return this.memory.hi;
  }

  has(address: number, length: number): boolean {
    return this.memory.has(address, length);
  }

  load64(address: number): boolean {
    if (!this.memory.load64(address)) return false;
    const shadow = this.shadowOf(address), index = (address % PAGE) >> 2;
    if (!shadow.read || shadow.words[index] !== this.memory.lo || shadow.words[index + 1] !== this.memory.hi) this.compare(address, shadow);
    return true;
  }

  store64(address: number, lo: number, hi: number): boolean {
    return this.noted(this.memory.store64(address, lo, hi), address, 8);
  }

  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    return this.noted(this.memory.compareExchange64(address, expectLo, expectHi, lo, hi), address, 8);
  }

  load(address: number, size: 1 | 2 | 4): number {
    this.look(address, size);
    return this.memory.load(address, size);
  }

  store(address: number, size: 1 | 2 | 4, value: number): boolean {
    return this.noted(this.memory.store(address, size, value), address, size);
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    this.look(address, length);
    return this.memory.read(address, target, targetOffset, length);
  }

  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    return this.noted(this.memory.write(address, source, sourceOffset, length), address, length);
  }

  fill(address: number, value: number, length: number): boolean {
    return this.noted(this.memory.fill(address, value, length), address, length);
  }

  copy(target: number, source: number, length: number): boolean {
    this.look(source, length);
    return this.noted(this.memory.copy(target, source, length), target, length);
  }

  private look(address: number, length: number): void {
    if (!this.memory.has(address, length)) return;
    for (let page = address - (address % PAGE); page < address + length; page += PAGE) this.compare(page, this.shadowOf(page));
  }

  /** Reports every run of words in the page that software changed. */
  private compare(address: number, shadow: Shadow): void {
    const start = address - (address % PAGE);
    shadow.read = true;
    this.memory.read(start, this.actual, 0, PAGE);
    const { words } = shadow;
    for (let i = 0; i < WORDS; i++) {
      if (words[i] === this.actualWords[i]) continue;
      const first = i;
      while (i < WORDS && words[i] !== this.actualWords[i]) {
        words[i] = this.actualWords[i]!;
        i++;
      }
      this.observer.softwareWrote(start + first * 4, this.actual.slice(first * 4, i * 4));
    }
  }

  private noted(done: boolean, address: number, length: number): boolean {
    if (!done) return false;
    const start = address - (address % 4), end = address + length;
    for (let word = start; word < end; word += 4) this.shadowOf(word).words[(word % PAGE) >> 2] = this.memory.load(word, 4) | 0;
    this.observer.hardwareWrote(start, Math.ceil((end - start) / 4) * 4);
    return true;
  }

  private shadowOf(address: number): Shadow {
    const index = Math.floor(address / PAGE);
    if (index === this.lastIndex) return this.lastShadow;
    let shadow = this.shadows.get(index);
    if (shadow === undefined) {
      shadow = new Shadow();
      this.shadows.set(index, shadow);
    }
    this.lastIndex = index;
    this.lastShadow = shadow;
    return shadow;
  }
}
