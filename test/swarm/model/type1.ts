/**
 * What a container's IOMMU does (C7–C10, V1–V3, E28, E29, E33, X1, X2, Y1). Each call either refuses, with the errnos that may be
 * named, and changes nothing, or happens.
 */
import type { ErrnoName } from '../../../sim/errno.js';
import { DMA_ENTRIES, INTERRUPT_WINDOW } from './facts.js';
import type { Backing, Frame, Mapping, ModelContainer, ModelDomain, ModelGroup, ModelMdev, ModelMm, ModelProcess, State } from './state.js';

/** Errnos of which the call may name any; undefined: it happens. */
export type Refusal = readonly ErrnoName[] | undefined;

export interface MapRequest {
  readonly start: number;
  readonly pages: number;
  /** Bytes by which iova, size or vaddr are no whole pages. */
  readonly odd: number;
  readonly vaddr: number;
  /** Absolute page of the arena's start. */
  readonly arena: number;
  readonly read: boolean;
  readonly write: boolean;
}

export interface UnmapRequest {
  readonly start: number;
  readonly pages: number;
  readonly odd: number;
  readonly all: boolean;
}

const ALL_PAGES = 2 ** 52;

export class Type1Rules {
  private readonly state: State;

  constructor(state: State) {
    this.state = state;
  }

  // --- groups (C7) ---------------------------------------------------------------------------------------------

  backingOf(group: ModelGroup): Backing {
    if (group.functions.length > 0) return 'function';
    const { parent } = group.devices[0]!.mdev!;
    if (parent.facts.bdf === undefined) return 'vendor';
    return this.state.function(parent.facts.bdf).aux ? 'aux' : 'parent';
  }

  private unitOf(group: ModelGroup): ModelDomain['unit'] {
    return (group.functions[0] ?? this.state.function(group.devices[0]!.mdev!.parent.facts.bdf!)).facts.unit;
  }

  /** Requests without PASID never reach the interrupt window's translation. */
  private reserves(group: ModelGroup): boolean {
    return group.backing === 'function' || group.backing === 'parent';
  }

  attach(container: ModelContainer, group: ModelGroup): Refusal {
    group.backing = this.backingOf(group);
    const refusal = this.attachRefusal(container, group);
    if (refusal !== undefined) {
      group.backing = undefined;
      return refusal;
    }
    if (group.backing === 'vendor') return undefined;
    const unit = this.unitOf(group);
    let domain = container.domains.find((one) => one.unit === unit);
    if (domain === undefined) container.domains.push((domain = { unit, groups: [] }));
    domain.groups.push(group);
    for (const mapping of container.mappings) mapping.frames ??= this.pinned(mapping);
    return undefined;
  }

  private attachRefusal(container: ModelContainer, group: ModelGroup): Refusal {
    const { backing } = group;
    if (backing === 'vendor') return undefined;
    const unit = this.unitOf(group);
    const found = new Set<ErrnoName>();
    if (container.type === 6 && !unit.nests) found.add('ENODEV');
    if (!unit.remapsInterrupts) found.add('EPERM');
    // E24
    if (backing === 'function' && group.functions.some(({ aux }) => aux)) found.add('EPERM');
    // one domain translates all requests of the function already
    if (backing === 'parent' && this.wholeFunctionTaken(group)) found.add('EBUSY');
    for (const { start, end } of container.mappings) {
      if (end > unit.endPage) found.add('EINVAL');
      if (this.reserves(group) && start < INTERRUPT_WINDOW.end && end > INTERRUPT_WINDOW.start) found.add('EINVAL');
    }
    if (found.size > 0) return [...found];
    const replay = this.replayRefusal(container);
    if (replay !== undefined && !container.domains.some((one) => one.unit === unit)) return replay;
    for (const mm of container.binds) {
      const refusal = mm.alive ? this.bindRefusal(group) : undefined;
      if (refusal !== undefined) return refusal;
    }
    return undefined;
  }

  private wholeFunctionTaken(group: ModelGroup): boolean {
    const { parent } = group.devices[0]!.mdev!;
    return this.state.groups.some((other) => other !== group && other.backing === 'parent' && other.devices[0]?.mdev?.parent === parent);
  }

  /** Pages that were only recorded are pinned when an IOMMU comes. */
  private replayRefusal(container: ModelContainer): Refusal {
    const charged = new Map<ModelMm, number>();
    for (const mapping of container.mappings) {
      if (mapping.frames !== undefined) continue;
      const before = charged.get(mapping.mm) ?? 0;
      const refusal = this.pinRefusal(mapping, before);
      if (refusal !== undefined) return refusal;
      charged.set(mapping.mm, before + (mapping.end - mapping.start) - mapping.vendor.size);
    }
    return undefined;
  }

