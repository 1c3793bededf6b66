/** Descriptors of a client, its memory and its eventfds, with a recorder that listens in. */
import { crc32 } from 'node:zlib';
import { isErrno } from '../../../sim/errno.js';
import type { MemoryWindow, ReceivedDescriptor, RemoteSignal } from '../transport.js';
import { FLAG_1, FLAG_2, FLAG_4 } from './format.js';
import type { Refusal } from './items.js';
import type { MachineRecorder } from './recorder.js';

/** What a client is told of an error: its name, or EIO for one of ours. */
function refusalOf(error: unknown): Refusal {
  return isErrno(error) ? { code: error.code, reason: error.message.slice(error.code.length + 3) } : { code: 'EIO', reason: 'the server failed' };
}

/**
 * Something that may be refused; a refusal is part of what happened.
 * @param say begins the item, with these flags; false when nothing is recorded
 */
export function recordOpening<T>(recorder: MachineRecorder, open: () => T, say: (opened: T | undefined, flags: number) => boolean): T {
  let opened: T;
  try {
    opened = open();
  } catch (error) {
    const { code, reason } = refusalOf(error);
    if (say(undefined, FLAG_1)) {
      recorder.buffer.text(code);
      recorder.buffer.text(reason);
      recorder.itemEnds();
    }
    throw error;
  }
  if (say(opened, 0)) recorder.itemEnds();
  return opened;
}

export class RecordedDescriptor implements ReceivedDescriptor {
  private readonly recorder: MachineRecorder;
  private readonly number: number;
  private readonly inner: ReceivedDescriptor;

  constructor(recorder: MachineRecorder, inner: ReceivedDescriptor) {
    this.recorder = recorder;
    this.number = recorder.nextDescriptor();
    this.inner = inner;
  }

  openWindow(offset: number, sizeBytes: number, writable: boolean): MemoryWindow | undefined {
    const { recorder, inner, number } = this;
    const window = recordOpening(recorder, () => inner.openWindow(offset, sizeBytes, writable), (found, flags) => {
      if (!recorder.effect('open-window', flags + (writable ? FLAG_2 : 0) + (found === undefined && flags === 0 ? FLAG_4 : 0))) return false;
      recorder.buffer.number(number);
      recorder.buffer.number(offset);
      recorder.buffer.number(sizeBytes);
      return true;
    });
    return window === undefined ? undefined : new RecordedWindow(recorder, window);
  }

  openSignal(): RemoteSignal {
    const { recorder, inner, number } = this;
    const signal = recordOpening(recorder, () => inner.openSignal(), (_signal, flags) => {
      if (!recorder.effect('open-signal', flags)) return false;
      recorder.buffer.number(number);
      return true;
    });
    return recordedSignal(recorder, signal);
  }

  close(): void {
    this.inner.close();
  }
}

function recordedSignal(recorder: MachineRecorder, inner: RemoteSignal): RemoteSignal {
  const number = recorder.nextSignal();
  return {
    signal: (value) => {
      if (recorder.effect('signal')) {
        recorder.buffer.number(number);
        recorder.buffer.number(value);
        recorder.itemEnds();
      }
      inner.signal(value);
    },
    listen: (listener) => {
      inner.listen(() => {
        if (!recorder.skipSignals && recorder.input('signalled')) {
          recorder.buffer.number(number);
          recorder.itemEnds();
        }
        listener();
      });
    },
    close: () => inner.close(),
  };
}

class RecordedWindow implements MemoryWindow {
  lo = 0;
  hi = 0;
  private readonly recorder: MachineRecorder;
  private readonly number: number;
  private readonly inner: MemoryWindow;

  constructor(recorder: MachineRecorder, inner: MemoryWindow) {
    this.recorder = recorder;
    this.number = recorder.nextWindow();
    this.inner = inner;
  }

  load64(offset: number): boolean {
    const { inner, recorder } = this;
    const ok = inner.load64(offset);
    this.lo = inner.lo;
    this.hi = inner.hi;
    if (recorder.access('load64', this.number, offset, ok ? 0 : FLAG_1)) {
      if (ok) {
        recorder.bytesRead += 8;
        recorder.buffer.word(inner.lo);
        recorder.buffer.word(inner.hi);
      }
      recorder.itemEnds();
    }
    return ok;
  }

  store64(offset: number, lo: number, hi: number): boolean {
    const { recorder } = this;
    const ok = this.inner.store64(offset, lo, hi);
    if (recorder.access('store64', this.number, offset, ok ? 0 : FLAG_1)) {
      recorder.buffer.word(lo);
      recorder.buffer.word(hi);
      recorder.itemEnds();
    }
    return ok;
  }

  compareExchange64(offset: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    const { recorder } = this;
    const ok = this.inner.compareExchange64(offset, expectLo, expectHi, lo, hi);
    if (recorder.access('exchange', this.number, offset, ok ? 0 : FLAG_1)) {
      for (const word of [expectLo, expectHi, lo, hi]) recorder.buffer.word(word);
      recorder.itemEnds();
    }
    return ok;
  }

  load(offset: number, size: 1 | 2 | 4): number {
    const { recorder } = this;
    const value = this.inner.load(offset, size);
    if (!recorder.skipReads && recorder.access('load', this.number, offset, sizeFlags(size) + (value < 0 ? FLAG_1 : 0))) {
      if (value >= 0) {
        recorder.bytesRead += size;
        recorder.buffer.number(value);
      }
      recorder.itemEnds();
    }
    return value;
  }

  store(offset: number, size: 1 | 2 | 4, value: number): boolean {
    const { recorder } = this;
    const ok = this.inner.store(offset, size, value);
    if (recorder.access('store', this.number, offset, sizeFlags(size) + (ok ? 0 : FLAG_1))) {
      recorder.buffer.number(value >>> 0);
      recorder.itemEnds();
    }
    return ok;
  }

  read(offset: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    const { recorder } = this;
    const ok = this.inner.read(offset, target, targetOffset, length);
    if (recorder.access('read', this.number, offset, ok ? 0 : FLAG_1)) {
      recorder.buffer.number(length);
      if (ok) {
        recorder.bytesRead += length;
        recorder.buffer.raw(target.subarray(targetOffset, targetOffset + length));
      }
      recorder.itemEnds();
    }
    return ok;
  }

  write(offset: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    const ok = this.inner.write(offset, source, sourceOffset, length);
    const { recorder } = this;
    if (recorder.access('write', this.number, offset, ok ? 0 : FLAG_1)) {
      recorder.buffer.number(length);
      recorder.buffer.word(crc32(source.subarray(sourceOffset, sourceOffset + length)));
      recorder.itemEnds();
    }
    return ok;
  }

  fill(offset: number, value: number, length: number): boolean {
    const ok = this.inner.fill(offset, value, length);
    const { recorder } = this;
    if (recorder.access('fill', this.number, offset, ok ? 0 : FLAG_1)) {
      recorder.buffer.number(length);
      recorder.buffer.number(value & 0xff);
      recorder.itemEnds();
    }
    return ok;
  }

  close(): void {
    this.inner.close();
  }
}

/** The size of a small access: flag 2 for two bytes, flag 4 for four. */
function sizeFlags(size: 1 | 2 | 4): number {
  return size === 1 ? 0 : size === 2 ? FLAG_2 : FLAG_4;
}

