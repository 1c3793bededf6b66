/**
 * What serves devices that no IOMMU translates (kernel/dma/direct.c): one identity domain each, no PASIDs, no
 * features, nothing to invalidate. The DMA API then hands out physical addresses, and whatever needs an IOMMU is
 * refused with ENODEV.
 */
import { Channel, type Mailbox } from '../../sim/channel.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { DeviceFeature, DomainType, FaultReport, IommuDomain, IommuOps, ProbedDevice } from './ops.js';

/** Every address is its own translation. */
class IdentityDomain implements IommuDomain {
  readonly type = 'identity';
  readonly endPage = 2 ** 40;
  readonly pageSizes: readonly number[] = [1];
  readonly id: number;

  constructor(id: number) {
    this.id = id;
  }

  map(): void {
    throw new Errno('EINVAL', `domain ${this.id} is the identity: it has no tables`);
  }

  unmap(): number {
    return 0;
  }

  iovaToPhys(page: number, offset: number): number {
    return page * 4096 + offset;
  }
}

/* oxlint-disable require-yield -- the calls of IommuOps may sleep; without hardware none has to */
export class DirectMapping implements IommuOps {
  readonly name = 'direct';
  readonly direct = true;
  readonly faults: Channel<FaultReport>;
  private nextDomain = 1;

  constructor(mailbox: Mailbox) {
    this.faults = new Channel(mailbox, 'direct mapping faults');
  }

  probe(_device: Device): ProbedDevice {
    return { maxPasids: 0, reserved: [] };
  }

  *release(): Steps {}

  hasFeature(): boolean {
    return false;
  }

  *enableFeature(device: Device, feature: DeviceFeature): Steps {
    throw noIommu(device, feature);
  }

  *disableFeature(device: Device, feature: DeviceFeature): Steps {
    throw noIommu(device, feature);
  }

  featureEnabled(): boolean {
    return false;
  }

  domainAlloc(type: DomainType): IommuDomain {
    if (type !== 'identity') throw new Errno('ENODEV', `no IOMMU: a ${type} domain needs one`);
    return new IdentityDomain(this.nextDomain++);
  }

  domainFree(): void {}
  *attach(): Steps {}
  *detach(): Steps {}
  *flush(): Steps {}

  *auxAttach(_domain: IommuDomain, device: Device): Steps {
    throw noIommu(device, 'AUX');
  }

  *auxDetach(_domain: IommuDomain, device: Device): Steps {
    throw noIommu(device, 'AUX');
  }

  auxGetPasid(_domain: IommuDomain, device: Device): number {
    throw noIommu(device, 'AUX');
  }

  *svaAttach(device: Device): Steps {
    throw noIommu(device, 'SVA');
  }

  *svaSilence(): Steps {}
  *svaDetach(): Steps {}
  *svaInvalidate(): Steps {}

  svaCheckFormat(device: Device): void {
    throw noIommu(device, 'SVA');
  }

  pageResponse(): void {}
}
/* oxlint-enable require-yield */

function noIommu(device: Device, what: string): Errno {
  return new Errno('ENODEV', `${what}: no IOMMU translates ${device.name}`);
}
