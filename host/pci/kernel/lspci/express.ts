/** The PCI Express capability as lspci prints it (layout of pciutils 3.14; fields of PCIe Base 6.0 section 7.5.3). */
import {
  PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_SPACE_IO, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP2, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL2, PCI_EXP_DEVSTA,
  PCI_EXP_FLAGS, PCI_EXP_LNKCAP, PCI_EXP_LNKCTL, PCI_EXP_LNKSTA, PCI_EXP_SLTCAP, PCI_EXP_SLTCTL, PCI_EXP_SLTSTA, PCI_EXP_TYPE_DOWNSTREAM,
  PCI_EXP_TYPE_ENDPOINT, PCI_EXP_TYPE_LEG_END, PCI_EXP_TYPE_RC_END, PCI_EXP_TYPE_ROOT_PORT, PCI_EXP_TYPE_UPSTREAM, PCI_HEADER_TYPE,
} from '../../spec/index.js';
import { flag, flags, hexDigits } from './source.js';
import type { LspciFunction } from './source.js';

const TYPE_PCI_BRIDGE = 7, TYPE_PCIE_BRIDGE = 8, TYPE_EVENT_COLLECTOR = 10;
const RTCTL = 0x1c, RTCAP = 0x1e, RTSTA = 0x20, LNKCAP2 = 0x2c, LNKCTL2 = 0x30, LNKSTA2 = 0x32;

const L0S = ['<64ns', '<128ns', '<256ns', '<512ns', '<1us', '<2us', '<4us', 'unlimited'];
const L1 = ['<1us', '<2us', '<4us', '<8us', '<16us', '<32us', '<64us', 'unlimited'];
const SPEEDS: readonly (string | undefined)[] = [undefined, '2.5GT/s', '5GT/s', '8GT/s', '16GT/s', '32GT/s', '64GT/s', undefined, '128GT/s'];
const ASPM = ['not supported', 'L0s', 'L1', 'L0s L1'];
const ASPM_ENABLED = ['Disabled', 'L0s Enabled', 'L1 Enabled', 'L0s L1 Enabled'];
const INDICATORS = ['Unknown', 'On', 'Blink', 'Off'];
const TIMEOUT_RANGES: ReadonlyMap<number, string> = new Map([
  [0, 'Not Supported'], [1, 'Range A'], [2, 'Range B'], [3, 'Range AB'], [6, 'Range BC'], [7, 'Range ABC'], [14, 'Range BCD'], [15, 'Range ABCD'],
]);
const TIMEOUTS: ReadonlyMap<number, string> = new Map([
  [0, '50us to 50ms'], [1, '50us to 100us'], [2, '1ms to 10ms'], [5, '16ms to 55ms'], [6, '65ms to 210ms'], [9, '260ms to 900ms'],
  [10, '1s to 3.5s'], [13, '4s to 13s'], [14, '17s to 64s'],
]);
const OBFF_SUPPORT = ['Not Supported', 'Via message', 'Via WAKE#', 'Via message/WAKE#'];
const OBFF_ENABLED = ['Disabled', 'Via message A', 'Via message B', 'Via WAKE#'];
const POWER_REDUCTION = ['Not Supported', 'Dev Specific', 'Form Factor Dev Specific', 'Reserved'];
const CACHE_LINES = ['Not Supported', '64byte cachelines', '128byte cachelines', 'Reserved'];
const TPH = ['TPHComp- ExtTPHComp-', 'TPHComp+ ExtTPHComp-', '', 'TPHComp+ ExtTPHComp+'];
const MARGINS = ['Normal Operating Range', '800-1200mV(full-swing)/400-700mV(half-swing)', ...Array.from({ length: 4 }, () => '200-400mV(full-swing)/100-200mV(half-swing)')];
const PRESETS = [
  '-6dB de-emphasis, 0dB preshoot', '-3.5dB de-emphasis, 0dB preshoot', '-4.4dB de-emphasis, 0dB preshoot', '-2.5dB de-emphasis, 0dB preshoot',
  '0dB de-emphasis, 0dB preshoot', '0dB de-emphasis, 1.9dB preshoot', '0dB de-emphasis, 2.5dB preshoot', '-6.0dB de-emphasis, 3.5dB preshoot',
  '-3.5dB de-emphasis, 3.5dB preshoot', '0dB de-emphasis, 3.5dB preshoot',
];
const CROSSLINK = ['unsupported', 'Upstream Port', 'Downstream Port', 'incomplete'];
const COMPONENTS = ['Link Down - Not Determined', 'Link Down - Not Present', 'Link Down - Present', 'Reserved', 'Link Up - Present', 'Link Up - Present and DRS Received', 'Reserved', 'Reserved'];

