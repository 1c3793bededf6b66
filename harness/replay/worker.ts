/** A thread that replays files until none is left; started by worker-pool. */
import { parentPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { takeFiles, type WorkerShare } from './worker-task.js';

const { port, ...share } = workerData as WorkerShare & { readonly port: MessagePort };
takeFiles(share, (index, outcome) => port.postMessage({ index, outcome }));
port.close();
parentPort?.close();
