/** Reports as text for people: plain lines, no colours, so that documents can quote them. */
import { hex, hexPage } from '../../sim/address.js';
import type { WalkReport } from '../inspect.js';
import { formatSize } from '../topology/units.js';
import type { ImageReport } from './image.js';
import { ADDRESSES_KEPT, type LogGroup, type LogReport } from './log.js';
import type { Mapping } from './mapped-ranges.js';
import type { QueueReport } from './queues.js';
import type { DeviceReport, SpaceReport, TablesReport } from './tables.js';

const RANGES_SHOWN = 16;
const PASIDS_SHOWN = 32;
const MAPPINGS_SHOWN = 16;
const USERS_SHOWN = 8;
const PAGING_NAMES = ['PTE', 'PDE', 'PDPTE', 'PML4E', 'PML5E'];

/** A JSON text in which 64-bit values are `0x…`. */
export function toJson(report: unknown): string {
  return `${JSON.stringify(report, (_key, value: unknown) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value instanceof Map ? (Object.fromEntries(value) as unknown) : value), 2)}\n`;
}

export function imageText(report: ImageReport): string {
  const lines = [...unitLines(report), '', ...tableLines(report.tables)];
  const queues = [...queueLines('invalidation queue', report.invalidationQueue), ...queueLines('page request queue', report.pageRequestQueue)];
  if (queues.length > 0) lines.push('', ...queues);
  if (report.faults.length > 0) {
    lines.push('', 'recorded faults');
    for (const { record, sentence, reason, text, entry, causes } of report.faults) {
      lines.push(`  FRCD${record}  ${sentence}`, `         reason 0x${reason.toString(16).padStart(2, '0')}: ${text}${entry === undefined ? '' : `; ended at: ${entry}`}`);
      lines.push(...causes.map((cause) => `         - ${cause}`));
    }
  }
  if (report.walk !== undefined) lines.push('', ...walkLines(report.walk));
  return `${lines.join('\n')}\n`;
}

function unitLines({ unit, image }: ImageReport): string[] {
  const translation = unit.translation === undefined ? 'translation unknown' : unit.translation ? 'translation on' : 'translation off: requests without PASID pass untranslated';
  const mode = unit.mode === 'unknown' ? 'mode unknown' : `${unit.mode} mode`;
  const root = unit.rootTable === undefined ? '' : `, root table at ${hex(unit.rootTable)}`;
  const ranges = image.ranges.map(({ start, end }) => `${hex(start)}–${hex(end - 1)}`).join(', ');
  return [
    `${translation}, ${mode}${root}`,
    ...(unit.features.length === 0 ? [] : [`unit${unit.version === undefined ? '' : ` version ${unit.version}`}: ${unit.features.join(', ')}`]),
    ...(unit.status.length === 0 ? [] : [`status: ${unit.status.join('; ')}`]),
    `image: ${formatSize(image.sizeBytes)}${ranges === '' ? '' : ` at ${ranges}`}`,
    ...unit.unknown.map((text) => `not known: ${text}`),
  ];
}

function tableLines({ devices, domains, mappings, problems, limits }: TablesReport): string[] {
  const lines = [`devices: ${devices.length === 0 ? 'none has a present context entry' : devices.length}`];
  for (const device of devices) lines.push(...deviceLines(device));
  if (domains.length > 0) {
    lines.push('', 'domains');
    for (const { id, users } of domains) lines.push(`  ${String(id).padStart(5)}  ${users.slice(0, USERS_SHOWN).join(', ')}${users.length > USERS_SHOWN ? ` and ${users.length - USERS_SHOWN} more` : ''}`);
  }
  if (mappings.size > 0) lines.push('', 'page tables');
  for (const [key, mapping] of [...mappings].slice(0, MAPPINGS_SHOWN)) lines.push(...mappingLines(key, mapping));
  if (mappings.size > MAPPINGS_SHOWN) lines.push(`  … and ${mappings.size - MAPPINGS_SHOWN} more (--json lists them)`);
  if (problems.length > 0) lines.push('', 'problems', ...problems.map((problem) => `  ${problem}`));
  if (limits.length > 0) lines.push('', ...limits.map((limit) => `left out: ${limit}`));
  return lines;
}

