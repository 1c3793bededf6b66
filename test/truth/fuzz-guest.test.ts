/**
 * A guest whose kernel does anything it can to its devices: register and configuration accesses of every size, place and
 * alignment, 64-byte writes and enqueues of random descriptors through every portal, interrupt tables and enables in any
 * order, resets and reboots in between. The simulator answers everything, the host's configuration stays the host's, who shares
 * the hardware gets the right bytes, every checker stays content; afterwards nothing is left, neither pages nor PASIDs nor
 * anything that the next user of the same devices could find.
 */
import { describe, expect, it } from 'vitest';
import { HostileGuest } from './hostile-guest.js';
import { HostileMachine, LOOT, type Loot } from './hostile-machine.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const WORLDS = NIGHTLY ? 150 : 5;
const KILLS = NIGHTLY ? 400 : 8;
const STEPS = NIGHTLY ? 1500 : 300;

function attack(seed: number, targets: readonly Loot[], steps: number): void {
  const machine = new HostileMachine(seed, `guest ${targets.join(' ')}`, { forging: seed % 4 === 3 });
  const { random } = machine;
  const before = machine.look();
  const config = machine.hostConfig();
  const attacker = new HostileGuest(machine, machine.start('attacker'), targets);
  const neighbour = machine.start('neighbour');
  machine.startNative();
  for (let i = 0; i < steps; i++) attacker.step();
  const { guest } = attacker;
  if (random.chance(0.3) && guest.state === 'running') {
    machine.run(guest.reboot());
    for (let i = 0; i < steps / 4; i++) attacker.step();
  }
  // half of them in the middle of everything, half when all that was begun has ended
  if (random.chance(0.5)) machine.host.clock.run({ untilNs: machine.host.clock.now + 1_000_000_000 });
  machine.run(guest.kill());
  machine.finishCopies([neighbour]);
  expect(machine.hostConfig()).toEqual(config);
  expect(machine.look()).toEqual(before);
  const successor = machine.start('attacker', 'successor');
  machine.finishCopies([successor]);
  machine.finish();
  expect(machine.host.log.lines.length, machine.host.log.lines.map(({ text }) => text).join('\n')).toBeLessThan(300);
}

describe('a hostile guest', () => {
  for (let seed = 0; seed < WORLDS; seed++) {
    it(`reaches nobody and leaves nothing behind, ${seed}`, { timeout: 60_000 }, () => attack(seed, seed % 3 === 2 ? [LOOT[seed % LOOT.length]!] : LOOT, STEPS));
  }

  it(`leaves nothing behind when its VMM is killed at any moment, ${KILLS} of them`, { timeout: 600_000 }, () => {
    const machine = new HostileMachine(0, 'kills');
    const { random, host } = machine;
    const before = machine.look();
    const config = machine.hostConfig();
    const { frames: { inUse }, passthrough: { type1 } } = host;
    let events = 3000;
    for (let i = 0; i < KILLS; i++) {
      const guest = machine.machine.scenario.newGuest({ ...machine.machine.loaded.topology.guests[0]!, name: `victim${i}` });
      const task = host.scheduler.spawn('start', guest.start(), { joined: true });
      const first = host.clock.events, moment = first + random.below(events);
      const reached = (): boolean => host.clock.events >= moment;
      host.clock.run({ stop: () => reached() || task.ended });
      if (task.ended) {
        events = Math.min(events, host.clock.events - first + 2000);
        // its processes are at work by now, or it goes through a reset
        if (random.chance(0.3)) host.scheduler.spawn('reboot', guest.reboot());
        host.clock.run({ stop: reached });
      }
      if (guest.alive) machine.run(guest.kill());
      host.clock.run({ untilNs: host.clock.now + 2_000_000_000 });
      expect([task.ended, guest.state, type1.usage, host.frames.pinnedPages, host.frames.inUse - inUse], `kill ${i} after ${moment - first} events`)
        .toEqual([true, 'killed', { containers: 0, mappings: 0, domains: 0, binds: 0 }, 0, 0]);
    }
    expect(machine.look()).toEqual(before);
    expect(machine.hostConfig()).toEqual(config);
    machine.finish();
  });
});
