/**
 * Our VT-d driver beside Linux 7.3.4: on a machine with the capability registers of each trace, the same registers in
 * the same order, and the same invalidations, but for the differences that are listed with their reasons
 * (requirements section 0: where they disagree, the contract holds).
 */
import { describe, expect, it } from 'vitest';
import { DIFFERENCES, VARIANTS, renderDifferences, type Difference } from './linux-differences.js';
import { PHASES, describe as lines, differ, linuxRun, type Hunk, type Phase, type Run } from './linux-events.js';
import { ourRun } from './linux-machine.js';
import { AGREEMENTS, replay } from './linux-reports.js';

interface Comparison {
  /** Differences that are not in the table. */
  readonly unlisted: readonly (Hunk & { readonly phase: Phase })[];
  /** Entries of the table that did not show. */
  readonly vanished: readonly Difference[];
  /** Lines that are the same. */
  readonly same: number;
}

function compare(variant: string, linux: Run, ours: Run): Comparison {
  const listed = DIFFERENCES.filter(({ variants }) => variants.includes(variant));
  const found = new Set<Difference>();
  const unlisted: (Hunk & { phase: Phase })[] = [];
  let same = 0;
  for (const phase of phasesOf(linux, ours)) {
    const left = lines(linux.phases[phase], linux.names), right = lines(ours.phases[phase], ours.names);
    const hunks = differ(left, right);
    same += left.length - hunks.reduce((sum, hunk) => sum + hunk.linux.length, 0);
    for (const hunk of hunks) {
      const entry = listed.find((each) => each.phase === phase && equal(each.linux, hunk.linux) && equal(each.ours, hunk.ours));
      if (entry === undefined) unlisted.push({ phase, ...hunk });
      else found.add(entry);
    }
  }
  return { unlisted, vanished: listed.filter((entry) => !found.has(entry)), same };
}

/** All phases; without what follows a bind that only one of the two got. */
function phasesOf(linux: Run, ours: Run): Phase[] {
  const bound = [linux, ours].map(({ phases }) => phases.bind.some((event) => event.kind === 'note' && event.text === 'bound'));
  const skipped: Phase[] = bound[0] === bound[1] ? [] : ['page requests', 'munmap', 'access after munmap', 'unbind'];
  return PHASES.filter((phase) => !skipped.includes(phase));
}

function equal(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((line, i) => line === b[i]);
}

function linuxOf(variant: string): Run {
  return linuxRun(variant, VARIANTS[variant]!.explicitScope === true);
}

/** Lines that both did, by trace: a comparison that shrinks is noticed. */
const SAME: Readonly<Record<string, number>> = {
  'vtd-scalable-dsa-sva': 79, 'vtd-scalable-dsa-sva-process-exit': 76, 'vtd-scalable-strict': 76, 'vtd-passthrough': 75, 'vtd-no-pri': 35, 'vtd-esrtps': 73,
  'vtd-caching-mode': 84, 'vtd-second-level-only': 36, 'vtd-legacy-nvme': 26, 'vtd-injected-iqe': 80, 'vtd-injected-ite': 82,
};

describe('our driver does what Linux did, but for what is listed', () => {
  it.each(Object.keys(VARIANTS))('%s', (variant) => {
    const { unlisted, vanished, same } = compare(variant, linuxOf(variant), ourRun(VARIANTS[variant]!));
    expect(unlisted).toEqual([]);
    expect(vanished).toEqual([]);
    expect(same).toBe(SAME[variant]);
  });
});

describe('the comparison can fail', () => {
  const variant = 'vtd-scalable-dsa-sva';

  it.each([
    ['vtd-driver.skip-pasid-cache-flush', 'unbind'],
    ['vtd-driver.skip-prq-drain', 'unbind'],
    ['vtd-driver.skip-iotlb-flush', 'munmap'],
    ['vtd-driver.skip-device-tlb-flush', 'munmap'],
  ])('%s shows at %s', (defect, phase) => {
    const { unlisted } = compare(variant, linuxOf(variant), ourRun({ ...VARIANTS[variant]!, defects: new Set([defect]) }));
    expect(unlisted.map((each) => each.phase)).toContain(phase);
  });

  it('a driver that did everything as Linux does would leave the table stale', () => {
    const { unlisted, vanished } = compare(variant, linuxOf(variant), linuxOf(variant));
    expect(unlisted).toEqual([]);
    expect(vanished).toEqual(DIFFERENCES.filter(({ variants }) => variants.includes(variant)));
  });

  it('order matters', () => {
    const run = linuxOf(variant);
    const swapped = { ...run, phases: { ...run.phases, unbind: run.phases.unbind.toReversed() } };
    expect(compare(variant, run, swapped).unlisted).not.toEqual([]);
  });
});

describe('docs/linux-differences.md', () => {
  it('is what the tables say', async () => {
    const reports = new Map(Object.keys(VARIANTS).map((trace) => [trace, replay(trace)]));
    await expect(renderDifferences(reports)).toMatchFileSnapshot('../../docs/linux-differences.md');
  });

  it('names only traces that exist', () => {
    for (const name of DIFFERENCES.flatMap(({ variants }) => variants)) expect(Object.keys(VARIANTS)).toContain(name);
    expect(Object.keys(AGREEMENTS).toSorted()).toEqual(Object.keys(VARIANTS).toSorted());
  });
});
