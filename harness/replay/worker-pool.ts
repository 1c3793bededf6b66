/** Replays many files on every core: this thread and workers take the next file from a shared counter. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { MessageChannel, Worker, receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import type { Problem } from '../topology/problems.js';
import type { ReplayReport } from './report.js';
import { applyKnown, KNOWN_FILE, knownListBeside, knownName, loadKnownList, missingFiles, ownListNaming, type KnownList } from './report-known.js';
import { systemError } from './vector-file.js';
import { takeFiles, type FileOutcome, type WorkerShare } from './worker-task.js';

export interface ReplayFilesOptions {
  /** List of known disagreements for all files; default: disagreements.yaml beside each, else the project's own that names it. */
  readonly known?: string;
  /** Threads, this one included; default: one per core, and one alone for less than eight files. */
  readonly threads?: number;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface ReplayFilesResult {
  /** In the order of the files. */
  readonly reports: readonly ReplayReport[];
  /** Files that could not be replayed. */
  readonly problems: readonly Problem[];
  /** Entries of lists that do not apply any more. */
  readonly outdated: readonly Problem[];
}

/** Below this, starting a thread takes longer than the work. */
const FEW_FILES = 8;
const REPLAYABLE = /\.(jsonl?(\.gz)?|rec)$/;

/**
 * Replays files, and folders as a whole (vectors, recordings and traces in them and below, by name).
 * @throws InvalidInput when a list of known disagreements cannot be used
 */
export async function replayFiles(paths: readonly string[], options: ReplayFilesOptions = {}): Promise<ReplayFilesResult> {
  const problems: Problem[] = [];
  const files: string[] = [];
  const wholeFolders = new Set<string>();
  for (const path of paths) collect(path, files, wholeFolders, problems);
  const lists = listsFor(files, options.known);
  const outcomes = await replayAll(files, options.threads ?? (files.length < FEW_FILES ? 1 : availableParallelism()), options.onProgress ?? (() => {}));
  const reports: ReplayReport[] = [];
  const outdated: Problem[] = [];
  outcomes.forEach((outcome, index) => {
    if ('problems' in outcome) {
      problems.push(...outcome.problems);
      return;
    }
    const list = lists.get(files[index]!);
    const applied = list === undefined ? { report: outcome.report, outdated: [] } : applyKnown(outcome.report, list);
    reports.push(applied.report);
    // a file elsewhere may share no more than its name with the one that our own list means
    if (options.known !== undefined || knownListBeside(files[index]!) !== undefined) outdated.push(...applied.outdated);
  });
  for (const folder of wholeFolders) {
    const list = files.filter((file) => dirname(file) === folder).map((file) => lists.get(file))[0];
    if (list !== undefined && options.known === undefined && existsSync(join(folder, KNOWN_FILE))) outdated.push(...missingFiles(list, new Set(files.filter((file) => dirname(file) === folder).map(knownName))));
  }
  return { reports, problems, outdated };
}

function collect(path: string, files: string[], wholeFolders: Set<string>, problems: Problem[]): void {
  let folder: boolean;
  try {
    folder = statSync(path).isDirectory();
  } catch (error) {
    problems.push({ file: path, message: systemError(error) });
    return;
  }
  if (!folder) {
    files.push(path);
    return;
  }
  const found = filesBelow(path, wholeFolders);
  if (found.length === 0) problems.push({ file: path, message: 'the folder holds no vectors (*.json, *.json.gz), no traces (*.jsonl, *.jsonl.gz) and no recordings of guests (*.rec)' });
  files.push(...found);
}

function filesBelow(folder: string, wholeFolders: Set<string>): string[] {
  wholeFolders.add(folder);
  const entries = readdirSync(folder, { withFileTypes: true }).toSorted((a, b) => (a.name < b.name ? -1 : 1));
  return entries.flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return filesBelow(path, wholeFolders);
    return REPLAYABLE.test(entry.name) ? [path] : [];
  });
}

/** The list of each file that has one; each list is read once. */
function listsFor(files: readonly string[], known: string | undefined): Map<string, KnownList> {
  const loaded = new Map<string, KnownList>();
  const lists = new Map<string, KnownList>();
  if (known !== undefined && files.length === 0) loadKnownList(known);
  for (const file of files) {
    const path = known ?? knownListBeside(file) ?? ownListNaming(file);
    if (path === undefined) continue;
    const list = loaded.get(path) ?? loadKnownList(path);
    loaded.set(path, list);
    lists.set(file, list);
  }
  return lists;
}

async function replayAll(files: readonly string[], threads: number, onProgress: (done: number, total: number) => void): Promise<FileOutcome[]> {
  const outcomes: FileOutcome[] = [];
  let done = 0;
  const note = (index: number, outcome: FileOutcome): void => {
    outcomes[index] = outcome;
    done++;
    onProgress(done, files.length);
  };
  const share = { files, next: new Int32Array(new SharedArrayBuffer(4)) };
  const helpers = Array.from({ length: Math.max(0, Math.min(threads, files.length) - 1) }, () => startHelper(share));
  try {
    takeFiles(share, (index, outcome) => {
      note(index, outcome);
      for (const { port } of helpers) drain(port, note);
    });
    for (const { port } of helpers) drain(port, note);
    // a helper may still work on its last file
    if (done < files.length) {
      await new Promise<void>((resolve, reject) => {
        for (const { port, worker } of helpers) {
          worker.on('error', reject);
          port.on('message', ({ index, outcome }: Answer) => {
            note(index, outcome);
            if (done === files.length) resolve();
          });
        }
      });
    }
  } finally {
    for (const { port, worker } of helpers) {
      port.close();
      await worker.terminate();
    }
  }
  return outcomes;
}

interface Helper {
  readonly worker: Worker;
  readonly port: MessagePort;
}

interface Answer {
  readonly index: number;
  readonly outcome: FileOutcome;
}

function startHelper(share: WorkerShare): Helper {
  const { port1, port2 } = new MessageChannel();
  const script = import.meta.url.endsWith('.ts') ? './worker-boot.mjs' : './worker.js';
  const worker = new Worker(new URL(script, import.meta.url), { workerData: { ...share, port: port2 }, transferList: [port2] });
  // whoever waits for its files hears of it again; without its help the others do everything
  worker.on('error', () => {});
  return { worker, port: port1 };
}

function drain(port: MessagePort, note: (index: number, outcome: FileOutcome) => void): void {
  for (let received = receiveMessageOnPort(port); received !== undefined; received = receiveMessageOnPort(port)) {
    const { index, outcome } = received.message as Answer;
    note(index, outcome);
  }
}
