/**
 * Domain ids of one unit (CAP.ND), handed to domains while they are attached to its devices. 0 is what caching mode
 * tags non-present entries with; 1 is shared by all first-level tables of processes and by pass-through
 * (FLPT_DEFAULT_DID of drivers/iommu/intel/iommu.h).
 */
import { assert } from '../../../sim/assert.js';
import { Errno } from '../../../sim/errno.js';

export const CACHED_NOT_PRESENT_DID = 0;
export const FLPT_DEFAULT_DID = 1;
const FIRST_DID = 2;

export class DomainIds {
  /** Ids in use. */
  used = 0;
  private readonly name: string;
  private readonly end: number;
  private readonly taken: Uint8Array;
  private lowest = FIRST_DID;

  constructor(name: string, bits: number) {
    this.name = name;
    this.end = 2 ** bits;
    this.taken = new Uint8Array(this.end);
  }

  /** The lowest free id. ENOSPC when the unit has no more. */
  alloc(): number {
    for (let id = this.lowest; id < this.end; id++) {
      if (this.taken[id] !== 0) continue;
      this.taken[id] = 1;
      this.lowest = id + 1;
      this.used++;
      return id;
    }
    throw new Errno('ENOSPC', `${this.name} has no domain id left (CAP.ND gives it ${this.end})`);
  }

  free(id: number): void {
    assert(this.taken[id] === 1, `domain id ${id} of ${this.name} freed, but nobody has it`);
    this.taken[id] = 0;
    this.used--;
    this.lowest = Math.min(this.lowest, id);
  }
}
