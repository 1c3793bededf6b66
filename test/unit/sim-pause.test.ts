import { describe, expect, it } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { Pause, Scheduler, type Steps } from '../../sim/task.js';

function world() {
  const clock = new VirtualClock();
  return { clock, scheduler: new Scheduler(clock, (error) => clock.fail(error)) };
}

describe('a pause', () => {
  it('sleeps again and again in one task, one event each', () => {
    const { clock, scheduler } = world();
    const times: number[] = [];
    scheduler.spawn('worker', (function* (): Steps {
      const pause = new Pause(scheduler);
      for (const delay of [10, 0, 5]) {
        yield pause.of(delay);
        times.push(clock.now);
        expect(scheduler.current!.state).toBe('running');
      }
    })());
    clock.run();
    expect(times).toEqual([10, 10, 15]);
    expect(clock.events).toBe(4);
  });

  it('does not wake a task that was killed meanwhile', () => {
    const { clock, scheduler } = world();
    let woken = false;
    const pause = new Pause(scheduler);
    const task = scheduler.spawn('worker', (function* (): Steps {
      yield pause.of(10);
      woken = true;
    })());
    clock.run({ untilNs: 5 });
    expect(task.blockedOn!.describe()).toBe('10 ns to pass');
    task.kill();
    clock.run();
    expect([woken, task.state, scheduler.blocked()]).toEqual([false, 'killed', []]);
  });

  it('shared by two tasks is a bug', () => {
    const { clock, scheduler } = world();
    const pause = new Pause(scheduler);
    const use = function* (): Steps {
      yield pause.of(10);
    };
    scheduler.spawn('one', use());
    scheduler.spawn('two', use());
    expect(() => clock.run()).toThrow('two shares a pause with another task');
  });
});
