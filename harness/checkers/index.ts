/** The checkers that watch every run. */
import type { Host } from '../compose/host.js';
import { DmaInsideMappings, KernelDmaInsideDomains } from './dma.js';
import { FaultsStayWithTheirMm, SilentAfterUnbind } from './faults.js';
import type { Checker } from './invariant.js';
import { GroupsAnsweredOnce, RequestsWithinAllocation } from './page-groups.js';
import { PasidSingleOwner } from './pasids.js';

export function standardCheckers(host: Host): Checker[] {
  const { trace, devices } = host;
  const sources = new Map(devices.models.map((model) => [trace.intern(model.bdf), (model.topology.bdf.bus << 8) | (model.topology.bdf.device << 3) | model.topology.bdf.function]));
  const sourceOf = (deviceName: number): number | undefined => sources.get(deviceName);
  return [
    new DmaInsideMappings(sourceOf),
    new KernelDmaInsideDomains(
      sourceOf,
      (typeName) => trace.strings[typeName] !== 'identity',
    ),
    new GroupsAnsweredOnce(),
    new RequestsWithinAllocation((source) => devices.models.find((model) => model.function.requesterId === source)?.function.priAllocation ?? 0),
    new FaultsStayWithTheirMm(),
    new SilentAfterUnbind(),
    new PasidSingleOwner(),
  ];
}
