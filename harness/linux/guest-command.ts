/** The command that starts an external guest on its sockets. */
import { kernelCommandLine, qemuArguments } from './qemu-command.js';
import type { ExternalTopology } from '../topology/schema.js';
import type { GuestServer } from '../serve/guest-server.js';

/** Program, kernel and initramfs: of a prepared guest, or words that stand for them. */
export interface GuestSoftware {
  readonly qemu: readonly string[];
  readonly kernel: string;
  readonly initrd: string;
}

/** For who has nothing prepared: to be replaced. */
export const ANY_LINUX: GuestSoftware = { qemu: ['qemu-system-x86_64'], kernel: 'VMLINUZ', initrd: 'INITRD' };

export function guestCommand({ guest, functions, table }: GuestServer, { qemu, kernel, initrd }: GuestSoftware): string[] {
  const { topology, memoryBytes } = guest;
  return [...qemu, ...qemuArguments({
    memoryMiB: memoryBytes / 2 ** 20, cpus: guest.vcpus, cpu: topology.cpu, kernel, initrd, append: kernelWords(topology), ...(table === undefined ? {} : { table }),
    devices: functions.map(({ served, path }) => ({ socket: path, slot: served.slot })),
  })];
}

/** The kernel's command line: mode of the IOMMU, steps of the prepared guest, and what the topology adds. */
export function kernelWords({ kernel, linux, append, devices }: ExternalTopology): string {
  const mode = { strict: 'iommu.strict=1', passthrough: 'iommu=pt', lazy: '' }[kernel['iommu-mode']];
  const scalable = kernel['scalable-mode'] ? '' : 'intel_iommu=sm_off';
  const has = (model: string): boolean => devices.some((device) => device.model === model);
  const run = linux.run ?? ['pci', ...(has('nvme') ? ['nvme'] : []), ...(has('dsa') ? ['dsa'] : []), 'irq'];
  return kernelCommandLine({ run, settings: linux.set, extra: [mode, scalable, append].filter((word) => word !== '').join(' ') });
}
