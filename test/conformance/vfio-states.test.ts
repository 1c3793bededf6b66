/** Containers, groups and devices under random calls, against a model of their states (7.6, C1–C5, E30–E32, 2g). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isErrno, type ErrnoName } from '../../sim/errno.js';
import type { ContainerHandle, DeviceHandle, GroupHandle } from '../../vfio/client/index.js';
import { VfioWorld } from '../fixtures/vfio-world.js';

/** What a container or group should be, said as plainly as possible. */
interface ContainerModel {
  readonly handle: ContainerHandle;
  closed: boolean;
  iommu: boolean;
}

interface GroupModel {
  readonly name: string;
  /** Its file is open. */
  file: GroupHandle | undefined;
  container: ContainerModel | undefined;
  devices: DeviceHandle[];
}

type Call =
  | { readonly kind: 'open' | 'close' | 'unset' | 'get' | 'put'; readonly group: number }
  | { readonly kind: 'set'; readonly group: number; readonly container: number }
  | { readonly kind: 'iommu' | 'drop'; readonly container: number };

const one = fc.integer({ min: 0, max: 1 });
const call: fc.Arbitrary<Call> = fc.oneof(
  fc.record({ kind: fc.constantFrom('open', 'close', 'unset', 'get', 'get', 'put'), group: one }),
  fc.record({ kind: fc.constant('set' as const), group: one, container: one }),
  fc.record({ kind: fc.constantFrom('iommu', 'iommu', 'iommu', 'drop'), container: one }),
);

class Model {
  readonly world = new VfioWorld();
  readonly groups: GroupModel[];
  readonly containers: ContainerModel[];
  private readonly client = this.world.client();

  constructor() {
    this.groups = ['0000:00:01.0', '0000:00:02.0'].map((name) => ({ name: this.world.registered(name).ops.name, file: undefined, container: undefined, devices: [] }));
    this.containers = [0, 1].map(() => ({ handle: this.client.openContainer(), closed: false, iommu: false }));
  }

  /** The call's refusal and what the model says that it should be; calls on files that are not open are left out. */
  step(step: Call): [ErrnoName | undefined, ErrnoName | undefined] {
    const { world } = this;
    if (!('group' in step)) return this.stepContainer(step.kind, this.containers[step.container]!);
    const group = this.groups[step.group]!, { file } = group;
    if (step.kind === 'open') {
      const expected = file !== undefined || group.container !== undefined ? 'EBUSY' : undefined;
      return [this.attempt(() => { group.file = this.client.openGroup(step.group + 1); }), expected];
    }
    if (step.kind === 'put') {
      const device = group.devices.pop();
      if (device !== undefined) world.run(device.close());
      this.settle(group);
      return [undefined, undefined];
    }
    if (file === undefined) return [undefined, undefined];
    switch (step.kind) {
      case 'close':
        world.run(file.close());
        group.file = undefined;
        this.settle(group);
        return [undefined, undefined];
      case 'unset': {
        const expected = group.container === undefined ? 'EINVAL' : group.devices.length > 0 ? 'EBUSY' : undefined;
        const refusal = this.attempt(() => { world.run(file.unsetContainer()); });
        if (expected === undefined) this.leave(group);
        return [refusal, expected];
      }
      case 'get': {
        const expected = group.container?.iommu === true ? undefined : 'EINVAL';
        return [this.attempt(() => { group.devices.push(world.run(file.getDevice(group.name))); }), expected];
      }
      case 'set': {
        const container = this.containers[step.container]!;
        if (container.closed) return [undefined, undefined];
        const expected = group.container !== undefined ? 'EINVAL' : undefined;
        const refusal = this.attempt(() => { world.run(file.setContainer(container.handle)); });
        if (expected === undefined) group.container = container;
        return [refusal, expected];
      }
    }
  }

  private stepContainer(kind: 'iommu' | 'drop', container: ContainerModel): [ErrnoName | undefined, ErrnoName | undefined] {
    if (container.closed) return [undefined, undefined];
    if (kind === 'drop') {
      this.world.run(container.handle.close());
      container.closed = true;
      return [undefined, undefined];
    }
    const expected = container.iommu || !this.groups.some((group) => group.container === container) ? 'EINVAL' : undefined;
    const refusal = this.attempt(() => { this.world.run(container.handle.setIommu('type1')); });
    if (expected === undefined) container.iommu = true;
    return [refusal, expected];
  }

  /** A group leaves its container when neither its file nor a device of it is open. */
  private settle(group: GroupModel): void {
    if (group.file === undefined && group.devices.length === 0) this.leave(group);
  }

  private leave(group: GroupModel): void {
    const { container } = group;
    group.container = undefined;
    if (container !== undefined && !this.groups.some((other) => other.container === container)) container.iommu = false;
  }

  private attempt(action: () => void): ErrnoName | undefined {
    try {
      action();
    } catch (error) {
      if (isErrno(error)) return error.code;
      throw error;
    }
    return undefined;
  }

  check(): void {
    this.groups.forEach((group, i) => {
      const iommuGroup = this.world.core.group(i + 1)!;
      expect(iommuGroup.ownerCount).toBe(group.container === undefined ? 0 : 1);
      const domain = group.container === undefined ? iommuGroup.defaultDomain.type : group.container.iommu ? 'unmanaged' : undefined;
      expect(iommuGroup.domain?.type).toBe(domain);
      if (group.file !== undefined) expect(this.world.run(group.file.status())).toEqual({ viable: true, containerSet: group.container !== undefined });
      const story = this.world.calls.filter((text) => text.endsWith(group.name)).map((text) => text.split(' ')[0]);
      expect(story).toEqual(story.map((_, at) => (at % 2 === 0 ? 'open' : 'close')));
      expect(story.length % 2).toBe(group.devices.length > 0 ? 1 : 0);
    });
    const iommus = this.world.calls.filter((text) => text.startsWith('first open')).length - this.world.calls.filter((text) => text === 'first release').length;
    expect(iommus).toBe(this.containers.filter(({ iommu }) => iommu).length);
  }

  finish(): void {
    this.world.run(this.client.process.exit());
    this.groups.forEach((group) => Object.assign(group, { file: undefined, devices: [] }));
    this.groups.forEach((group) => { this.leave(group); });
    this.check();
  }
}

describe('containers, groups and devices', () => {
  it('refuse and allow what the model does, and a killed process leaves nothing behind', () => {
    fc.assert(fc.property(fc.array(call, { minLength: 8, maxLength: 40 }), (calls) => {
      const model = new Model();
      for (const step of calls) {
        const [refusal, expected] = model.step(step);
        expect([step, refusal]).toEqual([step, expected]);
        model.check();
      }
      model.finish();
    }), { numRuns: 30 });
  });
});
