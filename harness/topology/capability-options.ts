/** The capability words of a topology's `iommu:` section, without what only the harness reads. */
import type { VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';
import type { ExternalTopology, IommuTopology } from './schema.js';

const OURS = new Set(['model', 'page-request-queue', 'iotlb-entries']);

export function capabilityOptions(iommu: IommuTopology): VtdCapabilityOptions {
  return Object.fromEntries(Object.entries(iommu).filter(([key, value]) => !OURS.has(key) && value !== undefined));
}

/**
 * The same for an external guest: its virtual CPUs have 5-level tables and 1 GiB pages, and Linux shares a process's
 * table with a unit only if the unit has them too.
 */
export function externalCapabilities(iommu: NonNullable<ExternalTopology['iommu']>): VtdCapabilityOptions {
  const firstLevel = iommu['first-level'] ?? iommu.scalable;
  return { 'five-level': firstLevel, ...capabilityOptions(iommu) };
}
