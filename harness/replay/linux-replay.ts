/**
 * Replays a register trace of a real Linux on our VT-d unit. What software did goes in: register writes, descriptors,
 * table entries. What devices did goes in: DMA, page requests. What the recorded unit answered is compared with what
 * ours does: register reads, descriptors fetched and their fields, status words, page request descriptors in memory,
 * page responses, faults, messages, and where DMA went.
 *
 * Left out: register accesses of the devices themselves, configuration space but for ATS, and the transport's own
 * lines. The host address width (48) is not in a trace; it is that of the DMAR table that the recordings used.
 */
import { hex, hexPage, pageOfWords, hiOf, loOf, toU64, toAddress } from '../../sim/address.js';
import { VirtualClock } from '../../sim/clock.js';
import { wordsOf } from '../../sim/layout.js';
import { Ram } from '../../sim/memory.js';
import type { AccessSize } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Trace, type TraceRecord } from '../../sim/trace.js';
import { ACCESS_READ, ACCESS_WRITE, DMA_DONE, NO_PASID } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { PAGE_REQUEST, PAGE_REQUEST_TYPE } from '../../iommu/intel-vtd/spec/descriptors.js';
import { FAULT } from '../../iommu/intel-vtd/spec/fault-reasons.js';
import { FSTS_IQE, GCMD_TE, REG } from '../../iommu/intel-vtd/spec/registers.js';
import { LinuxDevices } from './linux-device.js';
import { differingFields, differingWalk } from './linux-fields.js';
import { IotlbHistory } from './linux-iotlb.js';
import { Ledger } from './linux-ledger.js';
import { LinuxQueue, waitStatus } from './linux-queue.js';
import { LinuxTables, readWalk } from './linux-tables.js';
import { parseLinuxTrace, UNIT_DEVICE, type LinuxTrace, type TraceLine } from './linux-trace.js';
import type { ReplayReport } from './report.js';

/** Requester ids of the devices in the recordings: 00:03.0 and 00:04.0. A trace does not say them. */
const SOURCE_IDS: Readonly<Record<string, number>> = { nvme: 0x18, dsa: 0x20 };

const HOST_ADDRESS_WIDTH = 48;
/** Room for the tables below the recorded roots. */
const SCRATCH_BYTES = 0x400_0000;
/** Each line has at least this much time after the one before, so that everything under way ends between them. */
const SETTLE_NS = 20_000;
/** Above a device-TLB invalidation's time, below SETTLE_NS: a silent device is noticed before the next line. */
const INVALIDATION_TIMEOUT_NS = 10_000;

export interface LinuxReplayOptions {
  /** Named defects of the unit, for tests that prove that a replay can fail. */
  readonly defects?: ReadonlySet<string>;
}

/**
 * Replays a trace.
 * @param text JSON lines
 * @param name as the report calls the file
 * @throws InvalidInput when it is no trace of a VT-d unit
 */
export function replayLinuxTrace(text: string, name: string, options: LinuxReplayOptions = {}): ReplayReport {
  const replay = new LinuxReplay(parseLinuxTrace(text, name), options.defects ?? new Set());
  replay.run();
  return replay.report(name);
}

interface FetchedDescriptor {
  readonly words: readonly bigint[];
}

interface Message {
  readonly control: string;
  readonly address: number;
  readonly data: number;
}

interface RecordedFault {
  readonly sourceId: number;
  readonly pasid: number;
  readonly reason: number;
  readonly page: number;
  readonly write: boolean;
}

/** Control registers by the name of the event in the unit's own trace. */
const CONTROL_OF_EVENT: Readonly<Record<string, string>> = { fault: 'FECTL', invalidation: 'IECTL', 'page request': 'PECTL' };

