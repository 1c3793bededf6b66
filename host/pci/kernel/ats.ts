/**
 * ATS, PRI and PASID of one function as the kernel enables them: which refusals, in which order, and which bytes
 * (drivers/pci/ats.c, v5.10; requirements A1, A2, A8, section 3.4, E36, E37, E38). A VF has its own ATS control but
 * the PF's smallest translation unit, and shares the PF's PRI and PASID altogether (PCIe Base 6.0 sections 9.3.7.1,
 * 9.3.7.11, 9.3.7.14).
 *
 * The kernel remembers what it enabled and does not ask the bytes: a reset clears them, `restore…` writes them
 * again. Left out: the ACS check on the path that v6.2 added to enabling PASID.
 */
import { Errno } from '../../../sim/errno.js';
import {
  PCI_ATS_CAP, PCI_ATS_CAP_QDEP, PCI_ATS_CTRL, PCI_ATS_CTRL_ENABLE, PCI_ATS_MAX_QDEP, PCI_ATS_MIN_STU, PCI_EXT_CAP_ID_ATS,
  PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_ID_PRI, PCI_PASID_CAP, PCI_PASID_CAP_EXEC, PCI_PASID_CAP_PRIV, PCI_PASID_CAP_WIDTH,
  PCI_PASID_CTRL, PCI_PASID_CTRL_ENABLE, PCI_PRI_ALLOC_REQ, PCI_PRI_CTRL, PCI_PRI_CTRL_ENABLE, PCI_PRI_CTRL_RESET,
  PCI_PRI_MAX_REQ, PCI_PRI_STATUS, PCI_PRI_STATUS_PASID, PCI_PRI_STATUS_STOPPED,
} from '../spec/index.js';
import { updateWord } from './config-access.js';
import type { ConfigWindow } from './pci-device.js';

export interface TranslationFeaturesOptions {
  readonly name: string;
  readonly config: ConfigWindow;
  readonly findExtCapability: (id: number) => number | undefined;
  /** Of the physical function, when this is a VF. */
  readonly physfn: TranslationFeatures | undefined;
  /** False behind an external-facing port: ATS would let the device pick physical addresses. */
  readonly trusted: boolean;
  /** End-end TLP prefixes pass from here to the root complex. */
  readonly prefixPath: boolean;
  readonly defects: ReadonlySet<string>;
}

export class TranslationFeatures {
  atsEnabled = false;
  priEnabled = false;
  pasidEnabled = false;
  /** Page shift that ATS was last enabled with; stays after a disable, VFs are compared with it. */
  private stu = 0;
  private allocatedRequests = 0;
  private enabledPasidFeatures = 0;
  private readonly name: string;
  private readonly config: ConfigWindow;
  private readonly physfn: TranslationFeatures | undefined;
  private readonly prefixPath: boolean;
  private readonly ats: number | undefined;
  private readonly pri: number | undefined;
  private readonly pasid: number | undefined;
  private readonly ignoreStuMismatch: boolean;
  private readonly ignorePriStopped: boolean;
  private readonly skipRestore: boolean;

  constructor(options: TranslationFeaturesOptions) {
    this.name = options.name;
    this.config = options.config;
    this.physfn = options.physfn;
    this.prefixPath = options.prefixPath;
    this.ats = options.trusted ? options.findExtCapability(PCI_EXT_CAP_ID_ATS) : undefined;
    this.pri = options.findExtCapability(PCI_EXT_CAP_ID_PRI);
    this.pasid = options.findExtCapability(PCI_EXT_CAP_ID_PASID);
    this.ignoreStuMismatch = options.defects.has('pci.vf-stu-unchecked');
    this.ignorePriStopped = options.defects.has('pci.pri-enable-not-stopped');
    this.skipRestore = options.defects.has('pci.reset-forgets-pasid');
  }

  // ---- ATS

  get atsSupported(): boolean {
    return this.ats !== undefined;
  }

