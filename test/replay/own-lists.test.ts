import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { replayFiles } from '../../harness/replay/worker-pool.js';

describe('copies of the project\'s recordings that lie elsewhere', () => {
  let directory: string;
  beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'replay-')); });
  afterAll(() => { rmSync(directory, { recursive: true }); });

  it('have their known disagreements told apart by the project\'s own list, under their names only', async () => {
    const vector = 'test/vectors/vtd-qi-s1.json.gz';
    const copy = join(directory, 'vtd-qi-s1.json.gz'), renamed = join(directory, 'other.json.gz');
    copyFileSync(vector, copy);
    copyFileSync(vector, renamed);
    const { reports, problems, outdated } = await replayFiles([copy, renamed], { threads: 1 });
    expect([problems, outdated]).toEqual([[], []]);
    expect(reports.map(({ known, disagreements }) => [known.length, disagreements.length])).toEqual([[11, 0], [0, 11]]);
  });
});
