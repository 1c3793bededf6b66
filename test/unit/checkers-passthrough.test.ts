/** Checkers of devices in the hands of users can fail: hand-made traces that break each invariant, and their lawful neighbours that do not. */
import { describe, expect, it } from 'vitest';
import { OpenDevicesStay, SilentWhileClosed, StoppedDevicesAreQuiet, UuidsUnique } from '../../harness/checkers/assigned-devices.js';
import { GuestMemoryIsOne, UnpinnedUnreachable, VendorsGiveBack } from '../../harness/checkers/assigned-memory.js';
import { DmaInsideContainers } from '../../harness/checkers/containers.js';
import { QueuesTakeOwnPasid } from '../../harness/checkers/enqueues.js';
import { InterruptsAsRemapped } from '../../harness/checkers/interrupts.js';
import type { Checker } from '../../harness/checkers/invariant.js';
import { TranslationsForgotten } from '../../harness/checkers/translations.js';
import { INTERRUPT_ENTRY_CACHE_INVALIDATE } from '../../iommu/intel-vtd/spec/descriptors.js';
import { told, type Line, type Values } from '../fixtures/story.js';

/** Names as numbers of the trace: an accelerator in the topology and on its bus, mediated devices, a guest. */
const DSA = 6, DEVICE = 7, MDEV = 8, OTHER = 9, GUEST = 11, OFF = 13;
const SOURCE = 0x6a08, GROUP = 3, CONTAINER = 1, DOMAIN = 5, PASID = 2;
const sourceOf = (name: number): number | undefined => (name === DEVICE ? SOURCE : undefined);

type Case = readonly [what: string, story: readonly Line[], violation: RegExp | undefined];

function judges(checker: () => Checker[], cases: readonly Case[]): void {
  it.each(cases)('%s', (_what, story, violation) => {
    const texts = told(checker(), story);
    if (violation === undefined) expect(texts).toEqual([]);
    else expect(texts.join('\n')).toMatch(violation);
  });
}

const open = (device = MDEV, group = GROUP): Line => ['vfio:open_device', { device, group }];
const close = (device = MDEV, group = GROUP): Line => ['vfio:close_device', { device, group }];
const joined = (group = GROUP, container = CONTAINER): Line => ['vfio:group_set_container', { group, container }];
const left = (group = GROUP, container = CONTAINER): Line => ['vfio:group_unset_container', { group, container }];
const create = (uuid = MDEV, parent = DEVICE, group = GROUP): Line => ['mdev:create', { uuid, parent, group }];
const remove = (uuid = MDEV): Line => ['mdev:remove', { uuid }];

describe('a device goes only after its user has closed it', () => {
  const unregister: Line = ['vfio:unregister', { device: MDEV, group: GROUP }];
  judges(() => [new OpenDevicesStay(String)], [
    ['closed, then everything else', [open(), close(), left(), unregister, remove()], undefined],
    ['the group leaves under it', [open(), left()], /group 3 left container 1 while 8 was open/],
    ['another group leaves', [open(), left(4)], undefined],
    ['its driver takes it back', [open(), unregister], /8 was taken back while its user had it open/],
    ['its parent ends it', [open(), remove()], /8 was ended by its parent while its user had it open/],
    ['another one ends', [open(), remove(OTHER)], undefined],
    ['open again', [open(), close(), open(), remove()], /8 was ended/],
  ]);
});

describe('a UUID names one mediated device', () => {
  judges(() => [new UuidsUnique(String)], [
    ['one after the other', [create(), remove(), create(MDEV, OTHER)], undefined],
    ['two of one parent', [create(), create(OTHER)], undefined],
    ['the same under another parent', [create(), create(MDEV, 12)], /8 was made under 12, it is there under 7/],
    ['the same again', [create(), create()], /8 was made under 7, it is there under 7/],
  ]);
});

describe('bus mastering is off when a user has closed a device', () => {
  judges(() => [new SilentWhileClosed(sourceOf, () => true)], [
    ['a function that goes on', [open(DEVICE), close(DEVICE)], /device 0x6a08 may do DMA after its user has closed it/],
    ['a function that is open', [open(DEVICE)], undefined],
    ['a mediated device', [open(), close()], undefined],
  ]);
  judges(() => [new SilentWhileClosed(sourceOf, () => false)], [['a function that stopped', [open(DEVICE), close(DEVICE)], undefined]]);
});

