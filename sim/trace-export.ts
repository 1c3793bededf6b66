/**
 * A trace as text: NDJSON for scripts, and the Chrome/Perfetto JSON event format, where records of one subsystem
 * (the part of a kind's name before ":") share a track, records of one correlation id are joined by flow arrows,
 * and pairs of kinds become async spans. Both yield chunks, so that a long trace is never one string.
 */
import type { Trace, TraceRecord } from './trace.js';

/** One JSON object per line: index, t (ns), kind, id (correlation, when there is one), then the arguments by name. */
export function* traceToNdjson(trace: Trace): Generator<string> {
  for (const record of trace.records()) {
    const head: Record<string, unknown> = { i: record.index, t: record.timeNs, kind: record.kind.name };
    if (record.correlation !== 0) head['id'] = record.correlation;
    yield `${JSON.stringify({ ...head, ...argumentsOf(trace, record) })}\n`;
  }
}

/** Two kinds that begin and end something that takes time, joined by their correlation id. */
export interface SpanKinds {
  readonly name: string;
  readonly begin: string;
  readonly end: string;
}

/** Instants are drawn this long, so that flow arrows have a slice to start and end at. */
const INSTANT_US = 0.05;

/** JSON for chrome://tracing and ui.perfetto.dev. */
export function* traceToPerfetto(trace: Trace, spans: readonly SpanKinds[] = []): Generator<string> {
  const tracks = new Map<string, number>();
  for (const kind of trace.kinds) {
    const track = trackOf(kind.name);
    if (!tracks.has(track)) tracks.set(track, tracks.size + 1);
  }
  const begins = new Map(spans.map((span) => [span.begin, span]));
  const ends = new Map(spans.map((span) => [span.end, span]));
  const { firsts, lasts } = correlationEnds(trace);
  yield '{"displayTimeUnit":"ns","traceEvents":[\n';
  const names = [...tracks].map(([name, tid]) => JSON.stringify({ ph: 'M', pid: 1, tid, name: 'thread_name', args: { name } }));
  yield names.join(',\n');
  for (const record of trace.records()) {
    const base = { pid: 1, tid: tracks.get(trackOf(record.kind.name))!, ts: record.timeNs / 1000 };
    const { correlation } = record;
    const events: object[] = [{ ...base, ph: 'X', dur: INSTANT_US, name: record.kind.name, cat: trackOf(record.kind.name), args: argumentsOf(trace, record) }];
    if (correlation !== 0 && firsts.get(correlation) !== lasts.get(correlation)) {
      const ph = firsts.get(correlation) === record.index ? 's' : lasts.get(correlation) === record.index ? 'f' : 't';
      events.push({ ...base, ph, id: correlation, name: 'correlation', cat: 'flow', ...(ph === 'f' ? { bp: 'e' } : {}) });
      const begun = begins.get(record.kind.name), ended = ends.get(record.kind.name);
      if (begun !== undefined) events.push({ ...base, ph: 'b', id: correlation, name: begun.name, cat: 'span', args: argumentsOf(trace, record) });
      if (ended !== undefined) events.push({ ...base, ph: 'e', id: correlation, name: ended.name, cat: 'span', args: argumentsOf(trace, record) });
    }
    for (const event of events) yield `,\n${JSON.stringify(event)}`;
  }
  yield '\n]}\n';
}

function argumentsOf(trace: Trace, record: TraceRecord): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  record.kind.args.forEach((name, i) => {
    const kind = record.kind.kinds[i]!, value = record.args[i]!;
    result[name] = kind === 'dec' ? value : kind === 'bool' ? value !== 0 : trace.text(kind, value);
  });
  return result;
}

function trackOf(kindName: string): string {
  const colon = kindName.indexOf(':');
  return colon < 0 ? kindName : kindName.slice(0, colon);
}

function correlationEnds(trace: Trace): { firsts: Map<number, number>; lasts: Map<number, number> } {
  const firsts = new Map<number, number>(), lasts = new Map<number, number>();
  for (const { correlation, index } of trace.records()) {
    if (correlation === 0) continue;
    if (!firsts.has(correlation)) firsts.set(correlation, index);
    lasts.set(correlation, index);
  }
  return { firsts, lasts };
}
