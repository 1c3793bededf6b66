/** Documents name files, functions, words and tests that exist. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, posix } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadTopology } from '../../harness/topology/load.js';
import { topologyJsonSchema } from '../../harness/topology/schema.js';
import { vfiosim } from '../cli/vfiosim.js';
import { blocksOf, commandsOf, comparedOutputs, needsVirtualMachine, ROOT, textOf } from './blocks.js';

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
        // an external guest needs a virtual machine
        if (block.includes('external:')) {
          expect(await vfiosim('check', file)).toMatchObject({ code: 0, err: '' });
          continue;
        }
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
    const external = (guest['external'] as unknown as Schema).properties!;
    const words = [
      ...Object.keys(properties['mdevs']!.items.properties), ...Object.keys(guest), ...Object.keys(guest['devices']!.items.properties!), ...Object.keys(external), ...Object.keys(external['linux']!.properties!),
    ];
    const mentioned = codeOf(textOf(document)).flatMap((code) => code.split(/[ ,:.{}[\]]+/));
    expect([...new Set(words)].filter((word) => !mentioned.includes(word))).toEqual([]);
  });
});

describe('docs/linux-guest.md', () => {
  const document = 'docs/linux-guest.md';
  const text = textOf(document);
  const init = readFileSync(join(ROOT, 'harness/linux/guest/init'), 'utf8'), programs = readFileSync(join(ROOT, 'harness/linux/guest/dsa-test.c'), 'utf8');

  it('shows topologies that are sound, the first of them as configs/linux.yaml has it', async () => {
    const blocks = blocksOf(document, 'yaml');
    const directory = mkdtempSync(join(tmpdir(), 'vfiosim-docs-'));
    symlinkSync(join(ROOT, 'configs/data'), join(directory, 'data'));
    try {
      expect(blocks.length).toBeGreaterThan(1);
      for (const [i, block] of blocks.entries()) {
        writeFileSync(join(directory, `${i}.yaml`), block);
        expect(await vfiosim('check', join(directory, `${i}.yaml`))).toMatchObject({ code: 0, err: '' });
      }
      const externalOf = (file: string): object => loadTopology(file).topology.guests[0]!.external!;
      expect(externalOf(join(directory, '0.yaml'))).toEqual(externalOf(join(ROOT, 'configs/linux.yaml')));
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it.each([...new Set([...commandsOf(document), ...commandsOf('README.md')].filter(({ command }) => needsVirtualMachine(command)).flatMap(({ command }) => command.split('\n')))])('%s: file and options exist', async (line) => {
    const [, command, file, ...rest] = line.split(' ').slice(1);
    if (file!.startsWith('configs/')) expect(await vfiosim('check', join(ROOT, file!))).toMatchObject({ code: 0 });
    const { out } = await vfiosim(command!, '--help');
    expect(rest.filter((word) => word.startsWith('-') && !out.includes(word))).toEqual([]);
  });

  it('shows lines that the guest prints', () => {
    const lines = [...text.matchAll(/^(booted|begin|end|pci|nvme|dsa|dsa-test|irq|exec) .*$/gm)].map(([line]) => line);
    expect(lines.length).toBeGreaterThan(40);
    const keys = new Set(lines.filter((line) => !line.startsWith('exec')).flatMap((line) => [...line.matchAll(/ ([a-z_]+)=/g)].map(([, key]) => key!)));
    expect(keys.size).toBeGreaterThan(25);
    expect([...keys].filter((key) => !init.includes(`${key}=`) && !programs.includes(`${key}=`))).toEqual([]);
  });

  it('names every exit status of prepare, every error on demand, every word of modes and steps', () => {
    const prepare = readFileSync(join(ROOT, 'harness/linux/prepare'), 'utf8');
    const statuses = [.../^# Exit status: ([^]*?)\.\nset /m.exec(prepare)![1]!.matchAll(/(\d) [a-z]/g)].map(([, status]) => status!);
    expect(statuses).toEqual(['0', '2', '3', '4', '5', '6', '7', '8', '9']);
    const said = /^Exit status: [^]*?another `prepare`/m.exec(text)![0];
    expect(statuses.filter((status) => !new RegExp(`\\b${status} `).test(said))).toEqual([]);
    const { properties } = topologyJsonSchema() as { properties: Record<string, { items: { properties: Record<string, { properties: Record<string, { items: { properties: Record<string, { enum?: string[] }> } }> }> } }> };
    const words = properties['guests']!.items.properties['external']!.properties['inject']!.items.properties;
    expect([...Object.keys(words), ...words['error']!.enum!, ...words['descriptor']!.enum!].filter((word) => !text.includes(`\`${word}\``))).toEqual([]);
    const steps = [...text.matchAll(/run: \[([^\]]+)\]/g)].flatMap(([, list]) => list!.split(/[ ,"]+/)).filter((step) => step !== '' && !step.startsWith('exec:'));
    expect(steps.length).toBeGreaterThan(0);
    expect(steps.filter((step) => !init.includes(`#     ${step} `))).toEqual([]);
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