describe('a stopped device moves nothing', () => {
  const state = (to: number, device = MDEV): Line => ['vfio:mig_state', { device, to }];
  const end = (error = 0): Line => ['mtty:dma_end', { device: MDEV, port: 0, error, done: 64 }];
  judges(() => [new StoppedDevicesAreQuiet(String)], [
    ['running', [end(), state(6), end(), state(2), end()], undefined],
    ['stopped, then running', [state(1), state(2), end()], undefined],
    ['aborted while stopped', [state(1), end(4)], undefined],
    ['another one is stopped', [state(1, OTHER), end()], undefined],
    ['in STOP', [state(1), end()], /8 finished a transfer of 64 bytes though it was stopped/],
    ['in STOP_COPY', [state(1), state(3), end()], /though it was stopped/],
    ['in RESUMING', [state(4), end()], /though it was stopped/],
  ]);
});

describe('pages are given back only after the invalidation', () => {
  const attach: Line[] = [['iommu:attach_device_to_domain', { device: DEVICE, domain: DOMAIN }], ['vfio:attach_group', { container: CONTAINER, group: GROUP, domain: DOMAIN }]];
  const map: Line = ['iommu:map', { domain: DOMAIN, iova: 16, paddr: 50 * 4096, size: 8 * 4096 }];
  const unmap: Line = ['iommu:unmap', { domain: DOMAIN, iova: 16, size: 8 * 4096, unmapped_size: 8 * 4096 }];
  const flush: Line = ['iommu:flush', { domain: DOMAIN, iova: 16, pages: 8 }];
  const unpin = (iova: number, more: Values = {}): Line => ['vfio:unpin_run', { container: CONTAINER, iova, frame: 50, pages: 8, vendor: 0, ...more }];
  judges(() => [new UnpinnedUnreachable()], [
    ['unmapped, invalidated, unpinned', [...attach, map, unmap, flush, unpin(16)], undefined],
    ['still mapped', [...attach, map, unpin(16), unmap, flush], /container 1 gave back 8 pages from 0x10000 on, which devices still reach through domain 5/],
    ['unmapped and not invalidated', [...attach, map, unmap, unpin(16), flush], /still reach/],
    ['a part of it', [...attach, map, unpin(23, { pages: 1 })], /still reach/],
    ['something else', [...attach, map, unpin(24, { pages: 1 })], undefined],
    ['another container\'s', [...attach, map, unpin(16, { container: 2 })], undefined],
    ["a vendor's own pin", [...attach, map, unpin(16, { vendor: 1 })], undefined],
    ['nobody is attached any more', [...attach, map, ['iommu:detach_device_from_domain', { device: DEVICE, domain: DOMAIN }], unpin(16), unmap, flush], undefined],
    ['no domain maps it', [['vfio:attach_group', { container: CONTAINER, group: GROUP, domain: 0 }], unpin(16)], undefined],
  ]);
});

describe('drivers give the pages back that their user unmaps', () => {
  judges(() => [new VendorsGiveBack(String)], [
    ['they do', [['vfio:pin_run', { container: CONTAINER, iova: 1, frame: 2, pages: 1, vendor: 1 }], ['vfio:unpin_run', { container: CONTAINER, iova: 1, vendor: 1 }]], undefined],
    ['they do not', [['vfio:violation', { container: CONTAINER, iova: 16, what: 99 }]], /container 1 from 0x10000 on: 99/],
  ]);
});

