/** Shows that the rules can fail, on small trees of files that break them. */
import { describe, expect, test } from 'vitest';
import { importsOf } from './imports.js';
import { checkArchitecture, formatViolation } from './rules.js';
import { tokenize } from './tokens.js';

function check(tree: Record<string, string>): string[] {
  return checkArchitecture(Object.entries(tree).map(([path, text]) => ({ path, text }))).map(formatViolation);
}

describe('imports', () => {
  const forms: [source: string, specifier: string | undefined, typeOnly: boolean][] = [
    [`import x from './a.js';`, './a.js', false],
    [`import './a.js';`, './a.js', false],
    [`import * as x from "./a.js"`, './a.js', false],
    [`import x, { type Y, z as w } from './a.js';`, './a.js', false],
    [`import {\n  a,\n  b,\n} from './a.js';`, './a.js', false],
    [`import { type Y } from './a.js';`, './a.js', false],
    [`import type { Y } from './a.js';`, './a.js', true],
    [`import type Y from './a.js';`, './a.js', true],
    [`import type from './a.js';`, './a.js', false],
    [`export * from './a.js';`, './a.js', false],
    [`export * as x from './a.js';`, './a.js', false],
    [`export { a, b as c } from './a.js';`, './a.js', false],
    [`export type { Y } from './a.js';`, './a.js', true],
    [`export type * from './a.js';`, './a.js', true],
    [`const x = await import('./a.js');`, './a.js', false],
    [`const x = (await import('./a.js')).x;`, './a.js', false],
    [`void import('./a.js').then((m) => m.x);`, './a.js', false],
    [`type X = import('./a.js').X;`, './a.js', true],
    [`type X = typeof import('./a.js');`, './a.js', true],
    [`const x = require('./a.js');`, './a.js', false],
    ['const s = `${await import("./a.js")}`;', './a.js', false],
    [`const x = await import(name);`, undefined, false],
    ['const x = await import(`./${name}.js`);', undefined, false],
    [`const half = a[0]! / 2; import './a.js'; const other = b / 2;`, './a.js', false],
    [`const quote = /['"]/; import './a.js';`, './a.js', false],
    [`if (!/['"]/.test(x)) y(); import './a.js';`, './a.js', false],
  ];
  test.each(forms)('%s', (source, specifier, typeOnly) => {
    const found = importsOf(tokenize(source)).map((site) => [site.specifier, site.typeOnly]);
    expect(found).toEqual([[specifier, typeOnly]]);
  });

  test.each([
    `// import './a.js';`,
    `/* import './a.js'; */`,
    `const s = "import './a.js'";`,
    'const s = `import "./a.js"`;',
    `const here = import.meta.url;`,
    `export const from = './a.js';`,
    `export { a };\nconst s = 'from';`,
    `export type X = { from: './a.js' };`,
    `loader.import('./a.js');`,
  ])('none in %s', (source) => {
    expect(importsOf(tokenize(source))).toEqual([]);
  });

  test('stand at the line of their first word', () => {
    const source = "/*\n*/\nconst s = `\n${'x'}\n`;\nimport {\n  a,\n} from './a.js';\n";
    expect(importsOf(tokenize(source)).map(({ line }) => line)).toEqual([6]);
  });
});

