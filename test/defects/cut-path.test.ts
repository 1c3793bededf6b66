/**
 * The quickstart's verdict rests on the page request path: cut it anywhere, and the copy is not the picture. Its
 * buffers were never touched, so no page can come another way.
 */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { createMachineSync } from '../../harness/machine.js';
import type { Summary } from '../../harness/summary.js';
import type { TopologyInput } from '../../harness/topology/schema.js';

const CONFIGS = resolve(import.meta.dirname, '../../configs');

interface Change {
  readonly defect?: string;
  /** The program looks at the copy however its operations ended. */
  readonly waitForAny?: boolean;
  readonly blockOnFault?: boolean;
  readonly iommu?: object;
}

function quickstart({ defect, waitForAny, blockOnFault, iommu }: Change): Summary {
  const topology = parse(readFileSync(resolve(CONFIGS, 'quickstart.yaml'), 'utf8')) as TopologyInput;
  const [app] = topology.processes!;
  const steps = app!.steps.map((step) => {
    if (step.wait !== undefined && waitForAny === true) return { wait: { status: 'any' as const } };
    return step.submit === undefined || blockOnFault === undefined ? step : { submit: { ...step.submit, 'block-on-fault': blockOnFault } };
  });
  const machine = createMachineSync({
    ...topology, limits: { time: '5ms' }, processes: [{ ...app!, steps }], host: { ...topology.host, iommu: { ...topology.host!.iommu!, ...iommu } },
  }, { directory: CONFIGS, ...(defect === undefined ? {} : { defects: new Set([defect]) }) });
  machine.run();
  return machine.summary();
}

const HASH_CHECK = /^app: step 6 \(verify\): buffer "copy" differs at offset .* \(SHA-256 .*, expected [0-9a-f]{16}…\)$/;

describe('quickstart.yaml', () => {
  it('passes as it is, and when its program looks at the copy however the operations ended', () => {
    for (const waitForAny of [false, true]) expect(quickstart({ waitForAny })).toMatchObject({ verdict: 'pass', stepFailures: [] });
  });

  it('fails when page requests are answered and no page is brought', () => {
    expect(quickstart({ defect: 'core.refuse-page-requests' }).stepFailures).toEqual([expect.stringMatching(/^app: step 5 \(wait\): .* ended with page-fault/)]);
    const { verdict, stepFailures } = quickstart({ defect: 'core.refuse-page-requests', waitForAny: true });
    expect([verdict, stepFailures]).toEqual(['fail', [expect.stringMatching(HASH_CHECK)]]);
  });

  it('fails when the device does not ask', () => {
    const { verdict, stepFailures, flows } = quickstart({ blockOnFault: false, waitForAny: true });
    expect([verdict, stepFailures]).toEqual(['fail', [expect.stringMatching(HASH_CHECK)]]);
    // page requests were made for completion records only
    expect(flows[0]!.bytes).toBe(0);
  });

  it('never comes to an end when requests are lost on their way', () => {
    for (const defect of ['vtd-driver.lose-page-requests', 'vtd.lose-page-response']) expect(quickstart({ defect }).verdict).toBe('limit');
  });

  it('cannot open the device when the unit has no page requests', () => {
    const { verdict, stepFailures } = quickstart({ iommu: { 'page-requests': false } });
    expect(verdict).toBe('fail');
    expect(stepFailures[0]).toMatch(/^app: step 1 \(open\): /);
  });
});
