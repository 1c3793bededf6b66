/**
 * CAP and ECAP (VT-d specification rev 4.1, 11.4.2 and 11.4.3): the words of a topology file become register
 * values, and register values (ours or a recording's) become the facts that the model and the driver act on.
 * `buildCapabilities` sets no bit whose feature is not modelled; `decodeCapabilities` keeps a recording's raw values
 * as they are and names such bits in `notModelled`.
 */
import { bit, bits, struct, wordsOf, qwordsOf } from '../../../sim/layout.js';

export const CAP = struct('CAP', 8, {
  ND: bits(2, 0), RWBF: bit(4), PLMR: bit(5), PHMR: bit(6), CM: bit(7), SAGAW: bits(12, 8), MGAW: bits(21, 16), ZLR: bit(22),
  FRO: bits(33, 24), SSLPS: bits(37, 34), PSI: bit(39), NFR: bits(47, 40), MAMV: bits(53, 48), DWD: bit(54), DRD: bit(55),
  FS1GP: bit(56), PI: bit(59), FS5LP: bit(60), ECMDS: bit(61), ESIRTPS: bit(62), ESRTPS: bit(63),
});

export const ECAP = struct('ECAP', 8, {
  C: bit(0), QI: bit(1), DT: bit(2), IR: bit(3), EIM: bit(4), PT: bit(6), SC: bit(7), IRO: bits(17, 8), MHMV: bits(23, 20),
  MTS: bit(25), NEST: bit(26), PRS: bit(29), ERS: bit(30), SRS: bit(31), NWFS: bit(33), EAFS: bit(34), PSS: bits(39, 35),
  PASID: bit(40), DIT: bit(41), PDS: bit(42), SMTS: bit(43), VCS: bit(44), SSADS: bit(45), SSTS: bit(46), FSTS: bit(47),
  SMPWCS: bit(48), RPS: bit(49), PMS: bit(51), ADMS: bit(52), RPRIVS: bit(53), SMS: bit(58),
});

/** SAGAW bits: second-level tables of 3, 4 and 5 levels. */
export const SAGAW_39 = 2;
export const SAGAW_48 = 4;
export const SAGAW_57 = 8;

export type SuperpageSize = '2M' | '1G';

/** The words of a topology's `iommu:` section; every one has a default. */
export interface VtdCapabilityOptions {
  /** Widest second-level input address; 57 needs five second-level levels. Default 48. */
  readonly 'aw-bits'?: 39 | 48 | 57;
  /** Scalable mode (SMTS). Default true. */
  readonly scalable?: boolean;
  /** First-level translation (FSTS). Default: scalable. */
  readonly 'first-level'?: boolean;
  /** Second-level translation in scalable mode (SSTS). Default: scalable. */
  readonly 'second-level'?: boolean;
  /** Nested translation (NEST). Default: first-level and second-level. */
  readonly nested?: boolean;
  /** Pass-through (PT). Default true. */
  readonly 'pass-through'?: boolean;
  /** PASID width, 0 (no PASIDs) to 20. Default 20 in scalable mode. */
  readonly 'pasid-bits'?: number;
  /** Page requests (PRS, PDS). Default: device-tlb and PASIDs. */
  readonly 'page-requests'?: boolean;
  /** Device TLBs, which is ATS (DT, NWFS). Default true. */
  readonly 'device-tlb'?: boolean;
  /** Requests with PASID that ask for execute permission (ERS). Default: PASIDs and first-level. */
  readonly 'execute-requests'?: boolean;
  /** Requests with PASID that ask for supervisor privilege (SRS). Default: PASIDs and first-level. */
  readonly 'supervisor-requests'?: boolean;
  /** Extended accessed bit of first-level entries (EAFS). Default false. */
  readonly 'extended-accessed'?: boolean;
  /** First-level tables of five levels (FS5LP). Default false. */
  readonly 'five-level'?: boolean;
  /** First-level leaves of 1 GiB (FS1GP). Default: first-level. */
  readonly 'first-level-1g'?: boolean;
  /** Second-level leaves above 4 KiB (SSLPS). Default both. */
  readonly 'second-level-superpages'?: readonly SuperpageSize[];
  /** Second-level accessed and dirty bits (SSADS). Default false. */
  readonly 'accessed-dirty'?: boolean;
  /** Snoop control (SC). Default true. */
  readonly 'snoop-control'?: boolean;
  /** Caching mode (CM): a virtual IOMMU that must hear of every change. Default false. */
  readonly 'caching-mode'?: boolean;
  /** Number of domain ids: 16, 64, 256, … 65536. Default 65536. */
  readonly 'domain-ids'?: number;
  /** Fault recording registers (NFR), 1 to 222. Default 8. */
  readonly 'fault-records'?: number;
  /** Setting the root table pointer invalidates every cache (ESRTPS). Default false. */
  readonly esrtps?: boolean;
  /** Host address width, 32 to 52; it stands in the DMAR table, not in a register. Default 46. */
  readonly haw?: number;
  /** Drain of reads and writes on IOTLB invalidation (DRD, DWD). Default true. */
  readonly drain?: boolean;
  /** Page-selective invalidation (PSI). Default true. */
  readonly psi?: boolean;
  /** Largest address mask of a page-selective invalidation (MAMV). Default 18 with PSI. */
  readonly mamv?: number;
  /** Abort-DMA translation table mode (ADMS). Default false. */
  readonly 'abort-dma'?: boolean;
  /** Interrupt remapping (IR, MHMV = 15). Default false; topologies say true. */
  readonly 'interrupt-remapping'?: boolean;
  /** VER register: major in bits 7:4, minor in 3:0. Default 0x60. */
  readonly version?: number;
}