/** One capability while it is printed. */
interface Express {
  readonly fn: LspciFunction;
  readonly type: number;
  readonly endpoint: boolean;
  /** Root or switch port. */
  readonly port: boolean;
  readonly word: (offset: number) => number;
  readonly long: (offset: number) => number;
}

/** First line without `Capabilities: [..]`, then the indented ones when `verbose` is 2. */
export function expressLines(fn: LspciFunction, at: number, verbose: number): string[] {
  const cap = fn.config.read(at + PCI_EXP_FLAGS, 2);
  const type = (cap & 0xf0) >> 4;
  const slot = (cap & 0x100) !== 0 && (type === PCI_EXP_TYPE_ROOT_PORT || type === PCI_EXP_TYPE_DOWNSTREAM || type === TYPE_PCIE_BRIDGE);
  const link = type !== PCI_EXP_TYPE_RC_END && type !== TYPE_EVENT_COLLECTOR;
  const version = verbose >= 2 ? `(v${cap & 0xf}) ` : '';
  const out = [`Express ${version}${typeName(type, cap)}, IntMsgNum ${(cap & 0x3e00) >> 9}${(cap & 0x8000) !== 0 ? ', FLIT Mode Supported' : ''}`];
  if (verbose < 2) return out;
  const express: Express = {
    fn,
    type,
    endpoint: type === PCI_EXP_TYPE_ENDPOINT || type === PCI_EXP_TYPE_LEG_END,
    port: type === PCI_EXP_TYPE_ROOT_PORT || type === PCI_EXP_TYPE_UPSTREAM || type === PCI_EXP_TYPE_DOWNSTREAM,
    word: (offset) => fn.config.read(at + offset, 2),
    long: (offset) => fn.config.read(at + offset, 4),
  };
  out.push(...deviceLines(express));
  if (link) out.push(...linkLines(express));
  if (slot) out.push(...slotLines(express));
  if (type === PCI_EXP_TYPE_ROOT_PORT || type === TYPE_EVENT_COLLECTOR) out.push(...rootLines(express));
  if ((cap & 0xf) < 2) return out;
  out.push(...device2Lines(express));
  if (link) out.push(...link2Lines(express));
  return out;
}

function typeName(type: number, cap: number): string {
  const slot = `(Slot${flag(cap, 0x100)})`;
  switch (type) {
    case PCI_EXP_TYPE_ENDPOINT:
      return 'Endpoint';
    case PCI_EXP_TYPE_LEG_END:
      return 'Legacy Endpoint';
    case PCI_EXP_TYPE_ROOT_PORT:
      return `Root Port ${slot}`;
    case PCI_EXP_TYPE_UPSTREAM:
      return 'Upstream Port';
    case PCI_EXP_TYPE_DOWNSTREAM:
      return `Downstream Port ${slot}`;
    case TYPE_PCI_BRIDGE:
      return 'PCI-Express to PCI/PCI-X Bridge';
    case TYPE_PCIE_BRIDGE:
      return `PCI/PCI-X to PCI-Express Bridge ${slot}`;
    case PCI_EXP_TYPE_RC_END:
      return 'Root Complex Integrated Endpoint';
    case TYPE_EVENT_COLLECTOR:
      return 'Root Complex Event Collector';
    default:
      return `Unknown type ${type}`;
  }
}

