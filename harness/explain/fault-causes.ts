/**
 * For every fault reason: at which table entry the request ended, and what usually brings it about. The sentences about
 * the condition itself are those of spec/fault-reasons.ts; those that the model cannot record (0x27 and 0x28 of posted
 * interrupts, 0x7c, 0x90) have theirs here. Causes are experience, not specification: they are ordered by how often kernel
 * bug reports end there.
 */
import { faultReason } from '../../iommu/intel-vtd/spec/fault-reasons.js';

export type FaultEntry =
  | 'root table address' | 'root entry' | 'context entry' | 'PASID directory entry' | 'PASID table entry' | 'first-level entry' | 'second-level entry'
  | 'interrupt remapping entry' | 'the request itself';

export interface FaultCause {
  readonly entry: FaultEntry;
  /** Two or three short sentences. */
  readonly causes: readonly string[];
}

const UNMAPPED_EARLY = 'the driver unmapped or freed the buffer before the device had stopped using it';
const NEVER_MAPPED = 'the buffer was never mapped for this device: a missing dma_map call, or a CPU physical address given to the device';
const WRONG_DIRECTION = 'the buffer was mapped with the wrong direction, such as DMA_TO_DEVICE where the device writes';
const LONGER = 'the device was told a length or a descriptor that reaches beyond the mapped buffer';
const FIRMWARE = 'firmware still uses the device (BIOS, BMC, option ROM) and its memory is not in an RMRR';
const KEXEC = 'the device was not stopped before kexec or kdump and goes on with the old kernel\'s addresses';
const ALIAS = 'the requester id is not the device\'s own: a bridge, a phantom function or a second function issues its DMA';
const NO_ATTACH = 'no domain is attached: the device is not bound to a driver, or it was detached while DMA was under way';
const OVERWRITTEN = 'table memory was overwritten: stray DMA, a use after free, or bad RAM';
const OTHER_REVISION = 'software set bits of another revision of the specification, or of a feature that the unit does not report';
const NOT_COHERENT = 'the unit does not snoop CPU caches (ECAP.C or SMPWCS is clear) and the entry was not flushed to memory';
const NOT_RAM = 'a table pointer names an address that is not RAM: a corrupt entry or register';
const NO_SVA = 'the driver uses a PASID that was never bound to the device, or was unbound while DMA was under way';
const MODE = 'the root table address register was written with a mode that does not fit the tables or the unit';
const PASID_EARLY = 'the device sends PASIDs although PASID support was not enabled for it in the IOMMU';
const ATS_ON = 'the device has ATS enabled although the context entry does not allow it: after a reset, with a quirk, or left on by an earlier owner';
const USER_UNMAP = 'the process unmapped or never had the memory that it gave to the device';
const NO_PRI = 'the device sent an untranslated request to a page that is not present: without ATS and PRI nobody can bring it in';
const HYPERVISOR = 'the guest, or its hypervisor, built the tables: look there for what unmapped or never mapped the memory';
const WITHOUT_PASID = 'the request has no PASID and no domain is attached to the device';
const WIDTH = 'the DMA mask of the driver is wider than what the IOMMU or the device can address';

