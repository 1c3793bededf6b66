import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { VirtualClock } from '../../sim/clock.js';

describe('VirtualClock', () => {
  it('runs events by time, and those of one instant first-in first-out', () => {
    fc.assert(fc.property(fc.array(fc.tuple(fc.nat(20), fc.boolean()), { maxLength: 60 }), (entries) => {
      const clock = new VirtualClock();
      const ran: number[] = [];
      const alarms = entries.map(([time], i) => clock.at(time, () => ran.push(i)));
      const cancelled = new Set<number>();
      entries.forEach(([, cancel], i) => {
        if (cancel && alarms[i]!.cancel()) cancelled.add(i);
      });
      expect(clock.run()).toBe('idle');
      const expected = entries.map(([time], i) => ({ time, i })).filter(({ i }) => !cancelled.has(i)).sort((a, b) => a.time - b.time || a.i - b.i);
      expect(ran).toEqual(expected.map(({ i }) => i));
    }), { numRuns: 200 });
  });

  it('stops at a limit and can go on', () => {
    const clock = new VirtualClock({ eventLimit: 3 });
    let count = 0;
    const again = (): void => {
      count++;
      clock.post(10, again);
    };
    clock.post(0, again);
    expect(clock.run({ untilNs: 10 })).toBe('until');
    expect([count, clock.now]).toEqual([2, 10]);
    expect(clock.run()).toBe('event-limit');
    expect(count).toBe(3);
  });

  it('reports a cancelled or rung alarm as not pending', () => {
    const clock = new VirtualClock();
    const first = clock.after(5, () => {});
    const second = clock.after(6, () => {});
    expect(second.cancel()).toBe(true);
    expect(second.cancel()).toBe(false);
    clock.run();
    expect([first.pending, first.cancel(), second.pending]).toEqual([false, false, false]);
    expect(clock.now).toBe(5);
  });

  it('refuses an event in the past', () => {
    const clock = new VirtualClock();
    clock.post(10, () => {});
    clock.run();
    expect(() => clock.at(5, () => {})).toThrow(/in the past/);
  });
});
