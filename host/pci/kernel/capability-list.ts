/**
 * Walks of the two capability lists (PCIe Base 6.0 sections 7.5.1.1.11 and 7.6.3). A list is a chain of bytes that
 * a broken or hostile function may close to a ring, so each offset is visited once and the walk has a bound.
 */
import {
  extCapId, extCapNext, extCapVersion, PCI_CAP_LIST_ID, PCI_CAP_LIST_NEXT, PCI_CAPABILITY_LIST, PCI_DVSEC_HEADER1,
  PCI_DVSEC_HEADER2, PCI_EXT_CAP_ID_DVSEC, PCI_EXT_CAP_START, PCI_STATUS, PCI_STATUS_CAP_LIST,
} from '../spec/index.js';
import type { ConfigWindow } from './pci-device.js';

export interface CapabilityEntry {
  readonly id: number;
  readonly offset: number;
  /** 0 for standard capabilities. */
  readonly version: number;
}

/** Standard capabilities fit in the 192 bytes behind the header, 4 bytes apart. */
const MAX_STANDARD = 48;
/** (4096 - 256) / 8 bytes. */
const MAX_EXTENDED = 480;

/** Standard capabilities in list order; stops at the first offset seen twice. */
export function listCapabilities(config: ConfigWindow): CapabilityEntry[] {
  const found: CapabilityEntry[] = [];
  const status = config.read(PCI_STATUS, 2);
  if (status === 0xffff || (status & PCI_STATUS_CAP_LIST) === 0) return found;
  const seen = new Set<number>();
  let offset = config.read(PCI_CAPABILITY_LIST, 1) & ~3;
  while (offset >= 0x40 && !seen.has(offset) && found.length < MAX_STANDARD) {
    seen.add(offset);
    const id = config.read(offset + PCI_CAP_LIST_ID, 1);
    if (id === 0xff) break;
    found.push({ id, offset, version: 0 });
    offset = config.read(offset + PCI_CAP_LIST_NEXT, 1) & ~3;
  }
  return found;
}

/** Extended capabilities in list order; stops at the first offset seen twice. */
export function listExtCapabilities(config: ConfigWindow): CapabilityEntry[] {
  const found: CapabilityEntry[] = [];
  const seen = new Set<number>();
  let offset = PCI_EXT_CAP_START;
  while (offset >= PCI_EXT_CAP_START && !seen.has(offset) && found.length < MAX_EXTENDED) {
    seen.add(offset);
    const header = config.read(offset, 4);
    if (header === 0 || header === 0xffff_ffff) break;
    found.push({ id: extCapId(header), offset, version: extCapVersion(header) });
    offset = extCapNext(header);
  }
  return found;
}

/** Offset of the designated vendor-specific capability of `vendor` with `id` (`pci_find_dvsec_capability`). */
export function findDvsec(config: ConfigWindow, capabilities: readonly CapabilityEntry[], vendor: number, id: number): number | undefined {
  return capabilities.find(
    (entry) =>
      entry.id === PCI_EXT_CAP_ID_DVSEC &&
      config.read(entry.offset + PCI_DVSEC_HEADER1, 2) === vendor &&
      config.read(entry.offset + PCI_DVSEC_HEADER2, 2) === id,
  )?.offset;
}
