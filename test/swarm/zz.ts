import fc from 'fast-check';
import { Caller, call } from './calls.js';
import { idleMachine, Runner } from './runner.js';
const seed = Number(process.argv[3] ?? 5);
const seqs = fc.sample(fc.array(call, { minLength: 1, maxLength: 60, size: 'max' }), { numRuns: Number(process.argv[2] ?? 400), seed });
let world = idleMachine(); let n = 0, bad = 0; const t0 = process.cpuUsage();
const outcomes = new Map<string, number>();
for (const calls of seqs) {
  const runner = new Runner(world); const caller = new Caller(runner);
  try { for (const one of calls) caller.make(one as never); caller.finish(); } catch (e) {
    bad++; const m = String((e as Error).message); console.log('BAD', m.split('\n')[0], '| last:', runner.story.at(-1)); if (bad < 3) console.log(m); world = idleMachine();
  }
  n += runner.story.length;
  for (const line of runner.story) { const k = line.replace(/ -> (\d+)$/,' -> ok').replace(/^[a-z]+\d[\d.]*: /,'').replace(/\d+|0x[0-9a-f]+/g,'').slice(0,70); outcomes.set(k, (outcomes.get(k)??0)+1); }
}
console.log('bad', bad, 'calls', n, 'cpu us/call', process.cpuUsage(t0).user/n);
if (process.argv[4]) console.log([...outcomes].filter(([k])=>k.includes(process.argv[4]!)).sort((a,b)=>b[1]-a[1]).map(([k,v])=>`${v} ${k}`).join('\n'));
