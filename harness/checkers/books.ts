/** What only the end of a run shows. */
import { lockInversions, type Scheduler } from '../../sim/task.js';
import type { Mailbox } from '../../sim/channel.js';
import type { InvariantSummary, Leaks } from '../summary.js';
import { Checker } from './invariant.js';

/** No two locks are taken in both orders: each such pair is a deadlock that waits for its schedule (section 5 rule 7). */
export class LocksInOrder extends Checker {
  readonly name = 'locks are taken in one order';
  readonly kinds = [];
  private readonly scheduler: Scheduler;

  constructor(scheduler: Scheduler) {
    super();
    this.scheduler = scheduler;
  }

  observe(): void {}

  override finish(): void {
    for (const after of this.scheduler.lockOrder.values()) this.checked += after.size;
    for (const inversion of lockInversions(this.scheduler)) this.violate(inversion);
  }
}

function invariant(name: string, checked: number, violations: readonly string[]): InvariantSummary {
  return { name, checked, violations, status: violations.length === 0 ? 'ok' : 'violated' };
}

/** What was taken has been given back (section 5 rule 6). */
export function balance(leaks: Leaks): InvariantSummary {
  const left = Object.entries(leaks).filter(([, count]) => count !== 0);
  return invariant('pins, PASIDs, domains and frames balance', Object.keys(leaks).length, left.map(([what, count]) => `${count} ${what} are left`));
}

/** Nobody listens to a machine that has been shut down (section 5 rule 8). */
export function subscriptionsEnd(mailbox: Mailbox): InvariantSummary {
  const open = mailbox.channels.filter(({ observed }) => observed);
  return invariant('every subscription ends with the machine', mailbox.channels.length, open.map(({ name }) => `the channel "${name}" still has subscribers`));
}
