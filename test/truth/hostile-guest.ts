/**
 * The attack: what a kernel in a guest can do to its devices with loads, stores, 64-byte writes and enqueues on its
 * virtual CPUs, mostly nonsense, with enough sense in it to get past the first check.
 */
import { DSA_CMD, GRPCFG_TABLE, GRPENGCFG_OFFSET, WQCFG, WQCFG_TABLE } from '../../devices/dsa/spec/registers.js';
import type { Guest } from '../../harness/guests/guest.js';
import { PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_PM } from '../../host/pci/spec/index.js';
import { listCapabilities } from '../../host/pci/kernel/capability-list.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Random } from '../../sim/random.js';
import { LOOT, SIZES, type HostileMachine, type Loot } from './hostile-machine.js';

/** Guest-physical addresses that are worth a try: RAM and its end, the hole, interrupts, firmware, above 4 GiB, where doubles end. */
const WILD: readonly bigint[] = [
  0n, 0xfffn, 0x10_0000n, 0xff_ffc0n, 0x100_0000n, 0x1000_0000n, 0xc000_0000n, 0xfed9_0000n, 0xfee0_0000n, 0xfee0_1000n, 0xfeef_fffcn, 0xffff_fff0n, 0x1_0000_0000n, 0x10_0000_0000n,
  1n << 46n, 1n << 47n, (1n << 48n) - 64n, 1n << 52n, 1n << 53n, (1n << 57n) - 32n, 1n << 63n, 0xffff_ffff_ffff_f000n, 0xffff_ffff_ffff_ffc0n,
];

export class HostileGuest {
  readonly guest: Guest;
  readonly targets: readonly Loot[];
  private readonly machine: HostileMachine;
  private readonly random: Random;

  /** How often registers are touched that reset a device or cut it off. */
  private readonly resets: number;

  constructor(machine: HostileMachine, guest: Guest, targets: readonly Loot[] = LOOT) {
    this.machine = machine;
    this.guest = guest;
    this.random = machine.random;
    this.targets = targets;
    this.resets = machine.random.pick([0, 0.1, 0.5]);
  }

  /** One thing out of all. */
  step(): void {
    const { random, machine, guest } = this;
    // a guest that is being reset or held executes nothing
    if (guest.state !== 'running') return machine.wait(random.below(20_000));
    const { clock } = guest.vmm!;
    if (!clock.runs) return void machine.host.clock.run({ untilNs: machine.host.clock.now + 150_000_000, stop: () => clock.runs });
    const target = random.pick(this.targets);
    const fn = this.fn(target);
    switch (random.below(24)) {
      case 0: return this.configAccess(fn);
      case 1: return random.chance(this.resets) ? this.configRegister(fn) : undefined;
      case 2: case 3: return this.barAccess(fn);
      case 4: return this.interruptTable(fn);
      case 5: return this.memoryOn(fn);
      case 6: return this.bringUp(target, fn);
      case 16: return this.scribble();
      case 7: case 8: case 9: case 10: case 11: case 12: case 13: case 14: case 15: return this.drive(target, fn);
      default: return machine.wait(random.below(random.chance(0.05) ? 100_000 : 2000));
    }
  }

  /** What a driver would do: the way out of the corners into which the rest leads. */
  private bringUp(target: Loot, fn: PciFunction): void {
    this.memoryOn(fn);
    const registers = fn.window(0)!;
    if (target === 'edu0' || target === 'tty') return;
    const command = (code: number, operand = 0): void => {
      registers.write(0xa0, 4, ((code << 20) | operand) >>> 0);
      this.machine.wait(3000);
    };
    if (this.random.chance(0.5)) command(2);
    if (target === 'dsa1') {
      const config = WQCFG.encode({ WqSize: 16, Mode: 1, Bof: 1, Priority: 10, MaxXferShift: 20, MaxBatchShift: 5 });
      config.forEach((word, i) => registers.write(WQCFG_TABLE + i * 4, 4, word));
      registers.write(GRPCFG_TABLE, 8, 1, 0);
      registers.write(GRPCFG_TABLE + GRPENGCFG_OFFSET, 8, 0xf, 0);
    }
    command(DSA_CMD.ENABLE_DEVICE);
    command(DSA_CMD.ENABLE_WQ);
  }

  /** Memory space and bus mastering, which other steps take away. */
  memoryOn(fn: PciFunction): void {
    this.config(fn, 4, 2, 6);
  }

  private fn(target: Loot): PciFunction {
    return this.guest.kernel!.devices.models.find(({ name }) => name === target)!.function;
  }

  private config(fn: PciFunction, offset: number, size: 1 | 2 | 4, value: number): void {
    this.guest.kernel!.tree.complex.configWrite(0, fn.devfn, offset, size, value >>> 0);
  }

  private configAccess(fn: PciFunction): void {
    const { random } = this;
    const size = random.pick([1, 2, 4] as const);
    const offset = random.below(random.chance(0.7) ? 0x100 : 0x1000);
    if (random.chance(this.resets === 0 ? 1 : 0.3)) number(this.guest.kernel!.tree.complex.configRead(0, fn.devfn, offset, size));
    else this.config(fn, offset, size, this.value());
  }

