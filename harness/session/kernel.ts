/**
 * The kernel's IOMMU interface for code, as a driver in the simulated kernel would call it: features, shared virtual
 * addressing, fault handlers. Devices are named as in the topology, or by BDF.
 */
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import type { IommuCore } from '../../iommu/core/core.js';
import type { DeviceFeature, PageResponseCode } from '../../iommu/core/ops.js';
import type { BondState } from '../../iommu/core/records.js';
import { Errno, type ErrnoName } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { MachineSession } from '../session.js';
import type { SimulatedProcess } from './process.js';
import { faultRecord, type PageRequestRecord, type FaultRecord } from './records.js';

const PAGE_RESPONSE_VERSION = 1;
const PASID_VALID = 1;
const INVALID_PASID = 0xffff_ffff;

export interface SvaBindOptions {
  /**
   * Called once when the address space dies before unbind; the device must be silent for the PASID afterwards.
   * Non-zero says that it may not be. The same function again is the same bond.
   */
  readonly mmExit?: (device: string, pasid: number) => number | void;
  /** Handed back to nobody here, but part of what makes two binds the same. */
  readonly drvdata?: unknown;
}

type ExitSteps = () => Steps<number>;

export class KernelApi {
  private readonly session: MachineSession;
  /** One callback of the kernel for each of code's, so that binding again is the same bond. */
  private readonly exits = new Map<object, Map<string, ExitSteps>>();

  constructor(session: MachineSession) {
    this.session = session;
  }

  /** Never an error; false without an IOMMU. */
  devHasFeature(device: string, feature: DeviceFeature): boolean {
    return this.core.devHasFeature(this.device(device), feature);
  }

  devFeatureEnabled(device: string, feature: DeviceFeature): boolean {
    return this.core.devFeatureEnabled(this.device(device), feature);
  }

  /** ENODEV, EBUSY enabled already, EINVAL a link of the chain is missing. */
  async devEnableFeature(device: string, feature: DeviceFeature): Promise<void> {
    await this.session.perform(`enable ${feature} on ${device}`, this.core.devEnableFeature(this.device(device), feature));
  }

  /** EBUSY still used, EINVAL not enabled. */
  async devDisableFeature(device: string, feature: DeviceFeature): Promise<void> {
    await this.session.perform(`disable ${feature} on ${device}`, this.core.devDisableFeature(this.device(device), feature));
  }

  /**
   * Binds a process's address space to a device; its PASID. Each bind needs an unbind.
   * @throws Errno ENODEV, EINVAL, ESRCH, EBUSY, ENOSPC; see `svaBind` of iommu/core/core.ts
   */
  async svaBind(device: string, process: SimulatedProcess, options: SvaBindOptions = {}): Promise<number> {
    const { mmExit, drvdata } = options;
    const exit = mmExit === undefined ? undefined : this.exitSteps(device, mmExit);
    return this.session.perform(`bind ${process.name} to ${device}`, this.core.svaBind(this.device(device), process.program.process.mm, exit, drvdata));
  }

  /** ENODEV, ESRCH not bound. */
  async svaUnbind(device: string, pasid: number): Promise<void> {
    await this.session.perform(`unbind PASID ${pasid} from ${device}`, this.core.svaUnbind(this.device(device), pasid));
  }

  /** PASID of a bond; undefined without one. */
  svaGetPasid(device: string, process: SimulatedProcess): number | undefined {
    const pasid = this.core.svaGetPasid(this.device(device), process.program.process.mm) >>> 0;
    return pasid === INVALID_PASID ? undefined : pasid;
  }

  /** Where a bond is in its life. */
  bondState(device: string, pasid: number): BondState | 'NONE' {
    return this.core.bondState(this.device(device), pasid);
  }

  /** Limits a device's PASIDs, both included, before its first bind. ENODEV, EBUSY, EINVAL. */
  setSvaParam(device: string, param: { readonly minPasid: number; readonly maxPasid: number }): void {
    this.core.setSvaParam(this.device(device), param);
  }

  /**
   * Lets code take what faults are not for a bound process. What it answers is an errno when it does not take the
   * fault; a page request that it took is answered with `pageResponse`.
   * @throws Errno EINVAL, EBUSY there is one
   */
  registerDeviceFaultHandler(device: string, handler: (fault: FaultRecord) => ErrnoName | void): void {
    const name = this.session.nameOf(this.device(device));
    this.core.registerDeviceFaultHandler(this.device(device), (report) => handler(faultRecord(report, name)) ?? undefined);
  }

  /** EBUSY requests wait for an answer. */
  unregisterDeviceFaultHandler(device: string): void {
    this.core.unregisterDeviceFaultHandler(this.device(device));
  }

  /** Answers the group that a handler took. ENODEV, EINVAL nothing pending, or no match. */
  pageResponse(device: string, request: Pick<PageRequestRecord, 'pasid' | 'prgIndex'>, code: PageResponseCode): void {
    const { pasid, prgIndex } = request;
    this.core.pageResponse(this.device(device), { version: PAGE_RESPONSE_VERSION, flags: pasid === undefined ? 0 : PASID_VALID, pasid: pasid ?? 0, grpid: prgIndex, code });
  }

  /** Number of a device's IOMMU group, which is its name in /dev/vfio; also of a mediated device, by name or UUID. ENODEV it is not there. */
  iommuGroup(device: string): number {
    const { passthrough, pci } = this.session.model.host;
    const mdev = this.session.model.loaded.topology.mdevs.find(({ name, uuid }) => name === device || uuid === device.toLowerCase());
    if (mdev === undefined) return pci.groupOf(this.device(device)).id;
    const group = passthrough.mdevs.find(mdev.uuid)?.group;
    if (group === undefined) throw new Errno('ENODEV', `mediated device ${device} has not been started`);
    return group;
  }

  /**
   * Gives a device to another driver, as driver_override, unbind and bind in sysfs do; `vfio-pci` hands it to user space.
   * Without a name to whichever driver matches.
   * @throws Errno ENODEV no such driver; the device has none then
   */
  async setDriver(device: string, driver?: string): Promise<void> {
    await this.session.perform(`driver of ${device}`, this.changeDriver(this.device(device), driver));
  }

  private *changeDriver(device: PciFunctionDevice, name: string | undefined): Steps {
    const { drivers } = this.session.model.host;
    const bound = drivers.driverOf(device);
    if (bound !== undefined) yield* drivers.unbind(bound.name, device);
    drivers.setDriverOverride(device, name);
    if (name === undefined) yield* drivers.probeDevice(device);
    else yield* drivers.bind(name, device);
  }

  private get core(): IommuCore {
    return this.session.model.host.core;
  }

  private device(name: string): PciFunctionDevice {
    return this.session.deviceOf(name);
  }

  private exitSteps(device: string, mmExit: NonNullable<SvaBindOptions['mmExit']>): ExitSteps {
    let byDevice = this.exits.get(mmExit);
    if (byDevice === undefined) this.exits.set(mmExit, (byDevice = new Map<string, ExitSteps>()));
    let steps = byDevice.get(device);
    if (steps === undefined) {
      // oxlint-disable-next-line require-yield -- code's callback does not sleep in simulated time
      steps = function* (...[, pasid]: unknown[]): Steps<number> {
        return mmExit(device, pasid as number) ?? 0;
      };
      byDevice.set(device, steps);
    }
    return steps;
  }
}
