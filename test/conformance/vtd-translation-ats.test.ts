import { describe, expect, it } from 'vitest';
import {
  ACCESS_READ, ACCESS_WRITE, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED, NO_PASID, PRG_FAILURE, PRG_INVALID, PRG_SUCCESS,
} from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING } from '../../host/timing.js';
import { CONTEXTS, DEVICE, DIRECTORY, P, PAGE, PASIDS, PS, ROOT, RW, SILENT, TARGET, TranslationWorld, US, XD, flAt, slAt } from './vtd-translation-world.js';

const CONTEXT = CONTEXTS + DEVICE * 32;
const ENTRY = PASIDS + 5 * 64;

describe('translation requests (VT-d 4.1, 4.1)', () => {
  it.each([
    ['first-level', 1n], ['second-level', 2n], ['nested', 3n],
  ] as const)('answers with page, rights and size: %s', (_name, type) => {
    const world = new TranslationWorld().scalable(type);
    expect(world.ats()).toBe('RW-');
    expect(world.backEnd.completion).toEqual({ page: TARGET, pages: 1, read: true, write: true, execute: false, privileged: false, global: false, untranslatedOnly: false });
    expect([world.ats(), world.backEnd.walkAccesses]).toEqual(['RW-', 0]);
  });

  it('answers R = W = 0 and records nothing where no translation exists', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(0), 0n);
    expect([world.ats(), world.ats(2 ** 40), world.ats(PAGE + 512 ** 3), world.faults]).toEqual(['---', '---', '---', []]);
    const second = new TranslationWorld().scalable(2n);
    expect([second.ats(PAGE + 1), second.ats(2 ** 45), second.faults]).toEqual(['---', '---', []]);
  });

  it('finds a page that has become present, or writable, without any invalidation', () => {
    const world = new TranslationWorld().scalable(1n);
    const word = world.peek(flAt(0));
    world.poke(flAt(0), 0n);
    world.ats();
    world.poke(flAt(0), word & ~RW);
    expect(world.ats()).toBe('R--');
    world.poke(flAt(0), word);
    expect(world.ats()).toBe('RW-');
  });

  it('answers for the requester\'s privilege', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 1n });
    world.clear(flAt(0), US | RW);
    expect([world.ats(), world.ats(PAGE, 5, ATTR_PRIVILEGED), world.backEnd.completion.privileged]).toEqual(['---', 'RW-', true]);
    world.poke(ENTRY + 16, world.peek(ENTRY + 16) | 0x10n);
    world.backEnd.invalidatePasidCache('global', 0, 0);
    world.backEnd.invalidatePasidIotlb('pasid', 7, 5, 0, 1, false);
    expect(world.ats(PAGE, 5, ATTR_PRIVILEGED)).toBe('R--');
  });

  it('grants execution when it was asked for and is permitted', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 0x22n });
    expect([world.ats(), world.ats(PAGE, 5, ATTR_EXECUTE)]).toEqual(['RW-', 'RWX']);
    const never = new TranslationWorld().scalable(1n, { entry2: 0x22n });
    never.or(flAt(0), XD);
    expect([never.ats(PAGE, 5, ATTR_EXECUTE), never.faults]).toEqual(['RW-', []]);
  });

  it('names the size of the translation', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(1), 0x60_0000n | P | RW | US | PS);
    for (let i = 0; i < 2; i++) expect([world.ats(), world.backEnd.completion.page, world.backEnd.completion.pages]).toEqual(['RW-', 0x600, 512]);
  });

  it('splits a leaf that holds the interrupt address range', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(2), 0xc000_0000n | P | RW | US | PS);
    for (let i = 0; i < 2; i++) expect([world.ats(), world.backEnd.completion.page, world.backEnd.completion.pages]).toEqual(['RW-', 0xc0000 + 0x1a * 512 + 0x56, 1]);
    // the page of that leaf which falls on 0xfee00000
    const page = PAGE - (PAGE % 512 ** 2) + 0x3ee00;
    expect([world.read(page, 5), world.ats(page)]).toEqual([-0x87, 'CA']);
  });

  it('answers for the interrupt address range: untranslated writes only (3.15)', () => {
    const world = new TranslationWorld().scalable(1n);
    expect([world.ats(0xfee00, NO_PASID), world.backEnd.completion.untranslatedOnly, world.backEnd.completion.page]).toEqual(['-W-', true, 0xfee00]);
    // table 30, S.2
    expect([world.ats(0xfee00, NO_PASID, ATTR_NO_WRITE), world.backEnd.completion.untranslatedOnly]).toEqual(['---', false]);
  });

  it('answers pass-through with the address itself', () => {
    const world = new TranslationWorld().scalable(4n);
    expect([world.ats(0x77), world.backEnd.completion.page, world.ats(0x77, 5, ATTR_NO_WRITE), world.ats(2 ** 34), world.faults]).toEqual(['RW-', 0x77, 'R--', '---', []]);
  });

  it.each([
    ['UR', 0x0d, 'TT 0', (w: TranslationWorld) => w.legacy(), NO_PASID],
    ['UR', 0x31, 'PASID in legacy mode', (w: TranslationWorld) => w.legacy(4n), 5],
    ['CA', 0x09, 'context table outside memory', (w: TranslationWorld) => w.legacy(4n).poke(ROOT, 0x7000_0001n), NO_PASID],
    ['UR', 0x41, 'context P', (w: TranslationWorld) => w.scalable(1n).poke(CONTEXT, 0n), 5],
    ['CA', 0x42, 'context reserved', (w: TranslationWorld) => w.scalable(1n).or(CONTEXT, 0x20n), 5],
    ['UR', 0x44, 'DTE', (w: TranslationWorld) => w.scalable(1n).clear(CONTEXT, 0x14n), 5],
    ['UR', 0x44, 'DTE before PASIDE', (w: TranslationWorld) => w.scalable(1n).clear(CONTEXT, 0x1cn), 5],
    ['UR', 0x45, 'PASIDE', (w: TranslationWorld) => w.scalable(1n).clear(CONTEXT, 8n), 5],
    ['CA', 0x52, 'directory reserved', (w: TranslationWorld) => w.scalable(1n).or(DIRECTORY, 4n), 5],
    ['CA', 0x5b, 'PGTT', (w: TranslationWorld) => w.scalable(6n), 5],
    ['CA', 0x78, 'table of the second level outside memory', (w: TranslationWorld) => w.scalable(2n).poke(slAt(1), 0x7000_0003n), 5],
    ['CA', 0x7a, 'reserved bits of the second level', (w: TranslationWorld) => w.scalable(2n).or(slAt(0), 1n << 62n), 5],
    ['CA', 0x87, 'result in the interrupt range', (w: TranslationWorld) => w.scalable(1n).poke(flAt(0), 0xfee0_0007n), 5],
  ] as const)('is refused with %s and recorded as 0x%i: %s (table 30)', (answer, reason, _name, prepare, pasid) => {
    const world = new TranslationWorld();
    prepare(world);
    expect([world.ats(PAGE, pasid), world.faults.map((fault) => [fault.reason, fault.addressType])]).toEqual([answer, [[reason, 1]]]);
  });

  it.each([
    ['directory P', (w: TranslationWorld) => w.scalable(1n).poke(DIRECTORY, 0n)],
    ['PASID entry P', (w: TranslationWorld) => w.scalable(1n).poke(ENTRY, 0n)],
    ['first-level table outside memory', (w: TranslationWorld) => w.scalable(1n).poke(flAt(1), 0x7000_0007n)],
    ['first-level root outside memory', (w: TranslationWorld) => w.scalable(1n).poke(ENTRY + 16, 0x7000_0000n)],
    ['reserved bits of the first level', (w: TranslationWorld) => w.scalable(1n).or(flAt(3), PS)],
  ] as const)('is answered R = W = 0 and not recorded: %s (table 30, 7.1.2)', (_name, prepare) => {
    const world = new TranslationWorld();
    prepare(world);
    expect([world.ats(), world.faults]).toEqual(['---', []]);
  });

  it('answers R = W = 0 to privileged and execute requests without SRE and ERE (SPT.5, SPT.6)', () => {
    const world = new TranslationWorld().scalable(1n);
    expect([world.ats(PAGE, 5, ATTR_PRIVILEGED), world.backEnd.completion.privileged, world.ats(PAGE, 5, ATTR_EXECUTE), world.faults]).toEqual(['---', true, '---', []]);
  });

  it('shows PRIV for what the request asked, not for RID_PRIV (4.2.3)', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 1n });
    world.clear(flAt(0), US);
    world.poke(CONTEXT + 8, 0x10_0000n);
    expect([world.ats(PAGE, NO_PASID), world.backEnd.completion.privileged]).toEqual(['RW-', false]);
  });

  it('answers R = W = 0 silently for a PASID entry with P = 0 and FPD = 1 (M6)', () => {
    const world = new TranslationWorld().scalable(1n);
    world.ats();
    world.poke(ENTRY, 2n);
    world.backEnd.invalidatePasidCache('pasid', 7, 5);
    world.backEnd.invalidatePasidIotlb('pasid', 7, 5, 0, 1, false);
    for (let i = 0; i < 1000; i++) expect(world.ats()).toBe('---');
    expect([world.write(PAGE, 5), world.faults]).toEqual([SILENT, []]);
  });

  it('answers with TT 1 in legacy mode', () => {
    const world = new TranslationWorld().legacy(4n);
    expect([world.ats(PAGE, NO_PASID), world.backEnd.completion.page]).toEqual(['RW-', TARGET]);
  });
});

