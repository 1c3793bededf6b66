/**
 * Register values of a remapping unit as people can get them: a YAML map of names and values, the text of Linux'
 * /sys/kernel/debug/iommu/intel/iommu_regset, or the raw bytes of the register window (one page from the unit's base
 * address). Names are those of spec/registers.ts. FRCD0 … may be given as one 128-bit number or as FRCD0_LO and
 * FRCD0_HI; HAW is no register but the DMAR table's host address width, which decides about reserved bits.
 */
import { parseDocument, isMap, isScalar, LineCounter } from 'yaml';
import { decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { REG, registerSpecs } from '../../iommu/intel-vtd/spec/registers.js';
import { clip, InvalidInput, unknownName, type Problem } from '../topology/problems.js';
import { readSmallFile } from './image-files.js';

export const MAX_REGISTER_FILE_BYTES = 2 ** 20;

/** By name: `CAP`, `FRCD0_LO`, …, `HAW`. */
export type RegisterValues = ReadonlyMap<string, bigint>;

/** Registers that are 32 bits wide; all others have 64. */
const NARROW = new Set<string>([
  'VER', 'GCMD', 'GSTS', 'FSTS', 'FECTL', 'FEDATA', 'FEADDR', 'FEUADDR', 'PMEN', 'PLMBASE', 'PLMLIMIT', 'ICS', 'IECTL', 'IEDATA', 'IEADDR', 'IEUADDR',
  'PRS', 'PECTL', 'PEDATA', 'PEADDR', 'PEUADDR',
]);
const NAMES: readonly string[] = [...Object.keys(REG), 'IVA', 'IOTLB', 'FRCD0', 'FRCD0_LO', 'FRCD0_HI', 'HAW'];
const FRCD_NAME = /^FRCD(\d{1,3})(_LO|_HI)?$/;

/** Reads register values. Throws InvalidInput. @param unit which one, when the file is an iommu_regset of several */
export function readRegisters(file: string, unit?: string): RegisterValues {
  const bytes = readSmallFile(file, MAX_REGISTER_FILE_BYTES, 'register values');
  if (bytes.includes(0)) return parseRegisterWindow(bytes, file);
  const text = Buffer.from(bytes).toString('utf8');
  return /^\s*IOMMU: .*Register Base Address/m.test(text) ? parseRegset(text, file, unit) : parseRegisterYaml(text, file);
}

/** `CAP: 0x…` and so on. */
export function parseRegisterYaml(text: string, file: string): RegisterValues {
  const lineCounter = new LineCounter();
  // the map is flat: nesting would only cost the parser its stack
  const nested = /^[^#\n]*[[{]/m.exec(text);
  if (nested !== null) throw new InvalidInput([{ file, line: text.slice(0, nested.index).split('\n').length, column: 1, message: 'registers are lines of a name and a value, such as `CAP: 0x01d2078c222f0606`' }]);
  const document = parseDocument(text, { lineCounter, uniqueKeys: true, intAsBigInt: true, prettyErrors: false });
  const problems: Problem[] = [];
  const report = (offset: number, message: string, path?: string): void => {
    const { line, col } = lineCounter.linePos(offset);
    problems.push({ file, line, column: col, message, ...(path === undefined ? {} : { path }) });
  };
  for (const error of document.errors.slice(0, 10)) report(error.pos[0], `YAML: ${clip(error.message.split('\n')[0]!, 200)}`);
  const values = new Map<string, bigint>();
  if (problems.length === 0 && !isMap(document.contents)) report(0, 'registers are a map of names and values, such as `CAP: 0x01d2078c222f0606`');
  else if (isMap(document.contents)) {
    for (const { key, value } of document.contents.items) {
      const name = isScalar(key) ? String(key.value) : '';
      const offset = isScalar(key) ? key.range?.[0] ?? 0 : 0;
      const said: unknown = isScalar(value) ? value.value : undefined;
      const problem = addRegister(values, name, said);
      if (problem !== undefined) report(offset, problem, name);
    }
  }
  if (problems.length > 0) throw new InvalidInput(problems);
  return values;
}

function addRegister(values: Map<string, bigint>, name: string, said: unknown): string | undefined {
  const frcd = FRCD_NAME.exec(name);
  if (frcd === null && !NAMES.includes(name)) return unknownName('register', name, NAMES.filter((known) => !known.startsWith('FRCD0_'))).replace(/ Allowed:.*/, ' Names are those of the VT-d specification, such as CAP, RTADDR, IQA, FRCD0.');
  const value = typeof said === 'bigint' ? said : typeof said === 'string' && /^(0x[0-9a-fA-F]+|\d+)$/.test(said) ? BigInt(said) : undefined;
  if (value === undefined || value < 0n) return 'expects a number such as 0x1000';
  const width = frcd !== null && frcd[2] === undefined ? 128n : NARROW.has(name) ? 32n : name === 'HAW' ? 6n : 64n;
  if (value >= 1n << width) return `has ${width} bits; 0x${value.toString(16)} does not fit`;
  if (name === 'HAW' && (value < 32n || value > 52n)) return `is the host address width, 32 to 52 bits, not ${value}`;
  if (width === 128n) {
    values.set(`${name}_LO`, value & 0xffff_ffff_ffff_ffffn);
    values.set(`${name}_HI`, value >> 64n);
  } else values.set(name, value);
  return undefined;
}

/** Text of iommu_regset (drivers/iommu/intel/debugfs.c): `NAME 0xOFFSET 0xVALUE` under a line for each unit. */
export function parseRegset(text: string, file: string, unit?: string): RegisterValues {
  const units = new Map<string, Map<string, bigint>>();
  let current: Map<string, bigint> | undefined;
  for (const line of text.split('\n')) {
    const header = /^\s*IOMMU: (\S+) Register Base Address: ([0-9a-f]+)/.exec(line);
    if (header !== null) units.set(header[1]!, (current = new Map<string, bigint>()));
    const register = /^\s*([A-Z0-9_]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]{1,16})\s*$/.exec(line);
    // registers that say nothing about translation (MTRRs, virtual commands) are passed over
    if (register !== null && current !== undefined && NAMES.includes(register[1]!)) current.set(register[1]!, BigInt(`0x${register[2]!}`));
  }
  const names = [...units.keys()];
  if (unit !== undefined) {
    const chosen = units.get(unit);
    if (chosen === undefined) throw new InvalidInput([{ file, message: unknownName('unit', unit, names) }]);
    return chosen;
  }
  if (names.length > 1) throw new InvalidInput([{ file, message: `holds the registers of ${names.length} units; --unit chooses one of ${names.join(', ')}` }]);
  return units.get(names[0]!)!;
}

/** Raw bytes from the unit's base address on; FRO and IRO say where fault records and IOTLB registers stand. */
export function parseRegisterWindow(bytes: Uint8Array, file: string): RegisterValues {
  const refuse = (message: string): never => {
    throw new InvalidInput([{ file, message }]);
  };
  if (bytes.length < 0x100 || bytes.length % 8 !== 0) refuse(`has ${bytes.length} bytes with zeros among them; the register window of a unit is 4096 bytes from its base address`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.every((byte) => byte === 0xff)) refuse('is all ones: nothing answered at that address');
  const cap = view.getBigUint64(REG.CAP, true), ecap = view.getBigUint64(REG.ECAP, true);
  if (cap === 0n) refuse('has no CAP at offset 8: these are not the registers of a remapping unit');
  const values = new Map<string, bigint>();
  for (const [name, { offset, size }] of Object.entries(registerSpecs(decodeCapabilities(cap, ecap)))) {
    if (offset + size <= bytes.length) values.set(name, size === 8 ? view.getBigUint64(offset, true) : BigInt(view.getUint32(offset, true)));
  }
  return values;
}
