/**
 * Records everything that happens at a remapping unit as a vector (format iommu-vector/2, docs/replay.md): what
 * software wrote where the unit looks, register accesses, requests of devices, and what the unit answered, wrote and
 * sent. The run is not disturbed: its trace is the same with and without.
 */
import { DMA_CA, DMA_DONE, NO_PASID, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED } from '../../host/pci/dma-port.js';
import type { DmaStatus, FunctionRouter, TranslationAgent, TranslationCompletion } from '../../host/pci/dma-port.js';
import type { InterruptSink } from '../../host/interrupts.js';
import { Timing } from '../../host/timing.js';
import type { VtdUnit, VtdUnitOptions } from '../../iommu/intel-vtd/hardware/unit.js';
import { hex, hexPage, toU64 } from '../../sim/address.js';
import { assert } from '../../sim/assert.js';
import type { Clock } from '../../sim/clock.js';
import type { MemoryRange, PhysicalMemory } from '../../sim/memory.js';
import { PlainMmio, type AccessSize, type Mmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { RecordedMemory } from './record-memory.js';
import { hex64, rightsOfAccess, rightsOfCompletion } from './vector-text.js';
import { formatRequester } from './vector.js';

type Json = Record<string, unknown>;

/** Longest run of bytes in one step, to keep lines readable. */
const RUN_BYTES = 256;

export class VectorRecorder {
  private readonly source: string;
  private readonly name: string;
  private header: Json = {};
  private memory: PhysicalMemory | undefined;
  private clock: Clock | undefined;
  private readonly lines: string[] = [];
  /** What happens to the unit now; what it does meanwhile is written after it. */
  private input: Json | undefined;
  private outputs: Json[] = [];
  /** Words that hardware wrote, in order. */
  private written = new Map<number, true>();
  /** When `outputs` and `written` came about. */
  private timeNs = 0;

  /**
   * @param source the program that is recorded, as `vfiosim 0.1.0`
   * @param name of the recording
   */
  constructor(source: string, name: string) {
    this.source = source;
    this.name = name;
  }

  /** Options with which a unit lets itself be recorded; once, before it is built. */
  observe(options: VtdUnitOptions, ram: readonly MemoryRange[]): VtdUnitOptions {
    assert(this.memory === undefined, 'a recorder records one unit');
    const { capabilities, timing, interrupts, router, clock } = options;
    this.memory = options.memory;
    this.clock = clock;
    this.header = {
      format: 'iommu-vector/2', name: this.name, source: this.source, model: 'intel-vtd',
      registers: [
        { offset: '0x0', size: 4, value: hex(capabilities.version) }, { offset: '0x8', size: 8, value: hex64(capabilities.cap) },
        { offset: '0x10', size: 8, value: hex64(capabilities.ecap) },
      ],
      properties: {
        ram: ram.map(({ start, end }) => [hex(start), hex(end)]), hostAddressWidth: capabilities.hostAddressWidth, iotlbEntries: options.iotlbEntries ?? 512,
        invalidationTimeoutNs: timing.options.invalidationTimeoutNs,
      },
    };
    const memory = new RecordedMemory(options.memory, {
      softwareWrote: (address, bytes) => this.memStep(address, bytes),
      hardwareWrote: (address, length) => {
        this.asynchronous();
        for (let i = 0; i < length; i += 4) this.written.set(address + i, true);
      },
    });
    return { ...options, memory, timing: new RecordedTiming(timing, (ns) => this.lines.push(JSON.stringify({ op: 'delay', ns }))), interrupts: this.observeInterrupts(interrupts), router: this.observeRouter(router) };
  }

  /** The unit as software and devices shall see it. */
  attach(unit: VtdUnit): { readonly window: Mmio; readonly agent: TranslationAgent } {
    return { window: new RecordedWindow(unit, this), agent: new RecordedAgent(unit, this) };
  }

  /** The vector, piece by piece; one step per line. */
  *text(): Generator<string> {
    this.flush();
    yield `${JSON.stringify(this.header).slice(0, -1)},"steps":[\n`;
    for (const [index, line] of this.lines.entries()) yield `${index === 0 ? '' : ',\n'}${line}`;
    yield '\n]}\n';
  }

  get steps(): number {
    return this.lines.length;
  }

  /** Something happens to the unit; `finish` says how it ended. */
  begin(step: Json): void {
    assert(this.input === undefined, 'an input of the unit inside another');
    this.flush();
    this.timeNs = this.clock!.now;
    this.input = step;
  }

  finish(result: Json = {}): void {
    const { op, ...rest } = this.input!;
    this.lines.push(JSON.stringify({ op, t: this.timeNs, ...rest, ...result }));
    this.input = undefined;
    this.flush();
  }

  private memStep(address: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += RUN_BYTES) {
      this.lines.push(JSON.stringify({ op: 'mem', at: hex(address + at), hex: Buffer.from(bytes.subarray(at, at + RUN_BYTES)).toString('hex') }));
    }
  }

  /** The unit does something; outside of an input it is by itself, after a time-out or a delay. */
  private asynchronous(): void {
    if (this.input !== undefined || this.timeNs === this.clock!.now) return;
    this.flush();
    this.timeNs = this.clock!.now;
  }

  private output(step: Json): void {
    this.asynchronous();
    this.outputs.push(step);
  }

  private flush(): void {
    for (const { op, ...rest } of this.outputs) this.lines.push(JSON.stringify({ op, t: this.timeNs, ...rest }));
    this.outputs = [];
    if (this.written.size === 0) return;
    const words = [...this.written.keys()].toSorted((a, b) => a - b);
    this.written = new Map();
    for (let i = 0; i < words.length; ) {
      let end = i + 1;
      while (end < words.length && words[end] === words[end - 1]! + 4 && (end - i) * 4 < RUN_BYTES) end++;
      const bytes = new Uint8Array((end - i) * 4);
      this.memory!.read(words[i]!, bytes, 0, bytes.length);
      this.lines.push(JSON.stringify({ op: 'memExpect', t: this.timeNs, at: hex(words[i]!), hex: Buffer.from(bytes).toString('hex') }));
      i = end;
    }
  }

  private observeInterrupts(interrupts: InterruptSink): InterruptSink {
    return {
      message: (address, data, sourceId) => {
        this.output({ op: 'interrupt', address: hex(address), data: hex(data) });
        interrupts.message(address, data, sourceId);
      },
    };
  }

  private observeRouter(router: FunctionRouter): FunctionRouter {
    return {
      invalidate: (sourceId, tag, page, pages, pasid, global) => {
        this.output({ op: 'deviceTlbInvalidate', requester: formatRequester(sourceId), tag, ...pasidOf(pasid), iova: hexPage(page), pages: pages === Infinity ? 'all' : pages, ...flag('global', global) });
        return router.invalidate(sourceId, tag, page, pages, pasid, global);
      },
      pageResponse: (sourceId, group, code, pasid) => {
        this.output({ op: 'pageResponse', requester: formatRequester(sourceId), ...pasidOf(pasid), group, code });
        return router.pageResponse(sourceId, group, code, pasid);
      },
      releaseHeld: (token, action) => router.releaseHeld(token, action),
    };
  }
}

