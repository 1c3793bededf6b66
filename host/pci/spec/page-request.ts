/** Correlation ids of page requests in the trace: everybody on the path derives the same id from what the wire carries. */

/** Above every id that `Trace.nextCorrelation` hands out. */
const PAGE_REQUESTS = 2 ** 40;

/** Correlation id of a page request group: requests, log entries and the response share it. */
export function pageRequestCorrelation(sourceId: number, prgIndex: number): number {
  return PAGE_REQUESTS + sourceId * 512 + prgIndex;
}
