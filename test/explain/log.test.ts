import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { EXPLAINED_REASONS, faultCause, reasonText } from '../../harness/explain/fault-causes.js';
import { explainLog, MAX_GROUPS, type LogGroup } from '../../harness/explain/log.js';
import { logText } from '../../harness/explain/text.js';
import { FAULT_REASONS } from '../../iommu/intel-vtd/spec/fault-reasons.js';

function only(text: string): LogGroup {
  const { groups, notUnderstood } = explainLog(text);
  expect(notUnderstood).toEqual([]);
  expect(groups).toHaveLength(1);
  return groups[0]!;
}

describe('fault reasons', () => {
  it('all have an entry, two or three causes, and a sentence', () => {
    for (const { code } of FAULT_REASONS) {
      const cause = faultCause(code);
      expect(cause, `reason 0x${code.toString(16)}`).toBeDefined();
      expect(cause!.causes.length, `reason 0x${code.toString(16)}`).toBeGreaterThanOrEqual(2);
      expect(cause!.causes.length, `reason 0x${code.toString(16)}`).toBeLessThanOrEqual(3);
      expect(new Set(cause!.causes).size).toBe(cause!.causes.length);
    }
    for (const code of EXPLAINED_REASONS) expect(reasonText(code)).not.toContain('no revision');
  });

  it('end where the condition says: LRT root, LCT context, SPD directory, SPT PASID entry, SFL first level, SSL second level', () => {
    const entries: Record<string, string> = { LRT: 'root entry', LCT: 'context entry', SRT: 'root entry', SCT: 'context entry', SPD: 'PASID directory entry', SPT: 'PASID table entry', SSL: 'second-level entry', LSL: 'second-level entry' };
    for (const { code, condition } of FAULT_REASONS) {
      const entry = entries[condition.split('.')[0]!];
      if (entry !== undefined) expect(faultCause(code)!.entry, `reason 0x${code.toString(16)}`).toBe(entry);
    }
  });

  it('are told when no revision names them', () => {
    expect(only('DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x5000 [fault reason 0xee] Unknown').what).toContain('no revision up to 4.1 names');
  });
});

