import { describe, expect, it } from 'vitest';
import { DmaSwarm } from './dma-swarm.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const DMAS = NIGHTLY ? 3_000_000 : 1_000_000;

describe('a swarm of DMA', () => {
  it('stays inside of what containers map and processes share, at every moment', () => {
    const t = process.cpuUsage();
    const report = new DmaSwarm({ seed: 1, dmas: Number(process.env['DMAS'] ?? DMAS) }).run();
    console.log(process.cpuUsage(t).user/1000, report.counts, report.checkers);
    expect(report.violations).toEqual([]);
  }, 600_000);
});
