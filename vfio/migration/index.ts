/** Migration of devices, and logs of what they write. */
export * from './data-file.js';
export * from './dma-logging.js';
export * from './feature-check.js';
export * from './migration.js';
export * from './states.js';
