/** Descriptors as software builds them, and completion records as it reads them. Addresses are plain numbers below 2^53. */
import { load32, store32, storeSized } from '../../../sim/little-endian.js';
import { DESCRIPTOR_SIZE, FLAG, OPCODE, STATUS, STATUS_MASK, STATUS_NAMES, STATUS_WRITE } from './descriptor.js';

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
  const { opcode, completion } = fields;
  let flags = fields.flags ?? 0;
  if (completion !== undefined) flags |= FLAG.CRAV | FLAG.RCR;
  store32(bytes, 0, (fields.pasid ?? 0) | (fields.privileged === true ? 0x8000_0000 : 0));
  store32(bytes, 4, flags | (opcode << 24));
  if (completion !== undefined) storeAddress(bytes, 8, completion);
  if (fields.source !== undefined) storeAddress(bytes, 16, fields.source);
  if (fields.destination !== undefined) storeAddress(bytes, 24, fields.destination);
  if (fields.pattern !== undefined) {
    const at = opcode === OPCODE.COMPVAL ? 24 : 16;
    store32(bytes, at, fields.pattern[0]);
    store32(bytes, at + 4, fields.pattern[1]);
  }
  store32(bytes, 32, fields.size ?? 0);
  storeSized(bytes, 36, 2, fields.interruptHandle ?? 0);
  fields.specific?.forEach((word, i) => store32(bytes, 40 + 4 * i, word));
  return bytes;
}

function storeAddress(bytes: Uint8Array, at: number, address: number): void {
  store32(bytes, at, address % 0x1_0000_0000);
  store32(bytes, at + 4, Math.floor(address / 0x1_0000_0000));
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
  const status = bytes[offset]!;
  return {
    status: status & STATUS_MASK, faultWrite: (status & STATUS_WRITE) !== 0, result: bytes[offset + 1]!, bytesCompleted: load32(bytes, offset + 4),
    faultAddress: load32(bytes, offset + 8) + load32(bytes, offset + 12) * 0x1_0000_0000, specific: load32(bytes, offset + 16),
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
