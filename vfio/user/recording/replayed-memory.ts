/** Descriptors, memory and eventfds of a client that is not there: what they answer was recorded, what is done to them is compared. */
import { crc32 } from 'node:zlib';
import { Errno } from '../../../sim/errno.js';
import type { MemoryWindow, ReceivedDescriptor, RemoteSignal, Transport } from '../transport.js';
import { HEAD_BYTES } from './format.js';
import type { EffectItem, Refusal } from './items.js';

type Kind = EffectItem['kind'];
export type ItemOf<K extends Kind> = Extract<EffectItem, { kind: K }>;

/** What the machine does, as far as it knows itself; what it finds is the recording's. */
export type Doing = { [K in Kind]: Pick<ItemOf<K>, 'kind'> & Partial<ItemOf<K>> }[Kind];

/** The replay, to what stands in for the client. */
export interface Expectations {
  /** The recorded item if it is of this; undefined when the replay is over, here or before. */
  did<K extends Kind>(kind: K, doing: Doing & { kind: K }): ItemOf<K> | undefined;
  channelOpened(): number;
  windowOpened(descriptor: number): number;
  /** @param listen the latest listener */
  signalOpened(descriptor: number): number;
  listens(signal: number, listener: () => void): void;
  bytesRead: number;
}

/** Thrown into the machine after the replay is over, where it has to be given something. */
const OVER: Refusal = { code: 'ECANCELED', reason: 'the replay has ended' };

export function refuse(refusal: Refusal | undefined = OVER): never {
  throw new Errno(refusal.code, refusal.reason);
}

export class ReplayedDescriptor implements ReceivedDescriptor {
  private readonly replay: Expectations;
  private readonly number: number;

  constructor(replay: Expectations, number: number) {
    this.replay = replay;
    this.number = number;
  }

  openWindow(offset: number, sizeBytes: number, writable: boolean): MemoryWindow | undefined {
    const { replay, number: descriptor } = this;
    const item = replay.did('open-window', { kind: 'open-window', descriptor, offset, sizeBytes, writable });
    if (item === undefined || item.refused !== undefined) refuse(item?.refused);
    return item.found ? new ReplayedWindow(replay, replay.windowOpened(descriptor)) : undefined;
  }

  openSignal(): RemoteSignal {
    const { replay, number: descriptor } = this;
    const item = replay.did('open-signal', { kind: 'open-signal', descriptor });
    if (item === undefined || item.refused !== undefined) refuse(item?.refused);
    const signal = replay.signalOpened(descriptor);
    return {
      signal: (value) => void replay.did('signal', { kind: 'signal', signal, value }),
      listen: (listener) => replay.listens(signal, listener),
      close: () => {},
    };
  }

  close(): void {}
}

export function replayedTransport(replay: Expectations, channel: number): Transport {
  return {
    send: (bytes, descriptors) => {
      replay.did('send', { kind: 'send', channel, length: bytes.length, hash: crc32(bytes), descriptors: descriptors?.length ?? 0, head: bytes.subarray(0, HEAD_BYTES) });
    },
    close: () => void replay.did('shut', { kind: 'shut', channel }),
    resume: () => {},
  };
}

class ReplayedWindow implements MemoryWindow {
  lo = 0;
  hi = 0;
  private readonly replay: Expectations;
  private readonly number: number;

  constructor(replay: Expectations, number: number) {
    this.replay = replay;
    this.number = number;
  }

  load64(offset: number): boolean {
    const item = this.replay.did('load64', { kind: 'load64', window: this.number, offset });
    if (item === undefined || !item.ok) return false;
    this.replay.bytesRead += 8;
    this.lo = item.lo;
    this.hi = item.hi;
    return true;
  }

  store64(offset: number, lo: number, hi: number): boolean {
    return this.replay.did('store64', { kind: 'store64', window: this.number, offset, lo: lo >>> 0, hi: hi >>> 0 })?.ok ?? false;
  }

  compareExchange64(offset: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    const doing = { kind: 'exchange', window: this.number, offset, expectLo: expectLo >>> 0, expectHi: expectHi >>> 0, lo: lo >>> 0, hi: hi >>> 0 } as const;
    return this.replay.did('exchange', doing)?.ok ?? false;
  }

  load(offset: number, size: 1 | 2 | 4): number {
    const item = this.replay.did('load', { kind: 'load', window: this.number, offset, size });
    if (item === undefined || item.value < 0) return -1;
    this.replay.bytesRead += size;
    return item.value;
  }

  store(offset: number, size: 1 | 2 | 4, value: number): boolean {
    return this.replay.did('store', { kind: 'store', window: this.number, offset, size, value: value >>> 0 })?.ok ?? false;
  }

  read(offset: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    const bytes = this.replay.did('read', { kind: 'read', window: this.number, offset, length })?.bytes;
    if (bytes === undefined) return false;
    this.replay.bytesRead += length;
    target.set(bytes, targetOffset);
    return true;
  }

  write(offset: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    const hash = crc32(source.subarray(sourceOffset, sourceOffset + length));
    return this.replay.did('write', { kind: 'write', window: this.number, offset, length, hash })?.ok ?? false;
  }

  fill(offset: number, value: number, length: number): boolean {
    return this.replay.did('fill', { kind: 'fill', window: this.number, offset, length, value: value & 0xff })?.ok ?? false;
  }

  close(): void {}
}