describe('translated requests (4.2.5)', () => {
  it('pass where the context entry allows device TLBs', () => {
    expect(new TranslationWorld().scalable(1n).write(0x99, NO_PASID, ATTR_TRANSLATED)).toBe(0x99);
    expect(new TranslationWorld().legacy(4n).write(0x99, NO_PASID, ATTR_TRANSLATED)).toBe(0x99);
  });

  it.each([
    ['beyond the host address width', 2 ** 34, -0x83], ['in the interrupt range', 0xfee01, -0x87],
  ] as const)('are refused %s', (_name, page, reason) => {
    const world = new TranslationWorld().scalable(1n);
    expect([world.write(page, NO_PASID, ATTR_TRANSLATED), world.faults[0]?.addressType]).toEqual([reason, 2]);
  });

  it('are refused after the context entry forbids them and is invalidated', () => {
    const world = new TranslationWorld().scalable(1n);
    world.read(PAGE, 5);
    world.clear(CONTEXT, 0x14n);
    expect(world.write(0x99, NO_PASID, ATTR_TRANSLATED)).toBe(0x99);
    world.backEnd.invalidateContext('device', 0, DEVICE, 0);
    expect(world.write(0x99, NO_PASID, ATTR_TRANSLATED)).toBe(-0x44);
  });

  it('are a protocol error with a PASID (4.2.1)', () => {
    const world = new TranslationWorld().scalable(1n);
    expect([world.write(0x99, 5, ATTR_TRANSLATED), world.faults]).toEqual([SILENT, []]);
  });
});

