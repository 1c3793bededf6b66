import { describe, expect, it } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';
import { traceToNdjson, traceToPerfetto } from '../../sim/trace-export.js';

function story(capacity: number, names = ['a', 'b']): Trace {
  const clock = new VirtualClock();
  const trace = new Trace(clock, capacity);
  const ask = trace.define('dev:ask', [['who', 'str'], ['page', 'page']]);
  const answer = trace.define('dev:answer', [['who', 'str'], ['ok', 'bool']]);
  const noise = trace.define('dev:noise', [['n', 'dec']], { hashed: false });
  for (let i = 0; i < 10; i++) {
    const id = trace.nextCorrelation();
    clock.post(i * 10, () => trace.record(ask, id, trace.intern(names[i % 2]!), 0x7_f012_3456 + i));
    clock.post(i * 10 + 5, () => trace.record(answer, id, trace.intern(names[i % 2]!), 1));
    if (capacity > 10) clock.post(i * 10, () => trace.record(noise, 0, i));
  }
  clock.run();
  return trace;
}

describe('Trace', () => {
  it('has a hash that depends on hashed records only, not on the size of the ring', () => {
    const long = story(1000), short = story(10);
    expect(long.hash).toBe(short.hash);
    expect(long.hash).toMatch(/^[0-9a-f]{16}$/);
    expect(story(1000, ['a', 'c']).hash).not.toBe(long.hash);
  });

  it('keeps the newest records and shows them in order', () => {
    const trace = story(10);
    const records = [...trace.records()];
    expect(records.map((record) => record.index)).toEqual([10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    expect(trace.describe(records[0]!)).toEqual([['who', 'b'], ['page', '0x7f012345b000']]);
  });

  it('tells listeners of the kinds they name, declared before or after, until they leave', () => {
    const trace = new Trace(new VirtualClock());
    const early = trace.define('a:early', [['n', 'dec']]);
    const heard: string[] = [];
    const note = (who: string) => (record: { kind: { name: string }; args: readonly number[] }): void => void heard.push(`${who} ${record.kind.name} ${record.args.join()}`);
    trace.listen(note('all'));
    const leave = trace.listen((record) => {
      note('some')(record);
      leave();
    }, ['a:late']);
    const late = trace.define('a:late', [['n', 'dec']]);
    trace.record(early, 0, 1);
    trace.record(late, 0, 2);
    trace.record(late, 0, 3);
    expect(heard).toEqual(['all a:early 1', 'all a:late 2', 'some a:late 2', 'all a:late 3']);
    expect([trace.countOf(early), trace.countOf(late)]).toEqual([1, 2]);
  });

  it('has this hash for these records: strings by their text, words beyond 32 bits by both halves', () => {
    // as the first version of the trace computed it, value by value
    expect(story(1000).hash).toBe('d623e3d904130ab9');
  });

  it('exports lines of JSON and Chrome events with spans and flow arrows', () => {
    const trace = story(1000);
    const lines = [...traceToNdjson(trace)];
    expect(JSON.parse(lines[0]!)).toEqual({ i: 0, t: 0, kind: 'dev:ask', id: 1, who: 'a', page: '0x7f0123456000' });
    const { traceEvents } = JSON.parse([...traceToPerfetto(trace, [{ name: 'question', begin: 'dev:ask', end: 'dev:answer' }])].join('')) as { traceEvents: { ph: string }[] };
    const count = (ph: string): number => traceEvents.filter((event) => event.ph === ph).length;
    expect([count('b'), count('e'), count('s'), count('f')]).toEqual([10, 10, 10, 10]);
  });
});

describe('Random', () => {
  it('is a function of seed and label; another consumer does not move its draws', () => {
    const draw = (seed: number, disturb: boolean): number[] => {
      const root = new Random(seed);
      const other = root.split('other');
      if (disturb) other.u32();
      const mine = root.split('mine');
      return [mine.u32(), mine.below(10), mine.between(5, 6)];
    };
    expect(draw(1, true)).toEqual(draw(1, false));
    expect(draw(1, false)).not.toEqual(draw(2, false));
  });
});
