/** Message-signalled events of a unit: a control, data, address and upper address register in a row (VT-d 4.1, section 11.4.7). */
import type { Mmio } from '../../../sim/mmio.js';
import type { IrqVector } from '../../../host/interrupts.js';

/**
 * Programs an event's message and unmasks it; the read back makes sure that the posted writes have arrived.
 * @param control offset of FECTL or PECTL
 */
export function unmaskEvent(registers: Mmio, control: number, vector: IrqVector): void {
  registers.write(control + 4, 4, vector.data);
  registers.write(control + 8, 4, vector.address);
  registers.write(control + 12, 4, Math.floor(vector.address / 0x1_0000_0000));
  registers.write(control, 4, 0);
  registers.read(control, 4);
}