describe('rooms', () => {
  test('may import themselves, the rooms before them, packages and Node', () => {
    expect(
      check({
        'sim/clock.ts': `import { Subject } from 'rxjs';`,
        'iommu/core/bind.ts': `import '../../sim/clock.js'; import './ops.js'; import 'node:assert';`,
        'cli/main.ts': `import '../harness/index.js'; const now = Date.now();`,
        'harness/index.ts': `import { Container } from 'inversify'; import '../guest/vmm.js';`,
      }),
    ).toEqual([]);
  });

  test.each(['import {} from', 'import type { X } from', 'export * from', 'export type { X } from'])(
    'may not import a later room by "%s"',
    (clause) => {
      expect(check({ 'host/pci/bus.ts': `\n${clause} '../../iommu/core/bind.js';` })).toEqual([
        'host/pci/bus.ts:2: import of iommu/core/bind.ts: room host may not import the later room iommu',
      ]);
    },
  );

  test('may not import a later room dynamically or as a type of an import', () => {
    expect(
      check({ 'sim/a.ts': `const x = await import('../cli/main.js');\ntype T = import('../host/b.js').T;` }),
    ).toEqual([
      'sim/a.ts:1: import of cli/main.ts: room sim may not import the later room cli',
      'sim/a.ts:2: import of host/b.ts: room sim may not import the later room host',
    ]);
  });

  test('may not reach outside the product, into the product by its name, or to a computed place', () => {
    expect(
      check({
        'guest/vmm.ts': `import '../test/worlds.js';\nimport 'vfiosim';\nvoid import(name);`,
        'cli/main.ts': `require('vfiosim/package.json');`,
      }),
    ).toEqual([
      'guest/vmm.ts:1: import of test/worlds.ts: lies outside the product folders',
      'guest/vmm.ts:2: import of vfiosim: the product refers to its own files by path',
      'guest/vmm.ts:3: import of (computed): a computed import hides what it imports',
    ]);
  });

  test('compose with inversify in harness only', () => {
    expect(
      check({
        'mdev/module.ts': `import type { Container } from 'inversify';`,
        'cli/main.ts': `import 'reflect-metadata';`,
      }),
    ).toEqual([
      'mdev/module.ts:1: import of inversify: only harness composes with inversify',
      'cli/main.ts:1: import of reflect-metadata: only harness composes with inversify',
    ]);
  });
});

describe('inside iommu/ and devices/', () => {
  const refused: [from: string, to: string, why: string][] = [
    ['iommu/intel-vtd/hardware/walk.ts', 'iommu/intel-vtd/driver/bind.ts', 'hardware may not import a driver'],
    ['iommu/intel-vtd/hardware/walk.ts', 'iommu/amd-vi/driver/bind.ts', 'hardware may not import a driver'],
    ['iommu/intel-vtd/driver/bind.ts', 'iommu/intel-vtd/hardware/walk.ts', 'a driver may not import hardware'],
    ['devices/dsa/hardware/engine.ts', 'devices/dsa/driver/submit.ts', 'hardware may not import a driver'],
    ['devices/dsa/hardware/engine.ts', 'devices/dsa/parent/types.ts', 'hardware may not import a parent'],
    ['devices/dsa/driver/submit.ts', 'devices/dsa/hardware/engine.ts', 'a driver may not import hardware'],
    ['iommu/amd-vi/spec/dte.ts', 'host/pci/bus.ts', 'a spec imports only sim and other specs'],
    ['iommu/amd-vi/spec/dte.ts', 'iommu/amd-vi/hardware/log.ts', 'a spec imports only sim and other specs'],
    ['iommu/core/bind.ts', 'iommu/amd-vi/spec/dte.ts', 'iommu/core may not import an architecture'],
    ['iommu/page-table/walk.ts', 'iommu/amd-vi/spec/dte.ts', 'iommu/page-table may not import an architecture'],
    ['devices/dsa/driver/a.ts', 'iommu/amd-vi/driver/b.ts', 'a device may not import an IOMMU architecture'],
    ['devices/dsa/parent/a.ts', 'iommu/amd-vi/spec/b.ts', 'a device may not import an IOMMU architecture'],
    ['devices/dsa/parent/a.ts', 'iommu/core/hardware/b.ts', 'a device may not import IOMMU hardware'],
    ['devices/dsa/hardware/a.ts', 'iommu/core/bind.ts', 'device hardware does not know that an IOMMU exists'],
  ];
  test.each(refused)('%s may not import %s', (from, to, why) => {
    const up = '../'.repeat(from.split('/').length - 1);
    const source = `import type { X } from '${up}${to.replace(/ts$/, 'js')}';`;
    expect(check({ [from]: source })).toEqual([`${from}:1: import of ${to}: ${why}`]);
  });

  test('a spec imports no package', () => {
    expect(check({ 'devices/edu/spec/regs.ts': `import 'rxjs';` })).toEqual([
      'devices/edu/spec/regs.ts:1: import of rxjs: a spec imports only sim and other specs',
    ]);
  });

  test('both sides share the spec, and drivers use the core', () => {
    expect(
      check({
        'iommu/amd-vi/hardware/log.ts': `import '../spec/dte.js'; import '../../tlb/tlb.js';`,
        'iommu/amd-vi/driver/bind.ts': `import '../spec/dte.js'; import '../../core/ops.js';`,
        'iommu/amd-vi/spec/dte.ts': `import '../../../sim/layout.js'; import './irte.js';`,
        'devices/dsa/driver/submit.ts': `import '../../../iommu/core/bind.js'; import '../spec/wq.js';`,
        'devices/dsa/parent/types.ts': `import '../driver/submit.js'; import '../../../mdev/parent.js';`,
      }),
    ).toEqual([]);
  });
});