/** What CAP and ECAP say, decoded. */
export interface VtdCapabilities {
  /** Raw register values. */
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly version: number;
  readonly hostAddressWidth: number;

  /** Domain ids have this many bits. */
  readonly domainIdBits: number;
  readonly requiresWriteBufferFlush: boolean;
  readonly cachingMode: boolean;
  /** SAGAW as it stands in the register. */
  readonly adjustedWidths: number;
  /** MGAW + 1: widest address of an untranslated request without first level. */
  readonly guestAddressWidth: number;
  readonly zeroLengthRead: boolean;
  /** Byte offsets in the register window. */
  readonly faultRecordOffset: number;
  readonly iotlbOffset: number;
  readonly faultRecords: number;
  readonly secondLevel2M: boolean;
  readonly secondLevel1G: boolean;
  readonly pageSelectiveInvalidation: boolean;
  readonly maxAddressMask: number;
  readonly drainWrites: boolean;
  readonly drainReads: boolean;
  readonly firstLevel1G: boolean;
  readonly fiveLevel: boolean;
  readonly enhancedSetRootTable: boolean;

  readonly coherent: boolean;
  readonly queuedInvalidation: boolean;
  readonly deviceTlb: boolean;
  readonly passThrough: boolean;
  readonly snoopControl: boolean;
  readonly nested: boolean;
  readonly pageRequests: boolean;
  readonly executeRequests: boolean;
  readonly supervisorRequests: boolean;
  readonly noWriteFlag: boolean;
  readonly extendedAccessed: boolean;
  /** 0 without PASID support. */
  readonly pasidBits: number;
  readonly pageRequestDrain: boolean;
  readonly scalable: boolean;
  readonly secondLevelAccessedDirty: boolean;
  readonly secondLevel: boolean;
  readonly firstLevel: boolean;
  readonly scalableCoherent: boolean;
  readonly abortDma: boolean;
  readonly interruptRemapping: boolean;
  /** EIM of a recording: 32-bit destinations. */
  readonly extendedInterruptMode: boolean;
  /** MHMV: largest index mask of an interrupt-entry cache invalidation. */
  readonly maxHandleMask: number;
  /** ESIRTPS of a recording: setting the interrupt remapping table invalidates the interrupt-entry cache. */
  readonly enhancedSetInterruptTable: boolean;
  /** RPS: context entries carry RID_PASID. */
  readonly ridPasid: boolean;
  /** RPRIVS of a recording: context entries carry RID_PRIV. */
  readonly ridPrivilege: boolean;
  /** Names of set bits whose feature this model does not have; only recordings have any. */
  readonly notModelled: readonly string[];
}

