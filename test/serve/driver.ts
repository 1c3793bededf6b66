/** What a kernel does to a remapping unit, a disk and an accelerator, as far as these tests need it; layouts by hand or from the specifications' own structures. */
import { encodeDescriptor, type DescriptorFields } from '../../devices/dsa/spec/encode.js';
import { encodeCommand, type CommandFields } from '../../devices/nvme/spec/commands.js';
import { expect } from 'vitest';
import type { Machine, Register } from './served-world.js';
import { until } from './served-world.js';

export const REG = { CAP: 0x08, ECAP: 0x10, GCMD: 0x18, GSTS: 0x1c, RTADDR: 0x20, FSTS: 0x34, FECTL: 0x38, IQH: 0x80, IQT: 0x88, IQA: 0x90, IQERCD: 0xb0, PQH: 0xc0, PQT: 0xc8, PQA: 0xd0, PRS: 0xdc, PECTL: 0xe0, PEDATA: 0xe4, PEADDR: 0xe8 } as const;
export const FEDATA = 0x3c, FEADDR = 0x40;
export const GCMD = { TE: 0x8000_0000, SRTP: 0x4000_0000, QIE: 0x0400_0000 } as const;
/** Of scalable mode in RTADDR. */
const SCALABLE = 0x400;

/** Where the driver keeps its tables. */
export const AT = { root: 0x1000, context: 0x2000, diskDirectory: 0x3000, diskPasids: 0x4000, dsaDirectory: 0x5000, dsaPasids: 0x6000, queue: 0x8000, pageRequests: 0x9000, status: 0xa000, tables: 0x10_0000 } as const;
export const DISK_RID = 0x18, DSA_RID = 0x20;
const QUEUE_ENTRIES = 128;
export const FAULT_VECTOR = 0x22, PAGE_VECTOR = 0x21, VECTOR_ADDRESS = 0xfee0_0000;
/** PGTT of a PASID entry. */
export const FIRST_LEVEL = 1, SECOND_LEVEL = 2, PASS_THROUGH = 4;

export class VtdDriver {
  readonly machine: Machine;
  readonly unit: Register;
  private nextTable: number = AT.tables;
  private tail = 0;
  private sequence = 0;

  constructor(machine: Machine) {
    this.machine = machine;
    this.unit = machine.of('iommu');
  }

  newTable(): number {
    const table = this.nextTable;
    this.nextTable += 4096;
    this.machine.ram.window.fill(table, 0, 4096);
    return table;
  }

  /** Scalable mode, both devices with empty PASID tables, queues, interrupts, translation. */
  async start(): Promise<this> {
    const { machine: m, unit } = this;
    m.set(AT.root, AT.context | 1, 0);
    this.context(DISK_RID, AT.diskDirectory, 0);
    this.context(DSA_RID, AT.dsaDirectory, 0x1c);
    m.set(AT.diskDirectory, AT.diskPasids | 1);
    m.set(AT.dsaDirectory, AT.dsaPasids | 1);
    // whatever another kernel left
    unit.write32(REG.GCMD, 0);
    unit.write32(REG.PRS, 3);
    unit.write32(REG.IQT, 0);
    unit.write64(REG.IQA, AT.queue | 0x800);
    unit.write32(REG.GCMD, GCMD.QIE);
    unit.write64(REG.RTADDR, AT.root | SCALABLE);
    unit.write32(REG.GCMD, (GCMD.QIE | GCMD.SRTP) >>> 0);
    unit.write32(REG.PEDATA, PAGE_VECTOR);
    unit.write32(REG.PEADDR, VECTOR_ADDRESS);
    unit.write32(REG.PECTL, 0);
    unit.write64(REG.PQH, 0);
    unit.write64(REG.PQT, 0);
    unit.write64(REG.PQA, AT.pageRequests);
    unit.write32(FEDATA, FAULT_VECTOR);
    unit.write32(FEADDR, VECTOR_ADDRESS);
    unit.write32(REG.FECTL, 0);
    await this.invalidateAll();
    unit.write32(REG.GCMD, (GCMD.QIE | GCMD.TE) >>> 0);
    expect(await unit.read32(REG.GSTS)).toBe(0xc400_0000);
    return this;
  }

  /** @param flags DTE, PASIDE, PRE */
  context(rid: number, directory: number, flags: number): void {
    this.machine.set(AT.context + (rid & 0x7f) * 32, directory | flags | 1, 0, 0, 0);
  }

