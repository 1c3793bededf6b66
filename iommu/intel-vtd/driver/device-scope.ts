/** Which unit serves a function, by the device scopes of the DMAR table (VT-d 4.1, section 8.3.1). */
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { SCOPE_BRIDGE, SCOPE_ENDPOINT, type Atsr, type DmarScope, type DmarTable, type Drhd } from '../spec/dmar.js';

/** The DRHD that names the function or a bridge above it, else the segment's INCLUDE_PCI_ALL one. */
export function drhdOf(table: DmarTable, device: PciDevice): Drhd | undefined {
  const own = device.physfn ?? device;
  const drhds = table.structures.filter((structure) => structure.kind === 'DRHD' && structure.segment === device.segment) as Drhd[];
  return drhds.find((drhd) => drhd.scopes.some((scope) => inScope(scope, own))) ?? drhds.find((drhd) => drhd.includeAll);
}

/**
 * Whether the root complex lets the function's translation requests through: always for integrated functions,
 * else when an ATSR names its root port or all of them (section 8.5; Linux: dmar_ats_supported).
 */
export function atsAllowed(table: DmarTable, device: PciDevice): boolean {
  let port = (device.physfn ?? device).upstream;
  if (port === undefined) return true;
  while (port.upstream !== undefined) port = port.upstream;
  const root = port;
  const atsrs = table.structures.filter((structure) => structure.kind === 'ATSR' && structure.segment === device.segment) as Atsr[];
  return atsrs.some((atsr) => atsr.allPorts || atsr.scopes.some((scope) => scope.type === SCOPE_BRIDGE && isAtPath(scope, root)));
}

export function inScope(scope: DmarScope, device: PciDevice): boolean {
  if (scope.type === SCOPE_ENDPOINT) return isAtPath(scope, device);
  if (scope.type !== SCOPE_BRIDGE) return false;
  for (let at: PciDevice | undefined = device; at !== undefined; at = at.upstream) if (isAtPath(scope, at)) return true;
  return false;
}

/** True when the path, from its start bus through one bridge per step, ends at the function. */
function isAtPath(scope: DmarScope, device: PciDevice): boolean {
  let at: PciDevice | undefined = device;
  for (let i = scope.path.length - 1; i >= 0; i--) {
    const step = scope.path[i]!;
    if (at === undefined || at.devfn !== ((step.device << 3) | step.function)) return false;
    if (i === 0) return at.bus === scope.startBus;
    at = at.upstream;
  }
  return false;
}
