/**
 * What a unit remembers between requests and how invalidations of each granularity make it forget (VT-d rev 4.1,
 * sections 6.2 and 6.5): context cache, PASID cache, IOTLB, and the caches of first- and second-level structures.
 */
import type { ContextGranularity, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity } from './back-end.js';
import type { AddressSpaceRoot, RequesterTables } from './requester-tables.js';
import { FIRST_LEVEL, NESTED, TranslationCache } from './translation-cache.js';

/** Entries of each paging-structure cache. */
const STRUCTURE_ENTRIES = 1024;

export class UnitCaches {
  readonly tables: RequesterTables;
  readonly iotlb: TranslationCache;
  /** Structures of the first level, by (domain, PASID). */
  readonly firstLevel: TranslationCache;
  /** Structures of the second level, by domain. */
  readonly secondLevel: TranslationCache;

  /** With an IOTLB of no entries the structure caches have none either. */
  constructor(tables: RequesterTables, iotlb: TranslationCache) {
    this.tables = tables;
    this.iotlb = iotlb;
    this.firstLevel = new TranslationCache(iotlb.entries === 0 ? 0 : STRUCTURE_ENTRIES);
    this.secondLevel = new TranslationCache(iotlb.entries === 0 ? 0 : STRUCTURE_ENTRIES);
  }

  invalidateAll(): void {
    this.tables.invalidateAll();
    this.invalidateTranslations();
  }

  /** Section 6.5.2.1. */
  invalidateContext(granularity: ContextGranularity, domainId: number, sourceId: number, functionMask: number): void {
    switch (granularity) {
      case 'global': return this.tables.invalidateContexts();
      case 'domain': return this.tables.invalidateContextsOfDomain(domainId);
      case 'device': return this.tables.invalidateContextsOfDevice(sourceId, functionMask);
    }
  }

  /** Section 6.5.2.2. */
  invalidatePasidCache(granularity: PasidCacheGranularity, domainId: number, pasid: number): void {
    switch (granularity) {
      case 'global': return this.tables.invalidatePasids();
      case 'domain': return this.tables.invalidatePasidsOfDomain(domainId);
      case 'pasid': return this.tables.invalidatePasid(domainId, pasid);
    }
  }

  /**
   * Section 6.5.2.3. The address of a page-selective request is one of the second level, so translations that
   * went through first-level tables of the domain cannot be told apart by it and all go.
   */
  invalidateIotlb(granularity: IotlbGranularity, domainId: number, page: number, pages: number, hint: boolean): void {
    switch (granularity) {
      case 'global': return this.invalidateTranslations();
      case 'domain':
        this.iotlb.invalidateDomain(domainId);
        this.firstLevel.invalidateDomain(domainId);
        this.secondLevel.invalidateDomain(domainId);
        return;
      case 'page':
        this.iotlb.invalidateDomainPages(domainId, page, pages);
        this.iotlb.invalidateDomain(domainId, FIRST_LEVEL);
        // a nested entry holds the physical place of a table, which is a leaf of the second level
        this.firstLevel.invalidateDomain(domainId, hint ? NESTED : 0);
        if (!hint) this.secondLevel.invalidateDomainPages(domainId, page, pages);
        return;
    }
  }

  /** Section 6.5.2.4. */
  invalidatePasidIotlb(granularity: PasidIotlbGranularity, domainId: number, pasid: number, page: number, pages: number, hint: boolean): void {
    if (granularity === 'pasid') {
      this.iotlb.invalidatePasid(domainId, pasid);
      this.firstLevel.invalidatePasid(domainId, pasid);
      return;
    }
    this.iotlb.invalidatePasidPages(domainId, pasid, page, pages);
    if (!hint) this.firstLevel.invalidatePasidPages(domainId, pasid, page, pages);
  }

  /** Whatever is cached of one page of one address space. */
  invalidatePage(root: AddressSpaceRoot, page: number): void {
    this.iotlb.invalidatePage(root.key, root.salt, page);
    this.firstLevel.invalidatePage(root.key, root.salt, page);
  }

  private invalidateTranslations(): void {
    this.iotlb.invalidateAll();
    this.firstLevel.invalidateAll();
    this.secondLevel.invalidateAll();
  }
}
