/**
 * A PCI function whose only BAR shows the registers of something that is no PCI device: an IOMMU that an ACPI table
 * puts at a fixed address. What keeps that address where the table says:
 *
 * - Class host bridge (0600): Linux never moves BARs of these and leaves decoding on while it sizes them
 *   (drivers/pci/probe.c, `mmio_always_on`; drivers/pci/setup-bus.c).
 * - A BAR of 16 MiB: firmware places the largest alignment lowest, so that it does not matter what else is plugged in.
 */
export const CARRIER_VENDOR_ID = 0x1234;
export const CARRIER_DEVICE_ID = 0x0d3a;
/** Bridge device, host bridge. */
export const CARRIER_CLASS = 0x06_0000;
export const CARRIER_BAR = 0;
export const CARRIER_BAR_SIZE = 2 ** 24;
/** Where SeaBIOS puts the BAR on QEMU's q35 without a VGA adapter: the start of its window for 32-bit BARs. */
export const CARRIER_BAR_ADDRESS = 0xfd00_0000;
