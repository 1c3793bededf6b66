import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defaultDirectory, findLinux } from '../harness/linux/prepared.js';
import { shellText } from '../harness/linux/qemu-command.js';
import { counterText } from '../harness/serve/counter-text.js';
import { ExternalGuests, externalGuestsOf, type ExternalGuestsOptions, type RunningGuest } from '../harness/serve/external-guests.js';
import { ANY_LINUX, guestCommand } from '../harness/linux/guest-command.js';
import { loadTopology, type LoadedTopology } from '../harness/topology/load.js';
import { isErrno } from '../sim/errno.js';
import { EXIT } from './exit.js';
import { reportBug, WrongUsage } from './failure.js';
import { say, type Io } from './io.js';
import { OutputFile, tracePieces } from './output-file.js';

const REFRESH_MS = 500;

export interface ServeCommandOptions {
  readonly dir?: string;
  readonly seed?: number;
  readonly record?: string;
  readonly trace?: string;
  readonly guest?: string;
  readonly once?: boolean;
  /** Of the program, for the recording. */
  readonly version?: string;
}

/** Serves a topology's external guests until it is interrupted, or, with `once`, until they have come and gone. */
export async function serve(io: Io, file: string, options: ServeCommandOptions): Promise<number> {
  const loaded = loadTopology(file);
  const found = findLinux(options.guest === undefined ? {} : { dir: options.guest });
  if ('missing' in found && options.guest !== undefined) {
    for (const sentence of found.missing) say(io, sentence);
    return EXIT.failed;
  }
  const software = 'linux' in found ? found.linux : ANY_LINUX;
  return withServing(io, loaded, options, (serving) => interruptible(async (interrupted) => {
    const machines = new ExternalGuests(loaded, serving);
    await machines.start();
    const shown = new StatusLines(io, machines.guests);
    try {
      for (const guest of machines.guests) announce(io, guest, guestCommand(guest.server, software), software === ANY_LINUX);
      shown.start();
      await (options.once === true ? Promise.race([interrupted, comeAndGone(machines)]) : interrupted);
    } finally {
      shown.stop();
      await machines.stop();
    }
    return { code: EXIT.ok, guests: machines.guests };
  }));
}

/** However far it came: a monitor that dies between two of its connections has been there, too. */
async function comeAndGone(machines: ExternalGuests): Promise<void> {
  await Promise.all(machines.guests.map((guest) => machines.until(guest, () => guest.server.connections > 0 && !guest.server.busy)));
}

/** Runs `use` with a promise that the first signal to end resolves; a second one ends the process at once, and so does any when `use` is over. */
export async function interruptible<T>(use: (interrupted: Promise<void>) => Promise<T>): Promise<T> {
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  let heard = (): void => {};
  const interrupted = new Promise<void>((resolve) => {
    heard = () => {
      for (const signal of signals) process.removeListener(signal, heard);
      resolve();
    };
  });
  for (const signal of signals) process.on(signal, heard);
  try {
    return await use(interrupted);
  } finally {
    for (const signal of signals) process.removeListener(signal, heard);
  }
}

/** What a command did with a topology's guests. */
interface Served {
  readonly code: number;
  readonly guests: readonly RunningGuest[];
}

/** Runs `use` with a folder for sockets and files for recording and trace, and takes them back; what the system refuses is said in words. */
export async function withServing(io: Io, loaded: LoadedTopology, options: ServeCommandOptions, use: (serving: ExternalGuestsOptions) => Promise<Served>): Promise<number> {
  const { file } = loaded;
  if (externalGuestsOf(loaded).length > 1 && (options.record ?? options.trace) !== undefined) throw new WrongUsage(`${options.record === undefined ? '--trace' : '--record'}: ${file} has several external guests; one file holds one`);
  let record: OutputFile | undefined, trace: OutputFile | undefined, directory: string | undefined;
  let bugs = 0, unwritten = false;
  const onBug = (error: unknown): void => {
    if (error instanceof WrongUsage) {
      // a disk that is full, say: the machine goes on without its recording
      unwritten = true;
      say(io, error.message);
    } else if (bugs++ === 0) {
      reportBug(io, error, undefined);
    }
  };
  try {
    if (options.record !== undefined) record = new OutputFile('--record', options.record);
    if (options.trace !== undefined) trace = new OutputFile('--trace', options.trace);
    directory = folderFor(options.dir);
    const { code, guests } = await use({
      directory, onBug, ...(options.seed === undefined ? {} : { seed: options.seed }), ...(trace === undefined ? {} : { traceRecords: 1 << 20 }),
      ...(record === undefined ? {} : { recordTo: () => (chunk: Uint8Array) => record!.append(chunk), fields: { vfiosim: options.version ?? '', file, topology: readFileSync(file, 'utf8') } }),
    });
    for (const { server } of guests) trace?.write(tracePieces(server.guest.trace, options.trace!));
    if (bugs > 0) return EXIT.bug;
    return unwritten ? EXIT.usage : code;
  } catch (error) {
    // of our own calls, or of Node's: a table that cannot be written
    if (!isErrno(error) && !(error instanceof Error && 'syscall' in error)) throw error;
    say(io, `${file}: cannot be served: ${error.message}`);
    return EXIT.failed;
  } finally {
    record?.close();
    trace?.close();
    if (directory !== undefined && options.dir === undefined) rmSync(directory, { recursive: true, force: true });
  }
}

