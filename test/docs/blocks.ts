/** Code blocks of the documents, so that tests can run what they show. */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { vfiosim } from '../cli/vfiosim.js';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

export function textOf(document: string): string {
  return readFileSync(`${ROOT}${document}`, 'utf8');
}

/** Contents of the fenced blocks in a language, in order. */
export function blocksOf(document: string, language: string): string[] {
  return [...textOf(document).matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\`$`, 'gm'))].map(([, block]) => block!);
}

/** A command of a document, and the output that it shows right behind it. */
export interface ShownCommand {
  readonly command: string;
  readonly output: string | undefined;
}

const SHOWN = /^```sh\n([^]*?)^```$(?:\n\n```text\n([^]*?)^```$)?/gm;

export function commandsOf(document: string): ShownCommand[] {
  return [...textOf(document).matchAll(SHOWN)].map(([, command, output]) => ({ command: command!.trim(), output }));
}

/** Runs `npx vfiosim …` on the files of this repository. */
export async function outputOf(command: string): Promise<string> {
  const argv = /(?:^|&& )npx vfiosim (.+)$/.exec(command)![1]!.split(' ').map((word) => (word.startsWith('configs/') ? `${ROOT}${word}` : word));
  const { code, out, err } = await vfiosim(...argv);
  if (code !== 0) throw new Error(`${command}: exit code ${code}: ${err}`);
  return out;
}

/** What a document shows of an output: all of it, or its first and last lines with a line `…` between them. */
export function shownOf(output: string, shown: string): string {
  const lines = shown.split('\n'), gap = lines.indexOf('…');
  if (gap < 0) return output;
  const all = output.split('\n');
  return [...all.slice(0, gap), '…', ...all.slice(all.length - (lines.length - gap - 1))].join('\n');
}

/** What these print depends on real time and on a prepared guest; their options and files are checked instead. */
export function needsVirtualMachine(command: string): boolean {
  return /npx vfiosim (linux|serve|replay \S+\.rec)\b/.test(command);
}

/** Compares every command of a document that shows its output; UPDATE_GOLDEN=1 writes what comes. @returns pairs of shown and real output */
export async function comparedOutputs(document: string): Promise<{ readonly shown: string[]; readonly real: string[] }> {
  const commands = commandsOf(document).filter(({ command }) => command.includes('npx vfiosim ') && !needsVirtualMachine(command));
  const pairs: { command: string; shown: string; real: string }[] = [];
  for (const { command, output } of commands) {
    const real = await outputOf(command);
    if (output !== undefined) pairs.push({ command, shown: output, real: shownOf(real, output) });
  }
  if (process.env['UPDATE_GOLDEN'] === '1') {
    let text = textOf(document);
    for (const { command, shown, real } of pairs) text = text.replace(`\`\`\`sh\n${command}\n\`\`\`\n\n\`\`\`text\n${shown}`, () => `\`\`\`sh\n${command}\n\`\`\`\n\n\`\`\`text\n${real}`);
    writeFileSync(`${ROOT}${document}`, text);
    return { shown: pairs.map(({ real }) => real), real: pairs.map(({ real }) => real) };
  }
  return { shown: pairs.map(({ shown }) => shown), real: pairs.map(({ real }) => real) };
}
