/**
 * Descriptors that came from another process, and what may be done with each. None is believed to be what its sender
 * says: memory is a regular file, and it is mapped only when it is sealed against shrinking and long enough; files
 * that may shrink are read and written (`file-window.ts`); files of a file system that some process serves (FUSE, a
 * network) could make this process wait for ever and are not touched. An eventfd is what the kernel calls one.
 */
import { fstatSync, readFileSync, readlinkSync } from 'node:fs';
import { hex } from '../../../sim/address.js';
import { Errno } from '../../../sim/errno.js';
import type { Enter, MemoryWindow, ReceivedDescriptor, RemoteSignal } from '../transport.js';
import { F_GET_SEALS, F_GETFL, F_SEAL_SHRINK, O_ACCMODE, O_RDONLY, O_WRONLY, type BugReport, type PosixCalls } from './calls.js';
import { FileWindow } from './file-window.js';
import { MappedWindow } from './mapping.js';
import { PosixSignal } from './signal.js';

/** File systems whose files answer without anybody's help. */
const LOCAL_FILE_SYSTEMS: ReadonlySet<string> = new Set(['tmpfs', 'devtmpfs', 'ramfs', 'hugetlbfs', 'ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'overlay']);

/** How memory is reached: mapped where that is safe, always through the file, or never but by messages. */
export type WindowPolicy = 'map-sealed' | 'file' | 'messages';

export interface DescriptorOptions {
  readonly calls: PosixCalls;
  readonly policy: WindowPolicy;
  /** What the client signals goes in through this. */
  readonly enter: Enter;
  readonly onBug: BugReport;
}

export class PosixDescriptor implements ReceivedDescriptor {
  private readonly options: DescriptorOptions;
  private readonly calls: PosixCalls;
  /** -1: given away or closed. */
  private fd: number;

  constructor(fd: number, options: DescriptorOptions) {
    this.options = options;
    this.calls = options.calls;
    this.fd = fd;
  }

  openWindow(offset: number, sizeBytes: number, writable: boolean): MemoryWindow | undefined {
    const { calls, fd, options: { policy } } = this;
    const seals = calls.fcntl(fd, F_GET_SEALS, 0);
    // memory files have seals; anything else is not even asked for its size before its file system is known
    if (seals < 0 && !isLocalFile(fd)) return undefined;
    if (!fstatSync(fd).isFile()) throw new Errno('EINVAL', 'a descriptor that is no file of memory');
    const access = calls.fcntl(fd, F_GETFL, 0) & O_ACCMODE;
    if (access === O_WRONLY || (writable && access === O_RDONLY)) throw new Errno('EACCES', 'a descriptor that does not give the rights that are announced');
    // seals are never taken away; the size is asked after them
    const length = fstatSync(fd).size;
    if (offset + sizeBytes > length) throw new Errno('EINVAL', `${hex(sizeBytes)} bytes at ${hex(offset)} of a file of ${hex(length)}`);
    if (policy === 'messages') return undefined;
    if (seals >= 0 && (seals & F_SEAL_SHRINK) !== 0 && policy === 'map-sealed') {
      const window = new MappedWindow(calls, fd, offset, sizeBytes, writable);
      this.close();
      return window;
    }
    this.fd = -1;
    return new FileWindow(calls, fd, offset, sizeBytes, writable);
  }

  openSignal(): RemoteSignal {
    const { fd } = this;
    if (!isEventFd(fd)) throw new Errno('EINVAL', 'a descriptor that is no eventfd');
    this.fd = -1;
    return new PosixSignal(fd, this.options);
  }

  close(): void {
    if (this.fd >= 0) this.calls.close(this.fd);
    this.fd = -1;
  }
}

/** What the kernel calls the file; empty when it does not say. Asks no file system. */
function kernelName(fd: number): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '';
  }
}

function isEventFd(fd: number): boolean {
  return kernelName(fd) === 'anon_inode:[eventfd]';
}

/** By the mount that the file is in: asking the file itself could mean to ask a process. EINVAL a pipe, a socket and the like. */
function isLocalFile(fd: number): boolean {
  if (!kernelName(fd).startsWith('/')) throw new Errno('EINVAL', 'a descriptor that is no file of memory');
  const mount = /^mnt_id:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
  // 36 35 98:0 /root /mount/point options [optional fields] - type source options (proc_pid_mountinfo(5))
  const line = readFileSync('/proc/self/mountinfo', 'latin1').split('\n').find((entry) => entry.startsWith(`${mount} `));
  return LOCAL_FILE_SYSTEMS.has(line?.split(' - ')[1]?.split(' ')[0] ?? '');
}
