/** Checkers can fail: hand-made traces that break each invariant, and their lawful neighbours that do not. */
import { describe, expect, it } from 'vitest';
import { LocksInOrder, balance, subscriptionsEnd } from '../../harness/checkers/books.js';
import { DmaInsideMappings, FramesFreedUnreachable } from '../../harness/checkers/dma.js';
import { FaultsStayWithTheirMm, FlushedWithoutLocks, GroupsHandledWhole, SilentAfterUnbind } from '../../harness/checkers/faults.js';
import type { Checker } from '../../harness/checkers/invariant.js';
import { QuietAfterMmExit, SilentAfterMmExit } from '../../harness/checkers/mm-exit.js';
import { AnswersAsGiven, GroupIndexUsedOnce, GroupsAnsweredOnce, RequestsWithinAllocation } from '../../harness/checkers/page-groups.js';
import { PasidSingleOwner } from '../../harness/checkers/pasids.js';
import { TranslationsForgotten } from '../../harness/checkers/translations.js';
import { Channel, Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Mutex, Scheduler, type Steps } from '../../sim/task.js';
import { told, type Line, type Values } from '../fixtures/story.js';

const DEVICE = 7, SOURCE = 0x6a08, PASID = 3, MM = 100;
const sourceOf = (name: number): number | undefined => (name === DEVICE ? SOURCE : undefined);

const request = (page: number, prg: number, more: Values = {}, correlation = prg + 1): Line => ['pci:page_request', { source: SOURCE, pasid: PASID, page, access: 1, last: 1, prg, ...more }, correlation];
const response = (prg: number, code = 0, correlation = prg + 1): Line => ['pci:page_response', { source: SOURCE, pasid: PASID, prg, code }, correlation];
const fault = (prg: number, more: Values = {}, correlation = prg + 1): Line => ['iommu:dev_fault', { device: DEVICE, type: 2, pasid: PASID, group: prg, last: 1, ...more }, correlation];
const handled = (prg: number, more: Values = {}, correlation = prg + 1): Line => ['iommu:iopf_handle', { device: DEVICE, pasid: PASID, mm: MM, handled: 1, ...more }, correlation];
const answered = (prg: number, code = 0, correlation = prg + 1): Line => ['iommu:dev_page_response', { device: DEVICE, pasid: PASID, group: prg, code }, correlation];
const bind = (refs = 1, mm = MM): Line => ['iommu:sva_bind', { device: DEVICE, pasid: PASID, mm, refs }];
const unbind = (refs = 0, mm = MM): Line => ['iommu:sva_unbind', { device: DEVICE, pasid: PASID, mm, refs }];
const flr: Line = ['pci:flr', { source: SOURCE }];
const remove: Line = ['pci:remove', { source: SOURCE }];

