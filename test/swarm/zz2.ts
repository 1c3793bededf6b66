import { DmaSwarm } from './dma-swarm.js';
for (const defect of process.argv.slice(2)) {
  let text = '';
  const t = process.cpuUsage();
  try {
    const r = new DmaSwarm({ seed: 1, dmas: 100_000, defects: [defect] }).run();
    text = `${r.violations.length} ${r.violations[0]} | ${r.checkers.map((c) => `${c.status} ${c.violations[0] ?? ''}`).join(' | ')} at ${r.counts.dmas}`;
  } catch (e) { text = `CRASH ${String((e as Error).message)}`; }
  console.log(defect, Math.round(process.cpuUsage(t).user/1000), 'ms:', text);
}
