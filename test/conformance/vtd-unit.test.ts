import { describe, expect, it } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { read64, write64 } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';
import { ACCESS_READ, ACCESS_WRITE, ATTR_NO_WRITE, DMA_DONE, DMA_UR } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { VTD_UNIT_DEFECTS, VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities, type VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';

const RID = 0x20, PASID = 2;
/** Page of a process's buffer: 0x7ff5_7f06_1000. */
const PAGE = 0x7_ff57_f061;

/** A unit over RAM whose tables are those of the recorded SVA requester: 00:04.0, PASID 2, first level, four levels. */
function unitWithTables(options: VtdCapabilityOptions = {}) {
  const clock = new VirtualClock({ eventLimit: 100_000 });
  const memory = new Ram(0x40_0000);
  const trace = new Trace(clock);
  const interrupts: number[] = [];
  const toDevice: string[] = [];
  const unit = new VtdUnit({
    name: 'dmar0', capabilities: buildCapabilities(options).capabilities, memory, clock, timing: new Timing(DEFAULT_TIMING, new Random(7)), trace,
    interrupts: { message: (_address, data) => interrupts.push(data) },
    router: {
      invalidate: (sourceId, tag, page, pages, pasid) => toDevice.push(`invalidate ${sourceId} ${page}+${pages} pasid ${pasid} tag ${tag}`) > 0,
      pageResponse: (sourceId, prgIndex, code, pasid) => toDevice.push(`response ${sourceId} prg ${prgIndex} code ${code} pasid ${pasid}`) > 0,
      releaseHeld: () => {},
    },
  });
  const poke = (address: number, ...words: bigint[]): void => words.forEach((word, i) => memory.store64(address + 8 * i, Number(word & 0xffff_ffffn), Number(word >> 32n)));
  poke(0x1_0000, 0x1_1001n);
  poke(0x1_1000 + RID * 32, 0x1_2e1dn, 0n, 0n, 0n);
  poke(0x1_2000, 0x1_3001n);
  poke(0x1_3000 + PASID * 64, 0x49n, 0x80_0001n, 0x1_4000n);
  poke(0x1_4000 + 0xff * 8, 0x1_5007n);
  poke(0x1_5000 + 0x1d5 * 8, 0x1_6007n);
  poke(0x1_6000 + 0x1f8 * 8, 0x1_7007n);
  unit.write(0x88, 4, 0);
  write64(unit, 0x90, 0x10_0800n);
  unit.write(0x18, 4, 0x0400_0000);
  write64(unit, 0x20, 0x1_0400n);
  unit.write(0x18, 4, 0x4400_0000);
  unit.write(0xe4, 4, 0x21);
  unit.write(0xe8, 4, 0xfee0_0000);
  unit.write(0xe0, 4, 0);
  write64(unit, 0xd0, 0x20_0000n);
  unit.write(0x18, 4, 0x8400_0000);
  return { clock, memory, trace, interrupts, toDevice, unit, poke };
}

describe('VtdUnit: one recoverable fault through registers and memory (design section 4; flow 2a)', () => {
  it('answers R = W = 0, queues the request, interrupts, sends the response, then translates', () => {
    const { memory, trace, interrupts, toDevice, unit, poke } = unitWithTables();
    expect(unit.translationRequest(RID, PASID, 0, PAGE)).toBe(DMA_DONE);
    expect([unit.completion.read, unit.completion.write]).toEqual([false, false]);
    unit.pageRequest(RID, PASID, PAGE, ACCESS_READ | ACCESS_WRITE, true, 1);
    const correlation = trace.shared.find(RID, 1);
    expect([interrupts, read64(unit, 0xc8), memory.load(0x20_0000, 4), memory.load(0x20_0008, 4)]).toEqual([[0x21], 0x20n, 0x20_0101, 0x7f06_100f]);
    // the handler maps the page and answers; LPIG stays clear, as in the recording
    poke(0x1_7000 + 0x61 * 8, 0x30_0007n);
    poke(0x10_0000, 0x2_0020_0019n, 0x8n, 0n, 0n);
    poke(0x10_0020, 0x2_0000_0025n, 0x21_0000n, 0n, 0n);
    unit.write(0x88, 4, 0x40);
    expect([toDevice, memory.load(0x21_0000, 4)]).toEqual([['response 32 prg 1 code 0 pasid 2'], 2]);
    expect(Array.from(trace.records()).filter((record) => record.correlation === correlation).map((record) => record.kind.name))
      .toEqual(['vtd:page_request', 'vtd:descriptor', 'vtd:page_response']);
    expect(unit.translationRequest(RID, PASID, 0, PAGE)).toBe(DMA_DONE);
    expect([unit.completion.page, unit.completion.read, unit.completion.write]).toEqual([0x300, true, true]);
    expect(memory.load(0x1_7000 + 0x61 * 8, 4)).toBe(0x30_0067);
  });

  it('completes an unmap only after the device has flushed (2e)', () => {
    const { memory, toDevice, unit, poke } = unitWithTables();
    poke(0x1_7000 + 0x61 * 8, 0x30_0007n);
    unit.translationRequest(RID, PASID, 0, PAGE);
    poke(0x1_7000 + 0x61 * 8, 0n);
    poke(0x10_0000, 0x2_0001_0036n, 0x7ff5_7f06_0003n, 0n, 0n);
    poke(0x10_0020, 0x2_0020_0008n, 0x7ff5_7f06_3800n, 0n, 0n);
    poke(0x10_0040, 0x2_0000_0025n, 0x21_0000n, 0n, 0n);
    unit.write(0x88, 4, 0x60);
    expect([toDevice, memory.load(0x21_0000, 4)]).toEqual([[`invalidate 32 ${PAGE - 1}+8 pasid 2 tag 0`], 0]);
    unit.translationRequest(RID, PASID, 0, PAGE);
    expect(unit.completion.read).toBe(false);
    unit.invalidateCompletion(RID, 0);
    expect(memory.load(0x21_0000, 4)).toBe(2);
  });

  it('reports a device that does not answer by ITE, a completion that nobody asked for by ICE', () => {
    const { clock, memory, unit, poke } = unitWithTables();
    poke(0x10_0000, 0x2_0020_0008n, 0x7fff_ffff_ffff_f800n, 0n, 0n);
    poke(0x10_0020, 0x2_0000_0025n, 0x21_0000n, 0n, 0n);
    unit.write(0x88, 4, 0x40);
    clock.run();
    expect([unit.read(0x34, 4), read64(unit, 0xb0), memory.load(0x21_0000, 4)]).toEqual([0x40, 0x20_0000_0000n, 0]);
    unit.invalidateCompletion(0x28, 3);
    expect([unit.read(0x34, 4), read64(unit, 0xb0)]).toEqual([0x60, 0x28_0020_0000_0000n]);
  });

  it('records an untranslated fault in the first free register (0x71: not present)', () => {
    const { unit } = unitWithTables();
    expect(unit.translate(RID, PASID, 0, PAGE, true)).toBe(DMA_UR);
    expect([read64(unit, 0x220), read64(unit, 0x228)]).toEqual([0x7ff5_7f06_1000n, 0x8000_0271_8000_0020n]);
  });

  it('does not set D for a translation request that will not write (NWFS)', () => {
    const { memory, unit, poke } = unitWithTables();
    poke(0x1_7000 + 0x61 * 8, 0x30_0007n);
    expect(unit.translationRequest(RID, PASID, ATTR_NO_WRITE, PAGE)).toBe(DMA_DONE);
    expect([unit.completion.read, unit.completion.write, memory.load(0x1_7000 + 0x61 * 8, 4)]).toEqual([true, false, 0x30_0027]);
  });

  it('sets the extended accessed bit where the PASID entry asks for it (EAFS)', () => {
    const { memory, unit, poke } = unitWithTables({ 'extended-accessed': true });
    poke(0x1_7000 + 0x61 * 8, 0x30_0007n);
    poke(0x1_3000 + PASID * 64, 0x49n, 0x80_0001n, 0x1_4080n);
    expect([unit.translate(RID, PASID, 0, PAGE, false), memory.load(0x1_7000 + 0x61 * 8, 4)]).toEqual([DMA_DONE, 0x30_0427]);
  });

  it('sets second-level accessed and dirty bits where the PASID entry asks for it (SSADS)', () => {
    const { memory, unit, poke } = unitWithTables({ 'accessed-dirty': true });
    const leaf = 0x1_7000 + 0x61 * 8;
    for (const [at, word] of [[0x1_4000 + 0xff * 8, 0x1_5003n], [0x1_5000 + 0x1d5 * 8, 0x1_6003n], [0x1_6000 + 0x1f8 * 8, 0x1_7003n], [leaf, 0x30_0003n]] as const) poke(at, word);
    poke(0x1_3000 + PASID * 64, 0x1_4289n, 0x1n, 0n);
    expect([unit.translate(RID, PASID, 0, PAGE, false), memory.load(leaf, 4)]).toEqual([DMA_DONE, 0x30_0103]);
    expect([unit.translate(RID, PASID, 0, PAGE, true), memory.load(leaf, 4), unit.page]).toEqual([DMA_DONE, 0x30_0303, 0x300]);
  });

  it('forgets everything at reset', () => {
    const { unit } = unitWithTables();
    unit.translate(RID, PASID, 0, PAGE, true);
    unit.reset();
    expect([unit.read(0x1c, 4), unit.read(0x34, 4), read64(unit, 0x228)]).toEqual([0, 0, 0n]);
    expect([unit.translate(RID, -1, 0, 0x123, true), unit.page]).toEqual([DMA_DONE, 0x123]);
  });

  it('names each defect once', () => {
    expect(new Set(VTD_UNIT_DEFECTS).size).toBe(VTD_UNIT_DEFECTS.length);
  });
});
