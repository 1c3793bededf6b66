/**
 * Context and PASID entries together with the invalidations that each change needs (VT-d 4.1, section 6.5.3.3; order
 * and waits as recorded from Linux 7.3): nothing when an entry becomes present, except in caching mode (6.1); PASID
 * cache, then IOTLB, then device TLB, each waited for, when it stops being so.
 */
import { Errno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import { PGTT_SECOND_LEVEL } from '../spec/pasid-table.js';
import { CACHED_NOT_PRESENT_DID } from './domain-ids.js';
import { ALL_PAGES_ORDER, DEVICE_SELECTIVE, DOMAIN_SELECTIVE, PASID_CACHE_DOMAIN, PASID_CACHE_PASID, type AlignedRange } from './descriptor-batch.js';
import { PasidTable, RID_PASID, type PasidTranslation } from './pasid-table.js';
import type { VtdDevice } from './vtd-device.js';

export const EVERYTHING: AlignedRange = { page: 0, order: ALL_PAGES_ORDER };

export interface EntryOptions {
  readonly memory: ConstructorParameters<typeof PasidTable>[0]['memory'];
  readonly frames: ConstructorParameters<typeof PasidTable>[0]['frames'];
  readonly defects: ReadonlySet<string>;
}

export class Entries {
  private readonly options: EntryOptions;
  private readonly skipPasidCache: boolean;
  private readonly skipDeviceTlb: boolean;
  private readonly logSilenced: boolean;

  constructor(options: EntryOptions) {
    this.options = options;
    this.skipPasidCache = options.defects.has('vtd-driver.skip-pasid-cache-flush');
    this.skipDeviceTlb = options.defects.has('vtd-driver.skip-device-tlb-flush');
    this.logSilenced = options.defects.has('vtd-driver.log-after-exit');
  }

  /** Scalable mode: gives the function a PASID table and points its context entry at it; once. ENOMEM. */
  *setUpContext(info: VtdDevice): Steps {
    const { unit } = info;
    if (!unit.scalable || info.pasidTable !== undefined) return;
    const table = new PasidTable({
      memory: this.options.memory, frames: this.options.frames, owner: `${unit.name} PASID tables`, maxPasids: info.maxPasids,
      addressWidth: unit.addressWidth, walkSnoop: unit.capabilities.scalableCoherent,
    });
    try {
      unit.contexts.setScalable(info.sourceId, table, info.atsSupported, info.maxPasids > 0);
    } catch (error) {
      table.destroy();
      throw error;
    }
    info.pasidTable = table;
    yield* this.contextBecamePresent(info);
  }

  /** Removes the context entry; the function's caches are empty afterwards. */
  *tearDownContext(info: VtdDevice, domainId: number): Steps {
    const { unit } = info;
    unit.contexts.clear(info.sourceId);
    const { queue } = unit;
    yield* queue.invalidate(queue.batch().contextCache(DEVICE_SELECTIVE, domainId, info.sourceId));
    if (!unit.scalable) yield* queue.invalidate(queue.batch().iotlb(DOMAIN_SELECTIVE, domainId));
    yield* this.flushDeviceTlb(info, RID_PASID);
  }

  /** Caching mode tags what it knows of absent entries with domain 0. */
  *contextBecamePresent(info: VtdDevice): Steps {
    const { queue, capabilities } = info.unit;
    if (!capabilities.cachingMode) return;
    yield* queue.invalidate(queue.batch().contextCache(DEVICE_SELECTIVE, CACHED_NOT_PRESENT_DID, info.sourceId));
    yield* queue.invalidate(queue.batch().iotlb(DOMAIN_SELECTIVE, CACHED_NOT_PRESENT_DID));
  }

  /**
   * Sets or clears PRE while the entry is in use: context cache, then what is cached under the function's domains,
   * then its device TLB (context_flip_pri and intel_context_flush_present of Linux 6.12).
   */
  *setPageRequests(info: VtdDevice, on: boolean): Steps {
    const { unit } = info;
    const { queue } = unit;
    const table = info.requirePasidTable();
    unit.contexts.setPageRequests(info.sourceId, on);
    yield* queue.invalidate(queue.batch().contextCache(DEVICE_SELECTIVE, 0, info.sourceId));
    const domains = new Set<number>();
    for (const pasid of table.used) if (table.isPresent(pasid)) domains.add(table.domainIdOf(pasid));
    for (const domainId of domains) {
      yield* queue.invalidate(queue.batch().pasidCache(PASID_CACHE_DOMAIN, domainId, 0));
      yield* queue.invalidate(queue.batch().iotlb(DOMAIN_SELECTIVE, domainId));
    }
    yield* this.flushDeviceTlb(info, RID_PASID);
  }

  /** EBUSY when the PASID's entry is in use, ENOMEM without a frame for its table. */
  *setPasidEntry(info: VtdDevice, pasid: number, translation: PasidTranslation): Steps {
    const table = info.requirePasidTable();
    if (table.used.has(pasid)) throw new Errno('EBUSY', `PASID ${pasid} of ${info.device.name} is in use`);
    table.set(pasid, translation);
    const { queue, capabilities } = info.unit;
    if (!capabilities.cachingMode) return;
    yield* queue.invalidate(queue.batch().pasidCache(PASID_CACHE_PASID, translation.domainId, pasid));
    yield* queue.invalidate(queue.batch().pasidIotlb(translation.domainId, pasid));
  }

  /** @param silent leaves an entry behind that only says FPD: translations end without a record (M6) */
  *tearDownPasidEntry(info: VtdDevice, pasid: number, silent = false): Steps {
    const table = info.requirePasidTable();
    const { queue } = info.unit;
    const domainId = table.domainIdOf(pasid);
    const secondLevel = table.translationTypeOf(pasid) === PGTT_SECOND_LEVEL;
    const quiet = silent && !this.logSilenced;
    if (quiet) table.silence(pasid);
    else table.clearPresent(pasid);
    if (!this.skipPasidCache) yield* queue.invalidate(queue.batch().pasidCache(PASID_CACHE_PASID, domainId, pasid));
    yield* queue.invalidate(secondLevel ? queue.batch().iotlb(DOMAIN_SELECTIVE, domainId) : queue.batch().pasidIotlb(domainId, pasid));
    yield* this.flushDeviceTlb(info, pasid);
    table.clear(pasid, quiet);
  }

  /** Removes a silenced entry: from now on requests are errors that are recorded. */
  *clearSilenced(info: VtdDevice, pasid: number, domainId: number): Steps {
    const { queue, capabilities } = info.unit;
    info.requirePasidTable().clear(pasid);
    if (capabilities.cachingMode) yield* queue.invalidate(queue.batch().pasidCache(PASID_CACHE_PASID, domainId, pasid));
  }

  /** Everything the device caches for a PASID. A device that is gone is not waited for (2g). */
  *flushDeviceTlb(info: VtdDevice, pasid: number): Steps {
    if (!info.hasDeviceTlb || this.skipDeviceTlb) return;
    const { queue } = info.unit;
    yield* queue.invalidate(queue.batch().deviceTlb(info.tlb, pasid, EVERYTHING));
  }
}
