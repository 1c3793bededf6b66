/**
 * Which translations a unit may still have cached, by the trace alone: when a page was last used, and which
 * invalidations the unit executed since. A descriptor that was refused does not count.
 */
import { wordsOf } from '../../sim/layout.js';
import { DESCRIPTOR, IOTLB_INVALIDATE, PASID_IOTLB_INVALIDATE } from '../../iommu/intel-vtd/spec/descriptors.js';
import type { CacheTag } from './linux-tables.js';
import type { TraceLine } from './linux-trace.js';

interface Invalidation {
  readonly line: number;
  /** Undefined: every domain. */
  readonly domainId: number | undefined;
  /** Undefined: whatever the PASID. */
  readonly pasid: number | undefined;
  readonly page: number;
  readonly pages: number;
}

const GLOBAL = 1;
const PAGES = 3;

export class IotlbHistory {
  private readonly executed: Invalidation[] = [];
  private readonly refused: Invalidation[] = [];
  private readonly lastUse = new Map<string, number>();

  /** The unit fetched the descriptor of a `desc` or `inject` line, and executed or refused it. */
  fetched(line: TraceLine, executed: boolean): void {
    const raw = line.words('raw');
    const words = wordsOf(...raw, ...Array.from({ length: 4 - raw.length }, () => 0n));
    const type = words[0]! & 0xf;
    if (type !== DESCRIPTOR.IOTLB && type !== DESCRIPTOR.PASID_IOTLB) return;
    const { G, DID, AM, ADDR } = IOTLB_INVALIDATE.f;
    const byPasid = type === DESCRIPTOR.PASID_IOTLB;
    const byPages = G.get(words) === PAGES;
    const pages = byPages ? 2 ** AM.get(words) : Infinity;
    (executed ? this.executed : this.refused).push({
      line: line.number, pages, page: byPages ? ADDR.get(words) - (ADDR.get(words) % pages) : 0,
      domainId: !byPasid && G.get(words) === GLOBAL ? undefined : DID.get(words),
      pasid: byPasid ? PASID_IOTLB_INVALIDATE.f.PASID.get(words) : undefined,
    });
  }

  /** A request used the page, so that its translation may be cached from now on. */
  used(line: TraceLine, sourceId: number, pasid: number, page: number): void {
    this.lastUse.set(`${sourceId}/${pasid}/${page}`, line.number);
  }

  /** A sentence when no executed invalidation has covered the page since it was used last; else undefined. */
  whyStale(sourceId: number, pasid: number, page: number, tag: CacheTag): string | undefined {
    const used = this.lastUse.get(`${sourceId}/${pasid}/${page}`);
    if (used === undefined) return undefined;
    if (this.executed.some((each) => each.line > used && covers(each, page, tag))) return undefined;
    const refused = this.refused.find((each) => each.line > used && covers(each, page, tag));
    const meant = refused === undefined ? '' : `: the one in line ${refused.line} was refused`;
    return `used in line ${used}, and no invalidation of domain ${tag.domainId} that covers it was executed since${meant}`;
  }
}

function covers({ domainId, pasid, page: first, pages }: Invalidation, page: number, tag: CacheTag): boolean {
  return (domainId === undefined || domainId === tag.domainId) && (pasid === undefined || pasid === tag.pasid) && page >= first && page < first + pages;
}