const CAUSES: Readonly<Record<number, FaultCause>> = {
  0x01: at('root entry', ALIAS, NO_ATTACH, 'the bus number changed (hotplug, SR-IOV) and its context table was not made'),
  0x02: at('context entry', NO_ATTACH, ALIAS, KEXEC),
  0x03: at('context entry', OTHER_REVISION, 'tables of a width that SAGAW does not report', OVERWRITTEN),
  0x04: at('the request itself', WIDTH, NEVER_MAPPED, 'the device cut or extended the address (a 32-bit or 39-bit DMA engine)'),
  0x05: at('second-level entry', UNMAPPED_EARLY, NEVER_MAPPED, WRONG_DIRECTION),
  0x06: at('second-level entry', UNMAPPED_EARLY, `${NEVER_MAPPED} (also prefetch beyond its end)`, FIRMWARE),
  0x07: at('second-level entry', NOT_RAM, OVERWRITTEN, NOT_COHERENT),
  0x08: at('root entry', 'RTADDR points to memory that is not RAM', NOT_RAM),
  0x09: at('context entry', NOT_RAM, OVERWRITTEN),
  0x0a: at('root entry', OVERWRITTEN, OTHER_REVISION),
  0x0b: at('context entry', OTHER_REVISION, OVERWRITTEN),
  0x0c: at('second-level entry', OTHER_REVISION, 'a superpage or snoop bit that the unit does not have', OVERWRITTEN),
  0x0d: at('context entry', ATS_ON, 'an untrusted device tries to go around translation'),
  0x0e: at('the request itself', 'a mapping was made onto 0xFEExxxxx, the interrupt address range', OVERWRITTEN),

  0x20: at('interrupt remapping entry', 'the device\'s MSI address or data was not written by the kernel: after a reset or a resume', OTHER_REVISION),
  0x21: at('interrupt remapping entry', 'an interrupt index of an earlier owner or kernel is still programmed into the device', 'MSI address or data is corrupt'),
  0x22: at('interrupt remapping entry', 'the interrupt was freed while the device still raises it', KEXEC, 'MSI address or data are left over from firmware'),
  0x23: at('interrupt remapping entry', 'IRTA points to memory that is not RAM', NOT_RAM),
  0x24: at('interrupt remapping entry', OTHER_REVISION, OVERWRITTEN),
  0x25: at('the request itself', 'the device was given a plain MSI address although interrupts are remapped: its driver bypasses the kernel\'s interrupt domain', 'a device behind a port with an interrupt domain of its own (VMD)', 'firmware programmed the interrupt'),
  0x26: at('interrupt remapping entry', 'the interrupt carries another requester id than the device\'s own: a bridge or a phantom function issued it', 'an interrupt index of another device is programmed into this one'),
  0x27: at('interrupt remapping entry', 'the posted-interrupt descriptor could not be read: corrupt entry', NOT_RAM),
  0x28: at('interrupt remapping entry', 'reserved bits in the posted-interrupt descriptor', OVERWRITTEN),
  0x29: at('the request itself', 'the device reads from 0xFEExxxxx, or writes there what is no interrupt: a wild DMA address', NEVER_MAPPED),

  0x30: at('root table address', MODE, 'the kernel and the hypervisor disagree about scalable mode'),
  0x31: at('the request itself', `${PASID_EARLY}: it is in legacy mode`, 'intel_iommu=on,sm_off, or hardware without scalable mode, under a driver that wants SVA'),
  0x32: at('the request itself', 'PRI is enabled in the device although the IOMMU is in legacy mode', 'PRI was left on by an earlier kernel or guest'),
  0x33: at('root table address', 'abort-DMA mode is set on purpose, while tables are changed or by a security monitor, and the device was not stopped', KEXEC),

  0x38: at('root entry', 'RTADDR points to memory that is not RAM', NOT_RAM),
  0x39: at('root entry', ALIAS, NO_ATTACH, 'the bus number changed (hotplug, SR-IOV) and its context table was not made'),
  0x3a: at('root entry', OVERWRITTEN, OTHER_REVISION),

  0x40: at('context entry', NOT_RAM, OVERWRITTEN),
  0x41: at('context entry', NO_ATTACH, ALIAS, KEXEC),
  0x42: at('context entry', OTHER_REVISION, 'an entry of legacy mode under a root table in scalable mode', OVERWRITTEN),
  0x43: at('context entry', 'PRE is set without DTE: ATS was disabled before page requests', 'RID_PASID is beyond the directory', OVERWRITTEN),
  0x44: at('context entry', ATS_ON, 'an untrusted device tries to go around translation'),
  0x45: at('context entry', PASID_EARLY, 'PASIDs were disabled while the device still used them'),
  0x46: at('context entry', 'the PASID is larger than the directory made for the device: the driver did not respect the device\'s or IOMMU\'s PASID width', 'a corrupt descriptor names a wild PASID'),
  0x47: at('context entry', 'PRI is enabled in the device but page requests are not accepted from it: IOPF was not enabled, or was disabled before the device stopped', 'PRI was left on by an earlier kernel or guest'),
  0x48: at('context entry', 'the device uses the PASID that the entry names for requests without PASID (RID_PASID)', 'a corrupt descriptor names a wild PASID'),

  0x50: at('PASID directory entry', NOT_RAM, OVERWRITTEN),
  0x51: at('PASID directory entry', NO_SVA, NOT_COHERENT, 'the directory was just made and is still empty: DMA began before a domain was attached'),
  0x52: at('PASID directory entry', OVERWRITTEN, OTHER_REVISION),

  0x58: at('PASID table entry', NOT_RAM, OVERWRITTEN),
  0x59: at('PASID table entry', NO_SVA, 'the process ended while its DMA was still under way', WITHOUT_PASID),
  0x5a: at('PASID table entry', OTHER_REVISION, OVERWRITTEN),
  0x5b: at('PASID table entry', 'the entry asks for a translation type, width or number of levels that the unit does not report', 'the hypervisor passed on a guest\'s entry that the hardware cannot do', OVERWRITTEN),
  0x5c: at('PASID table entry', 'the device asks for execute permission, which the kernel does not grant', 'the device sets the Execute Requested bit by mistake'),
  0x5d: at('PASID table entry', 'the device asks as supervisor under a PASID of a process', 'a work queue is configured as privileged but bound to a user process'),

  0x70: at('first-level entry', NOT_RAM, OVERWRITTEN),
  0x71: at('first-level entry', USER_UNMAP, NO_PRI, UNMAPPED_EARLY),
  0x72: at('first-level entry', OTHER_REVISION, 'the CPU uses page table bits that the unit does not have (5 levels, 1 GiB pages)', OVERWRITTEN),
  0x73: at('first-level entry', 'the page table of a process was freed although its PASID was still bound', NOT_RAM),
  0x74: at('first-level entry', HYPERVISOR, 'the guest has more address bits than the second level was made for'),
  0x75: at('second-level entry', HYPERVISOR, 'guest memory was unmapped (balloon, hot unplug) while its tables were in use'),
  0x76: at('second-level entry', HYPERVISOR, 'guest memory was unmapped (balloon, hot unplug) while its tables were in use'),
  0x77: at('second-level entry', HYPERVISOR, 'guest memory is mapped read-only although the unit has to set accessed and dirty bits in it'),

  0x78: at('second-level entry', NOT_RAM, OVERWRITTEN),
  0x79: at('second-level entry', UNMAPPED_EARLY, NEVER_MAPPED, LONGER),
  0x7a: at('second-level entry', OTHER_REVISION, 'a superpage or snoop bit that the unit does not have', OVERWRITTEN),
  0x7b: at('second-level entry', 'the domain\'s page table was freed while it was still attached', NOT_RAM),
  0x7c: at('second-level entry', 'accessed and dirty bits are on for tables that the unit cannot update coherently', OTHER_REVISION),
  0x7d: at('second-level entry', 'dirty tracking is on and the memory of the tables cannot be written', NOT_RAM),

  0x80: at('the request itself', 'a wild or truncated pointer in a descriptor', 'a 57-bit address although the tables have 4 levels'),
  0x81: at('first-level entry', 'user DMA to a kernel address: a wild pointer, or a process that tries', 'the kernel mapped the page for itself only'),
  0x82: at('first-level entry', 'the device asks to execute from memory that is mapped without execute permission', 'the device sets the Execute Requested bit by mistake'),
  0x83: at('the request itself', 'a pass-through or translated address is not a physical one: a virtual address where the device is not translated', WIDTH),
  0x84: at('the request itself', WIDTH, NEVER_MAPPED),
  0x85: at('first-level entry', `${WRONG_DIRECTION}; with SVA, a buffer that the process may only read`, 'the page became copy-on-write (fork) and the device does not ask again by a page request', UNMAPPED_EARLY),
  0x86: at('first-level entry', UNMAPPED_EARLY, WRONG_DIRECTION, LONGER),
  0x87: at('the request itself', 'a mapping was made onto 0xFEExxxxx, the interrupt address range', 'a process gave the device an address that its tables map there'),
  0x89: at('the request itself', 'the driver hands out PASIDs that are wider than the unit supports (ECAP.PSS)', 'a corrupt descriptor names a wild PASID'),

  0x90: at('first-level entry', 'accessed and dirty bits are on for tables that the unit cannot update coherently', OTHER_REVISION),
  0x91: at('first-level entry', 'the unit could not set A or D: the CPU kept changing the same entry, or the table cannot be written', NOT_RAM),
};

