/** Exit codes of the command. */
export const EXIT = {
  ok: 0,
  /** A flow, an expectation or an invariant failed. */
  failed: 1,
  usage: 2,
  /** Invalid topology or vector. */
  input: 3,
  /** The simulated time or event limit was hit. */
  limit: 42,
} as const;