  /** A register that does something. */
  private configRegister(fn: PciFunction): void {
    const { random } = this;
    const capability = (id: number): number => listCapabilities({ read: (at, size) => fn.config.get(at, size), write: () => {} }).find((one) => one.id === id)?.offset ?? 0x40;
    switch (random.below(8)) {
      case 0: return this.config(fn, 4, 2, random.below(0x800));
      case 1: return this.config(fn, 0x10 + random.below(6) * 4, 4, random.chance(0.5) ? 0xffff_ffff : this.value());
      case 2: return this.config(fn, capability(PCI_CAP_ID_PM) + 4, 2, random.below(4));
      case 3: return this.config(fn, capability(PCI_CAP_ID_EXP) + 8, 2, random.chance(0.2) ? 0x8000 | random.below(0x8000) : random.below(0x8000));
      case 4: return this.config(fn, capability(PCI_CAP_ID_MSI) + 2, 2, random.chance(0.5) ? random.below(2) | (random.below(8) << 4) : random.u32());
      case 5: return this.config(fn, capability(PCI_CAP_ID_MSI) + 4 + random.below(5) * 4, 4, random.chance(0.5) ? 0xfee0_0000 | random.below(0x10_0000) : this.value());
      default: return this.config(fn, capability(PCI_CAP_ID_MSIX) + 2, 2, random.pick([0, 0x4000, 0x8000, 0xc000, 0xffff]));
    }
  }

  /** Loads and stores of any size, place and alignment, across the end too. */
  private barAccess(fn: PciFunction): void {
    const { random } = this;
    const bar = random.pick([0, 0, 1, 2, 2, 3, 5]);
    const window = fn.window(bar);
    if (window === undefined) return;
    const size = random.pick(SIZES), end = fn.bars[bar]!.sizeBytes;
    let offset = random.below(random.chance(0.6) ? Math.min(end, 0x3000) : end);
    if (random.chance(0.6)) offset -= offset % size;
    if (random.chance(0.05)) offset = end - random.between(1, 8);
    if (random.chance(0.4)) {
      number(window.read(offset, size));
      if (size === 8) number(window.high);
    } else {
      window.write(offset, size, this.value(), random.u32());
    }
  }

  /** The MSI-X table: messages anywhere, masks in any order. */
  private interruptTable(fn: PciFunction): void {
    const { random } = this;
    const { msix } = fn;
    if (msix === undefined) return;
    const window = fn.window(msix.options.tableBar)!;
    const at = msix.options.tableOffset + random.below(msix.options.vectors * 4) * 4;
    window.write(at, random.pick([4, 4, 4, 8]), random.chance(0.3) ? random.below(2) : random.chance(0.5) ? (0xfee0_0000 | random.below(0x10_0000)) >>> 0 : this.value(), random.u32());
  }

  private drive(target: Loot, fn: PciFunction): void {
    switch (target) {
      case 'edu0': return this.driveEdu(fn);
      case 'tty': return this.driveTty(fn);
      default: return this.driveDsa(target, fn);
    }
  }

  private driveDsa(target: Loot, fn: PciFunction): void {
    const { random } = this;
    const registers = fn.window(0)!, portals = fn.window(2)!;
    if (random.chance(0.15)) {
      const command = random.chance(0.95) ? random.between(1, 17) : random.below(32);
      const operand = random.chance(0.6) ? random.below(3) : random.chance(0.5) ? random.below(0x10000) : random.below(0x10_0000);
      return registers.write(0xa0, 4, ((random.chance(0.3) ? 0x8000_0000 : 0) | (command << 20) | operand) >>> 0);
    }
    if (random.chance(0.1)) return registers.write(0x500 + random.below(16) * 4, 4, this.value());
    if (random.chance(0.1)) return registers.write(random.pick([0x80, 0x88, 0x98, 0xc0]), 4, random.u32());
    this.writeBatch();
    const bytes = random.chance(0.15) ? Uint8Array.from({ length: 64 }, () => random.below(256)) : this.descriptor();
    let offset = random.chance(0.8) ? 0x1000 : random.below(fn.bars[2]!.sizeBytes);
    if (random.chance(0.2)) offset += random.below(0x1000);
    if (random.chance(0.7)) offset -= offset % 64;
    if (random.chance(target === 'place' ? 0.9 : 0.2)) portals.enqueue64(offset, bytes);
    else portals.write64(offset, bytes);
  }

  private driveEdu(fn: PciFunction): void {
    const { random } = this;
    const window = fn.window(0)!;
    switch (random.below(5)) {
      case 0: return window.write(random.pick([0x60, 0x64]), 4, random.chance(0.5) ? 0xff : random.u32());
      case 1: return window.write(8, 4, random.u32());
      case 2: return window.write(0x20, 4, random.u32());
      default: {
        const there = this.address(), inside = 0x4_0000n + BigInt(random.below(0x1100));
        const toMemory = random.chance(0.5);
        store64(window, 0x80, toMemory ? inside : there);
        store64(window, 0x88, toMemory ? there : inside);
        store64(window, 0x90, random.chance(0.9) ? BigInt(random.below(0x1001)) : this.address());
        return store64(window, 0x98, BigInt(1 | (toMemory ? 2 : 0) | random.below(2) * 4));
      }
    }
  }

