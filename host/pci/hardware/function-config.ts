/**
 * Builds the configuration space of an endpoint function from what it declares: header type 0, PCI Express, power
 * management, ACS, ATS, PASID, SIOV. (MSI-X, PRI and SR-IOV add themselves, they have behaviour of their own.)
 * A virtual function reads 0xffff as vendor and device id (PCIe 6.0 section 9.3.4.1), has no BARs, no PASID and no
 * PRI capability of its own: it shares the physical function's (sections 9.3.7, 10.5).
 */
import { assert } from '../../../sim/assert.js';
import {
  dvsecHeader1, PCI_ACS_CAP, PCI_ACS_CTRL, PCI_ACS_EC, PCI_ACS_EGRESS_BITS, PCI_ACS_EGRESS_CTL_V, PCI_ATS_CAP, PCI_ATS_CAP_PAGE_ALIGNED, PCI_ATS_CAP_QDEP, PCI_ATS_CTRL,
  PCI_ATS_CTRL_ENABLE, PCI_ATS_CTRL_STU, PCI_CACHE_LINE_SIZE, PCI_CAP_EXP_SIZEOF, PCI_CAP_ID_EXP, PCI_CAP_ID_PM,
  PCI_CLASS_REVISION, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_COMMAND_PARITY,
  PCI_COMMAND_SERR, PCI_DEVICE_ID, PCI_DVSEC_HEADER1, PCI_DVSEC_HEADER2, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP2,
  PCI_EXP_DEVCAP2_EE_PREFIX, PCI_EXP_DEVCAP2_EE_PREFIX_MAX_1, PCI_EXP_DEVCAP_FLR, PCI_EXP_DEVCAP_RBER, PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_PAYLOAD, PCI_EXP_DEVCTL_READRQ, PCI_EXP_DEVSTA, PCI_EXP_FLAGS, PCI_EXT_CAP_ACS_SIZEOF, PCI_EXT_CAP_ATS_SIZEOF,
  PCI_EXT_CAP_ID_ACS, PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_DVSEC, PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_PASID_SIZEOF,
  PCI_INTERRUPT_LINE, PCI_PASID_CAP, PCI_PASID_CAP_EXEC, PCI_PASID_CAP_PRIV, PCI_PASID_CTRL, PCI_PASID_CTRL_ENABLE,
  PCI_PASID_CTRL_EXEC, PCI_PASID_CTRL_PRIV, PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET, PCI_PM_PMC, PCI_PM_SIZEOF,
  PCI_STATUS, PCI_SUBSYSTEM_ID, PCI_SUBSYSTEM_VENDOR_ID, PCI_VENDOR_ID, SIOV_CAP, SIOV_DVSEC_ID, SIOV_DVSEC_REVISION,
  SIOV_DVSEC_SIZEOF, SIOV_DVSEC_VENDOR, SIOV_SUP_PGSIZE, SIOV_SYS_PGSIZE, type PciExpType,
} from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

export interface IdentityOptions {
  readonly vendorId: number;
  readonly deviceId: number;
  /** 24 bits: class, subclass, programming interface. */
  readonly classCode: number;
  readonly revision?: number;
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
}

export interface AtsOptions {
  /** Invalidate queue depth, 1..32; encoded 0 in a virtual function. */
  readonly queueDepth: number;
  readonly pageAligned: boolean;
}

export interface PasidOptions {
  /** 1..20 bits */
  readonly width: number;
  readonly exec: boolean;
  readonly priv: boolean;
}

/** All W1C bits of PCI_STATUS. */
const STATUS_W1C = 0xf900;
const DEVCTL_ENABLES = 0x001f;

/** Header type 0. A virtual function's memory space enable and BARs do not exist (section 9.3.4.1). */
export function buildHeader(config: ConfigSpace, identity: IdentityOptions, virtual: boolean): void {
  config.define(PCI_VENDOR_ID, 2, virtual ? 0xffff : identity.vendorId);
  config.define(PCI_DEVICE_ID, 2, virtual ? 0xffff : identity.deviceId);
  const rest = PCI_COMMAND_MEMORY | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE;
  config.define(PCI_COMMAND, 2, 0, { rw: PCI_COMMAND_MASTER | (virtual ? 0 : rest) });
  config.define(PCI_STATUS, 2, 0, { w1c: STATUS_W1C });
  config.define(PCI_CLASS_REVISION, 4, ((identity.classCode << 8) | (identity.revision ?? 0)) >>> 0);
  if (!virtual) config.define(PCI_CACHE_LINE_SIZE, 1, 0, { rw: 0xff });
  config.define(PCI_SUBSYSTEM_VENDOR_ID, 2, identity.subsystemVendorId ?? identity.vendorId);
  config.define(PCI_SUBSYSTEM_ID, 2, identity.subsystemId ?? 0);
  if (!virtual) config.define(PCI_INTERRUPT_LINE, 1, 0, { rw: 0xff });
}

