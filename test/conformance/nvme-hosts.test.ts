/**
 * What firmware and kernels really do to a controller, access by access: SeaBIOS 1.16 (src/hw/nvme.c), and Linux 7.3 as
 * recorded (drivers/nvme/host: probe, scan, reset_controller, shutdown). All registers are accessed as 32-bit halves.
 */
import { describe, expect, it } from 'vitest';
import { MemoryMedium } from '../../devices/nvme/hardware/medium.js';
import { ACQ, ASQ, BUFFER, CQ1, LISTS, NvmeWorld, pattern, SQ1, type NvmeWorldOptions } from './nvme-world.js';

const [VS, INTMS, CC, CSTS, AQA, ASQ_LO, ASQ_HI, ACQ_LO, ACQ_HI, CMBLOC, CMBSZ] = [0x08, 0x0c, 0x14, 0x1c, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c] as const;
const [DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES] = [0, 1, 2, 4, 5, 6, 8, 9, 0xa] as const;
const [FLUSH, WRITE, READ, WRITE_ZEROES, DSM] = [0, 1, 2, 8, 9] as const;
const NSID_ALL = 0xffff_ffff;

const CONTENT = pattern(2 ** 20);

class Host extends NvmeWorld {
  constructor(options: NvmeWorldOptions = {}) {
    super({ ...options, medium: options.medium ?? new MemoryMedium(CONTENT.length, CONTENT) });
  }

  cap(): [number, number] {
    return [this.read(0), this.read(4)];
  }

  /** Polls like any of them: at most for CAP.TO. */
  waitFor(wanted: (csts: number) => boolean): number {
    const limitNs = this.clock.now + ((this.cap()[0] >>> 24) & 0xff) * 500e6;
    while (!wanted(this.read(CSTS)) && this.clock.now < limitNs) this.clock.run({ untilNs: this.clock.now + 100_000 });
    return this.read(CSTS);
  }

  adminQueues(sqEntries: number, cqEntries: number): void {
    this.write(AQA, (sqEntries - 1) | ((cqEntries - 1) << 16));
    for (const [offset, value] of [[ASQ_LO, ASQ], [ASQ_HI, 0], [ACQ_LO, ACQ], [ACQ_HI, 0]] as const) this.write(offset, value);
    this.ram.fill(ASQ, 0, 0x2000);
    this.rings.clear();
    this.rings.set(0, { sq: { at: ASQ, size: sqEntries, next: 0 }, cq: { at: ACQ, size: cqEntries, next: 0, phase: 1 } });
  }

  /** One pair of I/O queues of 64 entries. @param word11 of Create I/O Completion Queue */
  ioQueues(word11: number): string[] {
    this.ram.fill(CQ1, 0, 64 * 16);
    const made = [this.status(0, CREATE_CQ, { prp1: CQ1, cdw: [0x003f_0001, word11] }), this.status(0, CREATE_SQ, { prp1: SQ1, cdw: [0x003f_0001, 0x0001_0001] })];
    this.rings.set(1, { sq: { at: SQ1, size: 64, next: 0 }, cq: { at: CQ1, size: 64, next: 0, phase: 1 } });
    return made;
  }

  seaBios(): this {
    this.write(CC, 0);
    this.waitFor((csts) => (csts & 1) === 0);
    this.adminQueues(64, 256);
    this.write(CC, 0x0046_0001);
    this.waitFor((csts) => (csts & 1) === 1);
    expect(this.ioQueues(1)).toEqual(['0', '0']);
    return this;
  }

  /** From pci_enable_device to queues that work. */
  linuxProbe(): this {
    this.config(4, 2, 0x0006);
    expect(this.read(CSTS)).not.toBe(0xffff_ffff);
    this.setVectors(1);
    expect([this.cap()[1] & 0x20, this.read(CMBSZ), this.read(VS)]).toEqual([0x20, 0, 0x0001_0400]);
    this.write(CC, 0);
    expect(this.waitFor((csts) => (csts & 1) === 0)).toBe(0);
    this.adminQueues(32, 32);
    this.write(CC, 0x0046_0000);
    this.write(CC, 0x0046_0001);
    expect(this.waitFor((csts) => (csts & 1) === 1)).toBe(1);
    return this;
  }

  linuxQueues(): this {
    expect(this.command(0, SET_FEATURES, { cdw: [7, 0] }).dw0).toBe(0x0003_0003);
    this.setVectors(2);
    expect(this.ioQueues(0x0001_0003)).toEqual(['0', '0']);
    return this;
  }

