/**
 * Containers, mediated devices, drivers and processes with everybody's calls at the same time, on the virtual clock (1.13, C9, C13, C15, C17, 2g, section 5
 * rules 4, 6, 7): pins and everything else balance, nobody waits for ever, locks are taken in one order, no device uses a page that was given back.
 */
import { describe, expect, it } from 'vitest';
import { Interleaved } from './interleaved.js';

const SEEDS = process.env['VFIOSIM_NIGHTLY'] === '1' ? 3_000 : 40;
const LONG_MS = 900_000;

/** The first seed with which something is wrong, and what. */
function firstWrong(seeds: number, defects: readonly string[] = []): readonly string[] {
  for (let seed = 1; seed <= seeds; seed++) {
    const { wrong } = new Interleaved(seed, defects).run();
    if (wrong.length > 0) return [`seed ${seed}`, ...wrong];
  }
  return [];
}

describe('everybody at once', () => {
  it('leaves nothing behind, waits for nobody for ever, and uses nothing that was given back (2g, C9, C17)', () => {
    const sums = { calls: 0, refused: 0, reached: 0, killed: 0, checked: 0 };
    for (let seed = 1; seed <= SEEDS; seed++) {
      const { wrong, counts } = new Interleaved(seed).run();
      expect([seed, wrong]).toEqual([seed, []]);
      for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += counts[name];
    }
    // calls come through, devices reach memory, and both are ended by force
    expect(sums.calls - sums.refused).toBeGreaterThan(30 * SEEDS);
    expect(sums.reached).toBeGreaterThan(100 * SEEDS);
    expect(sums.checked).toBeGreaterThan(100 * SEEDS);
    expect(sums.killed).toBeGreaterThan(3 * SEEDS);
  }, LONG_MS);

  it('is the same story each time', () => {
    const [one, two] = [new Interleaved(7), new Interleaved(7)];
    expect(two.run()).toEqual(one.run());
    expect(two.machine.trace.hash).toBe(one.machine.trace.hash);
  });

  it.each([
    ['vfio.unpin-before-flush', 'a device reaches a page that was given back'],
    ['core.skip-unmap-flush', 'a device goes on with what was unmapped'],
    ['vtd-driver.skip-iotlb-flush', 'the unit goes on with what was unmapped'],
    ['vtd-driver.skip-device-tlb-flush', 'a device keeps translations'],
    ['vfio.skip-unpin', 'pins are left'],
    ['vfio.keep-dma-owner', 'groups stay owned'],
    ['vfio.unregister-does-not-wait', 'a device goes while its user has it open (C17)'],
    ['vfio.unset-with-open-devices', 'a group leaves its container under an open device (C3)'],
    ['mdev.instance-leak', 'instances do not come back (C13)'],
    ['mdev.remove-open-device', 'a mediated device goes while it is open (7.5)'],
  ])('notices %s: %s', (defect) => {
    expect(firstWrong(100, [defect])).not.toEqual([]);
  }, LONG_MS);
});
