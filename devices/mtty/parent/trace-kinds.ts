/** What the sample parent tells. Linux' sample has debug messages only; the names are ours. */
import type { Trace } from '../../../sim/trace.js';

export interface MttyTrace {
  dmaStart(device: string, port: number, txPage: number, rxPage: number, length: number): void;
  /** `error` is a DMA_ERROR; `done` bytes arrived. */
  dmaEnd(device: string, port: number, error: number, done: number): void;
  pinned(device: string, port: number, iova: number, pages: number): void;
  unpinned(device: string, port: number, pages: number): void;
  /** What of a notified range was pinned, and whether it is given back now. */
  dmaUnmap(device: string, iova: number, sizeBytes: number, transfers: number): void;
  interrupt(device: string, index: number): void;
}

export function mttyTrace(trace: Trace): MttyTrace {
  const dmaStart = trace.define('mtty:dma_start', [['device', 'str'], ['port', 'dec'], ['tx', 'page'], ['rx', 'page'], ['length', 'dec']]);
  const dmaEnd = trace.define('mtty:dma_end', [['device', 'str'], ['port', 'dec'], ['error', 'dec'], ['done', 'dec']]);
  const pinned = trace.define('mtty:pin_pages', [['device', 'str'], ['port', 'dec'], ['iova', 'hex'], ['pages', 'dec']]);
  const unpinned = trace.define('mtty:unpin_pages', [['device', 'str'], ['port', 'dec'], ['pages', 'dec']]);
  const dmaUnmap = trace.define('mtty:dma_unmap', [['device', 'str'], ['iova', 'hex'], ['size', 'hex'], ['transfers', 'dec']]);
  const interrupt = trace.define('mtty:interrupt', [['device', 'str'], ['index', 'dec']]);
  const str = trace.intern.bind(trace);
  return {
    dmaStart: (device, port, txPage, rxPage, length) => trace.record(dmaStart, 0, str(device), port, txPage, rxPage, length),
    dmaEnd: (device, port, error, done) => trace.record(dmaEnd, 0, str(device), port, error, done),
    pinned: (device, port, iova, pages) => trace.record(pinned, 0, str(device), port, iova, pages),
    unpinned: (device, port, pages) => trace.record(unpinned, 0, str(device), port, pages),
    dmaUnmap: (device, iova, sizeBytes, transfers) => trace.record(dmaUnmap, 0, str(device), iova, sizeBytes, transfers),
    interrupt: (device, index) => trace.record(interrupt, 0, str(device), index),
  };
}
