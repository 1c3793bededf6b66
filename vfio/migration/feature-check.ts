/**
 * What every VFIO_DEVICE_FEATURE handler asks first (`vfio_check_feature`, include/linux/vfio.h).
 */
import { Errno } from '../../sim/errno.js';
import type { VfioFeatureRequest } from '../device.js';

/**
 * True when the request is to be carried out, false for a probe, which only asks. EINVAL an operation that the
 * feature does not have, none at all, or fewer than `sizeBytes` of payload.
 */
export function checkFeature(request: VfioFeatureRequest, operations: 'get' | 'set' | 'get-set', sizeBytes: number): boolean {
  const unsupported = (request.get && operations === 'set') || (request.set && operations === 'get');
  if (unsupported) throw new Errno('EINVAL', `feature ${request.feature} cannot be ${request.get && operations === 'set' ? 'read' : 'set'}`);
  if (request.probe) return false;
  if (request.get === request.set) throw new Errno('EINVAL', `feature ${request.feature}: exactly one of GET and SET is needed`);
  if (request.data.length < sizeBytes) throw new Errno('EINVAL', `feature ${request.feature}: payload has ${request.data.length} bytes, ${sizeBytes} are needed`);
  return true;
}
