/**
 * What software has done about cached translations, by the vector alone: which pages requests used while tables and
 * caches said the same, and which IOTLB invalidations were executed since. What the model's caches did about
 * these plays no part, so that a model that forgets to invalidate is found out.
 */
import type { Trace } from '../../sim/trace.js';
import { pageOfWords, loOf, hiOf } from '../../sim/address.js';
import { DESCRIPTOR } from '../../iommu/intel-vtd/spec/descriptors.js';
import { IOTLB } from '../../iommu/intel-vtd/spec/registers.js';
import { FIRST_LEVEL, type CachedTranslation } from '../../iommu/intel-vtd/hardware/translation-cache.js';

interface Invalidation {
  readonly step: number;
  /** Undefined: every domain. */
  readonly domainId: number | undefined;
  /** Undefined: whatever the PASID. */
  readonly pasid: number | undefined;
  readonly page: number;
  readonly pages: number;
}

const GLOBAL = 1;
const PAGES = 3;

export class InvalidationHistory {
  /** Of the step that is replayed. */
  step = 0;
  private readonly invalidations: Invalidation[] = [];
  /** How many there were before the descriptor that was fetched last. */
  private before = 0;
  private readonly used: { readonly step: number; readonly page: number }[] = [];

  /** @param trace of the unit; its descriptors and queue errors are read along */
  constructor(trace: Trace) {
    trace.listen(({ args }) => this.descriptor(args), ['vtd:descriptor']);
    // the descriptor that was fetched last was refused; codes that stop the queue before the fetch leave it alone
    trace.listen(({ args }) => {
      if (trace.text('str', args[1]!) === 'IQE' && REFUSED.has(args[2]!)) this.invalidations.length = this.before;
    }, ['vtd:inv_error']);
  }

  /** A request used the page, and its translation was the one in the tables. */
  use(page: number): void {
    this.used.push({ step: this.step, page });
  }

  /** Software wrote the upper half of the IOTLB register, with what stands in IVA. */
  register(value: bigint, address: bigint): void {
    const words = [loOf(value), hiOf(value)];
    if (IOTLB.f.IVT.get(words) === 0) return;
    this.add(IOTLB.f.IIRG.get(words), IOTLB.f.DID.get(words), undefined, loOf(address), hiOf(address));
  }

  /** Step at which a translation that is cached now was last the one in the tables; undefined when none was seen. */
  lastGood(hit: CachedTranslation): number | undefined {
    return this.used.findLast(({ page }) => page >= hit.page && page < hit.page + hit.pages)?.step;
  }

  /** An invalidation since then that covers it. */
  invalidatedSince(step: number, hit: CachedTranslation): number | undefined {
    return this.invalidations.find((one) => one.step > step && covers(one, hit))?.step;
  }

  private descriptor(args: readonly number[]): void {
    this.before = this.invalidations.length;
    const [q0, h0, q1, h1] = args.slice(3) as [number, number, number, number];
    const type = q0 & 0xf, granularity = (q0 >>> 4) & 3;
    if (type === DESCRIPTOR.IOTLB) this.add(granularity, (q0 >>> 16) & 0xffff, undefined, q1, h1);
    if (type === DESCRIPTOR.PASID_IOTLB) this.add(granularity, (q0 >>> 16) & 0xffff, h0 & 0xf_ffff, q1, h1);
  }

  private add(granularity: number, domainId: number, pasid: number | undefined, lo: number, hi: number): void {
    const pages = granularity === PAGES ? 2 ** (lo & 0x3f) : Infinity;
    const page = pageOfWords(lo, hi);
    this.invalidations.push({ step: this.step, domainId: granularity === GLOBAL && pasid === undefined ? undefined : domainId, pasid, pages, page: pages === Infinity ? 0 : page - (page % pages) });
  }
}

/** IQEI codes about a descriptor: invalid type, reserved field. */
const REFUSED: ReadonlySet<number> = new Set([3, 4]);

function covers({ domainId, pasid, page, pages }: Invalidation, hit: CachedTranslation): boolean {
  if (domainId !== undefined && domainId !== hit.domainId) return false;
  if (pasid !== undefined && pasid !== hit.pasid) return false;
  // the address of a request without PASID is one of the second level: translations through the first all go
  if (pasid === undefined && pages !== Infinity && (hit.flags & FIRST_LEVEL) !== 0) return true;
  return page < hit.page + hit.pages && hit.page < page + pages;
}