describe("a guest's devices and its processors see one memory", () => {
  const checker = (): Checker[] => [new GuestMemoryIsOne((device) => (device === MDEV ? [GUEST] : []), (id) => (id === OFF ? 'off' : String(id)))];
  const slot = (gpa: number, pages: number, hva: number, id = 0): Line => ['kvm:set_memory_region', { vm: GUEST, slot: id, gpa, pages, hva }];
  const map = (iova: number, vaddr: number, pages: number): Line => ['vfio:map_dma', { container: CONTAINER, iova, vaddr, pages }];
  const pin = (iova: number, frame: number, pages: number): Line => ['vfio:pin_run', { container: CONTAINER, iova, frame, pages, vendor: 0 }];
  const fault = (gpa: number, hpa: number, vm = GUEST): Line => ['kvm:page_fault', { vm, gpa, hva: 0x1000 + gpa, hpa, write: 1 }];
  const assigned: Line[] = [['vfio:register', { device: MDEV, group: GROUP }], joined()];
  const guest: Line[] = [...assigned, slot(0, 64, 0x1000), pin(0, 500, 64), map(0, 0x1000, 64)];
  judges(checker, [
    ['RAM where it is', [...guest, fault(3, 503)], undefined],
    ['RAM that came later', [...guest, slot(256, 16, 0x9000, 1), pin(256, 700, 16), map(256, 0x9000, 16), fault(257, 701)], undefined],
    ['the first slot in place of the second', [...guest, slot(256, 16, 0x9000, 1), map(256, 0x1000, 16)], /container 1 maps 0x100000 to 0x1000000 of the VMM; in 11 that address is 0x9000000/],
    ['another page than the processor', [...guest, fault(3, 999)], /11 has frame 0x3e7000 at 0x3000, devices of container 1 reach frame 0x1f7000 there/],
    ['a page that is pinned no more', [...guest, ['vfio:unpin_run', { container: CONTAINER, iova: 3, frame: 503, pages: 1, vendor: 0 }], fault(3, 999)], undefined],
    ['another guest', [...guest, fault(3, 999, 12)], undefined],
    ['a slot that was given up', [...assigned, slot(0, 64, 0x1000), slot(0, 0, 0), map(0, 0x7000, 64)], undefined],
    ['the memory of who has the device after the guest', [...guest, ['vmm:state', { guest: GUEST, state: OFF }], map(0, 0x7000, 64)], undefined],
    ['what is no memory of the guest', [...guest, map(0x1000, 0x7000, 4)], undefined],
    ['a container that no guest has', [['vfio:register', { device: OTHER, group: GROUP }], joined(), slot(0, 64, 0x1000), map(0, 0x7000, 64)], undefined],
  ]);
});

