/** Virtual machines: the VMM on the host, its kernel's side, and the guest's time. */
export { GuestBalloon } from './balloon.js';
export { GuestClock, type GuestClockState } from './clock.js';
export { GuestMemory, type GuestFault, type GuestTranslation } from './kvm/guest-memory.js';
export { Vm, type VmOptions } from './kvm/vm.js';
export { PassthroughDevice, type VfioDeviceOptions } from './vmm/passthrough-device.js';
export type { HugePages, RamBlock } from './vmm/ram.js';
export { Vmm, type EoiSource, type VmmOptions, type VmmState } from './vmm/vmm.js';
