/**
 * The `Capabilities:` lines of standard capabilities: power management, MSI and MSI-X in full, PCI Express in
 * express.ts, vendor-specific ones their length, of others the name. Layout of pciutils 3.14.
 */
import {
  PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_PM, PCI_CAP_LIST_ID, PCI_CAP_LIST_NEXT, PCI_CAPABILITY_LIST,
  PCI_MSI_ADDRESS_HI, PCI_MSI_ADDRESS_LO, PCI_MSI_DATA_64, PCI_MSI_FLAGS_64BIT, PCI_MSI_FLAGS_ENABLE, PCI_MSI_FLAGS_MASKBIT,
  PCI_MSI_FLAGS_QMASK, PCI_MSI_FLAGS_QSIZE, PCI_MSI_MASK_64, PCI_MSI_PENDING_64, PCI_MSIX_FLAGS_ENABLE, PCI_MSIX_FLAGS_MASKALL,
  PCI_MSIX_FLAGS_QSIZE, PCI_MSIX_PBA, PCI_MSIX_TABLE, PCI_MSIX_TABLE_BIR, PCI_MSIX_TABLE_OFFSET, PCI_PM_CTRL, PCI_STATUS,
  PCI_STATUS_CAP_LIST,
} from '../../spec/index.js';
import { expressLines } from './express.js';
import { extendedCapabilityLines } from './extended.js';
import { deviceName } from './names.js';
import { flag, flags, hexDigits } from './source.js';
import type { NumericIds, PciNames } from './names.js';
import type { LspciFunction } from './source.js';

/** Registers of the 32-bit MSI layout lie four bytes lower. */
const MSI_32_SHIFT = 4;
const CAP_ID_VENDOR = 0x09, CAP_ID_SUBSYSTEM = 0x0d;
const PM_BRIDGE_EXTENSIONS = 6;
const PM_AUX_CURRENT = [0, 55, 100, 160, 220, 270, 320, 375];

const NAMES: ReadonlyMap<number, string> = new Map([
  [0x00, 'Null'], [0x06, 'CompactPCI hot-swap <?>'], [0x0b, 'CompactPCI central resource control <?>'], [0x0c, 'Hot-plug capable'],
  [0x0e, 'AGP3 <?>'], [0x0f, 'Secure device <?>'],
]);

