import type { SpanKinds } from '../sim/trace-export.js';

/** What takes time and is drawn as a span in ui.perfetto.dev. */
export const TRACE_SPANS: readonly SpanKinds[] = [
  { name: 'page request', begin: 'pci:page_request', end: 'pci:page_response' },
  { name: 'descriptor', begin: 'dsa:submit', end: 'dsa:complete' },
];
