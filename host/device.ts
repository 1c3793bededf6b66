/** A device as the kernel's IOMMU layer sees it: a PCI function, or later a mediated device. */
export interface Device {
  /** As in sysfs: `0000:6a:01.0`, or a UUID. */
  readonly name: string;
}
