/**
 * A device of tests, after the sample server of libvfio-user as its client sees it: BAR0 is 8 bytes, a time in seconds
 * at which the pin interrupts and 4 KiB go through the client's memory, directly into its second region and by messages
 * through its first; BAR1 is 0x3000 bytes of memory; both migrate, with a first copy of BAR1 while the device runs.
 */
import { Errno } from '../../sim/errno.js';
import type { Alarm } from '../../sim/clock.js';
import type { Mmio } from '../../sim/mmio.js';
import { sleep, type Scheduler, type Steps } from '../../sim/task.js';
import type { EventFd } from '../../host/eventfd.js';
import {
  IRQ_INFO_AUTOMASKED, IRQ_INFO_EVENTFD, IRQ_INFO_MASKABLE, REGION_INFO_READ, REGION_INFO_WRITE, REGION_STRIDE, type VfioDeviceInfo, type VfioDeviceOps,
  type VfioFeatureRequest, type VfioIrqInfo, type VfioIrqSet, type VfioRegionInfo,
} from '../../vfio/device.js';
import { VfioMigration, type MigrationVendor } from '../../vfio/migration/migration.js';
import type { ClientMemory } from '../../vfio/user/index.js';

export const BAR1_BYTES = 0x3000;
const CONFIG_BYTES = 256;
const COUNTS = [1, 0, 4, 1, 1];
const PIECE_BYTES = 1024;
/** What the transfer moves, piece by piece. */
const PATTERN = [0x41, 0x42, 0x43, 0x44];
/** VFIO_DEVICE_STATE_STOP and STOP_COPY: the timer stands. */
const STOPPED = [1, 3];

export class SampleDevice implements VfioDeviceOps, MigrationVendor {
  readonly name = 'sample';
  readonly flags = 1 | 4;
  readonly maxStateBytes = 64 * 1024;
  readonly bar0 = new Uint8Array(8);
  readonly bar1 = new Uint8Array(BAR1_BYTES);
  readonly config = new Uint8Array(CONFIG_BYTES);
  readonly triggers = new Map<string, EventFd>();
  readonly migration: VfioMigration;
  memory: ClientMemory | undefined;
  /** What the transfer behind the interrupt met. */
  moved: (Errno | undefined | 'done')[] = [];
  resets = 0;
  opens = 0;
  /** Time that a reset takes. */
  resetNs = 0;
  /** Makes the next access of BAR0 fail with a bug. */
  broken = false;
  private readonly scheduler: Scheduler;
  private readonly epochSeconds: (() => number) | undefined;
  private timer: Alarm | undefined;
  /** Its timer starts again when it runs. */
  private loaded = false;

  /** @param epochSeconds the time that BAR0 is about; without it every time has come already */
  constructor(scheduler: Scheduler, epochSeconds?: () => number) {
    this.scheduler = scheduler;
    this.epochSeconds = epochSeconds;
    this.migration = new VfioMigration({ device: this.name, vendor: this, scheduler });
    this.config.set([0xad, 0xde, 0xef, 0xbe]);
    this.config.set([0xfe, 0xca, 0xbe, 0xba], 0x2c);
  }