function pasidOf(pasid: number): { readonly pasid: number | null } {
  return { pasid: pasid === NO_PASID ? null : pasid };
}

function flag(name: string, on: boolean): Json {
  return on ? { [name]: true } : {};
}

function attributesOf(attributes: number): Json {
  return {
    ...flag('execute', (attributes & ATTR_EXECUTE) !== 0), ...flag('privileged', (attributes & ATTR_PRIVILEGED) !== 0),
    ...flag('translated', (attributes & ATTR_TRANSLATED) !== 0), ...flag('noWrite', (attributes & ATTR_NO_WRITE) !== 0),
  };
}

/** Tells each delay as it was drawn. */
class RecordedTiming extends Timing {
  private readonly inner: Timing;
  private readonly note: (ns: number) => void;

  constructor(inner: Timing, note: (ns: number) => void) {
    super(inner.options, new Random(0));
    this.inner = inner;
    this.note = note;
  }

  override jittered(delayNs: number): number {
    const ns = this.inner.jittered(delayNs);
    this.note(ns);
    return ns;
  }
}

class RecordedWindow extends PlainMmio {
  private readonly unit: VtdUnit;
  private readonly recorder: VectorRecorder;

  constructor(unit: VtdUnit, recorder: VectorRecorder) {
    super();
    this.unit = unit;
    this.recorder = recorder;
  }

