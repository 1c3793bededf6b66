/**
 * Re-runs what a real guest did to our hardware, from a recording of everything that came from outside, and compares
 * every message, every access to the guest's memory and every interrupt with what was recorded. No socket, no QEMU and
 * no real time are involved; the machine is built from the topology inside the recording.
 */
import { readFileSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { VirtualClock } from '../../sim/clock.js';
import { BrokenRecording, FORMAT, formatDifference, Recording, replayRecording, type Item } from '../../vfio/user/recording/index.js';
import type { FileMedium } from '../media/file-medium.js';
import { imageHash, servedSettings } from '../serve/external-guests.js';
import { ServedGuest } from '../serve/served-guest.js';
import { parseTopology } from '../topology/load.js';
import { InvalidInput } from '../topology/problems.js';
import type { ReplayReport } from './report.js';
import { FILE_LIMIT_BYTES, systemError } from './vector-file.js';

/** What `serve` and `linux` put into a recording. */
interface GuestFields {
  readonly vfiosim: string;
  /** The topology's path, as it was given. */
  readonly file: string;
  /** Its text. */
  readonly topology: string;
  readonly guest: string;
  readonly seed: number;
  /** SHA-256 of disk images, by the name in the topology. */
  readonly images: Readonly<Record<string, string>>;
}

const CHECK_OF: Readonly<Partial<Record<Item['kind'], string>>> = {
  send: 'messages', load64: 'memory checks', load: 'memory checks', read: 'memory checks', exchange: 'memory checks', store64: 'memory checks', store: 'memory checks', write: 'memory checks',
  fill: 'memory checks', signal: 'interrupts',
};

/** By its first bytes, not by its name. */
export function isGuestRecording(start: Uint8Array): boolean {
  return new TextDecoder('latin1').decode(start.subarray(0, FORMAT.length)) === FORMAT;
}

/**
 * @param defects named defects of the product, for tests
 * @throws InvalidInput a broken recording, one of something else, disks that are not there or not the same
 */
export function replayGuest(file: string, defects: ReadonlySet<string> = new Set()): ReplayReport {
  const recording = openRecording(file);
  const fields = guestFields(recording, file);
  const directory = imageDirectory(fields, file);
  const topology = parseTopology(fields.topology, fields.file, directory);
  const guest = topology.guests.find(({ name, external }) => name === fields.guest && external !== undefined);
  if (guest === undefined) return refuse(file, `its topology has no external guest "${fields.guest}"`);
  const written = guest.external!.devices.find((device) => device.model === 'nvme' && device['image-mode'] === 'write');
  if (written !== undefined) return refuse(file, `its disk "${written.name}" writes to its image, and a replay changes no files; no recording of vfiosim serve or vfiosim linux has such a disk`);
  const media: FileMedium[] = [];
  const clock = new VirtualClock();
  try {
    const served = new ServedGuest(guest, servedSettings({ topology, file: fields.file, directory }, { seed: fields.seed, defects, traceRecords: 1 << 16 }, (medium) => media.push(medium)), clock);
    const report = replayRecording(recording, { clock, scheduler: served.scheduler, devices: new Map(served.functions.map(({ name, device }) => [name, device])) });
    const [difference] = report.differences;
    const checks = checksUpTo(recording, difference?.item ?? Infinity);
    const agreements = Object.values(checks).reduce((sum, count) => sum + count, 0);
    const found = difference === undefined ? hashDifference(recording, served) : { step: difference.input, op: difference.inputText, what: formatDifference(difference), expected: difference.expected, got: difference.actual };
    return {
      file, kind: 'guest', source: `vfiosim ${fields.vfiosim}, guest ${fields.guest}`, steps: report.inputs, checks: found === undefined ? checks : { ...checks, comparisons: 1 }, agreements,
      disagreements: found === undefined ? [] : [found], known: [], stale: [], unsupported: [], notModelled: [],
      remarks: [
        `${report.inputs} inputs, ${report.events} events, ${report.bytesRead} bytes read from the guest's memory, ${(report.timeNs / 1e9).toFixed(1)} s`,
        ...(report.truncated === undefined ? [] : [`the recording is not whole: ${report.truncated}`]), ...report.errors.map((error) => `a handler threw: ${String(error)}`),
      ],
    };
  } finally {
    for (const medium of media) medium.close();
  }
}

function openRecording(file: string): Recording {
  try {
    const { size } = statSync(file);
    if (size > FILE_LIMIT_BYTES) refuse(file, `has ${Math.round(size / 2 ** 20)} MiB; the limit is ${FILE_LIMIT_BYTES / 2 ** 20} MiB`);
    return new Recording(new Uint8Array(readFileSync(file)));
  } catch (error) {
    if (error instanceof BrokenRecording) return refuse(file, error.message);
    if (error instanceof InvalidInput) throw error;
    return refuse(file, systemError(error));
  }
}

function guestFields({ fields }: Recording, file: string): GuestFields {
  const { vfiosim, file: from, topology, guest, seed, images } = fields as Partial<Record<keyof GuestFields, unknown>>;
  const sound = typeof vfiosim === 'string' && typeof from === 'string' && typeof topology === 'string' && typeof guest === 'string' && Number.isInteger(seed)
    && typeof images === 'object' && images !== null && Object.values(images).every((hash) => typeof hash === 'string');
  return sound ? fields as unknown as GuestFields : refuse(file, 'does not say from which topology and seed it was made; recordings of vfiosim serve and vfiosim linux do');
}

/** Where the disks lie: beside the topology, as it was, or beside the recording. */
function imageDirectory({ file: topology, images }: GuestFields, file: string): string {
  const places = [dirname(resolve(topology)), dirname(resolve(file))];
  const same = (directory: string): boolean => Object.entries(images).every(([name, hash]) => hashOf(resolve(directory, name)) === hash);
  const found = places.find(same);
  if (found !== undefined) return found;
  const [name] = Object.entries(images).find(([image, hash]) => places.every((place) => hashOf(resolve(place, image)) !== hash)) ?? Object.entries(images)[0]!;
  return refuse(file, `its disk image "${name}" is neither beside the topology (${places[0]!}) nor beside the recording (${places[1]!}) with the content it had`);
}

function hashOf(path: string): string | undefined {
  try {
    return imageHash(path);
  } catch {
    return undefined;
  }
}

function checksUpTo(recording: Recording, end: number): Record<string, number> {
  const checks: Record<string, number> = {};
  const reader = recording.read();
  for (let item = reader.next(), position = 1; item !== undefined && position < end; item = reader.next(), position++) {
    const check = CHECK_OF[item.kind];
    if (check !== undefined) checks[check] = (checks[check] ?? 0) + 1;
  }
  return checks;
}

/** All that was compared agrees; the trace is what nobody outside has seen. */
function hashDifference({ end }: Recording, { trace }: ServedGuest): ReplayReport['disagreements'][number] | undefined {
  const expected = end?.fields['traceHash'];
  if (typeof expected !== 'string' || expected === trace.hash) return undefined;
  return { step: 0, op: 'trace', what: 'hash of the trace', expected, got: trace.hash };
}

function refuse(file: string, message: string): never {
  throw new InvalidInput([{ file, message }]);
}
