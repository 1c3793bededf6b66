/**
 * Invalidation of ranges (Linux: drivers/iommu/intel/cache.c): the smallest aligned power of two that covers the
 * range, IOTLB and device TLBs of one unit in one submission with one wait.
 */
import type { Steps } from '../../../sim/task.js';
import { DOMAIN_SELECTIVE, PAGE_SELECTIVE, alignedRange, type AlignedRange, type DescriptorBatch } from './descriptor-batch.js';
import type { VtdDomain } from './domain.js';
import { FLPT_DEFAULT_DID } from './domain-ids.js';
import { EVERYTHING } from './entries.js';
import type { RemappingUnit } from './remapping-unit.js';
import type { VtdDevice } from './vtd-device.js';

/** Most descriptors of one submission; longer lists are cut. */
const CHUNK = 100;

export class RangeFlush {
  private readonly skipIotlb: boolean;
  private readonly skipDeviceTlb: boolean;

  constructor(defects: ReadonlySet<string>) {
    this.skipIotlb = defects.has('vtd-driver.skip-iotlb-flush');
    this.skipDeviceTlb = defects.has('vtd-driver.skip-device-tlb-flush');
  }

  /** Makes everybody forget [page, page + pages) of a domain, then frees the tables that an unmap unlinked. */
  *domain(domain: VtdDomain, page: number, pages: number): Steps {
    const { table } = domain;
    if (table === undefined) return;
    const retired = table.retired.length;
    const range = pages >= domain.endPage ? EVERYTHING : alignedRange(page, pages);
    const work = new Submissions();
    const tagged = new Set<string>();
    for (const { device, pasid } of domain.attachments) {
      const { unit } = device;
      const batch = work.batchOf(unit);
      const tag = `${unit.name} ${domain.kind === 'first-level' ? pasid : 0}`;
      if (!tagged.has(tag) && !this.skipIotlb) {
        tagged.add(tag);
        this.addIotlb(batch, domain, unit, pasid, range, retired === 0);
      }
      if (device.hasDeviceTlb && !this.skipDeviceTlb) batch.deviceTlb(device.tlb, pasid, range);
    }
    yield* work.submit();
    // tables unlinked meanwhile may be cached still: they wait for their own flush
    if (retired > 0 && table.retired.length === retired) table.freeRetired();
  }

  /** Caching mode: second-level entries that became present have to be announced (6.1); first-level ones need not. */
  announce(domain: VtdDomain, page: number, pages: number): void {
    if (domain.kind !== 'second-level') return;
    const done = new Set<RemappingUnit>();
    for (const { device, pasid } of domain.attachments) {
      const { unit } = device;
      if (!unit.capabilities.cachingMode || done.has(unit)) continue;
      done.add(unit);
      const batch = unit.queue.batch();
      this.addIotlb(batch, domain, unit, pasid, alignedRange(page, pages), false);
      unit.queue.postAll(batch);
    }
  }

  /** Bytes [start, end) of a process' address space, for those of the devices that it is installed in. */
  *process(devices: readonly VtdDevice[], pasid: number, start: number, end: number): Steps {
    const first = Math.floor(start / 4096);
    const range = end - start >= 2 ** 47 ? EVERYTHING : alignedRange(first, Math.ceil(end / 4096) - first);
    const work = new Submissions();
    const tagged = new Set<RemappingUnit>();
    for (const device of devices) {
      const { unit } = device;
      if (!device.requirePasidTable().isPresent(pasid)) continue;
      const batch = work.batchOf(unit);
      if (!tagged.has(unit) && !this.skipIotlb) {
        tagged.add(unit);
        if (range.order > unit.capabilities.maxAddressMask) batch.pasidIotlb(FLPT_DEFAULT_DID, pasid);
        else batch.pasidIotlbPages(FLPT_DEFAULT_DID, pasid, range, false);
      }
      if (device.hasDeviceTlb && !this.skipDeviceTlb) batch.deviceTlb(device.tlb, pasid, range);
    }
    yield* work.submit();
  }

  private addIotlb(batch: DescriptorBatch, domain: VtdDomain, unit: RemappingUnit, pasid: number, range: AlignedRange, leafOnly: boolean): void {
    const domainId = domain.idIn(unit);
    const { pageSelectiveInvalidation, maxAddressMask } = unit.capabilities;
    const wide = range.order > maxAddressMask;
    if (domain.kind === 'first-level') {
      if (wide) batch.pasidIotlb(domainId, pasid);
      else batch.pasidIotlbPages(domainId, pasid, range, leafOnly);
    } else if (wide || !pageSelectiveInvalidation) batch.iotlb(DOMAIN_SELECTIVE, domainId);
    else batch.iotlb(PAGE_SELECTIVE, domainId, range, leafOnly);
  }
}

/** Batches for several units, gathered without sleeping and submitted in the order of their first descriptor. */
class Submissions {
  private readonly open = new Map<RemappingUnit, DescriptorBatch>();
  private readonly all: { readonly unit: RemappingUnit; readonly batch: DescriptorBatch }[] = [];

  batchOf(unit: RemappingUnit): DescriptorBatch {
    let batch = this.open.get(unit);
    if (batch === undefined || batch.count >= CHUNK) {
      batch = unit.queue.batch();
      this.open.set(unit, batch);
      this.all.push({ unit, batch });
    }
    return batch;
  }

  *submit(): Steps {
    for (const { unit, batch } of this.all) yield* unit.queue.invalidate(batch);
  }
}
