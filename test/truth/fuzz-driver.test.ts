/**
 * The VT-d driver against a page request queue full of nonsense: requests of unknown devices and PASIDs, of every
 * address, and bytes that no hardware writes. Every last request of a known
 * device is answered, the machine comes to rest, and nothing but the process's own memory is faulted in.
 */
import { describe, expect, it } from 'vitest';
import { Random } from '../../sim/random.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { DriverWorld } from '../conformance/vtd-driver-world.js';

const WORLDS = process.env['VFIOSIM_NIGHTLY'] === '1' ? 300 : 8;
/** Registers of the page request queue and its event. */
const PQH = 0xc0, PQT = 0xc8, PQA = 0xd0, PEDATA = 0xe4, PEADDR = 0xe8;

describe('the driver under a page request queue of nonsense', () => {
  it('answers, drops and comes to rest', () => {
    let responses = 0, queued = 0;
    for (let seed = 0; seed < WORLDS; seed++) {
      const random = new Random(0).split(`driver ${seed}`);
      const world = new DriverWorld().start();
      const dsa = world.svaFunction();
      const mm = world.process();
      const pasid = world.run(world.core.svaBind(dsa, mm));
      const buffer = world.run(mm.mmap(64 * 4096)) / 4096;
      let lasts = 0, injected = 0;
      for (let i = 0; i < 300; i++) {
        const source = random.chance(0.8) ? dsa.sourceId : random.below(0x1_0000);
        const tagged = random.chance(0.8) ? pasid : random.chance(0.5) ? NO_PASID : random.below(0x10_0000);
        const page = random.chance(0.4) ? buffer + random.below(64) : random.chance(0.5) ? random.below(2 ** 31) : random.below(2 ** 31) * 2 ** 21 + random.below(2 ** 21);
        const group = random.below(512);
        switch (random.below(10)) {
          case 0: injected += injectBytes(world, random); break;
          case 1: world.clock.run({ untilNs: world.clock.now + random.below(20_000) }); break;
          case 2: world.unit.pageRequest(source, tagged, page, 0, true, group); break; // a stop marker
          default: {
            const last = random.chance(0.6);
            world.unit.pageRequest(source, tagged, page, random.between(1, 7), last, group);
            if (last && source === dsa.sourceId) lasts++;
          }
        }
      }
      const frames = world.frames.inUse;
      expect(world.clock.run()).toBe('idle');
      // one answer for every last request that was ours, and at most one for each of the bytes
      expect([dsa.responses.length >= lasts, dsa.responses.length <= lasts + injected], `${dsa.responses.length} responses to ${lasts} + ${injected}`).toEqual([true, true]);
      // the process has no more pages than it mapped, and their tables
      expect(world.frames.inUse - frames).toBeLessThan(64 + 8);
      queued += world.unit.frontEnd.pageRequests.counts.queued;
      responses += dsa.responses.length;
      world.run(world.core.svaUnbind(dsa, pasid));
      expect(world.clock.run()).toBe('idle');
    }
    expect([responses > 50 * WORLDS, queued > 50 * WORLDS], `${responses} responses, ${queued} queued`).toEqual([true, true]);
  });
});

/** Bytes that no hardware writes, behind the tail; then the interrupt. How many descriptors. */
function injectBytes(world: DriverWorld, random: Random): number {
  const { unit, ram } = world;
  const pqa = unit.read(PQA, 8);
  const base = pqa - (pqa % 4096), mask = (4096 << (pqa & 7)) - 32;
  let tail = unit.read(PQT, 8);
  const count = random.between(1, 16);
  for (let n = count; n > 0; n--) {
    for (let at = 0; at < 32; at += 4) ram.store(base + tail + at, 4, random.chance(0.3) ? 0 : random.u32());
    // mostly of a type that is looked at, from the device that is there
    if (random.chance(0.7)) ram.store(base + tail, 1, 1);
    if (random.chance(0.7)) ram.store(base + tail + 2, 2, 0x20);
    tail = (tail + 32) & mask;
  }
  unit.write(PQT, 8, tail, 0);
  unit.write(PQH, 8, unit.read(PQH, 8), 0);
  world.interrupts.message(unit.read(PEADDR, 4), unit.read(PEDATA, 4), 0);
  return count;
}