/** The PCI Express capability, version 2; returns its offset. The FLR bit is a command and reads as zero. */
export function addExpress(config: ConfigSpace, deviceType: PciExpType, options: { flr: boolean; e2eTlpPrefix: boolean }): number {
  const at = config.addCapability(PCI_CAP_ID_EXP, PCI_CAP_EXP_SIZEOF);
  config.define(at + PCI_EXP_FLAGS, 2, 2 | (deviceType << 4));
  config.define(at + PCI_EXP_DEVCAP, 4, PCI_EXP_DEVCAP_RBER | (options.flr ? PCI_EXP_DEVCAP_FLR : 0));
  // reset value of Max_Read_Request_Size is 010b, 512 bytes (section 7.5.3.4)
  config.define(at + PCI_EXP_DEVCTL, 2, 0x2000, { rw: DEVCTL_ENABLES | PCI_EXP_DEVCTL_PAYLOAD | PCI_EXP_DEVCTL_READRQ });
  config.define(at + PCI_EXP_DEVSTA, 2, 0, { w1c: 0x000f });
  config.define(at + PCI_EXP_DEVCAP2, 4, options.e2eTlpPrefix ? PCI_EXP_DEVCAP2_EE_PREFIX | PCI_EXP_DEVCAP2_EE_PREFIX_MAX_1 : 0);
  return at;
}

/** Power management, version 3, D0 and D3hot, no soft reset. */
export function addPowerManagement(config: ConfigSpace): number {
  const at = config.addCapability(PCI_CAP_ID_PM, PCI_PM_SIZEOF);
  config.define(at + PCI_PM_PMC, 2, 3);
  config.define(at + PCI_PM_CTRL, 2, PCI_PM_CTRL_NO_SOFT_RESET, { rw: 3 });
  return at;
}

/** @param services PCI_ACS_* bits that are implemented; egress control comes with a vector of `egressPorts` bits */
export function addAcs(config: ConfigSpace, services: number, egressPorts = 0): number {
  const egress = (services & PCI_ACS_EC) !== 0;
  assert(egress === egressPorts > 0 && egressPorts <= 32, 'ACS egress control needs a vector of 1..32 ports');
  const at = config.addExtCapability(PCI_EXT_CAP_ID_ACS, 1, PCI_EXT_CAP_ACS_SIZEOF + (egress ? 4 : 0));
  config.define(at + PCI_ACS_CAP, 2, services);
  config.define(at + PCI_ACS_CTRL, 2, 0, { rw: services });
  if (egress) {
    config.set(at + PCI_ACS_EGRESS_BITS, 1, egressPorts);
    config.define(at + PCI_ACS_EGRESS_CTL_V, 4, 0, { rw: 2 ** egressPorts - 1 });
  }
  return at;
}

export function addAts(config: ConfigSpace, options: AtsOptions, virtual: boolean): number {
  assert(options.queueDepth >= 1 && options.queueDepth <= 32, `ATS invalidate queue depth ${options.queueDepth}`);
  const at = config.addExtCapability(PCI_EXT_CAP_ID_ATS, 1, PCI_EXT_CAP_ATS_SIZEOF);
  const depth = virtual ? 0 : options.queueDepth & PCI_ATS_CAP_QDEP;
  config.define(at + PCI_ATS_CAP, 2, depth | (options.pageAligned ? PCI_ATS_CAP_PAGE_ALIGNED : 0));
  config.define(at + PCI_ATS_CTRL, 2, 0, { rw: PCI_ATS_CTRL_ENABLE | PCI_ATS_CTRL_STU });
  return at;
}

export function addPasid(config: ConfigSpace, options: PasidOptions): number {
  assert(options.width >= 1 && options.width <= 20, `PASID width ${options.width}`);
  const at = config.addExtCapability(PCI_EXT_CAP_ID_PASID, 1, PCI_EXT_CAP_PASID_SIZEOF);
  const features = (options.exec ? PCI_PASID_CAP_EXEC : 0) | (options.priv ? PCI_PASID_CAP_PRIV : 0);
  config.define(at + PCI_PASID_CAP, 2, features | (options.width << 8));
  const enables = (options.exec ? PCI_PASID_CTRL_EXEC : 0) | (options.priv ? PCI_PASID_CTRL_PRIV : 0);
  config.define(at + PCI_PASID_CTRL, 2, 0, { rw: PCI_PASID_CTRL_ENABLE | enables });
  return at;
}

/** The DVSEC that announces scalable I/O virtualization; 4 KiB pages, no interrupt message store. */
export function addSiov(config: ConfigSpace): number {
  const at = config.addExtCapability(PCI_EXT_CAP_ID_DVSEC, 1, SIOV_DVSEC_SIZEOF);
  config.define(at + PCI_DVSEC_HEADER1, 4, dvsecHeader1(SIOV_DVSEC_VENDOR, SIOV_DVSEC_REVISION, SIOV_DVSEC_SIZEOF));
  config.define(at + PCI_DVSEC_HEADER2, 2, SIOV_DVSEC_ID);
  config.define(at + SIOV_SUP_PGSIZE, 4, 1);
  config.define(at + SIOV_SYS_PGSIZE, 4, 1);
  config.define(at + SIOV_CAP, 4, 0);
  return at;
}
