/**
 * Runs one request on the product's VT-d back end and on the walker, and says in words where they differ: status, address,
 * rights, fault record, and which table words changed.
 */
import { VirtualClock } from '../../sim/clock.js';
import { Random } from '../../sim/random.js';
import { toU64 } from '../../sim/address.js';
import {
  ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED, DMA_CA, DMA_DONE, DMA_UR,
  NO_PASID, PRG_INVALID,
} from '../../host/pci/dma-port.js';
import type { FunctionRouter } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import type { FaultRecord, FrontEndSink } from '../../iommu/intel-vtd/hardware/back-end.js';
import { TranslationBackEnd } from '../../iommu/intel-vtd/hardware/translation.js';
import { decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import type { WatchedMemory } from './builder.js';
import type { Hardware, Outcome, Request } from './walker.js';
import { PROTOCOL_ERROR } from './walker.js';

const STATUS = { success: DMA_DONE, UR: DMA_UR, CA: DMA_CA } as const;

export class ModelUnderTest implements FrontEndSink, FunctionRouter {
  readonly backEnd: TranslationBackEnd;
  private readonly memory: WatchedMemory;
  private readonly caching: boolean;
  private readonly hardware: Hardware;
  private readonly faults: FaultRecord[] = [];
  private queued = 0;
  private readonly answers: number[] = [];

  constructor(memory: WatchedMemory, hardware: Hardware, caching: boolean, defects: readonly string[] = []) {
    this.memory = memory;
    this.caching = caching;
    this.hardware = hardware;
    this.backEnd = new TranslationBackEnd({
      memory,
      capabilities: decodeCapabilities(hardware.cap, hardware.ecap, { hostAddressWidth: hardware.hostAddressWidth }),
      clock: new VirtualClock(),
      timing: new Timing({ ...DEFAULT_TIMING, jitter: 0 }, new Random(1)),
      router: this,
      iotlbEntries: caching ? 64 : 0,
      defects: new Set(defects),
    });
    this.backEnd.connect(this);
  }

  setTables(rootTable: number, mode: number): void {
    this.backEnd.setState({ enabled: true, rootTable, mode });
  }

  fault(record: FaultRecord): void {
    this.faults.push(record);
  }

  pageRequest(): void {
    this.queued++;
  }

  invalidate(): boolean {
    return true;
  }

  pageResponse(_sourceId: number, _prgIndex: number, code: number): boolean {
    this.answers.push(code);
    return true;
  }

  releaseHeld(): void {}

  /** The difference in words, '' for none. Tables are left as the request made them; the memory's log has what was before. */
  difference(request: Request, expected: Outcome): string {
    this.faults.length = 0;
    this.answers.length = 0;
    this.queued = 0;
    if (this.caching) this.forget();
    const memory = this.memory;
    const logged = memory.log.length;
    const problem = this.ask(request, expected) || this.compareRecord(request, expected) || this.compareTables(logged, expected);
    if (problem !== '' || !this.caching || expected.status !== 'success' || request.kind === 'page') return problem;
    // a second time: out of the caches, with the same answer and nothing more to set
    const settled = memory.log.length;
    this.faults.length = 0;
    const again = this.ask(request, expected);
    if (again !== '') return `cached: ${again}`;
    if (memory.log.length !== settled && expected.reason === 0) return 'cached: tables change again';
    return '';
  }

  private forget(): void {
    this.backEnd.invalidateContext('global', 0, 0, 0);
    this.backEnd.invalidatePasidCache('global', 0, 0);
    this.backEnd.invalidateIotlb('global', 0, 0, 0, false);
  }

  private ask(request: Request, expected: Outcome): string {
    const { backEnd } = this;
    const page = Number(request.address >> 12n);
    const pasid = request.pasid ?? NO_PASID;
    const attributes = (request.execute ? ATTR_EXECUTE : 0) | (request.privileged ? ATTR_PRIVILEGED : 0);
    switch (request.kind) {
      case 'untranslated':
      case 'translated': {
        const status = backEnd.translate(request.sourceId, pasid, attributes | (request.kind === 'translated' ? ATTR_TRANSLATED : 0), page, request.write);
        if (status !== STATUS[expected.status]) return `status ${status}`;
        return status === DMA_DONE && BigInt(backEnd.page) << 12n !== expected.address ? `page 0x${backEnd.page.toString(16)}` : '';
      }
      case 'translation': return this.askTranslation(request, expected, page, pasid, attributes);
      case 'page': {
        const access = ACCESS_READ | (request.write ? ACCESS_WRITE : 0) | (request.execute ? ACCESS_EXECUTE : 0) | (request.privileged ? ACCESS_PRIVILEGED : 0);
        backEnd.pageRequest(request.sourceId, pasid, page, access, true, 7);
        if (expected.reason === 0) return this.queued === 1 && this.answers.length === 0 ? '' : 'page request not queued';
        if (this.queued !== 0) return 'page request queued';
        if (expected.reason === PROTOCOL_ERROR) return this.answers.length === 1 ? '' : 'page request not answered';
        return this.answers.length === 1 && this.answers[0] === PRG_INVALID ? '' : `page request answered ${this.answers.join()}`;
      }
    }
  }

  private askTranslation(request: Request, expected: Outcome, page: number, pasid: number, attributes: number): string {
    const { backEnd } = this;
    const status = backEnd.translationRequest(request.sourceId, pasid, attributes | (request.noWrite ? ATTR_NO_WRITE : 0), page);
    if (status !== STATUS[expected.status]) return `status ${status}`;
    if (status !== DMA_DONE) return '';
    const got = backEnd.completion;
    const rights = `${got.read ? 'R' : ''}${got.write ? 'W' : ''}${got.execute ? 'X' : ''}${got.privileged ? 'P' : ''}${got.untranslatedOnly ? 'U' : ''}${got.global ? 'G' : ''}`;
    const wanted = `${expected.read ? 'R' : ''}${expected.write ? 'W' : ''}${expected.execute && expected.read ? 'X' : ''}${expected.privileged ? 'P' : ''}${expected.untranslatedOnly ? 'U' : ''}`;
    if (rights !== wanted) return `rights ${rights}, not ${wanted}`;
    if ((!got.read && !got.write) || got.untranslatedOnly) return '';
    const { pages } = got;
    if (2 ** Math.round(Math.log2(pages)) !== pages || BigInt(pages) << 12n > expected.size || got.page % pages !== 0) return `range of ${pages} pages at 0x${got.page.toString(16)}`;
    const translated = got.page + (page % pages);
    return BigInt(translated) << 12n === expected.address ? '' : `page 0x${translated.toString(16)}`;
  }

  private compareRecord(request: Request, expected: Outcome): string {
    const { faults } = this;
    if (faults.length > 1) return `${faults.length} records`;
    const record = faults[0];
    if (record === undefined) return expected.recorded ? 'no record' : '';
    if (!expected.recorded) return `a record of 0x${record.reason.toString(16)}`;
    const pasid = request.pasid ?? NO_PASID;
    const addressType = request.kind === 'translation' ? 1 : request.kind === 'translated' ? 2 : 0;
    if (record.reason !== expected.reason) return `reason 0x${record.reason.toString(16)}`;
    const fits =
      record.sourceId === request.sourceId && record.pasid === pasid && BigInt(record.page) << 12n === request.address && record.write === request.write &&
      record.execute === (request.execute && pasid !== NO_PASID) && record.privileged === (request.privileged && pasid !== NO_PASID) &&
      record.addressType === addressType && (record.pageRequest === true) === (request.kind === 'page');
    return fits ? '' : `fields of the record: ${JSON.stringify(record)}`;
  }

  /** What changed against what had to change and what may change besides. */
  private compareTables(logged: number, expected: Outcome): string {
    const { memory } = this;
    const before = new Map<number, bigint>();
    for (const { address, lo, hi } of memory.log.slice(logged)) if (!before.has(address)) before.set(address, toU64(lo, hi));
    for (const [address, word] of before) {
      memory.ram.load64(address);
      const changed = toU64(memory.ram.lo, memory.ram.hi) ^ word;
      const allowed = (expected.sets.get(BigInt(address)) ?? 0n) | (expected.maySet.get(BigInt(address)) ?? 0n);
      if ((changed & ~allowed) !== 0n || (changed & word) !== 0n) return `word at 0x${address.toString(16)} changed by 0x${changed.toString(16)}, allowed 0x${allowed.toString(16)}`;
    }
    for (const [address, flags] of expected.sets) {
      memory.ram.load64(Number(address));
      const word = toU64(memory.ram.lo, memory.ram.hi);
      if ((word & flags) !== flags) return `word at 0x${address.toString(16)} is 0x${word.toString(16)} without 0x${flags.toString(16)}`;
    }
    return '';
  }
}

export function describeRequest(request: Request, hardware: Hardware, mode: number): string {
  const { sourceId, pasid, address, kind, write, execute, privileged, noWrite } = request;
  const flags = [write && 'write', execute && 'execute', privileged && 'privileged', noWrite && 'no-write'].filter(Boolean).join(' ');
  return `mode ${mode}, haw ${hardware.hostAddressWidth}: ${kind} of 0x${sourceId.toString(16)} pasid ${pasid === undefined ? 'none' : `0x${pasid.toString(16)}`} at 0x${address.toString(16)} ${flags}`;
}
