/** A guest that does whatever its registers and its memory let it do, with a preference for what could hurt: addresses at edges, in windows of registers, in interrupts; tables that point at themselves; batches of batches. */
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { encodeCommand } from '../../devices/nvme/spec/commands.js';
import { Random } from '../../sim/random.js';
import { CMD, dmaMap, dmaUnmap, message, NO_REPLY, pack, regionWrite, setIrqs } from '../vfio-user/wire.js';
import { AT, DiskDriver, FIRST_LEVEL, GCMD, PASS_THROUGH, PORTALS, REG, startDsa, VtdDriver } from './driver.js';
import { CONFIG, MIB, RAM_BYTES, type Machine, type Register } from './served-world.js';

/** Where BARs end up when this guest places them. */
const WINDOWS = [0xfd00_0000, 0xfe00_0000, 0xfe10_0000, 0xfe20_0000, 0x40_0000, 0xfee0_0000, 0x8_0000_0000] as const;
/** Four pages: queues of the disk. */
const DISK_QUEUES = 0xb000;

export class HostileGuest {
  private readonly machine: Machine;
  private readonly random: Random;

  constructor(machine: Machine, seed: number) {
    this.machine = machine;
    this.random = new Random(seed);
  }

  /** A machine that works: BARs in their places, both devices allowed everything, an accelerator and a disk that take commands. */
  async start(): Promise<void> {
    const { machine } = this;
    for (const name of ['iommu', 'disk', 'dsa0']) await machine.of(name).client.ok(CMD.RESET);
    for (const [name, at, where] of [['iommu', 0x10, WINDOWS[0]], ['disk', 0x10, WINDOWS[1]], ['dsa0', 0x10, WINDOWS[2]], ['dsa0', 0x18, WINDOWS[3]]] as const) {
      await machine.of(name).setConfig(at, 4, where);
      if (name !== 'iommu') await machine.of(name).setConfig(at + 4, 4, 0);
      await machine.of(name).enable();
    }
    const vtd = new VtdDriver(machine);
    await vtd.start();
    await machine.of('dsa0').enableSva();
    vtd.pasid(AT.diskPasids, 0, PASS_THROUGH, 0, 4);
    for (let pasid = 0; pasid < 4; pasid++) vtd.pasid(AT.dsaPasids, pasid, pasid === 2 ? FIRST_LEVEL : PASS_THROUGH, pasid === 2 ? AT.tables : 0, 5);
    await vtd.invalidateAll();
    await new DiskDriver(machine.of('disk'), DISK_QUEUES, (address, bytes) => machine.put(address, bytes), (address) => machine.get32(address)).start();
    await startDsa(machine.of('dsa0'), this.random.below(4));
  }

  /** One thing, without waiting for an answer. @param gentle nothing that switches a device off */
  step(gentle: boolean): void {
    const { random } = this;
    switch (random.below(gentle ? 10 : 16)) {
      case 0: case 1: return this.table();
      case 2: return this.queueEntry();
      case 3: case 4: case 5: return this.descriptor();
      case 6: case 7: return this.nvmeCommand();
      case 8: return this.post(this.machine.of('disk'), 0, 0x1000 + random.below(4) * 4, pack([4, random.below(16)]));
      case 9: return this.post(this.machine.of('iommu'), 0, REG.IQT, pack([4, random.below(128) * 32]));
      case 10: case 11: return this.unitRegister();
      case 12: return this.dsaRegister();
      case 13: return this.nvmeRegister();
      case 14: return this.config();
      default: return this.protocol();
    }
  }

  private post(fn: Register, region: number, offset: number, bytes: Uint8Array): void {
    // a full socket is the server's to empty
    fn.client.write(message(0, CMD.REGION_WRITE, regionWrite(region, offset, bytes), NO_REPLY));
  }

  private any(): Register {
    return this.machine.of(this.random.pick(['iommu', 'disk', 'dsa0']));
  }

  private address(): number {
    const { random } = this;
    switch (random.below(8)) {
      case 0: return RAM_BYTES - random.below(3) * 16;
      case 1: case 2: return random.pick(WINDOWS) + (random.below(2) === 0 ? random.below(64) * 64 : random.pick([0x18, 0x20, 0x80, 0x88, 0x90, 0xa0, 0x1000, 0x2000, 0x500]));
      case 4: return 2 ** 52 - 4096 * random.below(3);
      case 3: return 2 ** 46 + random.below(2 ** 20);
      default: return AT.root + random.below(32) * 4096 + (random.below(2) === 0 ? 0 : random.below(256) * 16);
    }
  }

