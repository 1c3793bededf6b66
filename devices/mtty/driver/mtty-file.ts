/**
 * What a process gets from opening a port: bytes by programmed I/O, and buffers of its own by DMA. The kernel pins a
 * buffer's pages, maps them through the DMA API, and lets the device work; that is a task of the kernel, so that the
 * pages come back whatever becomes of the process that waits.
 */
import { PAGE_SIZE } from '../../../sim/address.js';
import { Errno } from '../../../sim/errno.js';
import { WaitQueue, type Steps } from '../../../sim/task.js';
import type { Mm } from '../../../host/mm/mm.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { OpenFile, Process } from '../../../host/process.js';
import type { DmaSegment, ScatterEntry } from '../../../iommu/core/dma-api.js';
import type { MttyDriverServices } from './mtty-driver.js';
import type { MttyPort } from './mtty-port.js';

export class MttyFile implements OpenFile {
  readonly name: string;
  readonly port: MttyPort;
  /** Put into the process's table; close it there. */
  fd = -1;
  /** @internal the driver forgets the file */
  onReleased: (() => void) | undefined;
  private readonly pci: PciDevice;
  /** Of the process that opened: its buffers are what transfers name, also when a child holds the file. */
  private readonly mm: Mm;
  private readonly services: MttyDriverServices;
  private readonly quiet: WaitQueue;
  private inFlight = 0;
  private released = false;

  constructor(pci: PciDevice, port: MttyPort, process: Process, services: MttyDriverServices) {
    this.pci = pci;
    this.port = port;
    this.mm = process.mm;
    this.services = services;
    this.name = `/dev/mtty/${pci.name}/${port.index}`;
    this.quiet = new WaitQueue(services.scheduler, `transfers of ${this.name}`);
  }

  /** The device or its driver is gone. */
  get gone(): boolean {
    return this.port.gone || !this.pci.present;
  }

  /** Sends bytes; returns when the last is in the FIFO. What was sent waits for who reads. EIO the device is gone. */
  *write(bytes: Uint8Array): Steps<number> {
    return yield* this.port.write(bytes, this.stopped);
  }

  /** At least one byte, at most `sizeBytes`; sleeps until something has come. EIO. */
  *read(sizeBytes: number): Steps<Uint8Array> {
    const bytes = new Uint8Array(sizeBytes);
    const count = yield* this.port.read(bytes, this.stopped);
    return bytes.subarray(0, count);
  }

  /**
   * Sends `sizeBytes` from one user address through the port to another by DMA; sleeps until they have arrived.
   * @throws Errno EINVAL a size below 1; EFAULT memory that the process may not read or write; ENOMEM; what the DMA API
   * refuses; EIO the device ended early, is gone, or the file was closed meanwhile
   */
  *transfer(sourceAddress: number, targetAddress: number, sizeBytes: number): Steps {
    if (!(sizeBytes >= 1)) throw new Errno('EINVAL', `transfer of ${sizeBytes} bytes`);
    this.check();
    this.inFlight++;
    const task = this.services.scheduler.spawn(`${this.name} transfer`, this.perform(sourceAddress, targetAddress, sizeBytes), { daemon: true, joined: true });
    yield* task.join();
  }

  /** Ends what is under way; nothing is pinned or mapped for this file any more. */
  *release(): Steps {
    if (this.released) return;
    this.released = true;
    this.port.wake();
    yield* this.idle();
    this.onReleased?.();
    if (--this.port.users === 0) this.port.shutDown();
  }

  /** Waits for transfers in flight. */
  idle(): Steps {
    return this.quiet.until(() => this.inFlight === 0);
  }

  private readonly stopped = (): boolean => this.released;

  private *perform(sourceAddress: number, targetAddress: number, sizeBytes: number): Steps {
    const { mm } = this;
    const pinned: number[] = [];
    try {
      const source = yield* pinBuffer(mm, sourceAddress, sizeBytes, false, pinned);
      const target = yield* pinBuffer(mm, targetAddress, sizeBytes, true, pinned);
      yield* this.port.dmaLock.with(() => this.move(source, target, sizeBytes));
    } finally {
      mm.unpinPages(pinned);
      this.inFlight--;
      this.quiet.wakeAll();
    }
  }

  private *move(source: readonly ScatterEntry[], target: readonly ScatterEntry[], sizeBytes: number): Steps {
    const { dma } = this.services;
    this.check();
    const from: readonly DmaSegment[] = yield* dma.dmaMapSg(this.pci, source, 'to-device');
    try {
      const to: readonly DmaSegment[] = yield* dma.dmaMapSg(this.pci, target, 'from-device');
      try {
        yield* this.port.transfer(from, to, sizeBytes, this.stopped);
      } finally {
        yield* dma.dmaUnmapSg(this.pci, to);
      }
    } finally {
      yield* dma.dmaUnmapSg(this.pci, from);
    }
  }

  private check(): void {
    if (this.gone) throw new Errno('EIO', `${this.name}: the device is gone`);
    if (this.released) throw new Errno('EIO', `${this.name} was closed`);
  }
}

/** Pins the pages of a buffer; its bytes as runs of contiguous memory. What was pinned is added to `pinned`. */
function* pinBuffer(mm: Mm, address: number, sizeBytes: number, write: boolean, pinned: number[]): Steps<ScatterEntry[]> {
  const offset = address % PAGE_SIZE;
  const pages = yield* mm.pinPages(address - offset, Math.ceil((offset + sizeBytes) / PAGE_SIZE), write);
  const list: { physical: number; length: number }[] = [];
  let left = sizeBytes;
  for (const [i, page] of pages.entries()) {
    pinned.push(page);
    const physical = i === 0 ? page + offset : page, length = Math.min(left, PAGE_SIZE - (physical % PAGE_SIZE));
    const last = list.at(-1);
    if (last !== undefined && last.physical + last.length === physical) last.length += length;
    else list.push({ physical, length });
    left -= length;
  }
  return list;
}
