import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { findLinux } from '../harness/linux/prepared.js';
import { shellText } from '../harness/linux/qemu-command.js';
import { counterText } from '../harness/serve/counters.js';
import { ExternalGuests, type ExternalGuestsOptions, type RunningGuest } from '../harness/serve/external-guests.js';
import { ANY_LINUX, guestCommand } from '../harness/serve/guest-command.js';
import { loadTopology } from '../harness/topology/load.js';
import { isErrno } from '../sim/errno.js';
import { EXIT } from './exit.js';
import { reportBug, WrongUsage } from './failure.js';
import { say, type Io } from './io.js';

const REFRESH_MS = 500;

export interface ServeCommandOptions {
  readonly dir?: string;
  readonly seed?: number;
  readonly record?: string;
  readonly guest?: string;
  readonly once?: boolean;
  /** Of the program, for the recording. */
  readonly version?: string;
}

/** Serves a topology's external guests until it is interrupted, or, with `once`, until they have come and gone. */
export async function serve(io: Io, file: string, options: ServeCommandOptions): Promise<number> {
  const loaded = loadTopology(file);
  const found = findLinux(options.guest === undefined ? {} : { dir: options.guest });
  const software = 'linux' in found ? found.linux : ANY_LINUX;
  return withServing(io, file, options, async (serving) => {
    const machines = new ExternalGuests(loaded, serving);
    const interrupted = new Promise<void>((resolve) => {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
    });
    await machines.start();
    const shown = new StatusLines(io, machines.guests);
    try {
      for (const guest of machines.guests) announce(io, guest, guestCommand(guest.server, software), software === ANY_LINUX);
      shown.start();
      const gone = Promise.all(machines.guests.map(async (guest) => {
        await machines.until(guest, () => guest.server.attached);
        await machines.until(guest, () => !guest.server.busy);
      }));
      await (options.once === true ? Promise.race([interrupted, gone]) : interrupted);
    } finally {
      shown.stop();
      await machines.stop();
    }
    return EXIT.ok;
  });
}

/** Runs `use` with a folder for sockets and a file for the recording, and takes both back; what the system refuses is said in words. */
export async function withServing(io: Io, file: string, options: ServeCommandOptions, use: (serving: ExternalGuestsOptions) => Promise<number>): Promise<number> {
  const directory = options.dir ?? mkdtempSync(join(tmpdir(), 'vfiosim-'));
  const files: number[] = [];
  const recordTo = (guest: string): ((chunk: Uint8Array) => void) => {
    if (files.length > 0) throw new WrongUsage(`--record: the topology has several external guests, of which "${guest}" is not the first; one recording holds one`);
    const fd = openRecording(options.record!);
    files.push(fd);
    return (chunk) => void writeSync(fd, chunk);
  };
  let bugs = 0;
  const onBug = (error: unknown): void => {
    if (bugs++ === 0) reportBug(io, error, undefined);
  };
  try {
    const code = await use({
      directory, onBug, ...(options.seed === undefined ? {} : { seed: options.seed }),
      ...(options.record === undefined ? {} : { recordTo, fields: { vfiosim: options.version ?? '', file, topology: readFileSync(file, 'utf8') } }),
    });
    return bugs > 0 ? EXIT.bug : code;
  } catch (error) {
    if (!isErrno(error)) throw error;
    say(io, `${file}: cannot be served: ${error.message}`);
    return EXIT.failed;
  } finally {
    for (const fd of files) closeSync(fd);
    if (options.dir === undefined) rmSync(directory, { recursive: true, force: true });
  }
}

function openRecording(path: string): number {
  try {
    return openSync(path, 'w');
  } catch (error) {
    throw new WrongUsage(`--record ${path}: ${(error as Error).message}`);
  }
}

function announce(io: Io, { name, server }: RunningGuest, argv: readonly string[], replace: boolean): void {
  const { colors } = io;
  const unit = server.guest.unit;
  const hexadecimal = (value: bigint): string => `0x${value.toString(16)}`;
  io.stdout.write(`${colors.bold(name)} waits for a virtual machine\n`);
  for (const { served, path } of server.functions) io.stdout.write(`  00:${served.slot}  ${served.name.padEnd(12)} ${path}\n`);
  if (unit !== undefined) io.stdout.write(`  IOMMU ${unit.name}: cap ${hexadecimal(unit.capabilities.cap)} ecap ${hexadecimal(unit.capabilities.ecap)}, ACPI table ${server.table ?? ''}\n`);
  io.stdout.write(`Start it with${replace ? ' (VMLINUZ and INITRD: kernel and initramfs of the guest)' : ''}:\n\n${shellText(argv)}\n\n`);
}

/** On a terminal one line for each guest, brought up to date; elsewhere a line when a virtual machine comes or goes. */
class StatusLines {
  private readonly io: Io;
  private readonly guests: readonly RunningGuest[];
  private readonly wasAttached = new Map<string, boolean>();
  private timer: NodeJS.Timeout | undefined;
  private drawn = 0;

  constructor(io: Io, guests: readonly RunningGuest[]) {
    this.io = io;
    this.guests = guests;
  }

  start(): void {
    this.timer = setInterval(() => this.show(), REFRESH_MS);
  }

  stop(): void {
    clearInterval(this.timer);
    this.show();
  }

  private show(): void {
    const { stderr } = this.io;
    if (stderr.isTTY === true) {
      if (this.drawn > 0) stderr.write(`\u001b[${this.drawn}A`);
      this.drawn = this.guests.length;
      for (const guest of this.guests) stderr.write(`\u001b[2K${stateText(guest)}\n`);
      return;
    }
    for (const guest of this.guests) {
      const { attached } = guest.server;
      if (attached === (this.wasAttached.get(guest.name) ?? false)) continue;
      this.wasAttached.set(guest.name, attached);
      say(this.io, stateText(guest));
    }
  }
}

function stateText({ name, server }: RunningGuest): string {
  const came = server.functions.reduce((most, one) => Math.max(most, one.server.connections), 0);
  const state = server.attached ? 'attached' : server.busy ? 'a virtual machine is connecting' : came > 0 ? 'left' : 'nobody yet';
  return `${name}: ${state}; ${counterText(server.guest.trace)}`;
}
