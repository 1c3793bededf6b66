/**
 * Replays a vector against the VT-d model: once without and once with caches, step by step side by side, unless the
 * file says what caches its hardware had. The rules, and which clause each rests on, are in docs/replay.md.
 */
import { ACCESS_READ, ACCESS_WRITE, DMA_CA, DMA_DONE } from '../../host/pci/dma-port.js';
import { decodeCapabilities, type VtdCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { FAULT_RECORD_BYTES, IOTLB, REG } from '../../iommu/intel-vtd/spec/registers.js';
import type { CachedTranslation } from '../../iommu/intel-vtd/hardware/translation-cache.js';
import type { WalkExplanation } from '../../iommu/intel-vtd/hardware/walk-explanation.js';
import { hex, hiOf, loOf } from '../../sim/address.js';
import { SimulatorBug } from '../../sim/assert.js';
import { InvalidInput } from '../topology/problems.js';
import { KEPT_DISAGREEMENTS, type Disagreement, type ReplayReport, type StaleAnswer, type Unsupported } from './report.js';
import { missingFeature } from './vector-features.js';
import { InvalidationHistory } from './vector-history.js';
import { describeAnswer, describeBytes, describeHit, describeOutput, describeRequest, describeWalk, hex64, rightsOfCompletion } from './vector-text.js';
import { formatRequester } from './vector.js';
import type { DmaStep, InputStep, InterruptRequestStep, MemExpectStep, MmioReadStep, MmioWriteStep, OutputStep, Step, TranslateStep, Vector } from './vector.js';
import { VectorWorld } from './vector-world.js';

/** IOTLB entries of the replay with caches, where the file does not say. */
const CACHED = 512;

const CHECK_NAMES = {
  mmioRead: 'register reads', dma: 'DMA', translate: 'translation requests', interruptRequest: 'interrupt requests', memExpect: 'memory checks', interrupt: 'interrupts',
  pageResponse: 'page responses', deviceTlbInvalidate: 'device-TLB invalidations', hardwareWrite: 'unmentioned writes',
} as const;

export interface ReplayOptions {
  /** Named defects of the model, for tests that prove that a replay notices. */
  readonly defects?: ReadonlySet<string>;
}

/** One world's answer to a check. */
interface Verdict {
  readonly ok: boolean;
  readonly got: string;
}

class VectorReplay {
  private readonly vector: Vector;
  private readonly capabilities: VtdCapabilities;
  private readonly worlds: readonly VectorWorld[];
  private readonly checks: Record<string, number> = {};
  private agreements = 0;
  private disagreeing = 0;
  private readonly disagreements: Disagreement[] = [];
  private readonly stale: StaleAnswer[] = [];
  private readonly unsupported: Unsupported[] = [];
  private readonly names = new Map<number, string>();
  /** Reads of fault records whose fields mean nothing because F is clear. */
  private irrelevant = 0;
  private step = 0;
  /** Words that the hardware of a world changed and no memExpect has mentioned yet, with the step. */
  private readonly unmentioned: readonly Map<number, number>[];
  private readonly history: InvalidationHistory | undefined;
  private lastRequest: { readonly step: DmaStep | TranslateStep; readonly number: number } | undefined;

  constructor(vector: Vector, options: ReplayOptions) {
    const registerAt = (offset: number): bigint => vector.registers.find((register) => register.offset === offset)!.value;
    this.vector = vector;
    this.capabilities = decodeCapabilities(registerAt(REG.CAP), registerAt(REG.ECAP), { version: Number(registerAt(REG.VER)), hostAddressWidth: vector.properties.hostAddressWidth });
    const { iotlbEntries } = vector.properties;
    this.worlds = (iotlbEntries === undefined ? [0, CACHED] : [iotlbEntries]).map((entries) => new VectorWorld(vector, this.capabilities, entries, options.defects ?? new Set()));
    this.history = this.worlds[1] === undefined ? undefined : new InvalidationHistory(this.worlds[1].trace);
    this.unmentioned = this.worlds.map(() => new Map<number, number>());
    for (const { name, offset, size } of this.worlds[0]!.unit.describeRegisters()) for (let i = 0; i < size; i += 4) this.names.set(offset + i, name);
  }

  run(file: string): ReplayReport {
    for (const register of this.vector.registers) this.readRegister({ op: 'mmioRead', ...register, expect: register.value, mask: (1n << BigInt(register.size * 8)) - 1n });
    this.vector.steps.forEach((step, index) => {
      this.step = index + 1;
      if (this.history !== undefined) this.history.step = this.step;
      this.replay(step);
    });
    for (const world of this.worlds) world.advance(undefined);
    this.noticeWrites();
    this.refuseOutputs();
    this.refuseWrites();
    const { vector } = this;
    return {
      file, kind: vector.source.startsWith('vfiosim') ? 'recording' : 'vector', source: vector.source, steps: vector.steps.length, checks: this.checks,
      agreements: this.agreements, disagreements: this.disagreements, known: [], stale: this.stale, unsupported: this.unsupported,
      notModelled: this.capabilities.notModelled, remarks: this.remarks(),
    };
  }

  private remarks(): string[] {
    const remarks: string[] = [];
    if (this.irrelevant > 0) remarks.push(`${this.irrelevant} reads of fault records with F clear differ in fields that mean nothing then (11.4.7.6)`);
    if (this.disagreeing > this.disagreements.length) remarks.push(`${this.disagreeing - this.disagreements.length} more disagreements are not listed`);
    return remarks;
  }

  private replay(step: Step): void {
    if (step.op === 'mem') {
      for (const { memory } of this.worlds) memory.write(step.at, step.bytes, 0, step.bytes.length);
      return;
    }
    if (step.op === 'delay') {
      for (const world of this.worlds) world.delay(step.ns);
      return;
    }
    for (const world of this.worlds) world.advance(step.t);
    this.noticeWrites();
    switch (step.op) {
      case 'memExpect': return this.expectMemory(step);
      case 'interrupt':
      case 'pageResponse':
      case 'deviceTlbInvalidate': return this.expectOutput(step);
      default: break;
    }
    this.refuseOutputs();
    // in format 2 hardware's writes are mentioned right behind what made them
    if (this.vector.version === 2) this.refuseWrites();
    this.apply(step);
    this.noticeWrites();
  }

  private apply(step: InputStep): void {
    switch (step.op) {
      case 'mmioWrite': return this.writeRegister(step);
      case 'mmioRead': return this.readRegister(step);
      case 'dma': return this.dma(step);
      case 'translate': return this.translate(step);
      case 'pageRequest':
        for (const { unit } of this.worlds) unit.pageRequest(step.sourceId, step.pasid, step.page, step.access, step.last, step.group);
        return;
      case 'interruptRequest': return this.interruptRequest(step);
      case 'deviceTlbComplete':
        for (const { unit } of this.worlds) unit.invalidateCompletion(step.sourceId, step.tag);
        return;
    }
  }

  /** Format 2 has everything that the hardware sent: what it has not was not sent. */
  private refuseOutputs(): void {
    for (const world of this.worlds) {
      if (this.vector.version === 2) for (const output of world.outputs) this.disagree({ op: output.op, what: 'the model sends what the file has not', expected: 'nothing', got: describeOutput(output), ...this.cachesOf(world) });
      world.outputs.length = 0;
    }
  }

  private noticeWrites(): void {
    this.worlds.forEach(({ memory }, index) => {
      for (const address of memory.changed) this.unmentioned[index]!.set(address, this.step);
      memory.changed.clear();
    });
  }

  /** What hardware wrote and the file does not mention: in a file that mentions everything, a difference. */
  private refuseWrites(): void {
    if (this.unmentioned.every(({ size }) => size === 0)) return;
    const { step: now } = this;
    const words = new Map(this.unmentioned.flatMap((map) => [...map]).toSorted(([a, s], [b, t]) => s - t || a - b));
    for (const [address, step] of words) {
      this.checks[CHECK_NAMES.hardwareWrite] = (this.checks[CHECK_NAMES.hardwareWrite] ?? 0) + 1;
      const index = this.unmentioned.findIndex((map) => map.has(address));
      const both = this.unmentioned.every((map) => map.has(address));
      this.step = step;
      this.disagree({
        op: 'hardwareWrite', what: `the model writes 4 bytes at ${hex(address)}`, expected: 'no write',
        got: describeBytes(this.worlds[index]!.readMemory(address, 4)), ...(both ? {} : this.cachesOf(this.worlds[index]!)),
      });
    }
    this.step = now;
    for (const map of this.unmentioned) map.clear();
  }

  private expectOutput(step: OutputStep): void {
    const expected = describeOutput(step);
    this.judge(step.op, 'sent by the hardware', expected, (world) => {
      const output = world.outputs.shift();
      const got = output === undefined ? 'nothing' : describeOutput(output);
      return { ok: got === expected, got };
    });
  }

  private expectMemory({ at, bytes, mask }: MemExpectStep): void {
    const start = at - (at % 4);
    for (const words of this.unmentioned) for (let word = start; word < at + bytes.length; word += 4) words.delete(word);
    this.judge('memExpect', `${bytes.length} bytes at ${hex(at)}`, describeBytes(bytes), (world) => {
      const got = world.readMemory(at, bytes.length);
      return { ok: got.every((byte, i) => ((byte ^ bytes[i]!) & (mask?.[i] ?? 0xff)) === 0), got: describeBytes(got) };
    });
  }

  private writeRegister(step: MmioWriteStep): void {
    const missing = this.missingFeature(step);
    if (missing !== undefined) this.unsupported.push({ step: this.step, op: step.op, what: `${this.nameOf(step.offset)} = ${hex64(step.value)}`, why: `${missing} is not modelled` });
    for (const world of this.worlds) world.writeRegister(step.offset, step.size, step.value);
    this.registerInvalidation(step);
  }

  /** Tells the history of an invalidation through registers that was accepted: IAIG says how it was done (11.4.6.2.1). */
  private registerInvalidation({ offset, size, value }: MmioWriteStep): void {
    const { iotlbOffset } = this.capabilities;
    const command = iotlbOffset + 8;
    if (this.history === undefined || offset + size <= command + 4 || offset > command + 4) return;
    const written = offset === command ? value : value << 32n;
    const register = this.worlds[0]!.readRegister(command, 8);
    const answered = IOTLB.f.IAIG.get([loOf(register), hiOf(register)]) !== 0;
    if (answered) this.history.register(offset === command ? written : written | (register & 0xffff_ffffn), this.worlds[0]!.readRegister(iotlbOffset, 8));
  }

  private readRegister(step: MmioReadStep): void {
    const { offset, size, expect, mask } = step;
    const what = this.nameOf(offset);
    const missing = this.missingFeature(step);
    if (missing !== undefined) {
      this.unsupported.push({ step: this.step, op: step.op, what, why: `${missing} is not modelled` });
      return;
    }
    let onlyIrrelevant = false;
    this.judge('mmioRead', what, hex64(expect & mask), (world) => {
      const difference = (world.readRegister(offset, size) ^ expect) & mask;
      const relevant = this.relevantBits(world, offset, size);
      onlyIrrelevant ||= difference !== 0n && (difference & relevant) === 0n;
      return { ok: (difference & relevant) === 0n, got: hex64((difference ^ expect) & mask) };
    });
    if (onlyIrrelevant) this.irrelevant++;
  }

  /** Bits of a register that mean something now: those of a fault record only while its F is set (11.4.7.6). */
  private relevantBits(world: VectorWorld, offset: number, size: number): bigint {
    const { faultRecordOffset, faultRecords } = this.capabilities;
    const place = offset - faultRecordOffset;
    if (place < 0 || place >= faultRecords * FAULT_RECORD_BYTES) return -1n;
    const start = offset - (place % FAULT_RECORD_BYTES);
    if ((world.readRegister(start + 12, 4) & 0x8000_0000n) !== 0n) return -1n;
    const bit = 127 - 8 * (offset - start);
    return bit < 8 * size ? 1n << BigInt(bit) : 0n;
  }

  private dma(step: DmaStep): void {
    this.lastRequest = { step, number: this.step };
    const expected = step.pa === undefined ? `fault${step.refusal === undefined ? '' : ` (${step.refusal})`}` : hex(step.pa);
    const access = step.write ? ACCESS_WRITE : ACCESS_READ;
    const cached = this.worlds.length === 2 ? this.worlds[1]! : undefined;
    if (cached === undefined) {
      this.judge('dma', describeRequest(step), expected, (world) => this.access(world, step));
      return;
    }
    const plain = this.worlds[0]!;
    let onAnswer = this.access(cached, step);
    const hit = cached.unit.backEnd.lastHit();
    const tablesSay = plain.unit.backEnd.explainWalk(step.sourceId, step.pasid, step.page, access);
    const now = tablesSay.page === undefined || !(step.write ? tablesSay.write : tablesSay.read) ? 'fault' : hex(tablesSay.page * 4096 + step.offset);
    if (onAnswer.got === now) this.history!.use(step.page);
    const why = hit === undefined || onAnswer.got === now ? undefined : this.whyStale(hit, tablesSay);
    if (onAnswer.ok && why !== undefined) {
      // a hit leaves no trace in the hardware, so the replay without caches does not see this request at all
      this.staleAnswer('file', step, expected, now, why);
      return;
    }
    const offAnswer = this.access(plain, step);
    if (offAnswer.ok && !onAnswer.ok && why !== undefined) {
      this.staleAnswer('model', step, expected, onAnswer.got, why);
      cached.evict();
      onAnswer = this.access(cached, step);
      if (onAnswer.ok) return;
    }
    this.judge('dma', describeRequest(step), expected, (world) => (world === plain ? offAnswer : onAnswer));
  }

  private staleAnswer(side: 'file' | 'model', step: DmaStep, expected: string, got: string, why: string): void {
    this.checks[CHECK_NAMES.dma] = (this.checks[CHECK_NAMES.dma] ?? 0) + 1;
    this.stale.push({ step: this.step, what: describeRequest(step), side, expected, got, why });
  }

  /** Why a hit that is not what the tables say is allowed; undefined when an invalidation should have ended it. */
  private whyStale(hit: CachedTranslation, tablesSay: WalkExplanation): string | undefined {
    const good = this.history!.lastGood(hit);
    if (good === undefined || this.history!.invalidatedSince(good, hit) !== undefined) return undefined;
    return `${describeHit(hit, tablesSay)} since step ${good}`;
  }

  private access(world: VectorWorld, step: DmaStep): Verdict {
    const { unit } = world;
    const status = unit.translate(step.sourceId, step.pasid, step.attributes, step.page, step.write);
    const pa = unit.page * 4096 + step.offset;
    // where only the outcome is known, an access that reaches no memory is one that failed
    if (status === DMA_DONE && (step.pa !== undefined || step.refusal !== undefined || world.memory.has(pa, step.length))) return { ok: pa === step.pa, got: hex(pa) };
    if (status === DMA_DONE) return { ok: true, got: `fault (${hex(pa)} is not memory)` };
    const name = status === DMA_CA ? 'CA' : 'UR';
    return { ok: step.pa === undefined && (step.refusal === undefined || step.refusal === name), got: `fault (${name})` };
  }

  private translate(step: TranslateStep): void {
    this.lastRequest = { step, number: this.step };
    const expected = describeAnswer(step.answer);
    this.judge('translate', describeRequest(step), expected, ({ unit }) => {
      const status = unit.translationRequest(step.sourceId, step.pasid, step.attributes, step.page);
      const { completion } = unit;
      const got = describeAnswer(status === DMA_DONE ? { pa: completion.page * 4096, pages: completion.pages, rights: rightsOfCompletion(completion) } : status === DMA_CA ? 'CA' : 'UR');
      return { ok: got === expected, got };
    });
  }

  private interruptRequest({ sourceId, address, data, message }: InterruptRequestStep): void {
    const text = (to: { readonly address: number; readonly data: number } | undefined): string => (to === undefined ? 'blocked' : `${hex(to.address)} data ${hex(to.data)}`);
    const expected = text(message);
    this.judge('interruptRequest', `${formatRequester(sourceId)} sends ${hex(address)} data ${hex(data)}`, expected, ({ unit }) => {
      const got = text(unit.remapInterrupt(sourceId, address, data) === DMA_DONE ? { address: unit.messageAddress, data: unit.messageData } : undefined);
      return { ok: got === expected, got };
    });
  }

  /** Asks every world; one check, whoever fails. */
  private judge(op: keyof typeof CHECK_NAMES, what: string, expected: string, ask: (world: VectorWorld) => Verdict): void {
    this.checks[CHECK_NAMES[op]] = (this.checks[CHECK_NAMES[op]] ?? 0) + 1;
    const verdicts = this.worlds.map((world) => ({ world, ...ask(world) }));
    const failed = verdicts.filter(({ ok }) => !ok);
    const first = failed[0];
    if (first === undefined) {
      this.agreements++;
      return;
    }
    const both = failed.length === this.worlds.length && failed.every(({ got }) => got === first.got);
    this.disagree({ op, what, expected, got: first.got, ...(both ? {} : this.cachesOf(first.world)), ...this.walk(first.world, op, what) });
  }

  private cachesOf(world: VectorWorld): { caches: 'on' | 'off' } | Record<string, never> {
    return this.worlds.length === 1 ? {} : { caches: world === this.worlds[0] ? 'off' : 'on' };
  }

  /** The walk of the request that failed, or that a fault register is about. */
  private walk(world: VectorWorld, op: string, what: string): { walk: readonly string[] } | Record<string, never> {
    const about = op === 'dma' || op === 'translate' || /^(FSTS|FRCD)/.test(what);
    if (!about || this.lastRequest === undefined) return {};
    const { step, number } = this.lastRequest;
    const access = step.op === 'dma' && step.write ? ACCESS_WRITE : ACCESS_READ;
    const lines = describeWalk(world.unit.backEnd.explainWalk(step.sourceId, step.pasid, step.page, access));
    return { walk: number === this.step ? lines : [`step ${number}: ${describeRequest(step)}`, ...lines] };
  }

  private disagree(disagreement: Omit<Disagreement, 'step'>): void {
    this.disagreeing++;
    if (this.disagreements.length < KEPT_DISAGREEMENTS) this.disagreements.push({ step: this.step, ...disagreement });
  }

  private missingFeature(step: MmioReadStep | MmioWriteStep): string | undefined {
    const { notModelled, faultRecordOffset, iotlbOffset } = this.capabilities;
    return notModelled.length === 0 ? undefined : missingFeature(step, notModelled, { faultRecords: faultRecordOffset, iotlb: iotlbOffset });
  }

  private nameOf(offset: number): string {
    const name = this.names.get(offset - (offset % 4));
    return name === undefined ? `register ${hex(offset)}` : `${name} (${hex(offset)})`;
  }
}

/**
 * Replays a checked vector.
 * @throws InvalidInput when no unit can have its capability registers
 */
export function replayVector(vector: Vector, file: string, options: ReplayOptions = {}): ReplayReport {
  return compose(vector, file, options).run(file);
}

/** Registers that CAP and ECAP put on top of each other are a mistake of the file. */
function compose(vector: Vector, file: string, options: ReplayOptions): VectorReplay {
  try {
    return new VectorReplay(vector, options);
  } catch (error) {
    if (!(error instanceof SimulatorBug)) throw error;
    throw new InvalidInput([{ file, path: 'registers', message: `no unit has these capabilities: ${error.message}` }]);
  }
}