  private driveTty(fn: PciFunction): void {
    const { random } = this;
    const window = fn.window(random.below(2))!;
    if (random.chance(0.4)) return random.chance(0.7) ? window.write(random.below(8), 1, random.below(256)) : number(window.read(random.below(8), 1));
    if (random.chance(0.2)) return window.write(0x100 + random.below(16) * 4, 4, this.value());
    const [tx, rx] = [this.address(), this.address()];
    store32(window, 0x108, tx);
    store32(window, 0x118, rx);
    window.write(0x110, 4, random.chance(0.9) ? random.below(0x2_0000) : random.u32());
    window.write(0x114, 4, random.chance(0.9) ? random.below(0x2_0000) : random.u32());
    window.write(0x120, 4, random.chance(0.9) ? 1 : random.u32());
  }

  /** Memory of the guest, mostly. */
  private address(): bigint {
    const { random } = this;
    if (random.chance(0.25)) return random.pick(WILD);
    if (random.chance(0.05)) return (BigInt(random.u32()) << 32n) | BigInt(random.u32());
    return BigInt(random.between(0x80_0000, 0xf0_0000));
  }

  private value(): number {
    const { random } = this;
    return random.chance(0.3) ? random.below(16) : random.chance(0.2) ? 0xffff_ffff : random.u32();
  }

  /** A known opcode, flags that are mostly right, PASID and privilege of anybody. */
  private descriptor(): Uint8Array {
    const { random } = this;
    const bytes = new Uint8Array(64);
    const view = new DataView(bytes.buffer);
    const opcode = random.chance(0.95) ? random.pick([0, 1, 2, 3, 3, 3, 4, 5, 6, 9, 0x10, 0x11]) : random.below(256);
    view.setUint32(0, ((random.chance(0.3) ? 0x8000_0000 : 0) | (random.chance(0.5) ? 0 : random.chance(0.8) ? random.below(16) : random.below(0x10_0000))) >>> 0, true);
    view.setUint32(4, (0xc | (random.chance(0.4) ? 2 : 0) | (random.chance(0.4) ? 0x10 : 0) | (random.chance(0.1) ? random.below(0x10_0000) << 4 : 0) | (opcode << 24)) >>> 0, true);
    view.setBigUint64(8, random.chance(0.9) ? this.address() & ~31n : this.address(), true);
    view.setBigUint64(16, opcode === 1 ? (random.chance(0.8) ? 0xe0_0000n : this.address()) & ~63n : this.address(), true);
    const forged = random.chance(0.08);
    view.setBigUint64(24, forged ? 0xfee0_0000n + BigInt(random.below(0x100) * 0x1000) : this.address(), true);
    view.setUint32(32, forged ? 4 : opcode === 1 ? random.below(40) : random.chance(0.9) ? random.below(0x4000) : random.u32(), true);
    view.setUint16(36, random.chance(0.8) ? random.below(12) : random.below(0x1_0000), true);
    if (opcode === 9 || opcode === 0x10) view.setBigUint64(40, this.address(), true);
    return bytes;
  }

  /** Stores into any of the guest's memory, its tables and queues among it, and where there is none. */
  private scribble(): void {
    const { random } = this;
    const { memory } = this.guest.vmm!;
    const address = random.chance(0.8) ? random.below(0x100_0000) : Number(random.pick(WILD) & 0xf_ffff_ffff_ffffn);
    const bytes = Uint8Array.from({ length: random.between(1, random.chance(0.1) ? 0x3000 : 64) }, () => random.below(256));
    switch (random.below(3)) {
      case 0: memory.write(address, bytes, 0, bytes.length); break;
      case 1: memory.store64(address - (address % 8), random.u32(), random.u32()); break;
      default: memory.copy(address, random.below(0x100_0000), bytes.length);
    }
  }

  /** Where batches find their descriptors: among them batches. */
  private writeBatch(): void {
    if (this.random.chance(0.7)) return;
    const { memory } = this.guest.vmm!;
    for (let i = 0; i < 8; i++) memory.write(0xe0_0000 + i * 64, this.descriptor(), 0, 64);
  }
}

function store64(window: { write(offset: number, size: 8, lo: number, hi: number): void }, offset: number, value: bigint): void {
  window.write(offset, 8, Number(value & 0xffff_ffffn), Number(value >> 32n));
}

function store32(window: { write(offset: number, size: 4, lo: number): void }, offset: number, value: bigint): void {
  window.write(offset, 4, Number(value & 0xffff_ffffn));
  window.write(offset + 4, 4, Number(value >> 32n));
}

/** What a load gives is bits. */
function number(value: number): void {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) throw new Error(`a load gave ${value}`);
}
