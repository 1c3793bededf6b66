/** Which registers and bits belong to features that a recording's hardware had and the model has not. */
import { GCMD_CFI, GCMD_IRE, GCMD_SIRTP, REG } from '../../iommu/intel-vtd/spec/registers.js';
import type { MmioReadStep, MmioWriteStep } from './vector.js';

interface FeatureRegisters {
  /** Names as in `notModelled`; any of them. */
  readonly capabilities: readonly string[];
  /** Half-open. */
  readonly start: number;
  readonly end: number;
}

/** Registers that exist for one feature only (chapter 11, table 11.1). */
const FEATURES: readonly FeatureRegisters[] = [
  { capabilities: ['CAP.PLMR', 'CAP.PHMR'], start: REG.PMEN, end: REG.IQH },
  { capabilities: ['ECAP.IR'], start: REG.IRTA, end: REG.PQH },
  { capabilities: ['ECAP.MTS'], start: REG.MTRRCAP, end: 0x220 },
  { capabilities: ['ECAP.PMS'], start: 0x300, end: 0x400 },
  { capabilities: ['CAP.ECMDS'], start: 0x400, end: 0x440 },
  { capabilities: ['ECAP.VCS'], start: 0xe00, end: 0xe20 },
];

/** Commands of interrupt remapping in GCMD, and their status bits in GSTS. */
const REMAPPING_BITS = BigInt((GCMD_IRE | GCMD_SIRTP | GCMD_CFI) >>> 0);

/** The capability that a register access is about and that the model lacks. */
export function missingFeature(step: MmioReadStep | MmioWriteStep, notModelled: readonly string[], window: { readonly faultRecords: number; readonly iotlb: number }): string | undefined {
  const { offset, size } = step;
  // capabilities say where these lie, so they may lie in such a range
  if ((offset >= window.faultRecords && offset < window.faultRecords + 0x100) || (offset >= window.iotlb && offset < window.iotlb + 16)) return undefined;
  for (const { capabilities, start, end } of FEATURES) {
    if (offset >= end || offset + size <= start) continue;
    const missing = capabilities.find((name) => notModelled.includes(name));
    if (missing !== undefined) return missing;
  }
  if (step.op === 'mmioWrite' && offset === REG.GCMD && (step.value & REMAPPING_BITS) !== 0n && notModelled.includes('ECAP.IR')) return 'ECAP.IR';
  return undefined;
}

/** Bits of a register that belong to a feature the model lacks: no answer about them means anything. */
export function foreignBits(offset: number, notModelled: readonly string[]): bigint {
  return offset === REG.GSTS && notModelled.includes('ECAP.IR') ? REMAPPING_BITS : 0n;
}
