/**
 * From the text of a vector to a checked `Vector`. Every problem is reported with its step, `step 17 (dma): iova: …`;
 * steps count from 1.
 */
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED, NO_PASID } from '../../host/pci/dma-port.js';
import { pageOf, offsetOf } from '../../sim/address.js';
import { InvalidInput, clip, unknownName } from '../topology/problems.js';
import { Complaints, Fields, isObject, show } from './vector-fields.js';
import { FORMATS, OPS_1, OPS_2 } from './vector.js';
import type { Refusal, Step, StepOp, TranslationAnswer, Vector, VectorProperties, VectorRegister } from './vector.js';

const OTHER_MODELS = ['amd-vi', 'arm-smmuv3', 'riscv-iommu', 'virtio-iommu'];
const RIGHTS = /^r?w?x?p?g?u?$/;

/**
 * @param file as problems name it
 * @throws InvalidInput with every problem found
 */
export function parseVector(text: string, file: string): Vector {
  const complaints = new Complaints(file);
  const json = parseJson(text, file);
  if (!isObject(json)) throw new InvalidInput([{ file, message: 'is no vector: the outermost value is no object' }]);
  const fields = new Fields(json, '', complaints);
  if (typeof json['format'] !== 'string') throw new InvalidInput([{ file, message: 'is no vector: there is no "format"' }]);
  const version = FORMATS.indexOf(json['format'] as typeof FORMATS[number]) + 1;
  if (version === 0) throw new InvalidInput([{ file, path: 'format', message: `${show(json['format'])} is not one of ${FORMATS.map((name) => `"${name}"`).join(', ')}` }]);
  checkModel(json['model'], file);
  fields.only(['format', 'name', 'source', 'model', 'registers', 'properties', 'steps', 'notes']);
  const properties = readProperties(fields, complaints);
  const vector: Vector = {
    version: version as 1 | 2, name: fields.text('name'), source: fields.text('source'), properties,
    registers: readRegisters(fields, complaints), steps: readSteps(fields, version as 1 | 2, properties, complaints),
  };
  if (complaints.problems.length > 0) throw new InvalidInput(complaints.problems);
  return vector;
}

function checkModel(model: unknown, file: string): void {
  if (model === 'intel-vtd') return;
  const message = OTHER_MODELS.includes(model as string) ? `${String(model)} is not modelled yet` : `${show(model)} is no known model; modelled: "intel-vtd"`;
  throw new InvalidInput([{ file, path: 'model', message }]);
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (error) {
    const reason = (error as Error).message;
    const position = /at position (\d+)/.exec(reason)?.[1];
    if (/end of JSON|Unterminated/.test(reason)) throw new InvalidInput([{ file, message: `the JSON ends early, after ${text.length} characters: the file is truncated` }]);
    const before = position === undefined ? undefined : text.slice(0, Number(position));
    const place = before === undefined ? {} : { line: before.split('\n').length, column: before.length - before.lastIndexOf('\n') };
    throw new InvalidInput([{ file, ...place, message: `is no JSON: ${clip(reason, 160)}` }]);
  }
}

function readProperties(vector: Fields, complaints: Complaints): VectorProperties {
  const fields = vector.section('properties');
  if (fields === undefined) return { ram: [], hostAddressWidth: 46 };
  const width = fields.has('hostAddressWidth') ? 'hostAddressWidth' : 'awBits';
  const ram: { start: number; end: number }[] = [];
  fields.list('ram').forEach((range, index) => {
    if (!Array.isArray(range) || range.length !== 2) return fields.complain('ram', `range ${index + 1}: ${show(range)} is no pair of [start, end)`);
    const pair = new Fields({ start: range[0] as unknown, end: range[1] as unknown }, `properties: ram: range ${index + 1}`, complaints);
    const start = pair.address('start', 52), end = pair.address('end', 52);
    if (start % 4096 !== 0 || end % 4096 !== 0) fields.complain('ram', `range ${index + 1} is not aligned to 4 KiB`);
    else if (end <= start || start < (ram.at(-1)?.end ?? 0)) fields.complain('ram', `range ${index + 1} is empty, or not above the one before it`);
    else ram.push({ start, end });
  });
  if (fields.has('iotlbEntries') && !isCacheSize(fields.raw('iotlbEntries'))) fields.complain('iotlbEntries', `${show(fields.raw('iotlbEntries'))} is neither 0 nor a power of two from 4 to 65536`);
  return {
    ram, hostAddressWidth: fields.integer(width, 32, 52),
    ...(fields.has('iotlbEntries') ? { iotlbEntries: fields.raw('iotlbEntries') as number } : {}),
    ...(fields.has('invalidationTimeoutNs') ? { invalidationTimeoutNs: fields.integer('invalidationTimeoutNs', 1, Number.MAX_SAFE_INTEGER) } : {}),
  };
}

function isCacheSize(value: unknown): boolean {
  return typeof value === 'number' && (value === 0 || (value >= 4 && value <= 65536 && Number.isInteger(Math.log2(value))));
}

