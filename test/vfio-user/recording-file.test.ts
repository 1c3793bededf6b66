/** The file of a recording: small, good up to where it was cut off, refused with its place when it is damaged. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Recording } from '../../vfio/user/recording/index.js';
import { chain, changed, itemsOf, RAM_BYTES, RecordedWorld, replay, started } from './recorded-world.js';
import { CMD, dmaMap } from './wire.js';

describe('the file', () => {
  it('is written piece by piece, and small', () => {
    const { world, client } = started();
    world.run();
    chain(world);
    let pieces = 0;
    for (let i = 0; i < 2500; i++) {
      const before = world.recorder.bytesWritten;
      client.doorbell(0x1000);
      world.run();
      if (world.recorder.bytesWritten > before) pieces++;
    }
    const file = world.finish();
    expect(pieces).toBeGreaterThan(5);
    expect(itemsOf(file).length).toBeGreaterThan(100_000);
    expect(file.length).toBeLessThan(itemsOf(file).length * 2);
    expect(replay(file).differences).toEqual([]);
  });

  it('that was cut off anywhere is replayed up to its last whole frame, and says so', () => {
    const { world, client } = started();
    const ends: number[] = [];
    chain(world);
    for (let i = 0; i < 12; i++) {
      client.doorbell(0x1000 + 32 * (i % 8));
      world.run(i);
      world.recorder.flush();
      ends.push(world.file().length);
    }
    world.run();
    const whole = world.finish();
    const [ran] = world.machine.ran();
    let last = 0;
    for (let length = whole.indexOf(10) + 1; length < whole.length; length += length % 5 + 3) {
      const again = replay(whole.slice(0, length));
      expect(again.differences).toEqual([]);
      expect(again.truncated).toMatch(ends.includes(length) ? /not finished/ : /cut off at byte|not finished/);
      expect(ran!.slice(0, again.ran[0]!.length)).toEqual(again.ran[0]);
      expect(again.inputs).toBeGreaterThanOrEqual(last);
      last = again.inputs;
    }
    expect(last).toBeGreaterThan(20);
  });

  it('that is none is refused with its place', () => {
    const { file } = changed();
    const body = file.indexOf(10) + 1;
    const text = (line: string): Uint8Array => new TextEncoder().encode(line);
    expect(() => new Recording(new Uint8Array(0))).toThrow('broken at byte 0: it does not begin with vfio-user-recording/1');
    expect(() => new Recording(text('vfio-user-recording/2 {}\n'))).toThrow('byte 0');
    expect(() => new Recording(text('vfio-user-recording/1 {}'))).toThrow('its first line has no end');
    expect(() => new Recording(text('vfio-user-recording/1 {]\n'))).toThrow('the first line: no JSON');
    expect(() => new Recording(text('vfio-user-recording/1 {"devices":[3],"fields":{}}\n'))).toThrow('`devices` is no list of names');
    expect(() => new Recording(new Uint8Array([...file, ...file.subarray(body)]))).toThrow(`broken at byte ${file.length}: item`);
    const broken = file.slice();
    broken[body + 40]! ^= 4;
    expect(() => new Recording(broken)).toThrow(new RegExp(`broken at byte ${body}: (the checksum|a frame that cannot be inflated)`));
    const bomb = file.slice();
    bomb.set([0xff, 0xff, 0xff, 0x0f], body + 4);
    expect(() => new Recording(bomb)).toThrow(`broken at byte ${body}: a frame of 268435455 bytes in`);
  });

  it('however it is damaged, it is refused or replayed to a report', () => {
    const { file } = changed();
    fc.assert(fc.property(fc.array(fc.tuple(fc.nat(file.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }), (changes) => {
      const copy = file.slice();
      for (const [at, value] of changes) copy[at] = value;
      try {
        replay(copy);
      } catch (error) {
        expect(String(error)).toMatch(/^BrokenRecording|the recording has/);
      }
    }), { numRuns: 200 });
  });

  it('that cannot be written ends the recording, not the machine', () => {
    const failures: unknown[] = [];
    const world = new RecordedWorld();
    Object.assign(world.recorder, { options: { ...(world.recorder as unknown as { options: object }).options, onFailure: (error: unknown) => failures.push(error), write: () => {
      throw new Error('no space');
    } } });
    const client = world.client().negotiate();
    world.recorder.flush();
    client.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd()]);
    chain(world);
    client.doorbell(0x1000);
    world.run();
    expect([failures.map(String), world.recorder.recording, world.machine.ran()[0]!.length > 8]).toEqual([['Error: no space'], false, true]);
  });
});