  private page(): number {
    return Math.floor(this.address() / 4096) * 4096;
  }

  private value(): bigint {
    const { random } = this;
    return (BigInt(random.below(2 ** 32)) << 32n) | BigInt(random.below(2 ** 32));
  }

  private unitRegister(): void {
    const { random } = this, unit = this.machine.of('iommu');
    switch (random.below(8)) {
      case 0: return this.post(unit, 0, REG.GCMD, pack([4, random.pick([0, GCMD.QIE, GCMD.QIE + GCMD.TE, GCMD.QIE + GCMD.TE, GCMD.QIE + GCMD.SRTP, GCMD.QIE + GCMD.SRTP + GCMD.TE, 0xffff_ffff])]));
      case 1: return this.post(unit, 0, REG.RTADDR, pack([8, this.page() + random.pick([0, 0x400, 0x400, 0x800, 0xc00])]));
      case 2: return this.post(unit, 0, REG.IQA, pack([8, this.page() + random.pick([0, 0x800, 0x807, 7])]));
      case 3: return this.post(unit, 0, REG.IQT, pack([4, random.below(2 ** 15) * 16]));
      case 4: return this.post(unit, 0, REG.PQA, pack([8, this.page() + random.below(8)]));
      case 5: return this.post(unit, 0, random.pick([REG.FSTS, REG.PRS, 0x9c]), pack([4, 0xff]));
      case 6: return this.post(unit, 0, random.pick([REG.FECTL, REG.PECTL, REG.PEADDR, REG.PEDATA, REG.PQH, REG.PQT]), pack([4, random.pick([0, 0x8000_0000, random.below(2 ** 32)])]));
      default: return this.post(unit, 0, random.below(0x1000), pack([random.pick([1, 2, 4, 8] as const), this.value()]));
    }
  }

  /** Words of tables: root, context, PASID, pages; they point at each other, at themselves, and at nothing. */
  private table(): void {
    const { machine, random } = this;
    const at = AT.root + random.below(32) * 4096;
    for (let i = 0; i < 1 + random.below(64); i++) {
      const target = random.below(3) === 0 ? at : this.page();
      machine.set(at + random.below(512) * 8, BigInt(target) | BigInt(random.pick([1, 3, 7, 0x49, 0x89, 0x1d, 0x83, 0x87, random.below(4096)])));
    }
  }

  private queueEntry(): void {
    const { machine, random } = this;
    const type = BigInt(random.below(12));
    machine.set(AT.root + random.below(32) * 4096 + random.below(128) * 32, type | (random.below(2) === 0 ? 0x20_0000n : this.value() << 4n), BigInt(this.address()) | BigInt(random.below(64)), 0n, 0n);
  }

  private dsaDescriptor(): Uint8Array {
    const { random } = this;
    const bytes = encodeDescriptor({
      opcode: random.below(20), flags: random.below(2) === 0 ? 2 : random.below(2 ** 24), ...(random.below(4) === 0 ? {} : { completion: this.address() }),
      source: this.address(), destination: this.address(), size: random.pick([1, 32, 64, 1000, 4096, 65536, 2 ** 20, random.below(2 ** 32)]), pasid: random.below(4), interruptHandle: random.below(12),
    });
    return bytes;
  }

  private descriptor(): void {
    const { machine, random } = this, bytes = this.dsaDescriptor();
    if (random.below(2) === 0) return machine.put(AT.root + random.below(32) * 4096 + random.below(64) * 64, bytes);
    this.post(machine.of('dsa0'), PORTALS, random.below(32) * 4096 + random.below(64) * 64, random.below(4) === 0 ? bytes.subarray(0, 8 * random.below(9)) : bytes);
  }

