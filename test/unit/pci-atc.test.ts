/** The address translation cache against a list of what it was told. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NO_PASID, type TranslationCompletion } from '../../host/pci/dma-port.js';
import { Atc, ATC_READ, ATC_WRITE } from '../../host/pci/hardware/atc.js';

function completion(page: number, pages = 1, rights = 'rw'): TranslationCompletion {
  return { page, pages, read: rights.includes('r'), write: rights.includes('w'), execute: false, privileged: false, global: false, untranslatedOnly: false };
}

interface Told {
  first: number;
  pages: number;
  pasid: number;
  privileged: boolean;
  to: number;
}

type Step =
  | { kind: 'insert'; page: number; order: number; pasid: number; privileged: boolean; to: number }
  | { kind: 'invalidate'; page: number; order: number; pasid: number; global: boolean };

const HIGH = 0xf_ffff_ffff_f000;
const page = fc.oneof(fc.integer({ min: 0, max: 63 }), fc.integer({ min: 0, max: 63 }).map((low) => HIGH + low));
const pasid = fc.constantFrom(NO_PASID, 0, 1, 0xfffff);
const order = fc.constantFrom(0, 0, 0, 2, 4);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('insert' as const), page, order, pasid, privileged: fc.boolean(), to: fc.integer({ min: 0, max: 1000 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('invalidate' as const), page, order: fc.constantFrom(0, 1, 4, 52), pasid, global: fc.boolean() }) },
);

describe('address translation cache', () => {
  it('never answers with anything but the latest translation of that space, and nothing after an invalidation (A5)', () => {
    fc.assert(fc.property(fc.array(step, { maxLength: 60 }), fc.constantFrom(4, 16, 256), (steps, entries) => {
      const atc = new Atc({ entries });
      let told: Told[] = [];
      for (const one of steps) {
        const pages = 2 ** one.order, first = one.order === 52 ? 0 : one.page - (one.page % pages);
        if (one.kind === 'insert') {
          told = told.filter((t) => t.pasid !== one.pasid || t.privileged !== one.privileged || t.first >= first + pages || first >= t.first + t.pages);
          told.push({ first, pages, pasid: one.pasid, privileged: one.privileged, to: one.to * pages });
          atc.insert(one.page, one.pasid, one.privileged, completion(one.to * pages, pages));
        } else {
          told = told.filter((t) => {
            const hit = one.pasid === NO_PASID || t.pasid === one.pasid || (one.global && t.pasid !== NO_PASID);
            return !hit || t.first >= first + pages || first >= t.first + t.pages;
          });
          atc.invalidate(first, one.order === 52 ? Infinity : pages, one.pasid, one.global);
        }
        expect(atc.size).toBeLessThanOrEqual(Math.min(entries, told.length));
        for (const base of [0, HIGH]) for (let p = base; p < base + 64; p += 3) for (const space of [NO_PASID, 0, 1, 0xfffff]) for (const privileged of [false, true]) {
          const index = atc.lookup(p, space, privileged);
          const expected = told.find((t) => t.pasid === space && t.privileged === privileged && p >= t.first && p < t.first + t.pages);
          if (index >= 0) expect(atc.pageAt(index, p)).toBe(expected === undefined ? NaN : expected.to + p - expected.first);
          else if (entries === 256 && expected !== undefined && atc.size < 16) throw new Error(`lost ${p} although there is room`);
        }
      }
    }), { numRuns: 60 });
  });

  it('keeps rights and sizes', () => {
    const atc = new Atc({ entries: 16 });
    atc.insert(0x205, 3, false, completion(0x4000, 512, 'r'));
    const entry = atc.lookup(0x3ff, 3, false);
    expect([atc.pageAt(entry, 0x3ff), atc.flagsAt(entry) & (ATC_READ | ATC_WRITE)]).toEqual([0x41ff, ATC_READ]);
    expect(atc.lookup(0x400, 3, false)).toBe(-1);
    expect(atc.lookup(0x3ff, 3, true)).toBe(-1);
  });

  it('drops PASID-tagged entries for an invalidation without PASID (A5), unless defect pci.atc-pasid-less-invalidation', () => {
    for (const defective of [false, true]) {
      const atc = new Atc({ entries: 16, defects: new Set(defective ? ['pci.atc-pasid-less-invalidation'] : []) });
      atc.insert(7, 3, false, completion(9));
      atc.invalidate(7, 1, NO_PASID, false);
      expect(atc.lookup(7, 3, false) >= 0).toBe(defective);
    }
  });

  it('replaces within its capacity', () => {
    const atc = new Atc({ entries: 16 });
    for (let p = 0; p < 1000; p++) atc.insert(p, 1, false, completion(p));
    expect(atc.size).toBe(16);
    atc.clear();
    expect([atc.size, atc.lookup(999, 1, false)]).toEqual([0, -1]);
  });
});