class LinuxReplay {
  private readonly source: LinuxTrace;
  private readonly clock = new VirtualClock();
  private readonly trace = new Trace(this.clock, 1024);
  private readonly memory: Ram;
  private readonly unit: VtdUnit;
  private readonly devices: LinuxDevices;
  private readonly tables: LinuxTables;
  private readonly queue: LinuxQueue;
  private readonly iotlb = new IotlbHistory();
  private readonly ledger = new Ledger();
  private readonly notModelled: readonly string[];
  private readonly fetched: FetchedDescriptor[] = [];
  private readonly messages: Message[] = [];
  private readonly faults: RecordedFault[] = [];
  private readonly atsEnabled = new Set<string>();
  private translating = false;
  private registerWrites = 0;
  /** Requester and PASID by group index, of requests that are not answered. */
  private readonly asked = new Map<number, { readonly sourceId: number; readonly pasid: number }>();
  private lastDmaDone = true;

  constructor(source: LinuxTrace, defects: ReadonlySet<string>) {
    this.source = source;
    this.memory = new Ram(source.memoryEnd + SCRATCH_BYTES);
    this.devices = new LinuxDevices(this.clock);
    const capabilities = decodeCapabilities(source.cap, source.ecap, {
      hostAddressWidth: HOST_ADDRESS_WIDTH, ...(source.version === undefined ? {} : { version: source.version }),
    });
    this.notModelled = capabilities.notModelled;
    this.trace.listen((record) => this.observe(record), ['vtd:descriptor', 'vtd:event', 'vtd:fault']);
    this.unit = new VtdUnit({
      name: 'dmar0', capabilities, memory: this.memory, clock: this.clock, trace: this.trace, defects, router: this.devices,
      timing: new Timing({ ...DEFAULT_TIMING, jitter: 0, invalidationTimeoutNs: INVALIDATION_TIMEOUT_NS }, new Random(1)),
      // messages are taken from the unit's own trace, which also names the event
      interrupts: { message: () => {} },
    });
    this.devices.connect(this.unit);
    this.tables = new LinuxTables(this.memory, source.memoryEnd);
    this.queue = new LinuxQueue(this.memory);
  }

  run(): void {
    this.source.lines.forEach((line, index) => {
      this.clock.run({ untilNs: Math.max(this.clock.now + SETTLE_NS, line.timeNs) });
      if (line.device === UNIT_DEVICE) this.unitLine(line, index);
      else this.deviceLine(line);
    });
    this.clock.run({ untilNs: this.clock.now + SETTLE_NS });
    this.leftovers();
  }

  report(file: string): ReplayReport {
    const { checks, agreements, disagreements, stale, skipped: unsupported, remarks } = this.ledger;
    return {
      file, kind: 'linux-trace', source: 'Linux', steps: this.source.lines.length, checks, agreements, disagreements, known: [], stale, unsupported,
       notModelled: this.notModelled, remarks: [`${this.registerWrites} register writes went in`, ...remarks],
    };
  }

  private observe(record: TraceRecord): void {
    const { args } = record;
    if (record.kind.name === 'vtd:descriptor') {
      this.fetched.push({ words: [toU64(args[3]!, args[4]!), toU64(args[5]!, args[6]!)] });
    } else if (record.kind.name === 'vtd:event') {
      this.messages.push({ control: CONTROL_OF_EVENT[this.trace.strings[args[1]!]!] ?? '?', address: args[2]!, data: args[3]! });
    } else {
      this.faults.push({ sourceId: args[1]!, pasid: args[2]!, reason: args[3]!, page: args[4]!, write: args[5] === 1 });
    }
  }

  private unitLine(line: TraceLine, index: number): void {
    switch (line.op) {
      case 'r': return this.registerRead(line);
      case 'w': return this.registerWrite(line, index);
      case 'desc':
      case 'inject': return this.descriptor(line);
      case 'walk': return this.walk(line);
      case 'page_request': return this.pageRequest(line);
      case 'page_response': return this.pageResponse(line);
      case 'fault': return this.fault(line);
      case 'msi': return this.message(line);
      case 'DEVICE_RESET': return this.unit.reset();
      case 'TE': return this.ledger.compare('translation enabled', line, 'root table', hex(line.integer('root')), this.register(REG.RTADDR, 8));
      default: return;
    }
  }

