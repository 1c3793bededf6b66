/** The simulated time or event limit of the topology was hit before something had ended. */
export class LimitReached extends Error {
  override readonly name = 'LimitReached';
  readonly limit: 'time-limit' | 'event-limit';

  constructor(what: string, limit: 'time-limit' | 'event-limit') {
    super(`${what} did not end before the ${limit === 'time-limit' ? 'simulated time' : 'event'} limit of the topology`);
    this.limit = limit;
  }
}
