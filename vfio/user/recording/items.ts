/**
 * What a recording consists of, in the one order in which it happened. Inputs come from outside, each with its moment:
 * how many events had run, and the machine's time. Effects are what the machine did about them until the next input:
 * what it read from the client (with what it found), and what it wrote, sent and signalled (with enough to know it
 * again). Channels, descriptors, windows and signals have numbers in the order of their making, from 0 on; a channel
 * is a connection or its second socket.
 */
import type { ErrnoName } from '../../../sim/errno.js';
import type { SessionLimits } from '../session.js';

/** When an input happened. */
export interface Stamp {
  /** Events that had run since the recording began. */
  readonly events: number;
  readonly timeNs: number;
}

/** A refusal, by its name and its reason. */
export interface Refusal {
  readonly code: ErrnoName;
  readonly reason: string;
}

export type InputItem = Stamp & (
  | { readonly kind: 'open' | 'close'; readonly device: number }
  | { readonly kind: 'connected'; readonly device: number; readonly limits: SessionLimits }
  | { readonly kind: 'bytes'; readonly channel: number; readonly bytes: Uint8Array; readonly descriptors: number; readonly truncated: boolean }
  | { readonly kind: 'disconnected'; readonly channel: number; readonly why: string }
  /** The server ended the connection. */
  | { readonly kind: 'stopped'; readonly channel: number }
  /** The client signalled an eventfd that we listen to. */
  | { readonly kind: 'signalled'; readonly signal: number });

export type EffectItem =
  | { readonly kind: 'send'; readonly channel: number; readonly length: number; readonly hash: number; readonly descriptors: number; readonly head: Uint8Array }
  | { readonly kind: 'shut'; readonly channel: number }
  | { readonly kind: 'open-twin'; readonly channel: number; readonly refused: Refusal | undefined }
  /** `found` false: by messages only. */
  | { readonly kind: 'open-window'; readonly descriptor: number; readonly offset: number; readonly sizeBytes: number; readonly writable: boolean; readonly found: boolean; readonly refused: Refusal | undefined }
  | { readonly kind: 'open-signal'; readonly descriptor: number; readonly refused: Refusal | undefined }
  | { readonly kind: 'load64'; readonly window: number; readonly offset: number; readonly ok: boolean; readonly lo: number; readonly hi: number }
  | { readonly kind: 'load'; readonly window: number; readonly offset: number; readonly size: number; readonly value: number }
  | { readonly kind: 'read'; readonly window: number; readonly offset: number; readonly length: number; readonly bytes: Uint8Array | undefined }
  | { readonly kind: 'exchange'; readonly window: number; readonly offset: number; readonly expectLo: number; readonly expectHi: number; readonly lo: number; readonly hi: number; readonly ok: boolean }
  | { readonly kind: 'store64'; readonly window: number; readonly offset: number; readonly lo: number; readonly hi: number; readonly ok: boolean }
  | { readonly kind: 'store'; readonly window: number; readonly offset: number; readonly size: number; readonly value: number; readonly ok: boolean }
  | { readonly kind: 'write'; readonly window: number; readonly offset: number; readonly length: number; readonly hash: number; readonly ok: boolean }
  | { readonly kind: 'fill'; readonly window: number; readonly offset: number; readonly length: number; readonly value: number; readonly ok: boolean }
  | { readonly kind: 'signal'; readonly signal: number; readonly value: number };

/** The end: events that had run, and whatever the caller wants to compare. */
export interface EndItem {
  readonly kind: 'end';
  readonly events: number;
  readonly fields: RecordingFields;
}

export type Item = InputItem | EffectItem | EndItem;
export type ItemKind = Item['kind'];

/** Plain JSON of whoever records; the recording only carries it. */
export type RecordingFields = Readonly<Record<string, unknown>>;

/** In the order of their numbers in a file; 0 is the mark that ends a frame. Never reordered. */
export const KINDS = [
  'mark', 'open', 'close', 'connected', 'bytes', 'disconnected', 'stopped', 'signalled', 'send', 'shut', 'open-twin', 'open-window', 'open-signal', 'load64', 'load',
  'read', 'exchange', 'store64', 'store', 'write', 'fill', 'signal', 'end',
] as const satisfies readonly (ItemKind | 'mark')[];

export const KIND_NUMBER = Object.fromEntries(KINDS.map((kind, number) => [kind, number])) as Readonly<Record<(typeof KINDS)[number], number>>;

const INPUTS: ReadonlySet<string> = new Set<InputItem['kind']>(['open', 'close', 'connected', 'bytes', 'disconnected', 'stopped', 'signalled']);

export function isInput(item: Item): item is InputItem {
  return INPUTS.has(item.kind);
}
