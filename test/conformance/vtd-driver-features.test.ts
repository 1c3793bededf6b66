/** Device features on VT-d: who has them, the order of the PCI switches, and every refusal (F1–F6, E10, scenario 34). */
import { describe, expect, it } from 'vitest';
import { isErrno } from '../../sim/errno.js';
import { DriverWorld, TestFunction, type DriverWorldOptions, type FunctionOptions } from './vtd-driver-world.js';

const WAIT = 'd WAIT 0x200000025';
const LEGACY: DriverWorldOptions = { capabilities: { scalable: false } };
const NO_FIRST_LEVEL: DriverWorldOptions = { capabilities: { 'first-level': false } };

describe('has (F1)', () => {
  const all = { AUX: true, IOPF: true, SVA: true };
  const cases: [what: string, world: DriverWorldOptions, device: FunctionOptions, has: typeof all][] = [
    ['everything', {}, { siov: true }, all],
    ['no SIOV DVSEC', {}, {}, { ...all, AUX: false }],
    ['no PASID capability', {}, { siov: true, pasidBits: 0 }, { AUX: false, IOPF: true, SVA: false }],
    ['no PRI capability', {}, { siov: true, pri: false }, { AUX: true, IOPF: false, SVA: false }],
    ['no ATS capability', {}, { siov: true, ats: false }, { AUX: true, IOPF: false, SVA: false }],
    ['a legacy unit', LEGACY, { siov: true }, { AUX: false, IOPF: false, SVA: false }],
    ['no first level', NO_FIRST_LEVEL, { siov: true }, { AUX: true, IOPF: true, SVA: false }],
    ['no device TLBs in the unit', { capabilities: { 'device-tlb': false } }, { siov: true }, { AUX: true, IOPF: false, SVA: false }],
  ];
  it.each(cases)('with %s', (_what, options, device, has) => {
    const world = new DriverWorld(options).start();
    const added = world.function(device);
    expect({ AUX: world.driver.hasFeature(added, 'AUX'), IOPF: world.driver.hasFeature(added, 'IOPF'), SVA: world.driver.hasFeature(added, 'SVA') }).toEqual(has);
  });

  it('is never an error: an unknown device has nothing', () => {
    const world = new DriverWorld().start();
    expect(world.driver.hasFeature({ name: 'none' }, 'SVA')).toBe(false);
    expect(world.driver.featureEnabled({ name: 'none' }, 'SVA')).toBe(false);
  });
});

