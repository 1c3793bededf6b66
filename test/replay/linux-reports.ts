/** The recorded traces, and what replays of them find. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { replayLinuxTrace } from '../../harness/replay/linux-replay.js';
import { applyKnown, loadKnownList } from '../../harness/replay/report-known.js';
import type { ReplayReport } from '../../harness/replay/report.js';

export const TRACES = new URL('../linux-traces/', import.meta.url);

/** Agreements of each trace when it is replayed on our unit: checks that vanish are noticed. */
export const AGREEMENTS: Readonly<Record<string, number>> = {
  'vtd-caching-mode': 1182, 'vtd-esrtps': 1004, 'vtd-injected-iqe': 985, 'vtd-injected-ite': 1030, 'vtd-legacy-nvme': 865, 'vtd-no-pri': 924,
  'vtd-passthrough': 881, 'vtd-scalable-dsa-sva': 1016, 'vtd-scalable-dsa-sva-process-exit': 1027, 'vtd-scalable-strict': 1081, 'vtd-second-level-only': 872,
};

export function textOf(trace: string): string {
  return gunzipSync(readFileSync(new URL(`${trace}.jsonl.gz`, TRACES))).toString('utf8');
}

/** The report, with listed disagreements apart; fails when a listed one does not show. */
export function replay(trace: string, ...defects: string[]): ReplayReport {
  const found = replayLinuxTrace(textOf(trace), `${trace}.jsonl`, { defects: new Set(defects) });
  const { report, outdated } = applyKnown(found, loadKnownList(fileURLToPath(new URL('disagreements.yaml', TRACES))));
  if (defects.length === 0 && outdated.length > 0) throw new Error(outdated.map(({ message }) => message).join('\n'));
  return report;
}