const NOT_MODELLED_CAP = ['PLMR', 'PHMR', 'PI', 'ECMDS'] as const;
const NOT_MODELLED_ECAP = ['MTS', 'DIT', 'VCS', 'PMS', 'SMS'] as const;

/** @param options what is not in CAP and ECAP: VER and the host address width (default 46) */
export function decodeCapabilities(cap: bigint, ecap: bigint, options: { version?: number; hostAddressWidth?: number } = {}): VtdCapabilities {
  const c = wordsOf(cap), e = wordsOf(ecap);
  const capField = (name: keyof typeof CAP.f): number => CAP.f[name].get(c);
  const ecapField = (name: keyof typeof ECAP.f): number => ECAP.f[name].get(e);
  const sslps = capField('SSLPS');
  return {
    cap, ecap,
    version: options.version ?? 0x60,
    hostAddressWidth: options.hostAddressWidth ?? 46,
    domainIdBits: 4 + 2 * capField('ND'),
    requiresWriteBufferFlush: capField('RWBF') === 1,
    cachingMode: capField('CM') === 1,
    adjustedWidths: capField('SAGAW'),
    guestAddressWidth: capField('MGAW') + 1,
    zeroLengthRead: capField('ZLR') === 1,
    faultRecordOffset: capField('FRO') * 16,
    iotlbOffset: ecapField('IRO') * 16,
    faultRecords: capField('NFR') + 1,
    secondLevel2M: (sslps & 1) !== 0,
    secondLevel1G: (sslps & 2) !== 0,
    pageSelectiveInvalidation: capField('PSI') === 1,
    maxAddressMask: capField('MAMV'),
    drainWrites: capField('DWD') === 1,
    drainReads: capField('DRD') === 1,
    firstLevel1G: capField('FS1GP') === 1,
    fiveLevel: capField('FS5LP') === 1,
    enhancedSetRootTable: capField('ESRTPS') === 1,
    coherent: ecapField('C') === 1,
    queuedInvalidation: ecapField('QI') === 1,
    deviceTlb: ecapField('DT') === 1,
    passThrough: ecapField('PT') === 1,
    snoopControl: ecapField('SC') === 1,
    nested: ecapField('NEST') === 1,
    pageRequests: ecapField('PRS') === 1,
    executeRequests: ecapField('ERS') === 1,
    supervisorRequests: ecapField('SRS') === 1,
    noWriteFlag: ecapField('NWFS') === 1,
    extendedAccessed: ecapField('EAFS') === 1,
    pasidBits: ecapField('PASID') === 1 ? ecapField('PSS') + 1 : 0,
    pageRequestDrain: ecapField('PDS') === 1,
    scalable: ecapField('SMTS') === 1,
    secondLevelAccessedDirty: ecapField('SSADS') === 1,
    secondLevel: ecapField('SSTS') === 1,
    firstLevel: ecapField('FSTS') === 1,
    scalableCoherent: ecapField('SMPWCS') === 1,
    abortDma: ecapField('ADMS') === 1,
    interruptRemapping: ecapField('IR') === 1,
    extendedInterruptMode: ecapField('EIM') === 1,
    maxHandleMask: ecapField('MHMV'),
    enhancedSetInterruptTable: capField('ESIRTPS') === 1,
    ridPasid: ecapField('RPS') === 1,
    ridPrivilege: ecapField('RPRIVS') === 1,
    notModelled: [
      ...NOT_MODELLED_CAP.filter((name) => capField(name) !== 0).map((name) => `CAP.${name}`),
      ...NOT_MODELLED_ECAP.filter((name) => ecapField(name) !== 0).map((name) => `ECAP.${name}`),
    ],
  };
}

export interface BuiltCapabilities {
  /** Meaningful only without problems. */
  readonly capabilities: VtdCapabilities;
  /** One sentence per option that is out of range or contradicts another; options are named as in the topology. */
  readonly problems: readonly string[];
}

