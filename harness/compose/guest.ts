/**
 * Composes a guest: the modules of a kernel in a container of its own, without a parent, and one more that binds
 * exactly what the guest's VMM provides. What is not provided does not exist: a missing binding is an error, never the
 * host's object.
 */
import { Container, ContainerModule } from 'inversify';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Mailbox } from '../../sim/channel.js';
import type { Clock } from '../../sim/clock.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Random } from '../../sim/random.js';
import { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { DeviceTopology } from '../topology/schema.js';
import { formatBdf, type Bdf } from '../topology/units.js';
import type { DeviceModel, DeviceModels } from './devices.js';
import { kernelModules, kernelOf, type Kernel } from './host.js';
import type { PciTree } from './pci-tree.js';
import type { Settings } from './settings.js';
import { CLOCK, DEVICE_MODELS, IDXD_MDEV, MAILBOX, MEMORY, PCI_TREE, RANDOM, SCHEDULER, SETTINGS, TRACE } from './tokens.js';

/** A device that the VMM shows to the guest. */
export interface VirtualSlot {
  readonly name: string;
  readonly model: DeviceModel['model'];
  readonly bdf: Bdf;
  readonly function: PciFunction;
  readonly topology: DeviceTopology | undefined;
}

/** What a VMM, and the simulator under it, give to a guest. */
export interface GuestGround {
  readonly settings: Settings;
  /** Of the virtual CPUs. */
  readonly clock: Clock;
  /** Guest-physical memory. */
  readonly memory: PhysicalMemory;
  readonly slots: readonly VirtualSlot[];
  /** This guest's share of the run's randomness. */
  readonly random: Random;
  /** Of the simulator: there is one order of messages, one trace, and one place for what goes wrong. */
  readonly mailbox: Mailbox;
  readonly trace: Trace;
  readonly fail: (error: unknown) => void;
}

function groundOf(ground: GuestGround): ContainerModule {
  return new ContainerModule(({ bind }) => {
    bind(SETTINGS).toConstantValue(ground.settings);
    bind(CLOCK).toConstantValue(ground.clock);
    bind(MEMORY).toConstantValue(ground.memory);
    bind(RANDOM).toConstantValue(ground.random);
    bind(MAILBOX).toConstantValue(ground.mailbox);
    bind(TRACE).toConstantValue(ground.trace);
    bind(IDXD_MDEV).toConstantValue(undefined);
    bind(SCHEDULER).toConstantValue(new Scheduler(ground.clock, ground.fail));
    bind(DEVICE_MODELS).toResolvedValue((tree: PciTree): DeviceModels => ({ models: ground.slots.map((slot) => plug(tree, slot)) }), [PCI_TREE]).inSingletonScope();
  });
}

/** Shows a device to the guest, at composition or later. */
export function plug(tree: PciTree, slot: VirtualSlot): DeviceModel {
  tree.insert({ bdf: slot.bdf }, slot.function);
  return { name: slot.name, model: slot.model, bdf: formatBdf(slot.bdf), function: slot.function, topology: slot.topology, onDescriptor: undefined };
}

/** A guest's kernel, not booted; may be composed again over the same ground (reboot). */
export function composeGuest(ground: GuestGround): Kernel {
  const container = new Container();
  for (const module of [groundOf(ground), ...kernelModules]) container.load(module);
  return kernelOf(container);
}
