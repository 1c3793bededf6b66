import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { FIRST_LEVEL, TranslationCache, USER_READ, cacheKey, cacheSalt } from '../../iommu/intel-vtd/hardware/translation-cache.js';

/** Caches `page` of (domain, PASID) at a level. */
function fill(cache: TranslationCache, domainId: number, pasid: number, level: number, page: number, frame: number, flags = USER_READ | FIRST_LEVEL): void {
  cache.insert(domainId, pasid, cacheKey(domainId, pasid), cacheSalt(domainId, pasid), level, Math.floor(page / 512 ** level), frame, flags);
}

function lookup(cache: TranslationCache, domainId: number, pasid: number, level: number, page: number): number | undefined {
  const index = cache.find(cacheKey(domainId, pasid) + level, cacheSalt(domainId, pasid), Math.floor(page / 512 ** level));
  return index < 0 ? undefined : cache.frames[index]!;
}

describe('translation cache (VT-d 4.1, 6.2)', () => {
  it('finds an entry by domain, PASID, level and page only', () => {
    const cache = new TranslationCache(64);
    fill(cache, 1, 5, 0, 0x7_f012_3456, 0x99);
    expect(lookup(cache, 1, 5, 0, 0x7_f012_3456)).toBe(0x99);
    for (const [domain, pasid, level, page] of [[2, 5, 0, 0x7_f012_3456], [1, 6, 0, 0x7_f012_3456], [1, NO_PASID, 0, 0x7_f012_3456], [1, 5, 1, 0x7_f012_3456], [1, 5, 0, 0x7_f012_3457]] as const) {
      expect(lookup(cache, domain, pasid, level, page)).toBeUndefined();
    }
  });

  it('keeps addresses apart that differ above bit 32 of the page number', () => {
    const cache = new TranslationCache(64);
    fill(cache, 1, 5, 0, 0xf_8000_0000_0001, 1);
    expect(lookup(cache, 1, 5, 0, 0x0_8000_0000_0001)).toBeUndefined();
    expect(lookup(cache, 1, 5, 0, 0xf_8000_0000_0001)).toBe(1);
  });

  it('caches nothing with 0 entries and refuses sizes that are no power of two', () => {
    const cache = new TranslationCache(0);
    fill(cache, 1, 5, 0, 7, 9);
    expect([lookup(cache, 1, 5, 0, 7), cache.list()]).toEqual([undefined, []]);
    expect(() => new TranslationCache(48)).toThrow(/power of two/);
  });

  it('replaces within a set, one way after the other', () => {
    const cache = new TranslationCache(8); // two sets
    for (let i = 0; i < 6; i++) fill(cache, 1, 5, 0, i * 2, i);
    expect([0, 2, 4, 6, 8, 10].map((page) => lookup(cache, 1, 5, 0, page))).toEqual([undefined, undefined, 2, 3, 4, 5]);
  });

  it('counts its large entries through replacement, invalidation and reuse of their places', () => {
    const cache = new TranslationCache(4); // one set
    for (let i = 0; i < 6; i++) fill(cache, 1, 5, i % 2, i * 512, i);
    expect(cache.largeEntries).toBe(2);
    cache.invalidatePasidPages(1, 5, 3 * 512, 1);
    expect(cache.largeEntries).toBe(1);
    for (let i = 8; i < 12; i++) fill(cache, 1, 5, 0, i, i);
    expect([cache.largeEntries, cache.list().length]).toEqual([0, 4]);
  });

  it('drops a large entry when one of its pages is invalidated, and nothing else', () => {
    const cache = new TranslationCache(64);
    fill(cache, 1, 5, 1, 512, 0x1000);
    fill(cache, 1, 5, 0, 1024, 0x2000);
    fill(cache, 1, 6, 0, 513, 0x3000);
    cache.invalidatePasidPages(1, 5, 1023, 1);
    expect([lookup(cache, 1, 5, 1, 513), lookup(cache, 1, 5, 0, 1024), lookup(cache, 1, 6, 0, 513), cache.largeEntries]).toEqual([undefined, 0x2000, 0x3000, 0]);
  });

  it('describes what it holds', () => {
    const cache = new TranslationCache(64);
    fill(cache, 3, NO_PASID, 1, 0x400, 0x8000);
    expect(cache.list()).toEqual([{ domainId: 3, pasid: NO_PASID, page: 0x400, pages: 512, frame: 0x8000, flags: USER_READ | FIRST_LEVEL }]);
  });

  it('never answers for what was invalidated, and never differently from what was filled', () => {
    const domains = fc.integer({ min: 1, max: 2 }), pasids = fc.integer({ min: 0, max: 1 }), pages = fc.integer({ min: 0, max: 31 });
    const operation = fc.oneof(
      fc.record({ op: fc.constant('fill' as const), domain: domains, pasid: pasids, page: pages, frame: fc.nat(1000) }),
      fc.record({ op: fc.constant('domain' as const), domain: domains, pasid: pasids, page: pages, frame: fc.constant(0) }),
      fc.record({ op: fc.constant('pasid' as const), domain: domains, pasid: pasids, page: pages, frame: fc.constant(0) }),
      fc.record({ op: fc.constant('pages' as const), domain: domains, pasid: pasids, page: pages, frame: fc.integer({ min: 1, max: 8 }) }),
    );
    fc.assert(fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const cache = new TranslationCache(16);
      const model = new Map<string, number>();
      for (const { op, domain, pasid, page, frame } of operations) {
        if (op === 'fill') {
          fill(cache, domain, pasid, 0, page, frame);
          model.set(`${domain} ${pasid} ${page}`, frame);
        } else if (op === 'domain') cache.invalidateDomain(domain);
        else if (op === 'pasid') cache.invalidatePasid(domain, pasid);
        else cache.invalidatePasidPages(domain, pasid, page, frame);
        for (const key of model.keys()) {
          const [d, p, at] = key.split(' ').map(Number) as [number, number, number];
          const gone = op === 'domain' ? d === domain : op === 'pasid' ? d === domain && p === pasid : op === 'pages' && d === domain && p === pasid && at >= page && at < page + frame;
          if (gone) model.delete(key);
        }
      }
      for (let d = 1; d <= 2; d++) for (let p = 0; p <= 1; p++) for (let page = 0; page < 32; page++) {
        const found = lookup(cache, d, p, 0, page);
        if (found !== undefined) expect(found).toBe(model.get(`${d} ${p} ${page}`));
      }
    }), { numRuns: 100 });
  });
});
