/** Events per second of the clock: short events that schedule their successors, with many pending or few. */
import { VirtualClock } from '../../sim/clock.js';
import { Random } from '../../sim/random.js';
import { throughput } from './measure.js';
import type { Row } from './report.js';

const EVENTS = 1 << 18;

/** A clock on which `pending` chains of events run, each scheduling its next one at a random distance. */
function chains(pending: number, cancelling: boolean): () => void {
  const clock = new VirtualClock();
  const random = new Random(pending);
  const delays = Int32Array.from({ length: 4096 }, () => 1 + random.below(1000));
  let at = 0;
  const next = (): number => delays[at = (at + 1) & 4095]!;
  for (let i = 0; i < pending; i++) {
    const ring = (): void => {
      // a guard that never rings, as around every wait with a limit
      if (cancelling) clock.after(1_000_000, ring).cancel();
      clock.post(next(), ring);
    };
    clock.post(next(), ring);
  }
  return () => {
    const end = clock.events + EVENTS;
    clock.run({ stop: () => clock.events >= end });
  };
}

export function* clockEvents(): Generator<Row> {
  for (const pending of [1, 64, 4096]) {
    const { value, samples } = throughput({ units: EVENTS, run: chains(pending, false) });
    yield { group: 'clock', name: `events, ${pending.toLocaleString('en')} pending`, value, unit: '/s', samples };
  }
  const { value, samples } = throughput({ units: EVENTS, run: chains(64, true) });
  yield { group: 'clock', name: 'events that arm and cancel an alarm, 64 pending', value, unit: '/s', samples };
}
