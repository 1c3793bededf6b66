/** The controller's registers as its driver uses them: what it can do, enabling, disabling, shutting down (drivers/nvme/host/core.c). */
import { Errno } from '../../../sim/errno.js';
import type { Mmio } from '../../../sim/mmio.js';
import { sleep, type Steps } from '../../../sim/task.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { CAP, CC, CC_EN, CQES, CSTS_CFS, CSTS_RDY, CSTS_SHST, CSTS_SHST_COMPLETE, REG, SHN_NORMAL, SQES } from '../spec/registers.js';
import type { CoherentMemory, NvmeServices } from './nvme-options.js';

const GONE = 0xffff_ffff;
const UNIT_NS = 500_000_000;
/** Between two looks at the status register. */
const POLL_NS = 1_000_000;
/** `nvme_core.shutdown_timeout` */
const SHUTDOWN_NS = 5_000_000_000;

export class NvmeHardware {
  readonly mmio: Mmio;
  readonly queueEntries: number;
  readonly stride: number;
  private readonly pci: PciDevice;
  private readonly services: NvmeServices;
  private readonly readyNs: number;
  private cc = 0;

  /** ENODEV when nobody answers, or the controller needs larger pages. */
  constructor(pci: PciDevice, mmio: Mmio, services: NvmeServices) {
    this.pci = pci;
    this.mmio = mmio;
    this.services = services;
    if (this.status === GONE) throw new Errno('ENODEV', `${pci.name}: registers read as ones`);
    const cap = [mmio.read(REG.CAP, 8), mmio.high];
    this.queueEntries = CAP.f.MQES.get(cap) + 1;
    this.stride = CAP.f.DSTRD.get(cap);
    this.readyNs = (CAP.f.TO.get(cap) + 1) * UNIT_NS;
    if (CAP.f.MPSMIN.get(cap) > 0) throw new Errno('ENODEV', `${pci.name}: minimum page size 2^${12 + CAP.f.MPSMIN.get(cap)} is larger than 4 KiB`);
  }

  /** CSTS; all ones when the controller is gone. */
  get status(): number {
    return this.mmio.read(REG.CSTS, 4);
  }

  /** The controller has given up, or is gone. */
  get failed(): boolean {
    return (this.status & CSTS_CFS) !== 0;
  }

  get gone(): boolean {
    return this.status === GONE;
  }

  /** Clears CC.EN and waits until the controller has stopped. ENODEV it does not, or is gone. */
  *disable(): Steps {
    this.cc &= ~(CC_EN | CC.encode({ SHN: 3 })[0]!);
    this.mmio.write(REG.CC, 4, this.cc);
    yield* this.waitReady(false);
  }

  /** Sets the admin queues and CC.EN, and waits. ENODEV the controller does not become ready. */
  *enable(depth: number, submissions: CoherentMemory, completions: CoherentMemory): Steps {
    this.mmio.write(REG.AQA, 4, (depth - 1) | ((depth - 1) << 16));
    this.write64(REG.ASQ, submissions.address);
    this.write64(REG.ACQ, completions.address);
    this.cc = CC.encode({ IOSQES: SQES, IOCQES: CQES })[0]!;
    this.mmio.write(REG.CC, 4, this.cc);
    this.cc |= CC_EN;
    this.mmio.write(REG.CC, 4, this.cc);
    yield* this.waitReady(true);
  }

  /** Normal shutdown; gives up after 5 s with a line in the log. */
  *shutdown(): Steps {
    this.cc |= CC.encode({ SHN: SHN_NORMAL })[0]!;
    this.mmio.write(REG.CC, 4, this.cc);
    for (let waited = 0; (this.status & CSTS_SHST) !== CSTS_SHST_COMPLETE; waited += POLL_NS) {
      if (this.gone) return;
      if (waited >= SHUTDOWN_NS) {
        this.services.log.log('err', `nvme ${this.pci.name}: Device shutdown incomplete; abort shutdown`);
        return;
      }
      yield* sleep(this.services.clock, POLL_NS);
    }
  }

  private *waitReady(ready: boolean): Steps {
    for (let waited = 0; ; waited += POLL_NS) {
      const status = this.status;
      if (status === GONE) throw new Errno('ENODEV', `${this.pci.name}: the controller is gone`);
      if (((status & CSTS_RDY) !== 0) === ready) return;
      if (ready && (status & CSTS_CFS) !== 0) throw new Errno('ENODEV', `${this.pci.name}: the controller refuses to be enabled (CSTS=0x${status.toString(16)})`);
      if (waited >= this.readyNs) {
        throw new Errno('ENODEV', `${this.pci.name}: Device not ready; aborting ${ready ? 'initialisation' : 'reset'}, CSTS=0x${status.toString(16)}`);
      }
      yield* sleep(this.services.clock, POLL_NS);
    }
  }

  private write64(offset: number, value: number): void {
    this.mmio.write(offset, 8, value % 0x1_0000_0000, Math.floor(value / 0x1_0000_0000));
  }
}
