/**
 * A domain that the kernel fills (`struct dmar_domain`): first-level tables for DMA domains where every unit walks
 * them, second-level tables otherwise, nothing for blocking and pass-through. It has an id in each unit that one of
 * its devices is behind.
 */
import { assert } from '../../../sim/assert.js';
import { Errno } from '../../../sim/errno.js';
import { hexPage } from '../../../sim/address.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { FrameSource } from '../../../host/frame-source.js';
import { PageTable } from '../../../host/page-table/page-table.js';
import { PROT_READ, PROT_WRITE, type DomainType, type IommuDomain } from '../../core/ops.js';
import { VTD_FIRST_LEVEL } from '../../page-table/vtd-first-level.js';
import { VTD_SECOND_LEVEL } from '../../page-table/vtd-second-level.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { bitsOfAddressWidth, levelsOfAddressWidth } from '../spec/root-context.js';
import type { RemappingUnit } from './remapping-unit.js';
import type { VtdDevice } from './vtd-device.js';

const PAGES_2M = 512;
const PAGES_1G = 0x4_0000;

/** What every unit of the machine can walk. */
export interface TableLimits {
  /** First-level tables for requests without PASID. */
  readonly firstLevel: boolean;
  readonly secondLevel: boolean;
  /** AGAW code of second-level tables. */
  readonly addressWidth: number;
  /** Bits of an untranslated address. */
  readonly guestAddressWidth: number;
  readonly firstLevel1G: boolean;
  readonly secondLevel2M: boolean;
  readonly secondLevel1G: boolean;
  readonly passThrough: boolean;
}

/** The intersection of the units' abilities. */
export function limitsOf(units: readonly RemappingUnit[]): TableLimits {
  const every = (has: (capabilities: VtdCapabilities) => boolean): boolean => units.every((unit) => has(unit.capabilities));
  return {
    firstLevel: units.every((unit) => unit.scalable && unit.capabilities.firstLevel),
    secondLevel: units.every((unit) => !unit.scalable || unit.capabilities.secondLevel),
    addressWidth: Math.min(...units.map((unit) => unit.addressWidth)),
    guestAddressWidth: Math.min(...units.map((unit) => unit.capabilities.guestAddressWidth)),
    firstLevel1G: every((capabilities) => capabilities.firstLevel1G),
    secondLevel2M: every((capabilities) => capabilities.secondLevel2M),
    secondLevel1G: every((capabilities) => capabilities.secondLevel1G),
    passThrough: every((capabilities) => capabilities.passThrough),
  };
}

export type TableKind = 'first-level' | 'second-level' | 'none';

/** A place where the domain's entries may be cached: requests of `device` with `pasid`. */
export interface Attachment {
  readonly device: VtdDevice;
  /** RID_PASID for requests without PASID. */
  readonly pasid: number;
}

export interface VtdDomainOptions {
  readonly id: number;
  readonly type: DomainType;
  readonly kind: TableKind;
  readonly limits: TableLimits;
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  /** Told about pages that became mapped: caching mode wants to hear of them. */
  readonly onMapped: (domain: VtdDomain, page: number, pages: number) => void;
}

/** Levels of first-level tables that the kernel builds for itself; 47 bits of user addresses are usable. */
const FIRST_LEVEL_LEVELS = 4;
const FIRST_LEVEL_BITS = 47;

export class VtdDomain implements IommuDomain {
  readonly id: number;
  readonly type: DomainType;
  readonly kind: TableKind;
  readonly endPage: number;
  readonly pageSizes: readonly number[];
  /** AW code of second-level tables. */
  readonly addressWidth: number;
  readonly table: PageTable | undefined;
  readonly attachments: Attachment[] = [];
  /** X2: one PASID for all devices it is attached to as an auxiliary domain; 0 none. */
  auxPasid = 0;
  private readonly ids = new Map<RemappingUnit, { readonly id: number; users: number }>();
  private readonly onMapped: VtdDomainOptions['onMapped'];

