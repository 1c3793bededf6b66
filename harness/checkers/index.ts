/** The checkers that watch every run. */
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Host } from '../compose/host.js';
import { LocksInOrder } from './books.js';
import { DmaInsideContainers } from './containers.js';
import { DmaInsideMappings, FramesFreedUnreachable } from './dma.js';
import { FaultsStayWithTheirMm, FlushedWithoutLocks, GroupsHandledWhole, SilentAfterUnbind } from './faults.js';
import { sourceIdOf } from '../topology/units.js';
import type { Checker } from './invariant.js';
import { QuietAfterMmExit, SilentAfterMmExit } from './mm-exit.js';
import { AnswersAsGiven, GroupIndexUsedOnce, GroupsAnsweredOnce, RequestsWithinAllocation } from './page-groups.js';
import { PasidSingleOwner } from './pasids.js';
import { TranslationsForgotten } from './translations.js';

/** The function with that requester id, whether the topology names it or somebody plugged it in. */
function functionOf({ devices, tree }: Host, source: number): PciFunction | undefined {
  return devices.models.find((model) => model.function.requesterId === source)?.function ?? tree.complex.functions().find((fn) => fn.requesterId === source);
}

export function standardCheckers(host: Host): Checker[] {
  const { trace, devices } = host;
  const sources = new Map(devices.models.map((model) => [trace.intern(model.bdf), sourceIdOf(model.bdf)]));
  const sourceOf = (deviceName: number): number | undefined => {
    let source = sources.get(deviceName);
    // a function that was plugged in later
    if (source === undefined) source = host.pci.devices.find((device) => trace.intern(device.name) === deviceName)?.sourceId;
    if (source !== undefined) sources.set(deviceName, source);
    return source;
  };
  const functions = new Map<number, PciFunction>();
  const functionAt = (source: number): PciFunction | undefined => {
    const known = functions.get(source);
    if (known?.requesterId === source && known.bus !== undefined) return known;
    const fn = functionOf(host, source);
    if (fn !== undefined) functions.set(source, fn);
    return fn;
  };
  const text = (id: number): string => trace.strings[id] ?? '?';
  const translations = new TranslationsForgotten();
  const dma = new DmaInsideMappings({ sourceOf, translates: (typeName) => text(typeName) !== 'identity', guarded: host.unit !== undefined, translations });
  return [
    translations,
    dma,
    new FramesFreedUnreachable(dma),
    ...(host.settings.topology.guests.length + host.settings.topology.mdevs.length === 0 ? [] : [new DmaInsideContainers(sourceOf, translations)]),
    new GroupsAnsweredOnce(),
    new GroupIndexUsedOnce(),
    new RequestsWithinAllocation((source) => functionAt(source)?.pri?.allocated ?? 0),
    new AnswersAsGiven(sourceOf),
    new GroupsHandledWhole(sourceOf),
    new FaultsStayWithTheirMm(),
    new SilentAfterUnbind(sourceOf),
    new FlushedWithoutLocks(text),
    new SilentAfterMmExit(sourceOf),
    new QuietAfterMmExit(sourceOf),
    new PasidSingleOwner(),
    new LocksInOrder(host.scheduler),
  ];
}