function powerLimit(value: number, scale: number): string {
  if (scale === 0 && value === 0xff) return '>600W';
  const watts = scale === 0 && value >= 0xf0 ? 250 + 25 * (value - 0xf0) : value;
  return `${Number((watts / 10 ** scale).toPrecision(6))}W`;
}

function deviceLines({ type, endpoint, word, long }: Express): string[] {
  const cap = long(PCI_EXP_DEVCAP);
  const integrated = type === PCI_EXP_TYPE_RC_END;
  const latency = endpoint ? `, Latency L0s ${L0S[(cap & 0x1c0) >> 6]!}, L1 ${L1[(cap & 0xe00) >> 9]!}` : '';
  const out = [`\t\tDevCap:\tMaxPayload ${128 << (cap & 7)} bytes, PhantFunc ${(1 << ((cap & 0x18) >> 3)) - 1}${latency}`];
  let line = `\t\t\tExtTag${flag(cap, 0x20)}`;
  if (endpoint || type === PCI_EXP_TYPE_UPSTREAM || type === TYPE_PCI_BRIDGE) line += ` ${flags(cap, [['AttnBtn', 0x1000], ['AttnInd', 0x2000], ['PwrInd', 0x4000]])}`;
  line += ` RBE${flag(cap, 0x8000)}`;
  if (endpoint || integrated) line += ` FLReset${flag(cap, 0x1000_0000)}`;
  if (type === PCI_EXP_TYPE_ENDPOINT || type === PCI_EXP_TYPE_UPSTREAM || type === TYPE_PCI_BRIDGE) {
    line += ` SlotPowerLimit ${powerLimit((cap & 0x3fc_0000) >> 18, (cap & 0xc00_0000) >> 26)}`;
  }
  out.push(`${line} TEE-IO${flag(cap, 0x4000_0000)}`);
  const control = word(PCI_EXP_DEVCTL);
  out.push(`\t\tDevCtl:\t${flags(control, [['CorrErr', 1], ['NonFatalErr', 2], ['FatalErr', 4], ['UnsupReq', 8]])}`);
  line = `\t\t\t${flags(control, [['RlxdOrd', 0x10], ['ExtTag', 0x100], ['PhantFunc', 0x200], ['AuxPwr', 0x400], ['NoSnoop', 0x800]])}`;
  if (type === TYPE_PCI_BRIDGE) line += ` BrConfRtry${flag(control, 0x8000)}`;
  if ((endpoint || integrated) && (cap & 0x1000_0000) !== 0) line += ` FLReset${flag(control, 0x8000)}`;
  out.push(line, `\t\t\tMaxPayload ${128 << ((control & 0xe0) >> 5)} bytes, MaxReadReq ${128 << ((control & 0x7000) >> 12)} bytes`);
  out.push(`\t\tDevSta:\t${flags(word(PCI_EXP_DEVSTA), [['CorrErr', 1], ['NonFatalErr', 2], ['FatalErr', 4], ['UnsupReq', 8], ['AuxPwr', 0x10], ['TransPend', 0x20]])}`);
  return out;
}

