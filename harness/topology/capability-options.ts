/** The capability words of a topology's `iommu:` section, without what only the harness reads. */
import type { VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';
import type { IommuTopology } from './schema.js';

const OURS = new Set(['model', 'page-request-queue', 'iotlb-entries']);

export function capabilityOptions(iommu: IommuTopology): VtdCapabilityOptions {
  return Object.fromEntries(Object.entries(iommu).filter(([key, value]) => !OURS.has(key) && value !== undefined));
}