  /** pci_alloc_irq_vectors: everything masked, enabled, entries written and unmasked, then the function. */
  setVectors(count: number): void {
    const control = this.nvme.function.msix!.offset + 2;
    this.config(control, 2, 0xc000);
    for (let vector = 0; vector < 5; vector++) this.write(0x2000 + vector * 16 + 12, 1);
    this.config(4, 2, 0x0406);
    for (let vector = 0; vector < count; vector++) {
      for (const [at, value] of [[0, 0xfee0_0000], [4, 0], [8, 0x40 + vector], [12, 0]] as const) this.write(0x2000 + vector * 16 + at, value);
    }
    this.config(control, 2, 0x8000);
  }

  freeVectors(): void {
    this.config(this.nvme.function.msix!.offset + 2, 2, 0);
    this.config(4, 2, this.configRead(4, 2) & ~0x400);
  }

  /** nvme_dev_disable: queues first, then the controller, then the function. */
  linuxDisable(cc: number): number {
    expect(this.waitFor(() => true) & 1).toBe(1);
    expect([this.status(0, DELETE_SQ, { cdw: [1] }), this.status(0, DELETE_CQ, { cdw: [1] })]).toEqual(['0', '0']);
    this.write(CC, cc);
    const csts = this.waitFor((value) => ((cc & 1) === 0 ? (value & 1) === 0 : (value & 0xc) === 8));
    this.freeVectors();
    this.config(4, 2, this.configRead(4, 2) & ~4);
    return csts;
  }

  identify(cns: number, nsid: number): Uint8Array {
    this.ram.fill(BUFFER, 0xaa, 4096);
    expect(this.status(0, IDENTIFY, { nsid, prp1: BUFFER, cdw: [cns] })).toBe('0');
    return this.bytes(BUFFER, 4096);
  }
}

describe('SeaBIOS', () => {
  it('finds the controller and its namespace, polling', () => {
    const on = new Host();
    expect([on.read(VS), (on.cap()[1] >>> 5) & 1]).toEqual([0x0001_0400, 1]);
    on.seaBios();
    expect(on.identify(1, 0)[516]).toBe(1);
    const id = on.identify(0, 1);
    expect([id[26]! & 0xf, id[25], id[130], id[128]]).toEqual([0, 0, 9, 0]);
    expect(new DataView(id.buffer).getUint32(0, true)).toBe(CONTENT.length / 512);
    expect(on.messages).toEqual([]);
  });

  it('reads the boot sector to an address inside a page', () => {
    const on = new Host().seaBios();
    expect(on.status(1, READ, { nsid: 1, prp1: 0x1_5c00, cdw: [0, 0, 0x8000_0000] })).toBe('0');
    expect(on.bytes(0x1_5c00, 512)).toEqual(pattern(512));
  });

  it.each([LISTS, LISTS + 4, LISTS + 0x54, LISTS + 0x7fc])('reads 64 KiB with a list at %i, where its compiler put it', (list) => {
    const on = new Host().seaBios();
    for (let i = 0; i < 15; i++) {
      on.ram.store(list + i * 8, 4, BUFFER + (15 - i) * 0x1000);
      on.ram.store(list + i * 8 + 4, 4, 0);
    }
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, prp2: list, cdw: [0, 0, 0x8000_007f] })).toBe('0');
    expect(on.bytes(BUFFER, 4096)).toEqual(CONTENT.slice(0, 4096));
    for (let i = 0; i < 15; i++) expect(on.bytes(BUFFER + (15 - i) * 0x1000, 4096)).toEqual(CONTENT.slice((i + 1) * 4096, (i + 2) * 4096));
  });

  it('raises the pin for its admin queue only, which falls when it has polled', () => {
    const on = new Host().seaBios();
    on.submit(0, GET_FEATURES, { cdw: [7] });
    on.settle();
    expect(on.line).toBe(true);
    on.take(0);
    expect(on.line).toBe(false);
    on.submit(1, READ, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    on.settle();
    expect([on.line, on.take(1).length]).toEqual([false, 1]);
  });
});

