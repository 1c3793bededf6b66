/** Composes kernels: a host with the hardware under it, or a guest. The only place that asks a container. */
import 'reflect-metadata/lite';
import { Container } from 'inversify';
import { devicesModule } from './devices.js';
import { driversModule } from './drivers.js';
import { groundModule, interruptsModule, ramModule } from './host-module.js';
import { iommuModule } from './iommu.js';
import { passthroughModule } from './passthrough.js';
import { pciModule } from './pci-module.js';
import type { Settings } from './settings.js';
import { simModule } from './sim-module.js';
import * as T from './tokens.js';

/** What every kernel consists of, whatever is below it. */
export const kernelModules = [groundModule, interruptsModule, pciModule, iommuModule, driversModule];

export function composeHost(settings: Settings) {
  const container = new Container();
  container.bind(T.SETTINGS).toConstantValue(settings);
  for (const module of [simModule, ramModule, devicesModule, ...kernelModules, passthroughModule]) container.load(module);
  return { ...kernelOf(container), clock: container.get(T.MACHINE_CLOCK), passthrough: container.get(T.PASSTHROUGH) };
}

/** The parts of a kernel, each from its container. */
export function kernelOf(container: Container) {
  return {
    settings: container.get(T.SETTINGS),
    clock: container.get(T.CLOCK), random: container.get(T.RANDOM), scheduler: container.get(T.SCHEDULER), mailbox: container.get(T.MAILBOX), trace: container.get(T.TRACE),
    memory: container.get(T.MEMORY), timing: container.get(T.TIMING), log: container.get(T.LOG), frames: container.get(T.FRAMES), processes: container.get(T.PROCESSES), interrupts: container.get(T.INTERRUPTS),
    fabric: container.get(T.FABRIC), tree: container.get(T.PCI_TREE), access: container.get(T.CONFIG_ACCESS),
    unit: container.get(T.IOMMU_HARDWARE), devices: container.get(T.DEVICE_MODELS),
    pci: container.get(T.PCI), binding: container.get(T.IOMMU_BINDING), drivers: container.get(T.PCI_DRIVERS), core: container.get(T.IOMMU_CORE), iommu: container.get(T.IOMMU_DRIVER),
    kernelDrivers: container.get(T.KERNEL_DRIVERS),
  };
}

/** A kernel and its machine, composed but not booted. */
export type Kernel = ReturnType<typeof kernelOf>;
/** The kernel on the hardware. */
export type Host = ReturnType<typeof composeHost>;
