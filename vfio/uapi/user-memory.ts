/**
 * Copies between kernel and user memory, and the rule of every record that starts with `argsz` (E27): what the
 * caller says to have must hold the fields that the call needs, flags that nobody knows are refused, and memory that
 * cannot be reached is -EFAULT. All of VFIO's ioctls come through here, so that they behave alike.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Struct } from '../../sim/layout.js';
import type { Steps } from '../../sim/task.js';
import { SegmentationFault } from '../../host/mm/mm.js';
import type { Process } from '../../host/process.js';
import { bytesOf, wordsOfBytes } from './fields.js';

/** What is read at once: who names a length beyond all memory is refused at the first page that is missing. */
const PIECE_BYTES = 1 << 20;

/** copy_from_user. EFAULT. */
export function* copyFromUser(process: Process, address: number, length: number): Steps<Uint8Array> {
  if (length > PIECE_BYTES) return yield* copyPieces(process, address, length);
  const bytes = new Uint8Array(length);
  try {
    yield* process.mm.read(address, bytes);
  } catch (error) {
    throw asFault(error, process, 'read', address, length);
  }
  return bytes;
}

function* copyPieces(process: Process, address: number, length: number): Steps<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for (let done = 0; done < length; done += PIECE_BYTES) pieces.push(yield* copyFromUser(process, address + done, Math.min(PIECE_BYTES, length - done)));
  const bytes = new Uint8Array(length);
  pieces.forEach((piece, i) => bytes.set(piece, i * PIECE_BYTES));
  return bytes;
}

/** copy_to_user. EFAULT; bytes before the faulting page have been written. */
export function* copyToUser(process: Process, address: number, bytes: Uint8Array): Steps {
  try {
    yield* process.mm.write(address, bytes);
  } catch (error) {
    throw asFault(error, process, 'write', address, bytes.length);
  }
}

/** A string of at most `limit` bytes with its end (strndup_user). EFAULT, EINVAL too long. */
export function* stringFromUser(process: Process, address: number, limit = 4096): Steps<string> {
  let text = '';
  while (text.length < limit) {
    // Up to the end of the page: what lies behind it need not be mapped when the string ends before.
    const chunk = yield* copyFromUser(process, address + text.length, Math.min(limit - text.length, 4096 - ((address + text.length) % 4096)));
    const end = chunk.indexOf(0);
    text += String.fromCharCode(...chunk.subarray(0, end < 0 ? chunk.length : end));
    if (end >= 0) return text;
  }
  throw new Errno('EINVAL', `the string at ${hex(address)} is longer than ${limit - 1} bytes`);
}

/** Some words of the caller's memory. EFAULT. */
export function* wordsFromUser(process: Process, address: number, words: number): Steps<Uint32Array> {
  return wordsOfBytes(yield* copyFromUser(process, address, words * 4));
}

export function* wordsToUser(process: Process, address: number, words: ArrayLike<number>): Steps {
  yield* copyToUser(process, address, bytesOf(words));
}

/**
 * Reads the record that an ioctl's argument points to: its first `minsz` bytes, the rest of the words zero.
 * EFAULT; EINVAL when the record's `argsz` is below `minsz`.
 */
export function* recordFromUser(process: Process, address: number, layout: Struct<'argsz'>, minsz = layout.sizeBytes): Steps<Uint32Array> {
  const words = new Uint32Array(layout.sizeWords);
  words.set(wordsOfBytes(yield* copyFromUser(process, address, minsz)));
  checkArgsz(layout.name, layout.f.argsz.get(words), minsz);
  return words;
}

/** EINVAL when the caller provides less than the call needs. */
export function checkArgsz(what: string, argsz: number, minsz: number): void {
  if (argsz < minsz) throw new Errno('EINVAL', `argsz ${argsz} of ${what} is below ${minsz}`);
}

/** EINVAL when a bit outside of `known` is set. */
export function checkFlags(what: string, flags: number, known: number): void {
  if ((flags & ~known) !== 0) throw new Errno('EINVAL', `flags ${hex(flags)} of ${what}: ${hex((flags & ~known) >>> 0)} means nothing`);
}

function asFault(error: unknown, process: Process, verb: string, address: number, length: number): unknown {
  if (!(error instanceof SegmentationFault)) return error;
  return new Errno('EFAULT', `cannot ${verb} ${length} bytes at ${hex(address)} of ${process.name}: ${error.outcome}`);
}