  /** The last group takes every mapping, pin, bond and domain with it. */
  detach(container: ModelContainer, group: ModelGroup): void {
    const domain = container.domains.find(({ groups }) => groups.includes(group));
    group.backing = undefined;
    for (const { function: fn, mdev } of group.devices) {
      if (mdev !== undefined && mdev.pins.size > 0) throw new Error(`the model left pins of ${mdev.uuid} behind`);
      if (fn !== undefined && container.type === undefined) throw new Error('the model detached without an IOMMU');
    }
    if (domain !== undefined) {
      domain.groups.splice(domain.groups.indexOf(group), 1);
      if (domain.groups.length === 0) container.domains.splice(container.domains.indexOf(domain), 1);
    }
    const left = container.groups.filter((other) => other !== group && other.backing !== undefined);
    if (left.length === 0) container.mappings = [];
    if (container.domains.length > 0) return;
    container.binds.clear();
    // without an IOMMU mappings are only recorded; what drivers pinned stays pinned
    for (const mapping of container.mappings) mapping.frames = undefined;
  }

  // --- mappings (C8, C9) ---------------------------------------------------------------------------------------

  locked(mm: ModelMm): number {
    let pages = 0;
    for (const { mappings } of this.state.containers) {
      for (const mapping of mappings) if (mapping.mm === mm) pages += mapping.frames === undefined ? mapping.vendor.size : mapping.end - mapping.start;
    }
    return pages;
  }

  /** Page by page, as the kernel pins: what is met first decides. */
  private pinRefusal({ mm, start, end, vaddr, write, vendor }: Mapping, alreadyCharged = 0): Refusal {
    let locked = this.locked(mm) + alreadyCharged;
    for (let page = start; page < end; page++) {
      if (!mm.alive) return ['EFAULT', 'ENODEV'];
      const at = vaddr + (page - start);
      if (!(write ? mm.writes(at) : mm.reads(at))) return ['EFAULT'];
      if (vendor.has(page)) continue;
      if (!mm.rights.root && locked + 1 > mm.rights.limit) return ['ENOMEM'];
      locked++;
    }
    return undefined;
  }

  private pinned({ mm, start, end, vaddr }: Mapping): Frame[] {
    return Array.from({ length: end - start }, (_, i) => mm.frames[vaddr + i]!);
  }

  map(container: ModelContainer, caller: ModelProcess, request: MapRequest): Refusal {
    const { start, pages, odd, vaddr, arena, read, write } = request;
    if ((!read && !write) || odd !== 0 || pages === 0) return ['EINVAL'];
    const end = start + pages;
    if (end > ALL_PAGES || arena + vaddr + pages > ALL_PAGES) return ['EINVAL'];
    if (container.mappings.some((other) => other.start < end && other.end > start)) return ['EEXIST'];
    if (container.mappings.length >= DMA_ENTRIES) return ['ENOSPC'];
    if (!this.valid(container, start, end)) return ['EINVAL'];
    const mapping: Mapping = { start, end, vaddr, read, write, mm: caller.mm, frames: undefined, vendor: new Map() };
    if (container.domains.length > 0) {
      const refusal = this.pinRefusal(mapping);
      if (refusal !== undefined) return refusal;
      mapping.frames = this.pinned(mapping);
    }
    container.mappings.push(mapping);
    container.mappings.sort((a, b) => a.start - b.start);
    return undefined;
  }

  private valid({ domains }: ModelContainer, start: number, end: number): boolean {
    return domains.every(({ unit, groups }) => {
      const reserved = groups.some((group) => this.reserves(group));
      return end <= unit.endPage && !(reserved && start < INTERRUPT_WINDOW.end && end > INTERRUPT_WINDOW.start);
    });
  }

  /** Pages that may be mapped, half-open, and how many mappings may still be made (GET_INFO); no ranges without an IOMMU. */
  info({ domains, mappings }: ModelContainer): { readonly ranges: readonly (readonly [number, number])[] | undefined; readonly available: number } {
    const available = DMA_ENTRIES - mappings.length;
    if (domains.length === 0) return { ranges: undefined, available };
    const end = Math.min(...domains.map(({ unit }) => unit.endPage));
    const reserved = domains.some(({ groups }) => groups.some((group) => this.reserves(group)));
    return { ranges: reserved ? [[0, INTERRUPT_WINDOW.start], [INTERRUPT_WINDOW.end, end]] : [[0, end]], available };
  }

  /** Pages unmapped, or a refusal. */
  unmap(container: ModelContainer, caller: ModelProcess, { start, pages, odd, all }: UnmapRequest): number | readonly ErrnoName[] {
    if (all ? start !== 0 || pages !== 0 || odd !== 0 : odd !== 0 || pages === 0 || start + pages > ALL_PAGES) return ['EINVAL'];
    const from = all ? 0 : start, to = all ? ALL_PAGES : start + pages;
    const touched = container.mappings.filter((mapping) => mapping.start < to && mapping.end > from);
    // E29: version 2 cuts nothing
    if (container.v2 && touched.some((mapping) => mapping.start < from || mapping.end > to)) return ['EINVAL'];
    let unmapped = 0;
    for (const mapping of touched) {
      if (mapping.start < from || mapping.mm !== caller.mm) break;
      // drivers that pinned are told and give their pages back
      for (const mdev of this.listeners(container)) this.unpinIn(container, mdev, mapping.start, mapping.end);
      container.mappings.splice(container.mappings.indexOf(mapping), 1);
      unmapped += mapping.end - mapping.start;
    }
    return unmapped;
  }

