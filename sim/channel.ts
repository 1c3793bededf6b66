/**
 * Wires between guest, host and hardware. A channel is an RxJS Observable fed through one run-to-completion
 * mailbox: every subscriber sees a value before the next value of any channel is delivered, even when one of them
 * publishes while it handles the first. What a subscriber throws is handed to the clock, which rethrows it at that
 * very event instead of from a later timer.
 */
import { Observable, Subject, type Observer, type Operator, type Subscription } from 'rxjs';

export class Mailbox {
  private readonly queue: (() => void)[] = [];
  private draining = false;
  readonly onError: (error: unknown) => void;

  constructor(onError: (error: unknown) => void) {
    this.onError = onError;
  }

  deliver(delivery: () => void): void {
    this.queue.push(delivery);
    if (!this.draining) this.drain();
  }

  /** `subject.next(value)` in its turn; at once, and without a closure, when nothing is being delivered. */
  deliverTo<T>(subject: Subject<T>, value: T): void {
    if (this.draining) {
      this.queue.push(() => subject.next(value));
      return;
    }
    this.draining = true;
    try {
      subject.next(value);
    } finally {
      this.draining = false;
      if (this.queue.length > 0) this.drain();
    }
  }

  private drain(): void {
    this.draining = true;
    try {
      for (let i = 0; i < this.queue.length; i++) this.queue[i]!();
    } finally {
      this.queue.length = 0;
      this.draining = false;
    }
  }
}

/* oxlint-disable typescript/no-deprecated -- `lift` is how RxJS 7 lets a subclass survive its operators; there is no other hook */
/** An Observable whose subscribers' exceptions reach the mailbox, also behind operators. */
class WireObservable<T> extends Observable<T> {
  private readonly mailbox: Mailbox;

  constructor(mailbox: Mailbox, source?: Observable<unknown>, operator?: Operator<unknown, T>) {
    super();
    this.mailbox = mailbox;
    if (source !== undefined) this.source = source as Observable<T>;
    if (operator !== undefined) this.operator = operator as Operator<unknown, T>;
  }

  override lift<R>(operator?: Operator<T, R>): Observable<R> {
    return new WireObservable<R>(this.mailbox, this, operator as Operator<unknown, R> | undefined);
  }

  override subscribe(
    observerOrNext?: Partial<Observer<T>> | ((value: T) => void) | null,
    error?: ((error: unknown) => void) | null,
    complete?: (() => void) | null,
  ): Subscription {
    const mailbox = this.mailbox;
    if (typeof observerOrNext !== 'function') {
      // operators and subscribers of RxJS itself forward; a plain observer object gets the same guard as a function
      if (observerOrNext == null || 'isStopped' in observerOrNext || observerOrNext.next === undefined) {
        return super.subscribe(observerOrNext ?? {});
      }
      const observer = observerOrNext;
      return super.subscribe({ ...observer, next: guarded(mailbox, (value) => observer.next!(value)) });
    }
    return super.subscribe({
      next: guarded(mailbox, observerOrNext),
      ...(error == null ? {} : { error }),
      ...(complete == null ? {} : { complete }),
    });
  }
}

/* oxlint-enable typescript/no-deprecated */

function guarded<T>(mailbox: Mailbox, next: (value: T) => void): (value: T) => void {
  return (value) => {
    try {
      next(value);
    } catch (error) {
      mailbox.onError(error);
    }
  };
}

export class Channel<T> {
  readonly name: string;
  /** Listen here. One producer publishes; anybody may subscribe, delay, filter or drop on the way. */
  readonly values$: Observable<T>;
  private readonly mailbox: Mailbox;
  private readonly subject = new Subject<T>();

  constructor(mailbox: Mailbox, name: string) {
    this.mailbox = mailbox;
    this.name = name;
    this.values$ = new WireObservable<T>(mailbox, this.subject);
  }

  /** True when somebody listens; lets a producer skip building records that nobody sees. */
  get observed(): boolean {
    return this.subject.observed;
  }

  publish(value: T): void {
    this.mailbox.deliverTo(this.subject, value);
  }

  /** Ends every subscription: for teardown. */
  close(): void {
    this.subject.complete();
  }
}
