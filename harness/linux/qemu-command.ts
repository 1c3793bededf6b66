/**
 * The command that boots a guest on devices of ours: QEMU's q35 machine without devices of its own that do DMA, its RAM
 * in a memory file that the vfio-user servers map, one vfio-user-pci device for each socket. Options as in QEMU's
 * manual page and docs/system/devices/vfio-user.rst. Left out: KVM, which not every machine offers and nothing
 * here needs; disks, displays and networks of QEMU's own.
 */
import { InvalidInput } from '../topology/problems.js';

export interface GuestSocket {
  /** Path of the listening socket. */
  readonly socket: string;
  /** Device and function on bus 0: `03.0`. */
  readonly slot: string;
}

export interface QemuOptions {
  readonly memoryMiB: number;
  /** Virtual processors, default 1. */
  readonly cpus?: number;
  /** Default `max`: five-level paging, 1 GiB pages, everything the translator has. */
  readonly cpu?: string;
  /** Without a kernel the machine boots what its firmware finds; `initrd` and `append` go with one. */
  readonly kernel?: string;
  readonly initrd?: string;
  /** The kernel's command line as it is; see `kernelCommandLine`. */
  readonly append?: string;
  /** File of an ACPI table with its header, in AML: DMAR, say. */
  readonly table?: string;
  /** In this order on the command line, which is the order in which QEMU connects. */
  readonly devices: readonly GuestSocket[];
}

/**
 * QEMU's arguments, without the program.
 * @throws InvalidInput for a table whose name has a colon: QEMU takes it for several files
 */
export function qemuArguments(options: QemuOptions): string[] {
  const { memoryMiB, cpus = 1, cpu = 'max', kernel, initrd, append, table, devices } = options;
  const argv = [
    '-machine', 'q35,accel=tcg,kernel-irqchip=split', '-cpu', cpu, '-m', String(memoryMiB),
    '-object', `memory-backend-memfd,id=ram,size=${memoryMiB}M,share=on`, '-machine', 'memory-backend=ram',
    // std VGA would take the address of the IOMMU's registers; a reboot would end in a second boot without a reset of the servers
    '-nographic', '-nic', 'none', '-vga', 'none', '-no-reboot',
  ];
  if (cpus > 1) argv.push('-smp', String(cpus));
  if (kernel !== undefined) {
    argv.push('-kernel', kernel);
    if (initrd !== undefined) argv.push('-initrd', initrd);
    if (append !== undefined) argv.push('-append', append);
  }
  if (table !== undefined) {
    if (table.includes(':')) throw new InvalidInput([{ file: table, message: 'a file of an ACPI table has no colon in its path, which QEMU takes for a separator' }]);
    argv.push('-acpitable', `file=${table.replaceAll(',', ',,')}`);
  }
  for (const { socket, slot } of devices) {
    argv.push('-device', JSON.stringify({ driver: 'vfio-user-pci', socket: { type: 'unix', path: socket }, bus: 'pcie.0', addr: slot }));
  }
  return argv;
}

export interface GuestWords {
  /** Steps of the prepared guest, see guest/init. */
  readonly run: readonly string[];
  /** `wqs: 4` becomes `vfiosim.wqs=4`. */
  readonly settings?: Readonly<Record<string, number>>;
  /** Anything more for the kernel: `iommu.strict=1`. Of a parameter given twice the kernel takes the last. */
  readonly extra?: string;
}

/**
 * The kernel's command line for the prepared guest: console, the IOMMU on, a panic ends QEMU, and idxd loads although
 * QEMU's translator has no MOVDIR64B.
 */
export function kernelCommandLine({ run, settings = {}, extra = '' }: GuestWords): string {
  const words = ['console=ttyS0', 'panic=-1', 'intel_iommu=on', 'setcpuid=movdir64b', `vfiosim.run=${run.join(',')}`];
  for (const [name, value] of Object.entries(settings)) words.push(`vfiosim.${name}=${value}`);
  return [...words, extra].filter((word) => word !== '').join(' ');
}

const PLAIN = /^[A-Za-z0-9_./:=,+@%-]+$/;

/** The command for a POSIX shell, one option a line, quoted where it has to be: it can be copied as it is. */
export function shellText(argv: readonly string[]): string {
  const quoted = argv.map((word) => (PLAIN.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`));
  return quoted.reduce((text, word, at) => (at === 0 ? word : text + (argv[at]!.startsWith('-') ? ' \\\n  ' : ' ') + word), '');
}
