/** One file of a replay, in whichever thread: a report, or what is wrong with the file. */
import { InvalidInput, type Problem } from '../topology/problems.js';
import { isGuestRecording, replayGuest } from './guest-replay.js';
import { replayLinuxTrace } from './linux-replay.js';
import type { ReplayReport } from './report.js';
import { firstBytes, readJsonText } from './vector-file.js';
import { parseVector } from './vector-read.js';
import { replayVector } from './vector-replay.js';

/** Plain data: it crosses threads. */
export type FileOutcome = { readonly report: ReplayReport } | { readonly problems: readonly Problem[] };

/** Recordings of guests (by their first bytes), vectors, recordings of our own runs, and (by their name, *.jsonl) traces. */
export function replayFile(file: string): ReplayReport {
  if (isGuestRecording(firstBytes(file))) return replayGuest(file);
  const text = readJsonText(file);
  return /\.jsonl(\.gz)?$/.test(file) ? replayLinuxTrace(text, file) : replayVector(parseVector(text, file), file);
}

export function outcomeOf(file: string): FileOutcome {
  try {
    return { report: replayFile(file) };
  } catch (error) {
    if (error instanceof InvalidInput) return { problems: error.problems };
    throw error;
  }
}

/** What the threads of one replay share: the files, and which one is next. */
export interface WorkerShare {
  readonly files: readonly string[];
  readonly next: Int32Array;
}

/** Takes files until none is left. */
export function takeFiles({ files, next }: WorkerShare, done: (index: number, outcome: FileOutcome) => void): void {
  for (;;) {
    const index = Atomics.add(next, 0, 1);
    if (index >= files.length) return;
    done(index, outcomeOf(files[index]!));
  }
}