function deviceLines(device: DeviceReport): string[] {
  const scalable = device.ridPasid !== undefined;
  const allows = [device.deviceTlb && 'device TLB', device.pasidEnable && 'PASIDs', device.pageRequests && 'page requests'].filter((word) => word !== false);
  const facts = device.problem !== undefined
    ? `context entry not valid: ${device.problem} (fault reason 0x${device.reason.toString(16).padStart(2, '0')})`
    : scalable ? `allows ${allows.length === 0 ? 'untranslated requests only' : allows.join(', ')}; directory for ${device.pasidLimit} PASIDs, entry ${device.ridPasid} for requests without one` : allows.join(', ');
  const lines = [`  ${device.bdf}  ${facts}`.trimEnd(), `           context entry ${hex(device.address)}: ${device.text}`];
  for (const space of device.spaces.slice(0, PASIDS_SHOWN)) lines.push(spaceLine(space));
  if (device.spaces.length > PASIDS_SHOWN) lines.push(`           … and ${device.spaces.length - PASIDS_SHOWN} more PASIDs (--json lists them)`);
  return lines;
}

function spaceLine(space: SpaceReport): string {
  const name = space.rid ? 'without PASID' : `PASID ${space.pasid}`;
  if (space.problem !== undefined) return `           ${name}  ${space.silent ? 'faults are not recorded (FPD); ' : ''}${space.problem} (fault reason 0x${space.reason.toString(16).padStart(2, '0')})`;
  const tables = [
    space.firstLevel === undefined ? undefined : `first level of ${space.firstLevel.levels} levels at ${space.secondLevel === undefined ? '' : 'guest address '}${hex(space.firstLevel.root)}`,
    space.secondLevel === undefined ? undefined : `second level of ${space.secondLevel.levels} levels at ${hex(space.secondLevel.root)}`,
  ].filter((text) => text !== undefined);
  return `           ${name}  ${space.type}, domain ${space.domain}${tables.length === 0 ? '' : `, ${tables.join(', ')}`}${space.silent ? ', faults are not recorded (FPD)' : ''}`;
}

function mappingLines(key: string, mapping: Mapping): string[] {
  const [small, medium, large, huge] = mapping.leaves;
  const sizes = [[small, '4 KiB'], [medium, '2 MiB'], [large, '1 GiB'], [huge, '512 GiB']].filter(([count]) => count !== 0).map(([count, size]) => `${count} × ${size}`);
  const lines = [`  ${key}: ${mapping.pages === 0 ? 'maps nothing' : `${formatSize(mapping.pages * 4096)} mapped (${sizes.join(', ')})`}, ${mapping.tables} table page${mapping.tables === 1 ? '' : 's'}${mapping.complete ? '' : '; not counted to the end'}`];
  for (const { page, pages, rights, physical, contiguous } of mapping.ranges.slice(0, RANGES_SHOWN)) {
    lines.push(`    ${hexPage(page)}–${hexPage(page + pages - 1, 0xfff)}  ${rights}  ${formatSize(pages * 4096)} → ${contiguous ? hexPage(physical) : `${hexPage(physical)} …, scattered`}`);
  }
  const more = mapping.ranges.length - Math.min(mapping.ranges.length, RANGES_SHOWN) + mapping.moreRanges;
  if (more > 0) lines.push(`    … and ${more} more ranges`);
  lines.push(...mapping.problems.map((problem) => `    problem: ${problem}`));
  if (mapping.moreProblems > 0) lines.push(`    … and ${mapping.moreProblems} more problems`);
  return lines;
}

