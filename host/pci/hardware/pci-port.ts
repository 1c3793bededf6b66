/**
 * A bridge: root port, switch upstream or downstream port. Header type 1 with the bus numbers and memory windows
 * that software programs, PCI Express capability, and access control services where the port checks requests
 * (PCIe 6.0 sections 7.5.1.3, 6.12). As real bridges do, it forwards requests upstream only with bus mastering on
 * and memory requests downstream only with memory space on and inside its windows.
 * Left out: I/O windows, links, hot-plug slots' registers. Of the ACS services, P2P completion redirect and
 * upstream forwarding are registers only: completions take the way of their requests, and requests that were
 * redirected upstream always reach the root complex.
 */
import { assert } from '../../../sim/assert.js';
import {
  CLASS_BRIDGE_PCI, PCI_ACS_CTRL, PCI_ACS_EGRESS_CTL_V, PCI_BRIDGE_CONTROL, PCI_BRIDGE_CTL_BUS_RESET, PCI_CACHE_LINE_SIZE, PCI_CLASS_REVISION, PCI_COMMAND,
  PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_COMMAND_PARITY, PCI_COMMAND_SERR, PCI_DEVICE_ID, PCI_EXP_DEVCAP2,
  PCI_EXP_DEVCAP2_EE_PREFIX, PCI_EXP_LNKCAP, PCI_EXP_TYPE_UPSTREAM, PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE, PCI_INTERRUPT_LINE, PCI_MEMORY_BASE, PCI_MEMORY_LIMIT, PCI_MEMORY_RANGE_MASK, PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32, PCI_PREF_MEMORY_BASE, PCI_PREF_MEMORY_LIMIT, PCI_PREF_RANGE_TYPE_64, PCI_PRIMARY_BUS,
  PCI_SECONDARY_BUS, PCI_STATUS, PCI_SUBORDINATE_BUS, PCI_VENDOR_ID,
  type PCI_EXP_TYPE_DOWNSTREAM, type PCI_EXP_TYPE_ROOT_PORT,
} from '../spec/index.js';
import { ConfigSpace } from './config-space.js';
import { addAcs, addExpress } from './function-config.js';
import { PciBus, PciNode } from './pci-node.js';

export type PortType = typeof PCI_EXP_TYPE_ROOT_PORT | typeof PCI_EXP_TYPE_UPSTREAM | typeof PCI_EXP_TYPE_DOWNSTREAM;

export interface PciPortOptions {
  readonly name: string;
  readonly type: PortType;
  readonly vendorId?: number;
  readonly deviceId?: number;
  /** PCI_ACS_* services; none without. Upstream ports have none (section 6.12.1.2). */
  readonly acs?: number;
  /** Bits of the egress control vector, when `acs` has PCI_ACS_EC. */
  readonly egressPorts?: number;
  readonly e2eTlpPrefix: boolean;
  /** Port number in the link capabilities, which egress control vectors count by. */
  readonly portNumber?: number;
}

export class PciPort extends PciNode {
  readonly config = new ConfigSpace();
  readonly type: PortType;
  readonly portNumber: number;
  /** The bus below. */
  readonly secondary: PciBus;
  /** Set by the topology: secondary bus reset of everything below. */
  onBusReset: (() => void) | undefined;
  private readonly express: number;
  private readonly acs: number;

