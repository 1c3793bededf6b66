/**
 * The header of every message of the vfio-user protocol, and the numbers of its commands (QEMU
 * docs/interop/vfio-user.rst, "Header" and "Commands"). All values are little-endian, as on the machines that this
 * project simulates.
 */
import { load32, store32 } from '../../../sim/little-endian.js';

export const HEADER_SIZE = 16;

export const VFIO_USER_VERSION = 1;
export const VFIO_USER_DMA_MAP = 2;
export const VFIO_USER_DMA_UNMAP = 3;
export const VFIO_USER_DEVICE_GET_INFO = 4;
export const VFIO_USER_DEVICE_GET_REGION_INFO = 5;
export const VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6;
export const VFIO_USER_DEVICE_GET_IRQ_INFO = 7;
export const VFIO_USER_DEVICE_SET_IRQS = 8;
export const VFIO_USER_REGION_READ = 9;
export const VFIO_USER_REGION_WRITE = 10;
/** From the server to the client. */
export const VFIO_USER_DMA_READ = 11;
/** From the server to the client. */
export const VFIO_USER_DMA_WRITE = 12;
export const VFIO_USER_DEVICE_RESET = 13;
export const VFIO_USER_REGION_WRITE_MULTI = 15;
export const VFIO_USER_DEVICE_FEATURE = 16;
export const VFIO_USER_MIG_DATA_READ = 17;
export const VFIO_USER_MIG_DATA_WRITE = 18;

/** Bits 0-3 of the flags. */
export const TYPE_COMMAND = 0;
export const TYPE_REPLY = 1;
const TYPE_MASK = 0xf;
export const FLAG_NO_REPLY = 1 << 4;
export const FLAG_ERROR = 1 << 5;

export interface Header {
  /** Chosen by the sender, echoed in the reply. */
  readonly id: number;
  readonly command: number;
  /** Of the whole message, header included. */
  readonly sizeBytes: number;
  readonly type: number;
  readonly noReply: boolean;
  readonly error: boolean;
  readonly errno: number;
}

export function decodeHeader(bytes: Uint8Array): Header {
  const flags = load32(bytes, 8);
  return {
    id: bytes[0]! | (bytes[1]! << 8), command: bytes[2]! | (bytes[3]! << 8), sizeBytes: load32(bytes, 4), type: flags & TYPE_MASK,
    noReply: (flags & FLAG_NO_REPLY) !== 0, error: (flags & FLAG_ERROR) !== 0, errno: load32(bytes, 12),
  };
}

/** A message with its header; what follows from byte 16 on is the caller's to fill. @param flags type and FLAG_* */
export function newMessage(id: number, command: number, flags: number, payloadBytes: number, errno = 0): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + payloadBytes);
  bytes[0] = id;
  bytes[1] = id >>> 8;
  bytes[2] = command;
  bytes[3] = command >>> 8;
  store32(bytes, 4, bytes.length);
  store32(bytes, 8, flags);
  store32(bytes, 12, errno);
  return bytes;
}

/** A message with a copy of `payload`. */
export function messageOf(id: number, command: number, flags: number, payload?: Uint8Array): Uint8Array {
  const bytes = newMessage(id, command, flags, payload?.length ?? 0);
  if (payload !== undefined) bytes.set(payload, HEADER_SIZE);
  return bytes;
}