describe('page requests (7.4)', () => {
  const request = (world: TranslationWorld, last = true, access = ACCESS_READ | ACCESS_WRITE, pasid = 5): void => world.backEnd.pageRequest(DEVICE, pasid, PAGE, access, last, 0x1a5);

  it('hands good ones to the front end, stop markers too', () => {
    const world = new TranslationWorld().scalable(1n);
    request(world);
    request(world, true, 0);
    expect(world.requests).toEqual([[DEVICE, 5, PAGE, 3, 1, 0x1a5], [DEVICE, 5, PAGE, 0, 1, 0x1a5]]);
    expect([world.responses, world.faults]).toEqual([[], []]);
  });

  it('forgets what is cached of the page', () => {
    const world = new TranslationWorld().scalable(1n);
    world.read(PAGE, 5);
    world.poke(flAt(1), 0n);
    expect(world.read(PAGE, 5)).toBe(TARGET);
    request(world);
    expect(world.read(PAGE, 5)).toBe(-0x71);
  });

  it.each([
    ['PRE is clear', 0x47, (w: TranslationWorld) => w.clear(CONTEXT, 0x10n)],
    ['the context entry is not present', 0x41, (w: TranslationWorld) => w.poke(CONTEXT, 0n)],
    ['the PASID entry is not present', 0x59, (w: TranslationWorld) => w.poke(ENTRY, 0n)],
    ['PASIDE is clear', 0x45, (w: TranslationWorld) => w.clear(CONTEXT, 8n)],
  ] as const)('is recorded and answered Invalid Request when %s (table 31)', (_name, reason, prepare) => {
    const world = new TranslationWorld().scalable(1n);
    prepare(world);
    request(world, false);
    expect(world.responses).toEqual([]);
    request(world, true, 0);
    expect(world.responses).toEqual([]);
    request(world);
    expect([world.responses, world.faults.map((fault) => [fault.reason, fault.pageRequest]), world.requests]).toEqual([[[DEVICE, 0x1a5, PRG_INVALID, 5]], Array(3).fill([reason, true]), []]);
  });

  it('answers Invalid silently for a PASID entry with P = 0 and FPD = 1 (M6)', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(ENTRY, 2n);
    request(world);
    expect([world.responses, world.faults, world.requests]).toEqual([[[DEVICE, 0x1a5, PRG_INVALID, 5]], [], []]);
  });

  it('is answered Invalid Request in legacy mode (0x32), Response Failure while remapping is off', () => {
    const world = new TranslationWorld().legacy();
    request(world);
    world.backEnd.setState({ enabled: false, rootTable: 0, mode: 1 });
    request(world, true, 1, NO_PASID);
    expect([world.responses, world.faults.map((fault) => fault.reason)]).toEqual([[[DEVICE, 0x1a5, PRG_INVALID, 5], [DEVICE, 0x1a5, PRG_FAILURE, NO_PASID]], [0x32]]);
  });

  it('sends responses to the device, those of a last request only', () => {
    const world = new TranslationWorld().scalable(1n);
    world.backEnd.pageResponse(DEVICE, 5, true, 3, PRG_SUCCESS, true);
    world.backEnd.pageResponse(DEVICE, 5, false, 4, PRG_FAILURE, true);
    world.backEnd.pageResponse(DEVICE, 5, true, 5, PRG_SUCCESS, false);
    expect(world.responses).toEqual([[DEVICE, 3, PRG_SUCCESS, 5], [DEVICE, 4, PRG_FAILURE, NO_PASID]]);
  });
});