function readRegisters(vector: Fields, complaints: Complaints): VectorRegister[] {
  const registers = vector.list('registers').map((item, index): VectorRegister => {
    const path = `register ${index + 1}`;
    if (!isObject(item)) {
      complaints.add(path, `${show(item)} is no object`);
      return { offset: 0, size: 4, value: 0n };
    }
    const fields = new Fields(item, path, complaints);
    fields.only(['offset', 'size', 'value', 'name']);
    const size = fields.oneOf('size', [4, 8] as const);
    return { offset: fields.address('offset', 16), size, value: fields.hex('value', size * 8) };
  });
  for (const [name, offset, size] of [['VER', 0, 4], ['CAP', 8, 8], ['ECAP', 0x10, 8]] as const) {
    if (!registers.some((register) => register.offset === offset && register.size === size)) vector.complain('registers', `${name} (offset 0x${offset.toString(16)}, size ${size}) is missing: the model is configured from it`);
  }
  return registers;
}

function readSteps(vector: Fields, version: 1 | 2, properties: VectorProperties, complaints: Complaints): Step[] {
  const ops = version === 1 ? OPS_1 : OPS_2;
  const steps: Step[] = [];
  let time = -Infinity;
  for (const [index, item] of vector.list('steps').entries()) {
    if (complaints.full) break;
    const path = `step ${index + 1}`;
    if (!isObject(item)) {
      complaints.add(path, `${show(item)} is no object`);
      continue;
    }
    const op = item['op'];
    if (typeof op !== 'string' || !ops.includes(op as StepOp)) {
      complaints.add(path, typeof op === 'string' ? unknownName('op', op, ops) : `op: ${show(op)} is no operation`);
      continue;
    }
    const fields = new Fields(item, `${path} (${op})`, complaints);
    const step = READERS[op as StepOp](fields, properties);
    if (version === 2 && fields.has('t')) {
      const t = fields.integer('t', -(2 ** 52), 2 ** 52);
      if (t < time) fields.complain('t', `${t} is before ${time}, the time of an earlier step`);
      time = t;
      steps.push({ ...step, t });
    } else steps.push(step);
  }
  return steps;
}

