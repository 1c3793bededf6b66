/**
 * VFIO and mediated devices under random calls of several programs, their administrator and vendors' drivers, on real VT-d units: what
 * comes of each call, and everything that can be seen after it, is what a model of requirements 7.5 and 7.6 says (C1–C13, V1–V3, Y1, E24, E27–E35).
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Caller, call } from './calls.js';
import type { PassthroughMachine } from './machine.js';
import { idleMachine, Runner } from './runner.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';

describe('VFIO and mediated devices under random calls', () => {
  it('answer and look as their model (7.5, 7.6, C1–C13, E27–E35)', () => {
    let machine: PassthroughMachine | undefined;
    fc.assert(fc.property(fc.array(call, { minLength: 1, maxLength: 60, size: 'max' }), (calls) => {
      // a machine is as good as new when everybody has gone; after a disagreement nobody knows
      const world = machine ?? idleMachine();
      machine = undefined;
      const runner = new Runner(world);
      const caller = new Caller(runner);
      for (const one of calls) caller.make(one);
      caller.finish();
      expect(world.frames.framesOf('user')).toBe(0);
      machine = world;
    }), { numRuns: NIGHTLY ? 100_000 : 200 });
  });
});
