/**
 * Payloads of vfio-user messages that have no like in VFIO's uapi (QEMU docs/interop/vfio-user.rst). Information
 * about devices, regions and interrupts, SET_IRQS and the header of DEVICE_FEATURE are the uapi's own records
 * (vfio/uapi/device.ts), as the protocol says. 64-bit values are read as numbers where they are below 2^53, and
 * refused above.
 */
import { Errno } from '../../../sim/errno.js';
import { hex } from '../../../sim/address.js';
import { load32, store32 } from '../../../sim/little-endian.js';

/** A 64-bit value. EINVAL from 2^53 on: no address or length of a device that is served here is so large. */
export function load64(bytes: Uint8Array, at: number, what: string): number {
  const hi = load32(bytes, at + 4);
  if (hi >= 0x20_0000) throw new Errno('EINVAL', `${what} ${hex(hi)}_${load32(bytes, at).toString(16).padStart(8, '0')} is beyond 2^53`);
  return hi * 0x1_0000_0000 + load32(bytes, at);
}

export function store64(bytes: Uint8Array, at: number, value: number): void {
  store32(bytes, at, value % 0x1_0000_0000);
  store32(bytes, at + 4, Math.floor(value / 0x1_0000_0000));
}

/** EINVAL a payload that is shorter than its record. */
export function checkPayload(payload: Uint8Array, sizeBytes: number, what: string): void {
  if (payload.length < sizeBytes) throw new Errno('EINVAL', `${what}: payload of ${payload.length} bytes, ${sizeBytes} are needed`);
}

/** EINVAL an argsz below the record's fixed size. */
export function checkArgsz(payload: Uint8Array, sizeBytes: number, what: string): number {
  checkPayload(payload, sizeBytes, what);
  const argsz = load32(payload, 0);
  if (argsz < sizeBytes) throw new Errno('EINVAL', `${what}: argsz ${argsz}, at least ${sizeBytes} is needed`);
  return argsz;
}

// --- DMA_MAP, DMA_UNMAP

export const DMA_MAP_SIZE = 32;
export const DMA_REGION_READ = 1 << 0;
export const DMA_REGION_WRITE = 1 << 1;

export interface DmaMapRequest {
  readonly flags: number;
  /** In the descriptor that came along. */
  readonly offset: number;
  readonly address: number;
  readonly sizeBytes: number;
}

/** EINVAL length, argsz, values from 2^53 on. */
export function decodeDmaMap(payload: Uint8Array): DmaMapRequest {
  checkArgsz(payload, DMA_MAP_SIZE, 'DMA_MAP');
  return { flags: load32(payload, 4), offset: load64(payload, 8, 'offset'), address: load64(payload, 16, 'address'), sizeBytes: load64(payload, 24, 'size') };
}

export const DMA_UNMAP_SIZE = 24;
/** Every region; address and size are zero. */
export const DMA_UNMAP_ALL = 1 << 1;

export interface DmaUnmapRequest {
  readonly flags: number;
  readonly address: number;
  readonly sizeBytes: number;
}

/** EINVAL length, argsz, values from 2^53 on. */
export function decodeDmaUnmap(payload: Uint8Array): DmaUnmapRequest {
  checkArgsz(payload, DMA_UNMAP_SIZE, 'DMA_UNMAP');
  return { flags: load32(payload, 4), address: load64(payload, 8, 'address'), sizeBytes: load64(payload, 16, 'size') };
}

// --- REGION_READ, REGION_WRITE, REGION_WRITE_MULTI

/** offset u64, region u32, count u32; data follows. */
export const REGION_ACCESS_SIZE = 16;
/** wr_cnt u64; entries of an access and 8 bytes follow. */
export const WRITE_MULTI_HEADER_SIZE = 8;
export const WRITE_MULTI_ENTRY_SIZE = 24;
export const WRITE_MULTI_MAX_DATA = 8;

// --- DMA_READ, DMA_WRITE

/** address u64, count u64; data follows. */
export const DMA_ACCESS_SIZE = 16;
/** The reply to a write: the document gives count 4 bytes there, implementations send 8. */
export const DMA_WRITE_REPLY_MIN_SIZE = 12;

// --- DEVICE_GET_REGION_IO_FDS

/** argsz, flags, index, count, each u32; sub-regions would follow. */
export const REGION_IO_FDS_SIZE = 16;

// --- DEVICE_FEATURE's data for logging, which has its ranges and bits in the message

export const LOGGING_CONTROL_SIZE = 16;
export const LOGGING_RANGE_SIZE = 16;
export const LOGGING_REPORT_SIZE = 24;

// --- MIG_DATA_READ, MIG_DATA_WRITE

/** argsz u32, size u32; data follows. */
export const MIG_DATA_SIZE = 8;
