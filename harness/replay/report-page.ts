/** The page about known disagreements (docs/disagreements.md), made from the list. */
import type { KnownEntry, KnownList } from './report-known.js';

/** Markdown; `howMade` says which command writes it. */
export function disagreementsPage(list: KnownList, howMade: string): string {
  const steps = list.entries.reduce((sum, entry) => sum + stepsOf(entry), 0);
  return `${[
    '# Where other implementations answer otherwise',
    '',
    `Made from \`${list.file}\` by ${howMade}; do not edit.`,
    '',
    'When the model and a vector differ, the specification decides (Intel VT-d, rev 4.1; clauses below are its). Where it decides for the model, the difference is listed here, and `vfiosim replay`',
    'reports it apart from new ones. An entry that no longer applies is an error. Differences from the traces of Linux are in [linux-differences.md](linux-differences.md).',
    '',
    list.entries.length === 0 ? 'There are none.' : `${list.entries.length} ${list.entries.length === 1 ? 'cause' : 'causes'}, ${steps} steps.`,
    ...list.entries.flatMap((entry, index) => section(entry, index + 1)),
  ].join('\n')}\n`;
}

function stepsOf(entry: KnownEntry): number {
  return entry.files.reduce((sum, { steps }) => sum + steps.length, 0);
}

function section(entry: KnownEntry, number: number): string[] {
  return [
    '',
    `## ${number}. ${entry.clause}`,
    '',
    `**The recorded implementation:** ${entry.does}`,
    '',
    `**Why the model does otherwise:** ${entry.why}`,
    '',
    '| vector | steps |',
    '|---|---|',
    ...entry.files.map(({ file, steps }) => `| ${file} | ${steps.join(', ')} |`),
  ];
}
