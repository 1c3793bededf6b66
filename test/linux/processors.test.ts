/** A guest with two processors: both drive our hardware at the same time, and each other's records must not mix. */
import { expect, it } from 'vitest';
import { boot } from './world.js';

it('a file system on the disk, four queues under load, and as many page faults as the queues hold', async () => {
  const guest = await boot({ vcpus: 2, disk: { 'io-queues': 2 }, linux: { run: ['nvme-fs', 'dsa', 'dsa-load', 'dsa-many', 'irq'], set: { wqs: 4 } } });
  expect(guest.shortcomings).toEqual([]);
  // each processor has a queue of the disk; both were used
  expect([guest.interrupts('nvme0q1') > 10, guest.interrupts('nvme0q2') > 10]).toEqual([true, true]);
  const files = guest.fact('nvme-fs');
  expect([files['files'], files['after']]).toEqual(['18', files['before']]);
  expect(guest.facts('dsa-test').filter(({ words }) => words[1] === 'load').map(({ values }) => [values['done'], values['wrong']])).toEqual(Array<string[]>(4).fill(['200', '0']));
  expect(guest.fact('dsa-many', 'result')).toMatchObject({ done: '128', failed: '0', missing: '0', wrong: '0' });
  expect(guest.result.invariants.every(({ status, checked }) => status === 'ok' && checked > 500)).toBe(true);
}, 120_000);
