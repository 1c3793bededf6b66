/**
 * Defects of passthrough: each is switched on in a machine whose devices are in the hands of guests or of processes, and
 * somebody notices; without it the same machine is clean. That every defect has its place is tested in defects.test.ts.
 */
import { describe, expect, it } from 'vitest';
import type { Machine } from '../../harness/machine.js';
import { GUEST_SCENES } from './guest-scenes.js';
import { BY_A_CHECKER_WITH_USERS, IN_A_MACHINE_WITH_GUESTS } from './passthrough-table.js';
import { BEHAVIOUR, INVARIANTS } from './passthrough-worlds.js';
import { complaints, run } from './run.js';

describe('a machine with guests and a defect', () => {
  it.each([...new Set(IN_A_MACHINE_WITH_GUESTS.map(([, scene]) => scene))])('has nobody complain in scene %s while there is none', (scene) => {
    const machine = run(GUEST_SCENES[scene]);
    expect(complaints(machine)).toEqual({ invariants: [], texts: '' });
    const summary = machine.summary();
    expect(summary).toMatchObject({ verdict: 'pass', end: 'finished' });
    // who complains with a defect has looked without one
    const catchers = IN_A_MACHINE_WITH_GUESTS.flatMap(([, of, catcher]) => (of === scene && typeof catcher === 'string' ? [catcher] : []));
    for (const catcher of catchers) expect(summary.invariants.find(({ name }) => name === catcher)?.checked).toBeGreaterThan(0);
  });

  it('has a scene for nothing else', () => {
    expect(Object.keys(GUEST_SCENES).sort()).toEqual([...new Set(IN_A_MACHINE_WITH_GUESTS.map(([, scene]) => scene))].sort());
  });

  it.each(IN_A_MACHINE_WITH_GUESTS)('%s, in scene %s, is caught by %s', (defect, scene, catcher) => {
    const machine: Machine = run(GUEST_SCENES[scene], defect);
    const { invariants, texts } = complaints(machine);
    if (typeof catcher === 'string') expect(invariants).toContain(catcher);
    else expect(texts).toMatch(catcher);
    expect(machine.summary().verdict).not.toBe('pass');
  });
});

describe('a machine with a process that holds devices, and a defect', () => {
  it.each(BY_A_CHECKER_WITH_USERS)('%s is caught by the checker "%s"', (defect, invariant) => {
    expect(INVARIANTS[defect](undefined)).toEqual([]);
    expect(INVARIANTS[defect](defect)).toContain(invariant);
  });

  it.each(Object.keys(BEHAVIOUR) as (keyof typeof BEHAVIOUR)[])('%s is caught by what the world does', (defect) => {
    expect(BEHAVIOUR[defect](undefined)).toBe(false);
    expect(BEHAVIOUR[defect](defect)).toBe(true);
  });
});
