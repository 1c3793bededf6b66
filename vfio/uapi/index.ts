/** VFIO's user interface as bytes: numbers of ioctls and layouts of records (include/uapi/linux/vfio.h). */
export * from './capability-chain.js';
export * from './device.js';
export * from './fields.js';
export * from './group.js';
export * from './ioctl.js';
export * from './migration.js';
export * from './type1.js';
export * from './user-memory.js';
