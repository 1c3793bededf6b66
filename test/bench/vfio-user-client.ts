/**
 * The client of the group `vfio-user`, in a process of its own as a VMM is: `vfio-user-client.ts SOCKET`. It gives the
 * server memory (a sealed memory file, and addresses without any), measures accesses to a register with blocking
 * calls, prints what it found as a line of JSON, and then answers the server's DMA messages until the server leaves.
 */
import { connectUnix, MessageArena } from '../../vfio/user/posix/socket.js';
import { posixCalls, SharedMemory } from '../../vfio/user/posix/index.js';
import { CMD, dmaMap, message, NO_REPLY, pack, CLIENT_CAPABILITIES, regionAccess, regionWrite, REPLY, u16, u32, versionPayload } from '../vfio-user/wire.js';
import { MESSAGE_BASE, MESSAGE_BYTES, WINDOW_BYTES, type ClientFigures } from './vfio-user-layout.js';

const CONFIG_REGION = 7;
const F_SETFL = 4;
const HEADER_BYTES = 16, DATA_OFFSET = 32;
const ROUND_TRIPS = 2500, POSTED = 15_000, REPETITIONS = 5;

const calls = posixCalls();
const fd = connectUnix(calls, process.argv[2]!);
calls.fcntl(fd, F_SETFL, 0);
const buffer = new Uint8Array(MESSAGE_BYTES + 64);

function sendAll(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    const count = calls.send(fd, at === 0 ? bytes : bytes.subarray(at), bytes.length - at, 0);
    if (count <= 0) throw new Error('the server has left');
    at += count;
  }
}

/** Fills the front of `buffer`; false at the end of the connection. */
function receive(from: number, length: number): boolean {
  for (let at = from; at < from + length; ) {
    const count = calls.recv(fd, buffer.subarray(at, from + length), from + length - at, 0);
    if (count <= 0) return false;
    at += count;
  }
  return true;
}

/** The next message stands in `buffer`; its length, 0 at the end. */
function receiveMessage(): number {
  if (!receive(0, HEADER_BYTES)) return 0;
  const size = u32(buffer, 4);
  return receive(HEADER_BYTES, size - HEADER_BYTES) ? size : 0;
}

function ask(command: number, payload: Uint8Array, descriptors: readonly number[] = []): void {
  const bytes = message(1, command, payload);
  if (descriptors.length === 0) sendAll(bytes);
  else {
    const arena = new MessageArena(calls);
    arena.send(fd, bytes, descriptors);
    arena.close();
  }
  if (receiveMessage() === 0 || u32(buffer, 12) !== 0) throw new Error(`command ${command}: error ${u32(buffer, 12)}`);
}

function roundTripsUs(): number {
  const read = message(2, CMD.REGION_READ, regionAccess(0, 8, 4));
  const start = performance.now();
  for (let i = 0; i < ROUND_TRIPS; i++) {
    sendAll(read);
    if (receiveMessage() !== 36) throw new Error('no register was read');
  }
  return (performance.now() - start) * 1000 / ROUND_TRIPS;
}

/** Writes without replies; the read at the end comes back when all have been carried out. */
function postedRate(): number {
  const write = message(3, CMD.REGION_WRITE, regionWrite(0, 8, pack([4, 0x1234])), NO_REPLY);
  const start = performance.now();
  for (let i = 0; i < POSTED; i++) sendAll(write);
  ask(CMD.REGION_READ, regionAccess(0, 8, 4));
  return POSTED / ((performance.now() - start) / 1000);
}

function repeat(measure: () => number): number[] {
  measure();
  return Array.from({ length: REPETITIONS }, measure);
}

/** Memory without a descriptor: what was written is dropped, what is read is whatever stands in the buffer. */
function answer(size: number): void {
  const command = u16(buffer, 2), count = u32(buffer, 24);
  const replySize = command === CMD.DMA_READ ? DATA_OFFSET + count : DATA_OFFSET;
  if (command === CMD.DMA_WRITE && size !== DATA_OFFSET + count) throw new Error('not all data has come');
  buffer.set(pack([4, replySize], [4, REPLY]), 4);
  sendAll(buffer.subarray(0, replySize));
}

ask(CMD.VERSION, versionPayload(0, CLIENT_CAPABILITIES));
const memory = new SharedMemory(calls, 'vfio-user-bench', WINDOW_BYTES);
ask(CMD.DMA_MAP, dmaMap(0, WINDOW_BYTES), [memory.descriptor]);
ask(CMD.DMA_MAP, dmaMap(MESSAGE_BASE, MESSAGE_BYTES));
ask(CMD.REGION_WRITE, regionWrite(CONFIG_REGION, 4, pack([2, 6])));
const figures: ClientFigures = { readUs: repeat(roundTripsUs), postedPerSecond: repeat(postedRate) };
console.log(JSON.stringify(figures));
for (let size = receiveMessage(); size > 0; size = receiveMessage()) answer(size);
memory.close();