/** All capability lines of a function, extended ones too. */
export function capabilityLines(fn: LspciFunction, verbose: number, numeric: NumericIds, names: PciNames): string[] {
  const { config } = fn;
  const out: string[] = [];
  let express = false;
  if ((config.read(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST) !== 0) {
    const seen = new Set<number>();
    for (let at = config.read(PCI_CAPABILITY_LIST, 1) & ~3; at !== 0; at = config.read(at + PCI_CAP_LIST_NEXT, 1) & ~3) {
      const start = `\tCapabilities: [${hexDigits(at, 2)}] `;
      const id = config.read(at + PCI_CAP_LIST_ID, 1);
      if (seen.has(at) || id === 0xff) {
        out.push(start + (seen.has(at) ? '<chain looped>' : '<chain broken>'));
        break;
      }
      seen.add(at);
      const lines = standardLines(fn, at, id, verbose, numeric, names);
      out.push(start + lines[0]!, ...lines.slice(1));
      express ||= id === PCI_CAP_ID_EXP;
    }
  }
  if (express) out.push(...extendedCapabilityLines(fn, verbose));
  return out;
}

function standardLines(fn: LspciFunction, at: number, id: number, verbose: number, numeric: NumericIds, names: PciNames): string[] {
  switch (id) {
    case PCI_CAP_ID_PM:
      return powerManagementLines(fn, at, verbose);
    case PCI_CAP_ID_MSI:
      return msiLines(fn, at, verbose);
    case PCI_CAP_ID_MSIX:
      return msixLines(fn, at, verbose);
    case PCI_CAP_ID_EXP:
      return expressLines(fn, at, verbose);
    case CAP_ID_VENDOR:
      return [`Vendor Specific Information: Len=${hexDigits(fn.config.read(at + 2, 1), 2)} <?>`];
    case CAP_ID_SUBSYSTEM:
      return [`Subsystem: ${deviceName(fn.config.read(at + 4, 2), fn.config.read(at + 6, 2), numeric, names, true)}`];
    default:
      return [NAMES.get(id) ?? `Capability ID 0x${id.toString(16).padStart(2, '0')} [${hexDigits(fn.config.read(at + 2, 2), 4)}]`];
  }
}

function powerManagementLines(fn: LspciFunction, at: number, verbose: number): string[] {
  const cap = fn.config.read(at + 2, 2);
  const out = [`Power Management version ${cap & 7}`];
  if (verbose < 2) return out;
  const states = flags(cap, [['PMEClk', 0x8], ['DSI', 0x20], ['D1', 0x200], ['D2', 0x400]]);
  const wakes = flags(cap, [['D0', 0x800], ['D1', 0x1000], ['D2', 0x2000], ['D3hot', 0x4000], ['D3cold', 0x8000]]).replaceAll(' ', ',');
  out.push(`\t\tFlags: ${states} AuxCurrent=${PM_AUX_CURRENT[(cap & 0x1c0) >> 6]!}mA PME(${wakes})`);
  const control = fn.config.read(at + PCI_PM_CTRL, 2);
  out.push(
    `\t\tStatus: D${control & 3} NoSoftRst${flag(control, 8)} PME-Enable${flag(control, 0x100)} ` +
    `DSel=${(control & 0x1e00) >> 9} DScale=${(control & 0x6000) >> 13} PME${flag(control, 0x8000)}`,
  );
  const bridge = fn.config.read(at + PM_BRIDGE_EXTENSIONS, 1);
  if (bridge !== 0) out.push(`\t\tBridge: PM${flag(bridge, 0x80)} B3${flag(~bridge, 0x40)}`);
  return out;
}

function msiLines(fn: LspciFunction, at: number, verbose: number): string[] {
  const { config } = fn;
  const cap = config.read(at + 2, 2);
  const count = `${1 << ((cap & PCI_MSI_FLAGS_QSIZE) >> 4)}/${1 << ((cap & PCI_MSI_FLAGS_QMASK) >> 1)}`;
  const out = [`MSI: Enable${flag(cap, PCI_MSI_FLAGS_ENABLE)} Count=${count} Maskable${flag(cap, PCI_MSI_FLAGS_MASKBIT)} 64bit${flag(cap, PCI_MSI_FLAGS_64BIT)}`];
  if (verbose < 2) return out;
  const is64 = (cap & PCI_MSI_FLAGS_64BIT) !== 0;
  const shift = is64 ? 0 : MSI_32_SHIFT;
  const hi = is64 ? hexDigits(config.read(at + PCI_MSI_ADDRESS_HI, 4), 8) : '';
  out.push(`\t\tAddress: ${hi}${hexDigits(config.read(at + PCI_MSI_ADDRESS_LO, 4), 8)}  Data: ${hexDigits(config.read(at + PCI_MSI_DATA_64 - shift, 2), 4)}`);
  if ((cap & PCI_MSI_FLAGS_MASKBIT) !== 0) {
    const mask = config.read(at + PCI_MSI_MASK_64 - shift, 4), pending = config.read(at + PCI_MSI_PENDING_64 - shift, 4);
    out.push(`\t\tMasking: ${hexDigits(mask, 8)}  Pending: ${hexDigits(pending, 8)}`);
  }
  return out;
}

function msixLines(fn: LspciFunction, at: number, verbose: number): string[] {
  const cap = fn.config.read(at + 2, 2);
  const out = [`MSI-X: Enable${flag(cap, PCI_MSIX_FLAGS_ENABLE)} Count=${(cap & PCI_MSIX_FLAGS_QSIZE) + 1} Masked${flag(cap, PCI_MSIX_FLAGS_MASKALL)}`];
  if (verbose < 2) return out;
  const place = (offset: number): string => {
    const word = fn.config.read(at + offset, 4);
    return `BAR=${word & PCI_MSIX_TABLE_BIR} offset=${hexDigits((word & PCI_MSIX_TABLE_OFFSET) >>> 0, 8)}`;
  };
  out.push(`\t\tVector table: ${place(PCI_MSIX_TABLE)}`, `\t\tPBA: ${place(PCI_MSIX_PBA)}`);
  return out;
}
