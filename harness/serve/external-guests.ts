/**
 * The external guests of a topology, served: each has a machine of its own (clock, trace, IOMMU, devices) and its sockets
 * in one folder. Real time drives them; what comes from outside enters one after the other, so that a recording of it is
 * all that a replay needs. Promises live here, at the edge, and nowhere below.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { resolve } from 'node:path';
import { WallClock } from '../../sim/wall-clock.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { posixCalls } from '../../vfio/user/posix/index.js';
import { MachineRecorder, type RecordingFields } from '../../vfio/user/recording/index.js';
import { checkDefects } from '../defects.js';
import { FileMedium } from '../media/file-medium.js';
import { InvalidInput } from '../topology/problems.js';
import type { LoadedTopology } from '../topology/load.js';
import type { GuestTopology } from '../topology/schema.js';
import { GuestServer } from './guest-server.js';
import { ServedGuest, type ServedSettings } from './served-guest.js';

export interface ExternalGuestsOptions {
  /** Of sockets and tables; made if it is not there. */
  readonly directory: string;
  /** Default: the topology's. */
  readonly seed?: number;
  readonly defects?: ReadonlySet<string>;
  /** Trace records kept; default 2^16. */
  readonly traceRecords?: number;
  /** Where a guest's recording goes; nothing is recorded without. */
  readonly recordTo?: (guest: string) => (chunk: Uint8Array) => void;
  /** For the recording: what it was made from. */
  readonly fields?: RecordingFields;
  /** A bug of ours; the client is answered EIO and goes on. */
  readonly onBug: (error: unknown) => void;
}

export interface RunningGuest {
  readonly name: string;
  readonly server: GuestServer;
  readonly clock: WallClock;
}

interface Parts extends RunningGuest {
  readonly recorder: MachineRecorder | undefined;
}

export class ExternalGuests {
  readonly guests: readonly RunningGuest[];
  private readonly parts: readonly Parts[];
  private readonly media: FileMedium[] = [];
  /** Time and tasks of who starts and stops machines; no part of any of them. */
  private readonly outsideClock: WallClock;
  private readonly outside: Scheduler;
  private stopped = false;

  /** @throws InvalidInput no external guest, an unusable image; Errno ENOSYS no descriptors can be passed on this machine */
  constructor(loaded: LoadedTopology, options: ExternalGuestsOptions) {
    posixCalls();
    checkDefects(options.defects ?? []);
    const guests = externalGuestsOf(loaded);
    this.outsideClock = new WallClock(options.onBug);
    this.outside = new Scheduler(this.outsideClock, (error) => this.outsideClock.fail(error));
    try {
      this.parts = guests.map((guest) => this.build(guest, loaded, options));
    } catch (error) {
      this.closeMedia();
      throw error;
    }
    this.guests = this.parts;
  }

  /** Every guest's sockets listen when this resolves; on failure all is stopped. EADDRINUSE and what else `VfioUserServer.start` refuses with. */
  async start(): Promise<void> {
    try {
      await this.run('start', startAll(this.parts));
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  /** Ends connections, removes sockets, finishes recordings, closes images; twice does nothing more. */
  async stop(): Promise<void> {
    if (this.stopped) return;
    this.stopped = true;
    try {
      await this.run('stop', stopAll(this.parts));
    } finally {
      for (const { recorder, clock, server } of this.parts) {
        recorder?.finish({ traceHash: server.guest.trace.hash });
        clock.stop();
      }
      this.closeMedia();
      this.outsideClock.stop();
    }
  }

  /** Resolves when a condition about clients holds. */
  async until(guest: RunningGuest, condition: () => boolean): Promise<void> {
    await this.run('until', guest.server.until(condition));
  }

  private build(guest: GuestTopology, loaded: LoadedTopology, options: ExternalGuestsOptions): Parts {
    const { directory, onBug, recordTo, fields, defects = new Set<string>() } = options;
    const clock = new WallClock(onBug, { held: true });
    const settings = servedSettings(loaded, { seed: options.seed ?? loaded.topology.seed, defects, traceRecords: options.traceRecords ?? 1 << 16 }, (medium) => this.media.push(medium));
    const served = new ServedGuest(guest, settings, clock);
    const recorder = recordTo === undefined ? undefined : new MachineRecorder({
      clock, write: recordTo(guest.name), devices: served.functions.map(({ name }) => name), defects,
      fields: { ...fields, guest: guest.name, seed: settings.seed, images: imageHashes(guest, loaded) }, onFailure: onBug,
    });
    const server = new GuestServer(served, { directory, onBug, enter: (action) => clock.enter(action), outside: this.outside, ...(recorder === undefined ? {} : { recorder }) });
    return { name: guest.name, server, clock, recorder };
  }

  private closeMedia(): void {
    for (const medium of this.media.splice(0)) medium.close();
  }

  private run(what: string, steps: Steps): Promise<void> {
    return new Promise((done, failed) => {
      this.outside.spawn(what, settle(steps, done, failed), { daemon: true });
    });
  }
}

function* settle(steps: Steps, done: () => void, failed: (error: unknown) => void): Steps {
  try {
    yield* steps;
    done();
  } catch (error) {
    failed(error);
  }
}

function* startAll(parts: readonly Parts[]): Steps {
  for (const { clock, server } of parts) {
    clock.start();
    yield* server.start();
  }
}

function* stopAll(parts: readonly Parts[]): Steps {
  for (const { server } of parts) yield* server.stop();
}

/** @throws InvalidInput a topology without external guests */
export function externalGuestsOf({ topology, file }: LoadedTopology): GuestTopology[] {
  const guests = topology.guests.filter(({ external }) => external !== undefined);
  if (guests.length === 0) throw new InvalidInput([{ file, message: 'has no external guest: nobody is waited for. A guest with `external:` is somebody else\'s virtual machine; `vfiosim run` runs the others' }]);
  return guests;
}

/** What a served guest's machine is made from; images are files that its disks lie on. */
export function servedSettings(loaded: LoadedTopology, options: Pick<ServedSettings, 'seed' | 'defects' | 'traceRecords'>, opened: (medium: FileMedium) => void): ServedSettings {
  return {
    topology: loaded.topology, watch: true, ...options,
    file: (path) => new Uint8Array(readFileSync(resolve(loaded.directory, path))),
    medium: (device) => {
      if (device.image === undefined) return undefined;
      const medium = new FileMedium(resolve(loaded.directory, device.image), device['image-mode'] === 'read-only' ? 'read' : device['image-mode']);
      opened(medium);
      return medium;
    },
  };
}

/** A replay needs disks with the same content. @throws InvalidInput a disk whose file changes while it is used */
function imageHashes(guest: GuestTopology, { directory, file }: LoadedTopology): Record<string, string> {
  const hashes: Record<string, string> = {};
  for (const device of guest.external!.devices) {
    if (device.model !== 'nvme' || device.image === undefined) continue;
    if (device['image-mode'] === 'write') throw new InvalidInput([{ file, message: `disk "${device.name}" writes to its image, so a recording could not be replayed; allowed with --record: image-mode snapshot or read-only` }]);
    hashes[device.image] = imageHash(resolve(directory, device.image));
  }
  return hashes;
}

/** SHA-256 of an image, in hexadecimal; piece by piece, since a disk may be larger than memory. */
export function imageHash(path: string): string {
  const hash = createHash('sha256'), piece = new Uint8Array(1 << 20), fd = openSync(path, 'r');
  try {
    for (let count = readSync(fd, piece); count > 0; count = readSync(fd, piece)) hash.update(piece.subarray(0, count));
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
}
