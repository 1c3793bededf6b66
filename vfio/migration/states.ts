/**
 * States of a device under migration and the ways between them (include/uapi/linux/vfio.h, enum
 * vfio_device_mig_state; `vfio_mig_get_next_state` of drivers/vfio/vfio_main.c). A user names any state it wants to
 * reach; the kernel breaks that into arcs that a driver implements. Optional states are passed over by devices that
 * do not have them.
 */
import {
  VFIO_DEVICE_STATE_ERROR, VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_PRE_COPY_P2P, VFIO_DEVICE_STATE_RESUMING, VFIO_DEVICE_STATE_RUNNING,
  VFIO_DEVICE_STATE_RUNNING_P2P, VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_STOP_COPY, VFIO_MIGRATION_P2P, VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
} from '../uapi/migration.js';

/** VFIO_DEVICE_STATE_* */
export type MigrationState = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7;

/** Names by number, as the header spells them without their prefix. */
export const MIG_STATE_NAMES: readonly string[] = ['ERROR', 'STOP', 'RUNNING', 'STOP_COPY', 'RESUMING', 'RUNNING_P2P', 'PRE_COPY', 'PRE_COPY_P2P'];

const E = VFIO_DEVICE_STATE_ERROR, S = VFIO_DEVICE_STATE_STOP, R = VFIO_DEVICE_STATE_RUNNING, C = VFIO_DEVICE_STATE_STOP_COPY, I = VFIO_DEVICE_STATE_RESUMING;
const P = VFIO_DEVICE_STATE_RUNNING_P2P, Y = VFIO_DEVICE_STATE_PRE_COPY, Q = VFIO_DEVICE_STATE_PRE_COPY_P2P;

/** First arc on the way from a state (row) to a state (column) of a device that has all of them; ERROR: no way. */
const FIRST_ARC: readonly (readonly MigrationState[])[] = [
  // to  E  S  R  C  I  P  Y  Q
  /* E */ [E, E, E, E, E, E, E, E],
  /* S */ [E, S, P, C, I, P, P, P],
  /* R */ [E, P, R, P, P, P, Y, P],
  /* C */ [E, S, S, C, S, S, E, E],
  /* I */ [E, S, S, S, I, S, S, S],
  /* P */ [E, S, R, S, S, P, R, Q],
  /* Y */ [E, R, R, Q, R, R, Y, Q],
  /* Q */ [E, P, P, C, P, P, Y, Q],
];

/** What a device must offer to have the state. */
const NEEDED_FLAGS: readonly number[] = [
  ~0, VFIO_MIGRATION_STOP_COPY, VFIO_MIGRATION_STOP_COPY, VFIO_MIGRATION_STOP_COPY, VFIO_MIGRATION_STOP_COPY,
  VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY,
];

/** True when a device with these VFIO_MIGRATION_* flags can be in the state by request; never for ERROR. */
export function hasState(flags: number, state: number): boolean {
  const needed = NEEDED_FLAGS[state];
  return state !== VFIO_DEVICE_STATE_ERROR && needed !== undefined && (flags & needed) === needed;
}

/**
 * The state to go to next on the way from `from` to `to`, `to` itself at the end. Undefined where the request is
 * EINVAL: a state that the device does not have, ERROR at either end, or no way (STOP_COPY to PRE_COPY).
 * @param flags VFIO_MIGRATION_* of the device
 */
export function nextMigrationState(flags: number, from: number, to: number): MigrationState | undefined {
  if (!hasState(flags, from) || !hasState(flags, to)) return undefined;
  let next = FIRST_ARC[from]![to]!;
  while (next !== VFIO_DEVICE_STATE_ERROR && !hasState(flags, next)) next = FIRST_ARC[next]![to]!;
  return next === VFIO_DEVICE_STATE_ERROR ? undefined : next;
}
