/** The checkers that watch every run. */
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Host } from '../compose/host.js';
import { OpenDevicesStay, SilentWhileClosed, StoppedDevicesAreQuiet, UuidsUnique } from './assigned-devices.js';
import { GuestMemoryIsOne, UnpinnedUnreachable, VendorsGiveBack } from './assigned-memory.js';
import { LocksInOrder } from './books.js';
import { DmaInsideContainers } from './containers.js';
import { DmaInsideMappings, FramesFreedUnreachable } from './dma.js';
import { QueuesTakeOwnPasid } from './enqueues.js';
import { FaultsStayWithTheirMm, FlushedWithoutLocks, GroupsHandledWhole, SilentAfterUnbind } from './faults.js';
import { sourceIdOf } from '../topology/units.js';
import { InterruptsAsRemapped } from './interrupts.js';
import type { Trace } from '../../sim/trace.js';
import { CheckerSet, type Checker, type SourceOf } from './invariant.js';
import { QuietAfterMmExit, SilentAfterMmExit } from './mm-exit.js';
import { AnswersAsGiven, GroupIndexUsedOnce, GroupsAnsweredOnce, RequestsWithinAllocation } from './page-groups.js';
import { PasidSingleOwner } from './pasids.js';
import { TranslationsForgotten } from './translations.js';

/** The function with that requester id, whether the topology names it or somebody plugged it in. */
function functionOf({ devices, tree }: Host, source: number): PciFunction | undefined {
  return devices.models.find((model) => model.function.requesterId === source)?.function ?? tree.complex.functions().find((fn) => fn.requesterId === source);
}

/** Source ids of devices by the numbers of their names in the trace. */
function sourcesOf({ trace, devices, pci }: Host): SourceOf {
  const sources = new Map(devices.models.map((model) => [trace.intern(model.bdf), sourceIdOf(model.bdf)]));
  return (deviceName) => {
    let source = sources.get(deviceName);
    // a function that was plugged in later
    if (source === undefined) source = pci.devices.find((device) => trace.intern(device.name) === deviceName)?.sourceId;
    if (source !== undefined) sources.set(deviceName, source);
    return source;
  };
}

/** Functions by their requester ids. */
function functionsOf(host: Host): (source: number) => PciFunction | undefined {
  const functions = new Map<number, PciFunction>();
  return (source) => {
    const known = functions.get(source);
    if (known?.requesterId === source && known.bus !== undefined) return known;
    const fn = functionOf(host, source);
    if (fn !== undefined) functions.set(source, fn);
    return fn;
  };
}

/** Watches devices in the hands of users. What of it does not happen in a run costs nothing. */
export function passthroughCheckers(host: Host): Checker[] {
  const { trace, devices, settings: { topology } } = host;
  const text = (id: number): string => trace.strings[id] ?? '?';
  const bdfs = new Map(devices.models.map(({ name, bdf }) => [trace.intern(name), trace.intern(bdf)]));
  const guests = new Map<number, number[]>();
  for (const guest of topology.guests) {
    for (const { mdev, host: whole } of guest.devices) {
      const definition = topology.mdevs.find(({ name, uuid }) => name === mdev || uuid === mdev?.toLowerCase());
      const device = mdev === undefined ? devices.models.find(({ name }) => name === whole)!.bdf : definition!.uuid;
      guests.set(trace.intern(device), [...(guests.get(trace.intern(device)) ?? []), trace.intern(guest.name)]);
    }
  }
  const guestsOf = (device: number): readonly number[] => guests.get(device) ?? [];
  const functionAt = functionsOf(host);
  return [
    new OpenDevicesStay(text),
    new UuidsUnique(text),
    new SilentWhileClosed(sourcesOf(host), (source) => {
      const fn = functionAt(source);
      return fn?.bus !== undefined && fn.busMaster;
    }),
    new StoppedDevicesAreQuiet(text),
    new UnpinnedUnreachable(),
    new VendorsGiveBack(text),
    new GuestMemoryIsOne(guestsOf, text),
    new QueuesTakeOwnPasid({ deviceOf: (name) => bdfs.get(name) ?? name, ofGuest: (mdev) => guestsOf(mdev).length > 0, text }),
    new InterruptsAsRemapped(),
  ];
}

export function standardCheckers(host: Host): Checker[] {
  const { trace, settings: { topology } } = host;
  const sourceOf = sourcesOf(host), functionAt = functionsOf(host);
  // users of devices come with guests, or with mediated devices that somebody may open
  const assigned = topology.guests.length + topology.mdevs.length + topology.host['mdev-parents'].length > 0;
  const text = (id: number): string => trace.strings[id] ?? '?';
  const translations = new TranslationsForgotten();
  const dma = new DmaInsideMappings({ sourceOf, translates: (typeName) => text(typeName) !== 'identity', guarded: host.unit !== undefined, translations });
  return [
    translations,
    dma,
    new FramesFreedUnreachable(dma),
    ...(assigned ? [new DmaInsideContainers(sourceOf, translations)] : []),
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
    ...(assigned ? passthroughCheckers(host) : []),
    new LocksInOrder(host.scheduler),
  ];
}

/** What can be said of an external guest, of whom only hardware is ours: it looks at functions and the fabric alone. */
export function servedCheckers(trace: Trace, functions: readonly PciFunction[]): CheckerSet {
  const allocated = (source: number): number => functions.find(({ requesterId }) => requesterId === source)?.pri?.allocated ?? 0;
  return new CheckerSet(trace, [new TranslationsForgotten(), new GroupsAnsweredOnce(), new GroupIndexUsedOnce(), new RequestsWithinAllocation(allocated)]);
}
