/**
 * Translated requests carry an address and no PASID: what a device may do with them follows from the translations it
 * was given. They are remembered per device, and each is void once an invalidation that covers it has completed.
 */
import { hex, hexPage } from '../../sim/address.js';
import type { TraceRecord } from '../../sim/trace.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { Checker } from './invariant.js';

/** A translation that a completion gave to a device. */
export interface Given {
  readonly pasid: number;
  /** First page and frame. */
  readonly page: number;
  readonly frame: number;
  readonly pages: number;
  write: boolean;
  /** Index of the record of its completion. */
  since: number;
  /** Not invalidated yet. */
  held: boolean;
}

const LEAF_PAGES = [1, 512, 0x4_0000];

interface Invalidation {
  readonly pasid: number;
  readonly page: number;
  readonly pages: number;
  /** Index of the record of its arrival: a translation that was given later outlives it. */
  readonly index: number;
}

/** Translations of one device. */
class Held {
  readonly byFrame = new Map<number, Given[]>();
  private readonly byPasid = new Map<number, Map<number, Given>>();

  give(pasid: number, page: number, frame: number, pages: number, write: boolean, since: number): void {
    let ofPasid = this.byPasid.get(pasid);
    if (ofPasid === undefined) this.byPasid.set(pasid, (ofPasid = new Map<number, Given>()));
    const old = ofPasid.get(page);
    if (old !== undefined && old.frame === frame && old.pages === pages) {
      old.write = write || (old.held && old.write);
      old.since = since;
      old.held = true;
      return;
    }
    if (old !== undefined) this.forget(old);
    const given: Given = { pasid, page, frame, pages, write, since, held: true };
    ofPasid.set(page, given);
    const sameFrame = this.byFrame.get(frame);
    if (sameFrame === undefined) this.byFrame.set(frame, [given]);
    else sameFrame.push(given);
  }

  /** Translations under which an access to `frame` may be made, invalidated ones as well. */
  *of(frame: number): Generator<Given> {
    for (const pages of LEAF_PAGES) {
      const at = frame - (frame % pages);
      if (at === frame && pages > 1) continue;
      for (const given of this.byFrame.get(at) ?? []) if (frame < given.frame + given.pages) yield given;
    }
  }

  invalidate({ pasid, page, pages, index }: Invalidation): void {
    for (const [owner, ofPasid] of this.byPasid) {
      // without PASID those of every PASID go as well (A5)
      if (pasid !== NO_PASID && pasid !== owner) continue;
      for (const given of pages > ofPasid.size ? ofPasid.values() : inRange(ofPasid, page, pages)) {
        if (given.since < index && given.page < page + pages && given.page + given.pages > page) given.held = false;
      }
    }
  }

  clear(): void {
    for (const ofPasid of this.byPasid.values()) for (const given of ofPasid.values()) given.held = false;
  }

  private forget(given: Given): void {
    const left = this.byFrame.get(given.frame)!.filter((other) => other !== given);
    if (left.length > 0) this.byFrame.set(given.frame, left);
    else this.byFrame.delete(given.frame);
  }
}

/** Translations that may touch a range, found without looking at all of them. */
function* inRange(ofPasid: ReadonlyMap<number, Given>, page: number, pages: number): Generator<Given> {
  for (let at = page; at < page + pages; at++) {
    const given = ofPasid.get(at);
    if (given !== undefined) yield given;
  }
  for (const size of LEAF_PAGES) {
    const given = page % size === 0 ? undefined : ofPasid.get(page - (page % size));
    if (given !== undefined) yield given;
  }
}

/** After an invalidation completed, the device uses none of the translations that it covers (section 5 rule 4; A3, R-RACE-6). */
export class TranslationsForgotten extends Checker {
  readonly name = 'no translation is used after its invalidation';
  readonly kinds = ['pci:translation', 'pci:invalidate', 'pci:invalidate_completion', 'pci:dma', 'pci:flr', 'pci:remove'];
  private readonly devices = new Map<number, Held>();
  /** By source id and tag. */
  private readonly pending = new Map<number, Invalidation>();

  observe(kind: string, value: (argument: string) => number, record: TraceRecord): void {
    const source = value('source');
    switch (kind) {
      case 'pci:dma': return this.dma(source, value);
      case 'pci:translation': return this.translation(source, value, record.index);
      case 'pci:invalidate': {
        const pages = value('pages');
        this.pending.set(source * 32 + value('tag'), { pasid: value('pasid'), page: value('page'), pages: pages < 0 ? Infinity : pages, index: record.index });
        return;
      }
      case 'pci:invalidate_completion': {
        const invalidation = this.pending.get(source * 32 + value('tag'));
        if (invalidation !== undefined) this.devices.get(source)?.invalidate(invalidation);
        return;
      }
      default: this.devices.get(source)?.clear();
    }
  }

  /** Translations of a device that reach `frame`. */
  given(source: number, frame: number): Iterable<Given> {
    return this.devices.get(source)?.of(frame) ?? [];
  }

  private translation(source: number, value: (argument: string) => number, index: number): void {
    let held = this.devices.get(source);
    if (held === undefined) this.devices.set(source, (held = new Held()));
    const pages = value('pages'), page = value('iova');
    held.give(value('pasid'), page - (page % pages), value('physical'), pages, value('write') === 1, index);
    this.checked++;
  }

  private dma(source: number, value: (argument: string) => number): void {
    if (value('translated') === 0) return;
    const frame = value('physical'), write = value('write') === 1;
    let last: Given | undefined;
    for (const given of this.given(source, frame)) {
      if (given.held && (given.write || !write)) return;
      last = given;
    }
    // who was never given one is judged by where it lands
    if (last === undefined) return;
    const why = last.held ? 'is for reading' : 'was invalidated';
    this.violate(`device ${hex(source)} ${write ? 'wrote' : 'read'} frame ${hexPage(frame)}: its translation of ${hexPage(last.page)} of PASID ${last.pasid} ${why}`);
  }
}
