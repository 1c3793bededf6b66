/**
 * No device access lands outside of what its container mapped: a million accesses, of whole functions, of mediated devices on one parent and of
 * processes of the host beside them, while everything moves (section 5 rule 4; C8, C9, X1, X2, A3; scenarios 16, 26). And what would make it untrue is seen.
 */
import { describe, expect, it } from 'vitest';
import { DmaSwarm } from './dma-swarm.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const DMAS = NIGHTLY ? 5_000_000 : 1_000_000;
const SEEDS = NIGHTLY ? [1, 2, 3, 4] : [1];
const LONG_MS = 600_000;

describe('a swarm of DMA', () => {
  it.each(SEEDS)('stays at every moment inside of what containers map and processes share, seed %i', (seed) => {
    const { violations, checkers, counts } = new DmaSwarm({ seed, dmas: DMAS }).run();
    expect(violations).toEqual([]);
    expect(checkers.map(({ status, violations: texts }) => [status, texts])).toEqual([['ok', []], ['ok', []]]);
    expect(checkers[1]!.checked).toBeGreaterThan(DMAS / 8);
    // everything there is to be judged has been there
    expect(counts.dmas).toBeGreaterThanOrEqual(DMAS);
    for (const [what, atLeast] of [
      ['reads', 0.1], ['writes', 0.05], ['translated', 0.05], ['refused', 0.2], ['wrongPasids', 0.05], ['outside', 0.05], ['crossing', 0.03], ['moving', 0.005], ['moved', 0.0005],
    ] as const) expect([what, counts[what] > atLeast * DMAS]).toEqual([what, true]);
    for (const [what, atLeast] of [['maps', 700], ['unmaps', 500], ['attaches', 300], ['binds', 60], ['renewed', 1500], ['superpages', 100]] as const) {
      expect([what, counts[what] > (atLeast * DMAS) / 1_000_000]).toEqual([what, true]);
    }
  }, LONG_MS);

  describe('sees', () => {
    it.each([
      ['vfio.unpin-before-flush', 'pages are given back before devices have forgotten them'],
      ['core.skip-unmap-flush', 'an unmap invalidates nothing'],
      ['vtd-driver.skip-iotlb-flush', 'an unmap invalidates device TLBs only'],
      ['vtd-driver.skip-device-tlb-flush', 'an unmap invalidates the IOTLB only'],
      ['vtd.skip-device-tlb-flush', 'the unit sends no invalidations to devices'],
      ['vtd.wait-ignores-device-tlb', 'the unit waits for no device'],
      ['pci.bypass-iommu', 'functions go around the IOMMU'],
    ])('%s: %s, with the oracle and with the checker', (defect) => {
      const around = defect === 'pci.bypass-iommu' ? { stopAfter: Infinity, readOnly: true } : {};
      const { violations, checkers } = new DmaSwarm({ seed: 1, dmas: 100_000, defects: [defect], ...around }).run();
      expect(violations.length).toBeGreaterThan(0);
      expect(checkers[1]!.status).toBe('violated');
    }, LONG_MS);

    it.each([
      ['vfio.skip-unpin', 'pages stay pinned'],
      ['vfio.keep-dma-owner', 'a group that left is not let in again'],
      ['vtd.skip-iotlb-flush', 'the unit keeps its own translations'],
      ['vtd.untagged-pasid', 'translations are shared by all PASIDs'],
      ['vtd-driver.skip-pasid-cache-flush', 'the unit is not told of PASID entries'],
      ['vtd.skip-pasid-cache-flush', 'the unit keeps PASID entries'],
      ['core.skip-sva-invalidate', 'devices of a process go on with its old pages'],
      ['mm.skip-notify', 'nobody is told of old pages'],
    ])('%s: %s', (defect) => {
      expect(new DmaSwarm({ seed: 1, dmas: 100_000, defects: [defect] }).run().violations.length).toBeGreaterThan(0);
    }, LONG_MS);
  });
});
