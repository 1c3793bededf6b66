/** The vfio-pci driver. */
export * from './device.js';
export * from './vfio-pci.js';
