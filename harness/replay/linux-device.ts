/**
 * The device side of a replayed trace: functions with a device TLB that ask for translations, take page responses and
 * complete invalidations. They do what the recorded devices did, when the replay says so.
 */
import type { Clock } from '../../sim/clock.js';
import { ATTR_TRANSLATED, DMA_DONE, NO_PASID, type FunctionRouter } from '../../host/pci/dma-port.js';
import type { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';

/** Time of a TLP, and so of half an invalidation. */
const TLP_NS = 150;

export interface DeliveredResponse {
  readonly sourceId: number;
  readonly prgIndex: number;
  readonly code: number;
  readonly pasid: number;
}

interface Translation {
  readonly frame: number;
  readonly read: boolean;
  readonly write: boolean;
}

export class LinuxDevices implements FunctionRouter {
  /** Page responses that arrived and that no line has been compared with yet. */
  readonly responses: DeliveredResponse[] = [];
  /** Invalidations are done but not completed: what the unit sees is a device that does not answer. */
  silent = false;
  private readonly clock: Clock;
  private unit: VtdUnit | undefined;
  private readonly translations = new Map<string, Translation>();

  constructor(clock: Clock) {
    this.clock = clock;
  }

  connect(unit: VtdUnit): void {
    this.unit = unit;
  }

  /** True when the device holds a translation with the right that is wanted. */
  holds(sourceId: number, pasid: number, page: number, write: boolean): boolean {
    return allows(this.translations.get(key(sourceId, pasid, page)), write);
  }

  /** Translation request; true when the answer gives the right that is wanted, and is kept then. */
  ask(sourceId: number, pasid: number, page: number, write: boolean): boolean {
    const unit = this.unit!;
    if (unit.translationRequest(sourceId, pasid, 0, page) !== DMA_DONE) return false;
    const { completion } = unit;
    const translation = { frame: completion.page + (page % completion.pages), read: completion.read, write: completion.write };
    if (!allows(translation, write)) return false;
    this.translations.set(key(sourceId, pasid, page), translation);
    return true;
  }

  /** An access through the device TLB, then as a translated request: the physical page, undefined when it is refused. */
  access(sourceId: number, pasid: number, page: number, write: boolean): number | undefined {
    if (!this.holds(sourceId, pasid, page, write) && !this.ask(sourceId, pasid, page, write)) return undefined;
    const { frame } = this.translations.get(key(sourceId, pasid, page))!;
    return this.unit!.translate(sourceId, NO_PASID, ATTR_TRANSLATED, frame, write) === DMA_DONE ? this.unit!.page : undefined;
  }

  invalidate(sourceId: number, tag: number, page: number, pages: number, pasid: number): boolean {
    const { silent } = this;
    this.clock.post(TLP_NS, () => {
      this.forget(sourceId, page, pages, pasid);
      if (!silent) this.clock.post(TLP_NS, () => this.unit!.invalidateCompletion(sourceId, tag));
    });
    return true;
  }

  pageResponse(sourceId: number, prgIndex: number, code: number, pasid: number): boolean {
    this.clock.post(TLP_NS, () => this.responses.push({ sourceId, prgIndex, code, pasid }));
    return true;
  }

  releaseHeld(): void {}

  private forget(sourceId: number, page: number, pages: number, pasid: number): void {
    for (const known of this.translations.keys()) {
      const [source, tagged, at] = known.split('/').map(Number) as [number, number, number];
      // without PASID the entries of every PASID go (A5)
      if (source === sourceId && (pasid < 0 || tagged === pasid) && at >= page && at < page + pages) this.translations.delete(known);
    }
  }
}

function allows(translation: Translation | undefined, write: boolean): boolean {
  return translation !== undefined && (write ? translation.write : translation.read);
}

function key(sourceId: number, pasid: number, page: number): string {
  return `${sourceId}/${pasid}/${page}`;
}
