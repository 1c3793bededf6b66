/**
 * Boots the prepared guest on a topology's devices, from serving to the verdict: the guest's own steps, its kernel's
 * complaints, and what the topology expects of counters (of our hardware) and log (its console).
 */
import { countersOf } from '../counters.js';
import { unmetExpectations } from '../expectations.js';
import { ExternalGuests, type ExternalGuestsOptions, type RunningGuest } from '../serve/external-guests.js';
import type { InvariantSummary } from '../summary.js';
import type { LoadedTopology } from '../topology/load.js';
import { shortcomings } from './expectations.js';
import { guestCommand } from './guest-command.js';
import { bootGuest, type GuestReport } from './guest-run.js';
import type { PreparedLinux } from './prepared.js';

export interface LinuxRunOptions extends ExternalGuestsOptions {
  readonly linux: PreparedLinux;
  readonly signal?: AbortSignal;
  /** Each line of a guest's console. */
  readonly onLine?: (guest: string, line: string) => void;
  /** Each line that QEMU itself prints. */
  readonly onMessage?: (guest: string, line: string) => void;
  /** Before QEMU starts. */
  readonly onStart?: (guest: RunningGuest, argv: readonly string[]) => void;
}

export interface LinuxGuestResult {
  readonly guest: string;
  readonly report: GuestReport;
  readonly counters: Readonly<Record<string, number>>;
  readonly invariants: readonly InvariantSummary[];
  /** Interrupts of the IOMMU that QEMU refused. */
  readonly interruptsLost: number;
  /** Why it is not good, in sentences; none when it is. */
  readonly shortcomings: readonly string[];
}

export interface LinuxResult {
  readonly guests: readonly LinuxGuestResult[];
  readonly good: boolean;
}

/** All guests of the topology at once. @throws InvalidInput, Errno as `ExternalGuests` */
export async function runLinux(loaded: LoadedTopology, options: LinuxRunOptions): Promise<LinuxResult> {
  const machines = new ExternalGuests(loaded, options);
  try {
    // a command that cannot be made is said before any QEMU runs
    const commands = machines.guests.map((guest) => ({ guest, argv: guestCommand(guest.server, options.linux) }));
    await machines.start();
    const guests = await Promise.all(commands.map(({ guest, argv }) => runOne(guest, argv, loaded, options)));
    return { guests, good: guests.every((guest) => guest.shortcomings.length === 0) };
  } finally {
    await machines.stop();
  }
}

async function runOne(running: RunningGuest, argv: readonly string[], { topology }: LoadedTopology, { signal, onLine, onMessage, onStart }: LinuxRunOptions): Promise<LinuxGuestResult> {
  const { guest } = running.server;
  onStart?.(running, argv);
  const boot = bootGuest({
    argv, timeoutMs: guest.topology.linux.timeout / 1e6, ...(signal === undefined ? {} : { signal }),
    ...(onLine === undefined ? {} : { onLine: (line: string) => onLine(running.name, line) }),
    ...(onMessage === undefined ? {} : { onMessage: (line: string) => onMessage(running.name, line) }),
  });
  const report = await boot.report;
  const counters = countersOf(guest.trace);
  const found = [...shortcomings(report, guest.topology.linux.allow), ...unmetExpectations(topology, { flows: [], guests: [], counters, log: report.lines })];
  if (report.exit.cause !== 'ended' || report.exit.code !== 0) found.push(`QEMU ${exitText(report)}`);
  const invariants = guest.checkers.finish();
  for (const { name, violations } of invariants) for (const text of violations) found.push(`${name}: ${text}`);
  if (guest.interruptsLost > 0) found.push(`QEMU refused ${guest.interruptsLost} interrupt(s) of the IOMMU`);
  return { guest: running.name, report, counters, invariants, interruptsLost: guest.interruptsLost, shortcomings: found };
}

function exitText({ exit, messages }: GuestReport): string {
  const said = messages.length === 0 ? '' : `: ${messages.at(-1)!}`;
  if (exit.cause === 'timeout') return 'was ended because its time was over';
  if (exit.cause === 'not-started') return `could not be started${said}`;
  return exit.signal === null ? `ended with code ${exit.code}${said}` : `was ended by ${exit.signal}${said}`;
}
