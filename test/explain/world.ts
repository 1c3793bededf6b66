/** Small stopped machines, written word by word from the manual. */
import { Ram } from '../../sim/memory.js';
import type { RegisterValues } from '../../harness/explain/register-file.js';

export function ramWith(words: Readonly<Record<number, readonly bigint[]>>, sizeBytes = 0x20_0000): Ram {
  const ram = new Ram(sizeBytes);
  for (const [address, qwords] of Object.entries(words)) {
    qwords.forEach((qword, i) => ram.store64(Number(address) + i * 8, Number(qword & 0xffff_ffffn), Number(qword >> 32n)));
  }
  return ram;
}

export function registers(values: Readonly<Record<string, bigint>>): RegisterValues {
  return new Map(Object.entries(values));
}

export const TRANSLATION_ON = 0x8000_0000n;

/**
 * Scalable mode, root table at 0x1000: 6a:01.0 with PASID 0 (pass-through, domain 1), PASID 1 (first level at 0x6000,
 * domain 2: one user page, one kernel page), PASID 2 (nested: first level at guest 0x1000 under 0xa000, domain 3).
 */
export function scalableMachine(): { memory: Ram; registers: RegisterValues } {
  const memory = ramWith({
    [0x1000 + 0x6a * 16]: [0x2001n, 0n],
    // 6a:01.0 is devfn 8, 32 bytes each; DTE, PASIDE, PRE, PDTS 0
    [0x2000 + 8 * 32]: [0x3000n | 0x1dn, 0n, 0n, 0n],
    0x3000: [0x4001n],
    0x4000: [0x101n, 1n, 0n, 0n, 0n, 0n, 0n, 0n],
    0x4040: [0x41n, 2n, 0x6000n, 0n, 0n, 0n, 0n, 0n],
    0x4080: [0xa000n | 0xc1n | (1n << 2n), 3n, 0x1000n, 0n, 0n, 0n, 0n, 0n],
    // 0x7ffff7fbb000: indices 255, 511, 447, 443
    [0x6000 + 255 * 8]: [0x7067n], [0x7000 + 511 * 8]: [0x8067n], [0x8000 + 447 * 8]: [0x9067n], [0x9000 + 443 * 8]: [0x21_d067n],
    // 0xffff_8000_0000_0000: index 256 of the root; U/S clear in the root entry
    [0x6000 + 256 * 8]: [0xf063n], 0xf000: [0xb067n], 0xb000: [0xc067n], 0xc000: [0x30_0067n],
    // second level of 3 levels: guest 0x1000 … 0x5000 lie at 0x10000 … 0x14000
    0xa000: [0xd003n], 0xd000: [0xe003n], 0xe008: [0x1_0003n, 0x1_1003n, 0x1_2003n, 0x1_3003n, 0x1_4001n],
    0x1_0000: [0x2067n], 0x1_1000: [0x3067n], 0x1_2000: [0x4067n], 0x1_3028: [0x5025n],
  });
  return { memory, registers: registers({ RTADDR: 0x1400n, GSTS: TRANSLATION_ON }) };
}
