/**
 * The VT-d back end against an independent reading of the specification (walker.ts): random tables, random requests, random
 * mistakes, and agreement on address, rights, fault reason, record, and every bit that changes in a table. Caches off,
 * caches on after a global invalidation, and out of the caches.
 */
import { describe, expect, it } from 'vitest';
import { Random } from '../../sim/random.js';
import { faultReason } from '../../iommu/intel-vtd/spec/fault-reasons.js';
import { HARDWARE, TableWorld } from './builder.js';
import { ModelUnderTest, describeRequest } from './compare.js';
import { walk } from './walker.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const TRANSLATIONS = NIGHTLY ? 1_000_000 : 50_000;
const REQUESTS_PER_WORLD = 60;
/** Of ten worlds, the hardware they run on. */
const MIX = [0, 0, 0, 0, 0, 1, 1, 2, 3, 4];

interface Result {
  /** Outcomes by `kind reason`, granted ones by `kind granted 4 KiB`. */
  readonly counts: Map<string, number>;
  readonly differences: string[];
}

/** Runs worlds from `seed` on until so many requests were compared; stops early after some differences. */
function compareMany(requests: number, seed: number, defects: readonly string[] = []): Result {
  const world = new TableWorld();
  const models = HARDWARE.map((hardware) => [false, true].map((caching) => new ModelUnderTest(world.memory, hardware, caching, defects)));
  const result: Result = { counts: new Map(), differences: [] };
  for (let done = 0; done < requests && result.differences.length < 10; seed++) {
    // small seeds start alike, hashed ones do not
    const random = new Random(0).split(`world ${seed}`);
    const index = MIX[Math.abs(seed) % MIX.length]!;
    const hardware = HARDWARE[index]!;
    world.rebuild(random, hardware);
    for (const model of models[index]!) model.setTables(world.rootTable, world.mode);
    for (let i = 0; i < REQUESTS_PER_WORLD; i++, done++) {
      const request = world.request();
      if (random.chance(0.45)) world.spoil(request.way);
      const expected = walk(world.load, hardware, BigInt(world.rootTable), world.mode, request);
      const key = expected.reason === 0 ? `${request.kind} granted ${expected.size >> 10n} KiB` : `${request.kind} 0x${expected.reason.toString(16)}`;
      result.counts.set(key, (result.counts.get(key) ?? 0) + 1);
      const spoiled = world.memory.log.length;
      for (const [n, model] of models[index]!.entries()) {
        const difference = model.difference(request, expected);
        if (difference !== '') result.differences.push(`world ${seed}, request ${i}, caches ${n === 0 ? 'off' : 'on'}: ${describeRequest(request, hardware, world.mode)}: expected 0x${expected.reason.toString(16)} ${expected.status}; ${difference}`);
        world.memory.undo(spoiled);
      }
      world.memory.undo();
    }
  }
  return result;
}

/** Every reason that a request of a kind can meet here, and how often it has to, in 50,000 requests. */
const UNTRANSLATED = [
  0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xa, 0xb, 0xc, 0xe, 0x29, 0x30, 0x31, 0x33, 0x38, 0x39, 0x3a, 0x40, 0x41, 0x42, 0x43, 0x45, 0x46, 0x48, 0x50, 0x51, 0x52, 0x58, 0x59, 0x5a,
  0x5b, 0x5c, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x7b, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x89,
];
/** Translation requests need no right: what is missing is told, not refused. */
const TRANSLATION = [...UNTRANSLATED.filter((reason) => ![0x29, 0x82, 0x85, 0x86, 0x5, 0xe].includes(reason)), 0xd, 0x44];
const TRANSLATED = [0xd, 0x44, 0x1, 0x39, 0x41, 0x83];
const PAGE_REQUEST = [0x32, 0x30, 0x39, 0x3a, 0x41, 0x42, 0x47, 0x45, 0x46, 0x51, 0x52, 0x59, 0x5a, 0x5b];
/** Reasons that random tables meet rarely. */
const RARE = new Set([0x8, 0xe, 0x38, 0x43, 0x70, 0x73, 0x74, 0x84, 0x87, 0x89]);

