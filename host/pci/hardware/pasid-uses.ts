/** Which PASIDs a function is using, and which of them it has been told to stop using. NO_PASID counts like any other. */

export interface PasidUse {
  readonly pasid: number;
  /** Operations under way. */
  operations: number;
  /** Stops under way: while there is one, nothing new starts. */
  stops: number;
}

/** Idle entries are kept, because a PASID that was used will be used again, until there are this many. */
const FIRST_SWEEP = 256;

export class PasidUses {
  private readonly uses = new Map<number, PasidUse>();
  private sweepAt = FIRST_SWEEP;
  /** Stops under way, of any PASID. */
  private stops = 0;

  /** An operation begins; undefined when the PASID is being stopped. */
  enter(pasid: number): PasidUse | undefined {
    const use = this.use(pasid);
    if (use.stops > 0) return undefined;
    use.operations++;
    return use;
  }

  stopping(pasid: number): boolean {
    return this.stops > 0 && (this.uses.get(pasid)?.stops ?? 0) > 0;
  }

  /** Nothing new starts with this PASID until `stopped`. */
  stop(pasid: number): PasidUse {
    const use = this.use(pasid);
    use.stops++;
    this.stops++;
    return use;
  }

  stopped(use: PasidUse): void {
    use.stops--;
    this.stops--;
  }

  private use(pasid: number): PasidUse {
    let use = this.uses.get(pasid);
    if (use === undefined) {
      if (this.uses.size >= this.sweepAt) this.sweep();
      use = { pasid, operations: 0, stops: 0 };
      this.uses.set(pasid, use);
    }
    return use;
  }

  private sweep(): void {
    for (const [pasid, use] of this.uses) if (use.operations === 0 && use.stops === 0) this.uses.delete(pasid);
    this.sweepAt = Math.max(FIRST_SWEEP, this.uses.size * 2);
  }
}
