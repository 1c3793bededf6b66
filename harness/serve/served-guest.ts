/**
 * What an external guest gets from us: one PCI function for each of its devices, one more that carries the IOMMU's
 * registers, and an ACPI table that says where they are. Memory is what the guest's virtual machine monitor announces
 * on the first connection (the carrier's, if there is one): all DMA goes there, through the IOMMU. Every other
 * connection announces the same memory again; it is not opened a second time.
 */
import type { InterruptSink } from '../../host/interrupts.js';
import type { FunctionPort } from '../../host/pci/hardware/function-port.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { registerCarrier } from '../../devices/register-carrier/hardware/register-carrier.js';
import { CARRIER_BAR_ADDRESS } from '../../devices/register-carrier/spec/identity.js';
import { encodeDmar, SCOPE_ENDPOINT } from '../../iommu/intel-vtd/spec/dmar.js';
import type { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import type { Clock } from '../../sim/clock.js';
import type { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import { ClientMemory } from '../../vfio/user/client-memory.js';
import { MessagePort } from '../../vfio/user/message-port.js';
import { PciFunctionOps } from '../../vfio/user/pci-function-ops.js';
import type { ServedDevice } from '../../vfio/user/session.js';
import { servedCheckers } from '../checkers/index.js';
import type { CheckerSet } from '../checkers/invariant.js';
import { composeServed, machineOf, type FailingClock, type ServedHardware } from '../compose/served.js';
import type { Settings } from '../compose/settings.js';
import { CARRIER_NAME, CARRIER_SLOT } from '../topology/check-external.js';
import type { ExternalTopology, GuestTopology } from '../topology/schema.js';

/** One function on its socket. */
export interface ServedFunction {
  readonly name: string;
  /** `03.0`, as QEMU's addr= takes it. */
  readonly slot: string;
  readonly function: PciFunction;
  readonly device: ServedDevice;
  /** Its connection brings the guest's memory. */
  readonly bringsMemory: boolean;
}

export type ServedSettings = Omit<Settings, 'scope' | 'external' | 'recorder' | 'unitRegisters'>;

export class ServedGuest {
  readonly name: string;
  readonly topology: ExternalTopology;
  readonly memoryBytes: number;
  readonly vcpus: number;
  readonly hardware: ServedHardware;
  /** In the order in which a client has to connect: who brings the memory comes first. */
  readonly functions: readonly ServedFunction[];
  readonly memory = new ClientMemory();
  /** Watch functions and fabric. */
  readonly checkers: CheckerSet;
  /** Interrupts of the IOMMU that the client refused to deliver. */
  interruptsLost = 0;

  constructor(guest: GuestTopology, settings: ServedSettings, clock: FailingClock) {
    const external = guest.external!;
    this.name = guest.name;
    this.topology = external;
    this.memoryBytes = guest.memory;
    this.vcpus = guest.vcpus;
    const topology = machineOf(settings.topology, guest);
    // an IOMMU's walks cannot wait for answers; plain addresses of a client can be asked for
    const byMessages = external.iommu === undefined ? { wrapPort: (port: FunctionPort, at: Clock) => new MessagePort(port, this.memory, at) } : {};
    this.hardware = composeServed({ ...settings, ...byMessages, topology, scope: guest.name, inject: external.inject }, { clock, memory: this.memory.memory, interrupts: this.interrupts() });
    this.checkers = servedCheckers(this.trace, this.hardware.devices.models.map((model) => model.function));
    const devices = this.hardware.devices.models.map(({ name, function: fn }, i) => this.serve(name, external.devices[i]!.bdf.device, fn, this.unit === undefined && i === 0));
    this.functions = this.unit === undefined ? devices : [this.carry(this.unit), ...devices];
  }

  get unit(): VtdUnit | undefined {
    return this.hardware.unit;
  }

  get scheduler(): Scheduler {
    return this.hardware.scheduler;
  }

  get trace(): Trace {
    return this.hardware.trace;
  }

  /** Why the IOMMU finds no tables and the devices move nothing, although a client is there; undefined when it brought its memory, or no IOMMU needs it at once. */
  get lackingMemory(): string | undefined {
    const { regions } = this.memory;
    if (this.unit === undefined || regions.length === 0) return undefined;
    // beside its memory a monitor announces small regions of other kinds
    const main = regions.reduce((largest, region) => (region.sizeBytes > largest.sizeBytes ? region : largest));
    return main.window !== undefined ? undefined : `${this.name} passed no descriptor for its memory, where the IOMMU's tables are: start QEMU with memory-backend-memfd,share=on`;
  }

  /** The ACPI table that tells the guest of the IOMMU; undefined without one. Only our devices are in its scope: what the monitor emulates does not pass our IOMMU. */
  table(): { readonly signature: string; readonly bytes: Uint8Array } | undefined {
    const { iommu, devices } = this.topology;
    if (iommu === undefined || this.unit === undefined) return undefined;
    const scopes = devices.map(({ bdf }) => ({ type: SCOPE_ENDPOINT, enumerationId: 0, startBus: bdf.bus, path: [{ device: bdf.device, function: bdf.function }] }));
    const sizeOrder = Math.ceil(Math.log2(this.unit.sizeBytes / 4096));
    const bytes = encodeDmar({ hostAddressWidth: iommu.haw, flags: 0, structures: [{ kind: 'DRHD', includeAll: false, segment: 0, base: CARRIER_BAR_ADDRESS, sizeOrder, scopes }] });
    return { signature: 'DMAR', bytes };
  }

  private serve(name: string, slot: number, fn: PciFunction, bringsMemory: boolean): ServedFunction {
    const device: ServedDevice = { ops: new PciFunctionOps(fn), memory: bringsMemory ? this.memory : new ClientMemory() };
    return { name, slot: `${slot.toString(16).padStart(2, '0')}.0`, function: fn, device, bringsMemory };
  }

  private carry(unit: VtdUnit): ServedFunction {
    const carrier = registerCarrier({ name: CARRIER_NAME, registers: unit, sizeBytes: unit.sizeBytes, onReset: () => unit.reset() });
    this.hardware.tree.insert({ bdf: { segment: 0, bus: 0, device: CARRIER_SLOT, function: 0 } }, carrier);
    return this.serve(CARRIER_NAME, CARRIER_SLOT, carrier, true);
  }

  /** The unit's own interrupts are writes to the guest's interrupt window, which only its monitor can do. */
  private interrupts(): InterruptSink {
    return {
      message: (address, data) => {
        const bytes = new Uint8Array(4);
        new DataView(bytes.buffer).setUint32(0, data, true);
        this.memory.writeByMessages(address, bytes, (error) => {
          if (error !== undefined) this.interruptsLost++;
        });
      },
    };
  }
}
