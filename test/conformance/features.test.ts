/** Device features: requirements F1–F6, E10, E22; scenario 34. */
import { describe, expect, it } from 'vitest';
import type { DeviceFeature } from '../../iommu/core/ops.js';
import { CoreWorld } from '../fixtures/core-world.js';
import { SoftwareDevice } from '../fixtures/software-iommu.js';

function state(world: CoreWorld, device: SoftwareDevice): DeviceFeature[] {
  return (['AUX', 'SVA', 'IOPF'] as const).filter((feature) => world.core.devFeatureEnabled(device, feature));
}

describe('device features', () => {
  it('answers has-feature with a boolean, also for a stranger and an unknown feature (F1)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0', { features: ['AUX'] });
    const stranger = new SoftwareDevice('stranger');
    expect(world.core.devHasFeature(device, 'AUX')).toBe(true);
    expect(world.core.devHasFeature(device, 'SVA')).toBe(false);
    expect(world.core.devHasFeature(device, 'NOPE' as DeviceFeature)).toBe(false);
    expect(world.core.devHasFeature(stranger, 'AUX')).toBe(false);
  });

  it('refuses to enable without an IOMMU, twice, or what the driver lacks (F2)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0', { features: ['AUX'] });
    expect(world.refused(world.core.devEnableFeature(new SoftwareDevice('stranger'), 'AUX'))).toBe('ENODEV');
    expect(world.refused(world.core.devEnableFeature(device, 'SVA'))).toBe('EINVAL');
    expect(world.refused(world.core.devEnableFeature(device, 'NOPE' as DeviceFeature))).toBe('EINVAL');
    world.run(world.core.devEnableFeature(device, 'AUX'));
    expect(world.refused(world.core.devEnableFeature(device, 'AUX'))).toBe('EBUSY');
    expect(state(world, device)).toEqual(['AUX']);
  });

  it('disables with EBUSY without an IOMMU, not ENODEV (F3)', () => {
    const world = new CoreWorld();
    expect(world.refused(world.core.devDisableFeature(new SoftwareDevice('stranger'), 'SVA'))).toBe('EBUSY');
  });

  it('reports enabled as false without an IOMMU (F4)', () => {
    const world = new CoreWorld();
    expect(world.core.devFeatureEnabled(new SoftwareDevice('stranger'), 'SVA')).toBe(false);
  });

  it('lets a device with faults of its own enable SVA without IOPF (F5)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0', { features: ['SVA'] });
    world.run(world.core.devEnableFeature(device, 'SVA'));
    expect(state(world, device)).toEqual(['SVA']);
  });

  it('goes OFF, IOPF, SVA, IOPF, OFF and no other way (F6)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0', { features: ['SVA', 'IOPF'] });
    const { core } = world;
    const refusal = world.refusal(core.devEnableFeature(device, 'SVA'));
    expect(refusal.code).toBe('EINVAL');
    expect(refusal.message).toContain('dev0 can fault through the IOMMU but IOPF is not enabled');
    expect(world.refused(core.devDisableFeature(device, 'IOPF'))).toBe('EINVAL');
    expect(state(world, device)).toEqual([]);
    world.run(core.devEnableFeature(device, 'IOPF'));
    expect(world.refused(core.devDisableFeature(device, 'SVA'))).toBe('EINVAL');
    world.run(core.devEnableFeature(device, 'SVA'));
    expect(world.refused(core.devDisableFeature(device, 'IOPF'))).toBe('EBUSY');
    expect(state(world, device)).toEqual(['SVA', 'IOPF']);
    world.run(core.devDisableFeature(device, 'SVA'));
    world.run(core.devDisableFeature(device, 'IOPF'));
    expect(state(world, device)).toEqual([]);
  });

  it('keeps SVA on while bonds exist (F3, E10)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    expect(world.refused(world.core.devDisableFeature(device, 'SVA'))).toBe('EBUSY');
    expect(world.core.devFeatureEnabled(device, 'SVA')).toBe(true);
    world.run(world.core.svaUnbind(device, pasid));
    world.run(world.core.devDisableFeature(device, 'SVA'));
  });

  it('keeps AUX on while aux domains are attached (F3)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    world.run(world.core.devEnableFeature(device, 'AUX'));
    const domain = world.core.domainAlloc(device, 'unmanaged');
    world.run(world.core.auxAttach(domain, device));
    expect(world.refused(world.core.devDisableFeature(device, 'AUX'))).toBe('EBUSY');
    world.run(world.core.auxDetach(domain, device));
    world.run(world.core.devDisableFeature(device, 'AUX'));
    expect(world.core.devFeatureEnabled(device, 'AUX')).toBe(false);
  });

  it('leaves the state alone when the driver fails (F6)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    world.iommu.failNext = { call: 'enable IOPF', code: 'EBUSY' };
    expect(world.refused(world.core.devEnableFeature(device, 'IOPF'))).toBe('EBUSY');
    expect(state(world, device)).toEqual([]);
    world.run(world.core.devEnableFeature(device, 'IOPF'));
  });
});
