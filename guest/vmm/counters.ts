/** What a VMM did, for reports. */
export class VmmCounters {
  /** Guest accesses that left the guest: loads and stores of registers that are not mapped. */
  traps = 0;
  /** pread and pwrite of device regions, those for configuration space included. */
  regionReads = 0;
  regionWrites = 0;
  /** Calls of the kernel for devices and memory. */
  ioctls = 0;
  /** Pages that the balloon gave back to the host, and that it took again. */
  ballooned = 0;
  deflated = 0;
}
