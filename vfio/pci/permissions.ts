/**
 * What a user may do to each bit of a function's configuration space: which bits are virtual, so that the hardware
 * never sees them, and which can be written (drivers/vfio/pci/vfio_pci_config.c, `struct perm_bits`). What no table
 * names can be read and not written.
 *
 * Stricter than Linux in one thing: an extended capability that is taken out of the chain reads as zeros and cannot
 * be written. There its bytes turn into gap, which is open to raw writes, and ATS, PRI and SR-IOV stay in the chain
 * for reading.
 */
import {
  PCI_BASE_ADDRESS_0, PCI_BIST, PCI_CACHE_LINE_SIZE, PCI_CAP_EXP_SIZEOF, PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_PM,
  PCI_CAP_LIST_NEXT, PCI_CAP_MSIX_SIZEOF, PCI_CAPABILITY_LIST, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_DEVICE_ID, PCI_DVSEC_HEADER1,
  PCI_EXP_DEVCTL, PCI_EXP_DEVCTL2, PCI_EXP_DEVCTL2_ARI, PCI_EXP_DEVCTL_BCR_FLR, PCI_EXP_DEVCTL_PAYLOAD, PCI_EXP_DEVCTL_READRQ,
  PCI_EXT_CAP_ACS_SIZEOF, PCI_EXT_CAP_ATS_SIZEOF, PCI_EXT_CAP_ID_ACS, PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_DVSEC, PCI_EXT_CAP_ID_PASID,
  PCI_EXT_CAP_ID_PRI, PCI_EXT_CAP_ID_SRIOV, PCI_EXT_CAP_PASID_SIZEOF, PCI_EXT_CAP_PRI_SIZEOF, PCI_EXT_CAP_SRIOV_SIZEOF, PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN, PCI_LATENCY_TIMER, PCI_MSI_ADDRESS_HI, PCI_MSI_ADDRESS_LO, PCI_MSI_DATA_32, PCI_MSI_DATA_64, PCI_MSI_FLAGS, PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE, PCI_MSI_FLAGS_MASKBIT, PCI_MSI_FLAGS_QSIZE, PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK, PCI_PM_SIZEOF, PCI_ROM_ADDRESS, PCI_STATUS, PCI_STATUS_CAP_LIST,
  PCI_STD_NUM_BARS, PCI_VENDOR_ID,
} from '../../host/pci/spec/index.js';
import type { ConfigWindow } from '../../host/pci/kernel/pci-device.js';

const ALL = 0xffff_ffff;
/** Phantom functions would use requester ids that the IOMMU does not know as the device's. */
const PCI_EXP_DEVCTL_PHANTOM = 0x0200;
/** Vendor-specific capability: its length stands behind the next pointer. */
export const PCI_CAP_ID_VNDR = 0x09;
/** Vendor-specific extended capability: bits 31:20 of the second word are its length; DVSEC has it at the same place. */
export const PCI_EXT_CAP_ID_VNDR = 0x0b;

/** Virtual and writable bits, a byte of each for each byte of configuration space. */
export class Permissions {
  readonly virt: Uint8Array;
  readonly write: Uint8Array;

  /** Gaps between capabilities are open: some devices hide registers there, and what they do is contained by the IOMMU. */
  constructor(sizeBytes: number, gapsFrom: number) {
    this.virt = new Uint8Array(sizeBytes);
    this.write = new Uint8Array(sizeBytes);
    this.write.fill(0xff, gapsFrom);
  }

  set(offset: number, size: 1 | 2 | 4, virt: number, write: number): void {
    for (let i = 0; i < size; i++) {
      this.virt[offset + i] = virt >>> (8 * i);
      this.write[offset + i] = write >>> (8 * i);
    }
  }

  readOnly(offset: number, sizeBytes: number): void {
    this.virt.fill(0, offset, offset + sizeBytes);
    this.write.fill(0, offset, offset + sizeBytes);
  }

  hide(offset: number, sizeBytes: number): void {
    this.virt.fill(0xff, offset, offset + sizeBytes);
    this.write.fill(0, offset, offset + sizeBytes);
  }
}

/** Header type 0. Ids are virtual for virtual functions, whose own are all ones; BARs so that nobody moves the real ones. */
export function permitHeader(table: Permissions): void {
  table.set(PCI_VENDOR_ID, 2, ALL, 0);
  table.set(PCI_DEVICE_ID, 2, ALL, 0);
  table.set(PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE, ALL);
  table.set(PCI_STATUS, 2, PCI_STATUS_CAP_LIST, 0);
  for (const offset of [PCI_CACHE_LINE_SIZE, PCI_LATENCY_TIMER, PCI_BIST]) table.set(offset, 1, 0, ALL);
  for (let bar = 0; bar < PCI_STD_NUM_BARS; bar++) table.set(PCI_BASE_ADDRESS_0 + bar * 4, 4, ALL, ALL);
  table.set(PCI_ROM_ADDRESS, 4, ALL, ALL);
  table.set(PCI_CAPABILITY_LIST, 1, ALL, 0);
  table.set(PCI_INTERRUPT_LINE, 1, ALL, ALL);
  table.set(PCI_INTERRUPT_PIN, 1, ALL, 0);
}

