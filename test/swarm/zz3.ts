import { DmaSwarm } from './dma-swarm.js';
const s = new DmaSwarm({ seed: 1, dmas: 100_000, defects: ['core.skip-sva-invalidate'] }) as any;
let native = 0, nativeDone = 0, hotNative = 0;
const access = s.access.bind(s);
s.access = (d: any, pasid: number, page: number, slot: number, w: boolean, at: number, tag: number, attr: number) => {
  const sp = s.spaceOf(d, pasid);
  if (sp?.process) { native++; if (s.hot?.space === sp) hotNative++; }
  const r0 = s.counts.reads + s.counts.writes;
  access(d, pasid, page, slot, w, at, tag, attr);
  if (sp?.process) nativeDone += s.counts.reads + s.counts.writes - r0;
};
const r = s.run();
console.log({ native, nativeDone, hotNative }, r.counts, r.violations[0]);
