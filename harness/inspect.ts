/** Looking at a machine from outside: which table entries translate an address, now. */
import { unknownName } from './topology/problems.js';
import { parseAddress } from './topology/units.js';
import { ACCESS_READ, NO_PASID } from '../host/pci/dma-port.js';
import { offsetOf, pageOf } from '../sim/address.js';

export interface WalkTarget {
  /** Name of the topology, or BDF; `guest` or `guest:device` for the buffer of a guest's process. */
  readonly device: string;
  /** A number, a process name, or undefined for requests without PASID. */
  readonly pasid: number | string | undefined;
  readonly address: bigint | { readonly buffer: string; readonly offset: number };
}

export interface WalkReportStep {
  /** Of a walk through several address spaces: from what to what. */
  readonly stage?: string;
  readonly what: string;
  readonly level: number;
  readonly address: number;
  readonly qwords: readonly bigint[];
  readonly text: string;
}

export interface WalkReport {
  readonly device: string;
  readonly pasid: number | undefined;
  readonly address: bigint;
  readonly steps: readonly WalkReportStep[];
  readonly physical: bigint | undefined;
  readonly pages: number;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
  readonly reason: number;
  readonly text: string;
}

/**
 * `DEVICE/PASID/ADDRESS`: PASID a number, a process name or `-`; ADDRESS 0x…, or a buffer of that process with `+offset`.
 * In a guest `GUEST/PROCESS/ADDRESS`, or `GUEST:DEVICE/PROCESS/ADDRESS` to name one of its devices; `MDEV/-/ADDRESS` for a
 * mediated device. A sentence when it is none.
 */
export function parseWalkTarget(text: string): WalkTarget | string {
  const parts = text.split('/');
  if (parts.length !== 3 || parts.some((part) => part === '')) return `"${text}" is not DEVICE/PASID/ADDRESS, such as dsa0/1/0x7ffff7fbb000, dsa0/app/buffer+0x1000, or vm0/app/buffer of a guest's process`;
  const [device, pasidText, addressText] = parts as [string, string, string];
  const pasid = pasidText === '-' ? undefined : /^(0x[0-9a-fA-F]+|\d+)$/.test(pasidText) ? Number(pasidText) : pasidText;
  if (typeof pasid === 'number' && pasid >= 2 ** 20) return `PASID ${pasidText} has more than 20 bits`;
  const address = parseAddress(addressText);
  if (address !== undefined) return { device, pasid, address };
  const named = /^([A-Za-z0-9._-]+?)(?:\+(0x[0-9a-fA-F]+|\d+))?$/.exec(addressText);
  if (named === null || typeof pasid !== 'string') return `"${addressText}" is no address; allowed: 0x…, or a buffer name when the PASID is given as a process name`;
  return { device, pasid, address: { buffer: named[1]!, offset: Number(named[2] ?? 0) } };
}

/** What the machine offers to a walk. */
export interface Inspectable {
  readonly deviceNames: readonly string[];
  sourceIdOf(device: string): number | undefined;
  readonly processNames: readonly string[];
  pasidOf(process: string): number | undefined;
  bufferAddress(process: string, buffer: string): number | undefined;
  explainWalk(sourceId: number, pasid: number, page: number, access: number): Omit<WalkReport, 'device' | 'pasid' | 'address' | 'physical'> & { readonly page: number | undefined };
}

/** Walks an address; a sentence when device, process or buffer are unknown. */
export function walk(machine: Inspectable, target: WalkTarget): WalkReport | string {
  const sourceId = machine.sourceIdOf(target.device);
  if (sourceId === undefined) return unknownName('device', target.device, machine.deviceNames);
  let pasid = typeof target.pasid === 'number' ? target.pasid : undefined;
  if (typeof target.pasid === 'string') {
    if (!machine.processNames.includes(target.pasid)) return unknownName('process', target.pasid, machine.processNames);
    pasid = machine.pasidOf(target.pasid);
    if (pasid === undefined) return `process ${target.pasid} has no PASID at this moment; --at names another`;
  }
  let address: bigint;
  if (typeof target.address === 'bigint') ({ address } = target as { address: bigint });
  else {
    const base = machine.bufferAddress(String(target.pasid), target.address.buffer);
    if (base === undefined) return `process ${String(target.pasid)} has no buffer "${target.address.buffer}" at this moment`;
    address = BigInt(base + target.address.offset);
  }
  const { page, ...rest } = machine.explainWalk(sourceId, pasid ?? NO_PASID, pageOf(address), ACCESS_READ);
  return { device: target.device, pasid, address, ...rest, physical: page === undefined ? undefined : BigInt(page) * 4096n + BigInt(offsetOf(address)) };
}
