/**
 * Checkers and tests must be able to fail: every named defect of the product is switched on somewhere, and somebody
 * notices; without it the same world is clean.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { DEFECTS } from '../../harness/defects.js';
import { createMachineSync, type Machine } from '../../harness/machine.js';
import { BY_A_CHECKER_WITH_USERS, IN_A_MACHINE_WITH_GUESTS } from './passthrough-table.js';
import { BEHAVIOUR as BEHAVIOUR_WITH_USERS } from './passthrough-worlds.js';
import { complaints, run, type Catcher } from './run.js';
import { SCENES, type SceneName } from './scenes.js';
import { BEHAVIOUR, INVARIANTS } from './worlds.js';

const ROOT = resolve(import.meta.dirname, '../..');

const DMA = 'no DMA lands outside a live mapping';
const FORGOTTEN = 'no translation is used after its invalidation';
const FREED = 'no frame is freed while a device may reach it';
const ONCE = 'every page request group answered exactly once';
const INDEX = 'a page request group index is used by one group at a time';
const ALLOCATION = 'page requests stay within their allocation';
const ANSWER = 'a device gets the answer that the kernel gave';
const WHOLE = 'a page request group is handled as a whole';
const OWN_MM = 'a fault never reaches another mm';
const UNBOUND = 'no use of a PASID after unbind';
const FLUSH = 'no flush of a fault queue that its workers cannot pass';
const EXIT = 'a device is silent after its mm_exit';
const QUIET = 'nothing is logged for a PASID whose process has died';
const OWNER = 'a PASID has one owner at a time';
const BALANCE = 'pins, PASIDs, domains and frames balance';

const IN_A_MACHINE: readonly (readonly [defect: string, scene: SceneName, catcher: Catcher])[] = [
  ['frames.skip-zeroing', 'secret', /step 7 \(verify\): buffer "target" differs/],
  ['mm.skip-notify', 'remap', DMA],
  ['mm.free-before-notify', 'remap', FREED],
  ['mm.fork-stays-writable', 'fork', /\(verify\): buffer "target" differs/],
  ['mm.ignore-area-protection', 'read-only', DMA],
  ['mm.ignore-area-protection', 'read-only', /ended with success \(SUCCESS\), expected page-fault/],
  ['pci.forge-translated', 'leave', DMA],
  ['pci.ignore-invalidation', 'remap', FORGOTTEN],
  ['pci.ignore-invalidation', 'remap', DMA],
  ['pci.reuse-prg-index', 'close-in-flight', INDEX],
  ['pci.ignore-pri-allocation', 'small-allocation', ALLOCATION],
  ['pci.groups-ignore-acs', 'group', /expected EINVAL/],
  ['core.answer-twice', 'copy', ONCE],
  ['core.fault-after-error', 'half-read-only', WHOLE],
  ['core.fault-in-wrong-mm', 'neighbours', OWN_MM],
  ['core.flush-under-sva-lock', 'leave', FLUSH],
  ['core.lose-response', 'leave', ONCE],
  ['core.lose-response', 'leave', 'no deadlock'],
  ['core.mm-exit-twice', 'kill-with-mm-exit', EXIT],
  ['core.pasid-freed-early', 'copy', OWNER],
  ['core.pasid-never-freed', 'copy', BALANCE],
  ['core.put-mm-in-worker', 'kill-with-mm-exit', 'no deadlock'],
  ['core.refuse-page-requests', 'copy', /ended with page-fault/],
  ['core.skip-sva-invalidate', 'remap', DMA],
  ['core.skip-sva-silence', 'kill-without-mm-exit', DMA],
  ['vtd-driver.log-after-exit', 'kill-without-mm-exit', QUIET],
  ['vtd-driver.lose-page-requests', 'leave', ONCE],
  ['vtd-driver.skip-device-tlb-flush', 'remap', DMA],
  ['vtd-driver.skip-iotlb-flush', 'remap', DMA],
  ['vtd-driver.skip-pasid-cache-flush', 'kill-without-mm-exit', DMA],
  ['vtd.ignore-fpd', 'kill-without-mm-exit', QUIET],
  ['vtd.lose-overflow-answer', 'overflow-leave', ONCE],
  ['vtd.lose-page-response', 'leave', ONCE],
  ['vtd.skip-device-tlb-flush', 'remap', DMA],
  ['vtd.skip-iotlb-flush', 'remap', DMA],
  ['vtd.skip-pasid-cache-flush', 'kill-without-mm-exit', DMA],
  ['vtd.untagged-pasid', 'kill-without-mm-exit', DMA],
  ['vtd.wait-ignores-device-tlb', 'fork', DMA],
  ['vtd.wrong-group-index', 'leave', ONCE],
  ['dsa.completion-before-data', 'copy', /\(verify\): buffer "target" differs/],
  ['dsa.drain-returns-early', 'kill-without-mm-exit', UNBOUND],
  ['dsa.drop-pasid', 'leave', /the kernel log has a line with "Invalid page request"/],
  ['idxd.exit-without-abort', 'kill-with-mm-exit', EXIT],
  ['nvme-driver.unmap-before-completion', 'disk', /\(pwrite\): -EIO: .*DATA_TRANSFER/],
  ['nvme.completion-before-data', 'disk', /\(verify\): buffer "target" differs/],
];

const BY_A_CHECKER: readonly (readonly [defect: keyof typeof INVARIANTS, invariant: string])[] = [
  ['core.collect-any-group', WHOLE],
  ['core.keep-partials-on-overflow', WHOLE],
  ['core.skip-unmap-flush', DMA],
  ['pci.bypass-iommu', DMA],
  ['pci.keep-raced-translation', FORGOTTEN],
  ['vtd-driver.generic-failure-code', ANSWER],
  ['vtd-driver.skip-prq-drain', UNBOUND],
];

describe('a machine with a defect', () => {
  const scenes = [...new Set(IN_A_MACHINE.map(([, scene]) => scene))];
  it.each(scenes)('has nobody complain in scene %s while there is none', (scene) => {
    const machine = run(SCENES[scene]);
    expect(complaints(machine)).toEqual({ invariants: [], texts: '' });
    expect(machine.summary()).toMatchObject({ verdict: 'pass', end: 'finished' });
  });

  const machines = new Map<string, Machine>();
  it.each(IN_A_MACHINE)('%s, in scene %s, is caught by %s', (defect, scene, catcher) => {
    const key = `${defect} ${scene}`;
    const machine = machines.get(key) ?? run(SCENES[scene], defect);
    machines.set(key, machine);
    const { invariants, texts } = complaints(machine);
    if (typeof catcher === 'string') expect(invariants).toContain(catcher);
    else expect(texts).toMatch(catcher);
    expect(machine.summary().verdict).not.toBe('pass');
  });
});

describe('a small world with a defect', () => {
  it.each(BY_A_CHECKER)('%s is caught by the checker "%s"', (defect, invariant) => {
    expect(INVARIANTS[defect](undefined)).toEqual([]);
    expect(INVARIANTS[defect](defect)).toContain(invariant);
  });

  it.each(Object.keys(BEHAVIOUR) as (keyof typeof BEHAVIOUR)[])('%s is caught by what the world does', (defect) => {
    expect(BEHAVIOUR[defect](undefined)).toBe(false);
    expect(BEHAVIOUR[defect](defect)).toBe(true);
  });
});

describe('the table of defects', () => {
  /** Names that the product asks for, with the files that do; and what asks in another way than by a name. */
  function asked(): { files: Map<string, string[]>; otherwise: string[] } {
    const files = new Map<string, string[]>(), otherwise: string[] = [];
    for (const room of ['sim', 'host', 'iommu', 'vfio', 'mdev', 'devices', 'guest', 'harness', 'cli']) {
      for (const file of readdirSync(join(ROOT, room), { recursive: true, encoding: 'utf8' })) {
        if (!file.endsWith('.ts')) continue;
        const path = `${room}/${file}`;
        for (const [call, name] of readFileSync(join(ROOT, path), 'utf8').matchAll(/defects\??\.has\((?:'([^']+)'\))?/g)) {
          if (name === undefined) otherwise.push(`${path}: ${call}`);
          else files.set(name, [...(files.get(name) ?? []), path]);
        }
      }
    }
    return { files, otherwise };
  }

  it('names every defect of the product, and no other', () => {
    const { files, otherwise } = asked();
    expect([...DEFECTS.keys()].sort()).toEqual([...files.keys()].sort());
    expect(otherwise).toEqual([]);
  });

  it('names the room whose code asks', () => {
    // frames are the memory manager's, though they lie beside it
    const elsewhere = [...asked().files].filter(([name, files]) => !files.every((file) => file.startsWith(DEFECTS.get(name)?.room ?? '') || file === 'host/frames.ts'));
    expect(elsewhere).toEqual([]);
  });

  it('has each of them caught here', () => {
    const caught = new Set<string>([
      ...[...IN_A_MACHINE, ...IN_A_MACHINE_WITH_GUESTS, ...BY_A_CHECKER, ...BY_A_CHECKER_WITH_USERS].map(([defect]) => defect), ...Object.keys(BEHAVIOUR), ...Object.keys(BEHAVIOUR_WITH_USERS),
    ]);
    expect([...caught].sort()).toEqual([...DEFECTS.keys()].sort());
  });

  it('refuses a name that is none, with the nearest one', () => {
    expect(() => createMachineSync(SCENES.leave, { defects: new Set(['core.loose-response']) })).toThrow('unknown defect "core.loose-response"; did you mean "core.lose-response"?');
    expect(() => createMachineSync(SCENES.leave, { defects: new Set(['gremlins', 'vtd.skip-flush']) })).toThrow(/"gremlins"; there are \d+.*\n.*"vtd.skip-flush"/);
  });
});
