/** Composes one host kernel and the hardware under it. The only place that asks a container. */
import 'reflect-metadata/lite';
import { Container } from 'inversify';
import { devicesModule } from './devices.js';
import { hostModule } from './host-module.js';
import { iommuModule } from './iommu.js';
import { pciModule } from './pci-module.js';
import type { Settings } from './settings.js';
import { simModule } from './sim-module.js';
import * as T from './tokens.js';

export function composeHost(settings: Settings) {
  const container = new Container();
  container.bind(T.SETTINGS).toConstantValue(settings);
  for (const module of [simModule, hostModule, pciModule, iommuModule, devicesModule]) container.load(module);
  return {
    settings,
    clock: container.get(T.CLOCK), random: container.get(T.RANDOM), scheduler: container.get(T.SCHEDULER), mailbox: container.get(T.MAILBOX), trace: container.get(T.TRACE),
    memory: container.get(T.MEMORY), timing: container.get(T.TIMING), log: container.get(T.LOG), frames: container.get(T.FRAMES), interrupts: container.get(T.INTERRUPTS),
    fabric: container.get(T.FABRIC), tree: container.get(T.PCI_TREE), access: container.get(T.CONFIG_ACCESS),
    unit: container.get(T.IOMMU_HARDWARE), devices: container.get(T.DEVICE_MODELS),
    pci: container.get(T.PCI), binding: container.get(T.IOMMU_BINDING), drivers: container.get(T.PCI_DRIVERS), core: container.get(T.IOMMU_CORE), iommu: container.get(T.IOMMU_DRIVER),
  };
}

/** A host: hardware and kernel, composed but not booted. */
export type Host = ReturnType<typeof composeHost>;
