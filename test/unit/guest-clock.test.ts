import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GuestClock } from '../../guest/clock.js';
import { VirtualClock } from '../../sim/clock.js';
import { Scheduler, sleep, type Steps } from '../../sim/task.js';

function world() {
  const base = new VirtualClock();
  const clock = new GuestClock(base);
  const story: string[] = [];
  const say = (word: string) => () => void story.push(`${word}@${clock.now}`);
  return { base, clock, story, say };
}

describe('the clock of a guest', () => {
  it('is the machine\'s while the guest runs', () => {
    const { base, clock, story, say } = world();
    clock.post(10, say('post'));
    clock.after(5, say('after'));
    clock.at(10, say('at'));
    base.run();
    expect(story).toEqual(['after@5', 'post@10', 'at@10']);
    expect(clock.now).toBe(base.now);
    expect(base.events).toBe(3);
  });

  it('keeps what becomes due in a pause and runs it in order, before what becomes due later', () => {
    const { base, clock, story, say } = world();
    for (const time of [20, 10, 30, 10]) clock.post(time, say(`guest${time}`));
    base.post(5, () => clock.pause());
    base.post(25, say('host'));
    base.run({ untilNs: 29 });
    expect([story, clock.waiting]).toEqual([['host@25'], 3]);
    base.post(1, () => clock.resume());
    base.run();
    expect(story).toEqual(['host@25', 'guest10@30', 'guest10@30', 'guest20@30', 'guest30@30']);
    expect([clock.waiting, base.pending]).toEqual([0, 0]);
  });

  it('stays in order when it is paused again while it resumes', () => {
    const { base, clock, story, say } = world();
    clock.post(1, () => {
      say('first')();
      clock.pause();
      clock.post(0, say('child'));
    });
    for (const word of ['second', 'third']) clock.post(1, say(word));
    clock.pause();
    base.run({ untilNs: 2 });
    clock.resume();
    base.run({ untilNs: 5 });
    expect([story, clock.state]).toEqual([['first@2'], 'paused']);
    clock.resume();
    base.run();
    expect(story).toEqual(['first@2', 'second@5', 'third@5', 'child@5']);
  });

  it('has alarms that stay pending in a pause and can be cancelled there', () => {
    const { base, clock, story, say } = world();
    const one = clock.after(10, say('one')), two = clock.after(10, say('two')), early = clock.after(1, say('early'));
    expect(early.cancel()).toBe(true);
    clock.pause();
    base.run({ untilNs: 20 });
    expect([one.pending, two.pending, early.pending]).toEqual([true, true, false]);
    expect([two.cancel(), two.cancel()]).toEqual([true, false]);
    clock.resume();
    base.run();
    expect([story, one.pending, one.cancel()]).toEqual([['one@20'], false, false]);
  });

  it('never runs anything again once it stopped, and its alarms keep no run alive', () => {
    const { base, clock, story, say } = world();
    clock.post(10, say('kept'));
    clock.pause();
    base.run({ untilNs: 10 });
    clock.post(5, say('posted'));
    const alarm = clock.after(1e9, say('alarm'));
    clock.stop();
    clock.resume();
    clock.post(0, say('late'));
    const late = clock.after(1, say('late alarm'));
    base.run();
    expect(story).toEqual([]);
    expect([alarm.pending, alarm.cancel(), late.pending, late.cancel(), clock.state]).toEqual([false, false, false, false, 'stopped']);
    expect(base.now).toBe(15);
  });

  it('is held by any number of waits beside a pause', () => {
    const { base, clock, story, say } = world();
    const one = clock.hold(), two = clock.hold();
    clock.post(1, say('event'));
    clock.pause();
    base.run({ untilNs: 5 });
    one();
    one();
    clock.resume();
    base.run({ untilNs: 7 });
    expect([story, clock.runs]).toEqual([[], false]);
    two();
    base.run();
    expect([story, clock.runs]).toEqual([['event@7'], true]);
  });

  it('forgets what was scheduled when the guest starts again', () => {
    const { base, clock, story, say } = world();
    clock.post(10, say('old'));
    const alarm = clock.after(10, say('old alarm'));
    clock.pause();
    clock.post(0, say('old kept'));
    base.run({ untilNs: 5 });
    clock.restart();
    clock.post(6, say('new'));
    clock.resume();
    base.run();
    expect([story, alarm.pending]).toEqual([['new@11'], false]);
  });

  it('holds the tasks of a guest\'s scheduler and ends them', () => {
    const { base, clock, story, say } = world();
    const scheduler = new Scheduler(clock, (error) => base.fail(error));
    scheduler.spawn('guest task', (function* (): Steps {
      for (;;) {
        yield* sleep(clock, 10);
        say('turn')();
      }
    })(), { daemon: true });
    base.post(25, () => clock.pause());
    base.post(42, () => clock.resume());
    base.post(60, () => clock.stop());
    base.run();
    expect(story).toEqual(['turn@10', 'turn@20', 'turn@42', 'turn@52']);
  });

  it('loses and reorders nothing, whatever is paused, resumed and cancelled (random)', () => {
    const step = fc.record({ delay: fc.nat(20), act: fc.constantFrom('post', 'alarm', 'pause', 'resume', 'cancel') });
    fc.assert(fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const { base, clock } = world();
      const ran: number[] = [], due: { id: number; time: number }[] = [];
      const alarms: { id: number; cancel: () => boolean }[] = [];
      const cancelled = new Set<number>();
      let at = 0;
      steps.forEach(({ delay, act }, id) => {
        base.at((at += delay % 4), () => {
          if (act === 'pause') clock.pause();
          else if (act === 'resume') clock.resume();
          else if (act === 'cancel') {
            const alarm = alarms.pop();
            if (alarm?.cancel() === true) cancelled.add(alarm.id);
          } else {
            due.push({ id, time: base.now + delay });
            if (act === 'post') clock.post(delay, () => void ran.push(id));
            else alarms.push({ id, cancel: ((alarm) => () => alarm.cancel())(clock.after(delay, () => void ran.push(id))) });
          }
        });
      });
      base.run();
      clock.resume();
      base.run();
      const expected = due.filter(({ id }) => !cancelled.has(id)).sort((a, b) => a.time - b.time).map(({ id }) => id);
      expect(ran).toEqual(expected);
    }), { numRuns: 300 });
  });
});
