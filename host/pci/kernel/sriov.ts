/**
 * The SR-IOV capability of a physical function as the kernel drives it (PCIe Base 6.0 chapter 9; drivers/pci/iov.c).
 * The bytes only; `PciCore` makes the VFs' device objects. Left out: VF migration, resizable VF BARs, ARI.
 */
import { Errno } from '../../../sim/errno.js';
import { sleep } from '../../../sim/task.js';
import type { Clock } from '../../../sim/clock.js';
import type { Steps } from '../../../sim/task.js';
import {
  PCI_EXT_CAP_ID_SRIOV, PCI_SRIOV_BAR, PCI_SRIOV_CTRL, PCI_SRIOV_CTRL_MSE, PCI_SRIOV_CTRL_VFE, PCI_SRIOV_INITIAL_VF,
  PCI_SRIOV_NUM_BARS, PCI_SRIOV_NUM_VF, PCI_SRIOV_SUP_PGSIZE, PCI_SRIOV_SYS_PGSIZE, PCI_SRIOV_TOTAL_VF, PCI_SRIOV_VF_DID,
  PCI_SRIOV_VF_OFFSET, PCI_SRIOV_VF_STRIDE,
} from '../spec/index.js';
import { programBar, sizeBars } from './bars.js';
import { updateWord } from './config-access.js';
import type { BarResource } from './bars.js';
import type { PciFunctionDevice } from './function-device.js';

const MS = 1_000_000;
/** VFs must answer 100 ms after VF Enable was set, and be silent 1 s after it was cleared. */
export const VF_ENABLE_WAIT_NS = 100 * MS;
export const VF_DISABLE_WAIT_NS = 1_000 * MS;

export class Sriov {
  readonly totalVfs: number;
  readonly vfDeviceId: number;
  /** The highest bus number that a VF can get. */
  readonly lastBus: number;
  /** VF BARs, each for `totalVfs` functions back to back. */
  readonly bars: readonly BarResource[];
  /** VFs that exist, by number from 0. */
  readonly functions: PciFunctionDevice[] = [];
  private readonly pf: PciFunctionDevice;
  private readonly clock: Clock;
  private readonly at: number;
  private readonly pageSize: number;
  private numVfs = 0;

  /** Undefined without the capability, without VFs or without a page size of 4 KiB or more. Sizes the VF BARs. */
  static find(pf: PciFunctionDevice, clock: Clock): Sriov | undefined {
    const at = pf.findExtCapability(PCI_EXT_CAP_ID_SRIOV);
    if (at === undefined || pf.config.read(at + PCI_SRIOV_TOTAL_VF, 2) === 0) return undefined;
    const supported = pf.config.read(at + PCI_SRIOV_SUP_PGSIZE, 4);
    return supported === 0 ? undefined : new Sriov(pf, clock, at, (supported & -supported) >>> 0);
  }

  private constructor(pf: PciFunctionDevice, clock: Clock, at: number, pageSize: number) {
    this.pf = pf;
    this.clock = clock;
    this.at = at;
    this.pageSize = pageSize;
    pf.config.write(at + PCI_SRIOV_CTRL, 2, 0);
    this.totalVfs = pf.config.read(at + PCI_SRIOV_TOTAL_VF, 2);
    this.vfDeviceId = pf.config.read(at + PCI_SRIOV_VF_DID, 2);
    pf.config.write(at + PCI_SRIOV_SYS_PGSIZE, 4, pageSize);
    this.bars = sizeBars(pf.config, at + PCI_SRIOV_BAR, PCI_SRIOV_NUM_BARS, this.totalVfs);
    // offset and stride may depend on NumVFs (section 9.3.3.9)
    this.writeNumVfs(this.totalVfs);
    this.lastBus = this.routingId(this.totalVfs - 1) >> 8;
    this.writeNumVfs(0);
  }

  get enabledVfs(): number {
    return this.numVfs;
  }

  /** Requester id of a VF for the current NumVFs. */
  routingId(index: number): number {
    const offset = this.pf.config.read(this.at + PCI_SRIOV_VF_OFFSET, 2);
    const stride = this.pf.config.read(this.at + PCI_SRIOV_VF_STRIDE, 2);
    return (this.pf.sourceId + offset + stride * index) & 0xffff;
  }

  /**
   * Switches `count` VFs on; their config spaces answer afterwards. EINVAL when VFs are enabled or there are not that
   * many, EIO when InitialVFs contradicts TotalVFs, ENOMEM without an address for each VF BAR or beyond `lastBus`.
   */
  *enable(count: number, lastBus: number): Steps {
    const { name, config } = this.pf;
    if (this.numVfs !== 0) throw new Errno('EINVAL', `SR-IOV: ${name} has ${this.numVfs} VFs enabled already`);
    if (config.read(this.at + PCI_SRIOV_INITIAL_VF, 2) !== this.totalVfs) {
      throw new Errno('EIO', `SR-IOV: InitialVFs of ${name} differs from TotalVFs ${this.totalVfs}`);
    }
    if (count < 1 || count > this.totalVfs) throw new Errno('EINVAL', `SR-IOV: ${name} has ${this.totalVfs} VFs, ${count} asked for`);
    const missing = this.bars.find((bar) => bar.start === undefined);
    if (missing !== undefined) throw new Errno('ENOMEM', `SR-IOV: VF BAR ${missing.index} of ${name} has no address`);
    this.writeNumVfs(count);
    const bus = this.routingId(count - 1) >> 8;
    if (bus > lastBus) {
      this.writeNumVfs(0);
      throw new Errno('ENOMEM', `SR-IOV: can't enable ${count} VFs of ${name} (bus ${bus.toString(16)} out of range, last is ${lastBus.toString(16)})`);
    }
    this.numVfs = count;
    this.setEnabled(true);
    yield* sleep(this.clock, VF_ENABLE_WAIT_NS);
  }

  /** Switches all VFs off. */
  *disable(): Steps {
    this.setEnabled(false);
    yield* sleep(this.clock, VF_DISABLE_WAIT_NS);
    this.numVfs = 0;
    this.writeNumVfs(0);
  }

  /** After a reset of the PF: VF BARs, page size, NumVFs, VF Enable (`sriov_restore_state`). */
  *restore(): Steps {
    if ((this.pf.config.read(this.at + PCI_SRIOV_CTRL, 2) & PCI_SRIOV_CTRL_VFE) !== 0) return;
    for (const bar of this.bars) programBar(this.pf.config, bar);
    this.pf.config.write(this.at + PCI_SRIOV_SYS_PGSIZE, 4, this.pageSize);
    this.writeNumVfs(this.numVfs);
    if (this.numVfs === 0) return;
    this.setEnabled(true);
    yield* sleep(this.clock, VF_ENABLE_WAIT_NS);
  }

  private setEnabled(on: boolean): void {
    const bits = PCI_SRIOV_CTRL_VFE | PCI_SRIOV_CTRL_MSE;
    updateWord(this.pf.config, this.at + PCI_SRIOV_CTRL, on ? 0 : bits, on ? bits : 0);
  }

  private writeNumVfs(count: number): void {
    this.pf.config.write(this.at + PCI_SRIOV_NUM_VF, 2, count);
  }
}