describe('Linux', () => {
  it('takes the controller over from firmware that left it enabled', () => {
    const on = new Host().seaBios();
    on.submit(0, GET_FEATURES, { cdw: [7] });
    on.settle();
    on.linuxProbe().linuxQueues();
    expect(on.line).toBe(false);
    expect(on.takeMessages()).toEqual([0x40, 0x40, 0x40]);
  });

  it('finds no memory buffer, persistent memory or boot partition behind the registers', () => {
    const on = new Host();
    expect([CMBLOC, CMBSZ, 0x40, 0x44, 0x48, 0x50, 0x58, 0x68, 0xe00, 0xe04].map((at) => on.read(at))).toEqual(Array.from({ length: 10 }, () => 0));
    // CAP.CMBS, PMRS, BPS, CSS: NVM commands only
    expect(on.cap()[1] & 0x0300_3fc0).toBe(0);
  });

  it('probes and scans: each answer is what the driver goes on with', () => {
    const on = new Host().linuxProbe(), id = on.identify(1, 0);
    // a subsystem's name, one controller in it, no keep-alive, APST, retry delays, host memory, doorbell buffers, SGLs, events that Linux would ask for
    expect(String.fromCharCode(...id.subarray(768, 788))).toBe('nqn.2014-08.org.nvme');
    for (const [at, bytes] of [[76, 1], [78, 2], [92, 4], [96, 4], [128, 6], [256, 2], [265, 1], [272, 4], [320, 2], [536, 4]] as const) expect([at, ...id.subarray(at, at + bytes)]).toEqual([at, ...new Uint8Array(bytes)]);
    expect([id[111], id[261]! & 2]).toEqual([1, 2]);
    // SMART for the temperature sensor, the effects of commands: both for the whole controller
    expect(on.status(0, GET_LOG, { nsid: NSID_ALL, prp1: BUFFER + 0x600, cdw: [0x007f_0002] })).toBe('0');
    expect(on.bytes(BUFFER + 0x600, 4).join()).toBe('0,67,1,100');
    expect(on.status(0, GET_LOG, { nsid: NSID_ALL, prp1: BUFFER, cdw: [0x03ff_0005] })).toBe('0');
    expect([IDENTIFY, ABORT].map((opcode) => on.ram.load(BUFFER + 4 * opcode, 4))).toEqual([1, 1]);
    expect([READ, WRITE, DSM].map((opcode) => on.ram.load(BUFFER + 1024 + 4 * opcode, 4))).toEqual([1, 3, 3]);
    on.linuxQueues();
    // the limits of the command set are newer than version 1.4: Linux goes on without them
    expect(on.status(0, IDENTIFY, { prp1: BUFFER, cdw: [6] })).toBe('2!');
    expect([on.identify(2, 0)[0], on.identify(2, 0)[4], on.identify(3, 1)[0]]).toEqual([1, 0, 1]);
    expect(on.identify(0, 1)).toEqual(on.identify(0, 1));
    expect([5, 8].map((cns) => on.status(0, IDENTIFY, { nsid: 1, prp1: BUFFER, cdw: [cns] }))).toEqual(['2!', '2!']);
  });

  it('is told of what is not there with a status that it takes for that', () => {
    const on = new Host().linuxProbe();
    // LBA range type, APST, host memory, timestamp, keep alive, host behaviour, write protection
    for (const feature of [0x03, 0x0c, 0x0d, 0x0e, 0x0f, 0x16, 0x84]) {
      expect([feature, on.status(0, GET_FEATURES, { prp1: BUFFER, cdw: [feature] }), on.status(0, SET_FEATURES, { prp1: BUFFER, cdw: [feature, 1] })]).toEqual([feature, '2!', '2!']);
    }
    // changed namespaces, self-test, telemetry, asymmetric access, firmware and device logs of vendors
    for (const page of [0x04, 0x06, 0x07, 0x0c, 0xc0]) expect([page, on.status(0, GET_LOG, { nsid: NSID_ALL, prp1: BUFFER, cdw: [0x007f_0000 | page] })]).toEqual([page, '109!']);
    // keep alive, doorbell buffers, directives, format, security
    for (const opcode of [0x18, 0x7c, 0x19, 0x80, 0x81]) expect([opcode, on.status(0, opcode, { prp1: BUFFER })]).toEqual([opcode, '1!']);
  });

  it('reads, writes, flushes, discards and zeroes', () => {
    const on = new Host().linuxProbe().linuxQueues();
    on.takeMessages();
    on.fill(BUFFER, pattern(8192, 77));
    expect(on.status(1, WRITE, { nsid: 1, prp1: BUFFER, prp2: BUFFER + 0x1000, cdw: [64, 0, 15] })).toBe('0');
    expect(on.status(1, FLUSH, { nsid: 1 })).toBe('0');
    expect(on.stored(64 * 512, 8192)).toEqual(pattern(8192, 77));
    // Write Zeroes of 65,536 blocks is more than there are, with DEAC as Linux sets it for a namespace whose deallocated blocks are zero
    expect([on.status(1, WRITE_ZEROES, { nsid: 1, cdw: [64, 0, 0x0200_0007] }), on.status(1, WRITE_ZEROES, { nsid: 1, cdw: [0, 0, 0xffff] })]).toEqual(['0', '80!']);
    expect(on.stored(64 * 512, 4096)).toEqual(new Uint8Array(4096));
    for (let i = 0; i < 256; i++) {
      for (const [at, value] of [[0, 0], [4, 1], [8, 1024 + 2 * i], [12, 0]] as const) on.ram.store(BUFFER + i * 16 + at, 4, value);
    }
    expect(on.status(1, DSM, { nsid: 1, prp1: BUFFER, cdw: [255, 4] })).toBe('0');
    expect(on.stored(1024 * 512, 1024)).toEqual(Uint8Array.from([...new Uint8Array(512), ...CONTENT.slice(1025 * 512, 1026 * 512)]));
    expect(new Set(on.takeMessages())).toEqual(new Set([0x41]));
  });

  it('shuts down, and the next kernel finds a controller that starts', () => {
    const on = new Host().linuxProbe().linuxQueues();
    expect(on.linuxDisable(0x0046_4001)).toBe(9);
    on.settle();
    on.linuxProbe().linuxQueues();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 7] })).toBe('0');
  });

  it.each([1, 2, 3])('resets the controller with commands in flight as often as somebody writes to reset_controller, seed %i', (seed) => {
    const on = new Host({ hold: 0.5, seed });
    for (let round = 0; round < 4; round++) {
      on.linuxProbe().linuxQueues();
      for (let i = 0; i < 20; i++) on.submit(1, READ, { nsid: 1, prp1: BUFFER + i * 0x1000, cdw: [i * 8, 0, 7] });
      on.clock.run({ untilNs: on.clock.now + 3_000 * round });
      expect(on.linuxDisable(0x0046_0000)).toBe(0);
      on.takeMessages();
    }
    on.linuxProbe().linuxQueues();
    on.takeMessages();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, cdw: [8, 0, 7] })).toBe('0');
    expect([on.bytes(BUFFER, 4096), on.takeMessages(), on.nvme.controller.outstanding]).toEqual([CONTENT.slice(4096, 8192), [0x41], 0]);
  });

  it('a reset of a controller that no longer answers: CC alone, whatever is in flight', () => {
    const on = new Host({ hold: 0.9, seed: 4 }).linuxProbe().linuxQueues();
    for (let i = 0; i < 30; i++) on.submit(1, READ, { nsid: 1, prp1: BUFFER + i * 0x1000, cdw: [i * 8, 0, 7] });
    on.clock.run({ untilNs: on.clock.now + 2_000 });
    on.config(4, 2, 0x0402);
    on.write(CC, 0x0046_0000);
    on.config(4, 2, 0x0406);
    on.linuxProbe().linuxQueues();
    expect(on.status(1, READ, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 7] })).toBe('0');
  });

  it('completions that come while vectors are reallocated are found by looking, and interrupts go on', () => {
    const on = new Host().linuxProbe();
    on.freeVectors();
    const cid = on.submit(0, GET_FEATURES, { cdw: [7] });
    on.settle();
    expect(on.line).toBe(true);
    on.setVectors(2);
    expect([on.line, on.take(0).map((cqe) => cqe.cid), on.takeMessages()]).toEqual([false, [cid], []]);
    on.command(0, GET_FEATURES, { cdw: [7] });
    expect(on.takeMessages()).toEqual([0x40]);
    // a vector that is masked by itself waits for its mask to go
    on.write(0x200c, 1);
    on.command(0, GET_FEATURES, { cdw: [7] });
    expect([on.takeMessages(), on.read(0x3000)]).toEqual([[], 1]);
    on.write(0x200c, 0);
    expect([on.takeMessages(), on.read(0x3000)]).toEqual([[0x40], 0]);
  });

  it('masks the pin by INTMS or by INTx disable, and neither loses it', () => {
    const on = new Host();
    on.adminQueues(32, 32);
    on.write(CC, 0x0046_0001);
    on.waitFor((csts) => csts === 1);
    on.write(INTMS, 1);
    on.submit(0, GET_FEATURES, { cdw: [7] });
    on.settle();
    expect(on.line).toBe(false);
    on.write(INTMS + 4, 1);
    expect(on.line).toBe(true);
    on.config(4, 2, 0x0406);
    expect(on.line).toBe(false);
    on.config(4, 2, 0x0006);
    expect(on.line).toBe(true);
  });

  it('sees a namespace on a medium that takes no writes as read-only', () => {
    const on = new Host({ medium: Object.assign(new MemoryMedium(CONTENT.length, CONTENT), { readOnly: true }) }).linuxProbe().linuxQueues();
    expect(on.identify(0, 1)[99]).toBe(1);
    expect(new Host().linuxProbe().identify(0, 1)[99]).toBe(0);
    const refused = [on.status(1, WRITE, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] }), on.status(1, WRITE_ZEROES, { nsid: 1, cdw: [0, 0, 0] }), on.status(1, DSM, { nsid: 1, prp1: BUFFER, cdw: [0, 4] })];
    expect([...refused, on.status(1, FLUSH, { nsid: 1 }), on.status(1, READ, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] })]).toEqual(['20!', '20!', '20!', '0', '0']);
    expect(on.stored(0, 512)).toEqual(pattern(512));
  });
});
