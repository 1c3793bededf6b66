/** Serves an external guest: one socket for each of its functions, in a folder, and its ACPI table beside them. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { WaitQueue, type Scheduler, type Steps } from '../../sim/task.js';
import { VfioUserServer } from '../../vfio/user/posix/server.js';
import type { MachineRecorder } from '../../vfio/user/recording/index.js';
import type { ServedFunction, ServedGuest } from './served-guest.js';

export interface GuestServerOptions {
  /** Made if it is not there. */
  readonly directory: string;
  /** How anything that comes from outside enters the machine. */
  readonly enter: (action: () => void) => void;
  /** Tasks of who starts and stops the server, which are no part of the machine. */
  readonly outside: Scheduler;
  readonly recorder?: MachineRecorder;
  /** An error of ours; the client is answered EIO. */
  readonly onBug: (error: unknown) => void;
}

/** A function with its server. */
export interface FunctionServer {
  readonly served: ServedFunction;
  readonly path: string;
  readonly server: VfioUserServer;
}

export class GuestServer {
  readonly guest: ServedGuest;
  readonly functions: readonly FunctionServer[];
  /** File of the ACPI table. */
  readonly table: string | undefined;
  private readonly directory: string;
  private readonly changed: WaitQueue;
  private readonly started: FunctionServer[] = [];
  private tableWritten = false;

  constructor(guest: ServedGuest, options: GuestServerOptions) {
    const { directory, onBug, enter, outside, recorder } = options;
    this.guest = guest;
    this.directory = directory;
    this.changed = new WaitQueue(outside, `clients of ${guest.name}`);
    const table = guest.table();
    this.table = table === undefined ? undefined : join(directory, `${guest.name}-${table.signature.toLowerCase()}.aml`);
    this.functions = guest.functions.map((served) => {
      const path = join(directory, `${guest.name}-${served.name}.sock`);
      const server = new VfioUserServer({
        path, device: served.device, scheduler: guest.scheduler, onBug, enter, outside, policy: served.bringsMemory ? 'map-sealed' : 'messages',
        onChange: () => this.changed.wakeAll(),
        ...(recorder === undefined ? {} : { recorder: recorder.device(served.name) }),
      });
      return { served, path, server };
    });
  }

  /** A virtual machine monitor is connected to every function. */
  get attached(): boolean {
    return this.functions.every(({ server }) => server.busy);
  }

  /** Some connection is there. */
  get busy(): boolean {
    return this.functions.some(({ server }) => server.busy);
  }

  /** Connections so far; a monitor makes one for each function. */
  get connections(): number {
    return this.functions.reduce((sum, { server }) => sum + server.connections, 0);
  }

  /** Sleeps until a condition about clients holds. */
  until(condition: () => boolean): Steps {
    return this.changed.until(condition);
  }

  /** Writes the table and listens on every socket; on failure nothing is left. EADDRINUSE and what else `VfioUserServer.start` refuses with. */
  *start(): Steps {
    mkdirSync(this.directory, { recursive: true });
    try {
      for (const one of this.functions) {
        yield* one.server.start();
        this.started.push(one);
      }
      this.writeTable();
    } catch (error) {
      yield* this.stop();
      throw error;
    }
  }

  *stop(): Steps {
    for (const { server } of this.started.splice(0)) yield* server.stop();
    // one that another server wrote is not ours to remove
    if (this.tableWritten) rmSync(this.table!, { force: true });
    this.tableWritten = false;
  }

  private writeTable(): void {
    if (this.table === undefined) return;
    this.tableWritten = true;
    writeFileSync(this.table, this.guest.table()!.bytes);
  }
}