function linkLines({ type, word, long }: Express): string[] {
  const cap = long(PCI_EXP_LNKCAP), control = word(PCI_EXP_LNKCTL), status = word(PCI_EXP_LNKSTA);
  const aspm = (cap & 0xc00) >> 10;
  let line = `\t\tLnkCap:\tPort #${cap >>> 24}, Speed ${SPEEDS[cap & 0xf] ?? 'unknown'}, Width x${(cap & 0x3f0) >> 4}, ASPM ${ASPM[aspm]!}`;
  const exits: string[] = [];
  if ((aspm & 1) !== 0) exits.push(`L0s ${L0S[(cap & 0x7000) >> 12]!}`);
  if ((aspm & 2) !== 0) exits.push(`L1 ${L1[(cap & 0x3_8000) >> 15]!}`);
  if (exits.length > 0) line += `, Exit Latency ${exits.join(', ')}`;
  const rcb = type === PCI_EXP_TYPE_ROOT_PORT || type === PCI_EXP_TYPE_ENDPOINT || type === PCI_EXP_TYPE_LEG_END || type === TYPE_PCI_BRIDGE;
  const quiet = type === PCI_EXP_TYPE_ROOT_PORT || type === PCI_EXP_TYPE_DOWNSTREAM || type === TYPE_PCIE_BRIDGE;
  const compare = (now: number, most: number): string => (now > most ? ' (overdriven)' : now === most || quiet ? '' : ' (downgraded)');
  return [
    line,
    `\t\t\t${flags(cap, [['ClockPM', 0x4_0000], ['Surprise', 0x8_0000], ['LLActRep', 0x10_0000], ['BwNot', 0x20_0000], ['ASPMOptComp', 0x40_0000]])}`,
    `\t\tLnkCtl:\tASPM ${ASPM_ENABLED[control & 3]!};${rcb ? ` RCB ${(control & 8) !== 0 ? 128 : 64} bytes,` : ''} ${flags(control, [['LnkDisable', 0x10], ['CommClk', 0x40]])}`,
    `\t\t\t${flags(control, [['ExtSynch', 0x80], ['ClockPM', 0x100], ['AutWidDis', 0x200], ['BWInt', 0x400], ['AutBWInt', 0x800], ['FltModeDis', 0x2000]])}`,
    `\t\tLnkSta:\tSpeed ${SPEEDS[status & 0xf] ?? 'unknown'}${compare(status & 0xf, cap & 0xf)}, Width x${(status & 0x3f0) >> 4}${compare((status & 0x3f0) >> 4, (cap & 0x3f0) >> 4)}`,
    `\t\t\t${flags(status, [['TrErr', 0x400], ['Train', 0x800], ['SlotClk', 0x1000], ['DLActive', 0x2000], ['BWMgmt', 0x4000], ['ABWMgmt', 0x8000]])}`,
  ];
}

function slotLines({ word, long }: Express): string[] {
  const cap = long(PCI_EXP_SLTCAP), control = word(PCI_EXP_SLTCTL), status = word(PCI_EXP_SLTSTA);
  return [
    `\t\tSltCap:\t${flags(cap, [['AttnBtn', 1], ['PwrCtrl', 2], ['MRL', 4], ['AttnInd', 8], ['PwrInd', 0x10], ['HotPlug', 0x40], ['Surprise', 0x20]])}`,
    `\t\t\tSlot #${cap >>> 19}, PowerLimit ${powerLimit((cap & 0x7f80) >> 7, (cap & 0x1_8000) >> 15)}; ${flags(cap, [['Interlock', 0x2_0000], ['NoCompl', 0x4_0000]])}`,
    `\t\tSltCtl:\tEnable: ${flags(control, [['AttnBtn', 1], ['PwrFlt', 2], ['MRL', 4], ['PresDet', 8], ['CmdCplt', 0x10], ['HPIrq', 0x20], ['LinkChg', 0x1000]])}`,
    `\t\t\tControl: AttnInd ${INDICATORS[(control & 0xc0) >> 6]!}, PwrInd ${INDICATORS[(control & 0x300) >> 8]!}, ${flags(control, [['Power', 0x400], ['Interlock', 0x800]])}`,
    `\t\tSltSta:\tStatus: ${flags(status, [['AttnBtn', 1], ['PowerFlt', 2], ['MRL', 0x20], ['CmdCplt', 0x10], ['PresDet', 0x40], ['Interlock', 0x80]])}`,
    `\t\t\tChanged: ${flags(status, [['MRL', 4], ['PresDet', 8], ['LinkState', 0x100]])}`,
  ];
}

