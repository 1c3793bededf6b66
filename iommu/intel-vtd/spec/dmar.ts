/**
 * The ACPI table DMAR by which firmware tells software where the remapping units are and which devices they serve
 * (VT-d 4.1, chapter 8): DRHD, RMRR, ATSR, SATC. Encoding is for firmware, decoding for the driver.
 *
 * Left out: RHSA, ANDD, SIDP, SoC-specific structures; a decoder skips structures of types it does not know, as the
 * chapter demands.
 */
import { Errno } from '../../../sim/errno.js';
import { hex } from '../../../sim/address.js';
import type { PhysicalMemory } from '../../../sim/memory.js';

/** Device scope types (section 8.3.1). */
export const SCOPE_ENDPOINT = 1;
/** A PCI sub-hierarchy: the bridge at the path and everything below it. */
export const SCOPE_BRIDGE = 2;
export const SCOPE_IOAPIC = 3;
export const SCOPE_HPET = 4;
export const SCOPE_NAMESPACE = 5;

/** A device by its path from `startBus`: one pair for a device on that bus, one more per bridge in between. */
export interface DmarScope {
  readonly type: number;
  readonly enumerationId: number;
  readonly startBus: number;
  readonly path: readonly { readonly device: number; readonly function: number }[];
}

/** DMA remapping hardware unit definition (section 8.3). */
export interface Drhd {
  readonly kind: 'DRHD';
  /** INCLUDE_PCI_ALL: every device of the segment that no other unit names. */
  readonly includeAll: boolean;
  readonly segment: number;
  /** Physical address of the registers. */
  readonly base: number;
  /** Size of the register window, 4 KiB × 2^size; 0 in tables written before the field existed. */
  readonly sizeOrder: number;
  readonly scopes: readonly DmarScope[];
}

/** Reserved memory region reporting: [base, limit] stays mapped one to one for these devices (section 8.4). */
export interface Rmrr {
  readonly kind: 'RMRR';
  readonly segment: number;
  readonly base: number;
  /** Address of the last byte. */
  readonly limit: number;
  readonly scopes: readonly DmarScope[];
}

/** Root ports that let translated requests and translation requests through (section 8.5). */
export interface Atsr {
  readonly kind: 'ATSR';
  readonly allPorts: boolean;
  readonly segment: number;
  readonly scopes: readonly DmarScope[];
}

/** SoC-integrated devices with a device TLB (section 8.8). */
export interface Satc {
  readonly kind: 'SATC';
  readonly atcRequired: boolean;
  readonly segment: number;
  readonly scopes: readonly DmarScope[];
}

export type DmarStructure = Drhd | Rmrr | Atsr | Satc;

/** `flags`: the platform supports interrupt remapping; without it software leaves ECAP.IR alone. */
export const DMAR_INTR_REMAP = 1;

export interface DmarTable {
  /** Host address width in bits; the table stores it minus one. */
  readonly hostAddressWidth: number;
  /** Bit 0 INTR_REMAP (DMAR_INTR_REMAP), bit 1 X2APIC_OPT_OUT, bit 2 DMA_CTRL_PLATFORM_OPT_IN_FLAG. */
  readonly flags: number;
  readonly structures: readonly DmarStructure[];
}

/** Identification fields of the ACPI header (ACPI 6.5, table 5.4); short strings are padded with blanks. */
export interface AcpiIds {
  readonly oemId: string;
  readonly oemTableId: string;
  readonly oemRevision: number;
  readonly creatorId: string;
  readonly creatorRevision: number;
}

const DEFAULT_IDS: AcpiIds = { oemId: 'VFIOSM', oemTableId: 'VFIOSIM', oemRevision: 1, creatorId: 'VFIO', creatorRevision: 1 };

const HEADER_SIZE = 36;
const TABLE_SIZE = 48;
const TYPE = { DRHD: 0, RMRR: 1, ATSR: 2, SATC: 5 } as const;
/** A DMAR larger than this is taken for garbage. */
const LARGEST_TABLE = 1 << 20;

/** Bytes of the table, checksum included. */
export function encodeDmar(table: DmarTable, ids: AcpiIds = DEFAULT_IDS): Uint8Array {
  const structures = table.structures.map(encodeStructure);
  const length = structures.reduce((sum, bytes) => sum + bytes.length, TABLE_SIZE);
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  putText(bytes, 0, 'DMAR', 4);
  view.setUint32(4, length, true);
  bytes[8] = 1;
  putText(bytes, 10, ids.oemId, 6);
  putText(bytes, 16, ids.oemTableId, 8);
  view.setUint32(24, ids.oemRevision, true);
  putText(bytes, 28, ids.creatorId, 4);
  view.setUint32(32, ids.creatorRevision, true);
  bytes[36] = table.hostAddressWidth - 1;
  bytes[37] = table.flags;
  let at = TABLE_SIZE;
  for (const structure of structures) {
    bytes.set(structure, at);
    at += structure.length;
  }
  bytes[9] = (256 - (sum(bytes) & 0xff)) & 0xff;
  return bytes;
}