  /** ENOMEM without a frame for the root table. */
  constructor(options: VtdDomainOptions) {
    const { limits, kind } = options;
    this.id = options.id;
    this.type = options.type;
    this.kind = kind;
    this.onMapped = options.onMapped;
    this.addressWidth = limits.addressWidth;
    const width = kind === 'first-level' ? FIRST_LEVEL_BITS : Math.min(limits.guestAddressWidth, bitsOfAddressWidth(limits.addressWidth));
    this.endPage = 2 ** (width - 12);
    const large = kind === 'first-level'
      ? [PAGES_2M, ...(limits.firstLevel1G ? [PAGES_1G] : [])]
      : [...(limits.secondLevel2M ? [PAGES_2M] : []), ...(limits.secondLevel1G ? [PAGES_1G] : [])];
    this.pageSizes = [1, ...large];
    if (kind === 'none') return;
    this.table = new PageTable({
      memory: options.memory, frames: options.frames, owner: `domain ${options.id}`,
      format: kind === 'first-level' ? VTD_FIRST_LEVEL : VTD_SECOND_LEVEL,
      levels: kind === 'first-level' ? FIRST_LEVEL_LEVELS : levelsOfAddressWidth(limits.addressWidth),
      largestLeaf: large.length,
    });
  }

  map(page: number, physical: number, pages: number, prot: number): void {
    const table = this.requireTable();
    if (page + pages > this.endPage) throw new Errno('ERANGE', `domain ${this.id}: ${hexPage(page + pages - 1)} is beyond its ${hexPage(this.endPage)}`);
    if ((prot & (PROT_READ | PROT_WRITE)) === 0) throw new Errno('EINVAL', `domain ${this.id}: a mapping without read or write permission`);
    table.map(page, physical, pages, prot);
    this.onMapped(this, page, pages);
  }

  unmap(page: number, pages: number): number {
    return this.requireTable().unmap(page, pages);
  }

  iovaToPhys(page: number, offset: number): number | undefined {
    if (this.table === undefined) return this.type === 'identity' ? page * 4096 + offset : undefined;
    const physical = this.table.translate(page, offset);
    return physical < 0 ? undefined : physical;
  }

  /** The domain's id in a unit; it has one while attached there. */
  idIn(unit: RemappingUnit): number {
    const entry = this.ids.get(unit);
    assert(entry !== undefined, `domain ${this.id} has no id in ${unit.name}`);
    return entry.id;
  }

  /** One more attachment in the unit. ENOSPC */
  takeId(unit: RemappingUnit): number {
    const entry = this.ids.get(unit);
    if (entry !== undefined) {
      entry.users++;
      return entry.id;
    }
    const id = unit.domainIds.alloc();
    this.ids.set(unit, { id, users: 1 });
    return id;
  }

  dropId(unit: RemappingUnit): void {
    const entry = this.ids.get(unit);
    assert(entry !== undefined, `domain ${this.id} has no id in ${unit.name}`);
    if (--entry.users > 0) return;
    this.ids.delete(unit);
    unit.domainIds.free(entry.id);
  }

  addAttachment(device: VtdDevice, pasid: number): void {
    this.attachments.push({ device, pasid });
  }

  removeAttachment(device: VtdDevice, pasid: number): void {
    const index = this.attachments.findIndex((attachment) => attachment.device === device && attachment.pasid === pasid);
    assert(index >= 0, `domain ${this.id} is not attached to ${device.device.name} with PASID ${pasid}`);
    this.attachments.splice(index, 1);
  }

  /** Returns the frames of the tables. */
  destroy(): void {
    assert(this.attachments.length === 0, `domain ${this.id} freed while attached`);
    this.table?.destroy();
  }

  private requireTable(): PageTable {
    if (this.table === undefined) throw new Errno('EINVAL', `domain ${this.id} (${this.type}) takes no mappings`);
    return this.table;
  }
}