describe('fault lines in the forms of all kernels', () => {
  it.each([
    ['3.x, two lines', 'DMAR:[DMA Read] Request device [00:02.0] fault addr ff000\nDMAR:[fault reason 06] PTE Read access is not set', 6, 0xff000n],
    ['4.x', 'DMAR: [DMA Write] Request device [00:02.0] fault addr ff000 [fault reason 05] PTE Write access is not set', 5, 0xff000n],
    ['5.x', 'DMAR: [DMA Read] Request device [00:02.0] PASID ffffffff fault addr 76406000 [fault reason 06] PTE Read access is not set', 6, 0x7640_6000n],
    ['later', 'DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x76406000 [fault reason 0x06] PTE Read access is not set', 6, 0x7640_6000n],
    ['later, with 0x in the device', 'DMAR: [DMA Read NO_PASID] Request device [0x00:0x02.0] fault addr 0x76406000 [fault reason 0x06] x', 6, 0x7640_6000n],
    ['quoted and wrapped before the address', '> DMAR: [DMA Read] Request device [00:02.0] PASID ffffffff\n>        fault addr 76406000 [fault reason 06] x', 6, 0x7640_6000n],
    ['wrapped in the middle', 'DMAR: [DMA Write] Request device [00:02.0] PASID ffffffff fault addr\n7effff9000 [fault reason 05] PTE Write access is not set', 5, 0x7e_ffff_9000n],
    ['syslog', 'Jan  1 00:00:00 host kernel: [ 1234.567890] DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x1000 [fault reason 0x71] SM', 0x71, 0x1000n],
  ])('%s', (_form, text, reason, address) => {
    expect(only(text)).toMatchObject({ kind: 'dma-fault', device: '00:02.0', reason, count: 1, addresses: { lowest: address, different: 1 } });
    expect(only(text).pasid).toBeUndefined();
  });

  it.each([
    ['5.x', 'DMAR: [DMA Write] Request device [6a:01.0] PASID 2 fault addr 7f00000 [fault reason 89] SM: Present bit in PASID Table Entry is clear'],
    ['later', 'DMAR: [DMA Write PASID 0x2] Request device [6a:01.0] fault addr 0x7f00000 [fault reason 0x59] SM'],
  ])('with a PASID: %s; reasons without 0x are decimal', (_form, text) => {
    expect(only(text)).toMatchObject({ device: '6a:01.0', pasid: 2, reason: 0x59, entry: 'PASID table entry' });
  });

  it('keep the segment of the latest form', () => {
    expect(only('DMAR: [DMA Read NO_PASID] Request device [0001:6a:01.0] fault addr 0x1000 [fault reason 0x39] SM').device).toBe('0001:6a:01.0');
  });

  it.each([
    ['INTR-REMAP: Request device [[f0:1f.7] fault index 0\nINTR-REMAP:[fault reason 38] Blocked', 'f0:1f.7', 0x26],
    ['dmar: INTR-REMAP: Request device [f0:1f.7] fault index 1c [fault reason 34] Present field in the IRTE entry is clear', 'f0:1f.7', 0x22],
    ['DMAR: [INTR-REMAP] Request device [0xe2:0x00.0] fault index 0xa00 [fault reason 0x25] Blocked a compatibility format interrupt request', 'e2:00.0', 0x25],
  ])('of interrupt remapping: %s', (text, device, reason) => {
    expect(only(text)).toMatchObject({ kind: 'interrupt-fault', device, reason });
  });

  it('are one group per device, PASID, direction and reason', () => {
    const line = (address: number, device = '00:02.0') => `DMAR: [DMA Read NO_PASID] Request device [${device}] fault addr 0x${address.toString(16)} [fault reason 0x06] x`;
    const { groups } = explainLog([line(0x3000), line(0x1000), line(0x1000), line(0x2000, '00:03.0')].join('\n'));
    expect(groups.map(({ count, lines, addresses }) => [count, lines, addresses])).toEqual([
      [3, [1, 2, 3], { lowest: 0x1000n, highest: 0x3000n, different: 2 }], [1, [4], { lowest: 0x2000n, highest: 0x2000n, different: 1 }],
    ]);
  });

  it('that are cut off say so, and the next line is still read', () => {
    const { groups } = explainLog('DMAR: [DMA Read] Request device [00:02.0] fault addr\nDMAR: DRHD: handling fault status reg 2');
    expect(groups.map(({ kind }) => kind)).toEqual(['cut-fault', 'fault-status']);
  });

  it('give a hint when the address tells something', () => {
    const what = (address: string) => only(`DMAR: [DMA Write NO_PASID] Request device [00:1a.0] fault addr ${address} [fault reason 0x05] x`).what;
    expect([what('0x0'), what('0xfee00000'), what('0x1d40000030c0')].map((text) => /address (is 0|lies in the interrupt)/.exec(text)?.[1])).toEqual(['is 0', 'lies in the interrupt', undefined]);
  });
});

describe('fault status', () => {
  it.each([['2', 'A fault is recorded, the first in record 0'], ['102', 'the first in record 1'], ['3', 'overflowed'], ['40', 'in time'], ['ffffffff', 'does not answer']])('%s', (value, text) => {
    expect(only(`DMAR: DRHD: handling fault status reg ${value}`).what).toContain(text);
  });
});

