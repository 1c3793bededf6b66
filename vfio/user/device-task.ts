/** Opening and closing a device as an input of its machine: the same events, whether a server does it or a replay. */
import type { Scheduler, Steps } from '../../sim/task.js';
import type { VfioDeviceOps } from '../device.js';

/** @param done called once, at the end of the task, with what the device threw */
export function spawnDeviceTask(scheduler: Scheduler, ops: VfioDeviceOps, what: 'open' | 'close', done: (failure: { readonly error: unknown } | undefined) => void): void {
  scheduler.spawn(`vfio-user ${ops.name} ${what}`, task(ops, what, done), { daemon: true });
}

function* task(ops: VfioDeviceOps, what: 'open' | 'close', done: (failure: { readonly error: unknown } | undefined) => void): Steps {
  let failure: { readonly error: unknown } | undefined;
  try {
    yield* ops[what]();
  } catch (error) {
    failure = { error };
  }
  done(failure);
}