describe('determinism', () => {
  test.each([
    ['const t = Date.now();', 'Date.now'],
    ['const t = performance.now();', 'performance.now'],
    ['const t = new Date();', 'new Date'],
    ['setTimeout(f, 1);', 'setTimeout'],
    ['globalThis.setInterval(f, 1);', 'setInterval'],
    ['const defer = setImmediate;', 'setImmediate'],
    ['const s = `${Math.random()}`;', 'Math.random'],
    ['const t = process.hrtime.bigint();', 'process.hrtime'],
    ['const id = crypto.randomUUID();', 'randomUUID'],
  ])('%s is refused', (source, name) => {
    expect(check({ 'devices/edu/hardware/x.ts': `\n${source}` })).toEqual([
      `devices/edu/hardware/x.ts:2: ${name}: a run depends on topology and seed only`,
    ]);
  });

  test('timers may not come in as a module', () => {
    expect(check({ 'sim/a.ts': `import { setTimeout as sleep } from 'node:timers/promises';` })).toEqual([
      'sim/a.ts:1: import of node:timers/promises: a run depends on topology and seed only',
      'sim/a.ts:1: setTimeout: a run depends on topology and seed only',
    ]);
  });

  test('comments, strings, methods of other objects, the wall clock, its transport and cli may name them', () => {
    expect(
      check({
        'sim/a.ts': `// Date.now()\nconst s = 'Math.random()'; socket.setTimeout(1); type D = Date;`,
        'sim/wall-clock.ts': `const t = performance.now(); setTimeout(f, 1);`,
        'harness/vfio-user/socket.ts': `setImmediate(f);`,
        'cli/progress.ts': `setInterval(f, 1);`,
      }),
    ).toEqual([]);
  });
});

describe('cycles', () => {
  test('of run-time imports are reported once, with the way around', () => {
    expect(
      check({
        'sim/a.ts': `import { x } from './x.js';\nimport './b.js';`,
        'sim/b.ts': `export * from './c.js';`,
        'sim/c.ts': `import './a.js';`,
        'sim/x.ts': `export const x = 1;`,
      }),
    ).toEqual(['sim/a.ts:2: import cycle: sim/a.ts → sim/b.ts → sim/c.ts → sim/a.ts']);
  });

  test('of a file with itself are reported', () => {
    expect(check({ 'sim/a.ts': `import './a.js';` })).toEqual(['sim/a.ts:1: import cycle: sim/a.ts → sim/a.ts']);
  });

  test('are allowed among types', () => {
    expect(check({ 'sim/a.ts': `import './b.js';`, 'sim/b.ts': `import type { A } from './a.js';` })).toEqual([]);
  });
});
