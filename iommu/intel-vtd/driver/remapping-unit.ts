/**
 * One remapping unit as software drives it: its registers, tables and queues, and the order in which they are brought
 * up (Linux: map_iommu, intel_setup_irq_remapping, init_dmars, dmar_enable_qi, enable_drhd_fault_handling, iommu_enable_translation).
 */
import { Errno } from '../../../sim/errno.js';
import { hex } from '../../../sim/address.js';
import { sleep, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Channel } from '../../../sim/channel.js';
import type { Clock } from '../../../sim/clock.js';
import { read64, type Mmio } from '../../../sim/mmio.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Trace } from '../../../sim/trace.js';
import type { FrameSource } from '../../../host/frame-source.js';
import type { InterruptController } from '../../../host/interrupts.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { Timing } from '../../../host/timing.js';
import type { FaultReport, IommuCoreServices } from '../../core/ops.js';
import type { Drhd } from '../spec/dmar.js';
import { decodeCapabilities, type VtdCapabilities } from '../spec/capabilities.js';
import { GCMD_CFI, GCMD_IRE, GCMD_QIE, GCMD_SIRTP, GCMD_SRTP, GCMD_TE, IRTA, REG, RTADDR, TTM_LEGACY, TTM_SCALABLE, registerWindowBytes } from '../spec/registers.js';
import { ContextTable } from './context-table.js';
import { DomainIds } from './domain-ids.js';
import { GLOBAL, PASID_CACHE_GLOBAL } from './descriptor-batch.js';
import { FaultInterrupt } from './fault-interrupt.js';
import { InterruptTable, TABLE_SIZE_CODE } from './interrupt-table.js';
import { InvalidationQueue } from './invalidation-queue.js';
import { PageRequestQueue } from './page-request-queue.js';
import type { VtdDevice } from './vtd-device.js';

/** How long a GCMD bit may take to show in GSTS (DMAR_OPERATION_TIMEOUT; Linux panics then). */
const OPERATION_TIMEOUT_NS = 10_000_000_000;

export interface UnitServices {
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly trace: Trace;
  readonly timing: Timing;
  readonly log: KernelLog;
  readonly interrupts: InterruptController;
  readonly core: IommuCoreServices;
  readonly faults: Channel<FaultReport>;
  readonly mapRegisters: (address: number, sizeBytes: number) => Mmio;
  /** Scalable mode is used where the unit has it. */
  readonly scalable: boolean;
  /** The page request queue has 2^order pages. */
  readonly prqOrder: number;
  readonly defects?: ReadonlySet<string>;
}

export class RemappingUnit {
  /** `dmar0`, `dmar1`, … in the order of the table. */
  readonly name: string;
  readonly drhd: Drhd;
  readonly registers: Mmio;
  readonly capabilities: VtdCapabilities;
  /** Scalable mode is in use. */
  readonly scalable: boolean;
  /** AGAW code of the widest second-level table: 1 for 39 bits, 2 for 48, 3 for 57. */
  readonly addressWidth: number;
  readonly queue: InvalidationQueue;
  readonly contexts: ContextTable;
  readonly faultInterrupt: FaultInterrupt;
  readonly domainIds: DomainIds;
  /** Undefined when the unit takes no page requests. */
  pageRequests: PageRequestQueue | undefined;
  /** While interrupts are remapped. */
  interruptTable: InterruptTable | undefined;
  /** Functions behind the unit by requester id. */
  readonly devices: (VtdDevice | undefined)[] = [];
  started = false;
  private readonly services: UnitServices;
  private gcmd = 0;

