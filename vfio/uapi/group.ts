/** Records of /dev/vfio/$group (include/uapi/linux/vfio.h). */
import { struct } from '../../sim/layout.js';
import { u32 } from './fields.js';

export const GROUP_STATUS = struct('vfio_group_status', 8, { argsz: u32(0), flags: u32(4) });
export const VFIO_GROUP_FLAGS_VIABLE = 1 << 0;
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1;
