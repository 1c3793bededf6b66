import { it } from 'vitest';
import { Type1World } from '../fixtures/type1-world.js';
const SIZE = 512 * 2 ** 20;
function bench(label: string, scattered: boolean, freshZero: boolean, huge = false) {
  const world = new Type1World({ memoryBytes: 2 ** 30, freshZero });
  const user = world.user('vmm', [world.group(0)]);
  if (scattered) {
    // leave frames in descending order on the free lists
    const id = world.frames.ownerId('x');
    const taken: number[] = [];
    for (let i = 0; i < 140000; i++) taken.push(world.frames.tryAlloc(id, 0));
    for (let i = 0; i < taken.length; i += 2) world.frames.free(taken[i]!);
    const q = taken.filter((_, i) => i % 2 === 1);
    void q;
  }
  const size = scattered ? SIZE / 2 : SIZE;
  const vaddr = world.run(user.process.mm.mmap(size, huge ? { hugeLevel: 1 } : {}));
  const t0 = performance.now();
  world.run(user.container.mapDma({ iova: 0x1_0000_0000, vaddr, sizeBytes: size }));
  const t1 = performance.now();
  const runs = [...user.iommu.state.mappings][0]!.runs.count;
  world.run(user.container.unmapDma(0x1_0000_0000, size));
  const t2 = performance.now();
  world.run(user.container.mapDma({ iova: 0x1_0000_0000, vaddr, sizeBytes: size }));
  const t3 = performance.now();
  console.log(label, `${size >> 20} MiB map(fault in) ${(t1 - t0).toFixed(0)} ms, unmap ${(t2 - t1).toFixed(0)} ms, map again ${(t3 - t2).toFixed(0)} ms, runs ${runs}`);
}
it('perf', () => {
  bench('warm', false, true);
  bench('fresh', false, true);
  bench('zeroed', false, false);
  bench('huge', false, true, true);
  bench('scattered', true, true);
  bench('scattered', true, false);
}, 60000);
