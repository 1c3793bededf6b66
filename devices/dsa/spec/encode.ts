/** Descriptors as software builds them, and completion records as it reads them. Addresses are plain numbers below 2^53. */
import { COMPLETION_SIZE, DESCRIPTOR_SIZE, FLAG, OPCODE, STATUS, STATUS_MASK, STATUS_NAMES, STATUS_WRITE } from './descriptor.js';

export interface DescriptorFields {
  readonly opcode: number;
  readonly flags?: number;
  /** Completion record, 32-byte aligned; sets CRAV and RCR. */
  readonly completion?: number;
  readonly source?: number;
  readonly destination?: number;
  /** 8 bytes, low half first, in place of the source (fill) or the destination (compare with pattern). */
  readonly pattern?: readonly [lo: number, hi: number];
  readonly size?: number;
  readonly interruptHandle?: number;
  /** For an enqueue; a dedicated queue has its own. */
  readonly pasid?: number;
  readonly privileged?: boolean;
  /** 32-bit words 10 to 15. */
  readonly specific?: readonly number[];
}

/** 64 bytes. */
export function encodeDescriptor(fields: DescriptorFields): Uint8Array {
  const bytes = new Uint8Array(DESCRIPTOR_SIZE);
  const view = new DataView(bytes.buffer);
  const { opcode, completion } = fields;
  let flags = fields.flags ?? 0;
  if (completion !== undefined) flags |= FLAG.CRAV | FLAG.RCR;
  view.setUint32(0, ((fields.pasid ?? 0) | (fields.privileged === true ? 0x8000_0000 : 0)) >>> 0, true);
  view.setUint32(4, (flags | (opcode << 24)) >>> 0, true);
  if (completion !== undefined) setAddress(view, 8, completion);
  if (fields.source !== undefined) setAddress(view, 16, fields.source);
  if (fields.destination !== undefined) setAddress(view, 24, fields.destination);
  if (fields.pattern !== undefined) {
    const at = opcode === OPCODE.COMPVAL ? 24 : 16;
    view.setUint32(at, fields.pattern[0], true);
    view.setUint32(at + 4, fields.pattern[1], true);
  }
  view.setUint32(32, fields.size ?? 0, true);
  view.setUint16(36, fields.interruptHandle ?? 0, true);
  fields.specific?.forEach((word, i) => view.setUint32(40 + 4 * i, word, true));
  return bytes;
}

function setAddress(view: DataView, at: number, address: number): void {
  view.setUint32(at, address % 0x1_0000_0000, true);
  view.setUint32(at + 4, Math.floor(address / 0x1_0000_0000), true);
}

export interface CompletionRecord {
  /** Without the write bit. */
  readonly status: number;
  readonly faultWrite: boolean;
  readonly result: number;
  readonly bytesCompleted: number;
  readonly faultAddress: number;
  /** Invalid flags with INVALID_FLAGS, the CRC of CRC operations. */
  readonly specific: number;
}

/** `bytes` holds the record at `offset`. */
export function decodeCompletion(bytes: Uint8Array, offset = 0): CompletionRecord {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, COMPLETION_SIZE);
  const status = view.getUint8(0);
  return {
    status: status & STATUS_MASK, faultWrite: (status & STATUS_WRITE) !== 0, result: view.getUint8(1), bytesCompleted: view.getUint32(4, true),
    faultAddress: view.getUint32(8, true) + view.getUint32(12, true) * 0x1_0000_0000, specific: view.getUint32(16, true),
  };
}

/** `SUCCESS`, `PAGE_FAULT_NOBOF`, … */
export function statusName(status: number): string {
  return STATUS_NAMES[status & STATUS_MASK]!;
}

/** A partial completion: the page was not there (0x03) or was refused (0x04). */
export function isPageFault(status: number): boolean {
  const code = status & STATUS_MASK;
  return code === STATUS.PAGE_FAULT_NOBOF || code === STATUS.PAGE_FAULT_IR;
}
