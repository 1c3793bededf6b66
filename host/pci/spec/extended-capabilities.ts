/**
 * Extended capabilities, chained from offset 0x100: ACS, ATS, SR-IOV, PRI, PASID, DVSEC.
 * PCIe Base 6.0 sections 7.7.11 (ACS), 10.5.1 (ATS), 9.3.3 (SR-IOV), 10.5.2 (PRI), 7.8.9 (PASID), 7.9.6 (DVSEC);
 * names and numbers as in Linux' include/uapi/linux/pci_regs.h (requirements 3.4). Offsets count from the start of
 * the capability. Left out: AER, ARI, resizable BARs, TPH.
 */

/** Where the list starts. */
export const PCI_EXT_CAP_START = 0x100;

export const PCI_EXT_CAP_ID_ACS = 0x0d;
export const PCI_EXT_CAP_ID_ATS = 0x0f;
export const PCI_EXT_CAP_ID_SRIOV = 0x10;
export const PCI_EXT_CAP_ID_PRI = 0x13;
export const PCI_EXT_CAP_ID_PASID = 0x1b;
export const PCI_EXT_CAP_ID_DVSEC = 0x23;

/** Fields of the 32-bit header at the start of every extended capability. */
export function extCapId(header: number): number {
  return header & 0xffff;
}
export function extCapVersion(header: number): number {
  return (header >>> 16) & 0xf;
}
/** Offset of the next one, 0 at the end. */
export function extCapNext(header: number): number {
  return (header >>> 20) & 0xffc;
}
export function extCapHeader(id: number, version: number, next: number): number {
  return ((next << 20) | (version << 16) | id) >>> 0;
}

// Access Control Services
export const PCI_ACS_CAP = 0x04;
export const PCI_ACS_CTRL = 0x06;
/** Source Validation */
export const PCI_ACS_SV = 0x0001;
/** Translation Blocking */
export const PCI_ACS_TB = 0x0002;
/** P2P Request Redirect */
export const PCI_ACS_RR = 0x0004;
/** P2P Completion Redirect */
export const PCI_ACS_CR = 0x0008;
/** Upstream Forwarding */
export const PCI_ACS_UF = 0x0010;
/** P2P Egress Control */
export const PCI_ACS_EC = 0x0020;
/** Direct Translated P2P */
export const PCI_ACS_DT = 0x0040;
/** Bits 15:8 of the capability: size in bits of the egress control vector, 0 stands for 256. */
export const PCI_ACS_EGRESS_BITS = 0x05;
export const PCI_ACS_EGRESS_CTL_V = 0x08;
export const PCI_EXT_CAP_ACS_SIZEOF = 8;

// Address Translation Services
export const PCI_ATS_CAP = 0x04;
/** Invalidate queue depth, bits 4:0; 0 stands for 32. */
export const PCI_ATS_CAP_QDEP = 0x001f;
export const PCI_ATS_MAX_QDEP = 32;
export const PCI_ATS_CAP_PAGE_ALIGNED = 0x0020;
export const PCI_ATS_CTRL = 0x06;
export const PCI_ATS_CTRL_ENABLE = 0x8000;
/** Smallest translation unit, log2 of it minus PCI_ATS_MIN_STU. */
export const PCI_ATS_CTRL_STU = 0x001f;
export const PCI_ATS_MIN_STU = 12;
export const PCI_EXT_CAP_ATS_SIZEOF = 8;

