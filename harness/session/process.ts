/** A process that code drives: its system calls, loads and stores, each awaited. */
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { VfioClient } from '../../vfio/client/index.js';
import type { Program } from '../scenario/program.js';
import type { MachineSession } from '../session.js';
import { DeviceHandle } from './device-handle.js';
import { userAddress } from './numbers.js';

const PROT = { none: 0, r: 1, rw: 3, rx: 5, rwx: 7 } as const;
export type Protection = keyof typeof PROT;

export interface MmapOptions {
  /** Default `rw`. */
  readonly prot?: Protection;
  /** MAP_SHARED. */
  readonly shared?: boolean;
  /** MAP_HUGETLB. Default 4 KiB. */
  readonly pageSize?: '4KiB' | '2MiB' | '1GiB';
  /** Content of a file, in its place. */
  readonly content?: Uint8Array;
}

export class SimulatedProcess implements AsyncDisposable, Disposable {
  /** The program behind it, for what is not here. */
  readonly program: Program;
  private readonly session: MachineSession;
  private client: VfioClient | undefined;

  constructor(session: MachineSession, program: Program) {
    this.session = session;
    this.program = program;
  }

  get name(): string {
    return this.program.name;
  }

  get pid(): number {
    return this.program.process.pid;
  }

  /** Also when the guest that it ran in has ended. */
  get exited(): boolean {
    return this.program.exited || this.session.isGone(this.program.world.scheduler);
  }

  /**
   * Opens a user queue of a device, which binds the process's address space to it.
   * @param options.queue default: the device's first
   * @param options.as name of the handle and of its flow; default: the device
   * @throws Errno what the driver refuses: ENODEV, EBUSY, ENOTTY a device without user queues
   */
  async open(device: string, options: { queue?: string; as?: string } = {}): Promise<DeviceHandle> {
    const handle = await this.perform(`open ${device}`, this.program.open({ device, queue: options.queue, as: options.as }));
    return new DeviceHandle(this.session, this.program, options.as ?? device, handle);
  }

  /** A handle by name, also one that this process has from its parent. EBADF. */
  handle(name: string): DeviceHandle {
    const handle = this.program.opened.get(name);
    if (handle === undefined) throw new Errno('EBADF', `${this.name} has no open handle "${name}"`);
    return new DeviceHandle(this.session, this.program, name, handle);
  }

  /** Address of `size` bytes that nobody has touched. ENOMEM. */
  async malloc(size: number): Promise<bigint> {
    return BigInt(await this.perform('malloc', this.program.malloc.malloc(size)));
  }

  /** EINVAL when malloc did not return this address. */
  async free(address: bigint): Promise<void> {
    await this.perform('free', this.program.malloc.free(userAddress(address)));
  }

  /** EINVAL, ENOMEM. */
  async mmap(size: number, options: MmapOptions = {}): Promise<bigint> {
    const { mm } = this.program.process;
    const { prot = 'rw', shared = false, pageSize = '4KiB', content } = options;
    const common = { prot: PROT[prot], shared };
    const steps = content !== undefined
      ? mm.mmapFile(content.subarray(0, size), common)
      : mm.mmap(size, pageSize === '4KiB' ? common : { ...common, hugeLevel: pageSize === '2MiB' ? 1 : 2 });
    return BigInt(await this.perform('mmap', steps));
  }

  /** EINVAL. Unmapping what malloc returned is `free`. */
  async munmap(address: bigint, size: number): Promise<void> {
    await this.perform('munmap', this.program.process.mm.munmap(userAddress(address), size));
  }

  /** EINVAL, ENOMEM. */
  async mprotect(address: bigint, size: number, prot: Protection): Promise<void> {
    await this.perform('mprotect', this.program.process.mm.mprotect(userAddress(address), size, PROT[prot]));
  }

  /** The new address. EINVAL, EFAULT, ENOMEM. */
  async mremap(address: bigint, oldSize: number, newSize: number): Promise<bigint> {
    return BigInt(await this.perform('mremap', this.program.process.mm.mremap(userAddress(address), oldSize, newSize)));
  }

  /** MADV_DONTNEED: the pages go, the mapping stays. EINVAL, ENOMEM. */
  async madviseDontNeed(address: bigint, size: number): Promise<void> {
    await this.perform('madvise', this.program.process.mm.madviseDontNeed(userAddress(address), size));
  }

  /** Loads through the page tables. @throws SegmentationFault */
  async read(address: bigint, size: number): Promise<Uint8Array> {
    return this.perform('read', this.program.cpu.read(userAddress(address), size));
  }

  /** Stores through the page tables. @throws SegmentationFault */
  async write(address: bigint, bytes: Uint8Array): Promise<void> {
    await this.perform('write', this.program.cpu.write(userAddress(address), bytes));
  }

  /** memset. @throws SegmentationFault */
  async fill(address: bigint, size: number, value: number): Promise<void> {
    await this.perform('fill', this.program.cpu.fill(userAddress(address), size, value));
  }

  /** Physical address of a byte, for looking from outside: faults nothing in; undefined where nothing is mapped. */
  physicalOf(address: bigint): bigint | undefined {
    const physical = this.program.process.mm.physicalOf(userAddress(address));
    return physical < 0 ? undefined : BigInt(physical);
  }

  /** A child with a copy of the address space and the same open files. ENOMEM, ESRCH, EEXIST a process of that name. */
  async fork(name: string): Promise<SimulatedProcess> {
    if (this.program.world.programs.has(name)) throw new Errno('EEXIST', `there is a process "${name}" already`);
    const child = await this.perform(`fork ${name}`, this.program.forkProgram(name));
    this.program.world.admit(child);
    return new SimulatedProcess(this.session, child);
  }

  /**
   * This process as a driver in user space: containers, groups and devices of VFIO. What they do is steps, which `call` runs:
   * `const container = vfio.openContainer(); await app.call(container.setIommu('type1v2'))`.
   * @throws Errno ENODEV in a guest, whose kernel has no IOMMU and so no VFIO
   */
  vfio(): VfioClient {
    const { host, scenario } = this.session.model;
    if (this.program.world !== scenario.world) throw new Errno('ENODEV', `/dev/vfio/vfio: there is no IOMMU in the guest of ${this.program.world.fullName(this.name)}`);
    return (this.client ??= new VfioClient(host.passthrough.vfio, this.program.process));
  }

  /** System calls of this process that are written as steps. What they refuse. */
  async call<T>(steps: Steps<T>): Promise<T> {
    return this.perform('call', steps);
  }

  /** Ends the process: its address space goes, its files are closed. Ending twice does nothing. */
  async exit(): Promise<void> {
    if (!this.exited) await this.perform('exit', this.program.exit());
  }

  /** SIGKILL: what waits for a device is rejected, its flow has failed, and the process ends. */
  async kill(): Promise<void> {
    this.program.failPending();
    this.program.kill();
    await this.exit();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.exited) await this.exit();
  }

  [Symbol.dispose](): void {
    if (!this.exited) this.session.model.execute(`${this.name}: exit`, this.program.exit(), this.program.world.scheduler);
  }

  private perform<T>(what: string, steps: Steps<T>): Promise<T> {
    const { world } = this.program;
    return this.session.perform(`${world.fullName(this.name)}: ${what}`, steps, world.scheduler);
  }
}
