/**
 * The topology language, version 1: one zod schema that checks files, types the loader's result and generates the
 * JSON Schema for editors. Spelling follows Linux, QEMU and mdevctl.
 */
import { z } from 'zod';
import { DEFAULT_TIMING } from '../../host/timing.js';
import { COMPLAINT_KINDS } from '../linux/complaint-kinds.js';
import { parseAddress, parseBdf, parseSize, parseTime } from './units.js';

const scalar = z.union([z.string(), z.number(), z.bigint()]);

const size = scalar
  .transform((value, context) => parseSize(value) ?? refuse(context, value, 'a size such as 4096, "64KiB" or "4GiB"'))
  .meta({ id: 'size', description: 'Bytes: 4096, 64KiB, 2MiB, 4GiB' });
const time = scalar
  .transform((value, context) => parseTime(value) ?? refuse(context, value, 'a time with its unit, such as 500us, 10ms or 1s'))
  .meta({ id: 'time', description: 'Time with unit: 250ns, 500us, 10ms, 1s' });
const address = scalar
  .transform((value, context) => parseAddress(value) ?? refuse(context, value, 'an address such as 0x7f0000001000'))
  .meta({ id: 'address', description: '64-bit address or value, 0x… or decimal' });
const bdf = z
  .string()
  .transform((value, context) => parseBdf(value) ?? refuse(context, value, 'a quoted PCI address such as "0000:6a:01.0"'))
  .meta({ id: 'bdf', description: 'PCI address "segment:bus:device.function"' });
const name = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'a name starts with a letter or digit and has at most 64 letters, digits, ".", "_" or "-"')
  .meta({ id: 'name' });

function refuse(context: z.RefinementCtx, value: unknown, allowed: string): never {
  const shown = typeof value === 'string' ? `"${value.slice(0, 40)}"` : String(value);
  const negative = typeof value !== 'string' && Number(value) < 0 ? ' (negative)' : '';
  context.addIssue({ code: 'custom', message: `${shown}${negative} is not ${allowed}` });
  return z.NEVER;
}

const uuid = z
  .string()
  .regex(/^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$/, 'expects a UUID such as "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"')
  .transform((value) => value.toLowerCase())
  .meta({ id: 'uuid' });

const powerOfTwo = (first: number, last: number, what: string) =>
  z.int().refine((value) => value >= first && value <= last && Number.isInteger(Math.log2(value)), `${what} must be a power of two from ${first} to ${last}`);