  constructor(options: PciPortOptions) {
    super(options.name);
    const { config } = this;
    this.type = options.type;
    this.portNumber = options.portNumber ?? 0;
    this.secondary = new PciBus(() => config.get(PCI_SECONDARY_BUS, 1), this);
    config.define(PCI_VENDOR_ID, 2, options.vendorId ?? 0x1b36);
    config.define(PCI_DEVICE_ID, 2, options.deviceId ?? 0x000c);
    config.define(PCI_COMMAND, 2, 0, { rw: PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY | PCI_COMMAND_PARITY | PCI_COMMAND_SERR });
    config.define(PCI_STATUS, 2, 0, { w1c: 0xf900 });
    config.define(PCI_CLASS_REVISION, 4, (CLASS_BRIDGE_PCI << 8) >>> 0);
    config.define(PCI_CACHE_LINE_SIZE, 1, 0, { rw: 0xff });
    config.define(PCI_HEADER_TYPE, 1, PCI_HEADER_TYPE_BRIDGE);
    for (const register of [PCI_PRIMARY_BUS, PCI_SECONDARY_BUS, PCI_SUBORDINATE_BUS]) config.define(register, 1, 0, { rw: 0xff });
    for (const register of [PCI_MEMORY_BASE, PCI_MEMORY_LIMIT]) config.define(register, 2, 0, { rw: PCI_MEMORY_RANGE_MASK });
    for (const register of [PCI_PREF_MEMORY_BASE, PCI_PREF_MEMORY_LIMIT]) config.define(register, 2, PCI_PREF_RANGE_TYPE_64, { rw: PCI_MEMORY_RANGE_MASK });
    for (const register of [PCI_PREF_BASE_UPPER32, PCI_PREF_LIMIT_UPPER32]) config.define(register, 4, 0, { rw: 0xffff_ffff });
    config.define(PCI_INTERRUPT_LINE, 1, 0, { rw: 0xff });
    config.define(PCI_BRIDGE_CONTROL, 2, 0, { rw: PCI_BRIDGE_CTL_BUS_RESET });
    this.express = addExpress(config, options.type, { flr: false, e2eTlpPrefix: options.e2eTlpPrefix });
    config.define(this.express + PCI_EXP_LNKCAP, 4, (this.portNumber << 24) >>> 0);
    assert(options.acs === undefined || options.type !== PCI_EXP_TYPE_UPSTREAM, `${options.name}: an upstream port has no ACS`);
    this.acs = options.acs === undefined ? 0 : addAcs(config, options.acs, options.egressPorts);
    config.seal();
    this.attachHooks();
  }

  /** Requests from below go on upstream. */
  get busMaster(): boolean {
    return (this.config.get(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) !== 0;
  }

  get takesPrefixes(): boolean {
    return (this.config.get(this.express + PCI_EXP_DEVCAP2, 4) & PCI_EXP_DEVCAP2_EE_PREFIX) !== 0;
  }

  get subordinate(): number {
    return this.config.get(PCI_SUBORDINATE_BUS, 1);
  }

  /** Type 1 configuration requests for `bus` go down here. */
  routes(bus: number): boolean {
    const first = this.secondary.number;
    return first !== 0 && bus >= first && bus <= this.subordinate;
  }

  /** PCI_ACS_* services that software enabled. */
  get acsEnabled(): number {
    return this.acs === 0 ? 0 : this.config.get(this.acs + PCI_ACS_CTRL, 2);
  }

  /** The egress control vector stops requests to the port with that number. */
  egressStops(portNumber: number): boolean {
    return portNumber < 32 && (this.config.get(this.acs + PCI_ACS_EGRESS_CTL_V, 4) & (1 << portNumber)) !== 0;
  }

  /** Memory requests for all of [start, end) go down here. */
  forwardsMemory(start: number, end: number): boolean {
    const { config } = this;
    if ((config.get(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) === 0) return false;
    const base = (config.get(PCI_MEMORY_BASE, 2) & PCI_MEMORY_RANGE_MASK) * 0x1_0000;
    const limit = (config.get(PCI_MEMORY_LIMIT, 2) & PCI_MEMORY_RANGE_MASK) * 0x1_0000 + 0x10_0000;
    if (start >= base && end <= limit) return true;
    const prefBase = config.get(PCI_PREF_BASE_UPPER32, 4) * 2 ** 32 + (config.get(PCI_PREF_MEMORY_BASE, 2) & PCI_MEMORY_RANGE_MASK) * 0x1_0000;
    const prefLimit = config.get(PCI_PREF_LIMIT_UPPER32, 4) * 2 ** 32 + (config.get(PCI_PREF_MEMORY_LIMIT, 2) & PCI_MEMORY_RANGE_MASK) * 0x1_0000 + 0x10_0000;
    return start >= prefBase && end <= prefLimit;
  }

  /** A reset from above: configuration is back at its initial values. */
  reset(): void {
    this.config.reset();
  }

  private attachHooks(): void {
    const { config } = this;
    const changed = (): void => this.onRoutingChange?.('tree');
    config.onWrite(PCI_COMMAND, 2, changed);
    for (const register of [PCI_PRIMARY_BUS, PCI_MEMORY_BASE, PCI_PREF_MEMORY_BASE, PCI_PREF_BASE_UPPER32, PCI_PREF_LIMIT_UPPER32]) config.onWrite(register, 4, changed);
    config.onWrite(PCI_BRIDGE_CONTROL, 2, (written, previous) => {
      if ((written & ~previous & PCI_BRIDGE_CTL_BUS_RESET) !== 0) this.onBusReset?.();
    });
    if (this.acs !== 0) {
      config.onWrite(this.acs + PCI_ACS_CTRL, 2, changed);
      config.onWrite(this.acs + PCI_ACS_EGRESS_CTL_V, 4, changed);
    }
  }
}