/** Register values of a unit with these options. */
export function buildCapabilities(options: VtdCapabilityOptions = {}): BuiltCapabilities {
  const o = withDefaults(options);
  const problems = findProblems(o);
  if (problems.length > 0) return { capabilities: buildCapabilities().capabilities, problems };
  const superpages = (o['second-level-superpages'].includes('2M') ? 1 : 0) | (o['second-level-superpages'].includes('1G') ? 2 : 0);
  const flag = (on: boolean): number => (on ? 1 : 0);
  const cap = CAP.encode({
    ND: (Math.log2(o['domain-ids']) - 4) / 2,
    CM: flag(o['caching-mode']),
    SAGAW: SAGAW_39 | (o['aw-bits'] >= 48 ? SAGAW_48 : 0) | (o['aw-bits'] >= 57 ? SAGAW_57 : 0),
    MGAW: o['aw-bits'] - 1,
    // a zero-length read moves no bytes here, so it can never be refused
    ZLR: 0,
    FRO: 0x220 / 16,
    SSLPS: superpages,
    PSI: flag(o.psi),
    NFR: o['fault-records'] - 1,
    MAMV: o.mamv,
    DWD: flag(o.drain),
    DRD: flag(o.drain),
    FS1GP: flag(o['first-level-1g']),
    FS5LP: flag(o['five-level']),
    ESRTPS: flag(o.esrtps),
  });
  const pasid = o['pasid-bits'] > 0;
  const ecap = ECAP.encode({
    C: 1,
    QI: 1,
    DT: flag(o['device-tlb']),
    IR: flag(o['interrupt-remapping']),
    MHMV: o['interrupt-remapping'] ? 15 : 0,
    PT: flag(o['pass-through']),
    SC: flag(o['snoop-control']),
    IRO: 0xf0 / 16,
    NEST: flag(o.nested),
    PRS: flag(o['page-requests']),
    ERS: flag(o['execute-requests']),
    SRS: flag(o['supervisor-requests']),
    NWFS: flag(o['device-tlb']),
    EAFS: flag(o['extended-accessed']),
    PSS: pasid ? o['pasid-bits'] - 1 : 0,
    PASID: flag(pasid),
    PDS: flag(o['page-requests']),
    SMTS: flag(o.scalable),
    SSADS: flag(o['accessed-dirty']),
    SSTS: flag(o['second-level']),
    FSTS: flag(o['first-level']),
    SMPWCS: flag(o.scalable),
    RPS: flag(o.scalable),
    ADMS: flag(o['abort-dma']),
  });
  return { capabilities: decodeCapabilities(qwordsOf(cap)[0]!, qwordsOf(ecap)[0]!, { version: o.version, hostAddressWidth: o.haw }), problems };
}

type CompleteOptions = { readonly [K in keyof VtdCapabilityOptions]-?: Exclude<VtdCapabilityOptions[K], undefined> };

function withDefaults(options: VtdCapabilityOptions): CompleteOptions {
  const scalable = options.scalable ?? true;
  const firstLevel = options['first-level'] ?? scalable;
  const secondLevel = options['second-level'] ?? scalable;
  const deviceTlb = options['device-tlb'] ?? true;
  const pasidBits = options['pasid-bits'] ?? (scalable ? 20 : 0);
  const psi = options.psi ?? true;
  return {
    'aw-bits': options['aw-bits'] ?? 48,
    scalable,
    'first-level': firstLevel,
    'second-level': secondLevel,
    nested: options.nested ?? (firstLevel && secondLevel),
    'pass-through': options['pass-through'] ?? true,
    'pasid-bits': pasidBits,
    'page-requests': options['page-requests'] ?? (deviceTlb && pasidBits > 0),
    'device-tlb': deviceTlb,
    'execute-requests': options['execute-requests'] ?? (pasidBits > 0 && firstLevel),
    'supervisor-requests': options['supervisor-requests'] ?? (pasidBits > 0 && firstLevel),
    'extended-accessed': options['extended-accessed'] ?? false,
    'five-level': options['five-level'] ?? false,
    'first-level-1g': options['first-level-1g'] ?? firstLevel,
    'second-level-superpages': options['second-level-superpages'] ?? ['2M', '1G'],
    'accessed-dirty': options['accessed-dirty'] ?? false,
    'snoop-control': options['snoop-control'] ?? true,
    'caching-mode': options['caching-mode'] ?? false,
    'domain-ids': options['domain-ids'] ?? 65536,
    'fault-records': options['fault-records'] ?? 8,
    esrtps: options.esrtps ?? false,
    haw: options.haw ?? 46,
    drain: options.drain ?? true,
    psi,
    mamv: options.mamv ?? (psi ? 18 : 0),
    'abort-dma': options['abort-dma'] ?? false,
    'interrupt-remapping': options['interrupt-remapping'] ?? false,
    version: options.version ?? 0x60,
  };
}