function folderFor(asked: string | undefined): string {
  if (asked === undefined) return mkdtempSync(join(tmpdir(), 'vfiosim-'));
  try {
    mkdirSync(asked, { recursive: true });
    return asked;
  } catch (error) {
    throw new WrongUsage(`--dir: ${asked} cannot be made: ${(error as NodeJS.ErrnoException).code ?? String(error)}`);
  }
}

function announce(io: Io, { name, server }: RunningGuest, argv: readonly string[], replace: boolean): void {
  const { colors } = io;
  const unit = server.guest.unit;
  const hexadecimal = (value: bigint): string => `0x${value.toString(16)}`;
  io.stdout.write(`${colors.bold(name)} waits for a virtual machine\n`);
  for (const { served, path } of server.functions) io.stdout.write(`  00:${served.slot}  ${served.name.padEnd(12)} ${path}\n`);
  if (unit !== undefined) io.stdout.write(`  IOMMU ${unit.name}: cap ${hexadecimal(unit.capabilities.cap)} ecap ${hexadecimal(unit.capabilities.ecap)}, ACPI table ${server.table ?? ''}\n`);
  io.stdout.write(`Start it with${replace ? ` (VMLINUZ and INITRD stand for a kernel and an initramfs; none are prepared in ${defaultDirectory()})` : ''}:\n\n${shellText(argv)}\n\n`);
}

/** On a terminal one line for each guest, brought up to date; elsewhere a line when a virtual machine comes or goes. */
class StatusLines {
  private readonly io: Io;
  private readonly guests: readonly RunningGuest[];
  private readonly shown = new Map<string, string>();
  private readonly warned = new Set<string>();
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
    for (const guest of this.guests) this.warn(guest);
    if (stderr.isTTY === true) {
      if (this.drawn > 0) stderr.write(`\u001b[${this.drawn}A`);
      this.drawn = this.guests.length;
      // a line that wraps would move the cursor further than it is moved back
      const { columns = 80 } = stderr as { readonly columns?: number };
      for (const guest of this.guests) stderr.write(`\u001b[2K${stateText(guest).slice(0, columns - 1)}\n`);
      return;
    }
    for (const guest of this.guests) {
      const state = stateOf(guest), before = this.shown.get(guest.name) ?? 'nobody yet';
      // in between is where a terminal looks; a log has beginning and end
      if (state === before || state === 'coming or going') continue;
      this.shown.set(guest.name, state);
      say(this.io, stateText(guest));
    }
  }

  /** Once for each virtual machine, above the lines that change. */
  private warn({ name, server }: RunningGuest): void {
    const lacking = server.attached ? server.guest.lackingMemory : undefined;
    if (!server.attached) this.warned.delete(name);
    if (lacking === undefined || this.warned.has(name)) return;
    this.warned.add(name);
    say(this.io, `warning: ${lacking}`);
    this.drawn = 0;
  }
}

function stateOf({ server }: RunningGuest): string {
  if (server.attached) return 'attached';
  if (server.busy) return 'coming or going';
  return server.connections > 0 ? 'left' : 'nobody yet';
}

function stateText(guest: RunningGuest): string {
  return `${guest.name}: ${stateOf(guest)}; ${counterText(guest.server.guest.trace)}`;
}
