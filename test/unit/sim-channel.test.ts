import { describe, expect, it } from 'vitest';
import { filter, map } from 'rxjs';
import { Channel, Mailbox } from '../../sim/channel.js';

describe('Channel', () => {
  it('shows every subscriber a value before the answer that one of them publishes', () => {
    const mailbox = new Mailbox((error) => { throw error; });
    const requests = new Channel<number>(mailbox, 'requests'), responses = new Channel<number>(mailbox, 'responses');
    const seen: string[] = [];
    requests.values$.subscribe((n) => responses.publish(n));
    requests.values$.subscribe((n) => seen.push(`request ${n}`));
    responses.values$.subscribe((n) => seen.push(`response ${n}`));
    requests.publish(1);
    requests.publish(2);
    expect(seen).toEqual(['request 1', 'response 1', 'request 2', 'response 2']);
  });

  it('hands what a subscriber throws to the owner at once, also behind operators, and goes on', () => {
    const errors: unknown[] = [];
    const channel = new Channel<number>(new Mailbox((error) => errors.push(error)), 'c');
    const seen: number[] = [];
    channel.values$.pipe(map((n) => n * 2), filter((n) => n > 2)).subscribe((n) => {
      if (n === 4) throw new Error(`no ${n}`);
      seen.push(n);
    });
    channel.values$.subscribe({ next: (n) => seen.push(n * 100) });
    for (const n of [1, 2, 3]) channel.publish(n);
    expect(errors).toEqual([new Error('no 4')]);
    expect(seen).toEqual([100, 200, 6, 300]);
  });

  it('delivers to who was subscribed when the value came, and ends with its close', () => {
    const channel = new Channel<number>(new Mailbox((error) => { throw error; }), 'c');
    const seen: string[] = [];
    expect(channel.observed).toBe(false);
    const first = channel.values$.subscribe((n) => {
      seen.push(`first ${n}`);
      if (n === 1) channel.values$.subscribe({ next: (later) => seen.push(`late ${later}`), complete: () => seen.push('late ends') });
      else first.unsubscribe();
    });
    for (const n of [1, 2, 3]) channel.publish(n);
    expect([seen, channel.observed]).toEqual([['first 1', 'first 2', 'late 2', 'late 3'], true]);
    channel.close();
    channel.publish(4);
    channel.values$.subscribe({ complete: () => seen.push('too late') });
    expect([seen.slice(4), channel.observed]).toEqual([['late ends', 'too late'], false]);
  });
});
