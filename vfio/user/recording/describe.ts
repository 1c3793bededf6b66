/** Items in words, for who looks for the first difference. */
import { hex } from '../../../sim/address.js';
import { decodeHeader, HEADER_SIZE, TYPE_REPLY } from '../protocol/header.js';
import type { Item } from './items.js';

/** Names of the commands, by their numbers. */
const COMMANDS: Readonly<Record<number, string>> = {
  1: 'VERSION', 2: 'DMA_MAP', 3: 'DMA_UNMAP', 4: 'DEVICE_GET_INFO', 5: 'DEVICE_GET_REGION_INFO', 6: 'DEVICE_GET_REGION_IO_FDS', 7: 'DEVICE_GET_IRQ_INFO', 8: 'DEVICE_SET_IRQS',
  9: 'REGION_READ', 10: 'REGION_WRITE', 11: 'DMA_READ', 12: 'DMA_WRITE', 13: 'DEVICE_RESET', 15: 'REGION_WRITE_MULTI', 16: 'DEVICE_FEATURE', 17: 'MIG_DATA_READ', 18: 'MIG_DATA_WRITE',
};

/** What an item says of itself; the numbers of channels and windows are the caller's to explain. */
export function describeItem(item: Item): string {
  switch (item.kind) {
    case 'open':
    case 'close': return `the device is to ${item.kind}`;
    case 'connected': return 'a client connects';
    case 'bytes': return `${item.bytes.length} bytes arrive`;
    case 'disconnected': return `the client leaves (${item.why})`;
    case 'stopped': return 'the server ends the connection';
    case 'signalled': return `the client signals eventfd ${item.signal}`;
    case 'send': return `sends ${message(item.head, item.length)}${item.descriptors === 0 ? '' : ` with ${item.descriptors} descriptors`}, CRC ${hex(item.hash)}`;
    case 'shut': return 'ends the connection';
    case 'open-twin': return 'opens a second channel';
    case 'open-window': return `opens ${hex(item.sizeBytes)} bytes at ${hex(item.offset)} of descriptor ${item.descriptor}${item.writable ? ' for writing' : ''}`;
    case 'open-signal': return `takes descriptor ${item.descriptor} for an eventfd`;
    case 'load64': return `loads 8 bytes at ${place(item)}`;
    case 'load': return `loads ${bytes(item.size)} at ${place(item)}`;
    case 'read': return `reads ${bytes(item.length)} at ${place(item)}`;
    case 'exchange': return `replaces ${long(item.expectLo, item.expectHi)} by ${long(item.lo, item.hi)} at ${place(item)}`;
    case 'store64': return `stores ${long(item.lo, item.hi)} at ${place(item)}`;
    case 'store': return `stores ${hex(item.value)} (${bytes(item.size)}) at ${place(item)}`;
    case 'write': return `writes ${bytes(item.length)} with CRC ${hex(item.hash)} at ${place(item)}`;
    case 'fill': return `fills ${bytes(item.length)} with ${hex(item.value)} at ${place(item)}`;
    case 'signal': return `signals eventfd ${item.signal} with ${item.value}`;
    case 'end': return 'nothing: the recording ends';
  }
}

function place({ window, offset }: { readonly window: number; readonly offset: number }): string {
  return `${hex(offset)} of window ${window}`;
}

function bytes(count: number): string {
  return count === 1 ? '1 byte' : `${count} bytes`;
}

function long(lo: number, hi: number): string {
  return `0x${(hi >>> 0).toString(16).padStart(8, '0')}${(lo >>> 0).toString(16).padStart(8, '0')}`;
}

function message(head: Uint8Array, length: number): string {
  if (head.length < HEADER_SIZE) return `${length} bytes`;
  const { id, command, type, error, errno } = decodeHeader(head);
  const what = `${COMMANDS[command] ?? `command ${command}`}${type === TYPE_REPLY ? ' reply' : ''} ${id}`;
  return `${what}${error ? ` (errno ${errno})` : ''} of ${length} bytes [${Buffer.from(head.subarray(HEADER_SIZE)).toString('hex')}${length > head.length ? '…' : ''}]`;
}
