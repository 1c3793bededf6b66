/** What Identify answers: who the controller and its one namespace are (NVMe 1.4 section 5.15). */
import { store32, storeSized } from '../../../sim/little-endian.js';
import { storeAddress } from '../spec/commands.js';
import {
  CNTRLTYPE_IO, DLFEAT_WRITE_ZEROES, DLFEAT_ZEROES, FR_BYTES, ID_CTRL, ID_NS, IDENTIFY_SIZE, LPA_EFFECTS, LPA_EXTENDED, MN_BYTES, NIDT_EUI64, NIDT_UUID, NSATTR_PROTECTED, ONCS_COMPARE,
  ONCS_DSM, ONCS_SELECT, ONCS_WRITE_ZEROES, SN_BYTES, VWC_FLUSH_ALL, VWC_PRESENT,
} from '../spec/identify.js';
import { CQES, NVME_SUBSYSTEM_VENDOR_ID, NVME_VENDOR_ID, SQES, VS_1_4 } from '../spec/registers.js';
import { CRITICAL_TEMPERATURE_KELVIN, WARNING_TEMPERATURE_KELVIN } from './features.js';

export const MODEL = 'vfiosim NVMe controller';
export const FIRMWARE = '1.0';
/** Zero-based: four of each. */
export const ABORT_LIMIT = 3;
export const EVENT_LIMIT = 3;
/** Entries of the error log. */
export const ERROR_ENTRIES = 64;

export interface ControllerIdentity {
  readonly serial: string;
  /** Log2 of the largest transfer in 4 KiB pages; 0: no limit. */
  readonly mdts: number;
}

export interface NamespaceIdentity {
  readonly serial: string;
  readonly blocks: number;
  /** Log2 of the bytes of a block. */
  readonly blockShift: number;
  readonly readOnly: boolean;
}

export function identifyController({ serial, mdts }: ControllerIdentity): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE);
  storeSized(data, ID_CTRL.VID, 2, NVME_VENDOR_ID);
  storeSized(data, ID_CTRL.SSVID, 2, NVME_SUBSYSTEM_VENDOR_ID);
  text(data, ID_CTRL.SN, SN_BYTES, serial);
  text(data, ID_CTRL.MN, MN_BYTES, MODEL);
  text(data, ID_CTRL.FR, FR_BYTES, FIRMWARE);
  data[ID_CTRL.RAB] = 6;
  data.set([0x00, 0x54, 0x52], ID_CTRL.IEEE);
  data[ID_CTRL.MDTS] = mdts;
  store32(data, ID_CTRL.VER, VS_1_4);
  data[ID_CTRL.CNTRLTYPE] = CNTRLTYPE_IO;
  data[ID_CTRL.ACL] = ABORT_LIMIT;
  data[ID_CTRL.AERL] = EVENT_LIMIT;
  // one firmware slot, read-only
  data[ID_CTRL.FRMW] = 0x03;
  data[ID_CTRL.LPA] = LPA_EFFECTS | LPA_EXTENDED;
  data[ID_CTRL.ELPE] = ERROR_ENTRIES - 1;
  storeSized(data, ID_CTRL.WCTEMP, 2, WARNING_TEMPERATURE_KELVIN);
  storeSized(data, ID_CTRL.CCTEMP, 2, CRITICAL_TEMPERATURE_KELVIN);
  data[ID_CTRL.SQES] = (SQES << 4) | SQES;
  data[ID_CTRL.CQES] = (CQES << 4) | CQES;
  store32(data, ID_CTRL.NN, 1);
  storeSized(data, ID_CTRL.ONCS, 2, ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_SELECT);
  data[ID_CTRL.VWC] = VWC_PRESENT | VWC_FLUSH_ALL;
  ascii(data, ID_CTRL.SUBNQN, `nqn.2014-08.org.nvmexpress:uuid:${uuidText(uuidOf(serial))}`);
  // power state 0: 25 W, 16 µs to enter, 4 µs to leave
  storeSized(data, ID_CTRL.PSD0, 2, 2500);
  store32(data, ID_CTRL.PSD0 + 4, 16);
  store32(data, ID_CTRL.PSD0 + 8, 4);
  return data;
}

export function identifyNamespace({ serial, blocks, blockShift, readOnly }: NamespaceIdentity): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE);
  storeAddress(data, ID_NS.NSZE, blocks);
  storeAddress(data, ID_NS.NCAP, blocks);
  storeAddress(data, ID_NS.NUSE, blocks);
  data[ID_NS.DLFEAT] = DLFEAT_ZEROES | DLFEAT_WRITE_ZEROES;
  storeAddress(data, ID_NS.NVMCAP, blocks * 2 ** blockShift);
  data[ID_NS.NSATTR] = readOnly ? NSATTR_PROTECTED : 0;
  data.set(euiOf(serial), ID_NS.EUI64);
  // format 0, the only one: no metadata
  data[ID_NS.LBAF0 + 2] = blockShift;
  return data;
}

/** The namespace's EUI64 and UUID. */
export function namespaceDescriptors(serial: string): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE);
  data.set([NIDT_EUI64, 8], 0);
  data.set(euiOf(serial), 4);
  data.set([NIDT_UUID, 16], 12);
  data.set(uuidOf(serial), 16);
  return data;
}

/** A list of 32-bit namespace identifiers above `after`. */
export function namespaceList(after: number): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE);
  if (after < 1) store32(data, 0, 1);
  return data;
}

/** The controllers with identifiers from `first` on: there is number 0. */
export function controllerList(first: number): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE);
  if (first === 0) data[0] = 1;
  return data;
}

/** 64 bits that differ for different serial numbers (FNV-1a). */
function hashOf(serial: string, seed: number): number {
  let hash = (0x811c_9dc5 ^ seed) >>> 0;
  for (let i = 0; i < serial.length; i++) hash = Math.imul(hash ^ serial.charCodeAt(i), 0x0100_0193) >>> 0;
  return hash;
}

function euiOf(serial: string): Uint8Array {
  const hash = hashOf(serial, 0);
  return Uint8Array.of(0x52, 0x54, 0x00, hashOf(serial, 1) & 0xff, hash >>> 24, hash >>> 16, hash >>> 8, hash);
}

/** A UUID of version 8, made from the serial number. */
function uuidOf(serial: string): Uint8Array {
  const data = new Uint8Array(16);
  for (let i = 0; i < 4; i++) store32(data, 4 * i, hashOf(serial, i + 2));
  data[6] = 0x80 | (data[6]! & 0x0f);
  data[8] = 0x80 | (data[8]! & 0x3f);
  return data;
}

function uuidText(uuid: Uint8Array): string {
  const digits = [...uuid].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return [digits.slice(0, 8), digits.slice(8, 12), digits.slice(12, 16), digits.slice(16, 20), digits.slice(20)].join('-');
}

/** Padded with blanks. */
function text(data: Uint8Array, at: number, length: number, value: string): void {
  data.fill(0x20, at, at + length);
  ascii(data.subarray(0, at + length), at, value);
}

function ascii(data: Uint8Array, at: number, value: string): void {
  for (let i = 0; i < value.length && at + i < data.length; i++) data[at + i] = value.charCodeAt(i);
}
