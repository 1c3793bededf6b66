/**
 * Two generations of QEMU: up to 10.2 the data of DMA_READ and DMA_WRITE stand behind a count of 32 bits, from 11 on behind
 * one of 64, as the protocol's text says. The server finds out which one it talks to, and no byte is lost meanwhile.
 */
import { describe, expect, it } from 'vitest';
import { MemoryWorld } from './memory-world.js';
import { CMD, concat, dmaMap, ERROR, message, pack, QEMU_CAPABILITIES, REPLY, u32, u64, type Answer } from './wire.js';

const E2BIG = 7, MSI = 0xfee0_0000;

/** QEMU's side of what the server asks (hw/vfio-user/pci.c), with memory of its own. */
class Qemu {
  readonly world = new MemoryWorld().negotiate(QEMU_CAPABILITIES);
  readonly ram = new Uint8Array(8192);
  /** Writes that were carried out beside those into its memory. */
  readonly interrupts: number[] = [];
  refused = 0;
  private readonly short: boolean;

  constructor(version: 10 | 11) {
    this.short = version === 10;
    this.world.ok(CMD.DMA_MAP, dmaMap(0, 8192, 0));
  }

  /** Answers until nothing is left to answer. */
  run(): this {
    for (let asked = this.world.sent.shift(); asked !== undefined; asked = this.world.sent.shift()) this.world.push(this.answer(asked));
    return this;
  }

  private answer({ id, command, payload }: Answer): Uint8Array {
    const address = u64(payload, 0), count = this.short || u32(payload, 12) === 0 ? u32(payload, 8) : Infinity, at = this.short ? 12 : 16;
    if (command === CMD.DMA_WRITE) {
      if (count > payload.length - 16) {
        this.refused++;
        return message(id, command, undefined, REPLY | ERROR, E2BIG);
      }
      const data = payload.subarray(at, at + count);
      if (address >= MSI) this.interrupts.push(u32(data, 0));
      else this.ram.set(data, address);
      return message(id, command, undefined, REPLY);
    }
    const reply = concat(payload.subarray(0, 16), new Uint8Array(count));
    reply.set(this.ram.subarray(address, address + count), at);
    return message(id, command, reply, REPLY);
  }
}

describe.each([10, 11] as const)('a QEMU of version %i', (version) => {
  it('gets every interrupt as it was meant, the first ones too', () => {
    const qemu = new Qemu(version);
    const done: unknown[] = [];
    for (const data of [0x21, 0x22, 0, 0x23]) qemu.world.memory.write(MSI, pack([4, data]), (error) => done.push(error));
    qemu.run();
    expect([qemu.interrupts, done, qemu.refused]).toEqual([[0x21, 0x22, 0, 0x23], [undefined, undefined, undefined, undefined], version === 10 ? 0 : 1]);
  });

  it('has its memory read and written, whatever comes first', () => {
    const qemu = new Qemu(version);
    const found = new Uint8Array(4096);
    for (let i = 0; i < 4096; i++) qemu.ram[4096 + i] = (i * 7 + 1) & 0xff;
    qemu.world.memory.readByMessages(4096, found, (error) => expect(error).toBeUndefined());
    qemu.run();
    expect(found).toEqual(qemu.ram.slice(4096));
    const zeros = new Uint8Array(16);
    qemu.world.memory.write(4096, zeros, () => {});
    qemu.world.memory.write(4112, new Uint8Array(5).fill(9), () => {});
    qemu.run();
    expect([...qemu.ram.subarray(4096, 4118)]).toEqual([...zeros, 9, 9, 9, 9, 9, (21 * 7 + 1) & 0xff]);
    // what was read told the layout: nothing had to be tried
    expect(qemu.refused).toBe(0);
  });

  it('answers a read while a write is tried, and nothing waits for ever', () => {
    const qemu = new Qemu(version);
    const found = new Uint8Array(64), done: unknown[] = [];
    qemu.ram.fill(0xee, 0, 64);
    qemu.world.memory.readByMessages(0, found, (error) => done.push(error));
    for (const data of [0x21, 0x22]) qemu.world.memory.write(MSI, pack([4, data]), (error) => done.push(error));
    qemu.run();
    expect([done, qemu.interrupts, found.every((byte) => byte === 0xee)]).toEqual([[undefined, undefined, undefined], [0x21, 0x22], true]);
  });

  it.each([1, 3, 16, 4096])('has a first write of %i bytes that begins with zeros as it was meant', (length) => {
    for (const zeros of [0, 1, length - 1, length]) {
      const qemu = new Qemu(version), bytes = new Uint8Array(length);
      qemu.ram.fill(0xee);
      bytes.fill(7, zeros);
      let done: unknown = 'not yet';
      qemu.world.memory.write(64, bytes, (error) => (done = error));
      qemu.run();
      expect([done, qemu.ram.slice(63, 65 + length)]).toEqual([undefined, Uint8Array.of(0xee, ...bytes, 0xee)]);
    }
  });

  it('may leave while the first answer is still to come', () => {
    const qemu = new Qemu(version);
    const done: (string | undefined)[] = [];
    for (const data of [0x21, 0x22]) qemu.world.memory.write(MSI, pack([4, data]), (error) => done.push(error?.code));
    qemu.world.session.disconnected();
    expect(done).toEqual(['ECONNRESET', 'ECONNRESET']);
  });
});
