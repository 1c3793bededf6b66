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

  it('keeps order, count and end of a run whatever is cancelled in between', () => {
    const action = fc.oneof(
      fc.record({ do: fc.constant('at' as const), after: fc.nat(30) }),
      fc.record({ do: fc.constant('cancel' as const), which: fc.nat(400) }),
      fc.record({ do: fc.constant('run' as const), span: fc.nat(6) }),
    );
    fc.assert(fc.property(fc.array(action, { maxLength: 300 }), (actions) => {
      const clock = new VirtualClock();
      const ran: number[] = [], expected: number[] = [];
      const alarms: { cancel(): boolean }[] = [];
      let waiting: { id: number; time: number }[] = [];
      const due = (until: number): void => {
        const now = waiting.filter(({ time }) => time <= until).sort((a, b) => a.time - b.time || a.id - b.id);
        expected.push(...now.map(({ id }) => id));
        waiting = waiting.filter(({ time }) => time > until);
      };
      for (const step of actions) {
        if (step.do === 'at') {
          const id = alarms.length;
          waiting.push({ id, time: clock.now + step.after });
          alarms.push(clock.after(step.after, () => ran.push(id)));
        } else if (step.do === 'cancel') {
          const id = alarms.length === 0 ? -1 : step.which % alarms.length;
          expect(alarms[id]?.cancel() ?? false).toBe(waiting.some((entry) => entry.id === id));
          waiting = waiting.filter((entry) => entry.id !== id);
        } else {
          due(clock.now + step.span);
          expect(clock.run({ untilNs: clock.now + step.span })).toBe(waiting.length > 0 ? 'until' : 'idle');
        }
        expect([clock.pending, clock.events]).toEqual([waiting.length, expected.length]);
      }
      due(Infinity);
      clock.run();
      expect(ran).toEqual(expected);
    }), { numRuns: 100 });
  });

  it('forgets cancelled alarms when they are more than the others, and does not run on for them', () => {
    const clock = new VirtualClock();
    const ran: number[] = [];
    const alarms = Array.from({ length: 5_000 }, (_, i) => clock.at(10 + ((i * 7919) % 5_000), () => ran.push(clock.now)));
    const kept = new Set([0, 17, 4_000]);
    alarms.forEach((alarm, i) => {
      if (!kept.has(i)) alarm.cancel();
    });
    expect(clock.pending).toBe(3);
    clock.run();
    expect(ran).toEqual([...kept].map((i) => 10 + ((i * 7919) % 5_000)).sort((a, b) => a - b));
    expect([clock.events, clock.now]).toEqual([3, ran[2]]);
    const last = clock.after(100, () => {});
    last.cancel();
    expect(clock.run()).toBe('idle');
    expect(clock.now).toBe(ran[2]);
  });

  it('refuses an event in the past', () => {
    const clock = new VirtualClock();
    clock.post(10, () => {});
    clock.run();
    expect(() => clock.at(5, () => {})).toThrow(/in the past/);
  });
});
