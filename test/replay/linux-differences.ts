/**
 * Where our VT-d driver does otherwise than Linux 7.3.4 in the recorded traces, and why. docs/linux-differences.md is made
 * from these tables and from replays of the traces, with test/linux-traces/disagreements.yaml.
 */
import type { ReplayReport } from '../../harness/replay/report.js';
import type { Phase } from './linux-events.js';
import type { Variant } from './linux-machine.js';

const CAP = 0x11d2008c222f0406n;
const SCALABLE = { cap: CAP, ecap: 0x1cd9ee4f00fc7n, version: 0x60 };

export interface TraceVariant extends Variant {
  readonly what: string;
  /** The unit served the two functions only. */
  readonly explicitScope?: boolean;
}

/** CAP, ECAP and VER are those of the trace. */
export const VARIANTS: Readonly<Record<string, TraceVariant>> = {
  'vtd-scalable-dsa-sva': { what: 'scalable mode, the device is closed', registers: SCALABLE, mode: 'lazy', pri: true, exits: false, explicitScope: true },
  'vtd-scalable-dsa-sva-process-exit': { what: 'scalable mode, the process exits', registers: SCALABLE, mode: 'lazy', pri: true, exits: true },
  'vtd-scalable-strict': { what: 'strict invalidation', registers: SCALABLE, mode: 'strict', pri: true, exits: true },
  'vtd-passthrough': { what: 'identity domains', registers: SCALABLE, mode: 'passthrough', pri: true, exits: true },
  'vtd-no-pri': { what: 'no PRI', registers: SCALABLE, mode: 'lazy', pri: false, exits: true },
  'vtd-esrtps': { what: 'ESRTPS', registers: { ...SCALABLE, cap: CAP | (1n << 63n) }, mode: 'lazy', pri: true, exits: true },
  'vtd-caching-mode': { what: 'caching mode', registers: { ...SCALABLE, cap: CAP | 0x80n }, mode: 'lazy', pri: true, exits: true },
  'vtd-second-level-only': { what: 'no first level', registers: { ...SCALABLE, ecap: 0x14d9ee4f00fc7n }, mode: 'lazy', pri: true, exits: true },
  'vtd-legacy-nvme': { what: 'legacy mode', registers: { cap: 0x1d2008c222f0406n, ecap: 0xf00fc7n, version: 0x10 }, mode: 'lazy', pri: true, exits: true },
  'vtd-injected-iqe': { what: 'an invalidation is refused', registers: SCALABLE, mode: 'lazy', pri: true, exits: true, breaks: 'IQE' },
  'vtd-injected-ite': { what: 'a device does not answer', registers: SCALABLE, mode: 'lazy', pri: true, exits: true, breaks: 'ITE' },
};

const ALL = Object.keys(VARIANTS);

function except(...left: string[]): string[] {
  return ALL.filter((variant) => !left.includes(variant));
}

const WITH_SVA = except('vtd-no-pri', 'vtd-second-level-only', 'vtd-legacy-nvme');

export interface Difference {
  readonly phase: Phase;
  readonly linux: readonly string[];
  readonly ours: readonly string[];
  readonly variants: readonly string[];
  readonly why: string;
}

const EVENT = (prefix: 'FE' | 'PE'): string[] => [`w ${prefix}DATA 4 vector`, `w ${prefix}ADDR 4 0xfee00000`, `w ${prefix}UADDR 4 0x0`];
const PRI_ON = ['config PRI_CTRL 0x2', 'config PRI_ALLOC_REQ 0x200', 'config PRI_CTRL 0x1'];
const DSA_CONTEXT = ['submit CC 0x31 0x0 domain=0 device=dsa', 'submit IOTLB 0xe2 0x0 domain=0'];
const FLIP_PRE = (domain: string): string[] => [
  'submit CC 0x31 0x0 domain=0 device=dsa', `submit PASIDC 0x7 0x0 domain=${domain}`, `submit IOTLB 0xe2 0x0 domain=${domain}`, 'submit DEVTLB 0x3 0x0 device=dsa pages=all',
];
const IOPF_ON = (domain: string): string[] => [PRI_ON[0]!, ...FLIP_PRE(domain), PRI_ON[1]!, PRI_ON[2]!];
const RANGE = (pages: string): string => `submit P_IOTLB 0x36 0x0 domain=sva pasid=process pages=${pages}, P_DEVTLB 0x8 0x0 device=dsa pasid=process pages=${pages}`;
const DRAIN = (domain: string): string =>
  `submit WAIT 0x200000045 0x0, P_IOTLB 0x26 0x0 domain=${domain} pasid=process, P_DEVTLB 0x8 0x0 device=dsa pasid=process pages=all, WAIT 0x2000000a5 0x0`;