/** Options of the VT-d model: what its capability registers advertise. */
const intelVtd = z.strictObject({
  model: z.literal('intel-vtd'),
  'aw-bits': z.union([z.literal(39), z.literal(48), z.literal(57)]).optional().describe('Widest second-level tables (SAGAW, MGAW); default 48'),
  haw: z.int().min(32).max(52).default(46).describe('Host (physical) address width, in the DMAR table'),
  scalable: z.boolean().default(true).describe('Scalable mode (ECAP.SMTS)'),
  'first-level': z.boolean().optional().describe('First-level translation (ECAP.FSTS); default: scalable'),
  'second-level': z.boolean().optional().describe('Second-level translation in scalable mode (ECAP.SSTS); default: scalable'),
  nested: z.boolean().optional().describe('Nested translation (ECAP.NEST); default: first-level and second-level'),
  'pass-through': z.boolean().optional().describe('Pass-through entries (ECAP.PT); default true'),
  'five-level': z.boolean().optional().describe('5-level first-level tables (CAP.FS5LP); default false'),
  'first-level-1g': z.boolean().optional().describe('1 GiB first-level leaves (CAP.FS1GP); default: first-level'),
  'second-level-superpages': z.array(z.enum(['2M', '1G'])).optional().describe('Second-level leaves above 4 KiB (CAP.SSLPS); default both'),
  'pasid-bits': z.int().min(0).max(20).optional().describe('PASID width (ECAP.PSS + 1), 0: none; default 20 in scalable mode'),
  'page-requests': z.boolean().optional().describe('Page requests (ECAP.PRS); default: device-tlb and PASIDs'),
  'page-request-queue': powerOfTwo(128, 16_384, 'page-request-queue').default(2048).describe('Entries the kernel gives to the page request queue'),
  'device-tlb': z.boolean().optional().describe('Device TLBs, which is ATS (ECAP.DT); default true'),
  'execute-requests': z.boolean().optional().describe('Requests that ask for execute permission (ECAP.ERS)'),
  'supervisor-requests': z.boolean().optional().describe('Requests that ask for supervisor privilege (ECAP.SRS)'),
  'extended-accessed': z.boolean().optional().describe('Extended accessed bit (ECAP.EAFS); default false'),
  'accessed-dirty': z.boolean().optional().describe('Second-level accessed and dirty bits (ECAP.SSADS); default false'),
  'snoop-control': z.boolean().optional().describe('Snoop control (ECAP.SC); default true'),
  'caching-mode': z.boolean().optional().describe('Caching mode (CAP.CM); default false'),
  'domain-ids': z.union([16, 64, 256, 1024, 4096, 16_384, 65_536].map((count) => z.literal(count))).optional().describe('Number of domain ids (CAP.ND); default 65536'),
  'fault-records': z.int().min(1).max(222).optional().describe('Fault recording registers (CAP.NFR + 1); default 8'),
  esrtps: z.boolean().optional().describe('Setting the root table invalidates every cache (CAP.ESRTPS); default false'),
  drain: z.boolean().optional().describe('Drain of reads and writes (CAP.DRD, DWD); default true'),
  psi: z.boolean().optional().describe('Page-selective invalidation (CAP.PSI); default true'),
  mamv: z.int().min(0).max(63).optional().describe('Largest address mask (CAP.MAMV); default 18'),
  'interrupt-remapping': z.boolean().default(true).describe('Interrupts of devices are remapped (ECAP.IR), so that none can forge another\'s; passthrough needs it'),
  'abort-dma': z.boolean().optional().describe('Abort-DMA mode (ECAP.ADMS); default false'),
  'iotlb-entries': z.int().min(0).max(65_536).refine((value) => value === 0 || (value >= 4 && Number.isInteger(Math.log2(value))), 'iotlb-entries is 0 or a power of two from 4 to 65536').default(512).describe('Size of the IOTLB; 0 switches every translation cache off'),
});

const iommu = z.discriminatedUnion('model', [intelVtd]).meta({ id: 'iommu' });

const kernelOptions = z.strictObject({
  'iommu-mode': z.enum(['strict', 'lazy', 'passthrough']).default('lazy').describe('intel_iommu=strict, the default flush queue, or iommu=pt'),
  'scalable-mode': z.boolean().default(true).describe('intel_iommu=sm_on'),
  'pasid-policy': z.enum(['lowest', 'cyclic', 'random']).default('lowest').describe('Which free PASID is handed out next'),
  'prq-timeout': z.int().min(0).max(100).default(10).describe('iommu.prq_timeout: seconds until an unanswered page request is complained about; 0: never'),
  'iopf-workers': z.int().min(1).max(64).default(4).describe('Page-fault groups handled at the same time'),
  'strict-prg': z.boolean().default(false).describe('Reports the reuse of a page request group index that is still in use as a violation'),
  'memlock-limit': size.optional().describe('RLIMIT_MEMLOCK of processes'),
  'allow-unsafe-interrupts': z.boolean().default(false).describe('vfio_iommu_type1.allow_unsafe_interrupts: assign devices without interrupt remapping'),
});

const pri = z.union([
  z.boolean(),
  z.strictObject({
    'max-requests': z.int().min(1).max(65_536).default(512).describe('Outstanding Page Request Capacity'),
    'pasid-required': z.boolean().default(true).describe('PRG Response PASID Required'),
  }),
]);

const functionCommon = {
  name: name.describe('How processes and reports call the device'),
  bdf,
  port: name.optional().describe('Switch (of `ports`) behind which the function sits; default: its own root port'),
};

