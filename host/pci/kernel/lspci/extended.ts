/**
 * The `Capabilities:` lines of extended capabilities: ACS, ATS, SR-IOV, PRI, PASID, DVSEC, ARI, serial number in
 * full; of others the name. Layout of pciutils 3.14.
 */
import {
  extCapId, extCapNext, extCapVersion, PCI_ACS_CAP, PCI_ACS_CTRL, PCI_ATS_CAP, PCI_ATS_CTRL, PCI_BASE_ADDRESS_MEM_MASK,
  PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64, PCI_BASE_ADDRESS_MEM_TYPE_MASK, PCI_DVSEC_HEADER1, PCI_DVSEC_HEADER2,
  PCI_EXT_CAP_ID_ACS, PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_DVSEC, PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_ID_PRI, PCI_EXT_CAP_ID_SRIOV,
  PCI_EXT_CAP_START, PCI_PASID_CAP, PCI_PASID_CTRL, PCI_PRI_ALLOC_REQ, PCI_PRI_CTRL, PCI_PRI_MAX_REQ, PCI_PRI_STATUS, PCI_SRIOV_BAR,
  PCI_SRIOV_CAP, PCI_SRIOV_CTRL, PCI_SRIOV_FUNC_LINK, PCI_SRIOV_INITIAL_VF, PCI_SRIOV_NUM_BARS, PCI_SRIOV_NUM_VF, PCI_SRIOV_STATUS,
  PCI_SRIOV_SUP_PGSIZE, PCI_SRIOV_SYS_PGSIZE, PCI_SRIOV_TOTAL_VF, PCI_SRIOV_VF_DID, PCI_SRIOV_VF_OFFSET, PCI_SRIOV_VF_STRIDE,
} from '../../spec/index.js';
import { flag, flags, hexDigits } from './source.js';
import type { LspciFunction } from './source.js';

const EXT_CAP_ID_DSN = 0x03, EXT_CAP_ID_VENDOR = 0x0b, EXT_CAP_ID_ARI = 0x0e;
/** VF migration state array, at the end of the SR-IOV capability. */
const SRIOV_MIGRATION = 0x3c;

const NAMES: ReadonlyMap<number, string> = new Map([
  [0x00, 'Null'], [0x01, 'Advanced Error Reporting'], [0x02, 'Virtual Channel'], [0x04, 'Power Budgeting <?>'], [0x08, 'Multi-Function Virtual Channel <?>'],
  [0x09, 'Virtual Channel'], [0x0a, 'Root Complex Register Block <?>'],
  [0x12, 'Multicast'], [0x15, 'Physical Resizable BAR'], [0x16, 'Dynamic Power Allocation <?>'], [0x17, 'Transaction Processing Hints'],
  [0x18, 'Latency Tolerance Reporting'], [0x19, 'Secondary PCI Express'], [0x1c, 'LN Requester <?>'], [0x1d, 'Downstream Port Containment'],
  [0x1e, 'L1 PM Substates'], [0x1f, 'Precision Time Measurement'], [0x21, 'FRS Queueing <?>'], [0x22, 'Readiness Time Reporting <?>'],
  [0x25, 'Data Link Feature <?>'], [0x28, 'Hierarchy ID <?>'], [0x29, 'Native PCIe Enclosure Management <?>'],
]);

const ACS_NAMES = [['SrcValid', 1], ['TransBlk', 2], ['ReqRedir', 4], ['CmpltRedir', 8], ['UpstreamFwd', 0x10], ['EgressCtrl', 0x20], ['DirectTrans', 0x40]] as const;

/** Reads of one capability. */
interface At {
  readonly word: (offset: number) => number;
  readonly long: (offset: number) => number;
}

export function extendedCapabilityLines(fn: LspciFunction, verbose: number): string[] {
  const out: string[] = [];
  const seen = new Set<number>();
  for (let where = PCI_EXT_CAP_START, next; where !== 0; where = next) {
    const header = fn.config.read(where, 4);
    if (header === 0 || header === 0xffff_ffff) break;
    next = extCapNext(header);
    const start = `\tCapabilities: [${hexDigits(where, 3)}${verbose > 1 ? ` v${extCapVersion(header)}` : ''}] `;
    if (seen.has(where)) {
      out.push(`${start}<chain looped>`);
      break;
    }
    seen.add(where);
    const base = where;
    const at: At = { word: (offset) => fn.config.read(base + offset, 2), long: (offset) => fn.config.read(base + offset, 4) };
    const [first, ...rest] = linesOf(extCapId(header), at);
    out.push(start + first!, ...(verbose >= 2 ? rest : []));
  }
  return out;
}

