import { ContainerModule } from 'inversify';
import { Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Random } from '../../sim/random.js';
import { Scheduler } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import type { Settings } from './settings.js';
import { CLOCK, MACHINE_CLOCK, MAILBOX, RANDOM, SCHEDULER, SETTINGS, TRACE } from './tokens.js';

/** Boot happens before time 0; it has this long. */
export const BOOT_NS = 1_000_000_000;

/** Substrate: one clock, one seed, one trace for the whole machine. */
export const simModule = new ContainerModule(({ bind }) => {
  bind(MACHINE_CLOCK).toResolvedValue(({ topology: { limits } }: Settings) => new VirtualClock({ startNs: -BOOT_NS, eventLimit: limits.events, timeLimitNs: limits.time }), [SETTINGS]).inSingletonScope();
  bind(CLOCK).toResolvedValue((clock: VirtualClock) => clock, [MACHINE_CLOCK]).inSingletonScope();
  bind(RANDOM).toResolvedValue(({ seed }: Settings) => new Random(seed), [SETTINGS]).inSingletonScope();
  bind(SCHEDULER).toResolvedValue((clock: VirtualClock) => new Scheduler(clock, (error) => clock.fail(error)), [MACHINE_CLOCK]).inSingletonScope();
  bind(MAILBOX).toResolvedValue((clock: VirtualClock) => new Mailbox((error) => clock.fail(error)), [MACHINE_CLOCK]).inSingletonScope();
  bind(TRACE).toResolvedValue((clock: VirtualClock, { traceRecords }: Settings) => new Trace(clock, traceRecords), [MACHINE_CLOCK, SETTINGS]).inSingletonScope();
});
