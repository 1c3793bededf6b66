/** Messages of the vfio-user protocol, put together by hand: offsets are those of QEMU's docs/interop/vfio-user.rst. */

export const CMD = {
  VERSION: 1, DMA_MAP: 2, DMA_UNMAP: 3, GET_INFO: 4, GET_REGION_INFO: 5, GET_REGION_IO_FDS: 6, GET_IRQ_INFO: 7, SET_IRQS: 8, REGION_READ: 9, REGION_WRITE: 10,
  DMA_READ: 11, DMA_WRITE: 12, RESET: 13, DIRTY_PAGES: 14, WRITE_MULTI: 15, FEATURE: 16, MIG_READ: 17, MIG_WRITE: 18,
} as const;
export const REPLY = 1, NO_REPLY = 0x10, ERROR = 0x20;
export const GET = 1 << 16, SET = 1 << 17, PROBE = 1 << 18;
export const EVENTFD_TRIGGER = 0x24, EVENTFD_UNMASK = 0x14, NONE_TRIGGER = 0x21;

type Field = readonly [bytes: 1 | 2 | 4 | 8, value: number | bigint];

/** Little-endian fields one behind the other. */
export function pack(...fields: readonly Field[]): Uint8Array {
  const bytes = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  let at = 0;
  for (const [size, value] of fields) {
    let rest = BigInt.asUintN(64, BigInt(value));
    for (let i = 0; i < size; i++, rest >>= 8n) bytes[at++] = Number(rest & 0xffn);
  }
  return bytes;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

export function u16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}

export function u32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

export function u64(bytes: Uint8Array, at: number): number {
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true));
}

export function message(id: number, command: number, payload: Uint8Array = new Uint8Array(0), flags = 0, errno = 0, size = 16 + payload.length): Uint8Array {
  return concat(pack([2, id], [2, command], [4, size], [4, flags], [4, errno]), payload);
}

export interface Answer {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly errno: number;
  readonly payload: Uint8Array;
}

export function parse(bytes: Uint8Array): Answer {
  return { id: u16(bytes, 0), command: u16(bytes, 2), flags: u32(bytes, 8), errno: u32(bytes, 12), payload: bytes.slice(16) };
}

export function versionPayload(minor = 0, json?: unknown, major = 0): Uint8Array {
  const data = json === undefined ? new Uint8Array(0) : new TextEncoder().encode(`${JSON.stringify(json)}\0`);
  return concat(pack([2, major], [2, minor]), data);
}

/** What QEMU 10.2 and 11.1 send. */
export const QEMU_CAPABILITIES = {
  capabilities: { pgsizes: 4096, max_msg_fds: 16, max_dma_maps: 65535, max_data_xfer_size: 1048576, migration: { max_bitmap_size: 268435456, pgsize: 4096 }, write_multiple: true },
};

/** A client that is no QEMU, and takes the protocol's text at its word. */
export const CLIENT_CAPABILITIES = { capabilities: { ...QEMU_CAPABILITIES.capabilities, max_dma_maps: 4096 } };

export function jsonOf(payload: Uint8Array): { capabilities: Record<string, unknown> } {
  return JSON.parse(new TextDecoder().decode(payload.subarray(4, -1))) as { capabilities: Record<string, unknown> };
}

export function dmaMap(address: number, size: number, offset = 0, flags = 3, argsz = 32): Uint8Array {
  return pack([4, argsz], [4, flags], [8, offset], [8, address], [8, size]);
}

export function dmaUnmap(address: number, size: number, flags = 0, argsz = 24): Uint8Array {
  return pack([4, argsz], [4, flags], [8, address], [8, size]);
}

export function regionAccess(region: number, offset: number | bigint, count: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  return concat(pack([8, offset], [4, region], [4, count]), data);
}

export function regionWrite(region: number, offset: number, data: Uint8Array): Uint8Array {
  return regionAccess(region, offset, data.length, data);
}

/** device_info is 16 bytes, region_info 32, irq_info 16; `index` stands at 8 in the last two. */
export function infoRequest(size: number, index = 0, argsz = size): Uint8Array {
  const bytes = new Uint8Array(size);
  bytes.set(pack([4, argsz]));
  if (size >= 12) bytes.set(pack([4, index]), 8);
  return bytes;
}

export function setIrqs(index: number, start: number, count: number, flags: number, data: Uint8Array = new Uint8Array(0), argsz = 20 + data.length): Uint8Array {
  return concat(pack([4, argsz], [4, flags], [4, index], [4, start], [4, count]), data);
}

export function feature(flags: number, data: Uint8Array = new Uint8Array(0), argsz = 8 + data.length): Uint8Array {
  return concat(pack([4, argsz], [4, flags]), data);
}

export function writeMulti(writes: readonly { region: number; offset: number; data: Uint8Array; count?: number }[], count = writes.length): Uint8Array {
  return concat(pack([8, count]), ...writes.map(({ region, offset, data, count: length = data.length }) => concat(pack([8, offset], [4, region], [4, length]), data, new Uint8Array(8 - data.length))));
}