describe('enabling (F2)', () => {
  it('switches PASID, then ATS, then PRI: reset, queue, PRE, device (2a step 1, 3.4)', () => {
    const world = new DriverWorld().start();
    const dsa = world.function();
    expect(dsa.switched).toEqual(['pasid on 6', 'ats on 12']);
    world.take();
    world.run(world.driver.enableFeature(dsa, 'IOPF'));
    expect(dsa.switched.slice(2)).toEqual(['pri reset', 'pri on 2048']);
    // PRE changes in a present context entry: context cache, then PASID cache and IOTLB of the domain, then device TLB
    expect(world.takeDescriptors()).toEqual([
      'd CC 0x2000000031 0x0', WAIT, 'd PASIDC 0x20007 0x0', WAIT, 'd IOTLB 0x200e2 0x0', WAIT, 'd DEVTLB 0x2000000003 0x7ffffffffffff001', WAIT,
    ]);
    world.run(world.driver.enableFeature(dsa, 'SVA'));
    expect(['IOPF', 'SVA', 'AUX'].map((feature) => world.driver.featureEnabled(dsa, feature as 'IOPF'))).toEqual([true, true, false]);
  });

  const refusals: [what: string, world: DriverWorldOptions, device: FunctionOptions, feature: 'AUX' | 'IOPF' | 'SVA', code: string, link: string][] = [
    ['SVA before IOPF', {}, {}, 'SVA', 'EINVAL', 'has PASID and ATS but PRI is not enabled'],
    ['SVA without ATS', {}, { ats: false }, 'SVA', 'EINVAL', 'has PASID but ATS is not enabled'],
    ['SVA without PASID', {}, { pasidBits: 0 }, 'SVA', 'EINVAL', 'has ATS but PASID is not enabled'],
    ['SVA in legacy mode', LEGACY, {}, 'SVA', 'ENODEV', 'is in legacy mode'],
    ['SVA without first level', NO_FIRST_LEVEL, {}, 'SVA', 'ENODEV', 'walks no first-level tables'],
    ['IOPF without PRI', {}, { pri: false }, 'IOPF', 'ENODEV', 'has no PRI capability'],
    ['IOPF in legacy mode', LEGACY, {}, 'IOPF', 'ENODEV', 'takes no page requests'],
    ['IOPF without PRG Response PASID Required', {}, { prgResponsePasid: false }, 'IOPF', 'EINVAL', 'PRG Response PASID Required is clear'],
    ['AUX in legacy mode', LEGACY, { siov: true }, 'AUX', 'EINVAL', 'not every IOMMU is in scalable mode'],
    ['AUX without SIOV', {}, {}, 'AUX', 'EINVAL', 'does not announce scalable I/O virtualization'],
    ['AUX without PASID', {}, { siov: true, pasidBits: 0 }, 'AUX', 'ENODEV', 'PASID could not be enabled'],
  ];
  it.each(refusals)('refuses %s', (_what, options, device, feature, code, link) => {
    const world = new DriverWorld(options).start();
    const added = world.function(device);
    const before = [...added.switched];
    const refusal = world.refusal(world.driver.enableFeature(added, feature));
    expect([refusal.code, refusal.message]).toEqual([code, expect.stringContaining(link)]);
    expect([world.driver.featureEnabled(added, feature), added.switched]).toEqual([false, before]);
  });

  it('refuses a second time (EBUSY), and an unknown device (EINVAL)', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction({ siov: true });
    world.run(world.driver.enableFeature(dsa, 'AUX'));
    for (const feature of ['IOPF', 'SVA', 'AUX'] as const) expect(world.refused(world.driver.enableFeature(dsa, feature))).toBe('EBUSY');
    expect(world.refused(world.driver.enableFeature(new TestFunction(), 'SVA'))).toBe('EINVAL');
  });

  it('leaves PRI off everywhere when the device refuses it at the end', () => {
    const world = new DriverWorld().start();
    const dsa = world.function();
    dsa.priEnabled = true;
    dsa.resetPri = () => {};
    expect(world.refused(world.driver.enableFeature(dsa, 'IOPF'))).toBe('EBUSY');
    expect(world.driver.featureEnabled(dsa, 'IOPF')).toBe(false);
    world.unit.pageRequest(dsa.sourceId, 1, 0x100, 1, true, 0);
    world.settle();
    // PRE is clear again: hardware answers, the driver sees nothing
    expect(world.driver.units[0]!.pageRequests!.requests).toBe(0);
    dsa.priEnabled = false;
    world.run(world.driver.enableFeature(dsa, 'IOPF'));
  });
});

describe('disabling (F3)', () => {
  it('goes the other way, PRE before the device, and everything can be enabled again', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    expect(world.refused(world.driver.disableFeature(dsa, 'IOPF'))).toBe('EBUSY');
    world.run(world.driver.disableFeature(dsa, 'SVA'));
    world.take();
    world.run(world.driver.disableFeature(dsa, 'IOPF'));
    expect(world.takeDescriptors()[0]).toBe('d CC 0x2000000031 0x0');
    expect(dsa.switched.at(-1)).toBe('pri off');
    world.run(world.driver.enableFeature(dsa, 'IOPF'));
    world.run(world.driver.enableFeature(dsa, 'SVA'));
  });

  it('refuses what is not enabled (EINVAL), SVA with bonds and AUX with domains (EBUSY)', () => {
    const world = new DriverWorld().start();
    const plain = world.function({ sourceId: 0x28 });
    for (const feature of ['IOPF', 'SVA', 'AUX'] as const) expect(world.refused(world.driver.disableFeature(plain, feature))).toBe('EINVAL');
    const dsa = world.svaFunction({ siov: true });
    const pasid = world.run(world.core.svaBind(dsa, world.process()));
    expect(world.refused(world.driver.disableFeature(dsa, 'SVA'))).toBe('EBUSY');
    world.run(world.core.svaUnbind(dsa, pasid));
    world.run(world.driver.disableFeature(dsa, 'SVA'));
    world.run(world.driver.enableFeature(dsa, 'AUX'));
    const domain = world.driver.domainAlloc('unmanaged');
    world.run(world.driver.auxAttach(domain, dsa));
    expect(world.refused(world.driver.disableFeature(dsa, 'AUX'))).toBe('EBUSY');
    world.run(world.driver.auxDetach(domain, dsa));
    world.run(world.driver.disableFeature(dsa, 'AUX'));
  });

  it('answers what is outstanding Invalid (P8, section 0)', () => {
    const world = new DriverWorld({ core: { prqTimeoutSeconds: 0 } }).start();
    const dsa = world.svaFunction();
    world.run(world.driver.disableFeature(dsa, 'SVA'));
    const mm = world.process();
    const pasid = 1;
    world.unit.pageRequest(dsa.sourceId, pasid, world.run(mm.mmap(4096)) / 4096, 1, true, 3);
    world.settle();
    world.run(world.driver.disableFeature(dsa, 'IOPF'));
    world.settle();
    expect(dsa.responses).toEqual([`3 1 ${pasid}`]);
  });
});