const DOMAIN_IDS = [16, 64, 256, 1024, 4096, 16384, 65536];

function findProblems(o: CompleteOptions): string[] {
  const problems: string[] = [];
  const check = (holds: boolean, problem: string): void => {
    if (!holds) problems.push(problem);
  };
  const whole = (value: number, first: number, last: number): boolean => Number.isInteger(value) && value >= first && value <= last;
  check([39, 48, 57].includes(o['aw-bits']), `aw-bits: ${o['aw-bits']} is not 39, 48 or 57`);
  check(whole(o['pasid-bits'], 0, 20), `pasid-bits: ${o['pasid-bits']} is not between 0 and 20`);
  check(DOMAIN_IDS.includes(o['domain-ids']), `domain-ids: ${o['domain-ids']} is not one of ${DOMAIN_IDS.join(', ')}`);
  check(whole(o['fault-records'], 1, 222), `fault-records: ${o['fault-records']} is not between 1 and 222, which is what a 4 KiB register window holds`);
  check(whole(o.haw, 32, 52), `haw: ${o.haw} is not between 32 and 52`);
  check(whole(o.mamv, 0, 63), `mamv: ${o.mamv} is not between 0 and 63`);
  check(whole(o.version, 0, 0xff), `version: ${o.version} does not fit 8 bits`);
  check(o.psi || o.mamv === 0, 'mamv: an address mask needs psi');
  check(!o.psi || o.mamv >= 9, 'mamv: psi needs at least 9');
  check(o.scalable || !o['first-level'], 'first-level: needs scalable');
  check(o.scalable || !o['second-level'], 'second-level: needs scalable (legacy mode always has second-level tables; the word is about scalable mode)');
  check(o.scalable || o['pasid-bits'] === 0, 'pasid-bits: PASIDs need scalable');
  check(o.scalable || !o['accessed-dirty'], 'accessed-dirty: needs scalable');
  check(!o.scalable || o['first-level'] || o['second-level'] || o['pass-through'], 'scalable: needs first-level, second-level or pass-through');
  check(!o.nested || (o['first-level'] && o['second-level']), 'nested: needs first-level and second-level');
  for (const word of ['execute-requests', 'supervisor-requests', 'extended-accessed'] as const) {
    check(!o[word] || (o['first-level'] && o['pasid-bits'] > 0), `${word}: need first-level and pasid-bits`);
  }
  check(!o['five-level'] || o['first-level'], 'five-level: needs first-level');
  check(!o['first-level-1g'] || o['first-level'], 'first-level-1g: needs first-level');
  check(!o['accessed-dirty'] || !o.scalable || o['second-level'], 'accessed-dirty: needs second-level');
  check(!o['page-requests'] || o['device-tlb'], 'page-requests: need device-tlb');
  check(!o['page-requests'] || o['pasid-bits'] > 0, 'page-requests: need pasid-bits');
  check(o['second-level-superpages'].every((size) => size === '2M' || size === '1G'), 'second-level-superpages: sizes are 2M and 1G');
  check(!o['second-level-superpages'].includes('1G') || o['second-level-superpages'].includes('2M'), 'second-level-superpages: 1G needs 2M');
  return problems;
}
