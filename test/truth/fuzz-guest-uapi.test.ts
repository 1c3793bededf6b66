/**
 * VFIO's system calls under a hostile process: any number, any bytes, any order, from one process, its forks and several
 * of their threads. Every call is answered or refused with an errno; nothing of it is left when the last of them has
 * exited, the next user of the devices finds them clean, and a neighbour guest on the same hardware never notices.
 */
import { describe, expect, it } from 'vitest';
import { isErrno } from '../../sim/errno.js';
import type { Random } from '../../sim/random.js';
import type { MigrationDataFile } from '../../vfio/migration/data-file.js';
import * as uapi from '../../vfio/uapi/index.js';
import { HostileMachine, type Loot } from './hostile-machine.js';
import { HostileVmm } from './hostile-vmm.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const WORLDS = NIGHTLY ? 150 : 6;
const STATES = NIGHTLY ? 3000 : 100;
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
  return vmm;
}

/** Of a port's record: pages, lengths, status and progress of a transfer under way. */
function transfer(port: DataView, random: Random): void {
  if (random.chance(0.3)) return;
  const fields = [[32, random.below(70)], [36, 0], [40, random.below(70)], [44, 0], [48, random.below(0x2_0000)], [52, random.below(0x2_0000)], [56, 1], [60, random.below(0x3_0000)]] as const;
  for (const [at, value] of fields) port.setUint32(at, value, true);
}

describe('a hostile VMM process', () => {
  for (let seed = 0; seed < WORLDS; seed++) {
    it(`is answered or refused, ${seed}`, { timeout: 120_000 }, () => {
      const { answers } = attack(seed, seed % 2 === 1 || seed % 12 > 5);
      for (const code of ['EINVAL', 'EFAULT', 'ENOTTY', 'EBUSY']) expect(answers.get(code) ?? 0, [...answers].join(' ')).toBeGreaterThan(0);
    });
  }

  it(`is refused, or gets a device that runs, with any bytes as a migrated state, ${STATES} of them`, { timeout: 120_000 }, () => {
    const machine = new HostileMachine(0, 'states');
    const { random } = machine;
    const before = machine.look();
    const { device, process, container } = machine.holding('tty');
    const vaddr = machine.run(process.mm.mmap(64 * 4096));
    machine.run(container.mapDma({ iova: 0, vaddr, sizeBytes: 64 * 4096 }));
    const stream = (fd: number): MigrationDataFile => process.file(fd) as MigrationDataFile;
    const saving = machine.run(device.migration.setState(uapi.VFIO_DEVICE_STATE_STOP_COPY))!;
    const good = new Uint8Array(4096);
    const length = machine.run(stream(saving).read(good));
    let ran = 0, most = 0;
    for (let i = 0; i < STATES; i++) {
      machine.run(device.reset());
      const fd = machine.run(device.migration.setState(uapi.VFIO_DEVICE_STATE_RESUMING))!;
      const state = good.slice(0, random.chance(0.9) ? length : random.below(length + 1));
      // behind the header, where what it says is looked at; a transfer under way among it
      for (let n = random.below(40); n > 0 && state.length > 24; n--) state[24 + random.below(Math.max(1, state.length - 24))] = random.below(256);
      if (state.length === length) for (const port of [0, 1]) transfer(new DataView(state.buffer, 24 + 256 + port * 72, 72), random);
      if (state.length > 28 && random.chance(0.8)) state[28] = 6;
      machine.run(stream(fd).write(state));
      try {
        machine.run(device.migration.setState(uapi.VFIO_DEVICE_STATE_RUNNING));
        ran++;
      } catch (error) {
        if (!isErrno(error)) throw error;
        expect(machine.run(device.migration.state())).toBe(uapi.VFIO_DEVICE_STATE_ERROR);
      }
      for (let n = 0; n < 5; n++) {
        machine.wait(random.below(20_000));
        most = Math.max(most, machine.host.frames.pinnedPages);
      }
      machine.run(process.close(fd));
    }
    expect([ran > STATES / 4, ran < STATES, most > 0, most <= 4 * 64], `${ran} of ${STATES}, ${most} pages pinned`).toEqual([true, true, true, true]);
    machine.run(process.exit());
    expect(machine.look()).toEqual(before);
    machine.finish();
  });
});