// Page Request Interface
export const PCI_PRI_CTRL = 0x04;
export const PCI_PRI_CTRL_ENABLE = 0x0001;
export const PCI_PRI_CTRL_RESET = 0x0002;
export const PCI_PRI_STATUS = 0x06;
/** Response Failure (W1C) */
export const PCI_PRI_STATUS_RF = 0x0001;
/** Unexpected Page Request Group Index (W1C) */
export const PCI_PRI_STATUS_UPRGI = 0x0002;
export const PCI_PRI_STATUS_STOPPED = 0x0100;
/** PRG Response PASID Required */
export const PCI_PRI_STATUS_PASID = 0x8000;
/** Outstanding page request capacity */
export const PCI_PRI_MAX_REQ = 0x08;
/** Outstanding page request allocation */
export const PCI_PRI_ALLOC_REQ = 0x0c;
export const PCI_EXT_CAP_PRI_SIZEOF = 16;
/** A page request group index has 9 bits. */
export const PRG_INDEX_COUNT = 512;

// Process Address Space ID
export const PCI_PASID_CAP = 0x04;
export const PCI_PASID_CAP_EXEC = 0x0002;
export const PCI_PASID_CAP_PRIV = 0x0004;
/** Max PASID width, bits 12:8. */
export const PCI_PASID_CAP_WIDTH = 0x1f00;
export const PCI_PASID_CTRL = 0x06;
export const PCI_PASID_CTRL_ENABLE = 0x0001;
export const PCI_PASID_CTRL_EXEC = 0x0002;
export const PCI_PASID_CTRL_PRIV = 0x0004;
export const PCI_EXT_CAP_PASID_SIZEOF = 8;

// Single Root I/O Virtualization
export const PCI_SRIOV_CAP = 0x04;
export const PCI_SRIOV_CTRL = 0x08;
export const PCI_SRIOV_CTRL_VFE = 0x0001;
export const PCI_SRIOV_CTRL_MSE = 0x0008;
export const PCI_SRIOV_CTRL_ARI = 0x0010;
export const PCI_SRIOV_STATUS = 0x0a;
export const PCI_SRIOV_INITIAL_VF = 0x0c;
export const PCI_SRIOV_TOTAL_VF = 0x0e;
export const PCI_SRIOV_NUM_VF = 0x10;
export const PCI_SRIOV_FUNC_LINK = 0x12;
/** Routing id of VF n (from 1) is the PF's plus offset plus (n - 1) × stride, modulo 2^16. */
export const PCI_SRIOV_VF_OFFSET = 0x14;
export const PCI_SRIOV_VF_STRIDE = 0x16;
export const PCI_SRIOV_VF_DID = 0x1a;
export const PCI_SRIOV_SUP_PGSIZE = 0x1c;
export const PCI_SRIOV_SYS_PGSIZE = 0x20;
/** VF BAR 0; VF n's part is the BAR's address plus (n - 1) × the size of one VF's BAR. */
export const PCI_SRIOV_BAR = 0x24;
export const PCI_SRIOV_NUM_BARS = 6;
export const PCI_EXT_CAP_SRIOV_SIZEOF = 0x40;

// Designated Vendor-Specific
export const PCI_DVSEC_HEADER1 = 0x04;
export const PCI_DVSEC_HEADER2 = 0x08;
export function dvsecHeader1(vendor: number, revision: number, sizeBytes: number): number {
  return ((sizeBytes << 20) | (revision << 16) | vendor) >>> 0;
}
/**
 * Intel Scalable I/O Virtualization (Intel SIOV technical specification section 3.7): Linux v5.2 to v5.10 look for
 * vendor and id only (`siov_find_pci_dvsec` of intel-iommu.c).
 */
export const SIOV_DVSEC_VENDOR = 0x8086;
export const SIOV_DVSEC_ID = 5;
export const SIOV_DVSEC_REVISION = 0;
/** Flags and function dependency link at 0xa, page sizes at 0xc and 0x10, capabilities (IMS) at 0x14: 24 bytes. */
export const SIOV_DVSEC_SIZEOF = 0x18;
export const SIOV_SUP_PGSIZE = 0x0c;
export const SIOV_SYS_PGSIZE = 0x10;
/** Bit 0: the device has an interrupt message store. */
export const SIOV_CAP = 0x14;
export const SIOV_CAP_IMS = 0x1;
