/**
 * Memory behind a container's mappings: pages pinned and charged to the address space that mapped them, the same runs
 * of frames mapped in every domain, and all of it undone in the one safe order: out of the tables, invalidated, and
 * only then unpinned.
 *
 * Every page of a mapping is charged once (RLIMIT_MEMLOCK, C8): by the container when a domain maps it, else by the
 * vendors' pins.
 */
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { PROT_WRITE, type IommuDomain } from '../../iommu/core/ops.js';
import { endLogging } from './dirty.js';
import type { DmaMapping } from './dma-list.js';
import type { ContainerState } from './state.js';

/**
 * Pins and charges all pages of a mapping; `runs` then has the frames. Nothing has changed on failure.
 * EFAULT, ENOMEM limit or memory.
 */
export function* pinMapping(state: ContainerState, mapping: DmaMapping): Steps {
  const { mm } = mapping;
  assert(!mapping.charged && mapping.runs.count === 0, 'a mapping is pinned twice');
  const vendors = mapping.vendorPins.size;
  const wanted = mapping.pages - vendors;
  const mayPass = mapping.ipcLock || state.context.wrongRlimit;
  // charged before the first sleep, so that two mappers cannot pass the limit together
  const charged = mayPass ? wanted : Math.min(wanted, mm.lockablePages);
  mm.accountLocked(charged, mayPass);
  mapping.charged = true;
  try {
    // as far as the limit lets and one page more: a bad address up to there is EFAULT, as in Linux, which pins page by page
    const enough = charged === wanted;
    yield* mm.pinRange(mapping.vaddr, enough ? mapping.pages : pagesWith(mapping, charged + 1), (mapping.prot & PROT_WRITE) !== 0, mapping.runs);
    if (!enough) {
      mm.unpinRuns(mapping.runs);
      throw overLimit(state, mapping, wanted - charged);
    }
  } catch (error) {
    mapping.charged = false;
    mm.unaccountLocked(charged + vendors - mapping.vendorPins.size);
    throw error;
  }
  traceRuns(state, mapping, true);
}

/** Pages from the start of a mapping of which `uncharged` are charged by nobody yet; the vendors' pins are. */
function pagesWith({ page, vendorPins }: DmaMapping, uncharged: number): number {
  if (vendorPins.size === 0) return uncharged;
  let at = page;
  for (let left = uncharged; left > 0; at++) if (!vendorPins.has(at)) left--;
  return at - page;
}

function overLimit(state: ContainerState, { mm, pages }: DmaMapping, missing: number): Errno {
  const limit = mm.options.memlockLimitPages ?? Infinity;
  state.context.parts.log.limited('vfio_iommu_type1 memlock', 'warn', `vfio_pin_pages_remote: RLIMIT_MEMLOCK (${limit * 4096}) exceeded`);
  return new Errno('ENOMEM', `${mm.name} may lock ${limit} pages (RLIMIT_MEMLOCK): ${state.name} needs ${pages}, which is ${missing} too many`);
}

/** Gives the pins and the charge back. No domain maps the pages any more, and nobody uses a stale translation. */
export function unpinMapping(state: ContainerState, mapping: DmaMapping): void {
  const { mm } = mapping;
  assert(mapping.charged, 'a mapping is unpinned twice');
  if (state.context.skipUnpin) mapping.runs.clear();
  else {
    traceRuns(state, mapping, false);
    mm.unpinRuns(mapping.runs);
  }
  mapping.charged = false;
  mm.unaccountLocked(mapping.pages - mapping.vendorPins.size);
}

/** Maps a mapping's runs in one domain. Nothing is mapped on failure: ENOMEM no page for tables, ERANGE aperture. */
export function* mapRuns(state: ContainerState, mapping: DmaMapping, domain: IommuDomain): Steps {
  const { core } = state.context;
  const { runs, prot } = mapping;
  let done = 0;
  try {
    for (let i = 0; i < runs.count; i++) {
      yield* core.map(domain, mapping.page + done, runs.frameOf(i) * 4096, runs.pagesOf(i), prot);
      done += runs.pagesOf(i);
    }
  } catch (error) {
    if (done > 0) yield* core.unmap(domain, mapping.page, done);
    throw error;
  }
}

/** Pins a mapping and maps it in every domain of the container. Nothing has changed on failure. EFAULT, ENOMEM. */
export function* pinAndMap(state: ContainerState, mapping: DmaMapping): Steps {
  yield* pinMapping(state, mapping);
  const mapped: IommuDomain[] = [];
  try {
    for (const { domain } of state.domains) {
      yield* mapRuns(state, mapping, domain);
      mapped.push(domain);
    }
  } catch (error) {
    for (const domain of mapped) yield* state.context.core.unmap(domain, mapping.page, mapping.pages);
    unpinMapping(state, mapping);
    throw error;
  }
  mapping.iommuMapped = true;
}

/** Undoes `pinAndMap`: one invalidation for each domain, then every page is unpinned. */
export function* unmapAndUnpin(state: ContainerState, mapping: DmaMapping): Steps {
  const { core, unpinBeforeFlush } = state.context;
  assert(mapping.iommuMapped, 'a mapping is unmapped twice');
  if (unpinBeforeFlush) unpinMapping(state, mapping);
  for (const { domain } of state.domains) yield* core.unmap(domain, mapping.page, mapping.pages);
  mapping.iommuMapped = false;
  if (!unpinBeforeFlush) unpinMapping(state, mapping);
}

/** Takes a mapping away with all it holds. */
export function* removeMapping(state: ContainerState, mapping: DmaMapping): Steps {
  if (mapping.iommuMapped) yield* unmapAndUnpin(state, mapping);
  reportVendorPins(state, mapping);
  state.mappings.remove(mapping);
  state.dmaAvailable++;
  endLogging(state, mapping);
}

/** Ends vendors' pins that nobody will give back: a broken rule, but no leak. */
export function reportVendorPins(state: ContainerState, mapping: DmaMapping): void {
  if (mapping.vendorPins.size === 0) return;
  state.violation(`${mapping.vendorPins.size} pages are still pinned by a vendor's driver`, mapping.page);
  for (const page of mapping.vendorPins.keys()) unpinVendorPage(state, mapping, page);
}

/** Ends a vendor's pin of a page, with its charge unless the container charges the page itself. */
export function unpinVendorPage(state: ContainerState, mapping: DmaMapping, page: number): void {
  const { trace, parts } = state.context;
  const { physical } = mapping.vendorPins.get(page)!;
  mapping.vendorPins.delete(page);
  trace?.trace.record(trace.unpinRun, 0, state.number, page, physical / 4096, 1, 1);
  parts.frames.unpin(physical);
  if (!mapping.charged) mapping.mm.unaccountLocked(1);
}

function traceRuns(state: ContainerState, { page, runs }: DmaMapping, pinned: boolean): void {
  const { trace } = state.context;
  if (trace === undefined) return;
  const kind = pinned ? trace.pinRun : trace.unpinRun;
  for (let i = 0, at = page; i < runs.count; at += runs.pagesOf(i++)) trace.trace.record(kind, 0, state.number, at, runs.frameOf(i), runs.pagesOf(i), 0);
}
