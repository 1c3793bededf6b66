import { it } from 'vitest';
import { PassthroughWorld, mdevDsa, slices, guestsOf } from '../scenarios/passthrough-world.js';
it('time', () => {
  for (let i = 0; i < 5; i++) {
    const t0 = performance.now();
    const world = new PassthroughWorld({ devices: [mdevDsa(2, 1), { model: 'edu', name: 'edu0', bdf: '0000:00:05.0' } as never], traceRecords: 1 << 12 });
    const t1 = performance.now();
    world.finish();
    const t2 = performance.now();
    console.log('machine', t1 - t0, 'finish', t2 - t1);
  }
});
