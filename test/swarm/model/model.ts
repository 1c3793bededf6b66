/**
 * A second opinion on VFIO and mediated devices: plain state, and for each call what may come of it, read from the requirements (1.14
 * C1–C13, 7.5, 7.6, V1–V3, Y1, E24, E27–E35) and sharing nothing with the product. Where they leave the order of two refusals open, either may be named.
 * Here: what an administrator and drivers do, and the sums that must be equal.
 */
import { ModelDevice, ModelGroup, ModelMdev, type ModelFunction, type ModelParent } from './state.js';
import { answer, DONE, refuse, UserModel, type Answer } from './programs.js';

export type { Answer, Spoilt } from './programs.js';

export class Model extends UserModel {
  // --- drivers of functions (C6, C17) -------------------------------------------------------------------------------

  bindDriver(fn: ModelFunction, driver: string): Answer {
    if (fn.driver !== undefined) return refuse('EBUSY');
    const group = this.groupOf(fn);
    if (driver === 'vfio-pci') {
      const registered = group ?? this.newGroup(fn);
      fn.device = new ModelDevice(fn.facts.bdf, registered, fn);
      registered.devices.push(fn.device);
    } else {
      // C6: a user owns the group's DMA
      if (group?.container !== undefined) return refuse('EBUSY');
      const parent = this.state.parents.find(({ facts }) => facts.name === driver);
      if (parent !== undefined) this.startParent(fn, parent);
    }
    fn.driver = driver;
    return DONE;
  }

  private startParent(fn: ModelFunction, parent: ModelParent): void {
    if (parent.facts.name === 'aux') fn.aux = true;
    fn.master = true;
    parent.registered = true;
  }

  private newGroup(fn: ModelFunction): ModelGroup {
    const group = new ModelGroup(fn.facts.group, this.state.functions.filter(({ facts }) => facts.group === fn.facts.group));
    this.state.groups.push(group);
    return group;
  }

  /** The group that VFIO shows for a function, if it shows one. */
  groupOf(fn: ModelFunction): ModelGroup | undefined {
    return this.state.groups.find(({ functions }) => functions.includes(fn));
  }

  /** C17: waits until nobody has the device open; a parent waits for its children. */
  unbindDriver(fn: ModelFunction): Answer {
    const { driver } = fn;
    if (driver === undefined) return refuse('ENODEV');
    const parent = this.state.parents.find(({ facts }) => facts.bdf === fn.facts.bdf && facts.name === driver);
    fn.unbinding = true;
    if (parent !== undefined) {
      return this.wait(`unbind ${fn.facts.bdf}`, this.unregistration(parent, () => {
        if (parent.facts.name === 'aux') fn.aux = false;
        fn.master = false;
        fn.driver = undefined;
        fn.unbinding = false;
      }));
    }
    return this.wait(`unbind ${fn.facts.bdf}`, () => {
      const { device } = fn;
      if (device !== undefined && device.users > 0) return false;
      if (device !== undefined) this.removeDevice(device);
      fn.device = undefined;
      fn.driver = undefined;
      fn.unbinding = false;
      return true;
    });
  }

  /** The last device takes its group along: out of its container, and dead for who has it open. */
  private removeDevice(device: ModelDevice): void {
    const { group } = device;
    if (group.devices.length === 1) {
      this.leave(group);
      group.dead = true;
      this.state.groups.splice(this.state.groups.indexOf(group), 1);
    }
    group.devices.splice(group.devices.indexOf(device), 1);
  }

  setAux(fn: ModelFunction, on: boolean): Answer {
    if (on) {
      if (fn.aux) return refuse('EBUSY');
    } else {
      if (!fn.aux) return refuse('EINVAL');
      if (this.state.groups.some((group) => group.backing === 'aux' && group.devices[0]?.mdev?.parent.facts.bdf === fn.facts.bdf)) return refuse('EBUSY');
    }
    fn.aux = on;
    return DONE;
  }

  // --- mediated devices (C11–C13, 7.5, E34, E35) --------------------------------------------------------------------

  registerParent(parent: ModelParent): Answer {
    if (parent.registered) return refuse('EEXIST');
    parent.registered = true;
    return DONE;
  }

