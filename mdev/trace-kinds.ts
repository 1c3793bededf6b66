/**
 * What the mediated device core tells; Linux has no tracepoints here, the names follow its functions. Opens, closes and
 * requests are VFIO's to tell. `mdev:removing` comes when a remove has been accepted, `mdev:remove` when the parent's
 * driver has ended the instance, which nobody may have open then.
 */
import type { Trace } from '../sim/trace.js';
import type { MdevDevice, MdevParent } from './device.js';

export interface MdevTrace {
  registerParent(parent: MdevParent): void;
  unregisterParent(parent: MdevParent): void;
  create(mdev: MdevDevice): void;
  removing(mdev: MdevDevice): void;
  remove(mdev: MdevDevice): void;
}

export function mdevTrace(trace: Trace): MdevTrace {
  const registerParent = trace.define('mdev:register_parent', [['parent', 'str'], ['driver', 'str'], ['types', 'dec']]);
  const unregisterParent = trace.define('mdev:unregister_parent', [['parent', 'str']]);
  const create = trace.define('mdev:create', [['uuid', 'str'], ['parent', 'str'], ['type', 'str'], ['group', 'dec'], ['iommu_device', 'str']]);
  const removing = trace.define('mdev:removing', [['uuid', 'str'], ['open', 'bool']]);
  const remove = trace.define('mdev:remove', [['uuid', 'str'], ['parent', 'str'], ['type', 'str'], ['group', 'dec']]);
  const record = trace.record.bind(trace);
  const str = trace.intern.bind(trace);
  return {
    registerParent: ({ device, ops, types }) => record(registerParent, 0, str(device.name), str(ops.driver), types.length),
    unregisterParent: ({ device }) => record(unregisterParent, 0, str(device.name)),
    create: (mdev) => record(create, 0, str(mdev.name), str(mdev.parent.device.name), str(mdev.typeId), mdev.group, str(mdev.instance?.iommuDevice?.name ?? '')),
    removing: (mdev) => record(removing, 0, str(mdev.name), mdev.opens > 0 ? 1 : 0),
    remove: (mdev) => record(remove, 0, str(mdev.name), str(mdev.parent.device.name), str(mdev.typeId), mdev.group),
  };
}
