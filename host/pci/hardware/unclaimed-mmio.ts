/** Registers that nobody implements: all ones, writes vanish. */
import { PlainMmio, type AccessSize } from '../../../sim/mmio.js';

export class UnclaimedMmio extends PlainMmio {
  read(_offset: number, size: AccessSize): number {
    this.high = size === 8 ? 0xffff_ffff : 0;
    return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
  }

  write(): void {}
}
