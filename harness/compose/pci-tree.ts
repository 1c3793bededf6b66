/**
 * The tree of buses a topology describes. A device without `port` is an integrated endpoint on a root bus of the
 * number in its BDF; a switch hangs on a root port of a root bus of its own, and devices behind it sit one to a
 * downstream port, on consecutive buses.
 */
import type { Fabric } from '../../host/pci/hardware/fabric.js';
import type { PciBus, PciNode } from '../../host/pci/hardware/pci-node.js';
import { PciPort } from '../../host/pci/hardware/pci-port.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import type { RootBus } from '../../host/pci/kernel/pci-core.js';
import { PCI_ACS_CR, PCI_ACS_DT, PCI_ACS_RR, PCI_ACS_SV, PCI_ACS_TB, PCI_ACS_UF, PCI_EXP_TYPE_DOWNSTREAM, PCI_EXP_TYPE_ROOT_PORT, PCI_EXP_TYPE_UPSTREAM } from '../../host/pci/spec/index.js';
import { SWITCH_DEPTH } from '../topology/checks.js';
import type { DeviceTopology, Topology } from '../topology/schema.js';

const ISOLATION = PCI_ACS_SV | PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_UF | PCI_ACS_DT;

export class PciTree {
  readonly complex: RootComplex;
  readonly rootBuses: readonly RootBus[];
  private readonly host: Topology['host'];
  private readonly buses = new Map<number, PciBus>();
  /** Upstream port of each switch. */
  private readonly switches = new Map<string, { readonly upstream: PciPort; readonly rootBus: number }>();

  constructor(fabric: Fabric, host: Topology['host']) {
    this.host = host;
    this.complex = new RootComplex({ fabric });
    const numbers = new Set([0]);
    for (const device of host.devices) if (device.port === undefined) numbers.add(device.bdf.bus);
    for (const port of host.ports) {
      const first = host.devices.find((device) => device.port === port.name);
      if (first !== undefined) numbers.add(first.bdf.bus - SWITCH_DEPTH);
    }
    const sorted = [...numbers].sort((a, b) => a - b);
    this.rootBuses = sorted.map((bus, i) => ({ segment: 0, bus, lastBus: (sorted[i + 1] ?? 0x100) - 1 }));
    for (const bus of sorted) this.buses.set(bus, this.complex.addRootBus(bus));
  }

  /** Plugs a device's function into the place its topology names. */
  insert(device: Pick<DeviceTopology, 'bdf'> & { readonly port?: string | undefined }, fn: PciNode): void {
    const devfn = (device.bdf.device << 3) | device.bdf.function;
    if (device.port === undefined) this.complex.insert(this.buses.get(device.bdf.bus)!, devfn, fn);
    else this.complex.insert(this.downstreamPort(device.port, device.bdf).secondary, devfn, fn);
  }

  private downstreamPort(name: string, bdf: DeviceTopology['bdf']): PciPort {
    const options = this.host.ports.find((port) => port.name === name)!;
    const { upstream, rootBus } = this.switchOf(name, bdf.bus);
    const slot = bdf.bus - rootBus - SWITCH_DEPTH;
    const existing = upstream.secondary.nodes.get(slot << 3);
    if (existing instanceof PciPort) return existing;
    const acs = (options.acs ? ISOLATION : 0) | (options['translation-blocking'] ? PCI_ACS_TB : 0);
    const port = new PciPort({ name: `${name} downstream ${slot}`, type: PCI_EXP_TYPE_DOWNSTREAM, e2eTlpPrefix: options['tlp-prefix'], portNumber: slot + 1, ...(acs === 0 ? {} : { acs }) });
    this.complex.insert(upstream.secondary, slot << 3, port);
    return port;
  }

  private switchOf(name: string, firstBus: number): { upstream: PciPort; rootBus: number } {
    const known = this.switches.get(name);
    if (known !== undefined) return known;
    const options = this.host.ports.find((port) => port.name === name)!;
    const e2eTlpPrefix = options['tlp-prefix'];
    const rootBus = firstBus - SWITCH_DEPTH;
    const root = new PciPort({ name: `${name} root port`, type: PCI_EXP_TYPE_ROOT_PORT, e2eTlpPrefix, acs: ISOLATION });
    const upstream = new PciPort({ name: `${name} upstream`, type: PCI_EXP_TYPE_UPSTREAM, e2eTlpPrefix });
    this.complex.insert(this.buses.get(rootBus)!, 0x1c << 3, root);
    this.complex.insert(root.secondary, 0, upstream);
    const made = { upstream, rootBus };
    this.switches.set(name, made);
    return made;
  }
}