const DRAIN_AFTER_EXIT = ['r PQT 8 0xc0', 'r PQH 8 0xc0', DRAIN('sva'), 'r PRS 4 0x0'];

const WHY_IOPF = 'IOPF is a feature that a driver enables (F5, F6), so PRE is set while the context entry is in use, with the invalidations of Linux 6.12; Linux 7.3 sets PRE and PRI when it finds the device.';
const WHY_LPIG = 'LPIG is repeated from the request, as in the vectors VTD-PGRP-*; Linux 7.3 leaves it clear, and hardware ignores it.';
const WHY_DRAIN = 'A PASID is drained before it is given back, also when its process exited first (section 0, flow 2b, M7); Linux 7.3 skips the drain on this path.';

/** Every difference, in the order in which it shows. */
export const DIFFERENCES: readonly Difference[] = [
  {
    phase: 'bring-up', linux: ['r CAP 8 as recorded', 'r ECAP 8 as recorded'], ours: [], variants: ALL,
    why: 'Linux parses the DMAR table twice, the first time through an early mapping, and asks the unit each time.',
  },
  {
    phase: 'bring-up', linux: ['r GSTS 4 0x4000000'], ours: [], variants: ALL,
    why: 'Linux asks once more whether an earlier kernel left translation on (kdump); ours has asked when it took the unit over, and knows no kdump.',
  },
  { phase: 'bring-up', linux: EVENT('PE'), ours: [], variants: except('vtd-legacy-nvme'), why: 'Linux writes the message twice while it sets the interrupt up.' },
  { phase: 'bring-up', linux: EVENT('FE'), ours: [], variants: ALL, why: 'As with the page request event.' },
  {
    phase: 'bring-up', linux: ['config ATS_CTRL 0x0'], ours: [], variants: except('vtd-caching-mode'),
    why: 'Linux sets the smallest translation unit when it finds the device (for VFs, which share it) and E later; ours writes both at once.',
  },
  {
    phase: 'bring-up', linux: ['config ATS_CTRL 0x0', ...DSA_CONTEXT], ours: [], variants: ['vtd-caching-mode'],
    why: 'Linux gives every function a context entry when it finds it, and domains afterwards; ours gives each function both in turn. (ATS_CTRL: as in the other traces.)',
  },
  { phase: 'bring-up', linux: [], ours: DSA_CONTEXT, variants: ['vtd-caching-mode'], why: 'The other half of it.' },
  { phase: 'bring-up', linux: PRI_ON, ours: [], variants: except('vtd-legacy-nvme', 'vtd-no-pri'), why: WHY_IOPF },
  { phase: 'driver probe', linux: [], ours: IOPF_ON('dsa'), variants: WITH_SVA.filter((variant) => variant !== 'vtd-passthrough' && variant !== 'vtd-caching-mode'), why: WHY_IOPF },
  { phase: 'driver probe', linux: [], ours: IOPF_ON('sva'), variants: ['vtd-passthrough'], why: WHY_IOPF },
  {
    phase: 'driver probe', linux: ['submit PASIDC 0x17 0x0 domain=dsa pasid=kernel', 'submit P_IOTLB 0x26 0x0 domain=dsa pasid=kernel'], ours: IOPF_ON('dsa'), variants: ['vtd-caching-mode'],
    why: `${WHY_IOPF} Linux 7.3 also gives idxd a PASID for the kernel's own work; ours uses requests without PASID for it.`,
  },
  {
    phase: 'driver probe', linux: [], ours: [...IOPF_ON('dsa'), ...FLIP_PRE('dsa'), 'config PRI_CTRL 0x0'], variants: ['vtd-second-level-only'],
    why: `${WHY_IOPF} SVA is refused then (no first level), and idxd gives IOPF back.`,
  },
  {
    phase: 'bind', linux: ['bound'], ours: ['refused'], variants: ['vtd-no-pri'],
    why: 'SVA needs PASID, PRI and ATS (F1, F2); Linux 7.3 binds without PRI and the first touch of an absent page is a fault. What follows is not compared.',
  },
  { phase: 'page requests', linux: ['submit PGRP 0x19 0x0 device=dsa pasid=process'], ours: ['submit PGRP 0x19 0x4 device=dsa pasid=process'], variants: WITH_SVA, why: WHY_LPIG },
  {
    phase: 'munmap', linux: [RANGE('touched')], ours: [RANGE('buffer')], variants: WITH_SVA,
    why: 'Linux invalidates what the unmap found present (mmu_gather), ours the range that was unmapped: never less.',
  },
  {
    phase: 'munmap', linux: ['r IQERCD 8 device=dsa'], ours: [], variants: ['vtd-injected-ite'],
    why: 'Linux reads the requester once for its log and once to act; ours keeps it.',
  },
  {
    phase: 'munmap', linux: [], ours: [RANGE('buffer')], variants: ['vtd-injected-ite'],
    why: 'What timed out is submitted again while the device is there (flow 2e, scenario 27). The recorded unit completed the wait all the same, so that Linux saw nothing to repeat; ours would repeat then too.',
  },
  { phase: 'access after munmap', linux: ['submit PGRP 0x1019 0x0 device=dsa pasid=process'], ours: ['submit PGRP 0x1019 0x4 device=dsa pasid=process'], variants: WITH_SVA, why: WHY_LPIG },
  {
    phase: 'unbind', linux: [RANGE('one')], ours: [], variants: ['vtd-scalable-dsa-sva'],
    why: 'The program unmaps its portal first; our portals are no part of the address space.',
  },
  {
    phase: 'unbind', linux: [DRAIN('dsa')], ours: [DRAIN('sva')], variants: ['vtd-scalable-dsa-sva'],
    why: 'The drain names the domain that the PASID was in (1, as its entry said); Linux 7.3 names the one of requests without PASID, under which nothing of the PASID is cached.',
  },
  {
    phase: 'unbind', linux: [], ours: DRAIN_AFTER_EXIT, variants: WITH_SVA.filter((variant) => variant !== 'vtd-scalable-dsa-sva' && variant !== 'vtd-caching-mode'),
    why: WHY_DRAIN,
  },
  {
    phase: 'unbind', linux: [], ours: ['submit PASIDC 0x17 0x0 domain=sva pasid=process', ...DRAIN_AFTER_EXIT], variants: ['vtd-caching-mode'],
    why: `${WHY_DRAIN} At exit the entry keeps FPD, so that the device is silent until it is unbound (M6); caching mode has to hear when that goes.`,
  },
];

