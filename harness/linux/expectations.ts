/**
 * Which messages of a Linux kernel say that hardware or its table was wrong. Texts are those of Linux
 * drivers/iommu/intel/{dmar,iommu,prq,pasid}.c, drivers/nvme/host/pci.c, drivers/dma/idxd/{device,irq,init}.c,
 * drivers/pci/pcie/aer.c and kernel/{panic,hung_task}.c. A run that provokes an error allows its kind.
 */
import type { ComplaintKind } from './complaint-kinds.js';
import type { ConsoleReport, GuestFact, KernelLine } from './guest-report.js';

export type { ComplaintKind } from './complaint-kinds.js';

export interface Complaint extends KernelLine {
  readonly kind: ComplaintKind;
}

/** The first that fits names the kind. */
const COMPLAINTS: readonly (readonly [ComplaintKind, RegExp])[] = [
  ['panic', /Kernel panic|DMAR hardware is malfunctioning/],
  ['bug', /\bBUG\b: |kernel BUG at|\bOops\b: |general protection fault|^Call Trace:|^RIP: 0010/],
  ['warning', /\bWARNING: /],
  ['hung-task', /blocked for more than \d+ seconds|soft lockup|rcu.*(?:stall|stalls) /],
  ['fault-status', /DRHD: handling fault status reg/],
  ['dma-fault', /DMAR: \[(?:DMA |INTR-REMAP|Fault|Write|Read)/],
  ['invalidation', /VT-d detected Invalidation|DMAR: QI (?:HEAD|PRIOR):|Invalidation (?:Queue|Time-out|Completion) Error/],
  ['page-request-overflow', /PRQ overflow/],
  ['page-request', /Invalid page request|Address is not canonical|Page request in Privilege Mode|Execution request not supported|Page request without PASID/],
  ['dmar', /^DMAR: ERROR|^DMAR:.*(?:[Ff]ailed|[Ii]ncompatible|[Bb]roken|[Ii]nvalid\b|Can't|cannot|Parse DMAR table failure)|\[Firmware Bug\].*DMAR/],
  ['aer', /AER: .*(?:error|Error)|PCIe Bus Error/],
  ['nvme', /^nvme .*(?:timeout|Abort status|controller is down|not ready|Removing after probe failure|Device not ready|failed|I\/O error)|^I\/O error, dev nvme/],
  ['idxd', /^idxd .*(?:[Ff]ailed(?! to initialize perfmon)|HALT|halt|err\[|timed out|No in-kernel DMA|Unable|error|Unexpected)/],
];

/** What of the kernel's messages is a complaint; of those, what is not of an allowed kind. */
export function complaints(dmesg: readonly KernelLine[], allowed: readonly ComplaintKind[] = []): Complaint[] {
  const found: Complaint[] = [];
  for (const line of dmesg) {
    const kind = COMPLAINTS.find(([, text]) => text.test(line.text))?.[0];
    if (kind !== undefined && !allowed.includes(kind)) found.push({ kind, ...line });
  }
  return found;
}

/** Why a run of the prepared guest was not good, in sentences; none when all its steps ended and nothing failed. */
export function shortcomings(report: ConsoleReport, allowed: readonly ComplaintKind[] = []): string[] {
  const found = report.facts.filter(({ topic }) => topic === 'fail' || topic === 'timeout').map(({ text }) => `the guest: ${text}`);
  for (const { kind, seconds, text } of complaints(report.dmesg, allowed)) found.push(`its kernel, at ${seconds} s, ${kind}: ${text}`);
  if (!report.facts.some(({ topic }) => topic === 'booted')) found.push('the guest has not come as far as its first process');
  else if (!report.facts.some(({ topic }) => topic === 'done')) found.push(`the guest did not end by itself; the last it said: ${last(report.facts)}`);
  return found;
}

function last(facts: readonly GuestFact[]): string {
  return facts.at(-1)?.text ?? '';
}
