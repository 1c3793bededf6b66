/**
 * Migration of one device, version 2 (include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_MIGRATION, MIG_DEVICE_STATE,
 * MIG_DATA_SIZE): the vendor gives what its device does on each arc and its state as bytes; this class does the
 * rest. A refused arc leaves the device in the last state it reached; a device that cannot say any more in which
 * state it is goes to ERROR, from which only a reset leads out. Left out: the deprecated version 1.
 */
import { Errno, isErrno } from '../../sim/errno.js';
import { Mutex, type Scheduler, type Steps } from '../../sim/task.js';
import type { Trace, TraceKind } from '../../sim/trace.js';
import type { Process } from '../../host/process.js';
import type { VfioFeatureRequest } from '../device.js';
import { MigrationDataFile } from './data-file.js';
import {
  FEATURE_MIG_DATA_SIZE, FEATURE_MIG_STATE, FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_STATE_ERROR, VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_PRE_COPY_P2P, VFIO_DEVICE_STATE_RESUMING,
  VFIO_DEVICE_STATE_RUNNING, VFIO_DEVICE_STATE_RUNNING_P2P, VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_STOP_COPY,
} from '../uapi/migration.js';
import { bytesOf, wordsOfBytes } from '../uapi/fields.js';
import { checkFeature } from './feature-check.js';
import { MIG_STATE_NAMES, nextMigrationState, type MigrationState } from './states.js';

const DEFAULT_STATE_LIMIT = 64 * 1024 * 1024;
/** What a device does for its migration. An Errno from `arc` or `save` refuses the arc: the device is then as before. */
export interface MigrationVendor {
  /** VFIO_MIGRATION_*; STOP_COPY is always there. */
  readonly flags: number;
  /** Most bytes that a state can be; default 64 MiB. */
  readonly maxStateBytes?: number;
  /** What the device does on an arc: stop, run, stop starting peer traffic. Called before `save`, after `load`. */
  arc?(from: MigrationState, to: MigrationState): Steps;
  /**
   * Bytes for the stream. `initial`: PRE_COPY begins. `more`: changes since, empty without, the device still runs.
   * `final`: the device stands, everything that the stream still lacks.
   */
  save(part: 'initial' | 'more' | 'final'): Steps<Uint8Array>;
  /** The whole stream, on RESUMING → STOP. An Errno (EINVAL a state that is not this device's) ends in ERROR. */
  load(state: Uint8Array): Steps;
  /** Estimate of what a save from now would be, bytes. */
  dataSizeBytes(): number;
}

export interface VfioMigrationOptions {
  /** Name of the device, for records and messages. */
  readonly device: string;
  readonly vendor: MigrationVendor;
  readonly scheduler: Scheduler;
  readonly trace?: Trace;
  /** `migration.keep-running-in-stop-copy`: the arcs that stop the device never reach the vendor. */
  readonly defects?: ReadonlySet<string>;
}

export class VfioMigration {
  private readonly device: string;
  private readonly vendor: MigrationVendor;
  private readonly mutex: Mutex;
  private readonly trace: Trace | undefined;
  private readonly kind: TraceKind | undefined;
  private readonly skipStop: boolean;
  private current: MigrationState = VFIO_DEVICE_STATE_RUNNING;
  private file: MigrationDataFile | undefined;
  /** A fault of the device during the arc under way. */
  private failed = false;

  constructor(options: VfioMigrationOptions) {
    this.device = options.device;
    this.vendor = options.vendor;
    this.mutex = new Mutex(options.scheduler, `migration of ${options.device}`);
    this.trace = options.trace;
    this.kind = options.trace?.define('vfio:mig_state', [['device', 'str'], ['from', 'dec'], ['to', 'dec'], ['bytes', 'dec']]);
    this.skipStop = options.defects?.has('migration.keep-running-in-stop-copy') ?? false;
  }

  get state(): MigrationState {
    return this.current;
  }

  /**
   * VFIO_DEVICE_FEATURE: bytes written over `request.data` (also for a SET of the device state, which answers with
   * data_fd); undefined for a feature that is not migration's. EINVAL as `checkFeature` and `setState`.
   */
  *feature(request: VfioFeatureRequest): Steps<number | undefined> {
    switch (request.feature) {
      case VFIO_DEVICE_FEATURE_MIGRATION:
        if (!checkFeature(request, 'get', FEATURE_MIGRATION.sizeBytes)) return 0;
        return answer(request, FEATURE_MIGRATION.encode({ flags: this.vendor.flags }));
      case VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
        if (!checkFeature(request, 'get', FEATURE_MIG_DATA_SIZE.sizeBytes)) return 0;
        return answer(request, FEATURE_MIG_DATA_SIZE.encode({ stop_copy_length: this.vendor.dataSizeBytes() }));
      case VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: {
        if (!checkFeature(request, 'get-set', FEATURE_MIG_STATE.sizeBytes)) return 0;
        const asked = FEATURE_MIG_STATE.f.device_state.get(wordsOfBytes(request.data));
        const fd = request.set ? yield* this.setStateFor(request.caller, asked) : -1;
        if (fd >= 0) request.undo = () => request.caller.close(fd);
        return answer(request, FEATURE_MIG_STATE.encode({ device_state: request.set ? asked : this.current, data_fd: fd >>> 0 }));
      }
      default:
        return undefined;
    }
  }

  /**
   * Goes to `target` arc by arc and returns the file of the session that began, if one did. EINVAL: ERROR as target
   * or present state, a state the device lacks, no way. Another Errno is the vendor's: `state` tells how far it came.
   */
  *setState(target: number): Steps<MigrationDataFile | undefined> {
    return yield* this.mutex.with(() => this.walk(target));
  }