  private deviceLine(line: TraceLine): void {
    if (line.op === 'dma_r' || line.op === 'dma_w') this.dma(line);
    else if (line.op === 'dma_abort') this.ledger.compare('dma', line, 'the access that the fault is about', 'aborted', this.lastDmaDone ? 'done' : 'aborted');
    else if (line.op === 'cfgw' && line.text('reg').startsWith('ATS_CTRL')) {
      if ((line.integer('val') & 0x8000) !== 0) this.atsEnabled.add(line.device);
      else this.atsEnabled.delete(line.device);
    }
  }

  private register(offset: number, size: AccessSize): string {
    const lo = this.unit.read(offset, size);
    return `0x${(size === 8 ? toU64(lo, this.unit.high) : BigInt(lo)).toString(16)}`;
  }

  private registerRead(line: TraceLine): void {
    const offset = line.integer('off'), size = line.integer('size');
    if (!isAccessSize(size)) return this.ledger.unsupported(line, `read of ${size} bytes`, 'registers are read by 1, 2, 4 or 8 bytes');
    this.ledger.compare('register reads', line, registerName(line), `0x${line.big('val').toString(16)}`, this.register(offset, size));
  }

  private registerWrite(line: TraceLine, index: number): void {
    const offset = line.integer('off'), size = line.integer('size'), value = line.big('val');
    if (!isAccessSize(size)) return this.ledger.unsupported(line, `write of ${size} bytes`, 'registers are written by 1, 2, 4 or 8 bytes');
    this.registerWrites++;
    const lo = loOf(value);
    if (offset === REG.IQA) this.queue.setAddress(value, this.source.lines.slice(index + 1).filter(({ device }) => device === UNIT_DEVICE));
    if (offset === REG.IQT) this.devices.silent = this.queue.fillUpTo(lo).timesOut;
    if (offset === REG.FSTS && (lo & FSTS_IQE) !== 0) this.queue.repair();
    if (offset === REG.GCMD) this.translating = (lo & GCMD_TE) !== 0;
    this.unit.write(offset, size, lo, hiOf(value));
  }

  private descriptor(line: TraceLine): void {
    const { ledger } = this;
    const what = line.op === 'desc' ? line.text('type') : `${line.text('what')} injected`;
    const expected = this.queue.expectedWords(line).slice(0, 2);
    const fetched = this.fetched.shift();
    ledger.compare('descriptors', line, what, show(expected), fetched === undefined ? 'not fetched' : show(fetched.words));
    this.iotlb.fetched(line, line.op === 'desc');
    if (line.op === 'inject') {
      this.devices.silent = false;
      return;
    }
    const fields = differingFields(line);
    ledger.compare('descriptor fields', line, what, fields?.expected ?? '', fields?.got ?? '');
    const status = waitStatus(line.words('raw'));
    if (status === undefined) return;
    ledger.compare('status words', line, `word at ${hex(status.address)}`, hex(status.data), hex(this.memory.load(status.address, 4)));
  }

  private walk(line: TraceLine): void {
    const walk = readWalk(line);
    if (walk === undefined) return this.ledger.unsupported(line, 'table words', 'the list has neither the form of legacy nor of scalable mode');
    const rootTable = pageOfWords(this.unit.read(REG.RTADDR, 8), this.unit.high) * 4096;
    this.tables.write(walk, rootTable);
    const { steps } = this.unit.backEnd.explainWalk(walk.sourceId, walk.pasid, 0, ACCESS_READ);
    const difference = differingWalk(walk, steps);
    this.ledger.compare('table walks', line, requester(walk.sourceId, walk.pasid), difference?.expected ?? '', difference?.got ?? '');
  }