/** What the driver does otherwise where no trace shows it. */
export const NOT_IN_TRACES: readonly (readonly [ours: string, linux: string, why: string])[] = [
  ['Every fault record is read and published; only the log is rate-limited.', 'Records are not read while the log is rate-limited.', 'A handler registered for the device hears of every fault (R3).'],
  ['After IQE the refused descriptor is looked for in the whole submission.', 'Only its first descriptor is looked at.', 'E40: the submission that held it fails, wherever it stood.'],
  ['After ITE the submission that held the device\'s invalidation is repeated, others are just submitted again.', 'Every submission whose wait was aborted is repeated.', 'A wait that completed does not prove that the device obeyed.'],
  ['An entry of the interrupt remapping table is cleared at once and its invalidation posted; entry and vector are given to somebody else when it has been executed.', 'The invalidation is waited for under a spin lock.', 'Code that gives interrupts back does not sleep.'],
  ['Page responses that are ready at one instant share a wait.', 'Each response is submitted with a wait of its own.', 'Nothing depends on it, and the queue stays short.'],
];

/** docs/linux-differences.md */
/** Recorded, ours, why: of whole boots on our hardware. */
const UNDER_LINUX: readonly (readonly [recorded: string, ours: string, why: string])[] = [
  [
    'After munmap the accelerator is answered Invalid, sends its write all the same, and the unit logs reason 0x71: `DMAR: [DMA Write PASID 0x2] …`.',
    'Its completion record has status 0x84, a page fault whose request was answered Invalid, on a write, with the address. The unit logs nothing.',
    'A function with ATS does not send an untranslated request after it was told that there is no translation: the access never happens. A translation request that finds no page is answered without permissions, and that is no fault (VT-d, chapter 7).',
  ],
  [
    'Without PRI the first touch of an absent page is a fault in the log.', 'It is status 0x83 in the completion record; nothing is logged.',
    'The same: the device asked with ATS, and has no way to ask for the page.',
  ],
  [
    'A refused invalidation (IQE) leaves nothing behind: the unit has no caches.', 'Linux does not repeat it, so the IOTLB keeps what should have gone, and the disk may be read wrong until the next flush.',
    'Hardware may keep it too. `configs/linux-injected-errors.yaml` switches the caches off for that reason.',
  ],
  [
    'Without first-level translation CAP still has 1 GiB pages, and SVA is refused with EINVAL.', 'The bit is clear then. Linux says `SVM disabled, incompatible 1GB page capability` when it boots, and SVA is ENODEV.',
    'CAP.FS1GP is about first-level tables and means nothing without them.',
  ],
];