describe('queue lines', () => {
  it.each([
    ['DMAR: VT-d detected Invalidation Queue Error: Reason 3', 'invalid descriptor type'],
    ['DMAR: VT-d detected Invalidation Time-out Error: SID 6a08', '6a:01.0'],
    ['DMAR: VT-d detected Invalidation Time-out Error: SID ffff', 'every bit of the register reads as 1'],
    ['DMAR: VT-d detected Invalidation Completion Error: SID 6a08', 'nobody waited for'],
    ['DMAR: QI HEAD: Device-TLB Invalidation qw0 = 0x6a0800000003, qw1 = 0x7ffffffffffff001', 'device TLB of 6a:01.0: all addresses'],
    ['DMAR: QI PRIOR: Invalidation Wait qw0 = 0x200000025, qw1 = 0x102044', 'write 2 to 0x102044'],
    ['DMAR: VT-d detected invalid descriptor: qw0 = 11, qw1 = 0', 'context cache: all'],
    ['DMAR: Invalidation Time-out Error (ITE) cleared', 'cleared the error'],
    ['DMAR: dmar0: Invalid page request: 16a080101 7ffff7fbb00e', '6a:01.0 PASID 1: wants write at 0x7ffff7fbb000'],
    ['DMAR: dmar0: Invalid page request: 6a080001 1005', 'has no PASID'],
    ['DMAR: IOMMU: dmar0: Page request without PASID', 'without naming a PASID'],
    ['DMAR: IOMMU: dmar0: Page request in Privilege Mode', 'as supervisor'],
    ['DMAR: IOMMU: dmar0: Execution request not supported', 'execute'],
    ['DMAR: IOMMU: dmar0: Address is not canonical', 'sign'],
    ['DMAR: IOMMU: dmar0: PRQ overflow detected', 'faster than the kernel took them'],
    ['DMAR: IOMMU: dmar0: PRQ overflow cleared', 'dropped incomplete groups'],
    ['idxd 0000:6a:01.0: no pending PRQ, drop response', 'is not open'],
    ['0000:6a:01.0: Page response time expired, pasid 1 gid 7', 'did not answer in time'],
    ['DMAR: IOMMU: dmar0: Failed to allocate page request queue', 'will take no page requests'],
  ])('%s', (line, text) => {
    expect(only(line).what).toContain(text);
  });
});

describe('lines from boot and drivers', () => {
  it.each([
    ['DMAR: dmar0 SVM disabled, incompatible 1GB page capability', '1 GiB pages'],
    ['DMAR: dmar0 SVM disabled, incompatible paging mode', '5 page table levels'],
    ['idxd 0000:6a:01.0: Unable to turn on user SVA feature.', 'shared virtual addressing and was refused'],
    ['idxd 0000:6a:01.0: Unable to turn on SVA feature.', 'shared virtual addressing and was refused'],
    ['pci 0000:00:05.0: DMAR: Passthrough IOMMU for integrated Intel IPU', 'identity mapping'],
    ['iommu: Default domain type: Passthrough (set via kernel command line)', 'without translation'],
    ['vfio-pci 0000:0b:00.0: Device is ineligible for IOMMU domain attach due to platform RMRR requirement.  Contact your platform vendor.', 'mapped one to one'],
    ['vfio-pci 0000:0b:00.0: Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the device without a 1:1 mapping. Contact your platform vendor.', 'one to one'],
    ['DMAR: [Firmware Bug]: No firmware reserved region can cover this RMRR [0x000000006f760000-0x000000006f762fff], contact BIOS vendor for fixes', '0x000000006f760000–0x000000006f762fff'],
    ['DMAR: [Firmware Bug]: Your BIOS is broken; bad RMRR [0x000000006f760000-0x000000006f762fff]', 'not page-aligned'],
    ['Your BIOS is broken; DMAR reported at address fed90000 returns all ones!', 'Nothing answers at 0xfed90000'],
    ['DMAR: Translation was enabled for dmar0 but we are not in kdump mode', 'turned it off'],
    ['DMAR-IR: IRQ remapping was enabled on dmar0 but we are not in kdump mode', 'set the table up anew'],
    ['DMAR-IR: Failed to setup irq remapping for dmar0', 'VFIO gives none away'],
    ['DMAR: Failed to copy translation tables from previous kernel for dmar0', 'empty tables'],
    ['DMAR: Intel-IOMMU force enabled due to platform opt in', 'DMA protection'],
    ['DMAR: IOMMU feature pgsel_inv inconsistent', 'no error'],
    ['DMAR hardware is malfunctioning', 'ten seconds'],
    ['DMAR: No ATSR found', 'root port'],
  ])('%s', (line, text) => {
    expect(only(line).what).toContain(text);
  });

  it('tell from CAP and ECAP whether shared virtual addressing is possible', () => {
    expect(only('DMAR: dmar1: reg_base_addr fed91000 ver 1:0 cap d2008c40660462 ecap f050da').what).toContain('not possible: no scalable mode, no first-level translation, no PASIDs.');
    expect(only('DMAR: dmar0: reg_base_addr fed90000 ver 6:0 cap 1d2078c222f0606 ecap 3cd9ae4000fc7').what).toContain('Shared virtual addressing is possible.');
  });
});

