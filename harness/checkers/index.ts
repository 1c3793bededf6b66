/** The checkers that watch every run. */
import type { Host } from '../compose/host.js';
import { DmaInsideMappings, KernelDmaInsideDomains } from './dma.js';
import { FaultsStayWithTheirMm, SilentAfterUnbind } from './faults.js';
import type { Checker } from './invariant.js';
import { GroupsAnsweredOnce, RequestsWithinAllocation } from './page-groups.js';
import { PasidSingleOwner } from './pasids.js';

export function standardCheckers(host: Host): Checker[] {
  const { trace, devices } = host;
  return [
    new DmaInsideMappings(),
    new KernelDmaInsideDomains(
      (deviceName) => devices.models.find((model) => model.bdf === trace.strings[deviceName])?.function.requesterId,
      (typeName) => trace.strings[typeName] !== 'identity',
    ),
    new GroupsAnsweredOnce(),
    new RequestsWithinAllocation((source) => devices.models.find((model) => model.function.requesterId === source)?.function.priAllocation ?? 0),
    new FaultsStayWithTheirMm(),
    new SilentAfterUnbind(),
    new PasidSingleOwner(),
  ];
}
