/**
 * A guest's buffer on its way to a device: guest-virtual → guest-physical through the guest process's page table,
 * guest-physical → VMM virtual through a memory slot, VMM virtual → host-physical through the VMM's page table; and
 * beside it what the device does: the guest-physical address is its IOVA, which the IOMMU translates.
 */
import { walkEntries } from '../host/page-table/walk.js';
import { X86_64 } from '../host/page-table/x86-64.js';
import { ACCESS_READ, NO_PASID } from '../host/pci/dma-port.js';
import type { Mm } from '../host/mm/mm.js';
import type { PhysicalMemory } from '../sim/memory.js';
import { walk, type Inspectable, type WalkReport, type WalkReportStep, type WalkTarget } from './inspect.js';
import type { Guest } from './guests/guest.js';
import { unknownName } from './topology/problems.js';
import { formatSize } from './topology/units.js';

/** A sentence when process, buffer or device are unknown, or the guest is not there. */
export function walkGuest(machine: Inspectable, guest: Guest, deviceName: string | undefined, target: WalkTarget): WalkReport | string {
  const { world, vmm, process: vmmProcess } = guest;
  if (world === undefined || vmm === undefined || vmmProcess === undefined || !guest.alive || guest.state === 'starting') return `guest ${guest.name} is ${guest.state} at this moment; --at names another`;
  if (typeof target.pasid !== 'string') return `in a guest the part in the middle is a process, such as ${guest.name}/${[...world.programs.keys()][0] ?? 'app'}/…; its devices' PASIDs are the host's`;
  const program = world.programs.get(target.pasid);
  if (program === undefined) return unknownName(`process of ${guest.name}`, target.pasid, [...world.programs.keys()]);
  if (program.exited) return `process ${program.name} of ${guest.name} has ended at this moment; --at names another`;
  const device = guest.deviceFor(deviceName);
  if (typeof device === 'string') return device;
  let address: bigint;
  if (typeof target.address === 'bigint') ({ address } = target as { address: bigint });
  else {
    const base = program.addressOf(target.address.buffer);
    if (base === undefined) return `process ${program.name} of ${guest.name} has no buffer "${target.address.buffer}" at this moment`;
    address = BigInt(base + target.address.offset);
  }
  const steps: WalkReportStep[] = [];
  const report = (rest: Partial<WalkReport>): WalkReport => ({
    device: `${guest.name}/${program.name} through ${device.name}`, pasid: device.pasid === NO_PASID ? undefined : device.pasid, address, steps,
    physical: undefined, pages: 1, read: false, write: false, execute: false, reason: 0, text: '', ...rest,
  });
  const gpa = tableSteps(steps, 'guest', 'guest-virtual → guest-physical (entries at guest-physical addresses)', vmm.memory, program.process.mm, Number(address));
  if (gpa === undefined) return report({ text: 'the guest process has no page there' });
  const slot = vmm.translate(gpa);
  if (slot === undefined) return report({ text: `guest-physical 0x${gpa.toString(16)} is no memory of the guest` });
  const { slot: number, hva } = slot;
  const { start, end, hva: userspace } = vmm.ram.find((block) => block.slot === number)!;
  steps.push({
    stage: 'guest-physical → VMM virtual', what: `memory slot ${number}`, level: 0, address: start, qwords: [],
    text: `${formatSize(end - start)} at guest-physical 0x${start.toString(16)} are VMM virtual 0x${userspace.toString(16)}; 0x${gpa.toString(16)} → 0x${hva.toString(16)}`,
  });
  const hpa = tableSteps(steps, 'VMM', 'VMM virtual → host-physical', vmmProcess.mm.memory, vmmProcess.mm, hva);
  if (hpa === undefined) return report({ text: 'the VMM has no page there yet' });
  if (device.sourceId === undefined) {
    steps.push({ stage: 'as the device goes', what: 'pinned on demand', level: 0, address: gpa, qwords: [], text: 'no IOMMU: the parent pins this page in the container of the VMM for each transfer' });
    return report({ physical: BigInt(hpa), read: true, write: true });
  }
  const { page, steps: own, ...rest } = machine.explainWalk(device.sourceId, device.pasid, Math.floor(gpa / 4096), ACCESS_READ);
  for (const step of own) steps.push({ ...step, stage: `IOVA 0x${gpa.toString(16)} → host-physical, as the device goes (PASID ${device.pasid === NO_PASID ? 'none' : device.pasid})` });
  return report({ ...rest, physical: page === undefined ? undefined : BigInt(page) * 4096n + BigInt(gpa % 4096) });
}

/** An I/O virtual address of a mediated device: its parent's requests, under the PASID of its aux domain. A sentence when there is none at this moment. */
export function walkMdev(machine: Inspectable, mdev: { readonly name: string; readonly parent: string; readonly pasid: number | undefined }, target: WalkTarget): WalkReport | string {
  const { name, parent, pasid } = mdev;
  if (target.pasid !== undefined || typeof target.address !== 'bigint') return `a mediated device has one PASID, its aux domain's: ${name}/-/0x… walks an I/O virtual address`;
  if (!machine.deviceNames.includes(parent)) return `no IOMMU isolates ${name}: ${parent} pins its pages itself`;
  if (pasid === undefined) return `${name} has no aux domain at this moment: nobody has it open in a container; --at names another`;
  return walk(machine, { device: parent, pasid, address: target.address });
}

/** Adds the entries of an x86-64 walk; the physical address at its end. */
function tableSteps(steps: WalkReportStep[], what: string, stage: string, memory: PhysicalMemory, mm: Mm, address: number): number | undefined {
  const entries = walkEntries(memory, X86_64, mm.pgd, mm.levels, Math.floor(address / 4096));
  for (const { level, address: at, entry, flags, leaf, present, physical } of entries) {
    const to = present ? [`${leaf ? 'page' : 'table'} 0x${physical.toString(16)}`] : [];
    steps.push({ stage, what, level, address: at, qwords: entry === undefined ? [] : [entry], text: [...flags, ...to].join(' ') });
  }
  const last = entries.at(-1);
  if (last === undefined || !last.leaf || !last.present) return undefined;
  return last.physical + (address % (4096 * 512 ** last.level));
}
