/**
 * Groups that enter and leave a container (C7; vfio_iommu_type1_attach_group and _detach_group, v5.10): which domain
 * translates their requests, and what becomes of the container's mappings.
 *
 * A group of a mediated device is translated through the device that carries its requests (Y1), by an aux domain where
 * AUX is enabled on it; without such a device nothing translates, and the vendor's driver pins pages.
 */
import { hexPage } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import type { IommuDomain } from '../../iommu/core/ops.js';
import type { ContainerGroup } from '../iommu-driver.js';
import { mapRuns, pinMapping, removeMapping, reportVendorPins, unmapAndUnpin, unpinMapping } from './backing.js';
import { endBinds, forgetBinds, replayBinds } from './binds.js';
import type { DmaMapping } from './dma-list.js';
import { validRanges, type PageRange } from './iova-ranges.js';
import type { AttachedGroup, Backing, ContainerDomain, ContainerState, Type1Context } from './state.js';

/**
 * EINVAL the group is here already; EPERM its DMA is somebody else's; EIO no domain; ENODEV nested translation wanted and missing; EINVAL mappings
 * that the new IOMMU cannot hold; EPERM interrupts not remapped (E33), or AUX enabled on a whole device (E24); what replay
 * or a bind fails with. Nothing has changed on failure.
 */
export function* attachGroup(state: ContainerState, group: ContainerGroup): Steps {
  if (state.find(group) !== undefined) throw new Errno('EINVAL', `group ${group.id} is in ${state.name} already`);
  const attached = newAttachment(state.context, group);
  if (attached.backing === 'external') {
    state.external.push(attached);
    traceAttach(state, attached, undefined);
    return;
  }
  yield* takeOwnership(state, attached);
  try {
    yield* attachToDomain(state, attached);
  } catch (error) {
    yield* giveOwnership(state, attached);
    throw error;
  }
}

function newAttachment({ core }: Type1Context, group: ContainerGroup): AttachedGroup {
  const parents: { device: Device; parent: Device }[] = [];
  let backing: Backing = 'group';
  if (group.iommuGroup === undefined) {
    for (const { device, iommuDevice } of group.registrations) {
      const parent = iommuDevice?.();
      if (parent !== undefined) parents.push({ device, parent });
    }
    const parent = parents[0]?.parent;
    // Y1: all of the group behind one device, or the vendor isolates
    const isolated = parent !== undefined && parents.length === group.registrations.length && parents.every((other) => other.parent === parent);
    backing = !isolated ? 'external' : core.devFeatureEnabled(parent, 'AUX') ? 'aux' : 'parent';
  }
  return {
    group, backing, iommuGroup: backing === 'parent' ? core.groupOf(parents[0]!.parent) : group.iommuGroup,
    parents: backing === 'external' ? [] : parents, claimed: false, requesters: [],
    // without an IOMMU a device reaches only what its driver pinned
    pinnedPageDirtyScope: backing === 'external', svaFeatures: [], svaEnabled: false,
  };
}

/** C6: whoever uses the container owns the group's DMA. EPERM, EBUSY. */
function* takeOwnership({ context }: ContainerState, attached: AttachedGroup): Steps {
  const { iommuGroup, group, backing } = attached;
  if (backing !== 'group' || iommuGroup!.owner === group.owner) return;
  yield* context.core.claimDmaOwner(iommuGroup!, group.owner);
  attached.claimed = true;
}

function* giveOwnership({ context }: ContainerState, attached: AttachedGroup): Steps {
  if (!attached.claimed) return;
  attached.claimed = false;
  yield* context.core.releaseDmaOwner(attached.iommuGroup!, attached.group.owner);
}

/** A device that stands for all of the group's where IOMMU drivers are asked. */
function representative(attached: AttachedGroup): Device {
  const device = attached.parents[0]?.parent ?? attached.iommuGroup?.devices[0]?.device;
  if (device === undefined) throw new Errno('ENODEV', `group ${attached.group.id} has no device`);
  return device;
}

