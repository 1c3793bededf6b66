/**
 * A process's door to the namespace, as a block device opened with O_DIRECT: the pages of a buffer are pinned and mapped for
 * the length of one read or write, and the caller sleeps until the data is there. Alignment as O_DIRECT asks for it: address,
 * offset and size are multiples of the block.
 */
import { PAGE_SIZE } from '../../../sim/address.js';
import { Errno } from '../../../sim/errno.js';
import { WaitQueue, type Steps } from '../../../sim/task.js';
import type { Mm } from '../../../host/mm/mm.js';
import type { OpenFile, Process } from '../../../host/process.js';
import { flushBlocks, transferBlocks } from './nvme-blocks.js';
import type { NvmeDev } from './nvme-dev.js';
import type { ScatterEntry } from './nvme-options.js';

export class NvmeFile implements OpenFile {
  readonly name: string;
  /** Put into the process's table; close it there. */
  fd = -1;
  private readonly dev: NvmeDev;
  /** Of the process that opened it: its memory is what reads and writes name, also when a child holds the file. */
  private readonly mm: Mm;
  private readonly queue: number;
  private readonly idle: WaitQueue;
  private inFlight = 0;
  private orphaned = false;
  private released = false;

  /** @param name device file, `/dev/nvme0n1` */
  constructor(dev: NvmeDev, process: Process, name: string) {
    this.dev = dev;
    this.mm = process.mm;
    // the process stays on one processor, which has one pair of queues
    this.queue = process.pid;
    this.name = name;
    this.idle = new WaitQueue(dev.services.scheduler, `requests of ${this.name}`);
  }

  /** The controller or its driver is gone. */
  get gone(): boolean {
    return this.orphaned || !this.dev.usable;
  }

  get sizeBytes(): number {
    return this.dev.sizeBytes;
  }

  /**
   * Reads into the process's memory at `address`; answers how many bytes, fewer where the device ends.
   * @throws Errno EINVAL not aligned to blocks; EFAULT memory that the process may not write; ENOMEM; EIO; ENODEV gone
   */
  pread(address: number, offset: number, sizeBytes: number): Steps<number> {
    return this.counted(false, address, offset, sizeBytes);
  }

  /** Writes the process's memory at `address`. Errors as `pread`; ENOSPC behind the end of the device. */
  pwrite(address: number, offset: number, sizeBytes: number): Steps<number> {
    return this.counted(true, address, offset, sizeBytes);
  }

  /** Everything written is on the medium when this returns. EIO, ENODEV. */
  *fsync(): Steps {
    this.check();
    yield* this.during(() => flushBlocks(this.dev, this.queue));
  }

  /** Waits for what is in flight. */
  *release(): Steps {
    if (this.released) return;
    this.released = true;
    yield* this.idle.until(() => this.inFlight === 0);
    this.dev.files.delete(this);
  }

  /** The driver lets the device go: no further requests, and those in flight have ended when this returns. */
  *orphan(): Steps {
    this.orphaned = true;
    yield* this.idle.until(() => this.inFlight === 0);
  }

  private *counted(write: boolean, address: number, offset: number, sizeBytes: number): Steps<number> {
    this.check();
    const blockBytes = 2 ** this.dev.identity.blockShift;
    if ([address, offset, sizeBytes].some((value) => value % blockBytes !== 0 || value < 0)) {
      throw new Errno('EINVAL', `${this.name}: address, offset and size of a direct ${write ? 'write' : 'read'} are multiples of ${blockBytes}`);
    }
    const bytes = Math.min(sizeBytes, Math.max(0, this.sizeBytes - offset));
    if (bytes === 0 && write && sizeBytes > 0) throw new Errno('ENOSPC', `${this.name} ends at ${this.sizeBytes}`);
    if (bytes > 0) yield* this.during(() => this.transfer(write, address, offset, bytes));
    return bytes;
  }

  private *during(steps: () => Steps): Steps {
    this.inFlight++;
    try {
      yield* steps();
    } finally {
      this.inFlight--;
      this.idle.wakeAll();
    }
  }

  private *transfer(write: boolean, address: number, offset: number, sizeBytes: number): Steps {
    const { mm, dev } = this, inside = address % PAGE_SIZE;
    let pages: readonly number[] = yield* mm.pinPages(address - inside, Math.ceil((inside + sizeBytes) / PAGE_SIZE), !write);
    const unpin = (): void => {
      mm.unpinPages(pages);
      pages = [];
    };
    try {
      yield* transferBlocks(dev, { write, lba: offset / 2 ** dev.identity.blockShift, list: piecesOf(pages, inside, sizeBytes), queue: this.queue, onUnmapped: unpin });
    } finally {
      unpin();
    }
  }

  private check(): void {
    if (this.released) throw new Errno('EBADF', `${this.name} was closed`);
    if (this.gone) throw new Errno('ENODEV', `${this.name}: the device is gone`);
  }
}

/** Joins pages that follow each other. @param inside offset of the first byte in the first page */
function piecesOf(pages: readonly number[], inside: number, sizeBytes: number): ScatterEntry[] {
  const list: { physical: number; length: number }[] = [];
  let left = sizeBytes;
  for (const [i, page] of pages.entries()) {
    const physical = i === 0 ? page + inside : page, length = Math.min(left, PAGE_SIZE - (physical % PAGE_SIZE)), last = list.at(-1);
    if (last !== undefined && last.physical + last.length === physical) last.length += length;
    else list.push({ physical, length });
    left -= length;
  }
  return list;
}
