/** One function as lspci prints it: the title line, the header registers, resources, bridge windows. */
import { WORD } from '../../../../sim/address.js';
import {
  barOffset, PCI_BASE_ADDRESS_MEM_MASK, PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64, PCI_BASE_ADDRESS_MEM_TYPE_MASK,
  PCI_BASE_ADDRESS_SPACE_IO, PCI_BRIDGE_CONTROL, PCI_CACHE_LINE_SIZE, PCI_CLASS_DEVICE, PCI_CLASS_PROG, PCI_COMMAND,
  PCI_COMMAND_IO, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_HEADER_TYPE, PCI_HEADER_TYPE_BRIDGE, PCI_HEADER_TYPE_MASK,
  PCI_HEADER_TYPE_NORMAL, PCI_INTERRUPT_LINE, PCI_INTERRUPT_PIN, PCI_IO_BASE, PCI_IO_LIMIT, PCI_LATENCY_TIMER, PCI_MEMORY_BASE,
  PCI_MEMORY_LIMIT, PCI_PREF_BASE_UPPER32, PCI_PREF_LIMIT_UPPER32, PCI_PREF_MEMORY_BASE, PCI_PREF_MEMORY_LIMIT, PCI_PRIMARY_BUS,
  PCI_REVISION_ID, PCI_SEC_STATUS, PCI_SECONDARY_BUS, PCI_STATUS, PCI_SUBORDINATE_BUS, PCI_SUBSYSTEM_ID, PCI_SUBSYSTEM_VENDOR_ID,
} from '../../spec/index.js';
import { capabilityLines } from './capabilities.js';
import { className, deviceName, interfaceName } from './names.js';
import { flags, hexDigits, sizeText, slotName } from './source.js';
import type { NumericIds, PciNames } from './names.js';
import type { LspciFunction } from './source.js';

export interface DeviceOptions {
  readonly verbose: 0 | 1 | 2;
  readonly numeric: NumericIds;
  readonly withSegment: boolean;
  readonly names: PciNames;
  readonly iommuGroup: number | undefined;
  readonly driver: string | undefined;
}

const SEC_LATENCY = 0x1b, IO_BASE_UPPER16 = 0x30, IO_LIMIT_UPPER16 = 0x32, ROM_BRIDGE = 0x38, ROM_NORMAL = 0x30;
const MIN_GRANT = 0x3e, MAX_LATENCY = 0x3f;
const DEVSEL = ['fast', 'medium', 'slow', '??'];

