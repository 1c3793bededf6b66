/** A console's bytes become lines, facts, kernel messages and verdicts. */
import { describe, expect, test } from 'vitest';
import { complaints, shortcomings } from '../../harness/linux/expectations.js';
import { ConsoleLines, factsOf, parseFact, parseKernelLine, readConsole } from '../../harness/linux/guest-report.js';

function linesOf(...pieces: readonly (string | Uint8Array)[]): string[] {
  const lines: string[] = [];
  const cut = new ConsoleLines((line) => lines.push(line));
  for (const piece of pieces) cut.push(typeof piece === 'string' ? new TextEncoder().encode(piece) : piece);
  cut.end();
  return lines;
}

describe('lines', () => {
  test('are the same however the bytes arrive', () => {
    const text = 'SeaBIOS ü\r\n[    0.1] one\r\nGUEST done';
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at <= bytes.length; at++) expect(linesOf(bytes.subarray(0, at), bytes.subarray(at))).toEqual(['SeaBIOS ü', '[    0.1] one', 'GUEST done']);
  });

  test('lose a terminal’s escapes; a screen reset in the middle of one ends it', () => {
    expect(linesOf('\u001Bc\u001B[?7l\u001B[2J\u001B[0mSeaBIOS\r\nProbing EDD... o\u001Bc\u001B[?7l\u001B[2J[    0.000000] Linux version\r\n')).toEqual(['SeaBIOS', 'Probing EDD... o', '[    0.000000] Linux version']);
  });

  test('one without end does not wait for ever', () => {
    expect(linesOf('x'.repeat(40_000)).join('')).toHaveLength(40_000);
  });
});

describe('facts', () => {
  test('have a topic, words and values, with the kernel’s time or without', () => {
    expect(parseFact('[   12.345678] GUEST dsa-test wq0.0 memmove status=0x01 us=1376')).toEqual({
      seconds: 12.345678, topic: 'dsa-test', words: ['wq0.0', 'memmove'], values: { status: '0x01', us: '1376' }, text: 'dsa-test wq0.0 memmove status=0x01 us=1376',
    });
    expect(parseFact('GUEST done')).toEqual({ topic: 'done', words: [], values: {}, text: 'done' });
    expect(parseFact('[    1.0][   T42] GUEST nvme md5=ab')?.values).toEqual({ md5: 'ab' });
  });

  test('are nothing else that has GUEST in it', () => {
    expect(parseFact('[    0.1] Command line: GUEST x=1')).toBeUndefined();
    expect(parseFact('GUESTS ')).toBeUndefined();
  });

  test('are found by topic and leading words', () => {
    const report = readConsole(['GUEST dsa-test wq0.0 open errno=0', 'GUEST dsa-test wq0.1 open errno=EBUSY', 'GUEST dsa wq0.0 bind errno=0']);
    expect(factsOf(report, 'dsa-test', 'wq0.1', 'open').map(({ values }) => values['errno'])).toEqual(['EBUSY']);
    expect(factsOf(report, 'dsa-test')).toHaveLength(2);
  });
});

describe('kernel messages', () => {
  test('are lines with a time that are no facts', () => {
    expect(parseKernelLine('[    0.389000] DMAR: Host address width 48')).toEqual({ seconds: 0.389, text: 'DMAR: Host address width 48' });
    expect(parseKernelLine('[    0.389000][    T1] DMAR: x')?.text).toBe('DMAR: x');
    expect(parseKernelLine('[    0.4] GUEST done')).toBeUndefined();
    expect(parseKernelLine('Booting from ROM...')).toBeUndefined();
  });

  test('which the guest repeats count once, and those of a quiet console too', () => {
    const { dmesg } = readConsole(['[    0.5] DMAR: IOMMU enabled', '[    3.0] GUEST dmesg [    0.5] DMAR: IOMMU enabled', '[    3.0] GUEST dmesg [    0.6] DMAR: quiet=yes']);
    expect(dmesg).toEqual([{ seconds: 0.5, text: 'DMAR: IOMMU enabled' }, { seconds: 0.6, text: 'DMAR: quiet=yes' }]);
  });
});

