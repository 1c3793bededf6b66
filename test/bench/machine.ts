/**
 * A booted machine with one function whose engine is the benchmark: it has the port, the translation cache and the
 * page request interface of any device here, and does what it is told.
 */
import { createMachineSync, type Machine } from '../../harness/machine.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import { Mm } from '../../host/mm/mm.js';
import type { DmaPort } from '../../host/pci/dma-port.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { Requester } from '../../host/pci/hardware/requester.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import type { Steps } from '../../sim/task.js';

export interface BenchMachineOptions {
  readonly memory?: string;
  /** Checkers and the records that only they need. */
  readonly checkers?: boolean;
  /** Entries of the page request queue. */
  readonly queueEntries?: number;
  readonly workers?: number;
  /** Default: the product's. */
  readonly traceRecords?: number;
  /** SVA is enabled on the function; default true. */
  readonly sva?: boolean;
}

export class BenchMachine {
  readonly machine: Machine;
  readonly requester: Requester;
  readonly function: PciFunction;
  readonly device: PciFunctionDevice;
  private nextMm = 1000;

  constructor(options: BenchMachineOptions = {}) {
    const topology: TopologyInput = {
      version: 1,
      host: {
        memory: options.memory ?? '1GiB',
        iommu: { model: 'intel-vtd', 'page-request-queue': options.queueEntries ?? 2048 },
        kernel: options.workers === undefined ? {} : { 'iopf-workers': options.workers },
        devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:00:01.0' }],
      },
      limits: { events: 2 ** 50, time: '1000000s' },
    };
    this.machine = createMachineSync(topology, { checkers: options.checkers ?? false, ...(options.traceRecords === undefined ? {} : { traceRecords: options.traceRecords }) });
    const { host } = this.machine;
    const { clock, scheduler, timing } = host;
    this.requester = new Requester({ name: 'engine', clock, scheduler, timing });
    this.function = new PciFunction({
      name: 'engine', vendorId: 0x1234, deviceId: 0xbe4c, classCode: 0x08_8000, client: this.requester, bars: [], deviceType: PCI_EXP_TYPE_RC_END, flr: true, e2eTlpPrefix: true,
      ats: { queueDepth: 32, pageAligned: true }, pri: { maxRequests: 512, prgResponsePasidRequired: true }, pasid: { width: 20, exec: true, priv: true },
    });
    this.requester.attach(this.function);
    host.tree.insert({ ...host.settings.topology.host.devices[0]!, bdf: { segment: 0, bus: 0, device: 2, function: 0 } }, this.function);
    this.machine.boot();
    this.device = host.pci.find('0000:00:02.0')!;
    if (options.sva ?? true) this.machine.execute('enable SVA', this.enable());
  }

  get port(): DmaPort {
    return this.function.port;
  }

  process(name = 'process'): Mm {
    const { memory, frames, scheduler, trace } = this.machine.host;
    return new Mm({ id: this.nextMm++, name, memory, frames, scheduler, trace });
  }

  /** Runs a task to its end. */
  do<T>(steps: Steps<T>): T {
    return this.machine.execute('bench', steps);
  }

  bind(mm: Mm): number {
    return this.do(this.machine.host.core.svaBind(this.device, mm));
  }

  private *enable(): Steps {
    const { core } = this.machine.host;
    this.device.setMaster(true);
    yield* core.devEnableFeature(this.device, 'IOPF');
    yield* core.devEnableFeature(this.device, 'SVA');
  }
}