const workQueue = z.strictObject({
  name: name.optional().describe('Default: wq0.0, wq0.1, …'),
  mode: z.enum(['dedicated', 'shared']).default('dedicated'),
  type: z.enum(['user', 'kernel', 'mdev']).default('user').describe('user: opened by processes, with SVA; kernel: through the DMA API; mdev: given to mediated devices'),
  size: z.int().min(1).max(1024).default(32).describe('Entries'),
  threshold: z.int().min(1).max(1024).optional().describe('Occupancy up to which a limited portal of a shared queue accepts'),
  priority: z.int().min(1).max(15).default(10),
  'block-on-fault': z.boolean().default(true),
  group: z.int().min(0).max(15).default(0),
});

const dsa = z.strictObject({
  model: z.literal('dsa'),
  ...functionCommon,
  ats: z.boolean().default(true),
  pri: pri.default(true),
  'pasid-bits': z.int().min(0).max(20).default(20),
  siov: z.boolean().default(true).describe('DVSEC that announces scalable I/O virtualization'),
  engines: z.int().min(1).max(16).default(4),
  groups: z.int().min(1).max(16).default(1),
  'engine-slots': z.int().min(1).max(256).default(16).describe('Descriptors one engine works on at a time'),
  'work-queues': z.array(workQueue).min(1).max(32).default([]).describe('Default: one dedicated user queue'),
  'mm-exit': z.boolean().default(false).describe('The driver gives mm_exit at bind and stops the queue in it'),
  'prefetch-pages': z.int().min(1).max(512).default(1).describe('Pages asked for in one page request group'),
  'mdev-slots': z.int().min(0).max(1024).default(64).describe('Mediated devices that shared queues of type mdev may serve together'),
});

const edu = z.strictObject({
  model: z.literal('edu'),
  ...functionCommon,
  'dma-mask-bits': z.int().min(28).max(64).default(28),
});

export const DEFAULT_DISK_BYTES = 64 * 2 ** 20;

const nvme = z.strictObject({
  model: z.literal('nvme'),
  ...functionCommon,
  size: size.default(DEFAULT_DISK_BYTES).describe('Bytes of the namespace, whole blocks of 512 bytes; of an external guest only without an image'),
  image: z.string().optional().describe('Content of its first bytes, a file relative to the topology'),
  'image-mode': z.enum(['snapshot', 'write', 'read-only']).default('snapshot').describe('snapshot: the file is never written to; write and read-only: the file is the disk (external guests only)'),
  'io-queues': z.int().min(1).max(64).default(4).describe('I/O queue pairs, each with an interrupt vector'),
});

const device = z.discriminatedUnion('model', [dsa, edu, nvme]).meta({ id: 'device' });

const port = z.strictObject({
  name,
  acs: z.boolean().default(true).describe('Downstream ports isolate (SV, RR, CR, UF)'),
  'translation-blocking': z.boolean().default(false).describe('ACS TB: translated requests are refused, ATS does not work behind it'),
  'tlp-prefix': z.boolean().default(true).describe('End-to-end TLP prefixes pass (PASID needs them)'),
});

const mttyParent = z.strictObject({
  model: z.literal('mtty'),
  name,
  'hot-unplug': z.boolean().default(false).describe('A device in use can be removed: its user is asked for it'),
  'late-unpin': z.int().min(0).max(1000).default(0).describe('Notifications of an unmap that the driver lets pass before it unpins'),
});

const host = z.strictObject({
  memory: size.default(4 * 2 ** 30),
  iommu: iommu.optional().describe('Without it DMA is untranslated'),
  kernel: kernelOptions.prefault({}),
  ports: z.array(port).max(64).default([]).describe('Switches'),
  devices: z.array(device).max(256).default([]),
  'mdev-parents': z.array(mttyParent).max(16).default([]).describe('Parents of mediated devices without hardware'),
});

/** A mediated device, in the words of mdevctl. */
const mdev = z.strictObject({
  uuid,
  name: name.optional().describe('How guests and reports call it; default: the UUID'),
  parent: name.describe('Device of the host, by name'),
  mdev_type: z.string().min(1).describe('Type id, such as idxd-1dwq-v1 or mtty-1'),
  start: z.enum(['auto', 'manual']).default('auto').describe('auto: there after boot; manual: when something starts it'),
  attrs: z.array(z.record(z.string(), z.string())).max(64).default([]).describe('Attributes written in order after creation'),
});

