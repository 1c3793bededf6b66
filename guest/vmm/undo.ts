/** What has to be taken back when a step of several fails; and how such a failure is told. */
import { Errno, isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';

export class Undo {
  private steps: (() => Steps)[] = [];

  push(step: () => Steps): void {
    this.steps.push(step);
  }

  /** Everything, latest first. What is refused meanwhile (a process that is ending) stays as it is. */
  *run(): Steps {
    for (let step = this.steps.pop(); step !== undefined; step = this.steps.pop()) yield* tolerant(step());
  }
}

/** A step whose refusal changes nothing for who does it. */
export function* tolerant(steps: Steps): Steps {
  try {
    yield* steps;
  } catch (error) {
    if (!isErrno(error)) throw error;
  }
}

/** Runs a step; its refusal says which one it was. */
export function* named<T>(what: string, steps: Steps<T>): Steps<T> {
  try {
    return yield* steps;
  } catch (error) {
    throw isErrno(error) ? told(what, error) : error;
  }
}

/** The same for what does not sleep. */
export function namedNow<T>(what: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw isErrno(error) ? told(what, error) : error;
  }
}

function told(what: string, error: Errno): Errno {
  return new Errno(error.code, `${what}: ${error.message.slice(error.code.length + 3)}`);
}
