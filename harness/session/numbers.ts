/** From the bigint addresses of the public API to the numbers inside. */
import { TASK_SIZE } from '../../host/mm/mm.js';
import { Errno } from '../../sim/errno.js';
import { parseSize, parseTime } from '../topology/units.js';

/** A user virtual address. EFAULT when no 4-level address space has it. */
export function userAddress(address: bigint): number {
  if (address < 0n || address >= BigInt(TASK_SIZE)) throw new Errno('EFAULT', `${hex(address)} is no user address`);
  return Number(address);
}

/** What a descriptor carries: any address that a number holds exactly, whether somebody may use it or not. EINVAL. */
export function descriptorAddress(address: bigint): number {
  if (address < 0n || address > BigInt(Number.MAX_SAFE_INTEGER)) throw new Errno('EINVAL', `${hex(address)} is beyond the addresses that descriptors are made for here (2^53)`);
  return Number(address);
}

/** Bytes of `64MiB` or of a number. EINVAL. */
export function bytes(size: string | number): number {
  const count = parseSize(size);
  if (count === undefined) throw new Errno('EINVAL', `${JSON.stringify(size)} is no size such as "64MiB", or bytes`);
  return count;
}

/** Nanoseconds of `10us` or of a number of nanoseconds. EINVAL. */
export function duration(time: string | number): number {
  const ns = typeof time === 'number' ? time : parseTime(time);
  if (ns === undefined || !Number.isSafeInteger(ns) || ns < 0) throw new Errno('EINVAL', `${JSON.stringify(time)} is no time such as "10us", or nanoseconds`);
  return ns;
}

function hex(address: bigint): string {
  return `0x${BigInt.asUintN(64, address).toString(16)}`;
}
