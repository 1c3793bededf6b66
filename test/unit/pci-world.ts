/** The smallest machine in which a PCI function can do DMA, and an agent that translates with a plain map. */
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import type { InterruptSink } from '../../host/interrupts.js';
import {
  ATTR_TRANSLATED, DMA_DONE, DMA_HELD, DMA_UR, PRG_SUCCESS, type DmaPort, type DmaStatus, type TranslationAgent, type TranslationCompletion,
} from '../../host/pci/dma-port.js';
import type { FunctionPort } from '../../host/pci/hardware/function-port.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { PciFunction, type PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import type { PciBus } from '../../host/pci/hardware/pci-node.js';
import { Requester } from '../../host/pci/hardware/requester.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import { SystemBus, X86_INTERRUPT_WINDOW } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';

interface Mapping {
  page: number;
  pages: number;
  read: boolean;
  write: boolean;
}

export interface PageRequestSeen {
  readonly timeNs: number;
  readonly sourceId: number;
  readonly pasid: number;
  readonly page: number;
  readonly access: number;
  readonly last: boolean;
  readonly prgIndex: number;
}

/** Translates by a map of (pasid, page); answers page requests the way `answer` says. */
export class MapAgent implements TranslationAgent {
  page = 0;
  walkAccesses = 0;
  heldToken = 0;
  readonly completion: TranslationCompletion = {
    page: 0, pages: 1, read: false, write: false, execute: false, privileged: false, global: false, untranslatedOnly: false,
  };
  readonly requests: PageRequestSeen[] = [];
  readonly completions: { readonly timeNs: number; readonly sourceId: number; readonly tag: number }[] = [];
  translations = 0;
  translatedPages: number[] = [];
  /** The next untranslated access to this page is held instead of refused. */
  holdPage = -1;
  /** Called for the last request of a group; the default answers nothing. */
  answer: (request: PageRequestSeen) => void = () => {};
  private readonly maps = new Map<string, Mapping>();
  private readonly clock: VirtualClock;

  constructor(clock: VirtualClock) {
    this.clock = clock;
  }

  map(pasid: number, iova: number, page: number, rights = 'rw', pages = 1): void {
    this.maps.set(`${pasid}:${iova}`, { page, pages, read: rights.includes('r'), write: rights.includes('w') });
  }

  unmap(pasid: number, iova: number): void {
    this.maps.delete(`${pasid}:${iova}`);
  }

  translate(_sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus {
    this.walkAccesses = 0;
    if ((attributes & ATTR_TRANSLATED) !== 0) {
      this.translatedPages.push(page);
      this.page = page;
      return DMA_DONE;
    }
    if (page === this.holdPage) {
      this.holdPage = -1;
      this.heldToken++;
      return DMA_HELD;
    }
    const mapping = this.maps.get(`${pasid}:${page}`);
    this.walkAccesses = 4;
    if (mapping === undefined || !(write ? mapping.write : mapping.read)) return DMA_UR;
    this.page = mapping.page;
    return DMA_DONE;
  }

  translationRequest(_sourceId: number, pasid: number, _attributes: number, page: number): DmaStatus {
    this.translations++;
    this.walkAccesses = 4;
    const mapping = this.maps.get(`${pasid}:${page}`);
    const { completion } = this;
    completion.page = mapping?.page ?? 0;
    completion.pages = mapping?.pages ?? 1;
    completion.read = mapping?.read ?? false;
    completion.write = mapping?.write ?? false;
    return DMA_DONE;
  }

  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    const request = { timeNs: this.clock.now, sourceId, pasid, page, access, last, prgIndex };
    this.requests.push(request);
    if (last && access !== 0) this.answer(request);
  }

  invalidateCompletion(sourceId: number, tag: number): void {
    this.completions.push({ timeNs: this.clock.now, sourceId, tag });
  }
}

export interface World {
  readonly clock: VirtualClock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly memory: Ram;
  readonly systemBus: SystemBus;
  readonly fabric: Fabric;
  readonly complex: RootComplex;
  readonly root: PciBus;
  readonly agent: MapAgent;
  readonly messages: { readonly address: number; readonly data: number; readonly sourceId: number }[];
  /** Runs a task to its end and returns its result. */
  run<T>(steps: Steps<T>): T;
  /** All kinds of trace records with this name, as their arguments. */
  records(kind: string): readonly (readonly number[])[];
  requester(name?: string, defects?: ReadonlySet<string>, atcEntries?: number): Requester;
  /** The agent maps the pages of each request and answers with `code` after `delayNs`. */
  serve(code?: number, delayNs?: number): void;
}

