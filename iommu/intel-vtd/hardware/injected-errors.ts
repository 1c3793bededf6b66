/**
 * Errors of a unit that software did nothing to earn, brought about on purpose: a good descriptor is taken for a bad
 * one (IQE), a device TLB invalidation gets no answer (ITE), a page request finds the queue full (PRO). Drivers have
 * to live with all three, and no hardware makes them on demand.
 */

/** Names of descriptors as topologies spell them, by type. */
export const DESCRIPTOR_WORDS = { cc: 1, iotlb: 2, devtlb: 3, wait: 5, p_iotlb: 6, pasidc: 7, p_devtlb: 8, pgrp: 9 } as const;

export interface PlannedError {
  readonly error: 'iqe' | 'ite' | 'page-request-overflow';
  /** The Nth of its kind, from 1. */
  readonly count: number;
  /** So many, one after the other. */
  readonly times: number;
  /** Kind of descriptor; page requests have none. Default: p_iotlb for iqe, every device TLB invalidation for ite. */
  readonly descriptor?: keyof typeof DESCRIPTOR_WORDS | undefined;
}

interface Plan {
  readonly types: ReadonlySet<number>;
  /** Until the first. */
  wait: number;
  left: number;
}

export class InjectedErrors {
  private readonly iqe: readonly Plan[];
  private readonly ite: readonly Plan[];
  private readonly overflow: readonly Plan[];

  constructor(errors: readonly PlannedError[]) {
    const plansOf = (error: PlannedError['error'], usual: readonly number[]): Plan[] => errors.filter((planned) => planned.error === error)
      .map(({ descriptor, count, times }) => ({ types: new Set(descriptor === undefined ? usual : [DESCRIPTOR_WORDS[descriptor]]), wait: count - 1, left: times }));
    this.iqe = plansOf('iqe', [DESCRIPTOR_WORDS.p_iotlb]);
    this.ite = plansOf('ite', [DESCRIPTOR_WORDS.devtlb, DESCRIPTOR_WORDS.p_devtlb]);
    this.overflow = plansOf('page-request-overflow', [0]);
  }

  /** A descriptor of this type is refused now. */
  malformed(type: number): boolean {
    return strikes(this.iqe, type);
  }

  /** A device TLB invalidation of this type is not answered. */
  unanswered(type: number): boolean {
    return strikes(this.ite, type);
  }

  /** The page request queue has no room for this request. */
  full(): boolean {
    return strikes(this.overflow, 0);
  }
}

function strikes(plans: readonly Plan[], type: number): boolean {
  let struck = false;
  for (const plan of plans) {
    if (plan.left === 0 || !plan.types.has(type)) continue;
    if (plan.wait > 0) {
      plan.wait--;
      continue;
    }
    plan.left--;
    struck = true;
  }
  return struck;
}
