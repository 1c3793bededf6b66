/** Exit codes of the command. */
export const EXIT = {
  ok: 0,
  /** A flow, an expectation or an invariant failed, or the machine did not boot. */
  failed: 1,
  usage: 2,
  /** Invalid topology or vector. */
  input: 3,
  /** The simulated time or event limit was hit. */
  limit: 42,
  /** A bug in the simulator (EX_SOFTWARE of sysexits.h). */
  bug: 70,
} as const;
