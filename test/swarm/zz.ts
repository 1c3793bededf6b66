import fc from '/work/main/node_modules/fast-check/lib/fast-check.js';
import { Caller, call } from '/work/main/test/swarm/calls.js';
import { idleMachine, Runner } from '/work/main/test/swarm/runner.js';
const world = idleMachine();
const seqs = fc.sample(fc.array(call, { minLength: 1, maxLength: 60, size: 'max' }), { numRuns: Number(process.argv[2] ?? 400), seed: 5 });
let n = 0; let t0 = performance.now();
  const outcomes = new Map<string, number>();
for (const calls of seqs) {
  const runner = new Runner(world); const caller = new Caller(runner);
  for (const one of calls) caller.make(one as never);
  caller.finish();
  n += runner.story.length;
    for (const line of runner.story) { const k = line.replace(/^\S+: /, '').replace(/\(.*?\)/g,'').replace(/[0-9a-f:.x-]{3,}/g,'').replace(/ -> (\d+)$/,' ok').replace(/\d+/g,'').slice(0,60); outcomes.set(k, (outcomes.get(k)??0)+1); }
}
console.log('calls', n, 'us/call', (performance.now()-t0)/n*1000);
  console.log([...outcomes].sort((a,b)=>b[1]-a[1]).slice(0,100).map(([k,v])=>`${v} ${k}`).join('\n'));
