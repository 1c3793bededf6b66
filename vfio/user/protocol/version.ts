/**
 * VFIO_USER_VERSION: two numbers and capabilities as JSON with a terminating NUL (QEMU docs/interop/vfio-user.rst).
 * Capabilities that this implementation does not know are passed over; known ones of a wrong type are refused.
 */
import { Errno } from '../../../sim/errno.js';

export const VERSION_MAJOR = 0;
/** Newest minor version that is spoken; a reply never names more than was offered. */
export const VERSION_MINOR = 2;
export const VERSION_FIXED_SIZE = 4;
export const DEFAULT_MAX_DATA_TRANSFER = 1024 * 1024;

export interface Capabilities {
  readonly max_msg_fds?: number;
  readonly max_data_xfer_size?: number;
  readonly max_dma_maps?: number;
  readonly pgsizes?: number;
  readonly twin_socket?: { readonly supported: boolean; readonly fd_index?: number };
  readonly write_multiple?: boolean;
}

export interface VersionMessage {
  readonly major: number;
  readonly minor: number;
  readonly capabilities: Capabilities;
}

const NUMBERS = ['max_msg_fds', 'max_data_xfer_size', 'max_dma_maps', 'pgsizes'] as const;

/** EINVAL length, NUL, UTF-8, JSON, types. */
export function decodeVersion(payload: Uint8Array): VersionMessage {
  if (payload.length < VERSION_FIXED_SIZE) throw new Errno('EINVAL', `VERSION: payload of ${payload.length} bytes`);
  const major = payload[0]! | (payload[1]! << 8), minor = payload[2]! | (payload[3]! << 8);
  return { major, minor, capabilities: payload.length === VERSION_FIXED_SIZE ? {} : decodeCapabilities(payload.subarray(VERSION_FIXED_SIZE)) };
}

function decodeCapabilities(data: Uint8Array): Capabilities {
  if (data.at(-1) !== 0) throw new Errno('EINVAL', 'VERSION: data does not end with NUL');
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(data.subarray(0, data.indexOf(0))));
  } catch {
    throw new Errno('EINVAL', 'VERSION: data is no JSON in UTF-8');
  }
  if (!isObject(json)) throw new Errno('EINVAL', 'VERSION: data is no JSON object');
  const said = json['capabilities'] ?? {};
  if (!isObject(said)) throw new Errno('EINVAL', 'VERSION: capabilities are no JSON object');
  const numbers: Partial<Record<(typeof NUMBERS)[number], number>> = {};
  for (const name of NUMBERS) {
    const value = said[name];
    if (value === undefined) continue;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) throw new Errno('EINVAL', `VERSION: ${name} is no whole number`);
    numbers[name] = value;
  }
  const multiple = said['write_multiple'];
  if (multiple !== undefined && typeof multiple !== 'boolean') throw new Errno('EINVAL', 'VERSION: write_multiple is no boolean');
  const twin = twinOf(said['twin_socket']);
  return { ...numbers, ...(multiple === undefined ? {} : { write_multiple: multiple }), ...(twin === undefined ? {} : { twin_socket: twin }) };
}

function twinOf(value: unknown): Capabilities['twin_socket'] {
  if (value === undefined) return undefined;
  if (!isObject(value)) throw new Errno('EINVAL', 'VERSION: twin_socket is no JSON object');
  const { supported = false, fd_index: index } = value;
  if (typeof supported !== 'boolean') throw new Errno('EINVAL', 'VERSION: twin_socket.supported is no boolean');
  return { supported, ...(typeof index === 'number' ? { fd_index: index } : {}) };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The payload. @param data `undefined`: version numbers only */
export function encodeVersion(major: number, minor: number, capabilities: Capabilities | undefined): Uint8Array {
  const data = capabilities === undefined ? new Uint8Array(0) : new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`);
  const payload = new Uint8Array(VERSION_FIXED_SIZE + data.length);
  payload.set([major, major >>> 8, minor, minor >>> 8]);
  payload.set(data, VERSION_FIXED_SIZE);
  return payload;
}