function rootLines({ word, long }: Express): string[] {
  const status = long(RTSTA);
  return [
    `\t\tRootCap: CRSVisible${flag(word(RTCAP), 1)}`,
    `\t\tRootCtl: ${flags(word(RTCTL), [['ErrCorrectable', 1], ['ErrNon-Fatal', 2], ['ErrFatal', 4], ['PMEIntEna', 8], ['CRSVisible', 0x10]])}`,
    `\t\tRootSta: PME ReqID ${hexDigits(status & 0xffff, 4)}, ${flags(status, [['PMEStatus', 0x1_0000], ['PMEPending', 0x2_0000]])}`,
  ];
}

/** The register words decide when the kernel's resources are not known. */
function hasMemoryBar(fn: LspciFunction): boolean {
  if (fn.bars !== undefined) return fn.bars.length > 0;
  const slots = (fn.config.read(PCI_HEADER_TYPE, 1) & 0x7f) === 0 ? 6 : 2;
  for (let i = 0; i < slots; i++) {
    const word = fn.config.read(PCI_BASE_ADDRESS_0 + 4 * i, 4);
    if (word !== 0 && word !== 0xffff_ffff && (word & PCI_BASE_ADDRESS_SPACE_IO) === 0) return true;
  }
  return false;
}

function device2Lines({ fn, type, endpoint, port, word, long }: Express): string[] {
  const cap = long(PCI_EXP_DEVCAP2), control = word(PCI_EXP_DEVCTL2);
  const rootPort = type === PCI_EXP_TYPE_ROOT_PORT;
  const downstream = rootPort || type === PCI_EXP_TYPE_DOWNSTREAM;
  const memory = hasMemoryBar(fn);
  const prefixes = (cap & 0x20_0000) !== 0 ? `, MaxEETLPPrefixes ${((cap >>> 22) & 3) || 4}` : '';
  const out = [
    `\t\tDevCap2: Completion Timeout: ${TIMEOUT_RANGES.get(cap & 0xf) ?? 'Unknown'}, ${flags(cap, [['TimeoutDis', 0x10], ['NROPrPrP', 0x400], ['LTR', 0x800]])}`,
    `\t\t\t ${flags(cap, [['10BitTagComp', 0x1_0000], ['10BitTagReq', 0x2_0000]])} OBFF ${OBFF_SUPPORT[(cap >>> 18) & 3]!}, ${flags(cap, [['ExtFmt', 0x10_0000], ['EETLPPrefix', 0x20_0000]])}${prefixes}`,
    `\t\t\t EmergencyPowerReduction ${POWER_REDUCTION[(cap >>> 24) & 3]!}, EmergencyPowerReductionInit${flag(cap, 0x400_0000)}`,
  ];
  let line = `\t\t\t FRS${flag(cap, 0x8000_0000)}`;
  if (rootPort) line += ` LN System CLS ${CACHE_LINES[(cap >>> 14) & 3]!},`;
  if (rootPort || type === PCI_EXP_TYPE_ENDPOINT) line += ` ${TPH[(cap >>> 12) & 3]!}`;
  if (downstream) line += ` ARIFwd${flag(cap, 0x20)}`;
  out.push(line);
  if (port || memory) {
    const routing = port ? ` Routing${flag(cap, 0x40)}` : '';
    const widths = rootPort || memory ? ` ${flags(cap, [['32bit', 0x80], ['64bit', 0x100], ['128bitCAS', 0x200]])}` : '';
    out.push(`\t\t\t AtomicOpsCap:${routing}${widths}`);
  }
  out.push(`\t\tDevCtl2: Completion Timeout: ${TIMEOUTS.get(control & 0xf) ?? 'Unknown'}, TimeoutDis${flag(control, 0x10)}${downstream ? ` ARIFwd${flag(control, 0x20)}` : ''}`);
  if (port || endpoint || type === PCI_EXP_TYPE_RC_END) {
    const requester = rootPort || endpoint || type === PCI_EXP_TYPE_RC_END ? ` ReqEn${flag(control, 0x40)}` : '';
    out.push(`\t\t\t AtomicOpsCtl:${requester}${port ? ` EgressBlck${flag(control, 0x80)}` : ''}`);
  }
  out.push(
    `\t\t\t ${flags(control, [['IDOReq', 0x100], ['IDOCompl', 0x200], ['LTR', 0x400], ['EmergencyPowerReductionReq', 0x800]])}`,
    `\t\t\t 10BitTagReq${flag(control, 0x1000)} OBFF ${OBFF_ENABLED[(control >> 13) & 3]!}, EETLPPrefixBlk${flag(control, 0x8000)}`,
  );
  return out;
}