  /** The device found no translation, asks for the page, and the request lands in the queue. */
  private pageRequest(line: TraceLine): void {
    const { ledger, unit, devices, memory } = this;
    const sourceId = line.integer('rid'), pasid = line.integer('pasid'), page = pageOfLine(line), write = line.flag('write'), prgIndex = line.integer('prgi');
    const who = `${requester(sourceId, pasid)} ${hexPage(page)}`;
    this.tables.unmap(sourceId, pasid, page);
    const has = devices.holds(sourceId, pasid, page, write) ? 'the device still holds a translation' : devices.ask(sourceId, pasid, page, write) ? 'translated' : 'no translation';
    ledger.compare('translation requests', line, who, 'no translation', has);
    const tail = this.register(REG.PQT, 8);
    ledger.compare('page requests', line, 'PQT before the request', hex(line.integer('pqt')), tail);
    const queue = pageOfWords(unit.read(REG.PQA, 8), unit.high) * 4096;
    const access = write ? ACCESS_WRITE : ACCESS_READ;
    this.asked.set(prgIndex, { sourceId, pasid });
    unit.pageRequest(sourceId, pasid, page, access, true, prgIndex);
    const expected = PAGE_REQUEST.encode({
      Type: PAGE_REQUEST_TYPE, PP: 1, RID: sourceId, PASID: pasid, RD: write ? 0 : 1, WR: write ? 1 : 0, LPIG: 1, PRGI: prgIndex, ADDR: page,
    });
    const stored = PAGE_REQUEST.load(memory, queue + Number(BigInt(tail)));
    ledger.compare('page requests', line, `descriptor of ${who}`, PAGE_REQUEST.format(expected), stored === undefined ? 'not in memory' : PAGE_REQUEST.format(stored));
  }

  private pageResponse(line: TraceLine): void {
    const { ledger } = this;
    const prgIndex = line.integer('prgi');
    const asked = this.asked.get(prgIndex);
    this.asked.delete(prgIndex);
    const text = (code: number, sourceId: number | undefined, pasid: number | undefined, index: number): string =>
      `group ${index} ${sourceId === undefined ? '' : requester(sourceId, pasid!)} code ${code}`;
    const response = this.devices.responses.shift();
    ledger.compare(
      'page responses', line, `group ${prgIndex}`, text(line.integer('resp'), asked?.sourceId, asked?.pasid, prgIndex),
      response === undefined ? 'none arrived' : text(response.code, response.sourceId, response.pasid, response.prgIndex),
    );
  }

  /** A non-recoverable fault: the device's untranslated access ends it, and the unit records why. */
  private fault(line: TraceLine): void {
    const { ledger, tables, unit } = this;
    const sourceId = line.integer('rid'), pasid = line.has('pasid') ? line.integer('pasid') : NO_PASID, page = pageOfLine(line), write = line.flag('write');
    const reason = line.integer('reason');
    // the recorder called writes to read-only pages 0x81 before it learned 0x85
    if (reason === FAULT.PRIVILEGE || reason === FAULT.WRITE) tables.protect(sourceId, pasid, page);
    else if (reason === FAULT.FL_P || reason === FAULT.SL_PERMISSION || reason === FAULT.L_WRITE || reason === FAULT.L_READ) tables.unmap(sourceId, pasid, page);
    else return ledger.unsupported(line, `fault ${hex(reason)}`, 'what the tables held cannot be told from the reason');
    this.lastDmaDone = unit.translate(sourceId, pasid, 0, page, write) === DMA_DONE;
    const got = this.faults.shift();
    const text = (fault: RecordedFault): string => `${requester(fault.sourceId, fault.pasid)} ${fault.write ? 'writes' : 'reads'} ${hexPage(fault.page)}: ${hex(fault.reason)}`;
    ledger.compare('faults', line, requester(sourceId, pasid), text({ sourceId, pasid, reason, page, write }), got === undefined ? 'none' : text(got));
  }

  private message(line: TraceLine): void {
    const message = this.messages.shift();
    const text = ({ control, address, data }: Message): string => `${control} ${hex(address)} ${hex(data)}`;
    const expected = { control: line.text('ctl'), address: line.integer('addr'), data: line.integer('data') };
    this.ledger.compare('messages', line, expected.control, text(expected), message === undefined ? 'none' : text(message));
  }

