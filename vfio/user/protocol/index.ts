/** Messages of the vfio-user protocol as bytes, without a socket. */
export * from './header.js';
export * from './message-reader.js';
export * from './records.js';
export * from './version.js';