function speedRange(vector: number): string {
  for (const [mask, name] of [[0x40, '2.5-128GT/s'], [0x20, '2.5-64GT/s'], [0x10, '2.5-32GT/s'], [8, '2.5-16GT/s'], [4, '2.5-8GT/s'], [2, '2.5-5GT/s'], [1, '2.5GT/s']] as const) {
    if ((vector & mask) !== 0) return name;
  }
  return 'Unknown';
}

function link2Lines({ fn, type, endpoint, word, long }: Express): string[] {
  const out: string[] = [];
  let cap = 0;
  // functions of an endpoint beyond its first show what belongs to the link only there
  if (!(endpoint && fn.devfn !== 0)) {
    cap = long(LNKCAP2);
    if (cap !== 0) {
      out.push(`\t\tLnkCap2: Supported Link Speeds: ${speedRange((cap >>> 1) & 0x7f)}, ${flags(cap, [['Crosslink', 0x100], ['Retimer', 0x80_0000], ['2Retimers', 0x100_0000], ['DRS', 0x8000_0000]])}`);
    }
    const control = word(LNKCTL2);
    const speed = (control & 0xf) === 0 ? '2.5GT/s' : (SPEEDS[control & 0xf] ?? 'Unknown');
    const emphasis = type === PCI_EXP_TYPE_DOWNSTREAM ? `, Selectable De-emphasis: ${(control & 0x40) === 0 ? '-6dB' : '-3.5dB'}` : '';
    out.push(
      `\t\tLnkCtl2: Target Link Speed: ${speed}, ${flags(control, [['EnterCompliance', 0x10], ['SpeedDis', 0x20]])}${emphasis}`,
      `\t\t\t Transmit Margin: ${MARGINS[(control >> 7) & 7] ?? 'Unknown'}, ${flags(control, [['EnterModifiedCompliance', 0x400], ['ComplianceSOS', 0x800]])}`,
      `\t\t\t Compliance Preset/De-emphasis: ${PRESETS[(control >> 12) & 0xf] ?? 'Unknown'}`,
    );
  }
  const status = word(LNKSTA2);
  out.push(
    `\t\tLnkSta2: Current De-emphasis Level: ${(status & 1) === 0 ? '-6dB' : '-3.5dB'}, ${flags(status, [['EqualizationComplete', 2], ['EqualizationPhase1', 4]])}`,
    `\t\t\t ${flags(status, [['EqualizationPhase2', 8], ['EqualizationPhase3', 0x10], ['LinkEqualizationRequest', 0x20]])}`,
  );
  const last = `\t\t\t ${flags(status, [['Retimer', 0x40], ['2Retimers', 0x80]])} CrosslinkRes: ${CROSSLINK[(status >> 8) & 3]!}, FltMode${flag(status, 0x400)}`;
  const downstream = type === PCI_EXP_TYPE_ROOT_PORT || type === PCI_EXP_TYPE_DOWNSTREAM || type === TYPE_PCIE_BRIDGE;
  if (downstream && (cap & 0x8000_0000) !== 0) {
    out.push(`${last}, DRS${flag(status, 0x8000)}`, `\t\t\t DownstreamComp: ${COMPONENTS[(status >> 12) & 7]!}`);
  } else {
    out.push(last);
  }
  return out;
}
