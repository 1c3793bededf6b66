import { Interleaved } from './interleaved.js';
let bad = 0; const t = process.cpuUsage(); let n = 0; const sum: Record<string, number> = {};
for (let seed = Number(process.argv[2]); seed < Number(process.argv[3]); seed++) {
  const { wrong, counts } = new Interleaved(seed, process.argv[4] ? [process.argv[4]] : []).run();
  n++;
  for (const [k, v] of Object.entries(counts)) sum[k] = (sum[k] ?? 0) + v;
  if (wrong.length > 0) { bad++; if (bad < 6) console.log(seed, wrong.slice(0, 3).join('\n    ').slice(0, 1200)); }
}
console.log({ n, bad, ms: process.cpuUsage(t).user / 1000 / n }, sum);
