/**
 * What a process gets from opening a user queue (drivers/dma/idxd/cdev.c): its address space bound to the device, the
 * PASID in the queue when the queue is its own, and one portal page. The last close waits for what is in flight,
 * takes the PASID away and unbinds.
 */
import { Errno } from '../../../sim/errno.js';
import { store32 } from '../../../sim/little-endian.js';
import type { EnqueueResult, Mmio } from '../../../sim/mmio.js';
import type { Steps } from '../../../sim/task.js';
import type { OpenFile, Process } from '../../../host/process.js';
import { DESCRIPTOR_SIZE } from '../spec/descriptor.js';
import { DSA_CMD, PORTAL_LIMITED, PORTAL_SIZE, PORTALS_PER_WQ } from '../spec/registers.js';
import type { IdxdDevice, IdxdWq } from './idxd-device.js';

const PASID_MASK = 0xf_ffff;

/** The mapped portal: what a user instruction does with it. */
export class IdxdPortal {
  readonly dedicated: boolean;
  private readonly window: Mmio;
  private readonly offset: number;
  private readonly pasid: number;
  private mapped = true;

  constructor(window: Mmio, wq: IdxdWq, pasid: number) {
    this.window = window;
    this.dedicated = wq.dedicated;
    this.offset = (wq.index * PORTALS_PER_WQ + PORTAL_LIMITED) * PORTAL_SIZE;
    this.pasid = pasid;
  }

  /**
   * MOVDIR64B to a dedicated queue, ENQCMD to a shared one: then the processor puts the process's PASID and user
   * privilege into the first four bytes (Intel SDM, ENQCMD). EFAULT once the portal is unmapped.
   */
  submit(descriptor: Uint8Array): EnqueueResult {
    if (!this.mapped) throw new Errno('EFAULT', 'the portal is not mapped any more');
    const bytes = descriptor.slice(0, DESCRIPTOR_SIZE);
    if (this.dedicated) {
      this.window.write64(this.offset, bytes);
      return 'accepted';
    }
    store32(bytes, 0, this.pasid & PASID_MASK);
    return this.window.enqueue64(this.offset, bytes);
  }

  unmap(): void {
    this.mapped = false;
  }
}

export class IdxdFile implements OpenFile {
  readonly name: string;
  readonly wq: IdxdWq;
  readonly pasid: number;
  /** mmap of the device file. */
  readonly portal: IdxdPortal;
  /** Put into the process's table; close it there. */
  fd = -1;
  private readonly device: IdxdDevice;
  private released = false;

  constructor(device: IdxdDevice, wq: IdxdWq, pasid: number) {
    this.device = device;
    this.wq = wq;
    this.pasid = pasid;
    this.name = `/dev/dsa/${wq.options.name}`;
    this.portal = new IdxdPortal(device.portalWindow, wq, pasid);
  }

  /** Waits for the PASID's descriptors, takes the PASID out of a dedicated queue, unbinds. */
  *release(): Steps {
    if (this.released) return;
    this.released = true;
    this.portal.unmap();
    const { device, wq, pasid } = this;
    device.files.delete(this);
    yield* wq.lock.lock();
    try {
      if (device.pci.present && !device.halted && wq.enabled) {
        if (wq.dedicated) yield* clearPasid(device, wq);
        else yield* device.hardware.command(DSA_CMD.DRAIN_PASID, pasid);
      } else if (device.pci.present && !device.halted && wq.dedicated) {
        // mm_exit has turned the queue off
        device.hardware.setWqPasid(wq.index, undefined);
        yield* device.enableWq(wq);
      }
      // a device that was pulled out has lost its bonds with its group
      if (device.pci.present) yield* device.services.iommu.svaUnbind(device.pci, pasid);
    } finally {
      wq.users--;
      wq.lock.unlock();
    }
  }
}

function* clearPasid(device: IdxdDevice, wq: IdxdWq): Steps {
  yield* device.drainAndResetWq(wq);
  device.hardware.setWqPasid(wq.index, undefined);
  yield* device.enableWq(wq);
}

/**
 * open(2) of a user queue by a process.
 * @throws Errno EBUSY a dedicated queue is open already; EPERM the queue is the kernel's; ENXIO the device is halted
 * or refuses; what the bind refuses (ENODEV, ENOSPC, EINVAL, …)
 */
export function* openWq(device: IdxdDevice, wq: IdxdWq, process: Process): Steps<IdxdFile> {
  const { name } = wq.options;
  if (wq.options.type !== 'user') throw new Errno('EPERM', `${device.pci.name}: work queue ${name} belongs to the kernel`);
  if (device.halted || !device.pci.present) throw new Errno('ENXIO', `${device.pci.name} is ${device.halted ? 'halted' : 'gone'}`);
  yield* wq.lock.lock();
  try {
    if (wq.dedicated && wq.users > 0) throw new Errno('EBUSY', `${device.pci.name}: dedicated work queue ${name} is open already`);
    const pasid = yield* device.services.iommu.svaBind(device.pci, process.mm, device.pasidExit);
    try {
      if (wq.dedicated) {
        yield* device.drainAndResetWq(wq);
        device.hardware.setWqPasid(wq.index, pasid);
        yield* device.enableWq(wq);
      }
    } catch (error) {
      yield* device.services.iommu.svaUnbind(device.pci, pasid);
      throw error;
    }
    wq.users++;
    const file = new IdxdFile(device, wq, pasid);
    device.files.add(file);
    file.fd = process.open(file);
    return file;
  } finally {
    wq.lock.unlock();
  }
}
