/** Documents name files, functions, words and tests that exist. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, posix } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { topologyJsonSchema } from '../../harness/topology/schema.js';
import { vfiosim } from '../cli/vfiosim.js';
import { blocksOf, commandsOf, comparedOutputs, ROOT, textOf } from './blocks.js';

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
    expect(rows.length).toBeGreaterThan(24);
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
    expect(rooms).toEqual(['sim/', 'host/', 'iommu/', 'vfio/', 'mdev/', 'devices/', 'guest/', 'harness/', 'cli/']);
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
    ['nvme', branch('device', 'nvme'), ['model', 'name', 'bdf']],
  ])('%s.md mentions every word that a topology may use', (model, words, general) => {
    const mentioned = codeOf(textOf(`docs/capabilities/${model}.md`)).flatMap((code) => code.split(/[ ,:.]+/));
    expect(words.filter((word) => !general.includes(word) && !mentioned.includes(word))).toEqual([]);
  });

  it('name conformance tests that exist', () => {
    for (const model of ['intel-vtd', 'dsa', 'nvme']) {
      const cells = textOf(`docs/capabilities/${model}.md`).split('\n').filter((line) => line.startsWith('|')).map((line) => line.split('|').at(-2)!);
      const tests = cells.flatMap(codeOf).filter((code) => /^(vtd|dsa|nvme|pcie?|bind|features|mm)-/.test(code));
      expect(tests.length).toBeGreaterThan(10);
      expect([...new Set(tests)].filter((name) => !existsSync(join(ROOT, `test/conformance/${name}.test.ts`)))).toEqual([]);
    }
  });

  it.each(['guest', 'mdev', 'mtty', 'vfio-core', 'vfio-pci'])('%s.md names tests that exist', (model) => {
    const cells = textOf(`docs/capabilities/${model}.md`).split('\n').filter((line) => line.startsWith('|')).map((line) => line.split('|').at(-2)!);
    const tests = [...new Set(cells.flatMap(codeOf).filter((code) => /^(guest|mdev|mdevctl|mtty|vfio)[a-z0-9-]*$/.test(code)))];
    expect(tests.length).toBeGreaterThan(3);
    expect(tests.filter((name) => !['conformance', 'unit'].some((folder) => existsSync(join(ROOT, `test/${folder}/${name}.test.ts`))))).toEqual([]);
  });

  it('vfio-type1.md names tests that exist', () => {
    const files = readdirSync(join(ROOT, 'test/conformance')).filter((name) => name.startsWith('vfio-type1-'));
    const tests = files.map((name) => readFileSync(join(ROOT, 'test/conformance', name), 'utf8')).join('');
    const named = textOf('docs/capabilities/vfio-type1.md').split('\n').filter((line) => line.startsWith('| ') && !line.startsWith('| what')).flatMap((line) => codeOf(line.split('|').at(-2)!));
    expect(named.length).toBeGreaterThan(15);
    expect(named.filter((name) => !files.includes(name) && name.split('…').some((part) => !tests.includes(part.trim())))).toEqual([]);
  });

  it('edu.md names tests that exist', () => {
    const tests = readFileSync(join(ROOT, 'test/unit/edu.test.ts'), 'utf8');
    const named = textOf('docs/capabilities/edu.md').split('\n').filter((line) => line.startsWith('| ') && !line.startsWith('| what')).flatMap((line) => codeOf(line.split('|')[2]!));
    expect(named.length).toBeGreaterThan(6);
    expect(named.filter((name) => !tests.includes(name.replace(/ …$/, '').replace('n!', '%i!')))).toEqual([]);
  });
});

describe.each(['docs/writing-topologies.md', 'docs/guests.md'])('%s', (document) => {
  it('shows topologies that pass', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vfiosim-docs-'));
    try {
      expect(blocksOf(document, 'yaml').length).toBeGreaterThan(0);
      for (const [i, block] of blocksOf(document, 'yaml').entries()) {
        const file = join(directory, `${i}.yaml`);
        writeFileSync(file, block);
        const { code, out, err } = await vfiosim('run', file);
        expect({ code, err, verdict: out.trimEnd().split('\n').at(-1) }).toEqual({ code: 0, err: '', verdict: 'PASS' });
      }
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

});

describe('docs/writing-topologies.md', () => {
  const document = 'docs/writing-topologies.md';
  const firstCells = (section: string): string[] => {
    const part = textOf(document).split(`## ${section}\n`)[1]!.split('\n## ')[0]!;
    return part.split('\n').filter((line) => line.startsWith('| ')).flatMap((line) => codeOf(line.split('|')[1]!));
  };

  it('has every step', async () => {
    const { STEP_VERBS } = await import('../../harness/topology/schema.js');
    expect(firstCells('Processes').toSorted()).toEqual(STEP_VERBS.toSorted());
  });

  it('has everything that may be injected', async () => {
    const { INJECTIONS } = await import('../../harness/topology/schema.js');
    expect(firstCells('What goes wrong, and what must hold').toSorted()).toEqual(INJECTIONS.toSorted());
  });

  it('has every word of a mediated device, a guest and its devices', () => {
    const { properties } = topologyJsonSchema() as { properties: Record<string, { items: { properties: Record<string, { items: Schema }> } }> };
    const guest = properties['guests']!.items.properties;
    const words = [...Object.keys(properties['mdevs']!.items.properties), ...Object.keys(guest), ...Object.keys(guest['devices']!.items.properties!)];
    const mentioned = codeOf(textOf(document)).flatMap((code) => code.split(/[ ,:.{}[\]]+/));
    expect([...new Set(words)].filter((word) => !mentioned.includes(word))).toEqual([]);
  });
});

describe('docs/guests.md', () => {
  it('shows what its commands print', async () => {
    const { shown, real } = await comparedOutputs('docs/guests.md');
    expect(shown).toEqual(real);
    expect(commandsOf('docs/guests.md').length).toBeGreaterThan(shown.length);
  });

  it('names trace records that exist', async () => {
    const { createMachineSync } = await import('../../harness/index.js');
    const machine = createMachineSync(join(ROOT, 'configs/guest-one-mdev.yaml'));
    const kinds = machine.trace.kinds.map(({ name }) => name);
    const named = codeOf(textOf('docs/guests.md')).filter((code) => /^[a-z]+:[a-z_]+$/.test(code));
    machine.run();
    expect(named.length).toBeGreaterThan(25);
    expect(named.filter((name) => !kinds.includes(name) && !machine.trace.kinds.some((kind) => kind.name === name))).toEqual([]);
  });
});

// tests that documents show become tests of this file
mkdirSync(join(ROOT, 'out'), { recursive: true });
const generated = blocksOf('docs/guests.md', 'ts').map((block, i) => {
  const path = join(ROOT, 'out', `guests-block-${i}.ts`);
  writeFileSync(path, block.replace("'vfiosim'", "'../harness/index.js'").replace("'vfiosim/vitest'", "'../harness/vitest.js'"));
  return path;
});
afterAll(() => {
  for (const path of generated) rmSync(path, { force: true });
});
describe('the tests in docs/guests.md', async () => {
  expect(generated).toHaveLength(2);
  for (const path of generated) await import(path);
});
