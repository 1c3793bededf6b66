/**
 * Single root I/O virtualization: the physical function's capability and the virtual functions it brings to life
 * (PCIe 6.0 chapter 9). Virtual functions appear when VF Enable is set and are gone when it is cleared. Their BARs
 * are slices of the capability's BARs. Left out: migration, ARI-dependent numbering, page sizes above 4 KiB.
 */
import { assert } from '../../../sim/assert.js';
import {
  PCI_EXT_CAP_ID_SRIOV, PCI_EXT_CAP_SRIOV_SIZEOF, PCI_SRIOV_BAR, PCI_SRIOV_CAP, PCI_SRIOV_CTRL, PCI_SRIOV_CTRL_ARI, PCI_SRIOV_CTRL_MSE,
  PCI_SRIOV_CTRL_VFE, PCI_SRIOV_FUNC_LINK, PCI_SRIOV_INITIAL_VF, PCI_SRIOV_NUM_VF, PCI_SRIOV_STATUS, PCI_SRIOV_SUP_PGSIZE,
  PCI_SRIOV_SYS_PGSIZE, PCI_SRIOV_TOTAL_VF, PCI_SRIOV_VF_DID, PCI_SRIOV_VF_OFFSET, PCI_SRIOV_VF_STRIDE,
} from '../spec/index.js';
import { Bar, type BarOptions } from './bar.js';
import type { BarDecode, PciFunction } from './pci-function.js';

export interface SrIovOptions {
  readonly totalVfs: number;
  readonly vfDeviceId: number;
  /** Routing id of the first virtual function minus the physical function's; 1 unless given. */
  readonly firstVfOffset?: number;
  readonly vfStride?: number;
  /** BARs of one virtual function; `mmio` is given by the function itself. */
  readonly vfBars?: readonly Omit<BarOptions, 'mmio'>[];
  /** Builds virtual function `index` (from 0) with `physfn` set to the argument; called at every VF Enable. */
  readonly createVf: (physfn: PciFunction, index: number) => PciFunction;
}

export class SrIov {
  readonly offset: number;
  /** Virtual functions that exist now; VF n stands at index n - 1. */
  readonly functions: PciFunction[] = [];
  readonly firstVfOffset: number;
  readonly vfStride: number;
  private readonly physfn: PciFunction;
  private readonly options: SrIovOptions;
  private readonly bars: Bar[];

  constructor(physfn: PciFunction, options: SrIovOptions) {
    const { config } = physfn;
    this.physfn = physfn;
    this.options = options;
    this.firstVfOffset = options.firstVfOffset ?? 1;
    this.vfStride = options.vfStride ?? 1;
    assert(options.totalVfs >= 1 && options.totalVfs <= 256, `${options.totalVfs} virtual functions`);
    const at = config.addExtCapability(PCI_EXT_CAP_ID_SRIOV, 1, PCI_EXT_CAP_SRIOV_SIZEOF);
    this.offset = at;
    config.define(at + PCI_SRIOV_CAP, 4, 0);
    config.define(at + PCI_SRIOV_CTRL, 2, 0, { rw: PCI_SRIOV_CTRL_VFE | PCI_SRIOV_CTRL_MSE | PCI_SRIOV_CTRL_ARI });
    config.define(at + PCI_SRIOV_STATUS, 2, 0);
    config.define(at + PCI_SRIOV_INITIAL_VF, 2, options.totalVfs);
    config.define(at + PCI_SRIOV_TOTAL_VF, 2, options.totalVfs);
    config.define(at + PCI_SRIOV_NUM_VF, 2, 0, { rw: 0xffff });
    config.define(at + PCI_SRIOV_FUNC_LINK, 1, 0);
    config.define(at + PCI_SRIOV_VF_OFFSET, 2, this.firstVfOffset);
    config.define(at + PCI_SRIOV_VF_STRIDE, 2, this.vfStride);
    config.define(at + PCI_SRIOV_VF_DID, 2, options.vfDeviceId);
    // section 9.3.3.13: 4 KiB and five larger sizes are required; only 4 KiB can be chosen here
    config.define(at + PCI_SRIOV_SUP_PGSIZE, 4, 0x553);
    config.define(at + PCI_SRIOV_SYS_PGSIZE, 4, 1);
    this.bars = (options.vfBars ?? []).map((bar) => new Bar(config, bar, at + PCI_SRIOV_BAR));
    for (const bar of this.bars) config.onWrite(bar.offset, 4, () => physfn.onRoutingChange?.('windows'));
    for (const bar of this.bars) if (bar.is64) config.onWrite(bar.offset + 4, 4, () => physfn.onRoutingChange?.('windows'));
    config.onWrite(at + PCI_SRIOV_NUM_VF, 2, (_written, previous) => {
      // undefined while VF Enable is set, and above TotalVFs (section 9.3.3.7): kept as it was
      if (this.enabled || config.get(at + PCI_SRIOV_NUM_VF, 2) > options.totalVfs) config.set(at + PCI_SRIOV_NUM_VF, 2, previous);
    });
    config.onWrite(at + PCI_SRIOV_CTRL, 2, (_written, previous) => this.writeControl(previous));
  }

  get enabled(): boolean {
    return (this.physfn.config.get(this.offset + PCI_SRIOV_CTRL, 2) & PCI_SRIOV_CTRL_VFE) !== 0;
  }

  get memoryEnabled(): boolean {
    return (this.physfn.config.get(this.offset + PCI_SRIOV_CTRL, 2) & PCI_SRIOV_CTRL_MSE) !== 0;
  }

  /** Requester id of a virtual function, modulo 2^16 (section 9.2.1.2). */
  requesterIdOf(index: number, physfnId: number): number {
    return (physfnId + this.firstVfOffset + index * this.vfStride) & 0xffff;
  }

  decodesOf(vf: PciFunction): BarDecode[] {
    const index = this.functions.indexOf(vf);
    return this.bars.flatMap((bar) => {
      const start = bar.address, mmio = vf.window(bar.index);
      return start === undefined || mmio === undefined ? [] : [{ bar: bar.index, start: start + index * bar.sizeBytes, sizeBytes: bar.sizeBytes, mmio }];
    });
  }

  /** Virtual functions are gone: VF Enable cleared, the physical function reset or removed. */
  disable(): void {
    const gone = this.functions.splice(0);
    for (const vf of gone) {
      vf.bus = undefined;
      vf.removed();
    }
  }

  private writeControl(previous: number): void {
    const was = (previous & PCI_SRIOV_CTRL_VFE) !== 0;
    if (this.enabled && !was) {
      const count = this.physfn.config.get(this.offset + PCI_SRIOV_NUM_VF, 2);
      for (let index = 0; index < count; index++) {
        const vf = this.options.createVf(this.physfn, index);
        vf.bus = this.physfn.bus;
        this.functions.push(vf);
      }
    } else if (!this.enabled && was) {
      this.disable();
    }
    this.physfn.onRoutingChange?.('tree');
  }
}