describe('table dumps of CONFIG_DMAR_DEBUG', () => {
  it('are decoded by the manual\'s fields and kept together', () => {
    const group = only([
      'DMAR: Dump dmar1 table entries for IOVA 0x1026a4000', 'DMAR: scalable mode root entry: hi 0x0000000102448001, low 0x0000000101b3e001',
      'DMAR: context entry: hi 0x0000000000000000, low 0x0000000101b4d401', 'DMAR: pasid dir entry: 0x0000000101b4e001',
      ...[0x49n, 0x80_0001n, 0x10_7000n, 0n, 0n, 0n, 0n, 0n].map((qword, i) => `DMAR: pasid table entry[${i}]: 0x${qword.toString(16).padStart(16, '0')}`),
      'DMAR: pte level: 4, pte value: 0x000000010df93067', 'DMAR: page table not present at level 2',
    ].join('\n'));
    expect(group.details).toEqual([
      'root entry: LP=1 LCTP=0x101b3e000 UP=1 UCTP=0x102448000', 'context entry: P=1 PDTS=2 PASIDDIRPTR=0x101b4d000', 'PASID directory entry: P=1 SMPTBLPTR=0x101b4e000',
      'PASID table entry: P=1 AW=2 PGTT=1 DID=1 PWSNP=1 FLPTPTR=0x107000', 'first-level entry, level 3: P=1 RW=1 US=1 A=1 D=1 ADDR=0x10df93000',
    ]);
    expect(group.what).toContain('page table not present at level 2');
  });

  it('of legacy mode too', () => {
    const { details } = only('DMAR: Dump dmar0 table entries for IOVA 0x1000\nDMAR: root entry: 0x0000000100001001\nDMAR: context entry: hi 0x0000000000000702, low 0x0000000100002001\nDMAR: pte level: 1, pte value: 0x0000000000003001');
    expect(details).toEqual(['root entry: P=1 CTP=0x100001000', 'context entry: P=1 SLPTPTR=0x100002000 AW=2 DID=7', 'second-level entry, level 0: R=1 ADDR=0x3000']);
  });
});

describe('everything else', () => {
  it('is counted; what concerns an IOMMU is listed', () => {
    const report = explainLog('usb 1-1: new device\n[    1.0] DMAR: a line of a kernel to come\n[    2.0] DMAR: a line of a kernel to come\n\n');
    expect(report).toMatchObject({ groups: [], notUnderstood: [{ text: 'DMAR: a line of a kernel to come', count: 2 }], notUnderstoodLines: 2, otherLines: 1 });
  });

  it('is bounded: groups, lines of any length', () => {
    const many = Array.from({ length: 2000 }, (_, i) => `DMAR: [DMA Read NO_PASID] Request device [${(i >> 8).toString(16).padStart(2, '0')}:${((i >> 3) & 31).toString(16).padStart(2, '0')}.${i & 7}] fault addr 0x1000 [fault reason 0x06] x`);
    expect(explainLog(many.join('\n'))).toMatchObject({ limits: [`only the first ${MAX_GROUPS} different findings are shown`] });
    expect(explainLog(`DMAR: ${'['.repeat(1_000_000)}`).notUnderstood[0]!.text).toHaveLength(160);
    expect(explainLog('DMAR: [DMA Read] Request device [00:02.0] fault addr \n'.repeat(20_000)).groups[0]!.count).toBe(20_000);
  });

  it('never makes it throw', () => {
    const words = fc.constantFrom('DMAR:', '[DMA Read]', '[DMA Write PASID 0x2]', 'Request device', '[00:02.0]', '[[00:02.0]', 'fault addr', 'fault index', '0x', 'ffffffffffffffff', '[fault reason 06]', '[fault reason 0xff]', '[fault reason 999]', 'INTR-REMAP:', 'PASID ffffffff', 'Invalid page request:', 'Dump dmar0 table entries for IOVA 0x1', 'pasid table entry[7]:', 'pte level: 9,', 'SID', '\n', ' ', '\u0000', '�');
    fc.assert(fc.property(fc.array(fc.oneof(words, fc.string({ maxLength: 6 })), { maxLength: 60 }), (parts) => {
      expect(typeof logText(explainLog(parts.join(' ')))).toBe('string');
    }), { numRuns: 300 });
  });
});
