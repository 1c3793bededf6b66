/** Documents name files, functions, words and tests that exist. */
import { existsSync, readdirSync, readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, posix } from 'node:path';
import { describe, expect, it } from 'vitest';
import { topologyJsonSchema } from '../../harness/topology/schema.js';
import { vfiosim } from '../cli/vfiosim.js';
import { blocksOf, ROOT, textOf } from './blocks.js';

const DOCUMENTS = ['README.md', ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.md')).map((file) => posix.join('docs', file.replaceAll('\\', '/')))];

const codeOf = (text: string): string[] => [...text.replace(/^```[^]*?^```$/gm, '').matchAll(/`([^`\n]+)`/g)].map(([, code]) => code!);

describe.each(DOCUMENTS)('%s', (document) => {
  it('links to files that exist', () => {
    const links = [...textOf(document).matchAll(/\]\(([^)#:]+)\)/g)].map(([, link]) => posix.join(dirname(document), link!));
    expect(links.filter((link) => !existsSync(join(ROOT, link)))).toEqual([]);
  });

  it('names files and folders that exist', () => {
    const named = codeOf(textOf(document)).filter((code) => /^(sim|host|iommu|vfio|mdev|devices|guest|harness|cli|configs|docs|test)\/[\w./-]*$/.test(code));
    expect(named.filter((name) => !existsSync(join(ROOT, name)))).toEqual([]);
  });
});

describe('docs/ARCHITECTURE.md', () => {
  it('finds each function where it says', () => {
    const rows = textOf('docs/ARCHITECTURE.md').split('## One page fault')[1]!.split('## Adding')[0]!.split('\n').filter((line) => line.startsWith('| ') && !line.startsWith('| step'));
    expect(rows.length).toBeGreaterThan(10);
    const missing: string[] = [];
    for (const row of rows) {
      let folder = '', text = '', file = '';
      for (const code of codeOf(row.split('|')[2]!)) {
        if (code.endsWith('.ts')) {
          file = code.includes('/') ? code : posix.join(folder, code);
          folder = posix.dirname(file);
          text = existsSync(join(ROOT, file)) ? readFileSync(join(ROOT, file), 'utf8') : '';
          if (text === '') missing.push(file);
        } else {
          const name = code.split('.').at(-1)!;
          if (!new RegExp(`^(  |export )[^/]*\\b${name}\\b.*[({=]`, 'm').test(text)) missing.push(`${file}: ${code}`);
        }
      }
    }
    expect(missing).toEqual([]);
  });

  it('names every room, in import order', () => {
    const rooms = [...textOf('docs/ARCHITECTURE.md').split('## Rooms')[1]!.split('## Joints')[0]!.matchAll(/^\| (`[^|]+`) \|/gm)].flatMap(([, cell]) => codeOf(cell!));
    expect(rooms).toEqual(['sim/', 'host/', 'iommu/', 'vfio/', 'mdev/', 'guest/', 'devices/', 'harness/', 'cli/']);
  });
});

interface Schema {
  readonly properties?: Record<string, Schema>;
  readonly oneOf?: readonly Schema[];
  readonly $defs?: Record<string, Schema>;
  readonly const?: unknown;
}

describe('docs/capabilities', () => {
  const schema = topologyJsonSchema() as Schema;
  const branch = (id: string, model: string): string[] => {
    const found = schema.$defs![id]!.oneOf!.find(({ properties }) => properties!['model']!.const === model)!;
    return Object.keys(found.properties!);
  };

  it.each([
    ['intel-vtd', branch('iommu', 'intel-vtd'), ['model']],
    ['dsa', branch('device', 'dsa'), ['model', 'name', 'bdf']],
    ['edu', branch('device', 'edu'), ['model', 'name', 'bdf', 'port']],
  ])('%s.md mentions every word that a topology may use', (model, words, general) => {
    const mentioned = codeOf(textOf(`docs/capabilities/${model}.md`)).flatMap((code) => code.split(/[ ,:.]+/));
    expect(words.filter((word) => !general.includes(word) && !mentioned.includes(word))).toEqual([]);
  });

  it('name conformance tests that exist', () => {
    for (const model of ['intel-vtd', 'dsa']) {
      const cells = textOf(`docs/capabilities/${model}.md`).split('\n').filter((line) => line.startsWith('|')).map((line) => line.split('|').at(-2)!);
      const tests = cells.flatMap(codeOf).filter((code) => /^(vtd|dsa|pcie?|bind|features|mm)-/.test(code));
      expect(tests.length).toBeGreaterThan(10);
      expect([...new Set(tests)].filter((name) => !existsSync(join(ROOT, `test/conformance/${name}.test.ts`)))).toEqual([]);
    }
  });

  it('edu.md names tests that exist', () => {
    const tests = readFileSync(join(ROOT, 'test/unit/edu.test.ts'), 'utf8');
    const named = textOf('docs/capabilities/edu.md').split('\n').filter((line) => line.startsWith('| ') && !line.startsWith('| what')).flatMap((line) => codeOf(line.split('|')[2]!));
    expect(named.length).toBeGreaterThan(6);
    expect(named.filter((name) => !tests.includes(name.replace(/ …$/, '').replace('n!', '%i!')))).toEqual([]);
  });
});

describe('docs/writing-topologies.md', () => {
  it('shows topologies that pass', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vfiosim-docs-'));
    try {
      for (const [i, block] of blocksOf('docs/writing-topologies.md', 'yaml').entries()) {
        const file = join(directory, `${i}.yaml`);
        writeFileSync(file, block);
        const { code, out, err } = await vfiosim('run', file);
        expect({ code, err, verdict: out.trimEnd().split('\n').at(-1) }).toEqual({ code: 0, err: '', verdict: 'PASS' });
      }
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it('has every step', async () => {
    const { STEP_VERBS } = await import('../../harness/topology/schema.js');
    const shown = textOf('docs/writing-topologies.md').split('\n').filter((line) => line.startsWith('| ')).flatMap((line) => codeOf(line.split('|')[1]!));
    expect(shown.toSorted()).toEqual(STEP_VERBS.toSorted());
  });
});