  /** Invalidate queue depth, 1..32; 0 for a VF, which shares the PF's, and without the capability. */
  get atsQueueDepth(): number {
    if (this.ats === undefined || this.physfn !== undefined) return 0;
    const depth = this.config.read(this.ats + PCI_ATS_CAP, 2) & PCI_ATS_CAP_QDEP;
    return depth === 0 ? PCI_ATS_MAX_QDEP : depth;
  }

  /** @param pageShift smallest translation unit. EINVAL, EBUSY, EINVAL, EINVAL in this order (A8, E36). */
  enableAts(pageShift: number): void {
    if (this.ats === undefined) throw new Errno('EINVAL', `ATS: device ${this.name} has no ATS capability or is not trusted`);
    if (this.atsEnabled) throw new Errno('EBUSY', `ATS: device ${this.name} has it enabled already`);
    if (pageShift < PCI_ATS_MIN_STU) throw new Errno('EINVAL', `ATS: smallest translation unit 2^${pageShift} of ${this.name} is below 4 KiB`);
    if (this.physfn === undefined) {
      this.stu = pageShift;
    } else if (this.physfn.stu !== pageShift && !this.ignoreStuMismatch) {
      const of = this.physfn.stu === 0 ? 'which never enabled ATS' : `which has 2^${this.physfn.stu}`;
      throw new Errno('EINVAL', `ATS: VF ${this.name} asks for translation unit 2^${pageShift}, it shares that of ${this.physfn.name}, ${of}`);
    }
    this.atsEnabled = true;
    this.restoreAts();
  }

  disableAts(): void {
    if (!this.atsEnabled) return;
    updateWord(this.config, this.ats! + PCI_ATS_CTRL, PCI_ATS_CTRL_ENABLE, 0);
    this.atsEnabled = false;
  }

  // ---- PRI

  get priSupported(): boolean {
    return (this.physfn ?? this).pri !== undefined;
  }

  get prgResponsePasidRequired(): boolean {
    const owner = this.physfn ?? this;
    return owner.pri !== undefined && (owner.config.read(owner.pri + PCI_PRI_STATUS, 2) & PCI_PRI_STATUS_PASID) !== 0;
  }

  /** EINVAL for a VF whose PF has it off (nothing to do when it is on); EBUSY, EINVAL, EBUSY in this order (E37). */
  enablePri(maxRequests: number): void {
    if (this.physfn !== undefined) {
      if (this.physfn.priEnabled) return;
      throw new Errno('EINVAL', `PRI: VF ${this.name} shares the PRI of ${this.physfn.name}, which is not enabled`);
    }
    if (this.priEnabled) throw new Errno('EBUSY', `PRI: device ${this.name} has it enabled already`);
    if (this.pri === undefined) throw new Errno('EINVAL', `PRI: device ${this.name} has no PRI capability`);
    if ((this.config.read(this.pri + PCI_PRI_STATUS, 2) & PCI_PRI_STATUS_STOPPED) === 0 && !this.ignorePriStopped) {
      throw new Errno('EBUSY', `PRI: device ${this.name} has not stopped: page requests are outstanding`);
    }
    this.allocatedRequests = Math.min(this.config.read(this.pri + PCI_PRI_MAX_REQ, 4), maxRequests);
    this.priEnabled = true;
    this.restorePri();
  }

  disablePri(): void {
    if (this.physfn !== undefined || !this.priEnabled) return;
    updateWord(this.config, this.pri! + PCI_PRI_CTRL, PCI_PRI_CTRL_ENABLE, 0);
    this.priEnabled = false;
  }

  /** EBUSY while enabled, EINVAL without the capability; nothing for a VF. */
  resetPri(): void {
    if (this.physfn !== undefined) return;
    if (this.priEnabled) throw new Errno('EBUSY', `PRI: device ${this.name} has it enabled, disable it before the reset`);
    if (this.pri === undefined) throw new Errno('EINVAL', `PRI: device ${this.name} has no PRI capability`);
    this.config.write(this.pri + PCI_PRI_CTRL, 2, PCI_PRI_CTRL_RESET);
  }

