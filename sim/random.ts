/**
 * Seeded random numbers that split by name: every consumer draws from a stream of its own, so adding a draw in
 * one place does not move the draws of another.
 */
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import type { RandomGenerator } from 'pure-rand/types/RandomGenerator';

export class Random {
  readonly seed: number;
  private readonly generator: RandomGenerator;

  constructor(seed: number) {
    this.seed = seed | 0;
    this.generator = xoroshiro128plus(this.seed);
  }

  /** An independent stream, a function of this stream's seed and `label` only. */
  split(label: string): Random {
    let hash = (this.seed ^ 0x811c9dc5) | 0;
    for (let i = 0; i < label.length; i++) hash = Math.imul(hash ^ label.charCodeAt(i), 0x01000193);
    hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b);
    return new Random(hash ^ (hash >>> 13));
  }

  /** Uniform over 0 .. 2^32 - 1. */
  u32(): number {
    return this.generator.next() >>> 0;
  }

  /** Uniform over 0 .. bound - 1, for bound up to 2^32. */
  below(bound: number): number {
    return Math.floor((this.u32() / 0x1_0000_0000) * bound);
  }

  /** Uniform over first .. last, both included. */
  between(first: number, last: number): number {
    return first + this.below(last - first + 1);
  }

  chance(probability: number): boolean {
    return this.u32() < probability * 0x1_0000_0000;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [items[i], items[j]] = [items[j]!, items[i]!];
    }
    return items;
  }
}
