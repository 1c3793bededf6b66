/** What a requester has under way and an invalidation must take into account. */
import { copyCompletion, NO_PASID, type TranslationCompletion } from '../dma-port.js';

/**
 * Translation requests whose completion is on its way. An invalidation that overtakes the completion makes it
 * worthless: it must not enter the cache (R-RACE-6; PCIe 6.0 section 10.3.5).
 */
export class PendingTranslations {
  private readonly pages: number[] = [];
  private readonly pasids: number[] = [];
  private readonly raced: boolean[] = [];
  private readonly completions: TranslationCompletion[] = [];
  private readonly free: number[] = [];

  /** A request left, this is what it will bring (copied); the result names it. */
  begin(page: number, pasid: number, completion: TranslationCompletion): number {
    const slot = this.free.pop() ?? this.pages.length;
    const kept = this.completions[slot] ?? (this.completions[slot] = { ...completion });
    copyCompletion(completion, kept);
    this.pages[slot] = page;
    this.pasids[slot] = pasid;
    this.raced[slot] = false;
    return slot;
  }

  /** What a completion brought; valid until the next `begin`. */
  completion(slot: number): TranslationCompletion {
    return this.completions[slot]!;
  }

  /** The completion arrived; true when it must be dropped. */
  end(slot: number): boolean {
    const raced = this.raced[slot]!;
    this.pages[slot] = -1;
    this.free.push(slot);
    return raced;
  }

  /** An invalidation arrived: completions under way whose range it touches are worthless. */
  race(page: number, pages: number, pasid: number, global: boolean): void {
    for (let slot = 0; slot < this.pages.length; slot++) {
      const at = this.pages[slot]!;
      if (at < 0) continue;
      const covered = this.completions[slot]!.pages, first = at - (at % covered);
      if (first >= page + pages || first + covered <= page) continue;
      const owner = this.pasids[slot]!;
      if (pasid === NO_PASID || owner === pasid || (global && owner !== NO_PASID)) this.raced[slot] = true;
    }
  }
}

/**
 * Invalidations that are not completed yet. A completion follows the translated requests that used what was
 * dropped (section 10.3.3), so it waits for those that were held when the invalidation arrived.
 */
export class PendingInvalidations {
  private readonly complete: (tag: number) => void;
  private readonly early: boolean;
  /** Translated operations that a port holds. */
  private readonly held = new Set<number>();
  private readonly waiting: { readonly tag: number; readonly behind: Set<number>; due: boolean }[] = [];

  /** @param early the named defect: completes without looking at held operations */
  constructor(complete: (tag: number) => void, early: boolean) {
    this.complete = complete;
    this.early = early;
  }

  /** A translated operation is held. */
  hold(token: number): void {
    this.held.add(token);
  }

  /** An operation that may have been held ended. */
  ended(token: number): void {
    if (!this.held.delete(token)) return;
    for (const pending of this.waiting) pending.behind.delete(token);
    this.completeReady();
  }

  /** An invalidation arrived; the result is to be called when the cache has done its part. */
  begin(tag: number): () => void {
    if (this.early || this.held.size === 0) return () => this.complete(tag);
    const pending = { tag, behind: new Set(this.held), due: false };
    this.waiting.push(pending);
    return () => {
      pending.due = true;
      this.completeReady();
    };
  }

  private completeReady(): void {
    for (let i = 0; i < this.waiting.length; ) {
      const { tag, behind, due } = this.waiting[i]!;
      if (due && behind.size === 0) {
        this.waiting.splice(i, 1);
        this.complete(tag);
      } else {
        i++;
      }
    }
  }
}
