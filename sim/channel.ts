/**
 * Wires between guest, host and hardware. A channel is an RxJS Observable fed through one run-to-completion
 * mailbox: every subscriber sees a value before the next value of any channel is delivered, even when one of them
 * publishes while it handles the first. What a subscriber throws is handed to the clock, which rethrows it at that
 * very event instead of from a later timer.
 */
import { Observable, type Observer, type Operator, type Subscriber, type Subscription } from 'rxjs';

export class Mailbox {
  private readonly queue: (() => void)[] = [];
  private draining = false;
  /** Every channel that delivers through this mailbox. */
  readonly channels: { readonly name: string; readonly observed: boolean }[] = [];
  readonly onError: (error: unknown) => void;

  constructor(onError: (error: unknown) => void) {
    this.onError = onError;
  }

  deliver(delivery: () => void): void {
    this.queue.push(delivery);
    if (!this.draining) this.drain();
  }

  /** `wire.next(value)` in its turn; at once, and without a closure, when nothing is being delivered. */
  deliverTo<T>(wire: { next(value: T): void }, value: T): void {
    if (this.draining) {
      this.queue.push(() => wire.next(value));
      return;
    }
    this.draining = true;
    try {
      wire.next(value);
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

/** The end of a channel that feeds its subscribers: RxJS's Subject without a closure and an iterator for every value. */
class Wire<T> extends Observable<T> {
  private subscribers: readonly Subscriber<T>[] = [];
  private ended = false;

  constructor() {
    super((subscriber) => {
      if (this.ended) {
        subscriber.complete();
        return undefined;
      }
      this.subscribers = [...this.subscribers, subscriber];
      return () => {
        this.subscribers = this.subscribers.filter((other) => other !== subscriber);
      };
    });
  }

  get observed(): boolean {
    return this.subscribers.length > 0;
  }

  /** To those who were subscribed when the value came. */
  next(value: T): void {
    const { subscribers } = this;
    for (let i = 0; i < subscribers.length; i++) subscribers[i]!.next(value);
  }

  complete(): void {
    this.ended = true;
    for (const subscriber of this.subscribers) subscriber.complete();
  }
}

export class Channel<T> {
  readonly name: string;
  /** Listen here. One producer publishes; anybody may subscribe, delay, filter or drop on the way. */
  readonly values$: Observable<T>;
  private readonly mailbox: Mailbox;
  private readonly wire = new Wire<T>();

  constructor(mailbox: Mailbox, name: string) {
    this.mailbox = mailbox;
    this.name = name;
    this.values$ = new WireObservable<T>(mailbox, this.wire);
    mailbox.channels.push(this);
  }

  /** True when somebody listens; lets a producer skip building records that nobody sees. */
  get observed(): boolean {
    return this.wire.observed;
  }

  publish(value: T): void {
    this.mailbox.deliverTo(this.wire, value);
  }

  /** Ends every subscription: for teardown. */
  close(): void {
    this.wire.complete();
  }
}