  private dma(line: TraceLine): void {
    const { ledger, tables } = this;
    const sourceId = SOURCE_IDS[line.device];
    if (sourceId === undefined) return ledger.unsupported(line, `DMA of ${line.device}`, 'which requester it is cannot be told');
    const pasid = line.has('pasid') ? line.integer('pasid') : NO_PASID;
    const iova = line.big('iova'), page = Number(iova >> 12n), offset = Number(iova & 0xfffn), write = line.op === 'dma_w';
    const frame = Number(line.big('gpa') >> 12n);
    const who = `${requester(sourceId, pasid)} ${write ? 'writes' : 'reads'} 0x${iova.toString(16)}`;
    if (this.translating) {
      if (!tables.knows(sourceId, pasid)) return ledger.unsupported(line, who, 'no walk of this requester has been recorded');
      tables.lead(sourceId, pasid, page, frame, write);
    }
    const got = this.devicePage(line.device, sourceId, pasid, page, write);
    this.lastDmaDone = got !== undefined;
    const stale = got === undefined || got === frame ? undefined : this.staleness(line, sourceId, pasid, page, frame);
    if (stale !== undefined) return ledger.compareStale('dma', line, who, `0x${line.big('gpa').toString(16)}`, `0x${toAddress(got!, offset).toString(16)}`, stale);
    if (got === frame) this.iotlb.used(line, sourceId, pasid, page);
    ledger.compare(
      'dma', line, who, `0x${line.big('gpa').toString(16)}`, got === undefined ? 'refused' : `0x${toAddress(got, offset).toString(16)}`,
      () => this.unit.backEnd.explainWalk(sourceId, pasid, page, write ? ACCESS_WRITE : ACCESS_READ).steps.map((step) => `${step.what} ${hex(step.address)}: ${step.text}`),
    );
  }

  /** Why the unit may still know an older translation of the page: no invalidation has reached it. Undefined when one has. */
  private staleness(line: TraceLine, sourceId: number, pasid: number, page: number, frame: number): string | undefined {
    const tag = this.tables.tagOf(sourceId, pasid);
    const walked = this.unit.backEnd.explainWalk(sourceId, pasid, page, line.op === 'dma_w' ? ACCESS_WRITE : ACCESS_READ).page;
    return tag === undefined || walked !== frame ? undefined : this.iotlb.whyStale(sourceId, pasid, page, tag);
  }

  /** Requests with PASID of a device whose ATS is on go through its device TLB, all others are untranslated. */
  private devicePage(device: string, sourceId: number, pasid: number, page: number, write: boolean): number | undefined {
    if (this.translating && pasid !== NO_PASID && this.atsEnabled.has(device)) return this.devices.access(sourceId, pasid, page, write);
    return this.unit.translate(sourceId, pasid, 0, page, write) === DMA_DONE ? this.unit.page : undefined;
  }

  /** What our unit did and the recorded one did not. */
  private leftovers(): void {
    const { ledger } = this;
    const last = this.source.lines.at(-1);
    if (last === undefined) return;
    for (const { words } of this.fetched) ledger.compare('descriptors', last, 'fetched and not recorded', 'nothing', show(words));
    for (const { control, data } of this.messages) ledger.compare('messages', last, 'sent and not recorded', 'nothing', `${control} ${hex(data)}`);
    for (const { prgIndex, code } of this.devices.responses) ledger.compare('page responses', last, 'sent and not recorded', 'nothing', `group ${prgIndex} code ${code}`);
    for (const { reason, page } of this.faults) ledger.compare('faults', last, 'met and not recorded', 'nothing', `${hexPage(page)}: ${hex(reason)}`);
  }
}

function isAccessSize(size: number): size is AccessSize {
  return size === 1 || size === 2 || size === 4 || size === 8;
}

function show(words: readonly bigint[]): string {
  return words.map((word) => `0x${word.toString(16)}`).join(' ');
}

function registerName(line: TraceLine): string {
  const name = line.has('reg') ? line.text('reg') : '?';
  return `${name === '?' ? 'register' : name} (${hex(line.integer('off'))})`;
}

function requester(sourceId: number, pasid: number): string {
  return pasid === NO_PASID ? hex(sourceId) : `${hex(sourceId)} PASID ${pasid}`;
}

function pageOfLine(line: TraceLine): number {
  const [lo, hi] = wordsOf(line.big('addr'));
  return pageOfWords(lo!, hi!);
}