  /**
   * Maps the registers and reads what the unit is. EINVAL: registers that read as all ones or zeros, or no queued
   * invalidation (the register-based interface is not driven). ENOMEM.
   */
  constructor(services: UnitServices, drhd: Drhd, index: number, hostAddressWidth: number) {
    this.services = services;
    this.drhd = drhd;
    this.name = `dmar${index}`;
    const mapped = 4096 * 2 ** drhd.sizeOrder;
    let registers = services.mapRegisters(drhd.base, mapped);
    const cap = read64(registers, REG.CAP), ecap = read64(registers, REG.ECAP);
    const version = registers.read(REG.VER, 4);
    const all = 0xffff_ffff_ffff_ffffn;
    if ((cap === all && ecap === all) || (cap === 0n && ecap === 0n)) {
      throw new Errno('EINVAL', `DMAR: DRHD at ${hex(drhd.base)} returns all ${cap === 0n ? 'zeros' : 'ones'}: no remapping unit there`);
    }
    const capabilities = decodeCapabilities(cap, ecap, { version, hostAddressWidth });
    if (!capabilities.queuedInvalidation) throw new Errno('EINVAL', `${this.name} has no queued invalidation`);
    const needed = registerWindowBytes(capabilities);
    if (needed > mapped) registers = services.mapRegisters(drhd.base, needed);
    this.registers = registers;
    this.capabilities = capabilities;
    this.scalable = services.scalable && capabilities.scalable;
    this.addressWidth = widestTable(capabilities);
    // the functions that a command could switch on already are kept in the shadow of GCMD
    const status = registers.read(REG.GSTS, 4);
    this.gcmd = status & (GCMD_TE | GCMD_QIE | GCMD_IRE | GCMD_CFI);
    const { memory, frames, clock, scheduler, trace, timing, log } = services;
    this.queue = new InvalidationQueue({
      name: this.name, memory, frames, clock, scheduler, registers, capabilities, pollNs: timing.options.pollNs, log, trace,
      devicePresent: (sourceId) => this.devices[sourceId]?.device.present ?? false,
    });
    this.contexts = new ContextTable({ memory, frames, owner: `${this.name} contexts`, scalable: this.scalable });
    this.domainIds = new DomainIds(this.name, capabilities.domainIdBits);
    this.faultInterrupt = new FaultInterrupt({
      name: this.name, segment: drhd.segment, registers, capabilities, interrupts: services.interrupts, clock, trace, log, faults: services.faults,
      deviceOf: (sourceId) => this.devices[sourceId]?.device,
    });
    const hexWord = (value: bigint): string => value.toString(16);
    log.log('info', `DMAR: ${this.name}: reg_base_addr ${drhd.base.toString(16)} ver ${version >>> 4}:${version & 0xf} cap ${hexWord(cap)} ecap ${hexWord(ecap)}`);
  }

  /** Shared virtual addressing can work here: PASIDs and first-level tables. */
  get svmCapable(): boolean {
    return this.pasids && this.capabilities.firstLevel;
  }

  /** Requests with PASID are translated. */
  get pasids(): boolean {
    return this.scalable && this.capabilities.pasidBits > 0;
  }

  /** An earlier owner left interrupt remapping on, or this one switched it on. */
  get remapsInterrupts(): boolean {
    return (this.gcmd & GCMD_IRE) !== 0;
  }

  /** Faults left over are logged, translation is switched off, and the invalidation queue runs. */
  *enableQueue(): Steps {
    const { registers, queue } = this;
    this.faultInterrupt.handle();
    if ((registers.read(REG.GSTS, 4) & GCMD_TE) !== 0) yield* this.command(GCMD_TE, false);
    if ((this.gcmd & GCMD_QIE) !== 0) yield* this.command(GCMD_QIE, false);
    queue.reset();
    registers.write(REG.IQT, 4, 0);
    registers.write(REG.IQA, 8, queue.iqaLo, queue.iqaHi);
    yield* this.command(GCMD_QIE, true);
    queue.startPosting();
    this.services.log.log('info', `DMAR: ${this.name}: Using Queued invalidation`);
  }

  /** Makes the interrupt remapping table and points hardware at it; its cache is empty afterwards. ENOMEM, ETIMEDOUT. */
  *setInterruptTable(): Steps {
    const { registers, queue, services: { memory, frames, trace, defects } } = this;
    this.interruptTable ??= new InterruptTable({ name: this.name, memory, frames, queue, trace, ...(defects === undefined ? {} : { defects }) });
    const irta = IRTA.encode({ S: TABLE_SIZE_CODE, IRTA: this.interruptTable.base });
    registers.write(REG.IRTA, 8, irta[0]!, irta[1]!);
    registers.write(REG.GCMD, 4, (this.gcmd | GCMD_SIRTP) >>> 0);
    yield* this.waitStatus(GCMD_SIRTP, true);
    if (!this.capabilities.enhancedSetInterruptTable) yield* queue.submitSync(queue.batch().interruptEntry());
  }

