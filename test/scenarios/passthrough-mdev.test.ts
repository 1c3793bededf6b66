/** Mediated devices on the whole machine: isolation by aux domains, flows 2c and 2g, races around create and remove. */
import { describe, expect, it } from 'vitest';
import { guestsOf, mdevDsa, PAGE, PassthroughWorld, pattern, slices, Worker } from './passthrough-world.js';

describe('two mediated devices of one accelerator', () => {
  it('scenario 16: carry different PASIDs, reach different pages through the same address, and go one by one', () => {
    const world = new PassthroughWorld({ mdevs: slices(2), guests: guestsOf(2) });
    const guests = ['vm0', 'vm1'].map((name) => world.started(name));
    const [first, second] = ['m0', 'm1'].map((name) => world.pasidOf(name)!);
    expect(first).not.toBe(second);
    expect(world.core.usage.pasids).toBe(2);

    // a frame of the same guest-physical address in both
    const frames = guests.map(({ kernel }) => kernel!.frames.alloc('test'));
    expect(frames[0]).toBe(frames[1]);
    const gpa = frames[0]!;
    const hosts = guests.map(({ vmm }) => vmm!.translate(gpa)!.hpa);
    expect(hosts[0]).not.toBe(hosts[1]);
    // each guest's device writes there, as the device sees the address
    const workers = guests.map((guest) => new Worker(world, guest).open('wq'));
    const contents = guests.map((_, i) => pattern(PAGE, i + 1));
    workers.forEach((worker, i) => {
      const source = worker.malloc(PAGE);
      worker.write(source, contents[i]!);
      expect(worker.copy('wq', source, gpa, PAGE, { to: true }).status).toBe('success');
    });
    hosts.forEach((host, i) => {
      const bytes = new Uint8Array(PAGE);
      world.host.memory.read(host!, bytes, 0, PAGE);
      expect(bytes).toEqual(contents[i]);
    });
    // what is beyond a guest's memory is nobody's
    const source = workers[0]!.malloc(PAGE);
    expect(workers[0]!.copy('wq', source, 16 * 2 ** 20, PAGE, { to: true }).status).toBe('page-fault');

    world.run(world.host.passthrough.stopMdev('m0'));
    expect(world.core.usage.pasids).toBe(1);
    expect(world.pasidOf('m1')).toBe(second);
    expect(workers[1]!.copies('wq')).toBe(true);
    for (const [i, guest] of guests.entries()) guest.kernel!.frames.free(frames[i]!);
    world.finish();
  });
});