describe('VT-d translation against an independent reading of the specification', () => {
  it(`agrees over ${TRANSLATIONS.toLocaleString('en')} requests, and meets every fault reason`, () => {
    const { counts, differences } = compareMany(TRANSLATIONS, NIGHTLY ? 1_000_000 : 1);
    expect(differences).toEqual([]);
    const scale = TRANSLATIONS / 50_000;
    const missing: string[] = [];
    const atLeast = (key: string, times: number): void => {
      if ((counts.get(key) ?? 0) < times * scale) missing.push(`${key}: ${counts.get(key) ?? 0} of ${times * scale}`);
    };
    for (const reason of UNTRANSLATED) atLeast(`untranslated 0x${reason.toString(16)}`, RARE.has(reason) ? 4 : 20);
    for (const reason of TRANSLATION) atLeast(`translation 0x${reason.toString(16)}`, RARE.has(reason) ? 1 : 8);
    for (const reason of TRANSLATED) atLeast(`translated 0x${reason.toString(16)}`, 1);
    for (const reason of PAGE_REQUEST) atLeast(`page 0x${reason.toString(16)}`, 2);
    for (const kind of ['untranslated', 'translation']) {
      atLeast(`${kind} granted 4 KiB`, 1000);
      atLeast(`${kind} granted 2048 KiB`, 200);
      atLeast(`${kind} granted 1048576 KiB`, 100);
    }
    atLeast('page granted 0 KiB', 300);
    expect(missing).toEqual([]);
  });

  it('counts every reason that the walker can give among those the model can record', () => {
    for (const reason of [...UNTRANSLATED, ...TRANSLATION, ...TRANSLATED, ...PAGE_REQUEST]) expect(faultReason(reason), `0x${reason.toString(16)}`).toBeDefined();
  });

  it.each(['vtd.ignore-user-bit', 'vtd.ignore-fpd', 'vtd.skip-dirty-bit'])('notices the defect %s', (defect) => {
    expect(compareMany(3000, 1, [defect]).differences).not.toEqual([]);
  });

  it('meets 0x91 and 0x7d when an accessed or dirty bit cannot be set (SFS.10, SSS.6)', () => {
    const world = new TableWorld();
    const hardware = HARDWARE[0]!;
    const model = new ModelUnderTest(world.memory, hardware, false);
    const met = new Map<string, number>();
    for (let seed = 1; seed < 60; seed++) {
      world.rebuild(new Random(0).split(`world ${seed}`), hardware);
      model.setTables(world.rootTable, world.mode);
      for (let i = 0; i < 30; i++) {
        const request = world.request();
        const expected = walk(world.load, hardware, BigInt(world.rootTable), world.mode, request);
        if (request.kind === 'page' || request.kind === 'translated' || expected.reason !== 0) continue;
        const changing = [...expected.sets].filter(([at, flags]) => (world.load(at)! & flags) !== flags).map(([at]) => at);
        const address = changing[i % Math.max(1, changing.length)];
        if (address === undefined) continue;
        // bits 8 and 9 are those of second-level entries
        const reason = (expected.sets.get(address)! & 0x300n) === 0n ? 0x91 : 0x7d;
        const asks = request.kind === 'translation';
        world.memory.stubborn = Number(address);
        const allowed = new Map(expected.sets);
        for (const [at, flags] of expected.maySet) allowed.set(at, (allowed.get(at) ?? 0n) | flags);
        const recorded = walkedFaultsAreRecorded(world, request.sourceId, request.pasid, hardware);
        expect(model.difference(request, {
          ...expected, reason, recorded, status: !asks ? 'UR' : reason === 0x91 ? 'success' : 'CA', read: false, write: false, execute: false, sets: new Map(), maySet: allowed,
          privileged: asks && reason === 0x91 && expected.privileged, untranslatedOnly: false,
        })).toBe('');
        met.set(`${request.kind} ${reason}`, (met.get(`${request.kind} ${reason}`) ?? 0) + 1);
        world.memory.stubborn = -1;
        world.memory.undo();
      }
    }
    for (const key of ['untranslated 145', 'untranslated 125', 'translation 145', 'translation 125']) expect(met.get(key), key).toBeGreaterThan(10);
  });
});

/** Whether no FPD bit stands on the way of a request: a fault that is met late, not canonical or not mapped, tells. */
function walkedFaultsAreRecorded(world: TableWorld, sourceId: number, pasid: number | undefined, hardware: (typeof HARDWARE)[number]): boolean {
  const probe = walk(world.load, hardware, BigInt(world.rootTable), world.mode, {
    sourceId, pasid, address: 1n << 63n, kind: 'untranslated', write: false, execute: false, privileged: false, noWrite: false,
  });
  return probe.recorded;
}
