/**
 * A whole machine for scenarios: composed from a topology in code, with one accelerator and its driver, and beside
 * it a probe, a function without a driver that sends exactly the requests a test wants. Everything goes through
 * configuration bytes, registers and memory; `finish` takes the machine down and asks every checker.
 */
import { expect } from 'vitest';
import { createMachineSync, type Machine, type MachineOptions } from '../../harness/machine.js';
import type { Summary } from '../../harness/summary.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import type { Program } from '../../harness/scenario/program.js';
import type { Mm } from '../../host/mm/mm.js';
import type { DmaClient } from '../../host/pci/dma-port.js';
import { PciFunction, type PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import { Requester } from '../../host/pci/hardware/requester.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import { Errno, type ErrnoName } from '../../sim/errno.js';
import type { Steps, Task } from '../../sim/task.js';

type HostInput = NonNullable<TopologyInput['host']>;
type IommuInput = NonNullable<HostInput['iommu']>;

export interface WorldOptions extends MachineOptions {
  /** `false`: a machine without IOMMU. */
  readonly iommu?: Partial<IommuInput> | false;
  readonly kernel?: HostInput['kernel'];
  readonly ports?: HostInput['ports'];
  readonly devices?: HostInput['devices'];
  readonly timing?: TopologyInput['timing'];
  readonly processes?: TopologyInput['processes'];
  readonly mdevs?: TopologyInput['mdevs'];
  /** Defined, not started. */
  readonly guests?: TopologyInput['guests'];
  readonly mdevParents?: HostInput['mdev-parents'];
  /** Default 256 MiB. */
  readonly memory?: HostInput['memory'];
  readonly defect?: string;
  /** Functions that stand beside the devices of the topology, by name. */
  readonly probes?: Readonly<Record<string, ProbeOptions>>;
}

export const DSA0: Extract<NonNullable<HostInput['devices']>[number], { model: 'dsa' }> = { model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0' };

/** What a function has when nothing is said: an accelerator's ATS, PRI and PASID. */
const PROBE: Omit<PciFunctionOptions, 'name' | 'client'> = {
  vendorId: 0x1234, deviceId: 0x0001, classCode: 0x12_0000, flr: true, e2eTlpPrefix: true, deviceType: PCI_EXP_TYPE_RC_END, siov: true,
  ats: { queueDepth: 32, pageAligned: true }, pri: { maxRequests: 512, prgResponsePasidRequired: true }, pasid: { width: 20, exec: true, priv: true },
};

export interface ProbeOptions {
  readonly function?: Partial<PciFunctionOptions>;
  readonly without?: readonly ('ats' | 'pri' | 'pasid')[];
  /** Slot on root bus 0. */
  readonly slot?: number;
}

/** A function that does what a test tells it, behind the machine's fabric. */
export class Probe {
  readonly name: string;
  readonly fn: PciFunction;
  readonly requester: Requester;
  /** Answers to page requests that a test sent by hand, as they arrived. */
  readonly answers: { readonly group: number; readonly code: number }[] = [];
  private readonly world: World;

  constructor(world: World, name: string, options: ProbeOptions) {
    const { clock, scheduler, timing, settings: { defects } } = world.machine.host;
    this.world = world;
    this.name = name;
    const forward: Partial<DmaClient> = { pageResponse: (group, code) => void this.answers.push({ group, code }) };
    this.requester = new Requester({ name, clock, scheduler, timing, forward, defects });
    const declared: Partial<PciFunctionOptions> = Object.fromEntries(Object.entries(PROBE).filter(([key]) => !(options.without as string[] | undefined ?? []).includes(key)));
    this.fn = new PciFunction({ ...(declared as typeof PROBE), name, client: this.requester, defects, ...options.function });
    this.requester.attach(this.fn);
  }

  /** The function as the kernel sees it. */
  get pci(): PciFunctionDevice {
    const found = this.world.machine.host.pci.findBySourceId(0, this.fn.requesterId);
    if (found === undefined) throw new Error(`the kernel does not see ${this.name}`);
    return found;
  }

  /** Codes of the answers to group `group`. */
  codes(group?: number): number[] {
    return this.answers.filter((answer) => group === undefined || answer.group === group).map(({ code }) => code);
  }

  /** One page request message, as the wire carries it. */
  ask(page: number, access: number, last: boolean, group: number, pasid: number): void {
    this.fn.port.pageRequest(page, access, last, group, pasid);
  }

  /** Bus mastering, IOPF, SVA: what a driver's probe does. */
  enableSva(): this {
    const { core } = this.world.machine.host;
    this.pci.setMaster(true);
    this.world.run(core.devEnableFeature(this.pci, 'IOPF'));
    this.world.run(core.devEnableFeature(this.pci, 'SVA'));
    return this;
  }

  /** Reads or writes one page at most, waiting for what it needs; the status. */
  *access(address: number, write: boolean, pasid: number, options: { bytes?: Uint8Array; block?: boolean } = {}): Steps<{ status: string; response: number }> {
    const bytes = options.bytes ?? new Uint8Array(64);
    const page = Math.floor(address / 4096), offset = address % 4096;
    const { requester } = this;
    const { status, response } = yield* requester[write ? 'write' : 'read'](page, offset, bytes, 0, bytes.length, pasid, 0, options.block ?? true);
    return { status, response };
  }
}

export class World {
  readonly machine: Machine;
  private readonly probes = new Map<string, Probe>();

  constructor(options: WorldOptions = {}) {
    const { iommu, kernel, ports, devices, timing, processes, mdevs, guests, mdevParents, memory, defect, probes } = options;
    const topology: TopologyInput = {
      version: 1, name: 'scenario', processes: processes ?? [], timing: timing ?? {}, mdevs: mdevs ?? [], guests: guests ?? [],
      host: {
        memory: memory ?? '256MiB', devices: devices ?? [DSA0], kernel: kernel ?? {}, ports: ports ?? [], 'mdev-parents': mdevParents ?? [],
        ...(iommu === false ? {} : { iommu: { model: 'intel-vtd', ...iommu } as IommuInput }),
      },
    };
    this.machine = createMachineSync(topology, { ...options, ...(defect === undefined ? {} : { defects: new Set([defect]) }) });
    const { complex } = this.machine.host.tree;
    let slot = 4;
    for (const [name, probe] of Object.entries(probes ?? {})) {
      const made = new Probe(this, name, probe);
      complex.insert(complex.rootBuses.find((bus) => bus.number === 0)!, (probe.slot ?? slot++) << 3, made.fn);
      this.probes.set(name, made);
    }
    this.machine.boot();
  }

  get host(): Machine['host'] {
    return this.machine.host;
  }

  get core(): Machine['host']['core'] {
    return this.machine.host.core;
  }

  probe(name = 'probe'): Probe {
    return this.probes.get(name)!;
  }

  /** Runs kernel code to its end, with everything that happens meanwhile; throws what it threw. */
  run<T>(steps: Steps<T>): T {
    return this.machine.execute('test', steps);
  }

  /** Starts kernel code that goes on by itself. */
  start<T>(what: string, steps: Steps<T>): Task<T> {
    return this.host.scheduler.spawn(what, steps, { joined: true });
  }

  /** Lets time pass. */
  wait(ns: number): void {
    this.host.clock.run({ untilNs: this.host.clock.now + ns });
  }

  /** Lets things happen until `condition` holds. */
  until(condition: () => boolean): void {
    this.host.clock.run({ stop: condition });
    if (!condition()) throw new Error('it never came to that');
  }

  /** Until nothing is left to happen. */
  settle(): void {
    this.host.clock.run();
  }

  process(name: string): Program {
    return this.machine.scenario.world.newProgram(name);
  }

  /** Page number of fresh pages of a process that nobody has touched. */
  pages({ process }: Program, count: number, prot = 3): number {
    return this.run(process.mm.mmap(count * 4096, { prot })) / 4096;
  }

  present(mm: Mm, page: number): boolean {
    return mm.physicalOf(page * 4096) >= 0;
  }

  /** Arguments by name of every record of a kind so far. */
  records(kind: string): Record<string, number>[] {
    const { trace } = this.host;
    return [...trace.records()].filter((record) => record.kind.name === kind).map(({ kind: { args }, args: values }) => Object.fromEntries(args.map((arg, i) => [arg, values[i]!])));
  }

  /** Texts of the kernel log that contain `text`. */
  log(text: string): string[] {
    return this.host.log.lines.map((line) => line.text).filter((line) => line.includes(text));
  }

  /** The refusal's errno; `unchanged` describes what must be the same before and after. */
  refused(call: Steps<unknown> | (() => unknown), unchanged: () => unknown = () => this.state()): ErrnoName | 'no error' {
    const before = JSON.stringify(unchanged());
    const code = this.errno(call);
    expect(JSON.stringify(unchanged())).toBe(before);
    return code;
  }

  private errno(call: Steps<unknown> | (() => unknown)): ErrnoName | 'no error' {
    try {
      if (typeof call === 'function') call();
      else this.run(call);
    } catch (error) {
      if (error instanceof Errno) return error.code;
      throw error;
    }
    return 'no error';
  }

  /** PASIDs, domains, bonds, features and configuration bytes of every function. */
  state(): unknown {
    const { pci, access } = this.host;
    return [this.core.usage, pci.devices.map((device) => [
      device.name, (['AUX', 'IOPF', 'SVA'] as const).map((feature) => this.core.devFeatureEnabled(device, feature)),
      Array.from({ length: 1024 }, (_, i) => access.read(device.segment, device.bus, device.devfn, i * 4, 4)),
    ])];
  }

  /**
   * Ends every process, takes the machine down, and expects nothing to be left and every invariant to hold, but for
   * `violations` that the test provoked.
   */
  finish(violations: readonly unknown[] = []): Summary {
    for (const { process } of this.machine.scenario.programs.values()) this.run(process.exit());
    this.machine.run();
    const summary = this.machine.summary();
    expect(summary.invariants.flatMap(({ violations: texts }) => texts)).toEqual(violations);
    expect(summary.leaks).toEqual({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 });
    expect(summary.verdict).toBe(violations.length === 0 ? 'pass' : 'fail');
    return summary;
  }
}

/** An mm_exit that has nothing to wait for. */
/* oxlint-disable-next-line require-yield -- nothing to wait for */
export function* silentExit(): Steps<number> {
  return 0;
}

/** A machine with one probe on which SVA is on. */
export function probeWorld(options: WorldOptions = {}): { world: World; probe: Probe } {
  const world = new World({ devices: [], probes: { probe: {} }, ...options });
  return { world, probe: world.probe().enableSva() };
}