function linesOf(id: number, at: At): string[] {
  switch (id) {
    case PCI_EXT_CAP_ID_ACS:
      return ['Access Control Services', `\t\tACSCap:\t${flags(at.word(PCI_ACS_CAP), ACS_NAMES)}`, `\t\tACSCtl:\t${flags(at.word(PCI_ACS_CTRL), ACS_NAMES)}`];
    case PCI_EXT_CAP_ID_ATS:
      return [
        'Address Translation Service (ATS)',
        `\t\tATSCap:\tInvalidate Queue Depth: ${hexDigits(at.word(PCI_ATS_CAP) & 0x1f, 2)}`,
        `\t\tATSCtl:\tEnable${flag(at.word(PCI_ATS_CTRL), 0x8000)}, Smallest Translation Unit: ${hexDigits(at.word(PCI_ATS_CTRL) & 0x1f, 2)}`,
      ];
    case PCI_EXT_CAP_ID_PRI:
      return [
        'Page Request Interface (PRI)',
        `\t\tPRICtl: ${flags(at.word(PCI_PRI_CTRL), [['Enable', 1], ['Reset', 2]])}`,
        `\t\tPRISta: ${flags(at.word(PCI_PRI_STATUS), [['RF', 1], ['UPRGI', 2], ['Stopped', 0x100], ['PASID', 0x8000]])}`,
        `\t\tPage Request Capacity: ${hexDigits(at.long(PCI_PRI_MAX_REQ), 8)}, Page Request Allocation: ${hexDigits(at.long(PCI_PRI_ALLOC_REQ), 8)}`,
      ];
    case PCI_EXT_CAP_ID_PASID:
      return [
        'Process Address Space ID (PASID)',
        `\t\tPASIDCap: ${flags(at.word(PCI_PASID_CAP), [['Exec', 2], ['Priv', 4]])}, Max PASID Width: ${hexDigits((at.word(PCI_PASID_CAP) >> 8) & 0x1f, 2)}`,
        `\t\tPASIDCtl: ${flags(at.word(PCI_PASID_CTRL), [['Enable', 1], ['Exec', 2], ['Priv', 4]])}`,
      ];
    case PCI_EXT_CAP_ID_SRIOV:
      return sriovLines(at);
    case PCI_EXT_CAP_ID_DVSEC: {
      const header = at.long(PCI_DVSEC_HEADER1);
      const revision = (header >>> 16) & 0xf, length = header >>> 20;
      return [`Designated Vendor-Specific: Vendor=${hexDigits(header & 0xffff, 4)} ID=${hexDigits(at.word(PCI_DVSEC_HEADER2), 4)} Rev=${revision} Len=${length} <?>`];
    }
    case EXT_CAP_ID_VENDOR: {
      const header = at.long(4);
      return [`Vendor Specific Information: ID=${hexDigits(header & 0xffff, 4)} Rev=${(header >>> 16) & 0xf} Len=${hexDigits(header >>> 20, 3)} <?>`];
    }
    case EXT_CAP_ID_ARI:
      return [
        'Alternative Routing-ID Interpretation (ARI)',
        `\t\tARICap:\t${flags(at.word(4), [['MFVC', 1], ['ACS', 2]])}, Next Function: ${at.word(4) >> 8}`,
        `\t\tARICtl:\t${flags(at.word(6), [['MFVC', 1], ['ACS', 2]])}, Function Group: ${(at.word(6) >> 4) & 7}`,
      ];
    case EXT_CAP_ID_DSN: {
      const digits = hexDigits(at.long(8), 8) + hexDigits(at.long(4), 8);
      return [`Device Serial Number ${(digits.match(/../g) ?? []).join('-')}`];
    }
    default:
      return [NAMES.get(id) ?? `Extended Capability ID 0x${id.toString(16).padStart(2, '0')}`];
  }
}

function sriovLines(at: At): string[] {
  const cap = at.long(PCI_SRIOV_CAP), control = at.word(PCI_SRIOV_CTRL);
  const out = [
    'Single Root I/O Virtualization (SR-IOV)',
    `\t\tIOVCap:\t${flags(cap, [['Migration', 1], ['10BitTagReq', 4]])} IntMsgNum ${cap >>> 21}`,
    `\t\tIOVCtl:\t${flags(control, [['Enable', 1], ['Migration', 2], ['Interrupt', 4], ['MSE', 8], ['ARIHierarchy', 0x10], ['10BitTagReq', 0x20]])}`,
    `\t\tIOVSta:\tMigration${flag(at.word(PCI_SRIOV_STATUS), 1)}`,
    `\t\tInitial VFs: ${at.word(PCI_SRIOV_INITIAL_VF)}, Total VFs: ${at.word(PCI_SRIOV_TOTAL_VF)}, Number of VFs: ${at.word(PCI_SRIOV_NUM_VF)}, ` +
      `Function Dependency Link: ${hexDigits(at.word(PCI_SRIOV_FUNC_LINK) & 0xff, 2)}`,
    `\t\tVF offset: ${at.word(PCI_SRIOV_VF_OFFSET)}, stride: ${at.word(PCI_SRIOV_VF_STRIDE)}, Device ID: ${hexDigits(at.word(PCI_SRIOV_VF_DID), 4)}`,
    `\t\tSupported Page Size: ${hexDigits(at.long(PCI_SRIOV_SUP_PGSIZE), 8)}, System Page Size: ${hexDigits(at.long(PCI_SRIOV_SYS_PGSIZE), 8)}`,
  ];
  for (let i = 0; i < PCI_SRIOV_NUM_BARS; i++) {
    const register = PCI_SRIOV_BAR + 4 * i;
    const lo = at.long(register);
    if (lo === 0 || lo === 0xffff_ffff) continue;
    const region = i;
    const is64 = (lo & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === PCI_BASE_ADDRESS_MEM_TYPE_64;
    const address = (is64 ? hexDigits(at.long(register + 4), 8) : '') + hexDigits((lo & PCI_BASE_ADDRESS_MEM_MASK) >>> 0, 8);
    const prefetch = (lo & PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0 ? '' : 'non-';
    const width = (lo & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === 0 ? '32' : '64';
    out.push(`\t\tRegion ${region}: Memory at ${address} (${width}-bit, ${prefetch}prefetchable)`);
    if (is64) i++;
  }
  const migration = at.long(SRIOV_MIGRATION);
  out.push(`\t\tVF Migration: offset: ${hexDigits((migration & 0xffff_fff8) >>> 0, 8)}, BIR: ${(migration & 7).toString(16)}`);
  return out;
}