describe('complaints', () => {
  const bad: readonly (readonly [kind: string, text: string])[] = [
    ['fault-status', 'DMAR: DRHD: handling fault status reg 2'],
    ['dma-fault', 'DMAR: [DMA Write PASID 0x2] Request device [00:04.0] fault addr 0x7fd9b5c0d000 [fault reason 0x71] SM: Present bit in first-level paging entry is clear'],
    ['dma-fault', 'DMAR: [INTR-REMAP] Request device [00:02.0] fault index 0xa00 [fault reason 0x25] Blocked a compatibility format interrupt request'],
    ['invalidation', 'DMAR: VT-d detected Invalidation Queue Error: Reason 1'],
    ['invalidation', 'DMAR: QI HEAD: Invalidation Wait qw0 = 0x200000025, qw1 = 0x196bc04'],
    ['invalidation', 'DMAR: Invalidation Time-out Error (ITE) cleared'],
    ['page-request-overflow', 'DMAR: IOMMU: dmar0: PRQ overflow detected'],
    ['page-request', 'DMAR: IOMMU: dmar0: Address is not canonical'],
    ['dmar', 'DMAR: ERROR: DMA PTE for vPFN 0xfffff already set (to fffff003 not 1)'],
    ['aer', 'pcieport 0000:00:01.0: AER: Corrected error message received from 0000:01:00.0'],
    ['nvme', 'I/O error, dev nvme0n1, sector 7 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2'],
    ['nvme', 'nvme nvme0: I/O 97 QID 1 timeout, completion polled'],
    ['idxd', 'idxd 0000:00:04.0: No in-kernel DMA with PASID. -28'],
    ['warning', 'WARNING: CPU: 0 PID: 1 at drivers/iommu/intel/iommu.c:1 x+0x1/0x2'],
    ['bug', 'BUG: kernel NULL pointer dereference, address: 0000000000000010'],
    ['bug', 'Call Trace:'],
    ['hung-task', 'INFO: task sh:55 blocked for more than 120 seconds.'],
    ['panic', 'Kernel panic - not syncing: DMAR hardware is malfunctioning'],
  ];
  test.each(bad)('%s: %s', (kind, text) => {
    expect(complaints([{ seconds: 1, text }]).map((complaint) => complaint.kind)).toEqual([kind]);
  });

  test.each([
    'DMAR: DRHD base: 0x000000fd000000 flags: 0x0',
    'DMAR: dmar0: reg_base_addr fd000000 ver 6:0 cap 11d2008c222f0406 ecap 1cd9ee4f00fc7',
    'DMAR: Intel(R) Virtualization Technology for Directed I/O',
    'DMAR: dmar0: Using Queued invalidation',
    'acpi PNP0A08:00: _OSC: OS now controls [SHPCHotplug PME AER PCIeCapability]',
    'Kernel command line: console=ttyS0 panic=-1 vfiosim.run=nvme,dsa-reset vfiosim.timeout=150',
    'idxd 0000:00:04.0: Failed to initialize perfmon. No PMU support: -19',
    'nvme nvme0: 1/0/0 default/read/poll queues',
    'idxd 0000:00:04.0: Intel(R) Accelerator Device (v100)',
    '!!! setcpuid=/clearcpuid= in use, this is for TESTING ONLY, may break things horribly. Tainting kernel.',
  ])('not: %s', (text) => expect(complaints([{ seconds: 1, text }])).toEqual([]));

  test('of an allowed kind are left out, others stay', () => {
    const dmesg = bad.slice(0, 4).map(([, text]) => ({ seconds: 1, text }));
    expect(complaints(dmesg, ['dma-fault', 'fault-status']).map(({ kind }) => kind)).toEqual(['invalidation']);
  });
});

describe('shortcomings', () => {
  const good = ['[    3.0] GUEST booted release=7', '[    4.0] GUEST begin pci', '[    4.1] GUEST end pci seconds=4.10', '[    4.2] GUEST done'];

  test('none for a guest that did all and powered off', () => expect(shortcomings(readConsole(good))).toEqual([]));

  test('a guest that never came up, and one that stopped in the middle', () => {
    expect(shortcomings(readConsole(['[    0.1] Linux version 7']))).toEqual([expect.stringMatching(/first process/)]);
    expect(shortcomings(readConsole(good.slice(0, 2)))).toEqual([expect.stringMatching(/did not end by itself.*begin pci/)]);
  });

  test('what the guest says failed, and what its kernel complains of unless that is allowed', () => {
    const lines = [...good, '[    4.0] GUEST fail nvme no /dev/nvme0n1', '[    4.0] DMAR: DRHD: handling fault status reg 2'];
    expect(shortcomings(readConsole(lines))).toEqual(['the guest: fail nvme no /dev/nvme0n1', 'its kernel, at 4 s, fault-status: DMAR: DRHD: handling fault status reg 2']);
    expect(shortcomings(readConsole(lines), ['fault-status'])).toHaveLength(1);
  });
});