function* attachToDomain(state: ContainerState, attached: AttachedGroup): Steps {
  const { core } = state.context;
  const device = representative(attached);
  const { ops } = core.groupOf(device);
  const fresh: ContainerDomain = { domain: allocDomain(state, device), ops, groups: [] };
  let to: ContainerDomain | undefined;
  let validIova: readonly PageRange[];
  try {
    if (state.nesting && !core.devCanNest(device)) throw new Errno('ENODEV', `${ops.name} does not nest the translation of ${device.name}`);
    validIova = checkAddresses(state, attached, fresh.domain);
    checkInterrupts(state, device);
    to = yield* attachToOneOf(state, attached, fresh);
    if (to !== fresh) core.domainFree(fresh.domain);
    else yield* replay(state, fresh.domain);
  } catch (error) {
    if (to !== undefined) yield* detachFromDomain(state, attached, to.domain);
    if (to === undefined || to === fresh) core.domainFree(fresh.domain);
    throw error;
  }
  if (to === fresh) state.domains.push(fresh);
  to.groups.push(attached);
  const before = state.validIova;
  state.validIova = validIova;
  try {
    yield* replayBinds(state, attached);
  } catch (error) {
    yield* withdraw(state, attached, to);
    state.validIova = before;
    throw error;
  }
  traceAttach(state, attached, to.domain);
}

function allocDomain({ context }: ContainerState, device: Device): IommuDomain {
  try {
    return context.core.domainAlloc(device, 'unmanaged');
  } catch (error) {
    if (!isErrno(error)) throw error;
    throw new Errno('EIO', `no domain for ${device.name}: ${error.message}`);
  }
}

/** The valid addresses with the new group. EINVAL when a mapping lies outside. */
function checkAddresses(state: ContainerState, attached: AttachedGroup, domain: IommuDomain): readonly PageRange[] {
  const endPage = Math.min(domain.endPage, ...state.domains.map((other) => other.domain.endPage));
  const reserved = reservedOf(attached);
  for (const mapping of state.mappings) {
    if (mapping.end > endPage) {
      throw new Errno('EINVAL', `${state.name} maps up to ${hexPage(mapping.end - 1)}, beyond the ${hexPage(endPage)} of group ${attached.group.id}`);
    }
    const hole = reserved.find(({ start, end }) => mapping.page < end && mapping.end > start);
    if (hole !== undefined) {
      throw new Errno('EINVAL', `${state.name} maps [${hexPage(mapping.page)}, ${hexPage(mapping.end)}), of which group ${attached.group.id} reserves [${hexPage(hole.start)}, ${hexPage(hole.end)})`);
    }
  }
  const valid = rangesOf(state, endPage, reserved);
  if (valid.length === 0) throw new Errno('EINVAL', `group ${attached.group.id} leaves no address to map`);
  return valid;
}

/** What the group's requests never reach translation with. Requests with a PASID have no such ranges (VT-d 4.1, section 3.14). */
function reservedOf({ backing, iommuGroup }: AttachedGroup): PageRange[] {
  if (backing === 'aux' || iommuGroup === undefined) return [];
  return iommuGroup.devices.flatMap(({ probed }) => probed.reserved.map(({ firstPage, endPage }) => ({ start: firstPage, end: endPage })));
}

function rangesOf(state: ContainerState, endPage: number, more: readonly PageRange[]): PageRange[] {
  return validRanges(endPage, [...more, ...state.domains.flatMap(({ groups }) => groups.flatMap(reservedOf))]);
}

/** E33. */
function checkInterrupts({ context }: ContainerState, device: Device): void {
  const { parts, allowUnsafeInterrupts } = context;
  if (allowUnsafeInterrupts || (parts.interruptRemapping?.(device) ?? false)) return;
  const text = `No interrupt remapping support for ${device.name}: a device of a user could send any interrupt. Use the option "allow-unsafe-interrupts" to attach it nevertheless`;
  parts.log.limited('vfio_iommu_type1 attach', 'warn', `vfio_iommu_type1_attach_group: ${text}`);
  throw new Errno('EPERM', text);
}