describe('probing', () => {
  const scope = (device: number): { type: number; enumerationId: number; startBus: number; path: { device: number; function: number }[] } =>
    ({ type: 1, enumerationId: 0, startBus: 0, path: [{ device, function: 0 }] });

  it('finds the unit by device scope; without INCLUDE_PCI_ALL others have none (8.3)', () => {
    const world = new DriverWorld({ structures: [{ kind: 'DRHD', includeAll: false, segment: 0, base: 0xfd000000, sizeOrder: 0, scopes: [scope(3), scope(4)] }] }).start();
    world.function({ sourceId: 0x18 });
    world.function({ sourceId: 0x20 });
    expect(world.refused(() => world.driver.probe(new TestFunction({ sourceId: 0x28 })))).toBe('ENODEV');
    expect(world.refused(() => world.driver.probe({ name: 'a mediated device' }))).toBe('ENODEV');
  });

  it('finds functions below a bridge by its sub-hierarchy or by their own path', () => {
    const bridge = new TestFunction({ sourceId: 0x08 });
    const path = { type: 1, enumerationId: 0, startBus: 0, path: [{ device: 1, function: 0 }, { device: 2, function: 1 }] };
    const below = { type: 2, enumerationId: 0, startBus: 0, path: [{ device: 1, function: 0 }] };
    for (const [scopes, found] of [[[path], [0x111]], [[below], [0x111, 0x120]], [[scope(2)], []]] as const) {
      const world = new DriverWorld({ structures: [{ kind: 'DRHD', includeAll: false, segment: 0, base: 0xfd000000, sizeOrder: 0, scopes }] }).start();
      const probed = [0x111, 0x120].filter((sourceId) => {
        try {
          world.driver.probe(new TestFunction({ sourceId, upstream: bridge }));
          return true;
        } catch (error) {
          if (isErrno(error, 'ENODEV')) return false;
          throw error;
        }
      });
      expect(probed).toEqual(found);
    }
  });

  it('lets a function below a root port use ATS only with an ATSR (8.5)', () => {
    const port = new TestFunction({ sourceId: 0x08 });
    const drhd = { kind: 'DRHD', includeAll: true, segment: 0, base: 0xfd000000, sizeOrder: 0, scopes: [] } as const;
    const atsr = { kind: 'ATSR', allPorts: false, segment: 0, scopes: [{ type: 2, enumerationId: 0, startBus: 0, path: [{ device: 1, function: 0 }] }] } as const;
    for (const [structures, ats] of [[[drhd], false], [[drhd, atsr], true], [[drhd, { ...atsr, allPorts: true, scopes: [] }], true]] as const) {
      const world = new DriverWorld({ structures }).start();
      expect(world.function({ sourceId: 0x100, upstream: port }).atsEnabled).toBe(ats);
    }
  });

  it('reports PASIDs in common, the interrupt window and reserved regions', () => {
    const world = new DriverWorld({
      capabilities: { 'pasid-bits': 16 },
      structures: [
        { kind: 'DRHD', includeAll: true, segment: 0, base: 0xfd000000, sizeOrder: 0, scopes: [] },
        { kind: 'RMRR', segment: 0, base: 0x7a000000, limit: 0x7a0fffff, scopes: [scope(5)] },
      ],
    }).start();
    expect(world.driver.probe(new TestFunction({ sourceId: 0x28 }))).toEqual({
      maxPasids: 0x10000, reserved: [{ firstPage: 0xfee00, endPage: 0xfef00, name: 'msi' }, { firstPage: 0x7a000, endPage: 0x7a100, name: 'rmrr' }],
    });
    expect(world.driver.probe(new TestFunction({ sourceId: 0x30, pasidBits: 8 })).maxPasids).toBe(256);
    expect(world.refused(() => world.driver.probe(new TestFunction({ sourceId: 0x30 })))).toBe('EBUSY');
  });
});