const prot = z.enum(['none', 'r', 'rw', 'rx', 'rwx']);
const buffer = z.strictObject({ buffer: name, offset: size.default(0), size: size.optional() });
const bufferRef = z.union([name, buffer]).meta({ id: 'bufferRef', description: 'A buffer by name, or a part of it' });
const rawAddress = z.strictObject({ address: address.describe('As the device gets it, right or wrong'), size });
const operand = z.union([name, buffer, rawAddress]).meta({ id: 'operand', description: 'A buffer by name, a part of it, or an address that is handed to the device unchecked' });

const submit = z.strictObject({
  to: name.optional().describe('Handle to submit to; default: the only open one'),
  copy: z.strictObject({ from: operand, to: operand }).optional(),
  fill: z.strictObject({ buffer: operand, pattern: address.default(0n) }).optional(),
  compare: z.strictObject({ a: operand, b: operand }).optional(),
  crc: z.strictObject({ from: operand }).optional(),
  noop: z.strictObject({}).optional(),
  chunk: size.optional().describe('Split into descriptors of this size'),
  times: z.int().min(1).max(1_000_000).default(1),
  batch: z.boolean().default(false).describe('Submit the descriptors as one batch descriptor'),
  'block-on-fault': z.boolean().optional().describe('Default: what the queue allows'),
  'no-wait': z.boolean().default(false).describe('A full queue is an error instead of a retry'),
});

const deviceSpace = z.string().regex(/^(config|bar[0-5])$/, 'expects config or bar0 to bar5');
const accessSize = z.union([z.literal(1), z.literal(2), z.literal(4), z.literal(8)]);
const errorName = z.string().regex(/^(E[A-Z0-9]+|SIGSEGV)$/, 'expects an errno name such as EBUSY, or SIGSEGV');
const completionStatus = z.enum(['success', 'page-fault', 'error', 'mismatch', 'aborted', 'any']);

interface StepShape {
  fork?: { name: string; steps: StepInput[] } | undefined;
  repeat?: { times: number; steps: StepInput[] } | undefined;
}
type StepInput = z.input<typeof stepBase> & StepShape;
export type Step = Omit<z.output<typeof stepBase>, 'fork' | 'repeat'> & {
  fork?: { name: string; steps: Step[] } | undefined;
  repeat?: { times: number; steps: Step[] } | undefined;
};

const stepBase = z.strictObject({
  open: z.strictObject({ device: name, queue: name.optional(), as: name.optional().describe('Name of the handle; default: the device') }).optional(),
  close: z.strictObject({ handle: name.optional() }).optional(),
  bind: z.strictObject({ device: name, 'mm-exit': z.boolean().default(false) }).optional().describe('iommu_sva_bind beside what open does'),
  unbind: z.strictObject({ device: name }).optional(),
  malloc: z.strictObject({ name, size }).optional(),
  mmap: z.strictObject({
    name, size: size.optional(), file: z.string().optional().describe('Content, relative to the topology'), prot: prot.default('rw'), shared: z.boolean().default(false),
    'page-size': z.enum(['4KiB', '2MiB', '1GiB']).default('4KiB'),
  }).optional(),
  munmap: bufferRef.optional(),
  mremap: z.strictObject({ buffer: name, size }).optional(),
  mprotect: z.strictObject({ buffer: name, offset: size.default(0), size: size.optional(), prot }).optional(),
  touch: z.strictObject({ buffer: bufferRef, write: z.boolean().default(false) }).optional(),
  fill: z.strictObject({ buffer: bufferRef, value: z.int().min(0).max(255).optional(), random: z.int().optional().describe('Seed of random bytes') }).optional(),
  submit: submit.optional(),
  pread: z.strictObject({ from: name.optional().describe('Handle of a block device; default: the only open one'), buffer: bufferRef, offset: size.default(0) }).optional()
    .describe('Reads a block device into a buffer, as a file opened with O_DIRECT; returns when the data is there'),
  pwrite: z.strictObject({ to: name.optional().describe('Handle; default: the only open one'), buffer: bufferRef, offset: size.default(0) }).optional().describe('Writes a buffer to a block device'),
  fsync: z.strictObject({ handle: name.optional() }).optional().describe('What was written is on the medium afterwards'),
  wait: z.strictObject({ for: name.optional(), status: completionStatus.default('success').describe('How the operations end: all with success, or at least one with another status') }).optional(),
  verify: z.strictObject({
    buffer: bufferRef, equals: bufferRef.optional(), file: z.string().optional(), sha256: z.string().regex(/^[0-9a-f]{64}$/).optional(),
    value: z.int().min(0).max(255).optional(), differs: z.boolean().default(false).describe('Turns the check around'),
  }).optional(),
  fork: z.strictObject({ name, get steps() { return z.array(step).max(10_000); } }).optional(),
  join: z.strictObject({ process: name }).optional().describe('Waits for the end of another process'),
  peek: z.strictObject({
    device: name, space: deviceSpace, offset: size, size: accessSize.default(4), equals: address, mask: address.optional().describe('Bits that are compared; default all'),
  }).optional().describe("Reads config space or a BAR with the kernel's rights"),
  poke: z.strictObject({
    device: name, space: deviceSpace, offset: size, size: accessSize.default(4), value: address.optional(),
    bytes: z.string().regex(/^([0-9a-fA-F]{2}){64}$/, 'expects 64 bytes as 128 hexadecimal digits').optional().describe('64 bytes written at once (MOVDIR64B)'),
    enqueue: z.boolean().default(false).describe('`bytes` are enqueued (ENQCMD) instead'),
  }).optional().describe("Writes config space or a BAR with the kernel's rights"),
  sleep: time.optional(),
  repeat: z.strictObject({ times: z.int().min(1).max(1_000_000), get steps() { return z.array(step).max(10_000); } }).optional(),
  kill: z.strictObject({ process: name }).optional(),
  exit: z.strictObject({}).optional(),
  expect: errorName.optional().describe('The step must be refused with this error'),
});

