/**
 * What a unit would read for one request and how it would end, for `inspect`, `replay` and messages: the lookup and
 * the walk of the hardware itself, run once more with an observer, without caches, without setting accessed and
 * dirty bits, without recording a fault.
 */
import { qwordsOf } from '../../../sim/layout.js';
import type { Struct } from '../../../sim/layout.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_WRITE, ATTR_EXECUTE, ATTR_PRIVILEGED, NO_PASID } from '../../../host/pci/dma-port.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { FAULT, faultText } from '../spec/fault-reasons.js';
import { FIRST_LEVEL_ENTRY, INTERRUPT_FIRST_PAGE, INTERRUPT_LAST_PAGE, SECOND_LEVEL_ENTRY, SL_R, SL_W, pagesOfLevel } from '../spec/paging.js';
import { PASID_DIRECTORY_ENTRY, PASID_ENTRY, PGTT_PASS_THROUGH } from '../spec/pasid-table.js';
import { CONTEXT_ENTRY, ROOT_ENTRY, SM_CONTEXT_ENTRY, SM_ROOT_ENTRY, TTM_LEGACY } from '../spec/root-context.js';
import type { TranslationState } from './back-end.js';
import { RequesterTables } from './requester-tables.js';
import type { AddressSpaceRoot, WalkEntryKind, WalkObserver } from './requester-tables.js';
import { PRIVILEGED_EXECUTE, PRIVILEGED_READ, PRIVILEGED_WRITE, TranslationCache, USER_EXECUTE, USER_READ, USER_WRITE } from './translation-cache.js';
import { PageWalker } from './walker.js';

/** One entry that the walk looked at. */
export interface WalkStep {
  readonly what: WalkEntryKind;
  /** Level of a paging entry, 0 for leaves of 4 KiB; 0 for other entries. */
  readonly level: number;
  /** Physical byte address. */
  readonly address: number;
  /** The entry's 64-bit words; none when the address is not memory. */
  readonly qwords: readonly bigint[];
  /** Fields that are not zero, by the manual's names. */
  readonly text: string;
}

export interface WalkExplanation {
  readonly steps: readonly WalkStep[];
  /** Physical page; undefined when the request would fail. */
  readonly page: number | undefined;
  /** 4 KiB pages of the leaf. */
  readonly pages: number;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
  /** Fault reason, 0 without one. */
  readonly reason: number;
  /** A sentence. */
  readonly text: string;
}

export interface ExplainedRequest {
  readonly sourceId: number;
  /** NO_PASID without one. */
  readonly pasid: number;
  readonly page: number;
  /** ACCESS_* bits. */
  readonly access: number;
}