  read(offset: number, size: AccessSize): number {
    this.recorder.begin({ op: 'mmioRead', offset: hex(offset), size });
    const lo = this.unit.read(offset, size);
    this.high = this.unit.high;
    this.recorder.finish({ expect: size === 8 ? hex64(toU64(lo, this.high)) : hex(lo >>> 0) });
    return lo;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const mask = size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    this.recorder.begin({ op: 'mmioWrite', offset: hex(offset), size, value: size === 8 ? hex64(toU64(lo, hi)) : hex((lo & mask) >>> 0) });
    this.unit.write(offset, size, lo, hi);
    this.recorder.finish();
  }
}

class RecordedAgent implements TranslationAgent {
  private readonly unit: VtdUnit;
  private readonly recorder: VectorRecorder;

  constructor(unit: VtdUnit, recorder: VectorRecorder) {
    this.unit = unit;
    this.recorder = recorder;
  }

  get page(): number {
    return this.unit.page;
  }

  get walkAccesses(): number {
    return this.unit.walkAccesses;
  }

  get heldToken(): number {
    return this.unit.heldToken;
  }

  get completion(): TranslationCompletion {
    return this.unit.completion;
  }

  translate(sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus {
    // a unit hears of pages only: one byte stands for whatever part of the page the request touches
    this.recorder.begin({ op: 'dma', requester: formatRequester(sourceId), ...pasidOf(pasid), iova: hexPage(page), access: write ? 'write' : 'read', length: 1, ...attributesOf(attributes) });
    const status = this.unit.translate(sourceId, pasid, attributes, page, write);
    this.recorder.finish({ expect: status === DMA_DONE ? { pa: hexPage(this.unit.page) } : { fault: true, status: status === DMA_CA ? 'CA' : 'UR' } });
    return status;
  }

  translationRequest(sourceId: number, pasid: number, attributes: number, page: number): DmaStatus {
    this.recorder.begin({ op: 'translate', requester: formatRequester(sourceId), ...pasidOf(pasid), iova: hexPage(page), ...attributesOf(attributes) });
    const status = this.unit.translationRequest(sourceId, pasid, attributes, page);
    const { completion } = this.unit;
    this.recorder.finish({ expect: status === DMA_DONE ? { pa: hexPage(completion.page), pages: completion.pages, rights: rightsOfCompletion(completion) } : { status: status === DMA_CA ? 'CA' : 'UR' } });
    return status;
  }

  get messageAddress(): number {
    return this.unit.messageAddress;
  }

  get messageData(): number {
    return this.unit.messageData;
  }

  remapInterrupt(sourceId: number, address: number, data: number): DmaStatus {
    this.recorder.begin({ op: 'interruptRequest', requester: formatRequester(sourceId), address: hex(address), data: hex(data) });
    const status = this.unit.remapInterrupt(sourceId, address, data);
    this.recorder.finish({ expect: status === DMA_DONE ? { address: hex(this.unit.messageAddress), data: hex(this.unit.messageData) } : { fault: true } });
    return status;
  }

  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    this.recorder.begin({ op: 'pageRequest', requester: formatRequester(sourceId), ...pasidOf(pasid), iova: hexPage(page), rights: rightsOfAccess(access), ...flag('last', last), group: prgIndex });
    this.unit.pageRequest(sourceId, pasid, page, access, last, prgIndex);
    this.recorder.finish();
  }

  invalidateCompletion(sourceId: number, tag: number): void {
    this.recorder.begin({ op: 'deviceTlbComplete', requester: formatRequester(sourceId), tag });
    this.unit.invalidateCompletion(sourceId, tag);
    this.recorder.finish();
  }
}
