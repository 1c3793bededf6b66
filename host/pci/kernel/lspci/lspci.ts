/**
 * What `lspci` would print of the simulated machine, byte for byte in the layout of pciutils 3.14, so that people
 * compare it with a real one's. Pure: reads configuration bytes, changes nothing.
 * Left out: names beyond a small table, AER and link-level extended capabilities beyond their names, CXL DVSECs.
 */
import { PCI_CFG_SPACE_EXP_SIZE, PCI_CFG_SPACE_SIZE, PCI_SECONDARY_BUS, PCI_STD_HEADER_SIZEOF, PCI_SUBORDINATE_BUS } from '../../spec/index.js';
import { compareBdf } from '../bdf.js';
import { deviceLines } from './device.js';
import { hexDumpLines } from './hex-dump.js';
import { DEFAULT_NAMES, deviceName } from './names.js';
import { matchesSlot, parseSlotFilter } from './slot-filter.js';
import { isBridge, treeLines } from './tree.js';
import type { NumericIds, PciNames } from './names.js';
import type { LspciFunction } from './source.js';

export interface LspciOptions {
  /** `-v`, `-vv`. Default 0. */
  readonly verbose?: 0 | 1 | 2;
  /** `-n` is 1, `-nn` is 2. Default 0. */
  readonly numeric?: NumericIds;
  /** `-x` is 1 (64 bytes), `-xxx` is 3 (256), `-xxxx` is 4 (4096). Default 0: none. */
  readonly hex?: 0 | 1 | 3 | 4;
  /** `-t`. */
  readonly tree?: boolean;
  /** `-s`: only the functions that it matches; in a tree, their branches. */
  readonly slot?: string;
  /** `-D`: always print the segment; otherwise only when there is one beside 0. */
  readonly segments?: boolean;
  readonly iommuGroupOf?: (fn: LspciFunction) => number | undefined;
  readonly driverOf?: (fn: LspciFunction) => string | undefined;
  readonly names?: PciNames;
}

/** Text of the functions in order of their names; empty when `slot` matches none. */
export function lspci(functions: readonly LspciFunction[], options: LspciOptions = {}): string {
  const { verbose = 0, numeric = 0, hex = 0, names = DEFAULT_NAMES } = options;
  const withSegment = options.segments ?? functions.some((fn) => fn.segment !== 0);
  const chosen = select(functions, options.slot).sort(compareBdf);
  if (options.tree === true) {
    return join(treeLines(branchOf(functions, chosen), verbose > 0 ? (fn) => deviceName(fn.vendorId, fn.deviceId, numeric, names) : undefined));
  }
  const out: string[] = [];
  for (const fn of chosen) {
    const shown = { verbose, numeric, withSegment, names, iommuGroup: options.iommuGroupOf?.(fn), driver: options.driverOf?.(fn) };
    out.push(...deviceLines(fn, shown));
    if (hex > 0) out.push(...hexDumpLines(fn, hex === 4 ? PCI_CFG_SPACE_EXP_SIZE : hex === 3 ? PCI_CFG_SPACE_SIZE : PCI_STD_HEADER_SIZEOF));
    if (verbose > 0 || hex > 0) out.push('');
  }
  return join(out);
}

function select(functions: readonly LspciFunction[], slot: string | undefined): LspciFunction[] {
  if (slot === undefined) return [...functions];
  const filter = parseSlotFilter(slot);
  return typeof filter === 'string' ? [] : functions.filter((fn) => matchesSlot(fn, filter));
}

/** The chosen functions with every bridge above them and everything below. */
function branchOf(functions: readonly LspciFunction[], chosen: readonly LspciFunction[]): LspciFunction[] {
  return functions.filter((fn) => chosen.some((one) => fn === one || leadsTo(fn, one) || leadsTo(one, fn)));
}

function leadsTo(bridge: LspciFunction, fn: LspciFunction): boolean {
  if (bridge.segment !== fn.segment || !isBridge(bridge)) return false;
  return bridge.config.read(PCI_SECONDARY_BUS, 1) <= fn.bus && fn.bus <= bridge.config.read(PCI_SUBORDINATE_BUS, 1);
}

function join(lines: readonly string[]): string {
  return lines.map((line) => `${line}\n`).join('');
}
