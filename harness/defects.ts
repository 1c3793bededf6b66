/**
 * Named defects of the product. Tests switch them on to prove that a checker or a flow's own check can fail; nothing
 * else may. Each is caught by at least one test (test/defects), or it has no business here.
 */
import { InvalidInput, nearest } from './topology/problems.js';

export interface Defect {
  /** Room whose code misbehaves. */
  readonly room: 'host/mm' | 'host/pci' | 'iommu/core' | 'iommu/intel-vtd/driver' | 'iommu/intel-vtd/hardware' | 'vfio' | 'vfio/user' | 'mdev' | 'devices/dsa' | 'devices/edu' | 'devices/mtty' | 'devices/nvme' | 'guest';
  /** What breaks, in one sentence. */
  readonly breaks: string;
}

function of(room: Defect['room'], breaks: Readonly<Record<string, string>>): [string, Defect][] {
  return Object.entries(breaks).map(([name, text]) => [name, { room, breaks: text }]);
}

/** Every defect by name. */
export const DEFECTS: ReadonlyMap<string, Defect> = new Map<string, Defect>([
  ...of('host/mm', {
    'frames.skip-zeroing': 'Frames are handed out with what their last owner left in them.',
    'mm.skip-notify': 'Notifiers are not told of entries that were removed or restricted.',
    'mm.free-before-notify': 'Frames are freed before the notifiers have invalidated.',
    'mm.fork-stays-writable': "A fork leaves the parent's private pages writable.",
    'mm.ignore-area-protection': 'A fault maps pages with all rights, whatever the area allows.',
  }),
  ...of('host/pci', {
    'pci.bypass-iommu': 'Requests reach memory at their untranslated address.',
    'pci.forge-translated': 'A device marks addresses of its own choice as translated.',
    'pci.intx-ignore-disable': 'A function asserts its interrupt pin though INTx is disabled.',
    'pci.ignore-bus-master': 'A function goes on with DMA after bus mastering was switched off.',
    'pci.translated-without-ats': 'A function sends translation requests and translated requests while ATS is off.',
    'pci.ignore-invalidation': 'A device completes invalidations and keeps what it should have dropped.',
    'pci.early-invalidate-completion': 'A device completes an invalidation before requests that used what it dropped.',
    'pci.keep-raced-translation': 'A translation enters the cache though an invalidation overtook it.',
    'pci.atc-pasid-less-invalidation': 'An invalidation without PASID misses entries that have one.',
    'pci.reuse-prg-index': 'Every page request group gets index 0.',
    'pci.ignore-pri-allocation': 'More page requests are outstanding than software allocated.',
    'pci.msi-ignore-mask': 'Masked MSI vectors send their messages.',
    'pci.msix-ignore-mask': 'Masked MSI-X vectors send their messages.',
    'pci.groups-ignore-acs': 'Every function is an IOMMU group of its own, isolated or not.',
    'pci.vf-stu-unchecked': "ATS of a virtual function takes a translation unit that is not its physical function's.",
    'pci.pri-enable-not-stopped': 'PRI is enabled while requests from before are outstanding.',
    'pci.reset-forgets-pasid': 'A reset does not restore PASID.',
  }),
  ...of('iommu/core', {
    'core.answer-twice': 'A page request group is answered twice.',
    'core.collect-any-group': 'The last request of a group takes the partial requests of all others along.',
    'core.fault-after-error': 'A group goes on after one of its requests failed.',
    'core.fault-in-wrong-mm': 'Page requests are served from the process that owns the PASID below.',
    'core.flush-under-sva-lock': 'Unbind flushes the fault queue under a lock that its workers take.',
    'core.ignore-response-pasid': 'A response matches a request of another PASID.',
    'core.keep-partials-on-overflow': 'Partial groups survive an overflow of the page request queue.',
    'core.lose-response': 'Groups with an odd index are never answered.',
    'core.mm-exit-twice': 'A driver’s mm_exit is called twice.',
    'core.pasid-freed-early': 'A PASID is free once its last bond is gone, though its mm lives.',
    'core.pasid-never-freed': 'A PASID is not given back.',
    'core.put-mm-in-worker': 'A fault worker drops the last user of an mm, which flushes its own queue.',
    'core.refuse-page-requests': 'Page requests are answered Invalid, no page is faulted in.',
    'core.skip-sva-invalidate': 'Changes of a process’s page table are not invalidated.',
    'core.skip-sva-silence': 'The end of an mm leaves its devices translating.',
    'core.skip-unmap-flush': 'An unmap of a domain is not invalidated.',
  }),
  ...of('iommu/intel-vtd/driver', {
    'vtd-driver.generic-failure-code': "FAILURE goes out as the generic enum's 2 instead of the wire's 15.",
    'vtd-driver.log-after-exit': 'The entry of a dead process is cleared without FPD, so that faults are recorded.',
    'vtd-driver.lose-page-requests': 'Page requests are taken from the queue and forgotten.',
    'vtd-driver.skip-device-tlb-flush': 'Device TLBs are never invalidated.',
    'vtd-driver.skip-iec-flush': 'Interrupt remapping entries change and the entry cache is not invalidated.',
    'vtd-driver.skip-iotlb-flush': 'Ranges are invalidated in device TLBs only.',
    'vtd-driver.skip-pasid-cache-flush': 'A PASID entry is torn down without invalidating the PASID cache.',
    'vtd-driver.skip-prq-drain': 'A bond ends while page requests of its PASID are under way.',
  }),
  ...of('iommu/intel-vtd/hardware', {
    'vtd.ignore-fpd': 'Faults are recorded though FPD forbids it.',
    'vtd.ignore-irte-source': 'Whoever names an interrupt remapping entry may use it.',
    'vtd.ignore-user-bit': 'User requests reach supervisor pages.',
    'vtd.lose-overflow-answer': 'Groups whose last request overflowed get no answer.',
    'vtd.lose-page-response': 'Page group responses are taken from the queue and not sent.',
    'vtd.skip-device-tlb-flush': 'Device-TLB invalidations complete without being sent.',
    'vtd.skip-dirty-bit': 'Writes do not set D.',
    'vtd.skip-iotlb-flush': 'IOTLB invalidations do nothing.',
    'vtd.skip-pasid-cache-flush': 'PASID-cache invalidations do nothing.',
    'vtd.untagged-pasid': 'Cached translations are shared by all PASIDs.',
    'vtd.wait-ignores-device-tlb': 'Wait descriptors complete before device TLBs have answered.',
    'vtd.wrong-group-index': 'Page group responses carry the next group index.',
  }),
  ...of('vfio', {
    'migration.keep-running-in-stop-copy': 'Drivers are not told of the arcs that stop their device.',
    'vfio.keep-dma-owner': 'A group that leaves its container stays owned.',
    'vfio.skip-dma-unmap-notify': "Drivers that pin their user's pages are not told of an unmap.",
    'vfio.skip-replay-rollback': 'A group that could not join leaves pinned what the attempt had pinned.',
    'vfio.skip-unpin': 'Pages of a mapping stay pinned after its end.',
    'vfio.unpin-before-flush': 'Pages are given back before the invalidation of their translations.',
    'vfio.unregister-does-not-wait': 'A device goes while its user has it open.',
    'vfio.unset-with-open-devices': 'A group leaves its container while its devices are open.',
    'vfio.wrong-rlimit': 'Everybody may lock memory beyond RLIMIT_MEMLOCK.',
    'vfio-pci.ats-not-hidden': "ATS, PRI and PASID stand in the configuration space that a user sees.",
    'vfio-pci.bar-write-through': "What a user writes to a BAR moves the function's real one.",
    'vfio-pci.master-stays-on': 'A function that its user has closed may still do DMA.',
  }),
  ...of('mdev', {
    'mdev.instance-leak': "The parent's driver is not told of the end of a mediated device.",
    'mdev.remove-open-device': 'A mediated device ends while its user has it open.',
    'mdev.uuid-unique-per-parent': 'Two parents have mediated devices of one UUID.',
  }),
  ...of('devices/dsa', {
    'dsa.completion-before-data': 'The completion record is written before the data.',
    'dsa.drain-returns-early': 'Drain and disable commands complete while descriptors are in progress.',
    'dsa.drop-pasid': 'Requests carry no PASID.',
    'dsa.ignore-abort': 'Descriptors in progress go on after an abort.',
    'dsa.ignore-threshold': 'A limited portal accepts descriptors beyond the threshold.',
    'idxd.exit-without-abort': 'The driver’s mm_exit returns without stopping the device.',
    'idxd.unpin-before-completion': 'The driver gives pages back while the device works on them.',
    'vdsa.guest-pasid-trusted': 'A mediated device uses the PASID that its user names.',
    'vdsa.portal-stays-mapped': 'Who has closed a mediated device still reaches the portal of its queue.',
    'vdsa.posted-to-shared': 'Plain stores pass through to a shared portal.',
  }),
  ...of('devices/edu', {
    'edu.ignore-dma-mask': 'Addresses beyond the DMA mask are not truncated.',
  }),
  ...of('devices/mtty', {
    'mtty.lose-dirty': 'The log of what the device writes stays empty.',
    'mtty.never-unpin': "Transfers keep their user's pages, also when told of an unmap.",
    'mtty.pin-leak': 'Each transfer leaves a page pinned.',
  }),
  ...of('vfio/user', {
    'vfio-user.keep-windows': "A client's memory stays mapped after the client is gone.",
    'vfio-user.leak-descriptors': 'Descriptors that a message brings and nobody takes stay open.',
    'vfio-user.unrecorded-read': 'Small reads of a client’s memory are not recorded.',
    'vfio-user.unrecorded-signal': 'A recording does not know when a client signals.',
  }),
  ...of('devices/nvme', {
    'nvme-driver.unmap-before-completion': 'The driver unmaps and unpins buffers while the controller works on them.',
    'nvme.completion-before-data': 'The completion of a read is posted before its data.',
    'nvme.ready-clears-early': 'The controller says that it has stopped while commands still move data.',
  }),
  ...of('guest', {
    'kvm.enqcmd-untranslated': "What a guest enqueues leaves with the guest's PASID.",
    'kvm.stale-translation': "Guest-physical addresses lead where the VMM's memory was.",
    'vmm.map-wrong-slot': "Devices find the first block of a guest's memory in place of every other.",
  }),
]);

/** Refuses names that are no defect. @throws InvalidInput with each of them and the nearest that is one */
export function checkDefects(names: Iterable<string>): void {
  const problems = [...names].filter((name) => !DEFECTS.has(name)).map((name) => {
    const near = nearest(name, [...DEFECTS.keys()]);
    return { file: '<options>', path: 'defects', message: `unknown defect "${name}"${near === undefined ? `; there are ${DEFECTS.size}, see harness/defects.ts` : `; did you mean "${near}"?`}` };
  });
  if (problems.length > 0) throw new InvalidInput(problems);
}
