/**
 * The chain of things that must hold before a device can share a process' address space, and the sentence that
 * names the missing links. Half of the product is that this sentence exists.
 */
import type { Device } from '../../host/device.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import type { DeviceRecord } from './records.js';

function isPciDevice(device: Device): device is PciDevice {
  return 'pasidSupported' in device && 'atsSupported' in device && 'priSupported' in device;
}

function join(words: readonly string[]): string {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)!}`;
}

/** Why SVA does not work on the device now, e.g. `device 0000:6a:01.0 has PASID and ATS but PRI is not enabled`. */
export function missingSvaLink(record: DeviceRecord): string {
  const { device, ops, probed } = record;
  if (probed.maxPasids < 2) return `device ${device.name} and ${ops.name} have no PASID in common`;
  if (isPciDevice(device)) {
    const links: [name: string, supported: boolean, enabled: boolean][] = [
      ['PASID', device.pasidSupported, device.pasidEnabled],
      ['ATS', device.atsSupported, device.atsEnabled],
      ['PRI', device.priSupported, device.priEnabled],
    ];
    const present = links.filter(([, , enabled]) => enabled).map(([name]) => name);
    const has = present.length > 0 ? `has ${join(present)} but ` : '';
    const absent = links.filter(([, supported]) => !supported).map(([name]) => name);
    if (absent.length > 0) return `device ${device.name} ${has}has no ${join(absent)} capability`;
    const off = links.filter(([, , enabled]) => !enabled).map(([name]) => name);
    if (off.length > 0) return `device ${device.name} ${has}${join(off)} ${off.length > 1 ? 'are' : 'is'} not enabled`;
  }
  if (!ops.hasFeature(device, 'SVA')) return `${ops.name} offers no SVA for device ${device.name}`;
  if (ops.hasFeature(device, 'IOPF') && !ops.featureEnabled(device, 'IOPF')) {
    return `device ${device.name} can fault through the IOMMU but IOPF is not enabled`;
  }
  return `SVA is not enabled on device ${device.name}`;
}
