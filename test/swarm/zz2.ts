import { DmaSwarm } from './dma-swarm.js';
for (let seed = Number(process.argv[2]); seed < Number(process.argv[3]); seed++) {
  const r = new DmaSwarm({ seed, dmas: 600_000 }).run();
  console.log(seed, r.violations.slice(0, 3), r.checkers.map((c) => `${c.status} ${c.violations[0] ?? ''}`).join(' | '));
}