  /** Messages of devices are remapped, and those in compatibility format blocked. ETIMEDOUT. */
  *enableInterruptRemapping(): Steps {
    yield* this.command(GCMD_IRE, true);
    if ((this.registers.read(REG.GSTS, 4) & GCMD_CFI) !== 0) yield* this.command(GCMD_CFI, false);
  }

  /** Messages pass as they are, when everything that was posted is done. The table stays, as the queue does. */
  *disableInterruptRemapping(): Steps {
    const { queue } = this;
    yield* queue.flushPosted();
    if (!this.capabilities.enhancedSetInterruptTable) yield* queue.submitSync(queue.batch().interruptEntry());
    yield* this.command(GCMD_IRE, false);
  }

  /** Points hardware at the root table and empties its caches, which it does itself with ESRTPS. */
  *setRootTable(): Steps {
    const { registers, queue, contexts } = this;
    const rtaddr = RTADDR.encode({ TTM: this.scalable ? TTM_SCALABLE : TTM_LEGACY, RTA: contexts.root });
    registers.write(REG.RTADDR, 8, rtaddr[0]!, rtaddr[1]!);
    registers.write(REG.GCMD, 4, (this.gcmd | GCMD_SRTP) >>> 0);
    yield* this.waitStatus(GCMD_SRTP, true);
    if (this.capabilities.enhancedSetRootTable) return;
    yield* queue.submitSync(queue.batch().contextCache(GLOBAL, 0, 0));
    if (this.scalable) yield* queue.submitSync(queue.batch().pasidCache(PASID_CACHE_GLOBAL, 0, 0));
    yield* queue.submitSync(queue.batch().iotlb(GLOBAL, 0));
  }

  /** Page requests first, then faults. ENOSPC without vectors, ENOMEM. */
  enableInterrupts(): void {
    const { memory, frames, clock, scheduler, timing, interrupts, trace, log, faults, core, prqOrder, defects } = this.services;
    if (this.scalable && this.capabilities.pageRequests) {
      this.pageRequests = new PageRequestQueue({
        name: this.name, memory, frames, clock, scheduler, timing, registers: this.registers, interrupts, queue: this.queue,
        iopf: core.createIopfQueue(`${this.name}-iopfq`), faults, trace, log, sourceOf: (sourceId) => this.devices[sourceId],
        order: prqOrder, fiveLevel: this.capabilities.fiveLevel, ...(defects === undefined ? {} : { defects }),
      });
      this.pageRequests.enable();
    }
    this.faultInterrupt.enable();
  }

  *enableTranslation(): Steps {
    yield* this.command(GCMD_TE, true);
    this.started = true;
  }

  /** At power-off: translation ends, the queue stays. */
  *disableTranslation(): Steps {
    yield* this.command(GCMD_TE, false);
    this.started = false;
  }

  private *command(bit: number, on: boolean): Steps {
    this.gcmd = on ? this.gcmd | bit : this.gcmd & ~bit;
    this.registers.write(REG.GCMD, 4, this.gcmd >>> 0);
    yield* this.waitStatus(bit, on);
  }

  private *waitStatus(bit: number, on: boolean): Steps {
    const { clock, timing, log } = this.services;
    const deadline = clock.now + OPERATION_TIMEOUT_NS;
    let interval = Math.max(timing.options.pollNs, 1);
    while (((this.registers.read(REG.GSTS, 4) & bit) !== 0) !== on) {
      if (clock.now >= deadline) {
        log.log('err', 'DMAR hardware is malfunctioning');
        throw new Errno('ETIMEDOUT', `${this.name} does not show ${hex(bit >>> 0)} ${on ? 'set' : 'clear'} in GSTS after 10 s`);
      }
      yield* sleep(clock, interval);
      interval = Math.min(interval * 2, 10_000_000);
    }
  }
}

/** Widest second-level table of the unit, at most 57 bits; a unit without any walks first-level tables of 48 bits. */
function widestTable(capabilities: VtdCapabilities): number {
  for (let width = 3; width >= 1; width--) if ((capabilities.adjustedWidths & (1 << width)) !== 0) return width;
  return 2;
}
