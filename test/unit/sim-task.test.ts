import { describe, expect, it } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { Completion, lockInversions, Mutex, Scheduler, sleep, WaitQueue, type Steps } from '../../sim/task.js';

function world(): { clock: VirtualClock; scheduler: Scheduler } {
  const clock = new VirtualClock();
  return { clock, scheduler: new Scheduler(clock, (error) => clock.fail(error)) };
}

describe('tasks', () => {
  it('sleep, join and return a result', () => {
    const { clock, scheduler } = world();
    const child = scheduler.spawn('child', (function* (): Steps<number> {
      yield* sleep(clock, 50);
      return 7;
    })());
    const parent = scheduler.spawn('parent', (function* (): Steps<number> {
      return (yield* child.join()) + 1;
    })());
    clock.run();
    expect([parent.result, clock.now]).toEqual([8, 50]);
  });

  it('fail the run at their event unless somebody joins them', () => {
    const { clock, scheduler } = world();
    scheduler.spawn('broken', (function* (): Steps {
      yield* sleep(clock, 5);
      throw new Error('boom');
    })());
    clock.post(10, () => { throw new Error('must not be reached'); });
    expect(() => clock.run()).toThrow('boom');
    expect(clock.now).toBe(5);
  });

  it('report a deadlock with who waits for what and holds what', () => {
    const { clock, scheduler } = world();
    const a = new Mutex(scheduler, 'a'), b = new Mutex(scheduler, 'b');
    const take = function* (first: Mutex, second: Mutex): Steps {
      yield* first.lock();
      yield* sleep(clock, 1);
      yield* second.lock();
    };
    scheduler.spawn('one', take(a, b));
    scheduler.spawn('two', take(b, a));
    clock.run();
    expect(scheduler.deadlockReport()).toEqual([
      'one waits for b (held by two), holds a',
      'two waits for a (held by one), holds b',
    ]);
    expect(lockInversions(scheduler)).toEqual(['one takes a then b, two takes b then a']);
  });

  it('leave daemons out of the deadlock report', () => {
    const { clock, scheduler } = world();
    const queue = new WaitQueue(scheduler, 'work');
    scheduler.spawn('kthread', queue.wait(), { daemon: true });
    clock.run();
    expect(scheduler.deadlockReport()).toEqual([]);
  });

  it('pass a mutex on first-in first-out and refuse to take it twice', () => {
    const { clock, scheduler } = world();
    const lock = new Mutex(scheduler, 'lock');
    const order: string[] = [];
    for (const name of ['x', 'y', 'z']) {
      scheduler.spawn(name, lock.with(function* () {
        order.push(name);
        yield* sleep(clock, 10);
      }));
    }
    clock.run();
    expect([order, clock.now]).toEqual([['x', 'y', 'z'], 30]);
    scheduler.spawn('twice', lock.with(() => lock.lock()));
    expect(() => clock.run()).toThrow(/already holds/);
  });

  it('can be killed while blocked; a later wake does not reach them', () => {
    const { clock, scheduler } = world();
    const done = new Completion(scheduler, 'done');
    let cleaned = false;
    const victim = scheduler.spawn('victim', (function* (): Steps {
      try {
        yield* done.wait();
      } finally {
        cleaned = true;
      }
    })());
    clock.run();
    victim.kill();
    done.complete();
    clock.run();
    expect([victim.state, cleaned]).toEqual(['killed', true]);
  });

  it('time out on a wait queue and take the alarm back when woken in time', () => {
    const { clock, scheduler } = world();
    const queue = new WaitQueue(scheduler, 'reply');
    let replied = false;
    const late = scheduler.spawn('late', queue.untilOrTimeout(() => replied, 100));
    clock.run();
    expect([late.result, clock.now]).toEqual([false, 100]);
    const timely = scheduler.spawn('timely', queue.untilOrTimeout(() => replied, 100));
    clock.post(10, () => {
      replied = true;
      queue.wakeAll();
    });
    clock.run();
    expect([timely.result, clock.now]).toEqual([true, 110]);
  });

  it('leave a wait queue wherever they stand in it, and the others are woken in order', () => {
    for (const victims of [[0], [1], [3], [0, 1], [2, 3], [0, 1, 2, 3]]) {
      const { clock, scheduler } = world();
      const queue = new WaitQueue(scheduler, 'queue');
      const order: number[] = [];
      const wait = function* (i: number): Steps {
        yield* queue.wait();
        order.push(i);
      };
      const tasks = [0, 1, 2, 3].map((i) => scheduler.spawn(`task ${i}`, wait(i)));
      clock.run();
      for (const victim of victims) tasks[victim]!.kill();
      tasks.push(scheduler.spawn('task 4', wait(4)));
      clock.run();
      queue.wakeOne();
      clock.run();
      const left = [0, 1, 2, 3, 4].filter((i) => !victims.includes(i));
      expect([order, queue.empty]).toEqual([left.slice(0, 1), left.length === 1]);
      queue.wakeAll();
      clock.run();
      expect([order, queue.empty]).toEqual([left, true]);
    }
  });

  it('ask the condition they wait for once more after every wake', () => {
    const { clock, scheduler } = world();
    const queue = new WaitQueue(scheduler, 'queue');
    let tokens = 0, asked = 0;
    const task = scheduler.spawn('task', (function* (): Steps<string> {
      yield* queue.until(() => ++asked > 0 && tokens >= 2);
      return 'through';
    })());
    for (const time of [10, 20]) {
      clock.post(time, () => {
        tokens++;
        queue.wakeAll();
      });
    }
    clock.run();
    expect([task.result, asked, clock.now]).toEqual(['through', 3, 20]);
  });

  it('killed in their sleep, are not run by its end', () => {
    const { clock, scheduler } = world();
    let cleaned = 0, woken = 0;
    const inner = function* (): Steps {
      try {
        yield* sleep(clock, 10);
        woken++;
      } finally {
        cleaned++;
      }
    };
    const task = scheduler.spawn('sleeper', inner());
    clock.run({ untilNs: 5 });
    expect(task.blockedOn!.describe()).toBe('10 ns to pass');
    task.kill();
    clock.run();
    expect([woken, cleaned, task.ended, clock.now]).toEqual([0, 1, true, 10]);
  });
});
