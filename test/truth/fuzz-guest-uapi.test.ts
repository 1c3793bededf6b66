/**
 * VFIO's system calls under a hostile process: any number, any bytes, any order, from one process, its forks and several
 * of their threads. Every call is answered or refused with an errno; nothing of it is left when the last of them has
 * exited, the next user of the devices finds them clean, and a neighbour guest on the same hardware never notices.
 */
import { describe, expect, it } from 'vitest';
import { HostileMachine, type Loot } from './hostile-machine.js';
import { HostileVmm } from './hostile-vmm.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const WORLDS = Number(process.env['WORLDS'] ?? (NIGHTLY ? 150 : 6));
const FIRST = Number(process.env['FIRST'] ?? 0);
const STEPS = NIGHTLY ? 2500 : 500;

/** Devices of one attack: all, or one kind that then gets all the attention. */
const TARGETS: readonly (readonly Loot[] | undefined)[] = [undefined, ['tty'], ['edu0'], ['mine', 'place'], ['dsa1', 'edu0'], ['tty', 'mine']];

function attack(seed: number, overlapping: boolean): HostileVmm {
  const machine = new HostileMachine(seed, `uapi ${overlapping}`);
  const before = machine.look();
  const config = machine.hostConfig();
  const neighbour = machine.start('neighbour');
  machine.startNative();
  const vmm = new HostileVmm(machine, TARGETS[seed % TARGETS.length]);
  for (let i = 0; i < STEPS; i++) vmm.step(overlapping);
  vmm.exit();
  machine.finishCopies([neighbour]);
  expect(machine.hostConfig()).toEqual(config);
  expect(machine.look()).toEqual(before);
  machine.finish();
  if (process.env['SHOW']) console.log([...vmm.answers].map(([k, v]) => `${k}=${v}`).join(' '));
  return vmm;
}

describe('a hostile VMM process', () => {
  for (let seed = FIRST; seed < FIRST + WORLDS; seed++) {
    it(`is answered or refused, ${seed}`, { timeout: 120_000 }, () => {
      const { answers } = attack(seed, seed % 2 === 1 || seed % 12 > 5);
      for (const code of ['EINVAL', 'EFAULT', 'ENOTTY', 'EBUSY']) expect(answers.get(code) ?? 0, [...answers].join(' ')).toBeGreaterThan(0);
    });
  }
});
