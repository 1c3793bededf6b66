/**
 * The first 64 bytes of configuration space, header types 0 (endpoints) and 1 (bridges and PCIe ports).
 * PCIe Base 6.0 section 7.5.1; names as in Linux' include/uapi/linux/pci_regs.h. Offsets are bytes from the start
 * of the function's configuration space. Left out: CardBus headers, BIST, expansion ROM contents.
 */

export const PCI_STD_HEADER_SIZEOF = 64;
export const PCI_CFG_SPACE_SIZE = 256;
export const PCI_CFG_SPACE_EXP_SIZE = 4096;

export const PCI_VENDOR_ID = 0x00;
export const PCI_DEVICE_ID = 0x02;

export const PCI_COMMAND = 0x04;
export const PCI_COMMAND_IO = 0x1;
export const PCI_COMMAND_MEMORY = 0x2;
export const PCI_COMMAND_MASTER = 0x4;
export const PCI_COMMAND_PARITY = 0x40;
export const PCI_COMMAND_SERR = 0x100;
export const PCI_COMMAND_INTX_DISABLE = 0x400;

export const PCI_STATUS = 0x06;
/** INTx is pending inside the function, whatever Interrupt Disable says. */
export const PCI_STATUS_INTERRUPT = 0x08;
export const PCI_STATUS_CAP_LIST = 0x10;
export const PCI_STATUS_PARITY = 0x100;
export const PCI_STATUS_SIG_TARGET_ABORT = 0x800;
export const PCI_STATUS_REC_TARGET_ABORT = 0x1000;
export const PCI_STATUS_REC_MASTER_ABORT = 0x2000;
export const PCI_STATUS_SIG_SYSTEM_ERROR = 0x4000;
export const PCI_STATUS_DETECTED_PARITY = 0x8000;

/** High 24 bits the class code, low 8 the revision. */
export const PCI_CLASS_REVISION = 0x08;
export const PCI_REVISION_ID = 0x08;
export const PCI_CLASS_PROG = 0x09;
export const PCI_CLASS_DEVICE = 0x0a;
export const PCI_CACHE_LINE_SIZE = 0x0c;
export const PCI_LATENCY_TIMER = 0x0d;
export const PCI_HEADER_TYPE = 0x0e;
export const PCI_HEADER_TYPE_MASK = 0x7f;
export const PCI_HEADER_TYPE_NORMAL = 0;
export const PCI_HEADER_TYPE_BRIDGE = 1;
/** More functions than function 0. */
export const PCI_HEADER_TYPE_MFD = 0x80;
export const PCI_BIST = 0x0f;

export const PCI_BASE_ADDRESS_0 = 0x10;
export const PCI_BASE_ADDRESS_SPACE_IO = 0x01;
export const PCI_BASE_ADDRESS_MEM_TYPE_MASK = 0x06;
export const PCI_BASE_ADDRESS_MEM_TYPE_32 = 0x00;
export const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x04;
export const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x08;
/** Low word of a memory BAR: what is address. */
export const PCI_BASE_ADDRESS_MEM_MASK = 0xffff_fff0;
/** BARs in a type 0 header, and in a type 1 header. */
export const PCI_STD_NUM_BARS = 6;
export const PCI_BRIDGE_NUM_BARS = 2;

// type 0
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
export const PCI_SUBSYSTEM_ID = 0x2e;
export const PCI_ROM_ADDRESS = 0x30;
export const PCI_CAPABILITY_LIST = 0x34;
export const PCI_INTERRUPT_LINE = 0x3c;
export const PCI_INTERRUPT_PIN = 0x3d;

// type 1
export const PCI_PRIMARY_BUS = 0x18;
export const PCI_SECONDARY_BUS = 0x19;
export const PCI_SUBORDINATE_BUS = 0x1a;
export const PCI_IO_BASE = 0x1c;
export const PCI_IO_LIMIT = 0x1d;
export const PCI_SEC_STATUS = 0x1e;
/** Bits 15:4 are address bits 31:20. */
export const PCI_MEMORY_BASE = 0x20;
export const PCI_MEMORY_LIMIT = 0x22;
export const PCI_MEMORY_RANGE_MASK = 0xfff0;
export const PCI_PREF_MEMORY_BASE = 0x24;
export const PCI_PREF_MEMORY_LIMIT = 0x26;
export const PCI_PREF_RANGE_TYPE_MASK = 0x0f;
export const PCI_PREF_RANGE_TYPE_64 = 0x01;
export const PCI_PREF_RANGE_MASK = 0xfff0;
export const PCI_PREF_BASE_UPPER32 = 0x28;
export const PCI_PREF_LIMIT_UPPER32 = 0x2c;
export const PCI_BRIDGE_CONTROL = 0x3e;
/** Secondary bus reset. */
export const PCI_BRIDGE_CTL_BUS_RESET = 0x40;

/** Granularity of a bridge's memory windows. */
export const BRIDGE_WINDOW_ALIGNMENT = 0x10_0000;

/** `PCI_CLASS_BRIDGE_PCI` with programming interface 0 (include/linux/pci_ids.h). */
export const CLASS_BRIDGE_PCI = 0x06_0400;

/** Offset of BAR `index`, 0..5. */
export function barOffset(index: number): number {
  return PCI_BASE_ADDRESS_0 + index * 4;
}

export function devfnOf(device: number, fn: number): number {
  return (device << 3) | fn;
}

export function deviceOf(devfn: number): number {
  return devfn >> 3;
}

export function functionOf(devfn: number): number {
  return devfn & 7;
}

/** Interrupt pins, values of PCI_INTERRUPT_PIN: INTA# is 1. */
export type IntxPin = 1 | 2 | 3 | 4;

/** What `pin` of a function of `device` is above the bridge (PCIe 6.0 table 2-21; `pci_swizzle_interrupt_pin`). */
export function swizzleIntx(device: number, pin: IntxPin): IntxPin {
  return (((pin - 1 + device) % 4) + 1) as IntxPin;
}

/** Global interrupts 16 to 19, which PCI's four root pins share on PC chipsets. */
export const FIRST_INTX_LINE = 16;

/** The interrupt controller's input for a pin on a root bus: the routing that firmware would tell (ACPI `_PRT`). */
export function rootIntxLine(device: number, pin: IntxPin): number {
  return FIRST_INTX_LINE + swizzleIntx(device, pin) - 1;
}

/** Requester id (bus 15:8, device 7:3, function 2:0; PCIe 6.0 section 2.2.4.2). */
export function requesterIdOf(bus: number, devfn: number): number {
  return (bus << 8) | devfn;
}

/** `0000:6a:01.0`, as sysfs spells it. */
export function formatBdf(segment: number, bus: number, devfn: number): string {
  const two = (value: number): string => value.toString(16).padStart(2, '0');
  return `${segment.toString(16).padStart(4, '0')}:${two(bus)}:${two(devfn >> 3)}.${devfn & 7}`;
}