/** Explains an untranslated request under `state`. Has no effect on memory or on any unit. */
export function explainWalk(memory: PhysicalMemory, capabilities: VtdCapabilities, state: TranslationState, request: ExplainedRequest): WalkExplanation {
  const steps: WalkStep[] = [];
  const scalable = state.mode !== TTM_LEGACY;
  const observer: WalkObserver = {
    entry(what, level, address) {
      steps.push(readStep(memory, what, level, address, scalable));
    },
  };
  const end = (page: number | undefined, pages: number, flags: number, reason: number, text: string): WalkExplanation => {
    const privileged = (request.access & ACCESS_PRIVILEGED) !== 0;
    return {
      steps, page, pages, reason, text,
      read: (flags & (privileged ? PRIVILEGED_READ : USER_READ)) !== 0,
      write: (flags & (privileged ? PRIVILEGED_WRITE : USER_WRITE)) !== 0,
      execute: (flags & (privileged ? PRIVILEGED_EXECUTE : USER_EXECUTE)) !== 0,
    };
  };
  const fault = (reason: number): WalkExplanation => end(undefined, 1, 0, reason, reason > 0 ? faultText(reason) : 'Requests are aborted in abort-DMA mode');
  const all = USER_READ | USER_WRITE | USER_EXECUTE | PRIVILEGED_READ | PRIVILEGED_WRITE | PRIVILEGED_EXECUTE;
  const { page, pasid } = request;
  const inInterruptRange = page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE;

  if (!state.enabled) {
    return pasid === NO_PASID ? end(page, 1, all, 0, 'Remapping is off, the address is physical') : end(undefined, 1, 0, 0, 'Remapping is off, requests with PASID are refused');
  }
  if (pasid === NO_PASID && inInterruptRange) {
    return (request.access & ACCESS_WRITE) !== 0 ? end(page, 1, USER_WRITE | PRIVILEGED_WRITE, 0, 'Interrupt write: no table translates its address') : fault(FAULT.INTERRUPT_REQUEST_INVALID);
  }
  const tables = new RequesterTables({ memory, capabilities, caching: false, observer });
  tables.rootTable = state.rootTable;
  tables.mode = state.mode;
  if (!scalable && pasid !== NO_PASID) return fault(FAULT.PASID_IN_LEGACY_MODE);
  const context = tables.context(request.sourceId);
  if (context === undefined) return fault(tables.reason);
  const root = context.scalable ? tables.addressSpace(context, pasid) : context.root;
  if (root === undefined) return fault(tables.reason);

  const attributes = ((request.access & ACCESS_PRIVILEGED) !== 0 ? ATTR_PRIVILEGED : 0) | ((request.access & ACCESS_EXECUTE) !== 0 ? ATTR_EXECUTE : 0);
  const effective = (attributes & root.attributeMask) | root.attributeSet;
  const denied = effective & root.denied;
  if (denied !== 0) return fault((denied & ATTR_PRIVILEGED) !== 0 ? FAULT.S_SRE : FAULT.S_ERE);
  if (root.type === PGTT_PASS_THROUGH) {
    if (page >= 2 ** (capabilities.hostAddressWidth - 12)) return fault(root.legacy ? FAULT.L_BEYOND_WIDTH : FAULT.BEYOND_HOST_WIDTH);
    return inInterruptRange ? fault(FAULT.INTERRUPT_RANGE) : end(page, 1, all, 0, 'Pass-through, the address is physical');
  }
  return walkPages(memory, capabilities, observer, root, request, effective, end, fault);
}

function walkPages(
  memory: PhysicalMemory, capabilities: VtdCapabilities, observer: WalkObserver, root: AddressSpaceRoot, request: ExplainedRequest, effective: number,
  end: (page: number | undefined, pages: number, flags: number, reason: number, text: string) => WalkExplanation, fault: (reason: number) => WalkExplanation,
): WalkExplanation {
  const walker = new PageWalker({
    memory, capabilities, observer,
    firstLevelCache: new TranslationCache(0),
    secondLevelCache: new TranslationCache(0),
    readOnly: true,
  });
  const write = (request.access & ACCESS_WRITE) !== 0;
  const reason = walker.walk(root, request.page, write ? SL_W : SL_R, (effective & ATTR_EXECUTE) !== 0, (effective & ATTR_PRIVILEGED) !== 0, write);
  if (reason !== 0) return fault(reason);
  if (walker.page >= INTERRUPT_FIRST_PAGE && walker.page <= INTERRUPT_LAST_PAGE) return fault(root.legacy ? FAULT.L_INTERRUPT_RANGE : FAULT.INTERRUPT_RANGE);
  return end(walker.page, pagesOfLevel(walker.level), walker.flags, 0, 'Translated');
}

function readStep(memory: PhysicalMemory, what: WalkEntryKind, level: number, address: number, scalable: boolean): WalkStep {
  const layout = layoutOf(what, scalable);
  // an upper half of a scalable-mode root entry is shown with the lower one
  const start = what === 'root' ? address - (address % layout.sizeBytes) : address;
  const words = layout.load(memory, start);
  if (words === undefined) return { what, level, address: start, qwords: [], text: 'not memory' };
  return { what, level, address: start, qwords: qwordsOf(words), text: layout.format(words) };
}

function layoutOf(what: WalkEntryKind, scalable: boolean): Struct {
  switch (what) {
    case 'root': return scalable ? SM_ROOT_ENTRY : ROOT_ENTRY;
    case 'context': return scalable ? SM_CONTEXT_ENTRY : CONTEXT_ENTRY;
    case 'pasid-directory': return PASID_DIRECTORY_ENTRY;
    case 'pasid': return PASID_ENTRY;
    case 'first-level': return FIRST_LEVEL_ENTRY;
    case 'second-level': return SECOND_LEVEL_ENTRY;
  }
}