/** The first compatible domain of the container that takes the group, else the fresh one. Errors of the last that was tried. */
function* attachToOneOf(state: ContainerState, attached: AttachedGroup, fresh: ContainerDomain): Steps<ContainerDomain> {
  for (const candidate of state.domains) {
    if (!compatible(candidate, fresh)) continue;
    try {
      yield* attachDevices(state, attached, candidate.domain);
      return candidate;
    } catch (error) {
      if (!isErrno(error)) throw error;
    }
  }
  yield* attachDevices(state, attached, fresh.domain);
  return fresh;
}

function compatible(one: ContainerDomain, other: ContainerDomain): boolean {
  const a = one.domain, b = other.domain;
  return one.ops === other.ops && a.endPage === b.endPage && a.pageSizes.length === b.pageSizes.length && a.pageSizes.every((size, i) => size === b.pageSizes[i]);
}

function* attachDevices(state: ContainerState, attached: AttachedGroup, domain: IommuDomain): Steps {
  const { core } = state.context;
  if (attached.backing !== 'aux') {
    yield* core.attachGroup(domain, attached.iommuGroup!);
    noteRequesters(state, attached, attached.iommuGroup!.devices.map(({ device }) => ({ device, pasid: NO_PASID })));
    return;
  }
  const done: Device[] = [];
  try {
    for (const { parent } of attached.parents) {
      yield* core.auxAttach(domain, parent);
      done.push(parent);
    }
  } catch (error) {
    for (const parent of done.reverse()) yield* core.auxDetach(domain, parent);
    throw error;
  }
  noteRequesters(state, attached, [{ device: done[0]!, pasid: core.auxGetPasid(domain, done[0]!) }]);
}

function* detachFromDomain(state: ContainerState, attached: AttachedGroup, domain: IommuDomain): Steps {
  const { core } = state.context;
  if (attached.backing !== 'aux') yield* unlessGone(core.detachGroup(domain, attached.iommuGroup!));
  else for (const { parent } of attached.parents.toReversed()) yield* unlessGone(core.auxDetach(domain, parent));
  forgetRequesters(state, attached);
}

/** A device that has left its bus took its attachments along. */
function* unlessGone(detach: Steps): Steps {
  try {
    yield* detach;
  } catch (error) {
    if (!isErrno(error, 'ENODEV') && !isErrno(error, 'EINVAL')) throw error;
  }
}

/**
 * Pins what is only recorded, and maps everything in a new domain. Nothing has changed on failure: EFAULT, ENOMEM.
 * Marks are set at the end, when nothing can fail any more.
 */
function* replay(state: ContainerState, domain: IommuDomain): Steps {
  const pinned: DmaMapping[] = [], mapped: DmaMapping[] = [];
  try {
    for (const mapping of state.mappings) {
      if (!mapping.iommuMapped) {
        yield* pinMapping(state, mapping);
        pinned.push(mapping);
      }
      yield* mapRuns(state, mapping, domain);
      mapped.push(mapping);
    }
  } catch (error) {
    if (state.context.skipReplayRollback) throw error;
    for (const mapping of mapped) yield* state.context.core.unmap(domain, mapping.page, mapping.pages);
    for (const mapping of pinned) unpinMapping(state, mapping);
    throw error;
  }
  for (const mapping of pinned) mapping.iommuMapped = true;
}

/** The last group takes every mapping, pin, bind and domain with it. EINVAL the group is not here. */
export function* detachGroup(state: ContainerState, group: ContainerGroup): Steps {
  const attached = state.find(group);
  if (attached === undefined) throw new Errno('EINVAL', `group ${group.id} is not in ${state.name}`);
  const external = state.external.indexOf(attached);
  if (external >= 0) {
    traceDetach(state, attached, undefined);
    state.external.splice(external, 1);
    if (state.external.length === 0 && state.domains.length === 0) yield* removeAllMappings(state);
  } else {
    const from = state.domains.find(({ groups }) => groups.includes(attached))!;
    traceDetach(state, attached, from.domain);
    yield* withdraw(state, attached, from);
  }
  for (const { device } of group.registrations) state.notifiers.delete(device);
  if (state.notifiers.size === 0) endVendorPins(state);
}