/**
 * Permissions of one standard capability; true when it stays in the chain, otherwise it is hidden up to `limit`, where
 * the next structure begins. MSI-X cannot be written at all: SET_IRQS enables it. MSI's control word is virtual and
 * corrected on every write.
 */
export function permitCapability(table: Permissions, id: number, at: number, limit: number, config: ConfigWindow): boolean {
  const sizeBytes = Math.min(capabilitySize(id, at, config), limit - at);
  if (sizeBytes === 0) {
    table.hide(at, limit - at);
    return false;
  }
  table.readOnly(at, (sizeBytes + 3) & ~3);
  if (id === PCI_CAP_ID_VNDR) table.write.fill(0xff, at + 2, at + sizeBytes);
  table.set(at + PCI_CAP_LIST_NEXT, 1, ALL, 0);
  if (id === PCI_CAP_ID_PM) {
    // the state is changed by the driver, which has to know it
    table.set(at + PCI_PM_CTRL, 4, 0, ~PCI_PM_CTRL_STATE_MASK);
  } else if (id === PCI_CAP_ID_EXP) {
    table.set(at + PCI_EXP_DEVCTL, 2, PCI_EXP_DEVCTL_BCR_FLR | PCI_EXP_DEVCTL_PAYLOAD | PCI_EXP_DEVCTL_READRQ, ~PCI_EXP_DEVCTL_PHANTOM);
    table.set(at + PCI_EXP_DEVCTL2, 2, 0, ~PCI_EXP_DEVCTL2_ARI);
  } else if (id === PCI_CAP_ID_MSI) {
    permitMsi(table, at, config.read(at + PCI_MSI_FLAGS, 2));
  }
  return true;
}

function permitMsi(table: Permissions, at: number, flags: number): void {
  // Linux lets the user write the read-only bits of its own copy too
  table.set(at + PCI_MSI_FLAGS, 1, ALL, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE);
  table.set(at + PCI_MSI_ADDRESS_LO, 4, ALL, ALL);
  const is64 = (flags & PCI_MSI_FLAGS_64BIT) !== 0;
  if (is64) table.set(at + PCI_MSI_ADDRESS_HI, 4, ALL, ALL);
  const data = at + (is64 ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32);
  table.set(data, 2, ALL, ALL);
  // mask and pending bits: a word each behind the data
  if ((flags & PCI_MSI_FLAGS_MASKBIT) !== 0) for (const word of [4, 8]) table.set(data + word, 4, 0, ALL);
}

function capabilitySize(id: number, at: number, config: ConfigWindow): number {
  switch (id) {
    case PCI_CAP_ID_PM: return PCI_PM_SIZEOF;
    case PCI_CAP_ID_EXP: return PCI_CAP_EXP_SIZEOF;
    case PCI_CAP_ID_MSIX: return PCI_CAP_MSIX_SIZEOF;
    case PCI_CAP_ID_VNDR: return config.read(at + 2, 1);
    case PCI_CAP_ID_MSI: {
      const flags = config.read(at + PCI_MSI_FLAGS, 2);
      return 10 + ((flags & PCI_MSI_FLAGS_64BIT) !== 0 ? 4 : 0) + ((flags & PCI_MSI_FLAGS_MASKBIT) !== 0 ? 10 : 0);
    }
    default: return 0;
  }
}

/** Extended capabilities that a user never sees: what they switch on is the IOMMU driver's or the port's business. */
const HIDDEN: ReadonlyMap<number, number> = new Map([
  [PCI_EXT_CAP_ID_ACS, PCI_EXT_CAP_ACS_SIZEOF], [PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ATS_SIZEOF], [PCI_EXT_CAP_ID_PRI, PCI_EXT_CAP_PRI_SIZEOF],
  [PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_PASID_SIZEOF], [PCI_EXT_CAP_ID_SRIOV, PCI_EXT_CAP_SRIOV_SIZEOF],
]);
/** The egress control vector of ACS: at most 256 bits. */
const ACS_EGRESS_BYTES = 32;

/**
 * Permissions of one extended capability; true when it stays in the chain. Vendor-specific ones are raw behind their
 * header; what nobody knows is hidden up to `limit`, where the next structure begins.
 */
export function permitExtCapability(table: Permissions, id: number, at: number, limit: number, config: ConfigWindow): boolean {
  if (id === PCI_EXT_CAP_ID_VNDR || id === PCI_EXT_CAP_ID_DVSEC) {
    table.set(at, 4, ALL, 0);
    table.readOnly(at + PCI_DVSEC_HEADER1, 4);
    const end = Math.min(at + (config.read(at + PCI_DVSEC_HEADER1, 4) >>> 20), limit);
    if (end > at + 8) table.write.fill(0xff, at + 8, end);
    return true;
  }
  const sizeBytes = (HIDDEN.get(id) ?? limit - at) + (id === PCI_EXT_CAP_ID_ACS ? ACS_EGRESS_BYTES : 0);
  table.hide(at, Math.min(sizeBytes, limit - at));
  return false;
}
