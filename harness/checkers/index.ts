/** The checkers that watch every run. */
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Host } from '../compose/host.js';
import { DmaInsideMappings, KernelDmaInsideDomains } from './dma.js';
import { FaultsStayWithTheirMm, SilentAfterUnbind } from './faults.js';
import type { Checker } from './invariant.js';
import { GroupsAnsweredOnce, RequestsWithinAllocation } from './page-groups.js';
import { PasidSingleOwner } from './pasids.js';

/** The function with that requester id, whether the topology names it or somebody plugged it in. */
function functionOf({ devices, tree }: Host, source: number): PciFunction | undefined {
  return devices.models.find((model) => model.function.requesterId === source)?.function ?? tree.complex.functions().find((fn) => fn.requesterId === source);
}

export function standardCheckers(host: Host): Checker[] {
  const { trace, devices } = host;
  const sources = new Map(devices.models.map((model) => [trace.intern(model.bdf), (model.topology.bdf.bus << 8) | (model.topology.bdf.device << 3) | model.topology.bdf.function]));
  const sourceOf = (deviceName: number): number | undefined => {
    let source = sources.get(deviceName);
    // a function that was plugged in later
    if (source === undefined) source = host.pci.devices.find((device) => trace.intern(device.name) === deviceName)?.sourceId;
    if (source !== undefined) sources.set(deviceName, source);
    return source;
  };
  return [
    new DmaInsideMappings(sourceOf),
    new KernelDmaInsideDomains(
      sourceOf,
      (typeName) => trace.strings[typeName] !== 'identity',
    ),
    new GroupsAnsweredOnce(),
    new RequestsWithinAllocation((source) => functionOf(host, source)?.priAllocation ?? 0),
    new FaultsStayWithTheirMm(),
    new SilentAfterUnbind(),
    new PasidSingleOwner(),
  ];
}