const READERS: Readonly<Record<StepOp, (fields: Fields, properties: VectorProperties) => Step>> = {
  mem(fields, properties) {
    fields.only(['op', 't', 'at', 'hex', 'note']);
    return { op: 'mem', ...memory(fields, properties) };
  },
  memExpect(fields, properties) {
    fields.only(['op', 't', 'at', 'hex', 'mask', 'note']);
    const { at, bytes } = memory(fields, properties);
    const mask = fields.has('mask') ? fields.bytes('mask') : undefined;
    if (mask !== undefined && mask.length !== bytes.length) fields.complain('mask', `has ${mask.length} bytes, hex has ${bytes.length}`);
    return { op: 'memExpect', at, bytes, mask };
  },
  mmioWrite(fields) {
    fields.only(['op', 't', 'offset', 'size', 'value', 'note']);
    const size = fields.oneOf('size', [1, 2, 4, 8] as const);
    return { op: 'mmioWrite', offset: fields.address('offset', 16), size, value: fields.hex('value', size * 8) };
  },
  mmioRead(fields) {
    fields.only(['op', 't', 'offset', 'size', 'expect', 'mask', 'note']);
    const size = fields.oneOf('size', [1, 2, 4, 8] as const);
    const mask = fields.has('mask') ? fields.hex('mask', size * 8) : (1n << BigInt(size * 8)) - 1n;
    return { op: 'mmioRead', offset: fields.address('offset', 16), size, expect: fields.hex('expect', size * 8), mask };
  },
  dma(fields) {
    fields.only(['op', 't', 'requester', 'pasid', 'iova', 'access', 'length', 'execute', 'privileged', 'translated', 'expect', 'note']);
    const expect = fields.section('expect');
    const fault = expect?.flag('fault') === true;
    expect?.only(['pa', 'fault', 'status']);
    if (expect !== undefined && fault === expect.has('pa')) expect.complain('', 'expects either "pa", or "fault": true');
    const length = fields.integer('length', 1, 4096);
    const step = request(fields);
    if (step.offset + length > 4096) fields.complain('length', 'the access crosses a page');
    const attributes = step.attributes | (fields.flag('translated') ? ATTR_TRANSLATED : 0);
    const write = fields.oneOf('access', ['read', 'write'] as const) === 'write';
    const pa = expect !== undefined && !fault ? expect.address('pa', 52) : undefined;
    const refusal = expect?.has('status') === true ? { refusal: expect.oneOf('status', ['UR', 'CA'] as const) } : {};
    return { op: 'dma', ...step, attributes, write, length, pa, ...refusal, note: typeof fields.raw('note') === 'string' ? fields.text('note') : '' };
  },
  translate(fields) {
    fields.only(['op', 't', 'requester', 'pasid', 'iova', 'noWrite', 'execute', 'privileged', 'expect', 'note']);
    const expect = fields.section('expect');
    const step = request(fields);
    return { op: 'translate', ...step, attributes: step.attributes | (fields.flag('noWrite') ? ATTR_NO_WRITE : 0), answer: expect === undefined ? 'UR' : answer(expect) };
  },
  pageRequest(fields) {
    fields.only(['op', 't', 'requester', 'pasid', 'iova', 'rights', 'last', 'group', 'note']);
    const { sourceId, pasid, page } = request(fields);
    const rights = fields.text('rights');
    if (!/^r?w?x?p?$/.test(rights)) fields.complain('rights', `${show(rights)} is not made of the letters r, w, x, p in this order`);
    const access = (rights.includes('r') ? ACCESS_READ : 0) | (rights.includes('w') ? ACCESS_WRITE : 0) | (rights.includes('x') ? ACCESS_EXECUTE : 0) | (rights.includes('p') ? ACCESS_PRIVILEGED : 0);
    return { op: 'pageRequest', sourceId, pasid, page, access, last: fields.flag('last'), group: fields.integer('group', 0, 511) };
  },
  interruptRequest(fields) {
    fields.only(['op', 't', 'requester', 'address', 'data', 'expect', 'note']);
    const expect = fields.section('expect');
    const fault = expect?.flag('fault') === true;
    expect?.only(['address', 'data', 'fault']);
    if (expect !== undefined && fault === expect.has('address')) expect.complain('', 'expects either "address" and "data", or "fault": true');
    const message = expect === undefined || fault ? undefined : { address: expect.address('address', 53), data: expect.address('data', 32) };
    return { op: 'interruptRequest', sourceId: fields.requester('requester'), address: fields.address('address', 52), data: fields.address('data', 32), message };
  },
  deviceTlbComplete(fields) {
    fields.only(['op', 't', 'requester', 'tag', 'note']);
    return { op: 'deviceTlbComplete', sourceId: fields.requester('requester'), tag: fields.integer('tag', 0, 31) };
  },
  delay(fields) {
    fields.only(['op', 't', 'ns', 'note']);
    return { op: 'delay', ns: fields.integer('ns', 0, 2 ** 52) };
  },
  interrupt(fields) {
    fields.only(['op', 't', 'address', 'data', 'note']);
    return { op: 'interrupt', address: fields.address('address', 52), data: fields.address('data', 32) };
  },
  pageResponse(fields) {
    fields.only(['op', 't', 'requester', 'pasid', 'group', 'code', 'note']);
    return { op: 'pageResponse', sourceId: fields.requester('requester'), pasid: pasidOf(fields), group: fields.integer('group', 0, 511), code: fields.integer('code', 0, 15) };
  },
  deviceTlbInvalidate(fields) {
    fields.only(['op', 't', 'requester', 'tag', 'pasid', 'iova', 'pages', 'global', 'note']);
    const pages = fields.raw('pages') === 'all' ? Infinity : fields.integer('pages', 1, 2 ** 52);
    return {
      op: 'deviceTlbInvalidate', sourceId: fields.requester('requester'), tag: fields.integer('tag', 0, 31), pasid: pasidOf(fields),
      page: pageOf(fields.hex('iova', 64)), pages, global: fields.flag('global'),
    };
  },
};

function memory(fields: Fields, { ram }: VectorProperties): { at: number; bytes: Uint8Array } {
  const at = fields.address('at', 52), bytes = fields.bytes('hex');
  if (!ram.some(({ start, end }) => at >= start && at + bytes.length <= end)) fields.complain('at', `${bytes.length} bytes at 0x${at.toString(16)} are not inside properties.ram`);
  return { at, bytes };
}

function request(fields: Fields): { sourceId: number; pasid: number; page: number; offset: number; attributes: number } {
  const iova = fields.hex('iova', 64);
  const attributes = (fields.flag('execute') ? ATTR_EXECUTE : 0) | (fields.flag('privileged') ? ATTR_PRIVILEGED : 0);
  return { sourceId: fields.requester('requester'), pasid: pasidOf(fields), page: pageOf(iova), offset: offsetOf(iova), attributes };
}

/** `null` or absent: without PASID. */
function pasidOf(fields: Fields): number {
  return fields.raw('pasid') === null || !fields.has('pasid') ? NO_PASID : fields.integer('pasid', 0, 0xf_ffff);
}

function answer(expect: Fields): TranslationAnswer | Refusal {
  if (expect.has('status')) {
    expect.only(['status']);
    return expect.oneOf('status', ['UR', 'CA'] as const);
  }
  expect.only(['pa', 'pages', 'rights']);
  const rights = expect.text('rights');
  if (!RIGHTS.test(rights)) expect.complain('rights', `${show(rights)} is not made of the letters r, w, x, p, g, u in this order`);
  return { pa: expect.address('pa', 53), pages: expect.integer('pages', 1, 2 ** 40), rights };
}
