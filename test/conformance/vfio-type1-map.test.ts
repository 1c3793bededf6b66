import { describe, expect, it } from 'vitest';
import { Type1World, bytesOfText, textOf } from '../fixtures/type1-world.js';

describe('MAP_DMA and UNMAP_DMA', () => {
  it('lets the device reach what the process mapped, and nothing else (C8)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.buffer(user.process, 4, 'hello');
    world.run(user.container.mapDma({ iova: 0x10_0000, vaddr, sizeBytes: 0x4000 }));
    expect(textOf(world.dmaRead(0, 0x10_0000, 5))).toBe('hello');
    expect(world.dmaWrite(0, 0x10_3000, bytesOfText('there'))).toBe(0);
    expect(world.read(user.process, vaddr + 0x3000, 5)).toBe('there');
    expect(world.dmaRead(0, 0x10_4000, 1)).toBeUndefined();
    expect(world.dmaRead(1, 0x10_0000, 1)).toBeUndefined();
    expect(world.frames.pinnedPages).toBe(4);
    expect(user.process.mm.lockedPages).toBe(4);
    expect(world.run(user.container.unmapDma(0x10_0000, 0x4000))).toBe(0x4000);
    expect(world.dmaRead(0, 0x10_0000, 5)).toBeUndefined();
    expect(world.frames.pinnedPages).toBe(0);
    expect(user.process.mm.lockedPages).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });
});
