/**
 * A function served over vfio-user to a client in another process: accesses to its registers, and its DMA into the
 * client's memory, through a mapping, by messages, and behind a VT-d unit whose tables lie in that memory too.
 * What crosses the socket is real time, since two processes share it; DMA through the mapping is processor time.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { Channel, Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Ram, type PhysicalMemory } from '../../sim/memory.js';
import { PlainMmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import { WallClock } from '../../sim/wall-clock.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { PageTable } from '../../host/page-table/page-table.js';
import { DMA_DONE, NO_PASID, type DmaPort } from '../../host/pci/dma-port.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { Requester } from '../../host/pci/hardware/requester.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import { SystemBus, X86_INTERRUPT_WINDOW } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { VTD_SECOND_LEVEL } from '../../iommu/page-table/vtd-second-level.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { GCMD_SRTP, GCMD_TE, REG } from '../../iommu/intel-vtd/spec/registers.js';
import { PciFunctionOps, type ClientMemory } from '../../vfio/user/index.js';
import { VfioUserServer } from '../../vfio/user/posix/index.js';
import { median, throughput } from './measure.js';
import type { Row } from './report.js';
import { MESSAGE_BASE, TABLES_END, WINDOW_BYTES, type ClientFigures } from './vfio-user-layout.js';

const KIB = 1024, MIB = 2 ** 20;
const GROUP = 'vfio-user';
const DEVFN = 0x18;
const DATA_BYTES = WINDOW_BYTES - TABLES_END;
/** Where the device sees the data: indices differ from zero on every level. */
const FIRST_PAGE = 0x7_f123_4000;
const RIGHTS = 3;
const REPETITIONS = 5, REPETITION_MS = 90;

class Register extends PlainMmio {
  private value = 0;

  read(): number {
    return this.value;
  }

  write(_offset: number, _size: number, lo: number): void {
    this.value = lo;
  }
}

/** A function on a bus whose memory is `memory`, behind a unit that translates for all. */
class Behind {
  private readonly port: DmaPort;
  private readonly memory: PhysicalMemory;

  constructor(memory: PhysicalMemory) {
    const clock = new VirtualClock(), scheduler = new Scheduler(clock, (error) => clock.fail(error));
    const timing = new Timing(DEFAULT_TIMING, new Random(1)), trace = new Trace(clock, 1024);
    const interrupts = new InterruptController(clock, timing, new Channel<InterruptMessage>(new Mailbox((error) => clock.fail(error)), 'interrupts'));
    const fabric = new Fabric({ clock, timing, memory, bus: new SystemBus(), interruptWindow: X86_INTERRUPT_WINDOW, interrupts });
    const unit = new VtdUnit({ name: 'dmar0', capabilities: buildCapabilities().capabilities, memory, clock, timing, trace, interrupts, router: fabric });
    fabric.setAgent(() => true, unit);
    const complex = new RootComplex({ fabric }), requester = new Requester({ name: 'engine', clock, scheduler, timing });
    const pci = new PciFunction({ name: 'engine', vendorId: 0x1234, deviceId: 0xbe4c, classCode: 0x08_8000, client: requester, bars: [], flr: false, e2eTlpPrefix: false });
    requester.attach(pci);
    complex.insert(complex.addRootBus(0), DEVFN, pci);
    complex.configWrite(0, DEVFN, 4, 2, 6);
    this.port = pci.port;
    this.memory = memory;
    translate(memory, unit);
  }

  pass(source: Uint8Array): void {
    for (let page = 0; page < DATA_BYTES / 4096; page += source.length / 4096) {
      const status = this.port.write(FIRST_PAGE + page, 0, source, 0, source.length, NO_PASID, 0);
      if (status !== DMA_DONE) throw new Error(`DMA ended with ${status}`);
    }
    if (this.memory.load(WINDOW_BYTES - 4, 1) !== source[0]) throw new Error('the data is not where it belongs');
  }
}

/** Legacy mode, second level of 48 bits, 4 KiB leaves: what Linux builds for a stock device. */
function translate(memory: PhysicalMemory, unit: VtdUnit): void {
  const frames = new FrameAllocator({ memory, ranges: [{ start: MIB, end: TABLES_END }] });
  const tables = new PageTable({ memory, frames, format: VTD_SECOND_LEVEL, levels: 4, largestLeaf: 0 });
  tables.map(FIRST_PAGE, TABLES_END, DATA_BYTES / 4096, RIGHTS);
  const root = frames.alloc('root'), contexts = frames.alloc('contexts');
  memory.store64(root, contexts | 1, 0);
  memory.store64(contexts + DEVFN * 16, tables.root | 1, 0);
  memory.store64(contexts + DEVFN * 16 + 8, 2 | (7 << 8), 0);
  unit.write(REG.RTADDR, 8, root, 0);
  unit.write(REG.GCMD, 4, GCMD_SRTP);
  unit.write(REG.GCMD, 4, GCMD_TE);
}

/** Passes over the data in blocks; GB/s of processor time. */
function bandwidth(name: string, pass: () => void): Row {
  const { value, samples } = throughput({ units: DATA_BYTES / 1e9, run: pass }, { repetitions: REPETITIONS, repetitionMs: REPETITION_MS, warmUpMs: 100 });
  return { group: GROUP, name, value, unit: 'GB/s', samples };
}