/** Lines of one function. */
export function deviceLines(fn: LspciFunction, options: DeviceOptions): string[] {
  const { config } = fn;
  const { verbose, names, numeric } = options;
  const classId = config.read(PCI_CLASS_DEVICE, 2), prog = config.read(PCI_CLASS_PROG, 1), revision = config.read(PCI_REVISION_ID, 1);
  let title = `${slotName(fn, options.withSegment)} ${className(classId, numeric)}: ${deviceName(fn.vendorId, fn.deviceId, numeric, names)}`;
  if (revision !== 0) title += ` (rev ${hexDigits(revision, 2)})`;
  if (verbose === 0) return [title];
  const interfaceText = numeric === 1 ? undefined : interfaceName(classId, prog);
  if (prog !== 0 || interfaceText !== undefined) title += ` (prog-if ${hexDigits(prog, 2)}${interfaceText === undefined ? '' : ` [${interfaceText}]`})`;
  const out = [title];
  const bridge = (config.read(PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MASK) === PCI_HEADER_TYPE_BRIDGE;
  const normal = (config.read(PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MASK) === PCI_HEADER_TYPE_NORMAL;
  const subsystem = config.read(PCI_SUBSYSTEM_VENDOR_ID, 2);
  if (normal && subsystem !== 0 && subsystem !== 0xffff) {
    out.push(`\tSubsystem: ${deviceName(subsystem, config.read(PCI_SUBSYSTEM_ID, 2), numeric, names, true)}`);
  }
  out.push(...(verbose > 1 ? registerLines(fn, options, normal) : [flagsLine(fn, options)]));
  if (bridge) out.push(...bridgeLines(fn, verbose));
  else out.push(...regionLines(fn, 6, verbose), ...romLine(fn, ROM_NORMAL));
  out.push(...capabilityLines(fn, verbose, numeric, names));
  if (options.driver !== undefined) out.push(`\tKernel driver in use: ${options.driver}`);
  return out;
}

function registerLines(fn: LspciFunction, options: DeviceOptions, normal: boolean): string[] {
  const { config } = fn;
  const command = config.read(PCI_COMMAND, 2), status = config.read(PCI_STATUS, 2);
  const out = [
    `\tControl: ${flags(command, [['I/O', 1], ['Mem', 2], ['BusMaster', 4], ['SpecCycle', 8], ['MemWINV', 0x10], ['VGASnoop', 0x20], ['ParErr', 0x40], ['Stepping', 0x80], ['SERR', 0x100], ['FastB2B', 0x200], ['DisINTx', 0x400]])}`,
    `\tStatus: ${flags(status, [['Cap', 0x10], ['66MHz', 0x20], ['UDF', 0x40], ['FastB2B', 0x80], ['ParErr', 0x100]])} DEVSEL=${DEVSEL[(status >> 9) & 3]!} ${flags(status, [['>TAbort', 0x800], ['<TAbort', 0x1000], ['<MAbort', 0x2000], ['>SERR', 0x4000], ['<PERR', 0x8000], ['INTx', 8]])}`,
  ];
  if ((command & PCI_COMMAND_MASTER) !== 0) {
    const least = normal ? config.read(MIN_GRANT, 1) : 0, most = normal ? config.read(MAX_LATENCY, 1) : 0;
    const grants = [...(least === 0 ? [] : [`${least * 250}ns min`]), ...(most === 0 ? [] : [`${most * 250}ns max`])];
    const line = config.read(PCI_CACHE_LINE_SIZE, 1);
    out.push(`\tLatency: ${config.read(PCI_LATENCY_TIMER, 1)}${grants.length === 0 ? '' : ` (${grants.join(', ')})`}${line === 0 ? '' : `, Cache Line Size: ${line * 4} bytes`}`);
  }
  const pin = config.read(PCI_INTERRUPT_PIN, 1), irq = config.read(PCI_INTERRUPT_LINE, 1);
  if (pin !== 0 || irq !== 0) out.push(`\tInterrupt: pin ${pin === 0 ? '?' : String.fromCharCode(64 + pin)} routed to IRQ ${irq}`);
  if (options.iommuGroup !== undefined) out.push(`\tIOMMU group: ${options.iommuGroup}`);
  return out;
}

function flagsLine(fn: LspciFunction, options: DeviceOptions): string {
  const { config } = fn;
  const command = config.read(PCI_COMMAND, 2), status = config.read(PCI_STATUS, 2), irq = config.read(PCI_INTERRUPT_LINE, 1);
  const master = (command & PCI_COMMAND_MASTER) !== 0;
  const parts = [
    ...(master ? ['bus master'] : []), ...((command & 0x20) !== 0 ? ['VGA palette snoop'] : []), ...((command & 0x80) !== 0 ? ['stepping'] : []),
    ...((command & 0x200) !== 0 ? ['fast Back2Back'] : []), ...((status & 0x20) !== 0 ? ['66MHz'] : []), ...((status & 0x40) !== 0 ? ['user-definable features'] : []),
    `${DEVSEL[(status >> 9) & 3]!} devsel`, ...(master ? [`latency ${config.read(PCI_LATENCY_TIMER, 1)}`] : []), ...(irq === 0 ? [] : [`IRQ ${irq}`]),
    ...(options.iommuGroup === undefined ? [] : [`IOMMU group ${options.iommuGroup}`]),
  ];
  return `\tFlags: ${parts.join(', ')}`;
}

/** A memory resource: as the kernel knows it, else as the registers say. */
interface Region {
  readonly index: number;
  readonly io: boolean;
  readonly type: number;
  readonly prefetchable: boolean;
  readonly address: number;
  readonly sizeBytes: number;
  /** Assigned although the register reads as zero: a VF's. */
  readonly virtual: boolean;
}

function regionsOf(fn: LspciFunction, slots: number): Region[] {
  if (fn.bars !== undefined) {
    return fn.bars.map((bar) => {
      const register = fn.config.read(barOffset(bar.index), 4);
      const type = bar.is64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0;
      return { index: bar.index, io: false, type, prefetchable: bar.prefetchable, address: bar.start ?? 0, sizeBytes: bar.sizeBytes, virtual: bar.start !== undefined && register === 0 };
    });
  }
  const found: Region[] = [];
  for (let index = 0; index < slots; index++) {
    const register = fn.config.read(barOffset(index), 4);
    if (register === 0 || register === 0xffff_ffff) continue;
    const io = (register & PCI_BASE_ADDRESS_SPACE_IO) !== 0;
    const type = register & PCI_BASE_ADDRESS_MEM_TYPE_MASK;
    const is64 = !io && type === PCI_BASE_ADDRESS_MEM_TYPE_64;
    const address = io ? (register & ~3) >>> 0 : ((register & PCI_BASE_ADDRESS_MEM_MASK) >>> 0) + (is64 ? fn.config.read(barOffset(index + 1), 4) * WORD : 0);
    found.push({ index, io, type, prefetchable: (register & PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0, address, sizeBytes: 0, virtual: false });
    if (is64) index++;
  }
  return found;
}

function regionLines(fn: LspciFunction, slots: number, verbose: number): string[] {
  const command = fn.config.read(PCI_COMMAND, 2);
  return regionsOf(fn, slots).map((region) => {
    const start = verbose > 1 ? `\tRegion ${region.index}: ` : '\t';
    if (region.io) {
      const on = (command & PCI_COMMAND_IO) !== 0;
      const where = region.address !== 0 || on ? hexDigits(region.address, 4) : '<unassigned>';
      return `${start}I/O ports at ${where}${on ? '' : ' [disabled]'}${sizeText(region.sizeBytes)}`;
    }
    const where = region.address === 0 ? '<unassigned>' : hexDigits(region.address, 8);
    const type = region.type === 0 ? '32-bit' : region.type === PCI_BASE_ADDRESS_MEM_TYPE_64 ? '64-bit' : region.type === 2 ? 'low-1M' : 'type 3';
    const state = region.virtual ? ' [virtual]' : (command & PCI_COMMAND_MEMORY) === 0 ? ' [disabled]' : '';
    return `${start}Memory at ${where} (${type}, ${region.prefetchable ? '' : 'non-'}prefetchable)${state}${sizeText(region.sizeBytes)}`;
  });
}

function romLine(fn: LspciFunction, register: number): string[] {
  const word = fn.config.read(register, 4);
  if (word === 0 || word === 0xffff_ffff) return [];
  const address = (word & 0xffff_f800) >>> 0;
  const off = (word & 1) === 0 ? ' [disabled]' : (fn.config.read(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) === 0 ? ' [disabled by cmd]' : '';
  return [`\tExpansion ROM at ${address === 0 ? '<unassigned>' : hexDigits(address, 8)}${off}`];
}

function rangeLine(what: string, base: number, limit: number, bits: number): string {
  const digits = (bits + 3) >> 2;
  const on = base <= limit;
  return `\t${what}:${on ? ` ${hexDigits(base, digits)}-${hexDigits(limit, digits)}${sizeText(limit - base + 1)}` : ' [disabled]'} [${bits}-bit]`;
}

function bridgeLines(fn: LspciFunction, verbose: number): string[] {
  const { config } = fn;
  const byte = (offset: number): number => config.read(offset, 1), word = (offset: number): number => config.read(offset, 2);
  const number = (offset: number): string => hexDigits(byte(offset), 2);
  const out = [
    ...regionLines(fn, 2, verbose),
    `\tBus: primary=${number(PCI_PRIMARY_BUS)}, secondary=${number(PCI_SECONDARY_BUS)}, subordinate=${number(PCI_SUBORDINATE_BUS)}, sec-latency=${byte(SEC_LATENCY)}`,
    ...ioWindowLine(fn),
  ];
  const base = word(PCI_MEMORY_BASE), limit = word(PCI_MEMORY_LIMIT);
  out.push(rangeLine('Memory behind bridge', (base & 0xfff0) * 0x1_0000, (limit & 0xfff0) * 0x1_0000 + 0xf_ffff, 32));
  out.push(...prefetchableWindowLine(fn));
  const secondary = word(PCI_SEC_STATUS);
  if (verbose > 1) {
    out.push(`\tSecondary status: ${flags(secondary, [['66MHz', 0x20], ['FastB2B', 0x80], ['ParErr', 0x100]])} DEVSEL=${DEVSEL[(secondary >> 9) & 3]!} ${flags(secondary, [['>TAbort', 0x800], ['<TAbort', 0x1000], ['<MAbort', 0x2000], ['<SERR', 0x4000], ['<PERR', 0x8000]])}`);
  }
  out.push(...romLine(fn, ROM_BRIDGE));
  if (verbose > 1) {
    const control = word(PCI_BRIDGE_CONTROL);
    out.push(
      `\tBridgeCtl: ${flags(control, [['Parity', 1], ['SERR', 2], ['NoISA', 4], ['VGA', 8], ['VGA16', 0x10], ['MAbort', 0x20], ['>Reset', 0x40], ['FastB2B', 0x80]])}`,
      `\t\t${flags(control, [['PriDiscTmr', 0x100], ['SecDiscTmr', 0x200], ['DiscTmrStat', 0x400], ['DiscTmrSERREn', 0x800]])}`,
    );
  }
  return out;
}

function ioWindowLine(fn: LspciFunction): string[] {
  const base = fn.config.read(PCI_IO_BASE, 1), limit = fn.config.read(PCI_IO_LIMIT, 1);
  const wide = (base & 0xf) === 1;
  const upper = (offset: number): number => (wide ? fn.config.read(offset, 2) * 0x1_0000 : 0);
  const start = (base & 0xf0) * 256 + upper(IO_BASE_UPPER16), last = (limit & 0xf0) * 256 + upper(IO_LIMIT_UPPER16);
  // hardwired to zero, and the kernel knows that it uses no I/O window
  if (start === 0 && last === 0 && fn.bars !== undefined) return [];
  return [rangeLine('I/O behind bridge', start, last + 0xfff, wide ? 32 : 16)];
}

function prefetchableWindowLine(fn: LspciFunction): string[] {
  const base = fn.config.read(PCI_PREF_MEMORY_BASE, 2), limit = fn.config.read(PCI_PREF_MEMORY_LIMIT, 2);
  const wide = (base & 0xf) === 1;
  const upper = (offset: number): number => (wide ? fn.config.read(offset, 4) * WORD : 0);
  const start = (base & 0xfff0) * 0x1_0000 + upper(PCI_PREF_BASE_UPPER32), last = (limit & 0xfff0) * 0x1_0000 + upper(PCI_PREF_LIMIT_UPPER32);
  if (start === 0 && last === 0 && fn.bars !== undefined) return [];
  return [rangeLine('Prefetchable memory behind bridge', start, last + 0xf_ffff, wide ? 64 : 32)];
}
