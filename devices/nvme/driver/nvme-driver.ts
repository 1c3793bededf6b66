/** The driver of NVM Express controllers as the PCI core sees it, and the doors for kernel users and processes. */
import { Errno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import type { PciDriver, PciErrorVote } from '../../../host/pci/kernel/drivers.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { Process } from '../../../host/process.js';
import { NVME_DEVICE_ID, NVME_VENDOR_ID } from '../spec/registers.js';
import { flushBlocks, transferBlocks } from './nvme-blocks.js';
import { NvmeDev } from './nvme-dev.js';
import { NvmeFile } from './nvme-file.js';
import type { NvmeServices, ScatterEntry } from './nvme-options.js';

export class NvmeDriver implements PciDriver {
  readonly name = 'nvme';
  readonly ids = [{ vendor: NVME_VENDOR_ID, device: NVME_DEVICE_ID }];
  private readonly services: NvmeServices;
  private readonly devices = new Map<PciDevice, { readonly dev: NvmeDev; readonly index: number }>();

  constructor(services: NvmeServices) {
    this.services = services;
  }

  /** The controller under this driver. ENODEV. */
  device(pci: PciDevice): NvmeDev {
    return this.entry(pci).dev;
  }

  /** See NvmeDev.start for what is refused. */
  *probe(pci: PciDevice): Steps {
    const dev = new NvmeDev(pci, this.services);
    yield* dev.start();
    this.devices.set(pci, { dev, index: this.freeIndex() });
  }

  *remove(pci: PciDevice): Steps {
    const { dev } = this.entry(pci);
    this.devices.delete(pci);
    yield* dev.stop();
  }

  *resetPrepare(pci: PciDevice): Steps {
    yield* this.device(pci).prepareReset();
  }

  *resetDone(pci: PciDevice): Steps {
    yield* this.device(pci).finishReset();
  }

  /** A fatal error stops the controller until the link is reset; after any other it works on. */
  *errorDetected(pci: PciDevice, severity: 'nonfatal' | 'fatal'): Steps<PciErrorVote> {
    if (severity === 'nonfatal') return 'can-recover';
    yield* this.device(pci).prepareReset();
    return 'need-reset';
  }

  *slotReset(pci: PciDevice): Steps<PciErrorVote> {
    const dev = this.device(pci);
    yield* dev.finishReset();
    return dev.state === 'live' ? 'recovered' : 'disconnect';
  }

  /** A process opens the namespace with O_DIRECT. ENODEV. */
  // oxlint-disable-next-line require-yield -- opening a device may sleep
  *open(pci: PciDevice, process: Process): Steps<NvmeFile> {
    const { dev, index } = this.entry(pci);
    if (!dev.usable) throw new Errno('ENODEV', `${pci.name} is ${dev.state}`);
    const file = new NvmeFile(dev, process, `/dev/nvme${index}n1`);
    file.fd = process.open(file);
    dev.files.add(file);
    return file;
  }

  /** Blocks from `lba` on into physical memory. ENODEV, EINVAL, EIO, what the DMA API refuses. */
  *readBlocks(pci: PciDevice, lba: number, list: readonly ScatterEntry[], queue = 0): Steps {
    yield* transferBlocks(this.device(pci), { write: false, lba, list, queue });
  }

  /** Physical memory onto blocks. @param options fua: on the medium when this returns */
  *writeBlocks(pci: PciDevice, lba: number, list: readonly ScatterEntry[], options: { readonly queue?: number; readonly fua?: boolean } = {}): Steps {
    yield* transferBlocks(this.device(pci), { write: true, lba, list, queue: options.queue ?? 0, fua: options.fua ?? false });
  }

  *flush(pci: PciDevice, queue = 0): Steps {
    yield* flushBlocks(this.device(pci), queue);
  }

  private entry(pci: PciDevice): { readonly dev: NvmeDev; readonly index: number } {
    const entry = this.devices.get(pci);
    if (entry === undefined) throw new Errno('ENODEV', `${pci.name} is not bound to nvme`);
    return entry;
  }

  /** Lowest number that no device has. */
  private freeIndex(): number {
    const taken = new Set([...this.devices.values()].map(({ index }) => index));
    for (let index = 0; ; index++) if (!taken.has(index)) return index;
  }
}
