/**
 * What the registers of a stopped unit say (VT-d rev 4.1, chapter 11): is translation on, in which mode, with which
 * tables, and what cannot be said because a register is missing. Without CAP and ECAP the most capable unit is
 * assumed, so that nothing is called wrong that might be right.
 */
import { toU64 } from '../../sim/address.js';
import { wordsOf } from '../../sim/layout.js';
import type { TranslationState } from '../../iommu/intel-vtd/hardware/back-end.js';
import { CAP, ECAP, decodeCapabilities, type VtdCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import {
  FSTS_FRI_MASK, FSTS_FRI_SHIFT, FSTS_ICE, FSTS_IQE, FSTS_ITE, FSTS_PFO, FSTS_PPF, GCMD_CFI, GCMD_IRE, GCMD_QIE, GCMD_SIRTP, GCMD_SRTP, GCMD_TE, RTADDR,
  TTM_ABORT_DMA, TTM_LEGACY, TTM_SCALABLE,
} from '../../iommu/intel-vtd/spec/registers.js';
import type { RegisterValues } from './register-file.js';

export type TableMode = 'legacy' | 'scalable' | 'abort-dma' | 'reserved' | 'unknown';

export interface UnitState {
  /** Major and minor version, such as 6.0. */
  readonly version: string | undefined;
  readonly hostAddressWidth: number;
  /** GSTS.TES; undefined without GSTS. */
  readonly translation: boolean | undefined;
  readonly mode: TableMode;
  /** Physical byte address; undefined without RTADDR. */
  readonly rootTable: number | undefined;
  /** What the unit can do, in words; empty without ECAP. */
  readonly features: readonly string[];
  /** Bits of GSTS and FSTS that are set, by name. */
  readonly status: readonly string[];
  /** Sentences: what is missing and what cannot be said without it. */
  readonly unknown: readonly string[];
  readonly capabilities: VtdCapabilities;
}

/** Neither width nor feature is refused. */
const MOST_CAPABLE = {
  cap: CAP.encode({ ND: 6, SAGAW: 0b01110, MGAW: 56, SSLPS: 3, PSI: 1, MAMV: 63, FS1GP: 1, FS5LP: 1 }),
  ecap: ECAP.encode({ QI: 1, DT: 1, IR: 1, PT: 1, SC: 1, NEST: 1, PRS: 1, ERS: 1, SRS: 1, EAFS: 1, PSS: 19, PASID: 1, PDS: 1, SMTS: 1, SSADS: 1, SSTS: 1, FSTS: 1, RPS: 1, ADMS: 1, RPRIVS: 1 }),
};
/** Without HAW no address counts as too wide. */
const WIDEST = 52;

export function unitState(registers: RegisterValues): UnitState {
  const cap = registers.get('CAP'), ecap = registers.get('ECAP'), gsts = registers.get('GSTS'), rtaddr = registers.get('RTADDR'), ver = registers.get('VER');
  const hostAddressWidth = Number(registers.get('HAW') ?? BigInt(WIDEST));
  const assumed = (words: Uint32Array): bigint => toU64(words[0]!, words[1]!);
  const capabilities = decodeCapabilities(cap ?? assumed(MOST_CAPABLE.cap), ecap ?? assumed(MOST_CAPABLE.ecap), {
    hostAddressWidth, ...(ver === undefined ? {} : { version: Number(ver & 0xffn) }),
  });
  const rootWords = rtaddr === undefined ? undefined : wordsOf(rtaddr);
  return {
    version: ver === undefined ? undefined : `${(ver >> 4n) & 0xfn}.${ver & 0xfn}`,
    hostAddressWidth,
    translation: gsts === undefined ? undefined : (Number(gsts) & GCMD_TE) !== 0,
    mode: rootWords === undefined ? 'unknown' : modeName(RTADDR.f.TTM.get(rootWords)),
    rootTable: rootWords === undefined ? undefined : RTADDR.f.RTA.get(rootWords),
    features: ecap === undefined ? [] : capabilityNames(capabilities),
    status: [...gstsBits(gsts), ...fstsBits(registers.get('FSTS'))],
    unknown: missing(registers),
    capabilities,
  };
}

/** The state that walks obey. Without GSTS translation is taken to be on. */
export function translationState(state: UnitState): TranslationState {
  const modes: Record<TableMode, number> = { legacy: TTM_LEGACY, scalable: TTM_SCALABLE, 'abort-dma': TTM_ABORT_DMA, reserved: 2, unknown: TTM_LEGACY };
  return { enabled: state.translation ?? true, rootTable: state.rootTable ?? 0, mode: modes[state.mode] };
}

function modeName(ttm: number): TableMode {
  return ttm === TTM_LEGACY ? 'legacy' : ttm === TTM_SCALABLE ? 'scalable' : ttm === TTM_ABORT_DMA ? 'abort-dma' : 'reserved';
}

/** What a unit with these capabilities can do, in words. */
export function capabilityNames(capabilities: VtdCapabilities): string[] {
  const c = capabilities;
  const widths = [3, 4, 5].filter((levels) => ((c.adjustedWidths >>> (levels - 2)) & 1) === 1);
  const named: readonly (readonly [boolean, string])[] = [
    [c.scalable, 'scalable mode'], [c.firstLevel, `first level${c.fiveLevel ? ' (4 and 5 levels)' : ''}`], [c.secondLevel, 'second level in scalable mode'],
    [c.nested, 'nested'], [c.passThrough, 'pass-through'], [c.pasidBits > 0, `PASIDs of ${c.pasidBits} bits`], [c.deviceTlb, 'device TLBs (ATS)'],
    [c.pageRequests, 'page requests (PRI)'], [c.queuedInvalidation, 'queued invalidation'], [c.interruptRemapping, 'interrupt remapping'],
    [c.snoopControl, 'snoop control'], [c.cachingMode, 'caching mode (a virtual unit)'], [!c.coherent, 'walks that do not snoop CPU caches'],
  ];
  return [...named.filter(([has]) => has).map(([, name]) => name), `second-level tables of ${widths.join(', ') || 'no'} levels`, `${c.faultRecords} fault record${c.faultRecords === 1 ? '' : 's'}`];
}

function gstsBits(gsts: bigint | undefined): string[] {
  if (gsts === undefined) return [];
  const bits: readonly (readonly [number, string])[] = [
    [GCMD_TE, 'translation enabled'], [GCMD_SRTP, 'root table set'], [GCMD_QIE, 'queued invalidation enabled'], [GCMD_IRE, 'interrupt remapping enabled'],
    [GCMD_SIRTP, 'interrupt remapping table set'], [GCMD_CFI, 'compatibility-format interrupts pass'],
  ];
  return bits.filter(([bit]) => (Number(gsts) & bit) !== 0).map(([, name]) => name);
}

/** FSTS in words (11.4.7.1); all ones mean that nothing answered. */
export function fstsBits(fsts: bigint | undefined): string[] {
  if (fsts === undefined) return [];
  if (fsts === 0xffff_ffffn) return ['the unit does not answer (all ones)'];
  const value = Number(fsts);
  const bits: readonly (readonly [number, string])[] = [
    [FSTS_PFO, 'fault records overflowed: later faults were lost'],
    [FSTS_PPF, `a fault is recorded, the first in record ${(value & FSTS_FRI_MASK) >>> FSTS_FRI_SHIFT}`],
    [0x04, 'advanced fault log overflowed'], [0x08, 'advanced fault pending'],
    [FSTS_IQE, 'invalidation queue error: the queue stands still'], [FSTS_ICE, 'unexpected invalidation completion'],
    [FSTS_ITE, 'a device did not complete an invalidation in time'], [0x80, 'page request overflow (early revisions)'],
  ];
  return bits.filter(([bit]) => (value & bit) !== 0).map(([, name]) => name);
}

function missing(registers: RegisterValues): string[] {
  const lines: string[] = [];
  const without = (names: readonly string[], text: string): void => {
    const absent = names.filter((name) => !registers.has(name));
    if (absent.length > 0) lines.push(`${absent.join(', ')} missing: ${text}`);
  };
  without(['RTADDR'], 'the tables cannot be found');
  without(['GSTS'], 'whether translation is on is not known; the tables are shown as if it were');
  without(['CAP', 'ECAP'], 'what the unit supports is not known; nothing is called unsupported');
  without(['HAW'], 'addresses up to 52 bits count as possible (the DMAR table has the width)');
  without(['IQA', 'IQH', 'IQT'], 'the invalidation queue cannot be shown');
  without(['PQA', 'PQH', 'PQT'], 'the page request queue cannot be shown');
  if (![...registers.keys()].some((name) => name.startsWith('FRCD'))) lines.push('FRCD0 … missing: recorded faults cannot be shown');
  without(['FSTS'], 'whether faults and queue errors are pending is not known');
  return lines;
}