/** The verbs of a step, one per step. */
export const STEP_VERBS = Object.keys(stepBase.shape).filter((key) => key !== 'expect');

const step: z.ZodType<Step, StepInput> = stepBase.check((context) => {
  const verbs = STEP_VERBS.filter((verb) => (context.value as Record<string, unknown>)[verb] !== undefined);
  if (verbs.length !== 1) {
    const said = verbs.length === 0 ? 'none' : verbs.join(' and ');
    context.issues.push({ code: 'custom', input: context.value, message: `a step has exactly one action, this one has ${said}; allowed: ${STEP_VERBS.join(', ')}` });
  }
}).meta({ id: 'step' }) as unknown as z.ZodType<Step, StepInput>;

const processSchema = z.strictObject({
  name,
  count: z.int().min(1).max(100_000).default(1).describe('That many processes, named name-0, name-1, …'),
  start: time.default(0),
  steps: z.array(step).max(10_000),
});

/** A guest, or a process: `app`, or `vm0/app` of a guest. */
const subject = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(\/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?$/, 'expects a name, or guest/name');

const inject = z.strictObject({
  at: time.optional().describe('Simulated time'),
  when: z.strictObject({ event: z.string(), count: z.int().min(1).default(1) }).optional().describe('After the Nth record of a trace kind, e.g. pci:page_request'),
  kill: subject.optional().describe("Process to kill; a guest's name kills its VMM"),
  unplug: name.optional().describe('Device that disappears at once'),
  remove: name.optional().describe('Device that the kernel removes in order'),
  reset: name.optional().describe('Function-level reset'),
  pause: name.optional().describe('Guest whose virtual CPUs stop'),
  resume: name.optional().describe('Guest whose virtual CPUs go on'),
  reboot: name.optional().describe('Guest that is reset and boots again'),
  shutdown: name.optional().describe('Guest that shuts down in order'),
  balloon: z.strictObject({ guest: name, size }).optional().describe('Memory that a guest keeps'),
  'add-memory': z.strictObject({ guest: name, size }).optional().describe('Memory plugged into a running guest'),
  'start-mdev': z.string().optional().describe('Mediated device, by name or UUID, to create'),
  'stop-mdev': z.string().optional().describe('Mediated device, by name or UUID, to remove'),
  expect: errorName.optional().describe('It must be refused with this error'),
}).check((context) => {
  const { at, when } = context.value;
  if ((at === undefined) === (when === undefined)) context.issues.push({ code: 'custom', input: context.value, message: 'needs exactly one of at, when' });
  if (INJECTIONS.filter((verb) => context.value[verb] !== undefined).length !== 1) {
    context.issues.push({ code: 'custom', input: context.value, message: `needs exactly one of ${INJECTIONS.join(', ')}` });
  }
});