  /** Mediated devices in the container whose drivers listen to unmaps. */
  listeners(container: ModelContainer): ModelMdev[] {
    return container.groups.flatMap(({ devices }) => devices).flatMap(({ mdev, users }) => (mdev?.parent.facts.name === 'vendor' && users > 0 ? [mdev] : []));
  }

  // --- pins of vendors' drivers (C10) -----------------------------------------------------------------------------

  pin(mdev: ModelMdev, pages: readonly number[], wants: { readonly read: boolean; readonly write: boolean }): Refusal {
    const { group } = mdev.device;
    const { container } = group;
    if (container?.type === undefined) return ['EINVAL'];
    if (!container.v2) return ['EACCES'];
    if (this.listeners(container).length === 0) return ['EINVAL'];
    const done: number[] = [];
    for (const page of pages) {
      const refusal = this.pinOne(container, page, wants);
      if (refusal !== undefined) {
        for (const undo of done) this.unpinOne(container, undo);
        return refusal;
      }
      done.push(page);
    }
    for (const page of pages) mdev.pins.set(page, (mdev.pins.get(page) ?? 0) + 1);
    return undefined;
  }

  private pinOne(container: ModelContainer, page: number, wants: { readonly read: boolean; readonly write: boolean }): Refusal {
    const mapping = container.mappings.find(({ start, end }) => page >= start && page < end);
    if (mapping === undefined) return ['EINVAL'];
    const { mm, write } = mapping;
    if ((wants.read && !mapping.read) || (wants.write && !write)) return ['EPERM'];
    const known = mapping.vendor.get(page);
    if (known !== undefined) {
      known.references++;
      return undefined;
    }
    if (!mm.alive) return ['ENODEV'];
    const at = mapping.vaddr + (page - mapping.start);
    if (!(write ? mm.writes(at) : mm.reads(at))) return ['EFAULT'];
    if (mapping.frames === undefined && !mm.rights.root && this.locked(mm) + 1 > mm.rights.limit) return ['ENOMEM'];
    mapping.vendor.set(page, { frame: mm.frames[at]!, references: 1 });
    return undefined;
  }

  private unpinOne(container: ModelContainer, page: number): void {
    const mapping = container.mappings.find(({ start, end }) => page >= start && page < end);
    const pin = mapping?.vendor.get(page);
    if (mapping === undefined || pin === undefined) throw new Error(`the model unpins ${page}, which is not pinned`);
    if (--pin.references === 0) mapping.vendor.delete(page);
  }

  /** The driver gives back some of its own pins. */
  unpin(container: ModelContainer, mdev: ModelMdev, page: number): void {
    this.unpinOne(container, page);
    const left = mdev.pins.get(page)! - 1;
    if (left > 0) mdev.pins.set(page, left);
    else mdev.pins.delete(page);
  }

  /** Everything that the driver pinned in a range, or at all. */
  unpinIn(container: ModelContainer, mdev: ModelMdev, start = 0, end = ALL_PAGES): void {
    for (const [page, count] of Array.from(mdev.pins)) {
      if (page < start || page >= end) continue;
      for (let i = 0; i < count; i++) this.unpin(container, mdev, page);
    }
  }

  // --- shared address spaces (V1–V3) -------------------------------------------------------------------------------

  private bindRefusal(group: ModelGroup): Refusal {
    // E3, B3; a mediated device sends no requests of its own
    if (group.backing !== 'function') return ['ENODEV'];
    if (group.functions.length > 1) return ['EINVAL'];
    return this.unitOf(group).sharesAddressSpaces ? undefined : ['ENODEV', 'EINVAL'];
  }

  bind(container: ModelContainer, mm: ModelMm): Refusal {
    if (container.domains.length === 0) return ['EINVAL'];
    if (container.binds.has(mm)) return undefined;
    const each = container.domains.flatMap(({ groups }) => groups).map((group) => this.bindRefusal(group));
    // what was bound first is undone, but an address space that had a bond once keeps its PASID (M7)
    if (each[0] === undefined) mm.bound = true;
    const found = each.flatMap((refusal) => refusal ?? []);
    if (found.length > 0) return found;
    container.binds.add(mm);
    mm.bound = true;
    return undefined;
  }

  unbind(container: ModelContainer, mm: ModelMm): Refusal {
    return container.binds.delete(mm) ? undefined : ['ESRCH'];
  }
}
