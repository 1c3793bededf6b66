/** The matchers of `vfiosim/vitest`: when they hold, when they fail, and what they say then. */
import { describe, expect, it } from 'vitest';
import { createMachine, createMachineSync, Errno, type TopologyInput } from '../../harness/index.js';
import '../../harness/vitest.js';

const COPY: TopologyInput = {
  version: 1, name: 'copy',
  host: { memory: '1GiB', iommu: { model: 'intel-vtd' }, devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0' }] },
  processes: [{ name: 'app', steps: [
    { open: { device: 'dsa0' } }, { malloc: { name: 'a', size: 4096 } }, { malloc: { name: 'b', size: 4096 } }, { fill: { buffer: 'a', value: 3 } },
    { submit: { copy: { from: 'a', to: 'b' } } }, { wait: {} }, { verify: { buffer: 'b', equals: 'a' } }, { close: {} },
  ] }],
};

const message = (assertion: () => void): string => {
  try {
    assertion();
  } catch (error) {
    return (error as Error).message;
  }
  return 'held';
};

describe('toPass', () => {
  it('runs a machine that has not ended, and holds for its summary too', async () => {
    const machine = await createMachine(COPY);
    expect(machine).toPass();
    expect(machine.model.end).toBe('finished');
    expect(machine.summary()).toPass();
    expect(createMachineSync(COPY)).toPass();
    expect(message(() => expect(machine).not.toPass())).toBe('copy (seed 1) passed, but should not');
  });

  it('does not hold for a run that was stopped', () => {
    const machine = createMachineSync(COPY);
    machine.run({ stopAt: { at: 'before-teardown' } });
    expect(machine).not.toPass();
    expect(message(() => expect(machine).toPass())).toBe('copy (seed 1):\n  the run ended early: stopped');
    machine.run();
    expect(machine).toPass();
  });

  it('lists what failed', () => {
    const machine = createMachineSync({ ...COPY, expect: { flows: { 'app/dsa0': { bytes: 1 } }, counters: { 'pci:page_request': 99 } } });
    expect(message(() => expect(machine).toPass())).toBe('copy (seed 1):\n  expected: bytes of flow app/dsa0 is 4096, expected 1\n  expected: count of pci:page_request is 1, expected 99');
    const wrong = createMachineSync({ ...COPY, processes: [{ name: 'app', steps: [{ open: { device: 'dsa0' } }, { malloc: { name: 'a', size: 1 } }, { verify: { buffer: 'a', value: 1 } }] }] });
    expect(message(() => expect(wrong).toPass())).toMatch(/^copy \(seed 1\):\n {2}app: step 3 \(verify\): buffer "a" differs at offset 0x0: 0x00, expected 0x01 .*\n {2}flow app\/dsa0 failed: step 3 \(verify\): /);
  });

  it('names guests that were refused', () => {
    const machine = createMachineSync({
      version: 1, name: 'refused', host: { 'mdev-parents': [{ model: 'mtty', name: 'mtty0' }] },
      mdevs: [{ uuid: '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001', name: 'serial0', parent: 'mtty0', mdev_type: 'mtty-1', start: 'manual' }], guests: [{ name: 'vm0', devices: [{ mdev: 'serial0' }] }],
    });
    expect(message(() => expect(machine).toPass())).toBe('refused (seed 1):\n  guest vm0 was refused: -ENODEV: mediated device serial0 has not been started');
  });

  it('holds for no machine that hit a limit', () => {
    const machine = createMachineSync({ ...COPY, limits: { events: 100 } });
    expect(message(() => expect(machine).toPass())).toBe('copy (seed 1):\n  the run ended early: event-limit');
  });
});

describe('toHaveFlow', () => {
  it('compares the values it is given, and names the flows there are', () => {
    const machine = createMachineSync(COPY);
    machine.run();
    expect(machine).toHaveFlow('app/dsa0');
    expect(machine).toHaveFlow('app/dsa0', { bytes: 4096, responses: { success: 1, invalid: 0, failure: 0 } });
    expect(machine).not.toHaveFlow('app/dsa0', { bytes: 1 });
    expect(message(() => expect(machine).toHaveFlow('app/dsa1'))).toBe('no flow "app/dsa1"; there are: app/dsa0');
    expect(message(() => expect(machine).toHaveFlow('app/dsa0', { bytes: 1 }))).toContain('"bytes": 4096');
  });
});

describe('toRefuse', () => {
  const refusal = (): never => { throw new Errno('EBUSY', 'it is in use'); };

  it('takes a promise or a function, and one errno', async () => {
    await expect(Promise.reject(new Errno('EBUSY', 'it is in use'))).toRefuse('EBUSY');
    await expect(refusal).toRefuse('EBUSY');
    await expect(async () => refusal()).toRefuse('EBUSY');
    await expect(refusal).not.toRefuse('EINVAL');
  });

  it('says what came instead', async () => {
    await expect(expect(refusal).toRefuse('EINVAL')).rejects.toThrow('expected -EINVAL, got -EBUSY: it is in use');
    await expect(expect(Promise.resolve(7)).toRefuse('EINVAL')).rejects.toThrow('expected -EINVAL, got no error, but 7');
    await expect(expect(refusal).not.toRefuse('EBUSY')).rejects.toThrow('expected anything but -EBUSY');
  });
});