describe('where DMA lands', () => {
  function watch(guarded = true): [TranslationsForgotten, DmaInsideMappings, FramesFreedUnreachable] {
    const translations = new TranslationsForgotten();
    const dma = new DmaInsideMappings({ sourceOf, translates: (type) => type !== 1, guarded, translations });
    return [translations, dma, new FramesFreedUnreachable(dma)];
  }
  const set = (address: number, frame: number, writable = 1, pages = 1): Line => ['mm:set_pte', { mm: MM, address, frame, pages, writable }];
  const clear = (address: number): Line => ['mm:clear_pte', { mm: MM, address }];
  const invalidated = (start: number, end: number): Line => ['mm:invalidated', { mm: MM, start, end }];
  const dma = (iova: number, physical: number, more: Values = {}): Line => ['pci:dma', { source: SOURCE, pasid: PASID, iova, physical, bytes: 4096, write: 0, translated: 0, ...more }];
  const translated = (physical: number, write = 0): Line => dma(physical, physical, { pasid: -1, write, translated: 1 });
  const given = (iova: number, physical: number, write = 1, pages = 1): Line => ['pci:translation', { source: SOURCE, pasid: PASID, iova, physical, pages, read: 1, write }];
  const invalidate = (page: number, pages: number, tag: number, pasid = PASID): Line => ['pci:invalidate', { source: SOURCE, pasid, page, pages, tag, global: 0 }];
  const completion = (tag: number): Line => ['pci:invalidate_completion', { source: SOURCE, tag }];
  const freed = (frame: number): Line => ['mm:free_frames', { frame, pages: 1 }];
  const attach = (domain: number, type = 0, pasid = -1): Line => ['iommu:attach_device_to_domain', { device: DEVICE, domain, type, pasid }];
  const map = (iova: number, frame: number, pages: number): Line => ['iommu:map', { domain: 1, iova, paddr: frame * 4096, size: pages * 4096 }];

  it.each<[string, Line[], RegExp | undefined]>([
    ['what the process maps', [set(5, 50), bind(), dma(5, 50)], undefined],
    ['another frame', [set(5, 50), bind(), dma(5, 51)], /frame 0x33000 for address 0x5000; PASID 3 is mm 100, which does not map it/],
    ['a page that is not mapped', [set(5, 50), bind(), dma(6, 51)], /does not map it/],
    ['a write to a read-only page', [set(5, 50, 0), bind(), dma(5, 50, { write: 1 })], /wrote frame/],
    ['a read of a read-only page', [set(5, 50, 0), bind(), dma(5, 50)], undefined],
    ['inside a large leaf', [set(0x200, 0x4000, 1, 512), bind(), dma(0x3ff, 0x41ff)], undefined],
    ['beyond a large leaf', [set(0x200, 0x4000, 1, 512), bind(), dma(0x400, 0x4200)], /does not map it/],
    ['a page that went, before the invalidation is done', [set(5, 50), bind(), clear(5), dma(5, 50)], undefined],
    ['a page that went, when the invalidation is done', [set(5, 50), bind(), clear(5), invalidated(5, 6), dma(5, 50)], /does not map it/],
    ['a page that went, when the invalidation of another is done', [set(5, 50), bind(), clear(5), invalidated(6, 9), dma(5, 50)], undefined],
    ['a late write, before the invalidation is done', [set(5, 50), bind(), set(5, 50, 0), dma(5, 50, { write: 1 })], undefined],
    ['a late write, when the invalidation is done', [set(5, 50), bind(), set(5, 50, 0), invalidated(5, 6), dma(5, 50, { write: 1 })], /wrote frame/],
    ['a page of a process that exits', [set(5, 50), bind(), ['mm:exit_mmap', { mm: MM }], clear(5), dma(5, 50)], /does not map it/],
    ['what was mapped, after unbind', [set(5, 50), bind(), unbind(), dma(5, 50)], /PASID 3 is bound to nothing/],
    ['what is mapped, with a bind left', [set(5, 50), bind(), bind(2), unbind(1), dma(5, 50)], undefined],
    ['an interrupt', [dma(0xfee01, 0xfee01, { pasid: -1, write: 1 })], undefined],
    ['a buffer of a domain', [attach(1), map(5, 50, 4), dma(8, 53, { pasid: -1 })], undefined],
    ['beyond a buffer of a domain', [attach(1), map(5, 50, 4), dma(9, 54, { pasid: -1 })], /no PASID is domain 1, which does not map it/],
    ['what remains of a range that was cut', [attach(1), map(5, 50, 8), ['iommu:unmap', { domain: 1, iova: 7, size: 4096, unmapped_size: 4096 }], ['iommu:flush', { domain: 1, iova: 0, pages: 99 }], dma(6, 51, { pasid: -1 }), dma(8, 53, { pasid: -1 })], undefined],
    ['what was cut out of it', [attach(1), map(5, 50, 8), ['iommu:unmap', { domain: 1, iova: 7, size: 4096, unmapped_size: 4096 }], ['iommu:flush', { domain: 1, iova: 0, pages: 99 }], dma(7, 52, { pasid: -1 })], /does not map it/],
    ['what was unmapped and not flushed', [attach(1), map(5, 50, 1), ['iommu:unmap', { domain: 1, iova: 5, size: 4096, unmapped_size: 4096 }], dma(5, 50, { pasid: -1 })], undefined],
    ['physical memory through an identity domain', [attach(1, 1), dma(5, 5, { pasid: -1 })], undefined],
    ['anything after detach', [attach(1, 1), ['iommu:detach_device_from_domain', { device: DEVICE, pasid: -1 }], dma(5, 5, { pasid: -1 })], /bound to nothing/],
    ['a translated request for a page that was given', [set(5, 50), bind(), given(5, 50), translated(50, 1)], undefined],
    ['a translated request inside a large page', [set(0x200, 0x4000, 1, 512), bind(), given(0x2ff, 0x4000, 1, 512), translated(0x41ff)], undefined],
    ['a translated request for a frame that nobody was given', [set(5, 50), set(6, 51), bind(), given(5, 50), translated(51)], /with a translated request; no translation led there/],
    ['a translated request to a page that went', [set(5, 50), bind(), given(5, 50), clear(5), invalidated(5, 6), translated(50)], /the translation of 0x5000 of PASID 3 \(mm 100\) is no longer true/],
    ['a translated write that was given for reading', [set(5, 50), bind(), given(5, 50, 0), translated(50, 1)], /its translation of 0x5000 of PASID 3 is for reading/],
    ['a translated request after an invalidation', [set(5, 50), bind(), given(5, 50), invalidate(5, 1, 2), completion(2), translated(50)], /its translation of 0x5000 of PASID 3 was invalidated/],
    ['a translated request before an invalidation is done', [set(5, 50), bind(), given(5, 50), invalidate(5, 1, 2), translated(50)], undefined],
    ['a translation that was given after the invalidation', [set(5, 50), bind(), given(5, 50), invalidate(5, 1, 2), given(5, 50), completion(2), translated(50)], undefined],
    ['an invalidation of another PASID', [set(5, 50), bind(), given(5, 50), invalidate(5, 1, 2, 9), completion(2), translated(50)], undefined],
    ['an invalidation of everything without PASID (A5)', [set(5, 50), bind(), given(5, 50), invalidate(0, -1, 2, -1), completion(2), translated(50)], /was invalidated/],
    ['a translated request after a reset', [set(5, 50), bind(), given(5, 50), flr, translated(50)], /was invalidated/],
    ['a frame that is freed in its time', [set(5, 50), bind(), clear(5), invalidated(5, 6), freed(50)], undefined],
    ['a frame that is freed too early', [set(5, 50), bind(), clear(5), freed(50)], /frame 0x32000 was freed before the invalidation of 0x5000 had completed/],
    ['a frame that no device could reach', [set(5, 50), clear(5), freed(50)], undefined],
  ])('judges %s', (_what, story, violation) => {
    const texts = told(watch(), story);
    if (violation === undefined) expect(texts).toEqual([]);
    else expect(texts.join('\n')).toMatch(violation);
  });

  it('has nothing to say of a machine without an IOMMU', () => {
    expect(told(watch(false), [dma(5, 5, { pasid: -1 })])).toEqual([]);
    expect(told(watch(true), [dma(5, 5, { pasid: -1 })])).toHaveLength(1);
  });
});

