/**
 * The fault event's handler (VT-d 4.1, sections 7.2 and 7.3; Linux: dmar_fault of drivers/iommu/intel/dmar.c): reads
 * and clears the fault recording registers, writes the log's lines, and publishes what devices did. Interrupt
 * context: it does not sleep.
 *
 * Linux stops reading records while its log is rate-limited; here every record is read and published, only the log
 * is limited.
 */
import { hexPage, pageOfWords } from '../../../sim/address.js';
import type { Channel } from '../../../sim/channel.js';
import type { Clock } from '../../../sim/clock.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { Trace } from '../../../sim/trace.js';
import type { Device } from '../../../host/device.js';
import type { InterruptController, IrqVector } from '../../../host/interrupts.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../../host/pci/dma-port.js';
import { formatBdf } from '../../../host/pci/spec/index.js';
import { FAULT_DMA_UNRECOV, type FaultReport } from '../../core/ops.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { FAULT_RECORD_BYTES, FRCD, FSTS_FRI_MASK, FSTS_FRI_SHIFT, FSTS_PFO, FSTS_PPF, REG } from '../spec/registers.js';
import { unmaskEvent } from './event-interrupt.js';
import { faultText, genericReason, isInterruptFault } from './fault-text.js';

/** Bit 7 was the page request overflow of earlier revisions; software still clears it. */
const FSTS_PRO = 0x80;
const FRCD_F = 0x8000_0000;

export interface FaultInterruptOptions {
  readonly name: string;
  readonly segment: number;
  readonly registers: Mmio;
  readonly capabilities: VtdCapabilities;
  readonly interrupts: InterruptController;
  readonly clock: Clock;
  readonly trace: Trace;
  readonly log: KernelLog;
  readonly faults: Channel<FaultReport>;
  readonly deviceOf: (sourceId: number) => Device | undefined;
}

export class FaultInterrupt {
  /** Records read since the start. */
  records = 0;
  private readonly options: FaultInterruptOptions;
  private readonly record = new Uint32Array(4);
  private vector: IrqVector | undefined;

  constructor(options: FaultInterruptOptions) {
    this.options = options;
  }

  /** Takes a vector and unmasks the event. ENOSPC without one. */
  enable(): void {
    const { name, interrupts, registers } = this.options;
    this.vector ??= interrupts.request(name, () => this.handle());
    unmaskEvent(registers, REG.FECTL, this.vector);
  }

  /** Also called once before the event is enabled, for faults that an earlier owner left. */
  handle(): void {
    const { registers, capabilities, log } = this.options;
    const status = registers.read(REG.FSTS, 4);
    if (status !== 0) log.limited('DMAR fault', 'err', `DMAR: DRHD: handling fault status reg ${status.toString(16)}`);
    // a unit that is gone reads as all ones: its records would never end
    if ((status & FSTS_PPF) === 0 || status === 0xffff_ffff) return;
    let index = ((status & FSTS_FRI_MASK) >>> FSTS_FRI_SHIFT) % capabilities.faultRecords;
    for (;;) {
      const at = capabilities.faultRecordOffset + index * FAULT_RECORD_BYTES;
      const top = registers.read(at + 12, 4);
      if ((top & FRCD_F) === 0) break;
      this.record[3] = top;
      this.record[2] = registers.read(at + 8, 4);
      this.record[0] = registers.read(at, 8);
      this.record[1] = registers.high;
      registers.write(at + 12, 4, FRCD_F);
      this.report();
      index = (index + 1) % capabilities.faultRecords;
    }
    registers.write(REG.FSTS, 4, FSTS_PFO | FSTS_PPF | FSTS_PRO);
  }

  private report(): void {
    const { record, options } = this;
    const { clock, trace, log, faults } = options;
    this.records++;
    const reason = FRCD.f.FR.get(record);
    const sourceId = FRCD.f.SID.get(record);
    const read = FRCD.f.T1.get(record) === 1;
    const pasid = FRCD.f.PP.get(record) === 1 ? FRCD.f.PV.get(record) : NO_PASID;
    const page = pageOfWords(record[0]!, record[1]!);
    const text = faultText(reason);
    const who = `Request device [${formatBdf(options.segment, sourceId >>> 8, sourceId & 0xff)}]`;
    const why = `[fault reason 0x${reason.toString(16).padStart(2, '0')}] ${text}`;
    // no DMA: nobody's fault handler is told, as in Linux
    if (isInterruptFault(reason)) return log.limited('DMAR fault', 'err', `DMAR: [INTR-REMAP] ${who} fault index 0x${(record[1]! >>> 16).toString(16)} ${why}`);
    const kind = read ? 'DMA Read' : 'DMA Write';
    const pasidText = pasid === NO_PASID ? 'NO_PASID' : `PASID 0x${pasid.toString(16)}`;
    log.limited('DMAR fault', 'err', `DMAR: [${kind} ${pasidText}] ${who} fault addr ${hexPage(page)} ${why}`);
    const device = options.deviceOf(sourceId);
    if (device === undefined) return;
    const access = (read ? ACCESS_READ : ACCESS_WRITE) | (FRCD.f.EXE.get(record) === 1 ? ACCESS_EXECUTE : 0)
      | (FRCD.f.PRIV.get(record) === 1 ? ACCESS_PRIVILEGED : 0);
    faults.publish({
      timeNs: clock.now, correlation: trace.nextCorrelation(), device,
      fault: { type: FAULT_DMA_UNRECOV, reason: genericReason(reason), pasid, access, page, offset: 0, detail: `0x${reason.toString(16).padStart(2, '0')} ${text}` },
    });
  }
}
