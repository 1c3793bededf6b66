/** What server and client of the group `vfio-user` agree on. */
const MIB = 2 ** 20;

/** Sealed memory at guest-physical 0: tables below `TABLES_END`, data behind them. */
export const WINDOW_BYTES = 64 * MIB;
export const TABLES_END = 16 * MIB;
/** Addresses behind no descriptor: reached by messages. As long as the longest message of QEMU. */
export const MESSAGE_BASE = 2 ** 32;
export const MESSAGE_BYTES = MIB;

/** One number for each repetition. */
export interface ClientFigures {
  readonly readUs: readonly number[];
  readonly postedPerSecond: readonly number[];
}
