/**
 * How a number is measured: warm up, repeat, take the median. Time is the processor time of this process, all of its
 * threads (so collections and compilation on other threads count): a rate is one of a core, and other work on the
 * machine hardly moves it.
 */

/** A finished measurement. `value` is the median of `samples`. */
export interface Measured {
  readonly value: number;
  readonly samples: readonly number[];
}

export interface Repetition {
  /** Units of work that one call of `run` does. */
  readonly units: number;
  readonly run: () => void;
  /** Untimed, before every call of `run`. */
  readonly prepare?: () => void;
}

export interface MeasureOptions {
  /** Time that one repetition takes at least; `run` is called as often as that needs. Default 120 ms. */
  readonly repetitionMs?: number;
  /** Default 5. */
  readonly repetitions?: number;
  /** Default 200 ms. */
  readonly warmUpMs?: number;
}

export function median(samples: readonly number[]): number {
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Milliseconds of processor time that `work` takes. */
export function timeMs(work: () => void): number {
  const start = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1000;
}

/** Heap in use after a collection. Simulated memory and other array buffers are outside. */
export function heapBytes(): number {
  if (globalThis.gc === undefined) throw new Error('run with --expose-gc');
  globalThis.gc();
  globalThis.gc();
  return process.memoryUsage().heapUsed;
}

/** Calls `run` until `limitMs` of its own time have passed; milliseconds and units. */
function runFor({ units, run, prepare }: Repetition, limitMs: number): { ms: number; units: number } {
  let ms = 0, done = 0;
  while (ms < limitMs) {
    prepare?.();
    ms += timeMs(run);
    done += units;
  }
  return { ms, units: done };
}

/** Units per second: the median over repetitions, after a warm-up. */
export function throughput(work: Repetition, options: MeasureOptions = {}): Measured {
  const { repetitionMs = 120, repetitions = 5, warmUpMs = 200 } = options;
  runFor(work, warmUpMs);
  const samples: number[] = [];
  for (let i = 0; i < repetitions; i++) {
    const { ms, units } = runFor(work, repetitionMs);
    samples.push(units / (ms / 1000));
  }
  return { value: median(samples), samples };
}