function* mappedMemory(foreign: PhysicalMemory): Generator<Row> {
  const ram = new Ram(WINDOW_BYTES);
  const block = new Uint8Array(64 * KIB).fill(0xa5);
  const over = (move: (address: number) => boolean) => (): void => {
    for (let at = TABLES_END; at < WINDOW_BYTES; at += block.length) if (!move(at)) throw new Error(`no memory at ${at}`);
  };
  const compare = (row: Row, base: Row): Row => ({ ...row, note: `${(row.value / base.value * 100).toFixed(0)} % of RAM` });
  for (const [name, of] of [
    ['writes', (memory: PhysicalMemory) => over((at) => memory.write(at, block, 0, block.length))],
    ['reads', (memory: PhysicalMemory) => over((at) => memory.read(at, block, 0, block.length))],
  ] as const) {
    const base = bandwidth(`${name} of 64 KiB, RAM`, of(ram));
    yield base;
    yield compare(bandwidth(`${name} of 64 KiB, the client's memory, mapped`, of(foreign)), base);
  }
  const inRam = new Behind(ram), inForeign = new Behind(foreign);
  // compiled code that has seen one kind of memory only is faster than what either has later
  for (let i = 0; i < 20; i++) for (const behind of [inRam, inForeign]) behind.pass(block);
  for (const size of [4 * KIB, 64 * KIB]) {
    const source = new Uint8Array(size).fill(0x5a), base = bandwidth(`DMA of ${size / KIB} KiB through the unit, RAM`, () => inRam.pass(source));
    yield base;
    yield compare(bandwidth(`DMA of ${size / KIB} KiB through the unit, the client's memory, mapped`, () => inForeign.pass(source)), base);
  }
}

/** Real time until `count` transfers have ended, `depth` of them at once. */
function transfer(memory: ClientMemory, write: boolean, block: Uint8Array, count: number, depth: number): Promise<number> {
  const started = performance.now();
  let begun = 0, ended = 0;
  return new Promise((resolve, reject) => {
    const next = (): void => {
      if (begun === count) return;
      begun++;
      const done = (error: Error | undefined): void => {
        if (error !== undefined) reject(error);
        else if (++ended === count) resolve(performance.now() - started);
        else next();
      };
      if (write) memory.writeByMessages(MESSAGE_BASE, block, done);
      else memory.readByMessages(MESSAGE_BASE, block, done);
    };
    for (let i = 0; i < depth; i++) next();
  });
}

async function* byMessages(memory: ClientMemory): AsyncGenerator<Row> {
  for (const [size, depth] of [[64 * KIB, 1], [64 * KIB, 8], [MIB, 1]] as const) {
    const block = new Uint8Array(size).fill(0x3c);
    for (const write of [false, true]) {
      const trialMs = await transfer(memory, write, block, 64, depth);
      const count = Math.max(32, Math.ceil(64 * REPETITION_MS / trialMs)), samples: number[] = [];
      for (let i = 0; i < REPETITIONS; i++) samples.push(count * size / 1e6 / await transfer(memory, write, block, count, depth));
      const name = `DMA ${write ? 'writes' : 'reads'} by message, ${size / KIB} KiB, ${depth === 1 ? 'one at a time' : `${depth} at once`}`;
      yield { group: GROUP, name, value: median(samples), unit: 'GB/s', samples, note: 'real time, both processes' };
    }
  }
}

function inTask<T>(scheduler: Scheduler, steps: Steps<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    scheduler.spawn('bench', (function* (): Steps {
      try {
        resolve(yield* steps);
      } catch (error) {
        reject(error as Error);
      }
    })());
  });
}

function startClient(path: string): { figures: Promise<ClientFigures>; ended: Promise<void> } {
  const child = spawn(process.execPath, [...process.execArgv, fileURLToPath(new URL('vfio-user-client.ts', import.meta.url)), path], { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout });
  return {
    figures: new Promise((resolve, reject) => {
      lines.once('line', (line) => resolve(JSON.parse(line) as ClientFigures));
      child.once('close', () => reject(new Error('the client ended before it had measured anything')));
    }),
    ended: new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code) => (code === 0 ? resolve() : reject(new Error(`the client ended with ${code}`))));
    }),
  };
}

export async function* vfioUser(): AsyncGenerator<Row> {
  const clock = new WallClock(), scheduler = new Scheduler(clock, (error) => clock.fail(error));
  const timing = new Timing(DEFAULT_TIMING, new Random(1));
  const requester = new Requester({ name: 'register', clock, scheduler, timing });
  const pci = new PciFunction({
    name: 'register', vendorId: 0x1234, deviceId: 0xbe4d, classCode: 0x08_8000, client: requester, flr: true, e2eTlpPrefix: false,
    bars: [{ index: 0, sizeBytes: 4096, prefetchable: false, is64: false, mmio: new Register() }],
  });
  const directory = mkdtempSync(join(tmpdir(), 'vfio-user-bench-'));
  const server = new VfioUserServer({ path: join(directory, 'register.sock'), device: { ops: new PciFunctionOps(pci) }, scheduler });
  await inTask(scheduler, server.start());
  const { figures, ended } = startClient(server.path);
  try {
    const { readUs, postedPerSecond } = await figures;
    yield { group: GROUP, name: 'read of a register, there and back', value: median(readUs), unit: 'µs', samples: readUs, note: 'real time' };
    yield { group: GROUP, name: 'posted writes to a register', value: median(postedPerSecond), unit: '/s', samples: postedPerSecond, note: 'real time, a message each' };
    yield* mappedMemory(server.memory.memory);
    yield* byMessages(server.memory);
  } finally {
    await inTask(scheduler, server.stop());
    await ended;
    clock.stop();
    rmSync(directory, { recursive: true });
  }
}
