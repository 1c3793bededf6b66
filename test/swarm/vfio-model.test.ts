/**
 * VFIO and mediated devices under random calls of several programs, their administrator and vendors' drivers, on real VT-d units: what comes of each
 * call, and everything that can be seen after it, is what a model of requirements 7.5 and 7.6 says (C1–C13, V1–V3, X1, X2, Y1, E24, E27–E35).
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Caller, call, type Call } from './calls.js';
import type { PassthroughMachine } from './machine.js';
import { idleMachine, Runner } from './runner.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const SEQUENCES = NIGHTLY ? 60_000 : 2000;
const LONG_MS = 1_800_000;

const sequences = fc.array(call, { minLength: 1, maxLength: 60, size: 'max' });

/** Makes the calls on a machine in which nobody uses anything, and leaves such a machine behind. */
function play(machine: PassthroughMachine, calls: readonly Call[]): void {
  const caller = new Caller(new Runner(machine));
  for (const one of calls) caller.make(one);
  caller.finish();
  expect(machine.frames.framesOf('user')).toBe(0);
}

describe('VFIO and mediated devices under random calls', () => {
  it('answer and look as their model does (7.5, 7.6, C1–C13, E27–E35)', () => {
    let machine: PassthroughMachine | undefined;
    let played = 0;
    fc.assert(fc.property(sequences, (calls) => {
      // a machine is as good as new when everybody has gone, but for its logs; after a disagreement nobody knows
      const world = machine ?? idleMachine();
      machine = undefined;
      play(world, calls);
      if (++played % 1000 !== 0) machine = world;
    }), { numRuns: SEQUENCES, ...(NIGHTLY ? {} : { seed: 7 }) });
  }, LONG_MS);

  it.each([
    ['vfio.skip-unpin', 'pages stay pinned (C9)'],
    ['vfio.unset-with-open-devices', 'a group leaves with open devices (C3, E31)'],
    ['vfio.keep-dma-owner', 'a group that left stays owned (C6)'],
    ['vfio.unregister-does-not-wait', 'a device goes while it is open (C17)'],
    ['vfio.wrong-rlimit', 'RLIMIT_MEMLOCK stops nobody (C8)'],
    ['vfio.skip-replay-rollback', 'a replay that fails leaves pins (C7)'],
    ['vfio.skip-dma-unmap-notify', 'drivers are not told of unmaps (C9)'],
    ['vfio-pci.master-stays-on', 'a closed device may do DMA (C18)'],
    ['mdev.uuid-unique-per-parent', 'a UUID is taken per parent only (C12, E34)'],
    ['mdev.instance-leak', 'instances do not come back (C13)'],
    ['mdev.remove-open-device', 'a device in use is removed (7.5)'],
    ['core.skip-unmap-flush', 'an unmap invalidates nothing (C9)'],
    ['core.pasid-never-freed', 'PASIDs do not come back (M7)'],
    ['vtd-driver.skip-iotlb-flush', 'the unit keeps translations'],
    ['vtd-driver.skip-pasid-cache-flush', 'the unit keeps PASID entries'],
  ])('differ from it with %s: %s', (defect) => {
    let machine: PassthroughMachine | undefined;
    const property = fc.property(sequences, (calls) => play((machine ??= idleMachine([defect])), calls));
    expect(fc.check(property, { numRuns: 1000, seed: 1, endOnFailure: true }).failed).toBe(true);
  }, LONG_MS);
});
