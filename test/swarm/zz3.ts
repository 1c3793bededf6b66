import { Interleaved } from './interleaved.js';
const m = new Map<string, number>();
for (let seed = 1; seed < 60; seed++) {
  const s = new Interleaved(seed) as any;
  const w = s.watched.bind(s);
  s.watched = function* (name: string, steps: any, process?: any) {
    let k = name.replace(/^.*: /, '');
    function* inner() { try { const r = yield* steps; k += ' ok'; return r; } catch (e: any) { k += ' ' + (e.code ?? e.name); throw e; } }
    yield* w(name, inner(), process);
    m.set(k, (m.get(k) ?? 0) + 1);
  };
  s.run();
}
console.log([...m].sort((a, b) => b[1] - a[1]).slice(0, 70).map(([k, v]) => `${v} ${k}`).join('\n'));