  /** The device fails during an arc: it ends in ERROR whatever else happens. For vendors, inside `arc`, `save`, `load`. */
  fail(): void {
    this.failed = true;
  }

  /** The device was reset (VFIO_DEVICE_RESET, first open, last close): RUNNING, its files are dead. */
  *reset(): Steps {
    yield* this.mutex.with(() => this.resetLocked());
  }

  private *setStateFor(caller: Process, target: number): Steps<number> {
    const file = yield* this.setState(target);
    return file === undefined ? -1 : caller.open(file, { closeOnExec: true });
  }

  private *walk(target: number): Steps<MigrationDataFile | undefined> {
    if (target === VFIO_DEVICE_STATE_ERROR) throw new Errno('EINVAL', this.refusal(target));
    let opened: MigrationDataFile | undefined;
    while (this.current !== target) {
      const next = nextMigrationState(this.vendor.flags, this.current, target);
      if (next === undefined) throw new Errno('EINVAL', this.refusal(target));
      opened = yield* this.step(next);
    }
    return opened;
  }

  /** One arc: afterwards the device is in `to`, or where it was, or in ERROR. */
  private *step(to: MigrationState): Steps<MigrationDataFile | undefined> {
    const from = this.current;
    this.failed = false;
    let opened: MigrationDataFile | undefined;
    try {
      if (from === VFIO_DEVICE_STATE_RESUMING) yield* this.vendor.load(this.file!.all());
      if (!(this.skipStop && stops(from, to))) yield* this.vendor.arc?.(from, to) ?? none();
      opened = yield* this.enter(from, to);
    } catch (error) {
      // a state that was loaded in part is no state
      if (isErrno(error) && (this.failed || from === VFIO_DEVICE_STATE_RESUMING)) this.become(VFIO_DEVICE_STATE_ERROR);
      throw error;
    }
    if (this.failed) {
      this.become(VFIO_DEVICE_STATE_ERROR);
      throw new Errno('EIO', `${this.device} failed on the way from ${MIG_STATE_NAMES[from]} to ${MIG_STATE_NAMES[to]}`);
    }
    this.become(to, opened);
    return opened;
  }

  /** The stream that belongs to the state that is entered: a new file, or the next part of the one that is open. */
  private *enter(from: MigrationState, to: MigrationState): Steps<MigrationDataFile | undefined> {
    const { vendor } = this;
    const name = `migration of ${this.device}`;
    if (to === VFIO_DEVICE_STATE_RESUMING) return new MigrationDataFile(name, 'resume', vendor.maxStateBytes ?? DEFAULT_STATE_LIMIT);
    if (to === VFIO_DEVICE_STATE_STOP_COPY) {
      const open = copying(from) ? this.file : undefined;
      const rest = yield* vendor.save('final');
      const file = open ?? this.savingFile(name);
      file.append(rest, false, true);
      return open === undefined ? file : undefined;
    }
    if (copying(to) && !copying(from)) {
      const file = this.savingFile(name);
      file.append(yield* vendor.save('initial'), true);
      return file;
    }
    return undefined;
  }

  private savingFile(name: string): MigrationDataFile {
    return new MigrationDataFile(name, 'save', Infinity, { more: () => this.vendor.save('more') });
  }

  private become(to: MigrationState, opened?: MigrationDataFile): void {
    const from = this.current;
    this.current = to;
    const stays = copying(from) && (copying(to) || to === VFIO_DEVICE_STATE_STOP_COPY);
    if (!stays) {
      this.file?.disable();
      this.file = opened;
    }
    if (this.kind !== undefined) this.trace!.record(this.kind, 0, this.trace!.intern(this.device), from, to, this.file?.pendingBytes ?? 0);
  }

  // oxlint-disable-next-line require-yield -- runs under the lock
  private *resetLocked(): Steps {
    if (this.current === VFIO_DEVICE_STATE_RUNNING) return;
    this.become(VFIO_DEVICE_STATE_RUNNING);
  }

  private refusal(target: number): string {
    const name = MIG_STATE_NAMES[target] ?? String(target);
    if (this.current === VFIO_DEVICE_STATE_ERROR) return `${this.device} is in ERROR: only a reset leads out`;
    if (target === VFIO_DEVICE_STATE_ERROR) return `${this.device}: nobody asks for ERROR`;
    return `${this.device} has no way from ${MIG_STATE_NAMES[this.current]} to ${name}`;
  }
}

/** The arc ends what a device does by itself, or all of it. */
function stops(from: MigrationState, to: MigrationState): boolean {
  const ran = from === VFIO_DEVICE_STATE_RUNNING || from === VFIO_DEVICE_STATE_PRE_COPY;
  return to === VFIO_DEVICE_STATE_STOP || (ran && (to === VFIO_DEVICE_STATE_RUNNING_P2P || to === VFIO_DEVICE_STATE_PRE_COPY_P2P));
}

/** States in which the first copy of a running device is taken. */
function copying(state: MigrationState): boolean {
  return state === VFIO_DEVICE_STATE_PRE_COPY || state === VFIO_DEVICE_STATE_PRE_COPY_P2P;
}

/** Writes a record over the request's payload. */
function answer(request: VfioFeatureRequest, words: ArrayLike<number>): number {
  const bytes = bytesOf(words);
  request.data.set(bytes);
  return bytes.length;
}

function* none(): Steps {}