const EXTRA_TEXTS: Readonly<Record<number, string>> = {
  0x27: 'Posted-interrupt descriptor could not be read from memory',
  0x28: 'Reserved field of a posted-interrupt descriptor is not zero',
  0x7c: 'SM: A or D has to be set in a second-level paging entry that is not coherent',
  0x90: 'SM: A or D has to be set in a first-level paging entry that is not coherent',
};

/** Codes with causes, ascending. */
export const EXPLAINED_REASONS: readonly number[] = Object.keys(CAUSES).map(Number).sort((a, b) => a - b);

/** Entry and all causes; undefined for codes that no revision names. */
export function faultCause(code: number): FaultCause | undefined {
  return CAUSES[code];
}

/** Nothing mapped is no reason of its own in second-level tables: an entry without R and W is absent. */
const ABSENT_LOOKS_SO = new Set([0x05, 0x06, 0x79, 0x85, 0x86]);

/** The sentence for a code; for unknown ones it says so. */
export function reasonText(code: number): string {
  return ABSENT_LOOKS_SO.has(code) ? `${plainText(code)}; an address where nothing is mapped ends so too${code >= 0x85 ? ' in second-level tables' : ''}` : plainText(code);
}

function plainText(code: number): string {
  return faultReason(code)?.text ?? EXTRA_TEXTS[code] ?? (code === 0 ? 'No reason: reported by software' : 'A reason that no revision up to 4.1 names');
}

/** The causes that fit a request with or without PASID. */
export function causesFor(code: number, pasid: number | undefined): readonly string[] {
  return (CAUSES[code]?.causes ?? []).filter((cause) => pasid === undefined || cause !== WITHOUT_PASID);
}

function at(entry: FaultEntry, ...causes: string[]): FaultCause {
  return { entry, causes };
}