describe("a mediated device's queue takes only its user's descriptors", () => {
  const checker = (): Checker[] => [new QueuesTakeOwnPasid({ deviceOf: (name) => (name === DSA ? DEVICE : name), ofGuest: (mdev) => mdev === MDEV, text: String })];
  const lease = (mdev = MDEV, wq = 4): Line => ['vdsa:lease', { mdev, device: DEVICE, wq }];
  const reaches = (pasid = PASID, container = CONTAINER): Line => ['vfio:container_device', { container, device: DEVICE, pasid }];
  const submit = (pasid: number, wq = 4): Line => ['dsa:submit', { device: DSA, wq, pasid }];
  const refused = (pasid: number, posted = 0, mdev = MDEV): Line => ['vdsa:portal_refused', { mdev, wq: 4, pasid, posted }];
  const user: Line[] = [lease(), create(), joined(), reaches(), open()];
  const two: Line[] = [...user, lease(OTHER), create(OTHER, DEVICE, 4), joined(4, 2), reaches(3, 2), open(OTHER, 4)];
  judges(checker, [
    ['its own', [...user, submit(PASID)], undefined],
    ['those of both who share it', [...two, submit(2), submit(3)], undefined],
    ['a PASID of somebody else', [...user, submit(7)], /queue 4 of 6 took a descriptor under PASID 7; it is the queue of 8 \(PASID 2\)/],
    ['any on other queues', [...user, submit(7, 5)], undefined],
    ['none while closed', [...user, close(), submit(PASID)], /it is the queue of 8 \(closed\)/],
    ['none of a user that left', [...two, close(OTHER), submit(3)], /8 \(PASID 2\), 9 \(closed\)/],
    ['any when the mediated device is gone', [...user, close(), remove(), submit(7)], undefined],
    ['no plain store', [...user, ['dsa:sw_error', { device: DSA, wq: 4, error: 0x63 }]], /a plain store reached the portal of queue 4 of 6/],
    ['other errors', [...user, ['dsa:sw_error', { device: DSA, wq: 4, error: 0x51 }], ['dsa:sw_error', { device: DSA, wq: 5, error: 0x63 }]], undefined],
    ['no enqueue that was not translated', [...user, refused(0)], /a guest's enqueue to 8 came with PASID 0, which its virtual processor did not translate/],
    ['refusals of plain stores, of foreign PASIDs, and of processes of the host', [...two, refused(0, 1), refused(3), refused(0, 0, OTHER)], undefined],
  ]);
});

describe('an interrupt leads where the entry of its device says', () => {
  const entry = (index: number, vector: number, source = SOURCE): Line => ['intel_iommu:irte', { index, source, vector, destination: 0, present: 1 }];
  const clear = (index: number): Line => ['intel_iommu:irte', { index, source: 0, vector: 0, destination: 0, present: 0 }];
  const sent = (index: number, vector: number, source = SOURCE): Line => ['vtd:interrupt', { source, index, vector, destination: 0 }];
  const descriptor = (words: Uint32Array): Line => ['vtd:descriptor', { q0_lo: words[0]!, q0_hi: words[1]!, q1_lo: 0, q1_hi: 0 }];
  const forget = (fields: Parameters<typeof INTERRUPT_ENTRY_CACHE_INVALIDATE.encode>[0]): Line => descriptor(INTERRUPT_ENTRY_CACHE_INVALIDATE.encode({ Type: 4, ...fields }));
  judges(() => [new InterruptsAsRemapped()], [
    ['its own', [entry(5, 0x30), sent(5, 0x30)], undefined],
    ["somebody else's", [entry(5, 0x30), sent(5, 0x30, 0x10)], /device 0x10 sent vector 0x30 through entry 5, which is vector 0x30 of device 0x6a08/],
    ['another vector', [entry(5, 0x30), sent(5, 0x31)], /sent vector 0x31 through entry 5/],
    ["nobody's", [sent(5, 0x30)], /entry 5, which is nobody's/],
    ['the old vector until it is forgotten', [entry(5, 0x30), entry(5, 0x31), sent(5, 0x30), sent(5, 0x31)], undefined],
    ['the old vector afterwards', [entry(5, 0x30), entry(5, 0x31), forget({ G: 1, IIDX: 5 }), sent(5, 0x30)], /sent vector 0x30 through entry 5, which is vector 0x31/],
    ['the old vector after another entry was forgotten', [entry(5, 0x30), entry(5, 0x31), forget({ G: 1, IIDX: 4 }), sent(5, 0x30)], undefined],
    ['a cleared entry until it is forgotten', [entry(5, 0x30), clear(5), sent(5, 0x30)], undefined],
    ['a cleared entry afterwards', [entry(5, 0x30), clear(5), forget({}), sent(5, 0x30)], /which is nobody's/],
    ['given on when it is forgotten, alone, with its neighbours, or with all', [
      entry(5, 0x30), clear(5), forget({ G: 1, IIDX: 5 }), entry(5, 0x31, 8), clear(5), forget({ G: 1, IM: 1, IIDX: 4 }), entry(5, 0x32), clear(5), forget({}), entry(5, 0x33, 8),
    ], undefined],
    ['given on too early', [entry(5, 0x30), clear(5), entry(5, 0x31, 8)], /entry 5 was given to device 0x8 before hardware had forgotten that it was vector 0x30 of device 0x6a08/],
  ]);
});

describe('DMA of assigned devices stays in what their container mapped', () => {
  const checker = (): Checker[] => {
    const translations = new TranslationsForgotten();
    return [translations, new DmaInsideContainers(sourceOf, translations)];
  };
  const member: Line = ['vfio:container_device', { container: CONTAINER, device: DEVICE, pasid: PASID }];
  const gone: Line = ['vfio:container_device_end', { container: CONTAINER, device: DEVICE, pasid: PASID }];
  const pin = (iova: number, frame: number, pages: number, vendor = 0): Line => ['vfio:pin_run', { container: CONTAINER, iova, frame, pages, vendor }];
  const unpin = (iova: number, frame: number, pages: number): Line => ['vfio:unpin_run', { container: CONTAINER, iova, frame, pages, vendor: 0 }];
  const dma = (iova: number, physical: number, more: Values = {}): Line => ['pci:dma', { source: SOURCE, pasid: PASID, iova, physical, write: 1, translated: 0, ...more }];
  const given: Line = ['pci:translation', { source: SOURCE, pasid: PASID, iova: 16, physical: 50, pages: 1, read: 1, write: 1 }];
  judges(checker, [
    ['inside', [member, pin(16, 50, 4), dma(17, 51)], undefined],
    ['beyond', [member, pin(16, 50, 4), dma(20, 54)], /device 0x6a08 reached frame 0x36000 through 0x14000, which container 1 does not map there/],
    ['another frame', [member, pin(16, 50, 4), dma(17, 99)], /which container 1 does not map there/],
    ["where only a vendor's driver pinned", [member, pin(16, 50, 4, 1), dma(17, 51)], /which container 1 does not map there/],
    ['after the pages were given back', [member, pin(16, 50, 4), unpin(16, 50, 4), dma(17, 51)], /does not map there/],
    ['under a PASID that is in no container', [member, dma(17, 51, { pasid: 9 })], undefined],
    ['after it left', [member, gone, dma(17, 51)], undefined],
    ['translated, inside', [member, pin(16, 50, 4), given, dma(0, 50, { translated: 1 })], undefined],
    ['translated, after the pages were given back', [member, pin(16, 50, 4), given, unpin(16, 50, 4), dma(0, 50, { translated: 1 })], /does not map there/],
  ]);
});