describe('device-TLB invalidation (4.2; flow 2e)', () => {
  const TIMEOUT = DEFAULT_TIMING.invalidationTimeoutNs;

  it('carries range and PASID and ends with the completion', () => {
    const world = new TranslationWorld();
    const ends: string[] = [];
    world.backEnd.invalidateDeviceTlb(DEVICE, 5, 0x100, 32, false, (result) => ends.push(result));
    expect([world.invalidations, ends]).toEqual([[{ sourceId: DEVICE, tag: 0, page: 0x100, pages: 32, pasid: 5 }], []]);
    world.backEnd.invalidateCompletion(DEVICE, 0);
    expect(ends).toEqual(['completed']);
    expect([world.clock.run(), world.clock.now]).toEqual(['idle', 0]);
  });

  it('keeps 32 outstanding per device, further ones wait in order (flow 2e, step 6)', () => {
    const world = new TranslationWorld();
    const ends: number[] = [];
    for (let i = 0; i < 40; i++) world.backEnd.invalidateDeviceTlb(DEVICE, 5, i, 1, false, () => ends.push(i));
    world.backEnd.invalidateDeviceTlb(0x18, 5, 0x999, 1, false, () => ends.push(999));
    expect([world.invalidations.length, new Set(world.invalidations.map((i) => i.tag)).size]).toEqual([33, 32]);
    world.backEnd.invalidateCompletion(DEVICE, 7);
    expect([world.invalidations.length, world.invalidations.at(-1)?.page, world.invalidations.at(-1)?.tag, ends]).toEqual([34, 32, 7, [7]]);
    for (let turn = 0; ends.length < 40 && turn < 100; turn++) for (let tag = 0; tag < 32; tag++) world.backEnd.invalidateCompletion(DEVICE, tag);
    expect(ends.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 40 }, (_, i) => i));
  });

  it('times out when nobody answers, reachable or not (E39)', () => {
    for (const reachable of [true, false]) {
      const world = new TranslationWorld({ reachable });
      const ends: string[] = [];
      for (let i = 0; i < 33; i++) world.backEnd.invalidateDeviceTlb(DEVICE, 5, i, 1, false, (result) => ends.push(`${result} at ${world.clock.now}`));
      expect(ends).toEqual([]);
      expect(world.clock.run()).toBe('idle');
      expect(ends).toEqual([...Array<string>(32).fill(`timed-out at ${TIMEOUT}`), `timed-out at ${2 * TIMEOUT}`]);
    }
  });

  it('times out by itself what was sent later', () => {
    const world = new TranslationWorld();
    const ends: string[] = [];
    const send = (name: string): void => world.backEnd.invalidateDeviceTlb(DEVICE, 5, 0, 1, false, (result) => ends.push(`${name} ${result} ${world.clock.now}`));
    send('a');
    world.clock.after(1000, () => send('b'));
    world.clock.after(2000, () => world.backEnd.invalidateCompletion(DEVICE, 0));
    world.clock.run();
    expect(ends).toEqual(['a completed 2000', `b timed-out ${TIMEOUT + 1000}`]);
  });

  it('reports a completion that nobody waits for (ICE)', () => {
    const world = new TranslationWorld();
    world.backEnd.invalidateDeviceTlb(DEVICE, 5, 0, 1, false, () => {});
    for (const [source, tag] of [[DEVICE, 1], [0x18, 0], [DEVICE, 0], [DEVICE, 0]] as const) world.backEnd.invalidateCompletion(source, tag);
    expect(world.unexpected).toBe(3);
  });

  it('is lost by a defect that completes without telling the device', () => {
    const world = new TranslationWorld({ defects: ['vtd.skip-device-tlb-flush'] });
    const ends: string[] = [];
    world.backEnd.invalidateDeviceTlb(DEVICE, 5, 0, 1, false, (result) => ends.push(result));
    expect(ends).toEqual([]);
    world.clock.run();
    expect([ends, world.invalidations]).toEqual([['completed'], []]);
  });
});

it('knows the defect that ignores U/S', () => {
  const world = new TranslationWorld({ defects: ['vtd.ignore-user-bit'] }).scalable(1n);
  world.clear(flAt(0), US);
  expect([world.read(PAGE, 5), world.ats()]).toEqual([TARGET, 'RW-']);
});
