/** Devices by the name a topology gives them. A factory builds the model; who plugs its `function` in decides where. */
import type { Clock } from '../sim/clock.js';
import type { Scheduler } from '../sim/task.js';
import type { Trace } from '../sim/trace.js';
import type { DmaPort } from '../host/pci/dma-port.js';
import type { FunctionPort } from '../host/pci/hardware/function-port.js';
import type { PciFunction } from '../host/pci/hardware/pci-function.js';
import type { Timing } from '../host/timing.js';
import { DsaDevice, type DsaDeviceConfig } from './dsa/hardware/dsa-device.js';
import type { DescriptorReport } from './dsa/hardware/job.js';
import { EduDevice } from './edu/hardware/edu-device.js';
import type { EduConfig } from './edu/hardware/edu-core.js';

export interface DeviceContext {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  /** Called at the end of every descriptor of a device that has descriptors. */
  readonly onComplete?: (report: DescriptorReport) => void;
  readonly wrapPort?: (port: FunctionPort) => DmaPort;
  readonly defects?: ReadonlySet<string>;
}

export interface DeviceModel {
  readonly function: PciFunction;
}

export const DEVICE_FACTORIES = {
  dsa: (context: DeviceContext, config: DsaDeviceConfig = {}): DsaDevice => new DsaDevice({ ...context, config }),
  edu: (context: DeviceContext, config: Partial<EduConfig> = {}): EduDevice => new EduDevice({ ...context, config }),
} as const;

export type DeviceName = keyof typeof DEVICE_FACTORIES;
