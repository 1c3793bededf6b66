/** docs/explain.md shows what the command prints, and the files that it was given. */
import { describe, expect, it } from 'vitest';
import { readFileSync } from 'node:fs';
import { main } from '../../cli/main.js';
import { captured } from './capture.js';

const document = readFileSync('docs/explain.md', 'utf8');
const examples = [...document.matchAll(/```console\n\$ vfiosim ([^\n]*)\n([\s\S]*?)```/g)].map((match) => [match[1]!, match[2]!] as const);

describe('docs/explain.md', () => {
  it('has an image and a log', () => {
    expect(examples.map(([command]) => command.split(' ').slice(0, 2))).toEqual([['explain', '--image'], ['explain', '--log']]);
  });

  it.each(examples)('shows what `vfiosim %s` prints', async (command, output) => {
    const shown = captured();
    expect(await main(command.split(' '), shown.io)).toBe(0);
    expect(shown.out()).toBe(output);
    expect(shown.err()).toBe('');
  });

  it.each([...document.matchAll(/`(test\/explain\/data\/[^`]*)`:\n\n```\w+\n([\s\S]*?)```/g)].map((match) => [match[1]!, match[2]!] as const))('quotes %s', (file, content) => {
    expect(readFileSync(file, 'utf8')).toBe(content);
  });
});
