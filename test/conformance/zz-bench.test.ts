import { it } from 'vitest';
import { DriverWorld } from './vtd-driver-world.js';
it('bench', () => {
  for (const N of [64, 1024]) {
  const w = new DriverWorld({ timing: {} }).start();
  const f = w.svaFunction();
  const mm = w.process();
  const pasid = w.run(w.core.svaBind(f, mm));
  const page = w.run(mm.mmap(4096 * 4096, { populate: true })) / 4096;
  (w.clock as unknown as { eventLimit: number }).eventLimit = Infinity;
  (f as unknown as { responses: { push: (s: string) => void } }).responses = { push: () => {} };
  let best = Infinity;
  for (let r = 0; r < 60; r++) {
    w.registers.notes.length = 0;
    const t = process.hrtime.bigint();
    for (let i = 0; i < N; i++) w.unit.pageRequest(f.sourceId, pasid, page + ((r * N + i) & 4095), 3, true, i & 511);
    w.settle();
    best = Math.min(best, Number(process.hrtime.bigint() - t) / N);
  }
  console.log(N, 'ns per request', Math.round(best));
  }
});