export function renderDifferences(reports: ReadonlyMap<string, ReplayReport>): string {
  const cell = (text: string): string => text.replaceAll('|', '\\|');
  const steps = (lines: readonly string[]): string => (lines.length === 0 ? '–' : lines.map((line) => `\`${cell(line)}\``).join('<br>'));
  const short = (variants: readonly string[]): string => variants.map((variant) => variant.replace('vtd-', '')).join(', ');
  const seen = (variants: readonly string[]): string => {
    const missing = ALL.filter((variant) => !variants.includes(variant));
    if (missing.length === 0) return 'all';
    return missing.length <= 3 ? `all but ${short(missing)}` : short(variants);
  };
  const refused = reports.get('vtd-injected-iqe')!.stale;
  const phases = [...new Set(DIFFERENCES.map(({ phase }) => phase))];
  return [
    '# Our VT-d driver and unit beside a recorded Linux',
    '',
    'Made from `test/replay/linux-differences.ts` and `test/linux-traces/disagreements.yaml` by `test/replay/linux-driver.test.ts` (`npx vitest run test/replay/linux-driver.test.ts -u`); do not edit.',
    '',
    'The traces in `test/linux-traces` hold what an unmodified Linux 7.3.4 did to a VT-d unit in another process, and what that unit answered. They are used twice.',
    '',
    '## The driver: same registers, same order, same invalidations',
    '',
    'Our machine, with the capability registers of each trace, does what the recorded guest did: it boots, maps and unmaps a page for the kernel, binds a process, serves page requests,',
    'unmaps a buffer, refuses the access that follows, unbinds (or sees the process exit), and powers off. Register accesses, descriptors and the function\'s ATS, PASID and PRI registers are',
    'compared in their order. Compared are all bits but these: addresses of tables and buffers, domain ids, PASIDs, group indices, interrupt vectors, places in the queue, status addresses of waits.',
    'Left out: reads of FSTS that find nothing (how often a queue is polled depends on its speed), functions that our machine does not have, kernel DMA beyond the first',
    'unmap, and how our machine takes its devices away before it powers off. A `submit` is a write of IQT with the descriptors it hands over; the closing wait with status write is not shown.',
    '',
    'The test fails when a difference shows that is not in these tables, and when one of them vanishes. Where section 0 of the requirements and Linux 7.3 disagree, the requirements win.',
    '',
    ...phases.flatMap((phase) => [
      `### ${phase[0]!.toUpperCase()}${phase.slice(1)}`, '',
      '| Linux 7.3.4 | vfiosim | why | seen in |', '|---|---|---|---|',
      ...DIFFERENCES.filter((each) => each.phase === phase).map(({ linux, ours, why, variants }) => `| ${steps(linux)} | ${steps(ours)} | ${cell(why)} | ${seen(variants)} |`),
      '',
    ]),
    '### Where no trace shows it',
    '',
    '| Linux | vfiosim | why |', '|---|---|---|',
    ...NOT_IN_TRACES.map(([ours, linux, why]) => `| ${cell(linux)} | ${cell(ours)} | ${cell(why)} |`),
    '',
    '## The unit: what the recorded one answered',
    '',
    '`replayLinuxTrace` (`harness/replay/linux-replay.ts`) writes the recorded registers, descriptors and table entries to our unit, lets devices do what they did, and compares register reads,',
    'fetched descriptors and their fields, status words, page request descriptors, page responses, faults, messages, and where DMA went. Paging entries are not in a trace; each is set to what the next line',
    'that depends on it shows, so that a page whose translation changed is right only if the recorded invalidations reach our caches.',
    '',
    '| trace | what is special | compared | the same | stale | differences (line, recorded / ours) | why (clause) |', '|---|---|---|---|---|---|---|',
    ...ALL.map((trace) => {
      const { agreements, known, stale, checks } = reports.get(trace)!;
      const compared = Object.values(checks).reduce((sum, count) => sum + count, 0);
      const differences = known.map(({ step, op, expected, got }) => `${step} ${op}: ${expected} / ${got}`);
      const why = [...new Set(known.map((each) => `${each.why} (${each.clause})`))];
      return `| ${trace} | ${VARIANTS[trace]!.what} | ${compared} | ${agreements} | ${stale.length} | ${steps(differences)} | ${cell(why.join(' '))} |`;
    }),
    '',
    'In `vtd-injected-iqe` Linux does not repeat the invalidation that was refused. The recorded unit cached nothing; ours keeps the translations, as hardware may, and',
    `the DMA of lines ${refused[0]!.step} to ${refused.at(-1)!.step} still goes to the old pages. These ${refused.length} answers count as stale: no invalidation has reached the cache.`,
    '',
    'The replay also reproduces the two injected errors: a descriptor that the recorder refused stands in the queue with a type that does not exist until software repairs it, and a device whose invalidation',
    'timed out does what it is told but never says so.',
    '',
    '## The unit and the devices under a real Linux',
    '',
    '`vfiosim linux configs/linux.yaml` lets the same Linux drive our hardware itself ([tutorial](linux-guest.md), tests in `test/linux/`). The traces were the expectation; what differs, and why:',
    '',
    '| the recorded hardware | ours | why |', '|---|---|---|',
    ...UNDER_LINUX.map((row) => `| ${row.map(cell).join(' | ')} |`),
    '',
  ].join('\n');
}
