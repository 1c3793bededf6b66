/** Driving a machine from code: the public API as a user's test has it. */
import { merge } from 'rxjs';
import { describe, expect, it } from 'vitest';
import { createMachine, Deadlock, Killed, LimitReached, SegmentationFault, type FaultRecord, type InterruptRecord, type MachineSession, type PageResponseRecord, type TopologyInput } from '../../harness/index.js';
import '../../harness/vitest.js';

const HOST: TopologyInput = {
  version: 1, name: 'session',
  host: { memory: '1GiB', iommu: { model: 'intel-vtd' }, devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0' }] },
};

const pattern = (size: number, seed = 1): Uint8Array => Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);

/** A process with two untouched buffers and an open queue. */
async function ready(machine: MachineSession, size = 65_536) {
  const app = await machine.process('app');
  const dsa = await app.open('dsa0');
  return { app, dsa, src: await app.malloc(size), dst: await app.malloc(size), size };
}

describe('a machine driven by code', () => {
  it('copies malloc memory through page requests and passes', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, src, dst, size } = await ready(machine);
    await app.write(src, pattern(size));
    expect(await dsa.copy(src, dst, size)).toEqual({ status: 'success', detail: expect.any(String) as string, bytes: size, value: expect.any(Number) as number });
    expect(await app.read(dst, size)).toEqual(pattern(size));
    await app.exit();
    expect(machine).toPass();
    expect(machine).toHaveFlow('app/dsa0', { status: 'ok', bytes: size, pageRequests: 16, descriptors: 1 });
    expect(machine.summary().end).toBe('finished');
  });

  it('gives the same run for the same seed, another for another', async () => {
    const hash = async (seed: number): Promise<string> => {
      const machine = await createMachine(HOST, { seed });
      const { app, dsa, src, dst, size } = await ready(machine);
      await Promise.all([dsa.copy(src, dst, size), dsa.fill(dst, size, 0x55n), machine.sleep('3us').then(() => app.fill(src, 4096, 7))]);
      await app.exit();
      expect(machine).toPass();
      return machine.summary().traceHash;
    };
    expect(await hash(5)).toBe(await hash(5));
    expect(await hash(5)).not.toBe(await hash(6));
  });

  it('overlaps calls without await between them in simulated time', async () => {
    const took = async (together: boolean): Promise<number> => {
      const machine = await createMachine(HOST);
      const { app, dsa, src, dst, size } = await ready(machine, 1 << 20);
      await app.fill(src, size, 1);
      await app.fill(dst, size, 2);
      const start = machine.nowNs, half = size / 2;
      const first = dsa.copy(src, dst, half);
      if (!together) await first;
      await Promise.all([first, dsa.copy(src + BigInt(half), dst + BigInt(half), half)]);
      return machine.nowNs - start;
    };
    expect(await took(true)).toBeLessThan((await took(false)) * 0.75);
  });

  it('stands still while nobody awaits', async () => {
    const machine = await createMachine(HOST);
    const { dsa, src, dst, size } = await ready(machine);
    const copying = dsa.copy(src, dst, size);
    const before = machine.nowNs;
    for (let i = 0; i < 10; i++) await Promise.resolve();
    expect(machine.nowNs).toBe(before);
    for (let i = 1; i <= 3; i++) {
      await machine.sleep('1us');
      expect(machine.nowNs).toBe(before + i * 1000);
    }
    await copying;
    const after = machine.nowNs;
    expect(after).toBeGreaterThan(before);
    await machine.sleep(250);
    expect(machine.nowNs).toBe(after + 250);
  });

  it('shows faults, responses and interrupts as observables', async () => {
    const machine = await createMachine(HOST);
    const faults: FaultRecord[] = [], responses: PageResponseRecord[] = [], interrupts: InterruptRecord[] = [];
    machine.faults$.subscribe((fault) => faults.push(fault));
    machine.responses$.subscribe((response) => responses.push(response));
    machine.interrupts$.subscribe((interrupt) => interrupts.push(interrupt));
    const { app, dsa, src, dst } = await ready(machine);
    await app.fill(src, 4096, 1);
    await dsa.copy(src, dst, 4096);
    expect(faults.map(({ kind, device, pasid, address, read, write }) => ({ kind, device, pasid, address, read, write }))).toEqual(
      [{ kind: 'page-request', device: 'dsa0', pasid: dsa.pasid, address: dst & ~0xfffn, read: false, write: true }],
    );
    expect(responses).toMatchObject([{ device: 'dsa0', pasid: dsa.pasid, code: 'SUCCESS', correlation: faults[0]!.correlation }]);
    expect(interrupts.length).toBeGreaterThan(0);
    expect(typeof interrupts[0]!.address).toBe('bigint');
    let ended = false;
    merge(machine.faults$, machine.responses$, machine.interrupts$).subscribe({ complete: () => { ended = true; } });
    await app.exit();
    expect(machine).toPass();
    expect(ended).toBe(true);
  });

  it('returns what the device says about an access that the process may not do', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, src, dst, size } = await ready(machine);
    await app.fill(src, size, 1);
    await app.mprotect(dst & ~0xfffn, size, 'r');
    expect(await dsa.copy(src, dst, size)).toMatchObject({ status: 'page-fault', bytes: 0 });
    await expect(app.write(dst, Uint8Array.of(1))).rejects.toThrow(SegmentationFault);
    await app.exit();
    expect(machine).toPass();
    expect(machine).toHaveFlow('app/dsa0', { responses: { success: 0, invalid: 1, failure: 0 } });
  });

  it('computes, compares and batches', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, src, dst, size } = await ready(machine);
    await app.write(src, pattern(size));
    await dsa.fill(dst, size, 0x0807_0605_0403_0201n);
    expect([...(await app.read(dst + 8n, 9))]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 1]);
    expect(await dsa.batch([{ copy: { from: src, to: dst, size: 4096 } }, { compare: { a: src, b: dst, size } }, { noop: true }])).toMatchObject([
      { status: 'success', bytes: 4096 }, { status: 'mismatch', value: 4096 }, { status: 'success' },
    ]);
    await app.write(src, new TextEncoder().encode('123456789'));
    expect((await dsa.crc(src, 9)).value >>> 0).toBe(0xe306_9283);
  });

  it('forks: the child inherits handles and uses the parent\'s bond', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, src, dst } = await ready(machine);
    await app.fill(src, 4096, 3);
    const child = await app.fork('child');
    expect(child.handle('dsa0').pasid).toBe(dsa.pasid);
    await child.fill(src, 4096, 4);
    expect([...(await app.read(src, 2))]).toEqual([3, 3]);
    expect(machine.kernel.svaGetPasid('dsa0', child)).toBeUndefined();
    await dsa.copy(src, dst, 4096);
    expect([...(await app.read(dst, 1))]).toEqual([3]);
    await app.exit();
    await child.exit();
    expect(machine).toPass();
  });

  it('kills: waiting calls are rejected, the flow has failed, nothing leaks', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, src, dst, size } = await ready(machine, 1 << 20);
    const copying = dsa.copy(src, dst, size).catch((error: unknown) => error);
    await machine.sleep('20us');
    await app.kill();
    expect(await copying).toBeInstanceOf(Killed);
    await machine.run();
    expect(machine.summary()).toMatchObject({ verdict: 'fail', leaks: { pasids: 0, pinnedPages: 0, domains: 0, frames: 0 } });
    expect(machine).toHaveFlow('app/dsa0', { status: 'failed', reason: 'process killed' });
    expect(machine.summary().invariants.filter(({ status }) => status !== 'ok')).toEqual([]);
  });

  it('refuses with the kernel\'s errno and goes on', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa } = await ready(machine);
    await expect(app.open('dsa1')).toRefuse('ENODEV');
    await expect(app.open('dsa0', { as: 'second' })).toRefuse('EBUSY');
    await expect(machine.process('app')).toRefuse('EEXIST');
    await expect(app.free(0x1000n)).toRefuse('EINVAL');
    await expect(app.read(1n << 60n, 8)).toRefuse('EFAULT');
    await expect(machine.run('nowhere')).toRefuse('EINVAL');
    await expect(() => app.handle('dsa9')).toRefuse('EBADF');
    await dsa.close();
    await expect(dsa.close()).toRefuse('EBADF');
    await app.exit();
    expect(machine).toPass();
  });

  it('names the process that never exits', async () => {
    const machine = await createMachine(HOST);
    await ready(machine);
    expect(() => expect(machine).toPass()).toThrow('app: the run ended before the process did');
    expect(machine.summary().leaks).toEqual({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 });
    await expect(machine.sleep(1)).toRefuse('ENODEV');
  });

  it('reports a deadlock to who waits', async () => {
    const machine = await createMachine(HOST);
    const { WaitQueue } = await import('../../sim/task.js');
    const never = new WaitQueue(machine.model.host.scheduler, 'what never comes');
    await expect(machine.perform('waiter', never.wait())).rejects.toThrow(Deadlock);
  });

  it('says when the topology\'s limits are hit', async () => {
    await expect(createMachine({ ...HOST, limits: { events: 10 } })).rejects.toThrow('boot did not end before the event limit of the topology');
    const machine = await createMachine({ ...HOST, limits: { time: '20us' } });
    const { dsa, src, dst, size } = await ready(machine, 1 << 20);
    await expect(dsa.copy(src, dst, size)).rejects.toThrow(LimitReached);
    await expect(machine.sleep(1)).rejects.toThrow(LimitReached);
  });

  it('unplugs, removes and resets devices', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, src, dst, size } = await ready(machine);
    const copying = dsa.copy(src, dst, size);
    await machine.sleep('3us');
    await machine.unplug('dsa0');
    expect(await copying).toMatchObject({ status: 'aborted' });
    await expect(machine.unplug('dsa0')).toRefuse('ENODEV');
    await expect(app.open('dsa0', { as: 'again' })).toRefuse('ENODEV');
    expect(machine.lspci()).toBe('');
    await app.exit();
    expect(machine).toPass();
    const other = await createMachine(HOST);
    await other.reset('dsa0');
    await other.remove('dsa0');
    await expect(other.reset('dsa0')).toRefuse('ENODEV');
    expect(other).toPass();
  });

  it('disposes of itself, its processes and handles', async () => {
    let model;
    {
      await using machine = await createMachine(HOST);
      await using app = await machine.process('app');
      await using dsa = await app.open('dsa0');
      expect(dsa.pasid).toBeGreaterThan(0);
      ({ model } = machine);
    }
    expect(model.summary()).toMatchObject({ end: 'finished', verdict: 'pass' });
    {
      using machine = await createMachine(HOST);
      using app = await machine.process('app');
      using dsa = await app.open('dsa0');
      void dsa.noop().catch(() => {});
      ({ model } = machine);
    }
    expect(model.summary()).toMatchObject({ end: 'finished', verdict: 'pass' });
  });

  it('runs beside the processes of the topology', async () => {
    const machine = await createMachine({
      ...HOST, host: { ...HOST.host, devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0', 'work-queues': [{ mode: 'shared', size: 16 }] }] },
      processes: [{ name: 'other', steps: [
        { open: { device: 'dsa0' } }, { malloc: { name: 'a', size: '64KiB' } }, { malloc: { name: 'b', size: '64KiB' } }, { fill: { buffer: 'a', random: 1 } },
        { submit: { copy: { from: 'a', to: 'b' } } }, { wait: {} }, { verify: { buffer: 'b', equals: 'a' } }, { close: {} },
      ] }],
    });
    const { app, dsa, src, dst, size } = await ready(machine);
    expect(await machine.run('fault:3')).toBe('stopped');
    expect(machine.state().tasks.find(({ name }) => name === 'other')).toMatchObject({ step: 'step 6 (wait)', state: 'blocked' });
    expect((await dsa.copy(src, dst, size)).status).toBe('success');
    await app.exit();
    expect(await machine.run()).toBe('finished');
    expect(machine).toPass();
    expect(machine.summary().flows.map(({ name }) => name)).toEqual(['app/dsa0', 'other/dsa0']);
  });

  it('shows the tables on the way of an address', async () => {
    const machine = await createMachine(HOST);
    const { app, dsa, dst } = await ready(machine);
    await app.fill(dst, 4096, 1);
    const report = machine.walk(`dsa0/app/0x${dst.toString(16)}`);
    expect(report.physical).toBe(app.physicalOf(dst));
    expect(report.pasid).toBe(dsa.pasid);
    expect(report.steps.map(({ what }) => what)).toEqual(['root', 'context', 'pasid-directory', 'pasid', 'first-level', 'first-level', 'first-level', 'first-level']);
    await expect(() => machine.walk('dsa9/1/0x1000')).toRefuse('EINVAL');
  });
});