function queueLines(name: string, queue: QueueReport | undefined): string[] {
  if (queue === undefined) return [];
  const lines = [`${name}: ${queue.length} entries of ${queue.entryBytes} bytes at ${hex(queue.base)}, ${queue.pending === 0 ? 'empty' : `${queue.pending} pending`} (head ${queue.head}, tail ${queue.tail})`];
  lines.push(...queue.problems.map((problem) => `  problem: ${problem}`));
  for (const { index, text } of queue.entries) lines.push(`  ${String(index).padStart(5)}  ${text}`);
  if (queue.pending > queue.entries.length) lines.push(`  … and ${queue.pending - queue.entries.length} more`);
  if (queue.last !== undefined) lines.push(`  last taken (${queue.last.index}): ${queue.last.text}`);
  return lines;
}

/** The entries on the way of one address, raw and decoded. */
export function walkLines(report: WalkReport): string[] {
  const lines = [`${report.device} ${report.pasid === undefined ? 'without PASID' : `PASID ${report.pasid}`}, address 0x${report.address.toString(16)}`];
  for (const step of report.steps) {
    const name = step.what === 'first-level' || step.what === 'second-level' ? `${step.what} ${PAGING_NAMES[step.level] ?? step.level}` : step.what;
    const raw = step.qwords.map((qword) => qword.toString(16).padStart(16, '0'));
    while (raw.length > 1 && raw.at(-1) === '0000000000000000') raw.pop();
    lines.push(`  ${name.padEnd(18)} ${hex(step.address).padStart(12)}  ${raw.length === 0 ? '(not in the image)' : raw.join(' ')}`, `${' '.repeat(35)}${step.text === '' ? 'all zero' : step.text}`);
  }
  const rights = [report.read && 'read', report.write && 'write', report.execute && 'execute'].filter((word) => word !== false).join(', ');
  lines.push(report.physical === undefined
    ? `  no translation: ${report.text}${report.reason === 0 ? '' : ` (fault reason 0x${report.reason.toString(16).padStart(2, '0')})`}`
    : `  → 0x${report.physical.toString(16)}  ${rights}, page of ${formatSize(report.pages * 4096)}${report.text === 'Translated' ? '' : ` (${report.text})`}`);
  return lines;
}

export function logText(report: LogReport): string {
  const lines: string[] = [];
  for (const group of report.groups.filter(({ routine }) => !routine)) lines.push(...groupLines(group), '');
  const routine = report.groups.filter((group) => group.routine);
  if (routine.length > 0) {
    lines.push('Nothing wrong with:');
    for (const { title, what, count } of routine) lines.push(`  ${times(count)}${title}: ${what}`);
    lines.push('');
  }
  if (report.groups.length === 0) lines.push('No line about an IOMMU was understood.', '');
  if (report.notUnderstoodLines > 0) {
    lines.push(`Not understood: ${report.notUnderstoodLines} line${report.notUnderstoodLines === 1 ? '' : 's'} about an IOMMU`);
    for (const { text, count } of report.notUnderstood) lines.push(`  ${times(count)}${text}`);
    lines.push('');
  }
  if (report.otherLines > 0) lines.push(`${report.otherLines} line${report.otherLines === 1 ? ' is' : 's are'} about something else.`, '');
  lines.push(...report.limits.map((limit) => `left out: ${limit}`));
  while (lines.at(-1) === '') lines.pop();
  return `${lines.join('\n')}\n`;
}

function groupLines(group: LogGroup): string[] {
  const shown = group.lines.join(', ');
  const lines = [`${times(group.count)}${group.title}  (line${group.count === 1 ? '' : 's'} ${shown}${group.count > group.lines.length ? ', …' : ''})`, `    ${group.what}`];
  if (group.addresses !== undefined) {
    const { lowest, highest, different } = group.addresses;
    lines.push(`    address: 0x${lowest.toString(16)}${highest === lowest ? '' : ` to 0x${highest.toString(16)}, ${different === ADDRESSES_KEPT ? 'at least ' : ''}${different} page${different === 1 ? '' : 's'}`}`);
  }
  if (group.entry !== undefined) lines.push(`    ended at: ${group.entry}`);
  lines.push(...group.details.map((detail) => `    ${detail}`));
  if (group.causes.length > 0) lines.push('    usually:', ...group.causes.map((cause) => `      - ${cause}`));
  return lines;
}

function times(count: number): string {
  return count === 1 ? '' : `${count} × `;
}
