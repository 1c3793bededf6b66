/**
 * A driver of the accelerator in user space (as DPDK's, dmadev idxd_pci): a process that holds the device through VFIO
 * sets it up by its registers and submits through its mapped portal. It polls. Works on a whole accelerator, which it
 * configures with one dedicated queue, and on a mediated one, whose configuration is given.
 */
import { read64, write64, type Mmio } from '../../sim/mmio.js';
import { sleep, type Steps } from '../../sim/task.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import { PCI_BAR0_REGION, PCI_BAR2_REGION, PCI_CONFIG_REGION } from '../../vfio/device.js';
import { COMPLETION_SIZE, FLAG, OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { decodeCompletion, encodeDescriptor, type CompletionRecord, type DescriptorFields } from '../../devices/dsa/spec/encode.js';
import {
  DSA_CMD, GENCAP, GRPCFG_TABLE, GRPENGCFG_OFFSET, GRPFLGCFG, GRPFLGCFG_OFFSET, PORTAL_LIMITED, PORTAL_SIZE, STATE_ENABLED, WQCFG, WQCFG_TABLE, WQ_MODE_DEDICATED,
} from '../../devices/dsa/spec/registers.js';
import type { PassthroughWorld, VfioUser } from './passthrough-world.js';

const PCI_COMMAND = 4, MEMORY_AND_MASTER = 6;
const POLL_NS = 500;

export class UserDsa {
  readonly device: DeviceHandle;
  readonly user: VfioUser;
  /** BAR 0: mapped where VFIO lets, else by read and write. */
  private readonly registers: Pick<Mmio, 'read' | 'write' | 'high'>;
  private readonly world: PassthroughWorld;
  private portal!: Mmio;

  constructor(world: PassthroughWorld, user: VfioUser, device: DeviceHandle, options: { whole: boolean }) {
    this.world = world;
    this.user = user;
    this.device = device;
    this.setMaster(true);
    this.registers = options.whole ? device.mmap(PCI_BAR0_REGION, 0, 0x1_0000) : trapped(device);
  }

  setMaster(on: boolean): void {
    this.device.writeValue(PCI_CONFIG_REGION, PCI_COMMAND, 2, on ? MEMORY_AND_MASTER : MEMORY_AND_MASTER & ~4);
  }

  read(offset: number): number {
    return this.registers.read(offset, 4);
  }

  write(offset: number, value: number): void {
    this.registers.write(offset, 4, value);
  }

  get state(): number {
    return this.read(0x90) & 3;
  }

  /** Runs a command and polls for its end; CMDSTS. */
  *command(command: number, operand = 0): Steps<number> {
    this.write(0xa0, ((command << 20) | operand) >>> 0);
    while (this.read(0xa8) >= 0x8000_0000) yield* sleep(this.world.host.clock, POLL_NS);
    return this.read(0xa8);
  }

  private *must(command: number, operand = 0): Steps {
    const status = (yield* this.command(command, operand)) & 0xff;
    if (status !== 0) throw new Error(`command ${command} ended with ${status.toString(16)}`);
  }

  /** Brings device and queue 0 up. @param pasid what the queue's requests carry; undefined: none, so addresses are IOVAs */
  *start(pasid?: number): Steps {
    const configurable = GENCAP.f.ConfigEn.get([this.registers.read(0x10, 8), this.registers.high]) === 1;
    if (configurable) this.configure(pasid);
    if (this.state !== STATE_ENABLED) yield* this.must(DSA_CMD.ENABLE_DEVICE);
    yield* this.must(DSA_CMD.ENABLE_WQ, 0);
    const page = configurable ? 0 : PORTAL_LIMITED;
    this.portal = this.device.mmap(PCI_BAR2_REGION, page * PORTAL_SIZE, PORTAL_SIZE);
  }

  private configure(pasid: number | undefined): void {
    const words = WQCFG.encode({
      WqSize: 16, Mode: WQ_MODE_DEDICATED, Bof: 1, Priority: 10, PasidEn: pasid === undefined ? 0 : 1, Pasid: pasid ?? 0, MaxXferShift: 20, MaxBatchShift: 5,
    });
    words.forEach((word, i) => this.write(WQCFG_TABLE + i * 4, word));
    write64(this.registers as Mmio, GRPCFG_TABLE, 1n);
    write64(this.registers as Mmio, GRPCFG_TABLE + GRPENGCFG_OFFSET, 1n);
    const flags = GRPFLGCFG.encode({ TcA: 1, TcB: 1, RdbufsAllowed: 8 });
    this.registers.write(GRPCFG_TABLE + GRPFLGCFG_OFFSET, 8, flags[0]!, flags[1]!);
  }

  /** Groups as the hardware has them, for looking. */
  get groupQueues(): bigint {
    return read64(this.registers as Mmio, GRPCFG_TABLE);
  }

  /** One store of 64 bytes. @param record where the device is to write completion, as the device sees it */
  submit(fields: DescriptorFields, record: number): void {
    this.portal.write64(0, encodeDescriptor({ ...fields, flags: (fields.flags ?? 0), completion: record }));
  }

  /** Polls a record in the process's memory. */
  *wait(record: number): Steps<CompletionRecord> {
    const bytes = new Uint8Array(COMPLETION_SIZE);
    for (;;) {
      yield* this.user.process.mm.read(record, bytes);
      if (bytes[0] !== 0) return decodeCompletion(bytes);
      yield* sleep(this.world.host.clock, POLL_NS);
    }
  }

  /** A copy of a queue without the process's addresses. @param record where the device writes completion, and where that is in the process */
  *copyIova(source: number, destination: number, size: number, record: { readonly iova: number; readonly address: number }): Steps<CompletionRecord> {
    yield* this.user.process.mm.fill(record.address, 0, COMPLETION_SIZE);
    this.submit({ opcode: OPCODE.MEMMOVE, source, destination, size }, record.iova);
    return yield* this.wait(record.address);
  }

  /** A copy that blocks on faults, to its end. */
  *copy(source: number, destination: number, size: number, record: number): Steps<CompletionRecord> {
    yield* this.user.process.mm.fill(record, 0, COMPLETION_SIZE);
    this.submit({ opcode: OPCODE.MEMMOVE, source, destination, size, flags: FLAG.BOF }, record);
    return yield* this.wait(record);
  }
}

/** Registers by pread and pwrite. */
function trapped(device: DeviceHandle): Pick<Mmio, 'read' | 'write' | 'high'> {
  let high = 0;
  return {
    get high() { return high; },
    read(offset, size) {
      const view = new DataView(device.read(PCI_BAR0_REGION, offset, size).slice().buffer);
      high = size === 8 ? view.getUint32(4, true) : 0;
      return view.getUint32(0, true);
    },
    write(offset, size, lo, hi = 0) {
      const view = new DataView(new ArrayBuffer(8));
      view.setUint32(0, lo, true);
      view.setUint32(4, hi, true);
      device.write(PCI_BAR0_REGION, offset, new Uint8Array(view.buffer, 0, size));
    },
  };
}
