import { findLinux } from '../harness/linux/prepared.js';
import { runLinux, type LinuxGuestResult } from '../harness/linux/linux-run.js';
import { shellText } from '../harness/linux/qemu-command.js';
import { counterText } from '../harness/serve/counter-text.js';
import { externalGuestsOf, type RunningGuest } from '../harness/serve/external-guests.js';
import { loadTopology } from '../harness/topology/load.js';
import { EXIT } from './exit.js';
import { say, type Io } from './io.js';
import { interruptible, withServing, type ServeCommandOptions } from './serve.js';

export interface LinuxCommandOptions extends ServeCommandOptions {
  readonly qemu?: string;
  readonly json?: boolean;
  readonly console?: boolean;
}

/** Boots the prepared guest on a topology's devices, shows what it says, and judges. */
export async function linux(io: Io, file: string, options: LinuxCommandOptions): Promise<number> {
  const loaded = loadTopology(file);
  // a file that has no guest is said before a guest that is not prepared
  externalGuestsOf(loaded);
  const found = findLinux({ ...(options.guest === undefined ? {} : { dir: options.guest }), ...(options.qemu === undefined ? {} : { qemu: options.qemu }) });
  if ('missing' in found) {
    for (const sentence of found.missing) say(io, sentence);
    return EXIT.failed;
  }
  const several = loaded.topology.guests.length > 1;
  return withServing(io, loaded, options, (serving) => interruptible(async (interrupted) => {
    const ending = new AbortController();
    void interrupted.then(() => ending.abort());
    const machines: RunningGuest[] = [];
    const { guests, good } = await runLinux(loaded, {
      ...serving, linux: found.linux, signal: ending.signal,
      onStart: (guest, argv) => {
        machines.push(guest);
        say(io, shellText(argv));
      },
      onMessage: (guest, line) => say(io, `${several ? `[${guest}] ` : ''}${line}`),
      onLine: (guest, line) => {
        const fact = line.includes('GUEST ');
        if (options.json === true || (!fact && options.console !== true)) return;
        io.stdout.write(`${several ? `[${guest}] ` : ''}${fact && options.console !== true ? line.replace(/^.*?GUEST /, '') : line}\n`);
      },
    });
    if (options.json === true) io.stdout.write(`${JSON.stringify({ linux: found.linux.kernelRelease, qemu: found.linux.version, guests: guests.map(summaryOf), good }, null, 2)}\n`);
    else for (const [i, guest] of guests.entries()) io.stdout.write(verdict(io, guest, counterText(machines[i]!.server.guest.trace)));
    return { code: good ? EXIT.ok : EXIT.failed, guests: machines };
  }));
}

function summaryOf({ guest, report, counters, invariants, shortcomings }: LinuxGuestResult): object {
  return { guest, exit: report.exit, messages: report.messages, facts: report.facts.map(({ text }) => text), counters, invariants, shortcomings };
}

function verdict({ colors }: Io, { guest, shortcomings, invariants }: LinuxGuestResult, counters: string): string {
  const good = shortcomings.length === 0;
  const watched = invariants.filter(({ checked }) => checked > 0).map(({ name, checked }) => `${name} (${checked})`);
  const lines = [`${good ? colors.green('PASS') : colors.red('FAIL')} ${guest}: ${counters}`, ...(watched.length === 0 ? [] : [`  watched: ${watched.join(', ')}`]), ...shortcomings.map((text) => `  ${text}`)];
  return `${lines.join('\n')}\n`;
}