/** No driver is left that could give its pages back. */
function endVendorPins(state: ContainerState): void {
  for (const mapping of state.mappings) reportVendorPins(state, mapping);
}

/** Undoes an attachment to a domain; the last group of a domain ends it, the last domain unpins. */
function* withdraw(state: ContainerState, attached: AttachedGroup, from: ContainerDomain): Steps {
  yield* endBinds(state, attached);
  yield* detachFromDomain(state, attached, from.domain);
  from.groups.splice(from.groups.indexOf(attached), 1);
  if (from.groups.length === 0) yield* endDomain(state, from);
  state.validIova = state.domains.length === 0 ? [] : rangesOf(state, Math.min(...state.domains.map(({ domain }) => domain.endPage)), []);
  yield* giveOwnership(state, attached);
}

function* endDomain(state: ContainerState, ending: ContainerDomain): Steps {
  const { core } = state.context;
  const last = state.domains.length === 1;
  if (last) {
    forgetBinds(state);
    // other groups go on without an IOMMU: what is mapped stays recorded, what their drivers pinned stays pinned
    if (state.external.length === 0) yield* removeAllMappings(state);
    else for (const mapping of state.mappings) if (mapping.iommuMapped) yield* unmapAndUnpin(state, mapping);
  } else {
    for (const mapping of state.mappings) yield* core.unmap(ending.domain, mapping.page, mapping.pages);
  }
  state.domains.splice(state.domains.indexOf(ending), 1);
  core.domainFree(ending.domain);
}

/** Every mapping with its pins; from the end, where taking one out of the list moves no others. */
export function* removeAllMappings(state: ContainerState): Steps {
  for (let mapping = state.mappings.last; mapping !== undefined; mapping = state.mappings.last) yield* removeMapping(state, mapping);
}

/** The aux domain's PASID of a mediated device of the container. */
export function pasidOf(state: ContainerState, device: Device): number | undefined {
  for (const { groups } of state.domains) {
    for (const attached of groups) if (attached.parents.some((one) => one.device === device)) return attached.requesters.find(({ pasid }) => pasid !== NO_PASID)?.pasid;
  }
  return undefined;
}

/** Two mediated devices of one parent in one container have one PASID: its requests are told of once. */
function noteRequesters(state: ContainerState, attached: AttachedGroup, requesters: AttachedGroup['requesters']): void {
  const { trace } = state.context;
  for (const { device, pasid } of requesters) {
    if (!reaches(state, device, pasid)) trace?.trace.record(trace.containerDevice, 0, state.number, trace.nameOf(device), pasid);
  }
  attached.requesters = requesters;
}

function forgetRequesters(state: ContainerState, attached: AttachedGroup): void {
  const { trace } = state.context;
  const { requesters } = attached;
  attached.requesters = [];
  for (const { device, pasid } of requesters) {
    if (!reaches(state, device, pasid)) trace?.trace.record(trace.containerDeviceEnd, 0, state.number, trace.nameOf(device), pasid);
  }
}

function reaches(state: ContainerState, device: Device, pasid: number): boolean {
  for (const attached of state.groups()) if (attached.requesters.some((one) => one.device === device && one.pasid === pasid)) return true;
  return false;
}

function traceAttach({ context, number }: ContainerState, { group }: AttachedGroup, domain: IommuDomain | undefined): void {
  context.trace?.trace.record(context.trace.attachGroup, 0, number, group.id, domain?.id ?? 0);
}

function traceDetach({ context, number }: ContainerState, { group }: AttachedGroup, domain: IommuDomain | undefined): void {
  context.trace?.trace.record(context.trace.detachGroup, 0, number, group.id, domain?.id ?? 0);
}