  private dsaRegister(): void {
    const { random } = this, dsa = this.machine.of('dsa0');
    switch (random.below(6)) {
      case 0: return this.post(dsa, 0, 0xa0, pack([4, (random.below(16) << 20) | random.below(4)]));
      case 1: return this.post(dsa, 0, 0x400 + random.below(4) * 64 + random.pick([0, 32, 40]), pack([8, random.pick([0, 1, 3, 15, 255])]));
      case 2: case 3: {
        const wq = 0x500 + random.below(8) * 64;
        [random.pick([0, 8, 16, 128]), random.below(32), random.below(4) | (random.below(16) << 4) | (random.below(4) << 8) | (random.below(2) << 28), random.below(32) | (random.below(16) << 5)].forEach((word, i) => this.post(dsa, 0, wq + 4 * i, pack([4, word])));
        return;
      }
      case 4:
        // a configuration that works
        this.post(dsa, 0, 0x400, pack([8, 1]));
        this.post(dsa, 0, 0x420, pack([8, 15]));
        [16, 16, 3 | (10 << 4) | (random.below(4) << 8) | (1 << 28), 20 | (5 << 5)].forEach((word, i) => this.post(dsa, 0, 0x500 + 4 * i, pack([4, word])));
        this.post(dsa, 0, 0xa0, pack([4, 1 << 20]));
        return;
      default: return this.post(dsa, 0, random.below(0x4000), pack([random.pick([4, 8] as const), this.value()]));
    }
  }

  private nvmeRegister(): void {
    const { random } = this, disk = this.machine.of('disk');
    switch (random.below(6)) {
      case 0: return this.post(disk, 0, 0x14, pack([4, random.pick([0, 0x46_0001, 0x46_0001, 0x46_4001, 0x46_8001, random.below(2 ** 32)])]));
      case 1: return this.post(disk, 0, 0x24, pack([4, random.pick([0xf_000f, random.below(2 ** 32)])]));
      case 2: return this.post(disk, 0, random.pick([0x28, 0x30]), pack([8, this.page()]));
      case 3: case 4: return this.post(disk, 0, 0x1000 + random.below(12) * 4, pack([4, random.below(20)]));
      default: return this.post(disk, 0, random.below(0x4000), pack([random.pick([1, 2, 4, 8] as const), this.value()]));
    }
  }

  private nvmeCommand(): void {
    const { machine, random } = this;
    const command = encodeCommand({
      opcode: random.below(16), cid: random.below(8), nsid: random.below(3), prp1: this.address(), prp2: this.address(),
      cdw: [random.pick([random.below(8), (random.below(2048) << 16) | random.below(4)]), random.pick([0, 1, 3, 4, 0x1_0001]), random.pick([0, 7, 1023, 0xffff]), 0, 0, 0],
    });
    machine.put((random.below(4) > 0 ? DISK_QUEUES + random.below(2) * 0x2000 : AT.root + random.below(32) * 4096) + random.below(16) * 64, command);
  }

  private config(): void {
    const { random } = this, fn = this.any();
    switch (random.below(5)) {
      case 0: return this.post(fn, CONFIG, 4, pack([2, random.pick([6, 6, 6, 2, 4, 0x406])]));
      case 1: {
        const where = random.pick(WINDOWS);
        this.post(fn, CONFIG, 0x10 + 8 * random.below(3), pack([4, where % 2 ** 32]));
        return this.post(fn, CONFIG, 0x14 + 8 * random.below(3), pack([4, Math.floor(where / 2 ** 32)]));
      }
      case 2: return this.post(fn, CONFIG, 0x10 + 4 * random.below(6), pack([4, 0xffff_ffff]));
      default: return this.post(fn, CONFIG, random.below(2) === 0 ? random.below(256) : 0x100 + random.below(0x100), pack([random.pick([1, 2, 4] as const), random.pick([0, 1, 7, 0x8000, random.below(2 ** 32)])]));
    }
  }

  /** What a monitor may do at any time. */
  private protocol(): void {
    const { random } = this, fn = this.any();
    switch (random.below(20)) {
      case 0: return void fn.client.write(message(1, CMD.RESET));
      case 1: return void fn.client.write(message(1, CMD.SET_IRQS, setIrqs(random.below(5), 0, random.below(4), 0x21)));
      case 2: {
        const { client } = this.machine.of('iommu');
        client.write(message(1, CMD.DMA_UNMAP, dmaUnmap(0, RAM_BYTES)));
        return void client.write(message(1, CMD.DMA_MAP, dmaMap(0, RAM_BYTES)), [this.machine.ram.descriptor]);
      }
      case 3: return void this.machine.of('iommu').client.write(message(1, CMD.DMA_MAP, dmaMap(2 ** 46, MIB)));
      default: return this.post(fn, random.below(9), random.below(0x2000), pack([random.pick([1, 2, 4, 8] as const), this.value()]));
    }
  }
}