  /** An entry of a PASID table. @param type PGTT */
  pasid(table: number, pasid: number, type: number, root: number, domain: number): void {
    const second = type === SECOND_LEVEL ? root : 0, first = type === FIRST_LEVEL ? root : 0;
    this.machine.set(table + pasid * 64, BigInt(second) | (2n << 2n) | (BigInt(type) << 6n) | 1n, domain, BigInt(first), 0, 0, 0, 0, 0);
  }

  /** One page, four levels of tables. @param leaf bits of the last entry and of those above */
  map(root: number, address: number, physical: number, leaf = 3): void {
    let table = root;
    for (let level = 3; level > 0; level--) {
      const entry = table + (Math.floor(address / 4096 / 512 ** level) % 512) * 8;
      if (this.machine.get(entry) === 0) this.machine.set(entry, this.newTable() | leaf);
      table = Math.floor(this.machine.get(entry) / 4096) * 4096;
    }
    this.machine.set(table + (Math.floor(address / 4096) % 512) * 8, BigInt(physical) | BigInt(leaf));
  }

  /** Descriptors as four words each, then a wait descriptor; resolves when that has written. */
  async submit(...descriptors: readonly (readonly (number | bigint)[])[]): Promise<void> {
    const sequence = this.post(...descriptors);
    await until(() => this.machine.get32(AT.status) === sequence);
  }

  /** The same without waiting. */
  post(...descriptors: readonly (readonly (number | bigint)[])[]): number {
    const { machine } = this;
    const sequence = ++this.sequence;
    for (const words of [...descriptors, [(BigInt(sequence) << 32n) | 0x25n, AT.status, 0, 0]]) {
      machine.set(AT.queue + this.tail * 32, ...words);
      this.tail = (this.tail + 1) % QUEUE_ENTRIES;
    }
    this.unit.write32(REG.IQT, this.tail * 32);
    return sequence;
  }

  /** Context cache, PASID cache, IOTLB. */
  invalidateAll(): Promise<void> {
    return this.submit([0x11, 0, 0, 0], [0x37, 0, 0, 0], [0x12, 0, 0, 0]);
  }

  respond(rid: number, pasid: number, group: number, code = 0): Promise<void> {
    return this.submit([(BigInt(pasid) << 32n) | (BigInt(rid) << 16n) | BigInt(code << 12) | 0x19n, group << 3, 0, 0]);
  }

  /** Entries of the page request queue that were not taken yet, as software reads them. */
  async pageRequests(): Promise<{ rid: number; pasid: number; address: number; group: number; last: boolean }[]> {
    const { machine, unit } = this;
    const head = await unit.read64(REG.PQH), tail = await unit.read64(REG.PQT);
    const found = [];
    for (let at = head; at !== tail; at = (at + 32) % 4096) {
      const first = machine.get(AT.pageRequests + at), second = BigInt(machine.get(AT.pageRequests + at + 8));
      found.push({
        rid: Number((BigInt(first) >> 16n) & 0xffffn), pasid: Number((BigInt(first) >> 32n) & 0xfffffn), address: Number(second & ~0xfffn), group: Number((second >> 3n) & 0x1ffn), last: (second & 4n) !== 0n,
      });
    }
    unit.write64(REG.PQH, tail);
    unit.write32(REG.PRS, 1);
    return found;
  }
}

const NVME = { CC: 0x14, CSTS: 0x1c, AQA: 0x24, ASQ: 0x28, ACQ: 0x30, DOORBELLS: 0x1000 } as const;
const NVME_ENTRIES = 16;

/** Queue pairs in one piece of memory: each two pages as the controller sees them. */
export class DiskDriver {
  readonly disk: Register;
  private readonly put: (address: number, bytes: Uint8Array) => void;
  private readonly load: (address: number) => number;
  private readonly base: number;
  private readonly tails = [0, 0];
  private readonly heads = [0, 0];
  private nextId = 1;

  /** @param base bus address of four pages; `put` and `load` take bus addresses */
  constructor(disk: Register, base: number, put: (address: number, bytes: Uint8Array) => void, load: (address: number) => number) {
    this.disk = disk;
    this.base = base;
    this.put = put;
    this.load = load;
  }