  unregisterParent(parent: ModelParent): Answer {
    if (!parent.registered || parent.unregistering) return DONE;
    return this.wait(`unregister ${parent.facts.name}`, this.unregistration(parent, () => {}));
  }

  /** No create and no remove is under way any more; then child after child. */
  private unregistration(parent: ModelParent, then: () => void): () => boolean {
    parent.unregistering = true;
    return () => {
      if (this.removes.some((mdev) => mdev.parent === parent)) return false;
      for (let child = parent.children[0]; child !== undefined; child = parent.children[0]) {
        child.removing = true;
        if (child.device.users > 0) return false;
        this.endMdev(child);
      }
      parent.registered = false;
      parent.unregistering = false;
      then();
      return true;
    };
  }

  /** Removes that wait. */
  private readonly removes: ModelMdev[] = [];

  create(parent: ModelParent, type: string, uuid: string): Answer {
    // the kernel reads 36 characters and lets one more follow, whichever it is (drivers/vfio/mdev/mdev_sysfs.c, lib/uuid.c)
    if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}.?$/is.test(uuid)) return refuse('EINVAL');
    const name = uuid.slice(0, 36).toLowerCase();
    if (this.state.mdev(name) !== undefined) return refuse('EEXIST');
    if (!parent.registered || parent.unregistering) return refuse('ENODEV');
    const takes = type === `${parent.facts.name}-1` ? 1 : type === `${parent.facts.name}-2` ? 2 : undefined;
    if (takes === undefined) return refuse('ENOENT');
    if (parent.left < takes) return refuse('EUSERS');
    if (parent.refuseCreate) {
      parent.refuseCreate = false;
      return refuse('EIO');
    }
    parent.left -= takes;
    const mdev = new ModelMdev(name, parent, takes);
    parent.children.push(mdev);
    this.state.groups.push(mdev.device.group);
    return DONE;
  }

  remove(uuid: string): Answer {
    const mdev = this.state.mdev(uuid);
    if (mdev === undefined) return refuse('ENODEV');
    const { parent } = mdev;
    if (this.removes.includes(mdev)) return refuse('EAGAIN');
    if (parent.unregistering) return refuse('ENODEV');
    if (mdev.device.users > 0 && !parent.facts.hotUnplug) return refuse('EBUSY');
    mdev.removing = true;
    this.removes.push(mdev);
    return this.wait(`remove ${uuid.slice(-1)}`, () => {
      if (mdev.device.users > 0) return false;
      this.removes.splice(this.removes.indexOf(mdev), 1);
      this.endMdev(mdev);
      return true;
    });
  }

  private endMdev(mdev: ModelMdev): void {
    const { parent } = mdev;
    this.removeDevice(mdev.device);
    parent.children.splice(parent.children.indexOf(mdev), 1);
    parent.left += mdev.takes;
  }

  pin(mdev: ModelMdev, pages: readonly number[], wants: { readonly read: boolean; readonly write: boolean }): Answer {
    return answer(this.rules.pin(mdev, pages, wants), undefined);
  }

  // --- sums that must be equal --------------------------------------------------------------------------------------

  /** Pins outstanding. */
  get pins(): number {
    let pins = 0;
    for (const { mappings } of this.state.containers) for (const { frames, vendor } of mappings) pins += (frames?.length ?? 0) + vendor.size;
    return pins;
  }

  /** One for each address space that was ever bound and lives, one for each aux domain (X2, M7). */
  get pasids(): number {
    let pasids = [...this.state.mms].filter(({ bound }) => bound).length;
    for (const { domains } of this.state.containers) pasids += domains.filter(({ groups }) => groups.some(({ backing }) => backing === 'aux')).length;
    return pasids;
  }

  get domains(): number {
    return [...this.state.containers].reduce((sum, { domains }) => sum + domains.length, 0);
  }

  get bonds(): number {
    return [...this.state.containers].reduce((sum, { domains, binds }) => sum + binds.size * domains.reduce((groups, domain) => groups + domain.groups.length, 0), 0);
  }

  get binds(): number {
    return [...this.state.containers].reduce((sum, { binds }) => sum + binds.size, 0);
  }

  get mappings(): number {
    return [...this.state.containers].reduce((sum, { mappings }) => sum + mappings.length, 0);
  }
}