/** What an injection may do, one each. */
export const INJECTIONS = ['kill', 'unplug', 'remove', 'reset', 'pause', 'resume', 'reboot', 'shutdown', 'balloon', 'add-memory', 'start-mdev', 'stop-mdev'] as const;

const bound = z.union([
  z.int(), z.strictObject({ min: z.int().optional(), max: z.int().optional() }),
]).meta({ id: 'bound', description: 'A number, or a range {min, max}' });

const guestDevice = z.strictObject({
  mdev: z.string().optional().describe('Mediated device, by name or UUID (-device vfio-pci,sysfsdev=…)'),
  host: name.optional().describe('Device of the host, which the guest gets as a whole (-device vfio-pci,host=…)'),
  name: name.optional().describe("How the guest's processes call it; default: its name on the host"),
  bdf: bdf.optional().describe('Place on the guest\'s bus; default: the next free slot from "0000:00:04.0" on'),
  'work-queues': z.array(workQueue).min(1).max(32).optional().describe("How the guest's administrator sets up a whole accelerator; default: one dedicated kernel queue"),
  'on-request': z.enum(['eject', 'ignore']).default('eject').describe('What the VMM does when the host wants the device back'),
}).check((context) => {
  if ((context.value.mdev === undefined) === (context.value.host === undefined)) context.issues.push({ code: 'custom', input: context.value, message: 'needs exactly one of mdev, host' });
});

/** Errors of the unit's own that a topology can bring about; a driver has to live with them. */
const unitError = z.strictObject({
  error: z.enum(['iqe', 'ite', 'page-request-overflow']).describe('iqe: a descriptor is taken for malformed; ite: a device TLB invalidation stays unanswered; page-request-overflow: a page request finds the queue full'),
  count: z.int().min(1).default(1).describe('The Nth descriptor or page request of its kind'),
  times: z.int().min(1).max(1000).default(1).describe('So many, one after the other'),
  descriptor: z.enum(['cc', 'iotlb', 'pasidc', 'p_iotlb', 'wait', 'devtlb', 'p_devtlb', 'pgrp']).optional().describe('Kind of descriptor; default: p_iotlb for iqe, any device TLB invalidation for ite'),
});

/** A real virtual machine in a process of its own, such as QEMU, whose IOMMU and devices are this topology's. */
const external = z.strictObject({
  cpu: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._,+=-]*$/, 'expects a CPU model such as max').default('max').describe("QEMU's -cpu"),
  append: z.string().default('').describe("Added to the kernel's command line"),
  iommu: intelVtd.extend({ 'interrupt-remapping': z.literal(false).default(false).describe('Remapped interrupts cannot be delivered to a virtual machine of somebody else') }).optional()
    .describe('Carried by a PCI device; without it DMA is untranslated'),
  kernel: kernelOptions.pick({ 'iommu-mode': true, 'scalable-mode': true }).prefault({}),
  devices: z.array(device).min(1).max(24),
  inject: z.array(unitError).max(64).default([]),
  linux: z.strictObject({
    run: z.array(z.string().regex(/^[a-z][a-z0-9:._-]*$/, 'expects a step such as nvme or dsa')).max(64).optional().describe('Steps of the prepared guest, in order; default: pci, nvme for a disk, dsa for an accelerator, irq'),
    set: z.record(z.string().regex(/^[a-z]+$/), z.int().min(0)).default({}).describe('Settings of the steps, such as wqs: 5'),
    allow: z.array(z.enum(COMPLAINT_KINDS)).default([]).describe('Complaints of the kernel that are expected'),
    timeout: time.default(180_000_000_000).describe('Real time until the guest is ended'),
  }).prefault({}).describe('What `vfiosim linux` has the guest do'),
});