  /** Enables the controller and makes queue pair 1. @param interrupts of its own vector, 1 */
  async start(interrupts = false): Promise<this> {
    await this.reset();
    expect(await this.command(0, { opcode: 5, prp1: this.base + 0x3000, cdw: [((NVME_ENTRIES - 1) << 16) | 1, interrupts ? 0x1_0003 : 1] })).toBe(0);
    expect(await this.command(0, { opcode: 1, prp1: this.base + 0x2000, cdw: [((NVME_ENTRIES - 1) << 16) | 1, 0x1_0001] })).toBe(0);
    return this;
  }

  /** Off and on again, with empty admin queues. */
  async reset(): Promise<void> {
    const { disk } = this;
    disk.write32(NVME.CC, 0);
    await this.status((csts) => (csts & 1) === 0);
    this.tails.fill(0);
    this.heads.fill(0);
    for (let page = 0; page < 4; page++) this.put(this.base + page * 4096, new Uint8Array(4096));
    disk.write32(NVME.AQA, (NVME_ENTRIES - 1) * 0x1_0001);
    disk.write64(NVME.ASQ, this.base);
    disk.write64(NVME.ACQ, this.base + 0x1000);
    disk.write32(NVME.CC, 0x46_0001);
    await this.status((csts) => (csts & 3) !== 0);
  }

  async status(good: (csts: number) => boolean): Promise<number> {
    for (;;) {
      const csts = await this.disk.read32(NVME.CSTS);
      if (good(csts)) return csts;
    }
  }

  /** Puts a command into a queue and rings. */
  submit(queue: 0 | 1, fields: CommandFields): number {
    const tail = this.tails[queue]!;
    this.put(this.base + queue * 0x2000 + tail * 64, encodeCommand({ cid: this.nextId++, nsid: queue, ...fields }));
    this.tails[queue] = (tail + 1) % NVME_ENTRIES;
    this.disk.write32(NVME.DOORBELLS + queue * 8, this.tails[queue]!);
    return tail;
  }

  /** The next completion is there. */
  done(queue: 0 | 1): boolean {
    const head = this.heads[queue]!;
    const phase = (Math.floor(head / NVME_ENTRIES) & 1) ^ 1;
    return ((this.load(this.entry(queue)) >>> 16) & 1) === phase;
  }

  /** Takes the next completion: its status, without DNR. */
  take(queue: 0 | 1): number {
    const status = (this.load(this.entry(queue)) >>> 17) & 0x3fff;
    this.heads[queue]! += 1;
    this.disk.write32(NVME.DOORBELLS + queue * 8 + 4, this.heads[queue]! % NVME_ENTRIES);
    return status;
  }

  /** The status of a command. */
  async command(queue: 0 | 1, fields: CommandFields): Promise<number> {
    this.submit(queue, fields);
    await until(() => this.done(queue));
    return this.take(queue);
  }

  private entry(queue: 0 | 1): number {
    return this.base + 0x1000 + queue * 0x2000 + (this.heads[queue]! % NVME_ENTRIES) * 16 + 12;
  }
}

const DSA = { CMD: 0xa0, CMDSTS: 0xa8, GROUPS: 0x400, QUEUES: 0x500 } as const;
export const DSA_CMD = { ENABLE_DEVICE: 1, ENABLE_WQ: 6, RESET_DEVICE: 5, DRAIN_ALL: 3, ABORT_ALL: 4 } as const;
export const PORTALS = 2;

/** Runs one command; its error code. */
export async function dsaCommand(dsa: Register, command: number, operand = 0): Promise<number> {
  dsa.write32(DSA.CMD, (command << 20) | operand);
  for (;;) {
    const status = await dsa.read32(DSA.CMDSTS);
    if (status >>> 31 === 0) return status & 0xff;
  }
}

/** One dedicated queue that may block on faults, with a PASID. */
export async function startDsa(dsa: Register, pasid: number): Promise<void> {
  dsa.write64(DSA.GROUPS, 1);
  dsa.write64(DSA.GROUPS + 32, 0xf);
  [16, 0, 0x0000_0003 | (10 << 4) | (pasid << 8) | (1 << 28), 20 | (5 << 5)].forEach((word, i) => dsa.write32(DSA.QUEUES + 4 * i, word));
  expect(await dsaCommand(dsa, DSA_CMD.ENABLE_DEVICE)).toBe(0);
  expect(await dsaCommand(dsa, DSA_CMD.ENABLE_WQ, 0)).toBe(0);
}

export function dsaSubmit(dsa: Register, fields: DescriptorFields): void {
  dsa.post(0, encodeDescriptor(fields), PORTALS);
}