/** EINVAL: not a DMAR table, wrong length or checksum, or a structure that does not fit its length. */
export function decodeDmar(bytes: Uint8Array): DmarTable {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const signature = String.fromCharCode(...bytes.subarray(0, 4));
  if (bytes.length < TABLE_SIZE || signature !== 'DMAR') throw new Errno('EINVAL', `ACPI: no DMAR table, but ${JSON.stringify(signature)}`);
  const length = view.getUint32(4, true);
  if (length < TABLE_SIZE || length > bytes.length) throw new Errno('EINVAL', `ACPI: DMAR length ${length}, of which ${bytes.length} bytes are there`);
  if ((sum(bytes.subarray(0, length)) & 0xff) !== 0) throw new Errno('EINVAL', 'ACPI: DMAR checksum is wrong');
  const structures: DmarStructure[] = [];
  let at = TABLE_SIZE;
  while (at < length) {
    const size = at + 4 <= length ? view.getUint16(at + 2, true) : 0;
    if (size < 4 || at + size > length) throw new Errno('EINVAL', `ACPI: DMAR structure at ${at} has length ${size}`);
    const structure = decodeStructure(view, at, size);
    if (structure !== undefined) structures.push(structure);
    at += size;
  }
  return { hostAddressWidth: bytes[36]! + 1, flags: bytes[37]!, structures };
}

/** Reads and decodes the table at a physical address. EINVAL as `decodeDmar`, or when it is not memory. */
export function readDmar(memory: PhysicalMemory, address: number): DmarTable {
  const header = new Uint8Array(HEADER_SIZE);
  if (!memory.read(address, header, 0, HEADER_SIZE)) throw new Errno('EINVAL', `ACPI: no memory at the DMAR address ${hex(address)}`);
  const length = new DataView(header.buffer).getUint32(4, true);
  const bytes = new Uint8Array(length <= LARGEST_TABLE ? length : 0);
  if (!memory.read(address, bytes, 0, bytes.length)) throw new Errno('EINVAL', `ACPI: the DMAR at ${hex(address)} ends outside memory`);
  return decodeDmar(bytes);
}

function encodeStructure(structure: DmarStructure): Uint8Array {
  const scopes = structure.scopes.map(encodeScope);
  const head = structure.kind === 'DRHD' ? 16 : structure.kind === 'RMRR' ? 24 : 8;
  const bytes = new Uint8Array(scopes.reduce((size, scope) => size + scope.length, head));
  const view = new DataView(bytes.buffer);
  view.setUint16(0, TYPE[structure.kind], true);
  view.setUint16(2, bytes.length, true);
  view.setUint16(6, structure.segment, true);
  switch (structure.kind) {
    case 'DRHD':
      bytes[4] = structure.includeAll ? 1 : 0;
      bytes[5] = structure.sizeOrder;
      view.setBigUint64(8, BigInt(structure.base), true);
      break;
    case 'RMRR':
      view.setBigUint64(8, BigInt(structure.base), true);
      view.setBigUint64(16, BigInt(structure.limit), true);
      break;
    case 'ATSR':
      bytes[4] = structure.allPorts ? 1 : 0;
      break;
    case 'SATC':
      bytes[4] = structure.atcRequired ? 1 : 0;
      break;
  }
  let at = head;
  for (const scope of scopes) {
    bytes.set(scope, at);
    at += scope.length;
  }
  return bytes;
}

function decodeStructure(view: DataView, at: number, size: number): DmarStructure | undefined {
  const type = view.getUint16(at, true);
  const need = type === TYPE.DRHD ? 16 : type === TYPE.RMRR ? 24 : 8;
  if (type !== TYPE.DRHD && type !== TYPE.RMRR && type !== TYPE.ATSR && type !== TYPE.SATC) return undefined;
  if (size < need) throw new Errno('EINVAL', `ACPI: DMAR structure of type ${type} at ${at} has length ${size}`);
  const flag = (view.getUint8(at + 4) & 1) !== 0;
  const segment = view.getUint16(at + 6, true);
  const scopes = decodeScopes(view, at + need, at + size);
  switch (type) {
    case TYPE.DRHD:
      return { kind: 'DRHD', includeAll: flag, segment, base: Number(view.getBigUint64(at + 8, true)), sizeOrder: view.getUint8(at + 5) & 0xf, scopes };
    case TYPE.RMRR:
      return { kind: 'RMRR', segment, base: Number(view.getBigUint64(at + 8, true)), limit: Number(view.getBigUint64(at + 16, true)), scopes };
    case TYPE.ATSR:
      return { kind: 'ATSR', allPorts: flag, segment, scopes };
    case TYPE.SATC:
      return { kind: 'SATC', atcRequired: flag, segment, scopes };
  }
}

function encodeScope(scope: DmarScope): Uint8Array {
  const bytes = new Uint8Array(6 + scope.path.length * 2);
  bytes[0] = scope.type;
  bytes[1] = bytes.length;
  bytes[4] = scope.enumerationId;
  bytes[5] = scope.startBus;
  scope.path.forEach((step, i) => {
    bytes[6 + 2 * i] = step.device;
    bytes[7 + 2 * i] = step.function;
  });
  return bytes;
}

function decodeScopes(view: DataView, start: number, end: number): DmarScope[] {
  const scopes: DmarScope[] = [];
  for (let at = start; at < end; ) {
    const length = at + 2 <= end ? view.getUint8(at + 1) : 0;
    if (length < 8 || length % 2 !== 0 || at + length > end) throw new Errno('EINVAL', `ACPI: DMAR device scope at ${at} has length ${length}`);
    const path = [];
    for (let i = 6; i < length; i += 2) path.push({ device: view.getUint8(at + i), function: view.getUint8(at + i + 1) });
    scopes.push({ type: view.getUint8(at), enumerationId: view.getUint8(at + 4), startBus: view.getUint8(at + 5), path });
    at += length;
  }
  return scopes;
}

function sum(bytes: Uint8Array): number {
  return bytes.reduce((total, byte) => total + byte, 0);
}

function putText(bytes: Uint8Array, at: number, text: string, length: number): void {
  for (let i = 0; i < length; i++) bytes[at + i] = i < text.length ? text.charCodeAt(i) : 0x20;
}