const guest = z.strictObject({
  name,
  external: external.optional().describe('Somebody else\'s virtual machine, which vfiosim serve waits for'),
  memory: size.optional().describe('Default: 64MiB, of an external guest 512MiB'),
  vcpus: z.int().min(1).max(255).default(1),
  start: time.default(0),
  'huge-pages': z.enum(['2MiB', '1GiB']).optional().describe("Backing of the guest's memory on the host"),
  'memlock-limit': size.optional().describe('RLIMIT_MEMLOCK of the VMM; default: unlimited'),
  container: z.enum(['type1', 'type1v2', 'nesting']).default('type1v2').describe('IOMMU type of its VFIO container'),
  devices: z.array(guestDevice).max(24).default([]),
  processes: z.array(processSchema).max(10_000).default([]),
}).transform((said) => ({ ...said, memory: said.memory ?? (said.external === undefined ? 64 : 512) * 2 ** 20 }));

const expectation = z.strictObject({
  guests: z.record(z.string(), z.enum(['running', 'paused', 'off', 'killed', 'refused'])).optional().describe('How guests end'),
  flows: z.record(z.string(), z.strictObject({
    status: z.enum(['ok', 'failed']).optional(), bytes: bound.optional(), pageRequests: bound.optional(), success: bound.optional(), invalid: bound.optional(), failure: bound.optional(),
    unrecoverable: bound.optional(),
  })).optional(),
  counters: z.record(z.string(), bound).optional().describe('Counts of trace kinds, e.g. vtd:prq_overflow: {min: 1}'),
  log: z.array(z.string()).optional().describe('Texts that the kernel log must contain'),
  'no-log': z.array(z.string()).optional().describe('Texts that the kernel log must not contain'),
});

const timingShape = {
  'tlp': time, 'memory-access': time, 'interrupt': time, 'thread-wake': time, 'fault-service': time, 'mmio': time, 'device-tlb-invalidation': time,
  'poll': time, 'invalidation-timeout': time,
};
const timing = z.strictObject({
  ...Object.fromEntries(Object.entries(timingShape).map(([key, schema]) => [key, schema.optional()])) as { [K in keyof typeof timingShape]: z.ZodOptional<typeof time> },
  'copy-bytes-per-ns': z.number().positive().optional(),
  jitter: z.number().min(0).max(1).optional().describe(`Random share added to delays; default ${DEFAULT_TIMING.jitter}`),
});

export const topologySchema = z.strictObject({
  version: z.literal(1),
  name: name.optional(),
  description: z.string().optional(),
  seed: z.int().min(0).max(0xffff_ffff).default(1),
  host: host.prefault({}),
  mdevs: z.array(mdev).max(100_000).default([]).describe('Mediated devices'),
  guests: z.array(guest).max(10_000).default([]),
  processes: z.array(processSchema).max(10_000).default([]),
  inject: z.array(inject).max(10_000).default([]),
  expect: expectation.prefault({}),
  timing: timing.prefault({}),
  limits: z.strictObject({
    time: time.default(60_000_000_000).describe('Simulated time'),
    events: z.int().min(1).default(50_000_000),
  }).prefault({}),
});

/** A checked topology, defaults filled in. */
export type Topology = z.output<typeof topologySchema>;
/** What people write, for building topologies in code. */
export type TopologyInput = z.input<typeof topologySchema>;
export type DeviceTopology = Topology['host']['devices'][number];
export type IommuTopology = NonNullable<Topology['host']['iommu']>;
export type Submit = NonNullable<Step['submit']>;
export type ProcessTopology = Topology['processes'][number];
export type BufferRef = z.output<typeof bufferRef>;
export type Operand = z.output<typeof operand>;
export type MdevTopology = Topology['mdevs'][number];
export type GuestTopology = Topology['guests'][number];
export type ExternalTopology = NonNullable<GuestTopology['external']>;
export type GuestDeviceTopology = GuestTopology['devices'][number];
export type MdevParentTopology = Topology['host']['mdev-parents'][number];
export type Injection = Topology['inject'][number];

/** JSON Schema of the topology language for editors. */
export function topologyJsonSchema(): object {
  return { title: 'vfiosim topology', ...z.toJSONSchema(topologySchema, { io: 'input', unrepresentable: 'any' }) };
}
