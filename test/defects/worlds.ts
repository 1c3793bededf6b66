/**
 * Small worlds for defects that no topology shows: each builds its world with the given defect, or without any, and
 * says what it saw.
 */
import { ACCESS_READ, ATTR_TRANSLATED, DMA_DONE, NO_PASID } from '../../host/pci/dma-port.js';
import { Atc } from '../../host/pci/hardware/atc.js';
import { HoldingPort } from '../../host/pci/hardware/holding-port.js';
import { PciFunction, type PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import { Requester } from '../../host/pci/hardware/requester.js';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import { OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { DSA_CMD } from '../../devices/dsa/spec/registers.js';
import { EduDevice } from '../../devices/edu/hardware/edu-device.js';
import { Random } from '../../sim/random.js';
import { BUFFER, NvmeWorld } from '../conformance/nvme-world.js';
import { MemoryWorld } from '../vfio-user/memory-world.js';
import { job, OP, RecordedWorld, replay } from '../vfio-user/recorded-world.js';
import { CMD, dmaMap, infoRequest, setIrqs } from '../vfio-user/wire.js';
import { D, flAt, PAGE as MAPPED, TranslationWorld, US } from '../conformance/vtd-translation-world.js';
import { DsaWorld } from '../fixtures/dsa-world.js';
import { probeWorld, World, type Probe, type WorldOptions } from '../scenarios/world.js';
import { bytes, createWorld, enableSva, findCapability, findExtCapability, Listener, plugSva, svaFunction } from '../unit/pci-world.js';

const PAGE = 4096;

/** Names of the invariants that are violated so far. */
function violated({ machine }: World): string[] {
  return machine.checkers.summaries().filter(({ status }) => status === 'violated').map(({ name }) => name);
}

function options(defect: string | undefined, more: WorldOptions = {}): WorldOptions {
  return { ...more, ...(defect === undefined ? {} : { defect }) };
}

/** A probe that is bound to a process with `count` untouched pages. */
function bound(defect: string | undefined, count: number, more: WorldOptions = {}) {
  const { world, probe } = probeWorld(options(defect, more));
  const { mm } = world.process('app').process;
  const page = world.run(mm.mmap(count * PAGE, {})) / PAGE;
  const pasid = world.run(world.core.svaBind(probe.pci, mm));
  return { world, probe, mm, page, pasid };
}

/** Names of violated invariants. */
export const INVARIANTS = {
  'core.collect-any-group': (defect) => {
    const { world, probe, page, pasid } = bound(defect, 4);
    probe.ask(page, ACCESS_READ, false, 1, pasid);
    probe.ask(page + 1, ACCESS_READ, false, 2, pasid);
    probe.ask(page + 2, ACCESS_READ, true, 1, pasid);
    world.settle();
    probe.ask(page + 3, ACCESS_READ, true, 2, pasid);
    world.settle();
    return violated(world);
  },

  'core.keep-partials-on-overflow': (defect) => {
    const { world, probe, page, pasid } = bound(defect, 256, { iommu: { 'page-request-queue': 128 }, timing: { 'thread-wake': '40us' } });
    probe.ask(page, ACCESS_READ, false, 5, pasid);
    for (let i = 1; i < 127; i++) probe.ask(page + i, ACCESS_READ, true, 5 + i, pasid);
    // no room: answered by hardware, the partial request stays behind
    probe.ask(page + 127, ACCESS_READ, true, 5, pasid);
    world.settle();
    probe.ask(page + 128, ACCESS_READ, true, 5, pasid);
    world.settle();
    return violated(world);
  },

  'core.skip-unmap-flush': (defect) => kernelDma(defect, { kernel: { 'iommu-mode': 'strict' } }, function* ({ core }, probe, physical) {
    const address = yield* core.dma.dmaMap(probe.pci, physical, PAGE, 'bidirectional');
    yield* probe.access(address, true, NO_PASID);
    yield* core.dma.dmaUnmap(probe.pci, address, PAGE);
    yield* probe.access(address, true, NO_PASID);
  }),

  'pci.bypass-iommu': (defect) => kernelDma(defect, {}, function* ({ core }, probe, physical) {
    const address = yield* core.dma.dmaMap(probe.pci, physical, PAGE, 'bidirectional');
    yield* probe.access(address, true, NO_PASID);
  }),

  'pci.keep-raced-translation': (defect) => {
    const { world, probe, mm, page, pasid } = bound(defect, 1, { timing: { tlp: '2us' } });
    world.run(mm.fill(page * PAGE, 1, PAGE));
    // the request is answered, the completion under way; the invalidation overtakes it
    const access = world.start('access', probe.access(page * PAGE, false, pasid));
    world.run(mm.munmap(page * PAGE, PAGE));
    world.until(() => access.ended);
    world.settle();
    return violated(world);
  },

  'vtd-driver.generic-failure-code': (defect) => {
    const { world, probe } = probeWorld(options(defect));
    const { core } = world;
    world.run(core.devEnableFeature(probe.pci, 'AUX'));
    const domain = core.domainAlloc(probe.pci, 'unmanaged');
    world.run(core.auxAttach(domain, probe.pci));
    const pasid = core.auxGetPasid(domain, probe.pci);
    core.registerDeviceFaultHandler(probe.pci, () => undefined);
    probe.ask(0x1000, ACCESS_READ, true, 5, pasid);
    world.until(() => core.usage.pendingRequests === 1);
    core.pageResponse(probe.pci, { version: 1, flags: 1, pasid, grpid: 5, code: 'FAILURE' });
    world.settle();
    return violated(world);
  },

  'vtd-driver.skip-prq-drain': (defect) => {
    const { world, probe, page, pasid } = bound(defect, 1);
    probe.ask(page, ACCESS_READ, true, 3, pasid);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.settle();
    return violated(world);
  },
} satisfies Record<string, (defect: string | undefined) => string[]>;

function kernelDma(defect: string | undefined, more: WorldOptions, steps: (world: World, probe: Probe, physical: number) => Generator): string[] {
  const world = new World(options(defect, { ...more, devices: [], probes: { probe: { without: ['ats', 'pri', 'pasid'] } } }));
  const probe = world.probe();
  probe.pci.setMaster(true);
  world.run(steps(world, probe, world.host.frames.alloc('buffer')) as never);
  return violated(world);
}

/** True when it went wrong. */
export const BEHAVIOUR = {
  'core.ignore-response-pasid': (defect) => {
    const { world, probe } = probeWorld(options(defect));
    const { core } = world;
    world.run(core.devEnableFeature(probe.pci, 'AUX'));
    const domain = core.domainAlloc(probe.pci, 'unmanaged');
    world.run(core.auxAttach(domain, probe.pci));
    const pasid = core.auxGetPasid(domain, probe.pci);
    core.registerDeviceFaultHandler(probe.pci, () => undefined);
    probe.ask(0x1000, ACCESS_READ, true, 5, pasid);
    world.until(() => core.usage.pendingRequests === 1);
    // R4, scenario 21
    return world.refused(() => core.pageResponse(probe.pci, { version: 1, flags: 1, pasid: pasid + 1, grpid: 5, code: 'SUCCESS' }), () => 0) !== 'EINVAL';
  },

  'pci.pri-enable-not-stopped': (defect) => {
    const { world, probe, page, pasid } = bound(defect, 2);
    const group = world.start('prefetch', probe.requester.prefetchPages(page, 2, ACCESS_READ, pasid));
    world.until(() => world.records('pci:page_request').length === 2);
    probe.pci.disablePri();
    // E37
    const refusal = world.refused(() => probe.pci.enablePri(32), () => 0);
    world.until(() => group.ended);
    return refusal !== 'EBUSY';
  },

  'pci.reset-forgets-pasid': (defect) => {
    const { world, probe, mm, page, pasid } = bound(defect, 1);
    world.run(mm.fill(page * PAGE, 1, PAGE));
    world.run(probe.pci.reset());
    return world.run(probe.access(page * PAGE, false, pasid)).status !== 'done';
  },

  'pci.vf-stu-unchecked': (defect) => {
    const { clock } = createWorld();
    const world: World = new World(options(defect, { devices: [], probes: { probe: { function: { sriov: { totalVfs: 1, vfDeviceId: 2, createVf } } } } }));
    function createVf(physfn: PciFunction): PciFunction {
      const { scheduler, timing } = world.host;
      const requester = new Requester({ name: 'vf', clock, scheduler, timing });
      const fn = new PciFunction({ ...VF, client: requester, physfn });
      requester.attach(fn);
      return fn;
    }
    const { pci } = world.probe();
    pci.setMaster(true);
    const vf = world.run(world.host.pci.enableSriov(pci, 1))[0]!;
    if (vf.atsEnabled) vf.disableAts();
    // E36: the physical function's is 12
    return world.refused(() => vf.enableAts(13), () => 0) !== 'EINVAL';
  },

  'pci.ignore-bus-master': (defect) => {
    const { fn } = plugged(defect);
    fn.config.write(0x04, 2, 0x2);
    return fn.port.write(3, 0, bytes(4), 0, 4, NO_PASID, 0) === DMA_DONE;
  },

  'pci.translated-without-ats': (defect) => {
    const { world, fn } = plugged(defect);
    world.fabric.setAgent(8, world.agent);
    fn.config.write(findExtCapability(fn, 0x0f) + 6, 2, 0);
    return fn.port.write(9, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED) === DMA_DONE;
  },

  'pci.early-invalidate-completion': (defect) => {
    const world = createWorld();
    const { requester } = plugSva(world, {
      defects: set(defect), wrapPort: (port) => new HoldingPort({ port, clock: world.clock, random: new Random(5), probability: 1, maxHoldNs: 100_000 }),
    });
    world.agent.map(1, 0x70, 0x20);
    let ended = Infinity;
    world.scheduler.spawn('job', (function* () {
      yield* requester.write(0x70, 0, bytes(64), 0, 64, 1, 0, false);
      ended = world.clock.now;
    })());
    world.clock.post(2_000, () => world.fabric.invalidate(8, 1, 0x70, 1, 1, false));
    world.clock.run();
    // PCIe 6.0 section 10.3.3: behind the requests that used what it drops
    return world.agent.completions[0]!.timeNs < ended;
  },

  'pci.atc-pasid-less-invalidation': (defect) => {
    const atc = new Atc({ entries: 16, defects: set(defect) });
    atc.insert(7, 3, false, { page: 9, pages: 1, read: true, write: true, execute: false, privileged: false, global: false, untranslatedOnly: false });
    atc.invalidate(7, 1, NO_PASID, false);
    return atc.lookup(7, 3, false) >= 0;
  },

  'pci.msix-ignore-mask': (defect) => {
    const { world, fn } = plugged(defect, { msix: { vectors: 1, tableBar: 0, tableOffset: 0x800, pbaOffset: 0xc00 }, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: false }] });
    // enabled; every vector is masked after reset
    fn.config.write(0x10, 4, 0xe000_0000);
    fn.config.write(0x04, 2, 0x6);
    world.systemBus.find(0xe000_0000)!.mmio.write(0x800, 4, 0xfee0_1000);
    fn.config.write(findCapability(fn, 0x11) + 2, 2, 0x8000);
    fn.raiseMsix(0);
    return world.messages.length > 0;
  },

  'vtd.ignore-user-bit': (defect) => {
    const world = translation(defect);
    world.clear(flAt(0), US);
    return world.read(MAPPED, 5) >= 0;
  },

  'vtd.skip-dirty-bit': (defect) => {
    const world = translation(defect);
    world.write(MAPPED, 5);
    return (world.peek(flAt(0)) & D) === 0n;
  },

  'dsa.ignore-abort': (defect) => {
    const world = new DsaWorld({ defects: [...set(defect)] });
    world.start({ mode: 'dedicated' });
    world.post(encodeDescriptor({ opcode: OPCODE.MEMMOVE, source: 0x10_0000, destination: 0x30_0000, size: 2 ** 20, completion: 0x1_0000 }));
    world.clock.run({ untilNs: world.clock.now + 1_000 });
    world.command(DSA_CMD.ABORT_WQ, 1);
    return world.ram.load(0x1_0000, 1) !== 0;
  },

  'dsa.ignore-threshold': (defect) => {
    const world = new DsaWorld({ defects: [...set(defect)] });
    world.enableTranslation();
    world.start({ mode: 'shared', size: 8, threshold: 1 });
    return [0, 1].map(() => world.enqueue(encodeDescriptor({ opcode: 0, pasid: 1 }))).join() !== 'accepted,retry';
  },

  'edu.ignore-dma-mask': (defect) => {
    const { fabric: { timing }, clock, scheduler, trace, complex, root, memory } = createWorld();
    const edu = new EduDevice({ name: 'edu0', clock, scheduler, timing, trace, defects: set(defect) });
    complex.insert(root, 0x10, edu.function);
    edu.function.config.write(4, 2, 6);
    const mmio = edu.function.window(0)!;
    memory.store(0x1234, 1, 0x77);
    for (const [register, value] of [[0x80, 0x1000_1234], [0x88, 0x4_0000], [0x90, 1], [0x98, 1]] as const) mmio.write(register, 8, value, 0);
    clock.run();
    for (const [register, value] of [[0x80, 0x4_0000], [0x88, 0x3000], [0x90, 1], [0x98, 3]] as const) mmio.write(register, 8, value, 0);
    clock.run();
    // 28 bits: 0x1000_1234 is 0x1234
    return memory.load(0x3000, 1) !== 0x77;
  },

  'vfio-user.keep-windows': (defect) => {
    const world = new MemoryWorld({ defects: [...set(defect)] }).negotiate();
    world.ok(CMD.DMA_MAP, dmaMap(0, 0x1000), [world.fd()]);
    world.session.disconnected();
    world.clock.run();
    return world.memory.memory.has(0, 1);
  },

  'vfio-user.leak-descriptors': (defect) => {
    const world = new MemoryWorld({ defects: [...set(defect)] }).negotiate();
    world.errno(CMD.GET_INFO, infoRequest(16), [world.fd()]);
    return world.table.open > 0;
  },

  'vfio-user.unrecorded-read': (defect) => {
    const world = new RecordedWorld({ defects: [...set(defect)] });
    const client = world.client().negotiate();
    client.command(CMD.DMA_MAP, dmaMap(0, 0x1_0000), [world.fd()]);
    world.put(0x1000, job(OP.small, { from: 0x2000, to: 0x3000 }));
    client.doorbell(0x1000);
    world.run();
    return replay(world.finish()).differences.length > 0;
  },

  'vfio-user.unrecorded-signal': (defect) => {
    const world = new RecordedWorld({ defects: [...set(defect)] });
    const client = world.client().negotiate(), unmask = world.fd('eventfd');
    client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x14), [unmask]);
    world.run();
    world.enter(() => unmask.listener!());
    world.run();
    return replay(world.finish()).differences.length > 0;
  },

  'nvme.ready-clears-early': (defect) => {
    const world = new NvmeWorld({ hold: 1, seed: 3, config: { enableNs: 1, readNs: 1 }, defects: [...set(defect)] }).started();
    world.medium.write(0, new Uint8Array(512).fill(9));
    world.submit(1, 2, { nsid: 1, prp1: BUFFER, cdw: [0, 0, 0] });
    // its entry has come, its data is on the way
    const { holds } = world.holding!;
    world.clock.run({ stop: () => world.holding!.holds === holds + 2 });
    world.write(0x14, 0);
    world.clock.run({ stop: () => world.read(0x1c) === 0 });
    world.ram.fill(BUFFER, 0, 512);
    world.settle();
    return world.ram.load(BUFFER, 1) !== 0;
  },
} satisfies Record<string, (defect: string | undefined) => boolean>;

const VF: Omit<PciFunctionOptions, 'client'> = {
  name: 'vf', vendorId: 0x1234, deviceId: 2, classCode: 0x12_0000, flr: true, e2eTlpPrefix: true, deviceType: PCI_EXP_TYPE_RC_END, ats: { queueDepth: 32, pageAligned: true },
};

function set(defect: string | undefined): Set<string> {
  return new Set(defect === undefined ? [] : [defect]);
}

function plugged(defect: string | undefined, more: Partial<PciFunctionOptions> = {}) {
  const world = createWorld();
  const fn = new PciFunction(svaFunction(new Listener(world.clock), { ...more, defects: set(defect) }));
  world.complex.insert(world.root, 8, fn);
  enableSva(fn);
  return { world, fn };
}

function translation(defect: string | undefined): TranslationWorld {
  return new TranslationWorld({ defects: [...set(defect)] }).scalable(1n);
}