  connectDma(memory: ClientMemory): void {
    this.memory = memory;
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps may sleep
  *open(): Steps {
    this.opens++;
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps may sleep
  *close(): Steps {
    this.opens--;
  }

  info(): VfioDeviceInfo {
    return { flags: 3, regions: 9, irqs: 5 };
  }

  regionInfo(index: number): VfioRegionInfo {
    const sizeBytes = index === 0 ? 8 : index === 1 ? BAR1_BYTES : index === 7 ? CONFIG_BYTES : 0;
    if (index === 8) throw new Errno('EINVAL', 'no VGA');
    return { flags: index === 2 ? 0 : REGION_INFO_READ | REGION_INFO_WRITE, sizeBytes };
  }

  irqInfo(index: number): VfioIrqInfo {
    if (index === 3) throw new Errno('EINVAL', 'no error reports');
    return { flags: IRQ_INFO_EVENTFD | (index === 0 ? IRQ_INFO_MASKABLE | IRQ_INFO_AUTOMASKED : 0), count: COUNTS[index]! };
  }

  read(offset: number, target: Uint8Array): number {
    const at = offset % REGION_STRIDE;
    if (this.broken) throw new TypeError('a bug');
    target.set(this.bytes(offset).subarray(at, at + target.length));
    return target.length;
  }

  write(offset: number, source: Uint8Array): number {
    const region = Math.floor(offset / REGION_STRIDE);
    if (region === 7) throw new Errno('EIO', 'configuration space is broken');
    this.bytes(offset).set(source, offset % REGION_STRIDE);
    if (region === 0) this.arm();
    return source.length;
  }

  mmap(): Mmio {
    throw new Errno('EINVAL', 'not mappable');
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps may sleep
  *setIrqs({ index, start, count, action, data }: VfioIrqSet): Steps {
    if (index === 2 && action !== 'trigger') throw new Errno('ENOTTY', 'no masks');
    if (data.kind === 'none' && count === 0) {
      for (const key of this.triggers.keys()) if (key.startsWith(`${index}.`)) this.triggers.delete(key);
      return;
    }
    for (let i = 0; i < count; i++) {
      const key = `${index}.${start + i}.${action}`;
      const fd = data.kind === 'eventfd' ? data.fds[i] : undefined;
      if (fd !== undefined) this.triggers.set(key, fd);
      else if (data.kind === 'eventfd') this.triggers.delete(key);
      else if (data.kind === 'none' || data.values[i] === true) this.triggers.get(key)?.signal();
    }
  }

  *reset(): Steps {
    if (this.resetNs > 0) yield* sleep(this.scheduler.clock, this.resetNs);
    this.resets++;
    this.bar0.fill(0);
    yield* this.migration.reset();
  }

  request(): void {}

  *feature(request: VfioFeatureRequest): Steps<number> {
    const answer = yield* this.migration.feature(request);
    if (answer === undefined) throw new Errno('ENOTTY', `no feature ${request.feature}`);
    return answer;
  }

  // oxlint-disable-next-line require-yield -- MigrationVendor may sleep
  *arc(_from: number, to: number): Steps {
    if (STOPPED.includes(to)) this.timer?.cancel();
    if (to !== 2 || !this.loaded) return;
    this.loaded = false;
    if (new DataView(this.bar0.buffer).getBigUint64(0, true) !== 0n) this.arm();
  }

  // oxlint-disable-next-line require-yield -- MigrationVendor may sleep
  *save(part: 'initial' | 'more' | 'final'): Steps<Uint8Array> {
    if (part === 'more') return new Uint8Array(0);
    return part === 'initial' ? this.bar1.slice() : new Uint8Array([...this.bar1, ...this.bar0]);
  }

  // oxlint-disable-next-line require-yield -- MigrationVendor may sleep
  *load(state: Uint8Array): Steps {
    if (state.length !== BAR1_BYTES + 8) throw new Errno('EINVAL', `a state of ${state.length} bytes`);
    this.bar1.set(state.subarray(0, BAR1_BYTES));
    this.bar0.set(state.subarray(BAR1_BYTES));
    this.loaded = true;
  }

  dataSizeBytes(): number {
    return BAR1_BYTES + 8;
  }

  private bytes(offset: number): Uint8Array {
    return { 0: this.bar0, 1: this.bar1, 7: this.config }[Math.floor(offset / REGION_STRIDE)] ?? new Uint8Array(0);
  }

  private arm(): void {
    const { clock } = this.scheduler;
    const seconds = Number(new DataView(this.bar0.buffer).getBigUint64(0, true));
    const delayNs = this.epochSeconds === undefined ? 0 : Math.max(0, seconds - this.epochSeconds()) * 1e9;
    this.timer?.cancel();
    this.timer = clock.after(delayNs, () => {
      this.triggers.get('0.0.trigger')?.signal();
      this.writeDirectly();
      this.moveByMessages(0);
    });
  }

  private writeDirectly(): void {
    const { memory } = this;
    const region = memory?.regions[1];
    if (memory === undefined || region?.window === undefined) return;
    for (const [i, value] of PATTERN.entries()) {
      const address = region.address + i * PIECE_BYTES, bytes = new Uint8Array(PIECE_BYTES).fill(value);
      const back = new Uint8Array(PIECE_BYTES);
      const moved = memory.memory.write(address, bytes, 0, PIECE_BYTES) && memory.memory.read(address, back, 0, PIECE_BYTES) && back.every((byte) => byte === value);
      if (!moved) this.moved.push(new Errno('EFAULT', `direct DMA to ${address}`));
    }
  }

  /** Four messages to write, then four to read, each after the answer to the one before. */
  private moveByMessages(step: number): void {
    const { memory } = this;
    if (memory === undefined || memory.regions.length === 0) return;
    const piece = step % PATTERN.length, value = PATTERN[piece]!, reading = step >= PATTERN.length;
    const address = memory.regions[0]!.address + piece * PIECE_BYTES;
    const bytes = new Uint8Array(PIECE_BYTES).fill(reading ? 0 : value);
    const next = (error: Errno | undefined): void => {
      const wrong = error === undefined && reading && !bytes.every((byte) => byte === value);
      this.moved.push(wrong ? new Errno('EIO', `what was read from ${address} was never written`) : error);
      if (step < 2 * PATTERN.length - 1) this.moveByMessages(step + 1);
      else this.moved.push('done');
    };
    if (reading) memory.readByMessages(address, bytes, next);
    else memory.writeByMessages(address, bytes, next);
  }
}
