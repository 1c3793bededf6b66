/** Everything about configuration space that hardware and kernel share. */
export * from './config-header.js';
export * from './capabilities.js';
export * from './extended-capabilities.js';
export * from './errors.js';
