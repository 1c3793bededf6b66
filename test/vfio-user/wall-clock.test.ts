/** Real time as a clock. Nothing here asserts how long something takes. */
import { describe, expect, it, onTestFinished } from 'vitest';
import { Scheduler, sleep } from '../../sim/task.js';
import { WallClock } from '../../sim/wall-clock.js';

function clock(onError?: (error: unknown) => void): WallClock {
  const one = new WallClock(onError);
  onTestFinished(() => one.stop());
  return one;
}

describe('the wall clock', () => {
  it('runs events in the order of their times, those of one time in the order of their making', async () => {
    const wall = clock();
    const order: string[] = [];
    const at = wall.now + 3_000_000;
    await new Promise<void>((resolve) => {
      wall.at(at + 2_000_000, () => {
        order.push('c');
        resolve();
      });
      wall.at(at, () => order.push('a'));
      wall.at(at, () => order.push('b'));
      wall.post(0, () => order.push('first'));
    });
    expect(order).toEqual(['first', 'a', 'b', 'c']);
  });

  it('has whole nanoseconds that never go back, and no event comes early', async () => {
    const wall = clock();
    let last = wall.now;
    for (let i = 0; i < 1000; i++) {
      const { now } = wall;
      expect(now >= last && Number.isInteger(now)).toBe(true);
      last = now;
    }
    const due = wall.now + 2_500_000;
    const rang = await new Promise<number>((resolve) => void wall.at(due, () => resolve(wall.now)));
    expect(rang).toBeGreaterThanOrEqual(due);
  });

  it('rings at once for what is past, and never for what was cancelled', async () => {
    const wall = clock();
    let cancelled = false;
    const alarm = wall.after(1_000_000, () => (cancelled = true));
    expect([alarm.pending, alarm.cancel(), alarm.cancel(), alarm.pending]).toEqual([true, true, false, false]);
    await new Promise<void>((resolve) => void wall.at(0, resolve));
    await new Promise<void>((resolve) => void wall.after(2_000_000, resolve));
    expect(cancelled).toBe(false);
  });

  it('goes on behind an event that failed, and stops when it is told', async () => {
    const errors: unknown[] = [];
    const wall = clock((error) => errors.push(error));
    wall.post(0, () => {
      throw new Error('once');
    });
    await new Promise<void>((resolve) => wall.post(1_000_000, resolve));
    expect(errors.map(String)).toEqual(['Error: once']);
    let rang = false;
    wall.post(0, () => (rang = true));
    wall.stop();
    await new Promise<void>((resolve) => clock().post(2_000_000, resolve));
    expect(rang).toBe(false);
  });

  it('many posts in one turn are all run, and tasks sleep on it', async () => {
    const wall = clock();
    const scheduler = new Scheduler(wall, (error) => wall.fail(error));
    let count = 0;
    await new Promise<void>((resolve) => {
      for (let i = 0; i < 2000; i++) wall.post(i % 7, () => void (++count === 2000 && resolve()));
    });
    await new Promise<void>((resolve) => {
      scheduler.spawn('sleeper', (function* () {
        yield* sleep(wall, 1_500_000);
        resolve();
      })());
    });
    expect(count).toBe(2000);
  });
});
