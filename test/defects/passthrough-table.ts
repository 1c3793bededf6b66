/** Who catches which defect of passthrough, and where. */
import type { GuestSceneName } from './guest-scenes.js';
import type { INVARIANTS } from './passthrough-worlds.js';
import type { Catcher } from './run.js';

const BALANCE = 'pins, PASIDs, domains and frames balance';
const CLOSED_FIRST = 'a device goes only after its user has closed it';
const ONE_UUID = 'a UUID names one mediated device';
const MASTER = 'bus mastering is off when a user has closed a device';
const STOPPED = 'a stopped device moves nothing';
const INVALIDATED = 'pages are given back only after the invalidation';
const GIVEN_BACK = 'drivers give the pages back that their user unmaps';
const ONE_MEMORY = "a guest's devices and its processors see one memory";
const OWN_PASID = "a mediated device's queue takes only its user's descriptors";
const OWN_ENTRY = 'an interrupt leads where the entry of its device says';

export const IN_A_MACHINE_WITH_GUESTS: readonly (readonly [defect: string, scene: GuestSceneName, catcher: Catcher])[] = [
  ['idxd.unpin-before-completion', 'munmap-in-guest', /\(verify\): buffer "other" differs/],
  ['kvm.enqcmd-untranslated', 'shared', OWN_PASID],
  ['kvm.stale-translation', 'balloon', /\(verify\): buffer "inside" differs/],
  ['mdev.instance-leak', 'removed', /inject start-mdev slice2: -EUSERS: /],
  ['mdev.remove-open-device', 'removed', CLOSED_FIRST],
  ['mtty.never-unpin', 'serial', GIVEN_BACK],
  ['mtty.pin-leak', 'serial', GIVEN_BACK],
  ['vdsa.guest-pasid-trusted', 'another-pasid', OWN_PASID],
  ['vdsa.posted-to-shared', 'posted-to-shared', OWN_PASID],
  ['vfio.keep-dma-owner', 'whole', /guest vm1 is refused \(-EPERM: .* belongs to another owner\), expected running/],
  ['vfio.skip-unpin', 'guest', BALANCE],
  ['vfio.unregister-does-not-wait', 'removed', CLOSED_FIRST],
  ['vfio.wrong-rlimit', 'over-limit', /guest vm0 is running, expected refused/],
  ['vfio-pci.master-stays-on', 'whole', MASTER],
  ['vmm.map-wrong-slot', 'hot-add', ONE_MEMORY],
];

export const BY_A_CHECKER_WITH_USERS: readonly (readonly [defect: keyof typeof INVARIANTS, invariant: string])[] = [
  ['mdev.uuid-unique-per-parent', ONE_UUID],
  ['migration.keep-running-in-stop-copy', STOPPED],
  ['vfio.skip-dma-unmap-notify', GIVEN_BACK],
  ['vfio.skip-replay-rollback', BALANCE],
  ['vfio.unpin-before-flush', INVALIDATED],
  ['vfio.unset-with-open-devices', CLOSED_FIRST],
  ['vtd.ignore-irte-source', OWN_ENTRY],
  ['vtd-driver.skip-iec-flush', OWN_ENTRY],
];
