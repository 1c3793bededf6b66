/**
 * Lines from boot and from drivers that decide whether DMA remapping, passthrough and SVA work
 * (drivers/iommu/intel/{dmar,iommu,svm,irq_remapping}.c, drivers/iommu/iommu.c, drivers/dma/idxd/init.c of Linux).
 */
import { decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import type { Finding } from './log-finding.js';
import { capabilityNames } from './unit-state.js';

interface BootPattern {
  readonly pattern: RegExp;
  readonly kind: string;
  readonly title: (match: RegExpExecArray) => string;
  readonly what: (match: RegExpExecArray) => string;
  readonly causes?: readonly string[];
  readonly routine?: boolean;
  readonly device?: (match: RegExpExecArray) => string | undefined;
}

const BDF = /\b((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])\b/i;
const RANGE = String.raw`\[(?:0x)?([0-9a-f]{1,16})\s?-\s?(?:0x)?([0-9a-f]{1,16})\]`;

const PATTERNS: readonly BootPattern[] = [
  rule(/(\S+)\s+SVM disabled, incompatible 1GB page capability/i, 'sva', 'SVA is off: 1 GiB pages', (m) => `The CPU uses 1 GiB pages, and ${m[1]} cannot walk them (CAP.FS1GP is clear). Processes' page tables can therefore not be shared with devices behind it.`,
    ['a hypervisor that exposes pdpe1gb to the guest but no FS1GP in its virtual IOMMU', 'an IOMMU without first-level 1 GiB pages']),
  rule(/(\S+)\s+SVM disabled, incompatible paging mode/i, 'sva', 'SVA is off: 5-level paging', (m) => `The CPU runs with 5 page table levels, and ${m[1]} walks only 4 (CAP.FS5LP is clear). Processes' page tables can therefore not be shared with devices behind it.`,
    ['boot with no5lvl, or turn 57-bit addresses off in the hypervisor (la57)']),
  rule(/Unable to turn on (?:user )?SVA feature/i, 'sva', 'SVA could not be enabled for the device', () => 'The driver asked for shared virtual addressing and was refused. Every link is needed: scalable mode and first-level translation in the IOMMU, and PASID, ATS and PRI enabled in the device.',
    ['the kernel runs without scalable mode: intel_iommu=on,sm_on is missing, or the unit has none (see its ecap)', 'the device lacks PRI or PASID, or sits behind a bridge or in a guest that hides them', 'the IOMMU is off, or the device\'s default domain does not allow it']),
  rule(/Failed to enable PASID\. No SVA support|No in-kernel DMA with PASID|iommu sva bind failed/i, 'sva', 'no PASID for the driver itself', () => 'The driver could not get a PASID for kernel work; user processes may still get theirs.', ['the IOMMU has no PASIDs or runs in legacy mode', 'ENQCMD or supervisor PASIDs are not supported by this kernel']),
  rule(/User forced SVA off via module param/i, 'sva', 'SVA was turned off by hand', () => 'The driver was loaded with sva=0.'),
  rule(/Passthrough IOMMU for (.{1,60})/i, 'passthrough', 'a device is not translated', (m) => `A quirk gives ${m[1]!.trim()} an identity mapping: the IOMMU neither protects against it nor translates for it.`, ['the device has an MMU of its own whose tables the DMA API does not see']),
  rule(/Default domain type: (Passthrough|Translated|Unmanaged)(?: \((.{1,60})\))?/i, 'default-domain', (m) => `default domain: ${m[1]!.toLowerCase()}`, (m) => (m[1]!.toLowerCase() === 'passthrough'
    ? 'Devices reach all physical memory without translation until something else is attached: DMA faults of kernel drivers will hardly be seen, VFIO still works.'
    : 'Kernel drivers\' DMA is translated: a device reaches only what its driver mapped.'), [], true),
  rule(/Device is ineligible for IOMMU domain attach due to platform RMRR requirement/i, 'rmrr', 'passthrough refused: reserved memory (RMRR)', () => 'Firmware says in the DMAR table that this device needs memory mapped one to one. The kernel does not give such a device away.',
    ['a BIOS option for shared memory or remote management of that slot (HP: HPSA and iLO health monitoring), to be turned off with the vendor\'s tool', 'firmware lists more devices than need it: look for an update']),
  rule(/Firmware has requested this device have a 1:1 IOMMU mapping/i, 'rmrr', 'passthrough refused: one-to-one mapping', () => 'Firmware asks for memory that stays mapped one to one for this device (RMRR on Intel, IVMD on AMD). The kernel does not give such a device away.',
    ['a firmware setting such as pre-boot DMA protection', 'firmware lists whole ranges of devices: look for an update']),
  rule(new RegExp(`No firmware reserved region can cover this RMRR ${RANGE}`, 'i'), 'rmrr', 'RMRR outside reserved memory', (m) => `The DMAR table reserves 0x${m[1]}–0x${m[2]} for a device, but the memory map does not mark it reserved. The kernel maps it nevertheless; whoever allocates that memory shares it with the device.`, ['a firmware bug; harmless when the region is ACPI NVS or ACPI data']),
  rule(new RegExp(`Your BIOS is broken; bad RMRR ${RANGE}`, 'i'), 'rmrr', 'malformed RMRR', (m) => `The reserved range 0x${m[1]}–0x${m[2]} of the DMAR table is not page-aligned, is empty, or is not reserved in the memory map.`, ['a firmware bug']),
  rule(/Setting identity map for device (\S+) \[(?:0x)?([0-9a-f]+) - (?:0x)?([0-9a-f]+)\]/i, 'rmrr', 'one-to-one mapping for a device', (m) => `0x${m[2]}–0x${m[3]} is mapped one to one for ${m[1]}, as firmware or a workaround asks.`, [], true),
  rule(/Your BIOS is broken; DMAR reported at address (?:0x)?([0-9a-f]+)?\s?(returns all ones|zero)/i, 'firmware', 'the DMAR table names a unit that is not there', (m) => (m[2]!.startsWith('z') ? 'The DMAR table gives address 0 for a unit.' : `Nothing answers at 0x${m[1]}, where the DMAR table places a unit; the kernel gives up on DMA remapping.`), ['VT-d is off in firmware but its table is left behind', 'a firmware bug: look for an update']),
  rule(/Translation was enabled for (\S+) but we are not in kdump mode/i, 'kexec', 'translation was on at boot', (m) => `Translation of ${m[1]} was on when this kernel started, and no crash dump is going on. The kernel turned it off; DMA that was still under way ends in faults.`, ['a kexec without a clean shutdown of the IOMMU', 'firmware leaves DMA protection on (pre-boot DMA protection)']),
  rule(/IRQ remapping was enabled on (\S+) but we are not in kdump mode/i, 'kexec', 'interrupt remapping was on at boot', (m) => `Interrupts of ${m[1]} were remapped when this kernel started, and no crash dump is going on. The kernel set the table up anew; interrupts of devices that were not stopped are lost.`, ['a kexec without a clean shutdown of the IOMMU', 'firmware leaves interrupt remapping on'], true),
  rule(/Failed to setup irq remapping for (\S+)|Failed to enable irq remapping/i, 'remapping', 'interrupts are not remapped', (m) => `The table of ${m[1] ?? 'a unit'} could not be set up. Devices can send any interrupt, so VFIO gives none away unless told that this is safe (allow_unsafe_interrupts).`, ['no memory for the table', 'the units differ: all have to remap interrupts']),
  rule(/Translation already enabled - trying to copy translation structures|Copied translation tables from previous kernel for (\S+)/i, 'kexec', 'tables of the crashed kernel are kept', () => 'A crash kernel keeps the old tables, so that DMA of devices that were not stopped still lands in the old kernel\'s memory.', [], true),
  rule(/Failed to copy translation tables from previous kernel/i, 'kexec', 'tables of the crashed kernel could not be kept', () => 'Translation starts with empty tables: DMA of devices that were not stopped ends in faults until their drivers reset them.', ['scalable mode, or a mode that changed between the kernels', 'the old tables are damaged']),
  rule(/Disabling IOMMU for graphics on this chipset|Passthrough IOMMU for integrated graphics/i, 'graphics', 'integrated graphics is not translated', () => 'A quirk keeps the graphics device out of DMA remapping; it cannot be passed through to a guest.', ['known errata of this chipset']),
  rule(/Intel-IOMMU force enabled due to platform opt in/i, 'opt-in', 'the IOMMU is on although it was not asked for', () => 'Firmware announces DMA protection and there are external ports, so the kernel turned the IOMMU on; trusted devices get one-to-one mappings.', [], true),
  rule(/IOMMU feature (\S+) inconsistent/i, 'inconsistent', 'units differ in features', () => 'Not every unit has the same features (graphics often has a unit of its own). What all need is used; it is no error.', [], true),
  rule(/x2apic is disabled because BIOS sets x2apic opt out bit/i, 'x2apic', 'no x2APIC by wish of the firmware', () => 'The DMAR table forbids x2APIC; interrupt remapping works with at most 255 CPUs. intremap=no_x2apic_optout overrides it.', [], true),
  rule(/DMAR hardware is malfunctioning/i, 'hardware', 'the unit did not answer a command', () => 'A bit of GSTS did not follow GCMD within ten seconds; the kernel panics.', ['the unit is powered down or in reset', 'a virtual IOMMU does not implement the command']),
  rule(/reg_base_addr ([0-9a-f]+) ver (\d+):(\d+) cap ([0-9a-f]{1,16}) ecap ([0-9a-f]{1,16})/i, 'unit', (m) => `unit at 0x${m[1]}, version ${m[2]}.${m[3]}`, unitWords, [], true),
  rule(/DRHD base: 0x([0-9a-f]+) flags: 0x([0-9a-f]+)/i, 'unit', 'a unit of the DMAR table', (m) => `The unit at 0x${m[1]!.replace(/^0+(?=.)/, '')} serves ${(parseInt(m[2]!, 16) & 1) === 1 ? 'every device of its segment that no other unit lists' : 'the devices that the table lists'}.`, [], true),
  rule(/RMRR base: 0x([0-9a-f]+) end: 0x([0-9a-f]+)/i, 'rmrr', 'reserved memory of firmware (RMRR)', (m) => `0x${m[1]!.replace(/^0+(?=.)/, '')}–0x${m[2]!.replace(/^0+(?=.)/, '')} stays mapped one to one for the devices that the DMAR table lists.`, [], true),
  rule(/Host address width (\d+)/i, 'unit', 'host address width', (m) => `Physical addresses have ${m[1]} bits.`, [], true),
  rule(/No (ATSR|SATC|RMRR) found/i, 'firmware', (m) => `no ${m[1]!.toUpperCase()} in the DMAR table`, (m) => ({ ATSR: 'No root port is listed for ATS; only devices integrated in the root complex use it.', SATC: 'No device is announced as having a cache that must be used.', RMRR: 'No memory has to stay mapped one to one.' })[m[1]!.toUpperCase()] ?? '', [], true),
  rule(/Using Queued invalidation|Intel\(R\) Virtualization Technology for Directed I\/O|DMAR(?:-IR)?: IOMMU enabled|Enabled IRQ remapping in \S+ mode|Queued invalidation will be enabled|DMAR-IR: (?:IOAPIC|HPET) id \d+ under DRHD|Adding to iommu group \d+|TLB invalidation policy|Skip IOMMU disabling for graphics/i, 'boot', 'IOMMU set up', () => 'Set up as it should be.', [], true),
];

function unitWords(m: RegExpExecArray): string {
  const capabilities = decodeCapabilities(BigInt(`0x${m[4]!}`), BigInt(`0x${m[5]!}`));
  const sva = capabilities.scalable && capabilities.firstLevel && capabilities.pasidBits > 0;
  const missing = [!capabilities.scalable && 'scalable mode', !capabilities.firstLevel && 'first-level translation', capabilities.pasidBits === 0 && 'PASIDs'].filter((word) => word !== false);
  return `It has ${capabilityNames(capabilities).join(', ')}. ${sva ? `Shared virtual addressing is possible${capabilities.pageRequests ? '' : ', without page faults (no page requests)'}.` : `Shared virtual addressing is not possible: no ${missing.join(', no ')}.`}`;
}

function rule(
  pattern: RegExp, kind: string, title: string | ((match: RegExpExecArray) => string), what: (match: RegExpExecArray) => string, causes: readonly string[] = [], routine = false,
): BootPattern {
  return { pattern, kind, title: typeof title === 'string' ? () => title : title, what, causes, routine };
}

/** Explains a line of boot or of a driver's start; undefined for other lines. */
export function bootLine(line: string): Finding | undefined {
  for (const { pattern, kind, title, what, causes, routine } of PATTERNS) {
    const match = pattern.exec(line);
    if (match === null) continue;
    const device = routine === true ? undefined : BDF.exec(line)?.[1]?.toLowerCase();
    const heading = title(match), text = what(match);
    return {
      kind, identity: `${heading} ${device ?? ''} ${text}`, title: device === undefined ? heading : `${device}: ${heading}`, what: text,
      ...(causes === undefined || causes.length === 0 ? {} : { causes }), ...(device === undefined ? {} : { device }), ...(routine === true ? { routine } : {}),
    };
  }
  return undefined;
}