  // ---- PASID

  get pasidSupported(): boolean {
    return (this.physfn ?? this).pasid !== undefined;
  }

  /** Execute and privileged support: PASID_EXEC | PASID_PRIV. */
  get pasidFeatures(): number {
    const owner = this.physfn ?? this;
    if (owner.pasid === undefined) return 0;
    return owner.config.read(owner.pasid + PCI_PASID_CAP, 2) & (PCI_PASID_CAP_EXEC | PCI_PASID_CAP_PRIV);
  }

  /** 2^width; EINVAL without the capability. */
  maxPasids(): number {
    const owner = this.physfn ?? this;
    if (owner.pasid === undefined) throw new Errno('EINVAL', `PASID: device ${this.name} has no PASID capability`);
    return 2 ** ((owner.config.read(owner.pasid + PCI_PASID_CAP, 2) & PCI_PASID_CAP_WIDTH) >> 8);
  }

  /**
   * EINVAL for a VF whose PF has it off (nothing to do when it is on). EBUSY when enabled; EINVAL without prefix path
   * (E38), capability or feature; and EBUSY with ATS on, where Linux leaves the order to its callers (A2).
   */
  enablePasid(features: number): void {
    if (this.physfn !== undefined) {
      if (this.physfn.pasidEnabled) return;
      throw new Errno('EINVAL', `PASID: VF ${this.name} shares the PASID of ${this.physfn.name}, which is not enabled`);
    }
    if (this.pasidEnabled) throw new Errno('EBUSY', `PASID: device ${this.name} has it enabled already`);
    if (!this.prefixPath) throw new Errno('EINVAL', `PASID: no end-end TLP prefix path from ${this.name} to the root complex`);
    if (this.pasid === undefined) throw new Errno('EINVAL', `PASID: device ${this.name} has no PASID capability`);
    if ((this.pasidFeatures & features) !== features) {
      throw new Errno('EINVAL', `PASID: device ${this.name} supports features ${this.pasidFeatures}, not ${features}`);
    }
    if (this.atsEnabled) throw new Errno('EBUSY', `PASID: device ${this.name} has ATS enabled; PASID must be enabled first`);
    this.enabledPasidFeatures = features;
    this.pasidEnabled = true;
    this.restorePasid();
  }

  /** EBUSY while ATS is on (A2). Nothing for a VF. */
  disablePasid(): void {
    if (this.physfn !== undefined || !this.pasidEnabled) return;
    if (this.atsEnabled) throw new Errno('EBUSY', `PASID: device ${this.name} has ATS enabled; disable ATS before PASID`);
    this.config.write(this.pasid! + PCI_PASID_CTRL, 2, 0);
    this.pasidEnabled = false;
  }

  // ---- after a reset, in the order of `pci_restore_state`: PASID, PRI, ATS

  restore(): void {
    if (this.skipRestore) return;
    this.restorePasid();
    this.restorePri();
    this.restoreAts();
  }

  private restorePasid(): void {
    if (this.pasidEnabled) this.config.write(this.pasid! + PCI_PASID_CTRL, 2, PCI_PASID_CTRL_ENABLE | this.enabledPasidFeatures);
  }

  private restorePri(): void {
    if (!this.priEnabled) return;
    this.config.write(this.pri! + PCI_PRI_ALLOC_REQ, 4, this.allocatedRequests);
    this.config.write(this.pri! + PCI_PRI_CTRL, 2, PCI_PRI_CTRL_ENABLE);
  }

  private restoreAts(): void {
    if (!this.atsEnabled) return;
    const stu = this.physfn === undefined ? this.stu - PCI_ATS_MIN_STU : 0;
    this.config.write(this.ats! + PCI_ATS_CTRL, 2, PCI_ATS_CTRL_ENABLE | stu);
  }
}