describe('page request groups', () => {
  it.each<[string, () => Checker, Line[], RegExp | undefined]>([
    ['answered once', () => new GroupsAnsweredOnce(), [request(1, 4), response(4)], undefined],
    ['answered twice', () => new GroupsAnsweredOnce(), [request(1, 4), response(4), response(4)], /response to group 4, which is not outstanding/],
    ['answered under another index', () => new GroupsAnsweredOnce(), [request(1, 4), response(5)], /group 5, which is not outstanding[^]*group 4 of device 0x6a08 was never answered/],
    ['never answered', () => new GroupsAnsweredOnce(), [request(1, 4)], /never answered/],
    ['not finished', () => new GroupsAnsweredOnce(), [request(1, 4, { last: 0 })], undefined],
    ['stop marker', () => new GroupsAnsweredOnce(), [request(0, 4, { access: 0 })], undefined],
    ['of a device that is gone', () => new GroupsAnsweredOnce(), [request(1, 4), remove], undefined],
    ['one after the other', () => new GroupIndexUsedOnce(), [request(1, 4), response(4), request(2, 4)], undefined],
    ['several requests', () => new GroupIndexUsedOnce(), [request(1, 4, { last: 0 }), request(2, 4)], undefined],
    ['index used again', () => new GroupIndexUsedOnce(), [request(1, 4), request(2, 4)], /uses group 4 for PASID 3 while PASID 3 waits/],
    ['index used by two PASIDs', () => new GroupIndexUsedOnce(), [request(1, 4, { last: 0 }), request(2, 4, { pasid: 8 })], /for PASID 8 while PASID 3 waits/],
    ['index used again after a reset', () => new GroupIndexUsedOnce(), [request(1, 4), flr, request(2, 4)], undefined],
    ['within the allocation', () => new RequestsWithinAllocation(() => 2), [request(1, 1), request(2, 2), response(1), request(3, 3)], undefined],
    ['beyond the allocation', () => new RequestsWithinAllocation(() => 2), [request(1, 1), request(2, 2), request(3, 3)], /3 page requests outstanding, allocated 2/],
    ['answer as given', () => new AnswersAsGiven(sourceOf), [answered(4, 2), response(4, 15), answered(5, 1), response(5, 1)], undefined],
    ['answer of hardware alone', () => new AnswersAsGiven(sourceOf), [response(4, 1)], undefined],
    ['another answer', () => new AnswersAsGiven(sourceOf), [answered(4, 1), response(4, 0)], /got Success to group 4, the kernel said Invalid Request/],
    ['the enum on the wire', () => new AnswersAsGiven(sourceOf), [answered(4, 2), response(4, 2)], /response code 0x2 to group 4, which no specification defines/],
    ['handled as a whole', () => new GroupsHandledWhole(sourceOf), [request(1, 4, { last: 0 }), request(2, 4), fault(4, { last: 0 }), fault(4), handled(4), handled(4), answered(4), response(4)], undefined],
    ['failed in the middle', () => new GroupsHandledWhole(sourceOf), [request(1, 4, { last: 0 }), request(2, 4), fault(4, { last: 0 }), fault(4), handled(4, { handled: 0 }), answered(4, 1), response(4, 1)], undefined],
    ['handled before its last', () => new GroupsHandledWhole(sourceOf), [request(1, 4, { last: 0 }), fault(4, { last: 0 }), handled(4)], /before the last one of its group was reported/],
    ['handled after an error', () => new GroupsHandledWhole(sourceOf), [request(1, 4, { last: 0 }), request(2, 4), fault(4, { last: 0 }), fault(4), handled(4, { handled: 0 }), handled(4)], /after an earlier one of its group had failed/],
    ['handled after its answer', () => new GroupsHandledWhole(sourceOf), [request(1, 4), fault(4), handled(4), answered(4), response(4), handled(4)], /its group is not outstanding/],
    ['with a request of another', () => new GroupsHandledWhole(sourceOf), [request(1, 4), fault(4), handled(4), handled(4)], /handled with a group to which it does not belong/],
    ['answered too well', () => new GroupsHandledWhole(sourceOf), [request(1, 4), fault(4), handled(4, { handled: 0 }), answered(4, 0)], /answered SUCCESS, though one of its requests failed/],
    ['answered halfway', () => new GroupsHandledWhole(sourceOf), [request(1, 4, { last: 0 }), request(2, 4), fault(4, { last: 0 }), fault(4), handled(4), answered(4, 0)], /SUCCESS after 1 of its 2 requests/],
    ['under an id from before a reset', () => new GroupsHandledWhole(sourceOf), [request(1, 4), flr, request(2, 4), fault(4), fault(4), handled(4), handled(4)], undefined],
  ])('%s', (_what, checker, story, violation) => {
    const texts = told([checker()], story);
    if (violation === undefined) expect(texts).toEqual([]);
    else expect(texts.join('\n')).toMatch(violation);
  });
});

