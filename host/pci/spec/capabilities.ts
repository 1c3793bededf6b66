/**
 * Standard capabilities, chained from PCI_CAPABILITY_LIST in the first 256 bytes: power management, MSI, MSI-X,
 * PCI Express. PCIe Base 6.0 sections 7.5.2, 7.5.3, 7.7; names and numbers as in Linux'
 * include/uapi/linux/pci_regs.h. Offsets count from the start of the capability. Left out: VPD, slot and link
 * registers beyond their place in the structure.
 */

export const PCI_CAP_LIST_ID = 0;
export const PCI_CAP_LIST_NEXT = 1;
export const PCI_CAP_ID_PM = 0x01;
export const PCI_CAP_ID_MSI = 0x05;
export const PCI_CAP_ID_EXP = 0x10;
export const PCI_CAP_ID_MSIX = 0x11;

// power management, 8 bytes
export const PCI_PM_PMC = 2;
export const PCI_PM_CAP_VER_MASK = 0x0007;
export const PCI_PM_CTRL = 4;
export const PCI_PM_CTRL_STATE_MASK = 0x0003;
export const PCI_PM_CTRL_NO_SOFT_RESET = 0x0008;
export const PCI_PM_SIZEOF = 8;

// MSI; the 64-bit layout is 14 bytes, with per-vector masking 24
export const PCI_MSI_FLAGS = 0x02;
export const PCI_MSI_FLAGS_ENABLE = 0x0001;
export const PCI_MSI_FLAGS_QMASK = 0x000e;
export const PCI_MSI_FLAGS_QSIZE = 0x0070;
export const PCI_MSI_FLAGS_64BIT = 0x0080;
export const PCI_MSI_FLAGS_MASKBIT = 0x0100;
export const PCI_MSI_ADDRESS_LO = 0x04;
export const PCI_MSI_ADDRESS_HI = 0x08;
/** Of the layout with 32-bit addresses, where everything behind the address lies four bytes lower. */
export const PCI_MSI_DATA_32 = 0x08;
export const PCI_MSI_DATA_64 = 0x0c;
export const PCI_MSI_MASK_32 = 0x0c;
export const PCI_MSI_MASK_64 = 0x10;
export const PCI_MSI_PENDING_64 = 0x14;
export const PCI_MSI_SIZEOF = 0x18;
export const PCI_MSI_UNMASKABLE_64_SIZEOF = 0x0e;

// MSI-X, 12 bytes
export const PCI_MSIX_FLAGS = 2;
/** Table size minus 1. */
export const PCI_MSIX_FLAGS_QSIZE = 0x07ff;
export const PCI_MSIX_FLAGS_MASKALL = 0x4000;
export const PCI_MSIX_FLAGS_ENABLE = 0x8000;
export const PCI_MSIX_TABLE = 4;
export const PCI_MSIX_TABLE_BIR = 0x7;
export const PCI_MSIX_TABLE_OFFSET = 0xffff_fff8;
export const PCI_MSIX_PBA = 8;
export const PCI_MSIX_PBA_BIR = 0x7;
export const PCI_MSIX_PBA_OFFSET = 0xffff_fff8;
export const PCI_CAP_MSIX_SIZEOF = 12;
// an entry of the MSI-X table, in a BAR
export const PCI_MSIX_ENTRY_SIZE = 16;
export const PCI_MSIX_ENTRY_LOWER_ADDR = 0x0;
export const PCI_MSIX_ENTRY_UPPER_ADDR = 0x4;
export const PCI_MSIX_ENTRY_DATA = 0x8;
export const PCI_MSIX_ENTRY_VECTOR_CTRL = 0xc;
export const PCI_MSIX_ENTRY_CTRL_MASKBIT = 0x1;

// PCI Express, version 2: 0x3c bytes
export const PCI_EXP_FLAGS = 0x02;
export const PCI_EXP_FLAGS_VERS = 0x000f;
export const PCI_EXP_FLAGS_TYPE = 0x00f0;
export const PCI_EXP_FLAGS_SLOT = 0x0100;
/** Device/port types, the value of bits 7:4 of PCI_EXP_FLAGS. */
export const PCI_EXP_TYPE_ENDPOINT = 0x0;
export const PCI_EXP_TYPE_LEG_END = 0x1;
export const PCI_EXP_TYPE_ROOT_PORT = 0x4;
export const PCI_EXP_TYPE_UPSTREAM = 0x5;
export const PCI_EXP_TYPE_DOWNSTREAM = 0x6;
/** Root complex integrated endpoint. */
export const PCI_EXP_TYPE_RC_END = 0x9;
export type PciExpType = 0x0 | 0x1 | 0x4 | 0x5 | 0x6 | 0x9;

export const PCI_EXP_DEVCAP = 0x04;
/** Role-based error reporting: required of every function since PCIe 1.1. */
export const PCI_EXP_DEVCAP_RBER = 0x0000_8000;
export const PCI_EXP_DEVCAP_EXT_TAG = 0x0000_0020;
export const PCI_EXP_DEVCAP_FLR = 0x1000_0000;
export const PCI_EXP_DEVCTL = 0x08;
/** Report correctable, non-fatal, fatal errors, unsupported requests. */
export const PCI_EXP_DEVCTL_CERE = 0x0001;
export const PCI_EXP_DEVCTL_NFERE = 0x0002;
export const PCI_EXP_DEVCTL_FERE = 0x0004;
export const PCI_EXP_DEVCTL_URRE = 0x0008;
export const PCI_EXP_DEVCTL_PAYLOAD = 0x00e0;
export const PCI_EXP_DEVCTL_READRQ = 0x7000;
/** Initiate Function Level Reset; reads as zero. */
export const PCI_EXP_DEVCTL_BCR_FLR = 0x8000;
export const PCI_EXP_DEVSTA = 0x0a;
/** Correctable, non-fatal, fatal, unsupported request detected (W1C). */
export const PCI_EXP_DEVSTA_CED = 0x0001;
export const PCI_EXP_DEVSTA_NFED = 0x0002;
export const PCI_EXP_DEVSTA_FED = 0x0004;
export const PCI_EXP_DEVSTA_URD = 0x0008;
/** Non-posted requests outstanding. */
export const PCI_EXP_DEVSTA_TRPND = 0x0020;
export const PCI_EXP_LNKCAP = 0x0c;
export const PCI_EXP_LNKCTL = 0x10;
export const PCI_EXP_LNKSTA = 0x12;
export const PCI_EXP_SLTCAP = 0x14;
export const PCI_EXP_SLTCTL = 0x18;
export const PCI_EXP_SLTSTA = 0x1a;
export const PCI_EXP_DEVCAP2 = 0x24;
export const PCI_EXP_DEVCAP2_COMP_TMOUT_DIS = 0x0000_0010;
export const PCI_EXP_DEVCAP2_ARI = 0x0000_0020;
/** End-End TLP Prefix Supported: what a PASID prefix needs on every port of its path. */
export const PCI_EXP_DEVCAP2_EE_PREFIX = 0x0020_0000;
/** Max End-End TLP Prefixes, bits 23:22; 01b is one. */
export const PCI_EXP_DEVCAP2_EE_PREFIX_MAX = 0x00c0_0000;
export const PCI_EXP_DEVCAP2_EE_PREFIX_MAX_1 = 0x0040_0000;
export const PCI_EXP_DEVCTL2 = 0x28;
export const PCI_EXP_DEVCTL2_COMP_TMOUT_DIS = 0x0010;
export const PCI_EXP_DEVCTL2_ARI = 0x0020;
export const PCI_CAP_EXP_SIZEOF = 0x3c;
