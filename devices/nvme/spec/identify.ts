/**
 * Data structures of Identify (NVMe 1.4 section 5.15): values of CNS, offsets in the controller's and the namespace's
 * structure, descriptors. Offsets agree with SPDK's nvme_spec.h, whose structures are asserted there.
 */
export const IDENTIFY_SIZE = 4096;

export const CNS = {
  NAMESPACE: 0x00, CONTROLLER: 0x01, ACTIVE_NAMESPACES: 0x02, NAMESPACE_DESCRIPTORS: 0x03, ALLOCATED_NAMESPACES: 0x10, ALLOCATED_NAMESPACE: 0x11,
  NAMESPACE_CONTROLLERS: 0x12, CONTROLLERS: 0x13,
} as const;

/** Offsets in the controller's structure. */
export const ID_CTRL = {
  VID: 0, SSVID: 2, SN: 4, MN: 24, FR: 64, RAB: 72, IEEE: 73, CMIC: 76, MDTS: 77, CNTLID: 78, VER: 80, CNTRLTYPE: 111, OACS: 256, ACL: 258, AERL: 259, FRMW: 260, LPA: 261,
  ELPE: 262, NPSS: 263, WCTEMP: 266, CCTEMP: 268, SQES: 512, CQES: 513, NN: 516, ONCS: 520, VWC: 525, SUBNQN: 768, PSD0: 2048,
} as const;
export const SN_BYTES = 20;
export const MN_BYTES = 40;
export const FR_BYTES = 8;

/** CNTRLTYPE: a controller for I/O. */
export const CNTRLTYPE_IO = 1;
/** LPA: commands supported and effects log, extended data of Get Log Page. */
export const LPA_EFFECTS = 2;
export const LPA_EXTENDED = 4;
export const ONCS_COMPARE = 1 << 0;
export const ONCS_DSM = 1 << 2;
export const ONCS_WRITE_ZEROES = 1 << 3;
/** The Select field of Get Features and the Save field of Set Features. */
export const ONCS_SELECT = 1 << 4;
/** VWC: present; Flush with NSID FFFFFFFFh flushes all namespaces. */
export const VWC_PRESENT = 1;
export const VWC_FLUSH_ALL = 3 << 1;

/** Offsets in the namespace's structure. */
export const ID_NS = { NSZE: 0, NCAP: 8, NUSE: 16, NSFEAT: 24, NLBAF: 25, FLBAS: 26, DLFEAT: 33, NVMCAP: 48, NSATTR: 99, EUI64: 120, LBAF0: 128 } as const;
/** DLFEAT: deallocated blocks read zero, Write Zeroes can deallocate. */
export const DLFEAT_ZEROES = 1;
export const DLFEAT_WRITE_ZEROES = 8;
/** NSATTR: the namespace is write protected. */
export const NSATTR_PROTECTED = 1;

/** Types of namespace identification descriptors; each has type, length, two reserved bytes, then its value. */
export const NIDT_EUI64 = 1;
export const NIDT_UUID = 3;