export function createWorld(options: { memoryBytes?: number; jitter?: number; seed?: number } = {}): World {
  const clock = new VirtualClock({ eventLimit: 1_000_000 });
  const scheduler = new Scheduler(clock, (error) => clock.fail(error));
  const timing = new Timing({ ...DEFAULT_TIMING, jitter: options.jitter ?? 0 }, new Random(options.seed ?? 1));
  const trace = new Trace(clock);
  const memory = new Ram(options.memoryBytes ?? 0x100_0000);
  const systemBus = new SystemBus();
  const messages: { address: number; data: number; sourceId: number }[] = [];
  const interrupts: InterruptSink = { message: (address, data, sourceId) => void messages.push({ address, data, sourceId }) };
  const fabric = new Fabric({ clock, timing, memory, bus: systemBus, interrupts, interruptWindow: X86_INTERRUPT_WINDOW, trace });
  const complex = new RootComplex({ fabric });
  const root = complex.addRootBus(0);
  const agent = new MapAgent(clock);
  return {
    clock, scheduler, timing, trace, memory, systemBus, fabric, complex, root, agent, messages,
    run: <T>(steps: Steps<T>): T => {
      const task = scheduler.spawn('test', steps);
      clock.run();
      if (task.state !== 'done') throw new Error(`task is ${task.state}: ${scheduler.deadlockReport().join('; ')}`);
      return task.result as T;
    },
    records: (kind) => [...trace.records()].filter((record) => record.kind.name === kind).map((record) => record.args),
    requester: (name = 'dev', defects = new Set<string>(), atcEntries = 64) => new Requester({ name, clock, scheduler, timing, atcEntries, defects }),
    serve: (code = PRG_SUCCESS, delayNs = 1000) => {
      let frame = 0x800;
      agent.answer = (last) => {
        clock.post(delayNs, () => {
          if (code === PRG_SUCCESS) {
            for (const { pasid, page, prgIndex } of agent.requests) if (prgIndex === last.prgIndex) agent.map(pasid, page, frame++);
          }
          fabric.pageResponse(last.sourceId, last.prgIndex, code, last.pasid);
        });
      };
    },
  };
}

/** Options of a function with everything SVA needs. */
export function svaFunction(client: PciFunctionOptions['client'], more: Partial<PciFunctionOptions> = {}): PciFunctionOptions {
  return {
    name: 'dev', vendorId: 0x8086, deviceId: 0x0b25, classCode: 0x088000, deviceType: 9, client, flr: true, e2eTlpPrefix: true,
    ats: { queueDepth: 32, pageAligned: true }, pri: { maxRequests: 64, prgResponsePasidRequired: true }, pasid: { width: 20, exec: true, priv: true },
    ...more,
  };
}

/** Offset of a capability by walking the list as software does; 0 without it. */
export function findCapability(fn: PciFunction, id: number): number {
  for (let at = fn.config.read(0x34, 1); at !== 0; at = fn.config.read(at + 1, 1)) if (fn.config.read(at, 1) === id) return at;
  return 0;
}

export function findExtCapability(fn: PciFunction, id: number): number {
  for (let at = 0x100; at !== 0; ) {
    const header = fn.config.read(at, 4);
    if ((header & 0xffff) === id) return at;
    at = header >>> 20;
  }
  return 0;
}

/** PASID, ATS, PRI on and bus mastering, in the order of Linux. */
export function enableSva(fn: PciFunction, allocation = 32): void {
  const { config } = fn;
  config.write(0x04, 2, 0x6);
  config.write(findExtCapability(fn, 0x1b) + 6, 2, 0x7);
  config.write(findExtCapability(fn, 0x0f) + 6, 2, 0x8000);
  const pri = findExtCapability(fn, 0x13);
  config.write(pri + 4, 2, 0x2);
  config.write(pri + 0xc, 4, allocation);
  config.write(pri + 4, 2, 0x1);
}

export interface SvaDevice {
  readonly fn: PciFunction;
  readonly requester: Requester;
}

/** A function with a requester in slot `devfn` of the root bus, everything enabled, translated by the world's agent. */
export function plugSva(world: World, options: { devfn?: number; defects?: ReadonlySet<string>; allocation?: number; more?: Partial<PciFunctionOptions>; atcEntries?: number; wrapPort?: (port: FunctionPort) => DmaPort } = {}): SvaDevice {
  const defects = options.defects ?? new Set<string>();
  const requester = world.requester(`dev${options.devfn ?? 8}`, defects, options.atcEntries);
  const wrap = options.wrapPort === undefined ? {} : { wrapPort: options.wrapPort };
  const fn = new PciFunction({ ...svaFunction(requester, options.more), ...wrap, defects });
  requester.attach(fn);
  world.fabric.setAgent(() => true, world.agent);
  world.complex.insert(world.root, options.devfn ?? 8, fn);
  enableSva(fn, options.allocation);
  return { fn, requester };
}

/** A client that records what it hears. */
export class Listener {
  readonly responses: { readonly timeNs: number; readonly prgIndex: number; readonly code: number; readonly pasid: number }[] = [];
  readonly invalidations: { readonly timeNs: number; readonly tag: number; readonly page: number }[] = [];
  readonly ended: { readonly timeNs: number; readonly token: number; readonly status: DmaStatus }[] = [];
  readonly order: string[] = [];
  private readonly clock: VirtualClock;

  constructor(clock: VirtualClock) {
    this.clock = clock;
  }

  pageResponse(prgIndex: number, code: number, pasid: number): void {
    this.responses.push({ timeNs: this.clock.now, prgIndex, code, pasid });
    this.order.push(`response ${prgIndex}`);
  }

  invalidate(tag: number, page: number): void {
    this.invalidations.push({ timeNs: this.clock.now, tag, page });
    this.order.push(`invalidate ${tag}`);
  }

  heldDone(token: number, status: DmaStatus): void {
    this.ended.push({ timeNs: this.clock.now, token, status });
    this.order.push(`held ${token}`);
  }
}

export function bytes(length: number, first = 0): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (first + i * 7 + (i >> 8)) & 0xff);
}
