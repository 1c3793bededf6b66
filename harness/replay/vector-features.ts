/** Which registers belong to features that a recording's hardware had and the model has not. */
import { REG } from '../../iommu/intel-vtd/spec/registers.js';
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
  { capabilities: ['ECAP.MTS'], start: REG.MTRRCAP, end: 0x220 },
  { capabilities: ['ECAP.PMS'], start: 0x300, end: 0x400 },
  { capabilities: ['CAP.ECMDS'], start: 0x400, end: 0x440 },
  { capabilities: ['ECAP.VCS'], start: 0xe00, end: 0xe20 },
];

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
  return undefined;
}
