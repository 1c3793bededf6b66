/** The topologies with an external guest that ship with the product, as people boot them. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ROOT, vfiosim } from '../cli/vfiosim.js';
import { SERVED } from '../scenarios/shipped.js';

interface Printed {
  readonly guests: readonly { readonly shortcomings: readonly string[] }[];
  readonly good: boolean;
}

describe.each(SERVED)('%s', (file) => {
  it('boots, and does what it promises', async () => {
    const { code, out } = await vfiosim('linux', join(ROOT, 'configs', file), '--json');
    const { guests, good } = JSON.parse(out) as Printed;
    expect(guests.flatMap(({ shortcomings }) => shortcomings)).toEqual([]);
    expect({ code, good }).toEqual({ code: 0, good: true });
  });
});
