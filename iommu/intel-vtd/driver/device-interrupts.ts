/**
 * Message-signalled interrupts for functions behind the units, and the switch in the units (Linux:
 * intel_prepare_irq_remapping, intel_enable_irq_remapping, intel_irq_remapping_alloc and _free): as long as
 * interrupts are remapped, a function is given a handle of its unit's interrupt remapping table instead of a vector, and
 * the entry lets nobody else through. MSI-X has an entry for each vector, MSI a block of entries that its data counts.
 * Without remapping, for whoever is behind no unit, and for interrupt lines it is the interrupt controller itself:
 * lines go to an I/O APIC, which is not modelled as a source of messages.
 */
import type { InterruptController, IrqVector } from '../../../host/interrupts.js';
import type { LineAction } from '../../../host/interrupt-lines.js';
import type { InterruptAllocator } from '../../../host/pci/kernel/msix.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import { isErrno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import { remappableAddress } from '../spec/interrupt-remapping.js';
import type { InterruptTable } from './interrupt-table.js';
import type { RemappingUnit } from './remapping-unit.js';

/** What stands behind a message that was given out. */
interface Grant {
  readonly table: InterruptTable;
  readonly index: number;
  /** None for what is left over in a block: its entry is never present. */
  vector: IrqVector | undefined;
  /** Undefined once it was given back: what is still under way is spurious. */
  handler: (() => void) | undefined;
}

export class DeviceInterrupts implements InterruptAllocator {
  /** Interrupts of devices are remapped now. */
  remapping = false;
  private readonly interrupts: InterruptController;
  private readonly log: KernelLog;
  private readonly tableOf: (device: PciDevice) => InterruptTable | undefined;
  private readonly grants = new Map<IrqVector, Grant>();

  /** @param tableOf the table of the unit that serves a function; undefined behind none */
  constructor(interrupts: InterruptController, log: KernelLog, tableOf: (device: PciDevice) => InterruptTable | undefined) {
    this.interrupts = interrupts;
    this.log = log;
    this.tableOf = tableOf;
  }

  /** Switches off what an earlier owner left on: its table is not ours. ETIMEDOUT. */
  *takeOver(units: readonly RemappingUnit[]): Steps {
    for (const unit of units) {
      if (!unit.remapsInterrupts) continue;
      this.log.log('info', `DMAR-IR: IRQ remapping was enabled on ${unit.name} but we are not in kdump mode`);
      yield* unit.disableInterruptRemapping();
    }
  }

  /**
   * Before any device is probed; the queues run. All units or none, as Linux: a device behind one that cannot would reach
   * every vector. Without memory for a table nothing is remapped. ETIMEDOUT.
   */
  *start(units: readonly RemappingUnit[]): Steps {
    if (!units.every(({ capabilities }) => capabilities.interruptRemapping)) return;
    for (const unit of units) {
      try {
        yield* unit.setInterruptTable();
      } catch (error) {
        if (!isErrno(error, 'ENOMEM')) throw error;
        this.log.log('err', `DMAR-IR: Failed to setup irq remapping for ${unit.name}`);
        return;
      }
    }
    for (const unit of units) yield* unit.enableInterruptRemapping();
    this.remapping = true;
    this.log.log('info', 'DMAR-IR: Enabled IRQ remapping in xapic mode');
  }

  /** At power-off, last of all. ETIMEDOUT. */
  *stop(units: readonly RemappingUnit[]): Steps {
    this.remapping = false;
    for (const unit of units) if (unit.remapsInterrupts) yield* unit.disableInterruptRemapping();
  }

  /** ENOSPC no vector, or no entry. */
  request(name: string, handler: () => void, device?: PciDevice): IrqVector {
    const table = this.tableFor(device);
    if (table === undefined) return this.interrupts.request(name, handler);
    return this.grant(table, table.alloc(1), device!, [name], [handler])[0]!;
  }

  /** Vectors need not be consecutive: their entries are. ENOSPC. */
  requestBlock(name: string, handlers: readonly (() => void)[], device?: PciDevice): IrqVector[] {
    const table = this.tableFor(device);
    if (table === undefined) return this.interrupts.requestBlock(name, handlers);
    const size = 2 ** Math.ceil(Math.log2(handlers.length));
    const names = Array.from({ length: size }, (_, i) => (handlers.length === 1 ? name : `${name}-${i}`));
    return this.grant(table, table.alloc(size), device!, names, handlers);
  }

  /** The entry is not present when this returns; entry and vector are somebody else's once hardware has forgotten it. */
  free(message: IrqVector): void {
    const grant = this.grants.get(message);
    if (grant === undefined) return this.interrupts.free(message);
    this.grants.delete(message);
    grant.handler = undefined;
    if (grant.vector === undefined) return grant.table.release(grant.index);
    grant.table.retire(grant.index, () => this.interrupts.free(grant.vector!));
  }

  requestLine(line: number, name: string, handler: () => boolean, shared: boolean): LineAction {
    return this.interrupts.requestLine(line, name, handler, shared);
  }

  freeLine(action: LineAction): void {
    this.interrupts.freeLine(action);
  }

  disableLine(line: number): void {
    this.interrupts.disableLine(line);
  }

  enableLine(line: number): void {
    this.interrupts.enableLine(line);
  }

  private tableFor(device: PciDevice | undefined): InterruptTable | undefined {
    return this.remapping && device !== undefined ? this.tableOf(device) : undefined;
  }

  /** A message for each name: all have the address of the first entry, `first`, and count in their data. */
  private grant(table: InterruptTable, first: number, device: PciDevice, names: readonly string[], handlers: readonly (() => void)[]): IrqVector[] {
    const grants = names.map((_, i): Grant => ({ table, index: first + i, vector: undefined, handler: handlers[i] }));
    try {
      for (const [i, grant] of grants.entries()) if (grant.handler !== undefined) grant.vector = this.interrupts.request(names[i]!, () => this.deliver(grant));
    } catch (error) {
      for (const { index, vector } of grants) {
        if (vector !== undefined) this.interrupts.free(vector);
        table.release(index);
      }
      throw error;
    }
    const address = remappableAddress(first);
    return grants.map((grant, i) => {
      if (grant.vector !== undefined) table.activate(grant.index, grant.vector, device.sourceId);
      const message = { vector: grant.vector?.vector ?? 0, address, data: i };
      this.grants.set(message, grant);
      return message;
    });
  }

  private deliver({ handler }: Grant): void {
    if (handler === undefined) this.interrupts.spurious++;
    else handler();
  }
}
