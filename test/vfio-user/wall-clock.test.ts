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

  it('stands still in an event and in an input; an input takes place before what is due and has not run', async () => {
    let ms = 0;
    const wall = new WallClock(undefined, { realMs: () => ms });
    onTestFinished(() => wall.stop());
    const times: [string, number, number, number][] = [];
    const note = (what: string): void => {
      const before = wall.now;
      ms += 3;
      times.push([what, before, wall.now - before, wall.eventsRun]);
    };
    wall.enter(() => {
      wall.post(1_000_000, () => note('event'));
      wall.post(1_000_000, () => wall.post(500_000, () => note('its own')));
    });
    ms = 0.25;
    wall.enter(() => note('early'));
    ms = 5;
    wall.enter(() => note('late'));
    expect([wall.now, wall.inside, wall.eventsRun]).toEqual([8_000_000, false, 0]);
    await new Promise<void>((resolve) => void wall.at(0, resolve));
    wall.enter(() => note('behind'));
    await new Promise<void>((resolve) => void wall.at(0, resolve));
    expect(times).toEqual([['early', 250_000, 0, 0], ['late', 1_000_000, 0, 0], ['event', 1_000_000, 0, expect.any(Number)], ['its own', 1_500_000, 0, expect.any(Number)], ['behind', expect.any(Number), 0, expect.any(Number)]]);
    expect(times.at(-1)![1]).toBeGreaterThanOrEqual(1_500_000);
  });

  it('an input that throws is its caller’s, and none takes place inside of another or of an event', async () => {
    const wall = clock();
    expect(() => wall.enter(() => {
      throw new Error('refused');
    })).toThrow('refused');
    expect(wall.inside).toBe(false);
    expect(() => wall.enter(() => wall.enter(() => {}))).toThrow(/an input inside of/);
    await new Promise<void>((resolve) => wall.post(0, () => {
      expect(() => wall.enter(() => {})).toThrow(/an input inside of/);
      resolve();
    }));
  });

  it('that is held stands at 0 while a machine is built, and goes on from there', async () => {
    const wall = new WallClock(undefined, { held: true });
    onTestFinished(() => wall.stop());
    let rang: number | undefined;
    wall.post(1000, () => (rang = wall.now));
    wall.enter(() => expect(wall.now).toBe(0));
    await new Promise((resolve) => void setTimeout(resolve, 2));
    expect([wall.now, rang]).toEqual([0, undefined]);
    wall.start();
    await new Promise<void>((resolve) => wall.post(0, resolve));
    while (rang === undefined) await new Promise((resolve) => void setImmediate(resolve));
    expect(rang).toBe(1000);
  });

  it('events that never end leave the event loop its turns', async () => {
    const wall = clock();
    let chained = 0, over = false;
    const chain = (): void => {
      chained++;
      if (!over) wall.post(0, chain);
    };
    chain();
    await new Promise((resolve) => void setTimeout(resolve, 5));
    over = true;
    const then = chained;
    await new Promise<void>((resolve) => wall.post(0, resolve));
    expect(then).toBeGreaterThan(100);
    expect(wall.eventsRun).toBe(chained);
  });
});
