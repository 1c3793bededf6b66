/**
 * The descriptor through which a device's state leaves or enters (`data_fd` of VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE):
 * a stream without position. Saving: reads take bytes; in PRE_COPY a read that finds none is ENOMSG, since more may
 * come, in STOP_COPY it is the end. Resuming: writes add bytes. A file whose session has ended gives ENODEV
 * (include/uapi/linux/vfio.h; drivers/vfio/pci/mlx5/main.c). Left out: poll.
 */
import { Errno } from '../../sim/errno.js';
import type { IoctlFile, Process } from '../../host/process.js';
import type { Steps } from '../../sim/task.js';
import { VFIO_MIG_GET_PRECOPY_INFO } from '../uapi/ioctl.js';
import { PRECOPY_INFO } from '../uapi/migration.js';
import { checkFlags, recordFromUser, wordsToUser } from '../uapi/user-memory.js';

/** VFIO_MIG_GET_PRECOPY_INFO as values. */
export interface PrecopyInfo {
  /** Of the first copy, not read yet. */
  readonly initialBytes: number;
  /** Changed since. */
  readonly dirtyBytes: number;
}

/** What a saving file reads from. */
export interface SaveSource {
  /** Bytes that changed since the last call, empty without; only before the final part is there. */
  more(): Steps<Uint8Array>;
}

export class MigrationDataFile implements IoctlFile {
  readonly name: string;
  readonly direction: 'save' | 'resume';
  private chunks: Uint8Array[] = [];
  private head = 0;
  private stored = 0;
  /** Of `stored`, what belongs to the first copy. */
  private initial = 0;
  private final = false;
  private disabled = false;
  private readonly limitBytes: number;
  private readonly source: SaveSource | undefined;

  /** @param limitBytes most that a resuming file takes */
  constructor(name: string, direction: 'save' | 'resume', limitBytes: number, source?: SaveSource) {
    this.name = name;
    this.direction = direction;
    this.limitBytes = limitBytes;
    this.source = source;
  }

  /** Bytes in the file, not read yet or not loaded yet. */
  get pendingBytes(): number {
    return this.stored;
  }

  /** Bytes read, up to the target's length; 0 at the end. ENODEV session over, EINVAL a resuming file, ENOMSG nothing now, more may come. */
  *read(target: Uint8Array): Steps<number> {
    this.check('save');
    if (target.length === 0) return 0;
    if (this.stored === 0 && !this.final) {
      const more = yield* this.source!.more();
      // the device may have left the state meanwhile
      this.check('save');
      this.append(more, false);
    }
    if (this.stored === 0 && !this.final) throw new Errno('ENOMSG', `${this.name}: all that is known of the running device has been read`);
    return this.take(target);
  }

  /** Bytes written. ENODEV session over, EINVAL a saving file, ENOMEM more than a state of this device can be. */
  // oxlint-disable-next-line require-yield -- as read
  *write(source: Uint8Array): Steps<number> {
    this.check('resume');
    if (this.stored + source.length > this.limitBytes) {
      throw new Errno('ENOMEM', `${this.name}: ${this.stored + source.length} bytes are more than the ${this.limitBytes} of a state`);
    }
    this.append(source.slice(), false);
    return source.length;
  }

  /** EINVAL outside of PRE_COPY. */
  precopyInfo(): PrecopyInfo {
    this.check('save');
    if (this.final) throw new Errno('EINVAL', `${this.name}: the device is not in PRE_COPY`);
    return { initialBytes: this.initial, dirtyBytes: this.stored - this.initial };
  }

  /** VFIO_MIG_GET_PRECOPY_INFO: EINVAL as `precopyInfo`, argsz, flags; ENODEV; EFAULT. ENOTTY anything else. */
  *ioctl(caller: Process, command: number, argument: number): Steps<number> {
    if (command !== VFIO_MIG_GET_PRECOPY_INFO) throw new Errno('ENOTTY', `${this.name} knows no command ${command}`);
    const record = yield* recordFromUser(caller, argument, PRECOPY_INFO);
    checkFlags(PRECOPY_INFO.name, PRECOPY_INFO.f.flags.get(record), 0);
    const { initialBytes, dirtyBytes } = this.precopyInfo();
    PRECOPY_INFO.f.initial_bytes.set(record, initialBytes);
    PRECOPY_INFO.f.dirty_bytes.set(record, dirtyBytes);
    yield* wordsToUser(caller, argument, record);
    return 0;
  }

  /** The device goes on without the file when the descriptor is closed early. */
  // oxlint-disable-next-line require-yield -- OpenFile.release may sleep
  *release(): Steps {
    this.disable();
  }

  /** @internal adds what the device has written; after the final part there is no more */
  append(bytes: Uint8Array, initial: boolean, final = false): void {
    if (bytes.length > 0) this.chunks.push(bytes);
    this.stored += bytes.length;
    if (initial) this.initial += bytes.length;
    if (final) this.final = true;
  }

  /** @internal everything that was written */
  all(): Uint8Array {
    const bytes = new Uint8Array(this.stored);
    let at = 0;
    for (const chunk of this.chunks) {
      bytes.set(chunk, at);
      at += chunk.length;
    }
    return bytes;
  }

  /** @internal the device has left the state to which the file belongs */
  disable(): void {
    this.disabled = true;
    this.chunks = [];
    this.stored = this.initial = this.head = 0;
  }

  private take(target: Uint8Array): number {
    let done = 0;
    while (done < target.length && this.chunks.length > 0) {
      const chunk = this.chunks[0]!;
      const count = Math.min(target.length - done, chunk.length - this.head);
      target.set(chunk.subarray(this.head, this.head + count), done);
      done += count;
      this.head += count;
      if (this.head === chunk.length) {
        this.chunks.shift();
        this.head = 0;
      }
    }
    this.stored -= done;
    this.initial = Math.max(0, this.initial - done);
    return done;
  }

  private check(direction: 'save' | 'resume'): void {
    if (this.disabled) throw new Errno('ENODEV', `${this.name}: the device has left the state of this file`);
    if (this.direction !== direction) throw new Errno('EINVAL', `${this.name} is for ${this.direction === 'save' ? 'reading' : 'writing'} only`);
  }
}
