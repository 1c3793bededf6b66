/**
 * Names of classes, vendors and devices, and how lspci prints them with `-n`, `-nn` or neither. The table holds what
 * the shipped device models use; more can be given, in the shape of pci.ids.
 */
import { hexDigits } from './source.js';

export interface PciNames {
  /** By vendor id. */
  readonly vendors: ReadonlyMap<number, string>;
  /** By vendor id × 65536 + device id. */
  readonly devices: ReadonlyMap<number, string>;
}

/** 0: names, 1: numbers (`-n`), 2: both (`-nn`). */
export type NumericIds = 0 | 1 | 2;

const CLASSES: ReadonlyMap<number, string> = new Map([
  [0x00, 'Unclassified device'], [0x01, 'Mass storage controller'], [0x02, 'Network controller'], [0x03, 'Display controller'],
  [0x04, 'Multimedia controller'], [0x05, 'Memory controller'], [0x06, 'Bridge'], [0x07, 'Communication controller'],
  [0x08, 'Generic system peripheral'], [0x0b, 'Processor'], [0x0c, 'Serial bus controller'], [0x0d, 'Wireless controller'],
  [0x10, 'Encryption controller'], [0x11, 'Signal processing controller'], [0x12, 'Processing accelerators'],
]);

const SUBCLASSES: ReadonlyMap<number, string> = new Map([
  [0x0106, 'SATA controller'], [0x0108, 'Non-Volatile memory controller'], [0x0180, 'Mass storage controller'],
  [0x0200, 'Ethernet controller'], [0x0280, 'Network controller'], [0x0300, 'VGA compatible controller'], [0x0302, '3D controller'],
  [0x0600, 'Host bridge'], [0x0601, 'ISA bridge'], [0x0604, 'PCI bridge'], [0x0680, 'Bridge'], [0x0801, 'DMA controller'],
  [0x0700, 'Serial controller'], [0x0806, 'IOMMU'], [0x0880, 'System peripheral'], [0x1200, 'Processing accelerators'],
]);

const INTERFACES: ReadonlyMap<number, string> = new Map([
  [0x010601, 'AHCI 1.0'], [0x010802, 'NVM Express'], [0x030000, 'VGA controller'], [0x060400, 'Normal decode'], [0x060401, 'Subtractive decode'],
]);

export const DEFAULT_NAMES: PciNames = {
  vendors: new Map([
    [0x1022, 'Advanced Micro Devices, Inc. [AMD]'], [0x104c, 'Texas Instruments'], [0x13b5, 'ARM'], [0x19e5, 'Huawei Technologies Co., Ltd.'],
    [0x1af4, 'Red Hat, Inc.'], [0x1b36, 'Red Hat, Inc.'], [0x8086, 'Intel Corporation'],
  ]),
  devices: new Map([
    [0x104c_8232, 'XIO3130 PCI Express Switch (Upstream)'], [0x104c_8233, 'XIO3130 PCI Express Switch (Downstream)'],
    [0x1b36_0008, 'QEMU PCIe Host bridge'], [0x1b36_000c, 'QEMU PCIe Root port'], [0x1b36_000e, 'QEMU PCIe-to-PCI bridge'],
    [0x1b36_0010, 'QEMU NVM Express Controller'], [0x8086_347a, 'Ice Lake PCI Express Root Port A'],
  ]),
};

/** The class of a function, from its 16-bit class and subclass. */
export function className(classId: number, numeric: NumericIds): string {
  const number = hexDigits(classId, 4);
  if (numeric === 1) return number;
  const subclass = SUBCLASSES.get(classId);
  if (subclass !== undefined) return numeric === 2 ? `${subclass} [${number}]` : subclass;
  const base = CLASSES.get(classId >> 8);
  if (base !== undefined) return `${base} [${number}]`;
  return numeric === 2 ? `Class [${number}]` : `Class ${number}`;
}

/** Name of a programming interface; undefined when it has none. */
export function interfaceName(classId: number, programmingInterface: number): string | undefined {
  return INTERFACES.get(classId * 256 + programmingInterface);
}

/** Vendor and device, or subsystem, in one. */
export function deviceName(vendor: number, device: number, numeric: NumericIds, names: PciNames, subsystem = false): string {
  const number = `${hexDigits(vendor, 4)}:${hexDigits(device, 4)}`;
  if (numeric === 1) return number;
  const vendorName = names.vendors.get(vendor);
  const name = subsystem ? undefined : names.devices.get(vendor * 0x1_0000 + device);
  if (vendorName === undefined) return numeric === 2 ? `Device [${number}]` : `Device ${number}`;
  if (name === undefined) return numeric === 2 ? `${vendorName} Device [${number}]` : `${vendorName} Device ${hexDigits(device, 4)}`;
  return numeric === 2 ? `${vendorName} ${name} [${number}]` : `${vendorName} ${name}`;
}