describe('the kernel interface', () => {
  it('binds, binds again, and needs an unbind for each', async () => {
    const machine = await createMachine(HOST);
    const app = await machine.process('app');
    expect(machine.kernel.devFeatureEnabled('dsa0', 'SVA')).toBe(true);
    const pasid = await machine.kernel.svaBind('dsa0', app);
    expect(await machine.kernel.svaBind('dsa0', app)).toBe(pasid);
    expect(machine.kernel.svaGetPasid('dsa0', app)).toBe(pasid);
    await machine.kernel.svaUnbind('dsa0', pasid);
    expect(machine.kernel.bondState('dsa0', pasid)).toBe('BOUND');
    await expect(machine.kernel.devDisableFeature('dsa0', 'SVA')).toRefuse('EBUSY');
    await machine.kernel.svaUnbind('dsa0', pasid);
    expect(machine.kernel.bondState('dsa0', pasid)).toBe('NONE');
    await expect(machine.kernel.svaUnbind('dsa0', pasid)).toRefuse('ESRCH');
    await app.exit();
    expect(machine).toPass();
  });

  it('calls mm_exit once when the process dies before unbind', async () => {
    const machine = await createMachine(HOST);
    const app = await machine.process('app');
    const calls: unknown[] = [];
    const mmExit = (device: string, pasid: number): void => void calls.push([device, pasid]);
    const pasid = await machine.kernel.svaBind('dsa0', app, { mmExit });
    expect(await machine.kernel.svaBind('dsa0', app, { mmExit })).toBe(pasid);
    await expect(machine.kernel.svaBind('dsa0', app, { mmExit: () => 0 })).toRefuse('EBUSY');
    await app.exit();
    expect(calls).toEqual([['dsa0', pasid]]);
    expect(machine.kernel.bondState('dsa0', pasid)).toBe('ZOMBIE');
    await machine.kernel.svaUnbind('dsa0', pasid);
    await machine.kernel.svaUnbind('dsa0', pasid);
    expect(machine).toPass();
  });

  it('limits PASIDs and knows devices by name and by BDF', async () => {
    const machine = await createMachine(HOST);
    machine.kernel.setSvaParam('0000:6a:01.0', { minPasid: 100, maxPasid: 100 });
    const [one, two] = [await machine.process('one'), await machine.process('two')];
    expect(await machine.kernel.svaBind('dsa0', one)).toBe(100);
    await expect(machine.kernel.svaBind('dsa0', two)).toRefuse('ENOSPC');
    await expect(machine.kernel.svaBind('dsa7', two)).toRefuse('ENODEV');
  });
});
