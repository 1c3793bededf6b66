/** VFIO's core. */
export { Container } from './container.js';
export type { DmaOwners, GroupMember, GroupMembers } from './context.js';
export { DeviceFile } from './device-file.js';
export { GroupFile, groupOfFile, VfioGroup } from './group.js';
export { Vfio, type VfioOptions } from './vfio.js';
