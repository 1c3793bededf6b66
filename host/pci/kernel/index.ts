/** The kernel's PCI core. */
export * from './acs.js';
export * from './bar-window.js';
export * from './bars.js';
export * from './bdf.js';
export * from './capability-list.js';
export * from './config-access.js';
export * from './drivers.js';
export * from './function-device.js';
export * from './groups.js';
export * from './lspci/hex-dump.js';
export * from './lspci/lspci.js';
export * from './lspci/names.js';
export type { LspciFunction } from './lspci/source.js';
export * from './msix.js';
export * from './pci-core.js';
export * from './pci-device.js';
export * from './reset.js';
export * from './sriov.js';