describe('processes and their PASIDs', () => {
  const alloc: Line = ['iommu:pasid_alloc', { pasid: PASID }], free: Line = ['iommu:pasid_free', { pasid: PASID }];
  const freed: Line = ['mm:free', { mm: MM }];
  const call: Line = ['iommu:mm_exit_call', { device: DEVICE, pasid: PASID, mm: MM }];
  const exit = (callback: number): Line => ['iommu:mm_exit', { device: DEVICE, pasid: PASID, mm: MM, callback, result: 0 }];
  const logged: Line = ['vtd:fault', { source: SOURCE, pasid: PASID }];
  const flush = (holds: number, worker = 0): Line => ['iommu:iopf_flush', { device: DEVICE, holds, worker }];

  it.each<[string, () => Checker, Line[], RegExp | undefined]>([
    ['a fault in its own mm', () => new FaultsStayWithTheirMm(), [bind(), handled(1)], undefined],
    ['a fault in another mm', () => new FaultsStayWithTheirMm(), [bind(), handled(1, { mm: 101 })], /served from mm 101, its owner is mm 100/],
    ['a fault of a PASID that is free', () => new FaultsStayWithTheirMm(), [bind(), free, handled(1)], /its owner is mm nobody/],
    ['a PASID for one mm after another', () => new PasidSingleOwner(), [alloc, bind(), freed, free, alloc, bind(1, 101)], undefined],
    ['a PASID for two mms', () => new PasidSingleOwner(), [alloc, bind(), bind(1, 101)], /PASID 3 of mm 100 bound to mm 101/],
    ['a PASID that is given twice', () => new PasidSingleOwner(), [alloc, alloc], /allocated again while in use/],
    ['a PASID that nobody has', () => new PasidSingleOwner(), [bind(), free], /which is not allocated[^]*nobody had it/],
    ['a PASID that is freed under its mm', () => new PasidSingleOwner(), [alloc, bind(), unbind(), free], /freed while mm 100, which owns it, lives/],
    ['requests before unbind', () => new SilentAfterUnbind(sourceOf), [bind(), fault(1), handled(1), answered(1), unbind()], undefined],
    ['a request after unbind', () => new SilentAfterUnbind(sourceOf), [bind(), unbind(), fault(1)], /a page request of PASID 3 was reported after its unbind had returned/],
    ['a fault after unbind', () => new SilentAfterUnbind(sourceOf), [bind(), unbind(), fault(0, { type: 1, last: 0 })], /DMA of PASID 3 was reported after/],
    ['handling after unbind', () => new SilentAfterUnbind(sourceOf), [bind(), unbind(), handled(1)], /was handled after/],
    ['a request after one of two unbinds', () => new SilentAfterUnbind(sourceOf), [bind(), bind(2), unbind(1), fault(1), answered(1)], undefined],
    ['a request of the next bond', () => new SilentAfterUnbind(sourceOf), [bind(), unbind(), bind(), fault(1)], undefined],
    ['a group that unbind left', () => new SilentAfterUnbind(sourceOf), [bind(), fault(1), unbind()], /1 page request groups of PASID 3 were not answered/],
    ['a group of a device that is gone', () => new SilentAfterUnbind(sourceOf), [bind(), fault(1), remove, unbind()], undefined],
    ['a flush', () => new FlushedWithoutLocks(String), [flush(0)], undefined],
    ['a flush under a lock', () => new FlushedWithoutLocks(String), [flush(5)], /the flush of 7 holds 5/],
    ['a flush in a worker', () => new FlushedWithoutLocks(String), [flush(0, 1)], /a worker flushes 7's queue/],
    ['a device that stops in mm_exit', () => new SilentAfterMmExit(sourceOf), [bind(), call, request(1, 1), exit(1), unbind()], undefined],
    ['a device that does not', () => new SilentAfterMmExit(sourceOf), [bind(), call, exit(1), request(1, 1)], /sent a page request of PASID 3 after its mm_exit had returned/],
    ['a device without mm_exit', () => new SilentAfterMmExit(sourceOf), [bind(), exit(0), request(1, 1)], undefined],
    ['mm_exit called twice', () => new SilentAfterMmExit(sourceOf), [bind(), call, call], /called again for PASID 3/],
    ['mm_exit of the next bond', () => new SilentAfterMmExit(sourceOf), [bind(), call, exit(1), unbind(), bind(), call], undefined],
    ['a silent abort', () => new QuietAfterMmExit(sourceOf), [bind(), exit(0), unbind(), logged], undefined],
    ['an abort that is logged', () => new QuietAfterMmExit(sourceOf), [bind(), exit(0), logged], /recorded after its process had died/],
    ['a fault of a process that lives', () => new QuietAfterMmExit(sourceOf), [bind(), logged], undefined],
  ])('%s', (_what, checker, story, violation) => {
    const texts = told([checker()], story);
    if (violation === undefined) expect(texts).toEqual([]);
    else expect(texts.join('\n')).toMatch(violation);
  });
});

describe('at the end', () => {
  it('locks that were taken in both orders are pointed out', () => {
    for (const [outer, inner, violations] of [['a', 'b', 0], ['b', 'a', 1]] as const) {
      const clock = new VirtualClock();
      const scheduler = new Scheduler(clock, (error) => clock.fail(error));
      const locks = { a: new Mutex(scheduler, 'a'), b: new Mutex(scheduler, 'b') };
      const take = function* (first: 'a' | 'b', second: 'a' | 'b'): Steps {
        yield* locks[first].with(() => locks[second].with(nothing));
      };
      scheduler.spawn('first', take('a', 'b'));
      clock.run();
      scheduler.spawn('second', take(outer, inner));
      clock.run();
      const checker = new LocksInOrder(scheduler);
      checker.finish();
      expect(checker.texts).toEqual(violations === 0 ? [] : ['first takes a then b, second takes b then a']);
    }
  });

  it('what was not given back is counted', () => {
    expect(balance({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 })).toMatchObject({ status: 'ok', checked: 4 });
    expect(balance({ pasids: 1, pinnedPages: 0, domains: 0, frames: 3 })).toMatchObject({ status: 'violated', violations: ['1 pasids are left', '3 frames are left'] });
  });

  it('channels that somebody still listens to are named', () => {
    const mailbox = new Mailbox(() => undefined);
    const faults = new Channel<number>(mailbox, 'faults');
    const subscription = faults.values$.subscribe(() => undefined);
    expect(subscriptionsEnd(mailbox).violations).toEqual(['the channel "faults" still has subscribers']);
    subscription.unsubscribe();
    expect(subscriptionsEnd(mailbox)).toMatchObject({ status: 'ok', checked: 1 });
  });
});

// oxlint-disable-next-line require-yield -- taking the locks is all
function* nothing(): Steps {}
