/** VFIO_IOMMU_GET_INFO: page sizes and the chain of capabilities (vfio_iommu_type1_get_info, v5.10). */
import type { Steps } from '../../sim/task.js';
import type { Process } from '../../host/process.js';
import { toAddress } from '../../sim/address.js';
import {
  IOMMU_TYPE1_INFO, IOMMU_TYPE1_INFO_CAPSZ, IOMMU_TYPE1_INFO_MINSZ, IOVA_RANGE, TYPE1_CAP_DMA_AVAIL, TYPE1_CAP_IOVA_RANGE, TYPE1_CAP_MIGRATION,
  VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  bytesOf, capability, chainOf, concatWords, copyToUser, recordFromUser, wordsToUser, type Capability,
} from '../uapi/index.js';
import { DIRTY_BITMAP_SIZE_MAX } from './dirty.js';
import type { ContainerState } from './state.js';

/** Every power of two from a page on: a container without a domain takes any size. */
const ANY_PAGE_SIZE = 0xffff_ffff_ffff_f000n;

/**
 * The caller's argsz says what it has room for; when that is too small for the capabilities, argsz becomes what they need.
 * EFAULT; EINVAL argsz.
 */
export function* getInfo(state: ContainerState, caller: Process, argument: number): Steps<number> {
  const words = yield* recordFromUser(caller, argument, IOMMU_TYPE1_INFO, IOMMU_TYPE1_INFO_MINSZ);
  const { argsz, flags, iova_pgsizes, cap_offset } = IOMMU_TYPE1_INFO.f;
  const room = argsz.get(words);
  yield* state.lock.lock();
  iova_pgsizes.setBig(words, pageSizes(state));
  const capabilities = capabilitiesOf(state);
  state.lock.unlock();
  flags.set(words, VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS);
  const chain = chainOf(capabilities, IOMMU_TYPE1_INFO.sizeBytes);
  const needed = IOMMU_TYPE1_INFO.sizeBytes + chain.length * 4;
  if (room < needed) argsz.set(words, needed);
  else {
    yield* wordsToUser(caller, argument + IOMMU_TYPE1_INFO.sizeBytes, chain);
    cap_offset.set(words, IOMMU_TYPE1_INFO.sizeBytes);
  }
  yield* copyToUser(caller, argument, bytesOf(words, room >= IOMMU_TYPE1_INFO_CAPSZ ? IOMMU_TYPE1_INFO_CAPSZ : IOMMU_TYPE1_INFO_MINSZ));
  return 0;
}

/** A bit for each size that every domain has. */
function pageSizes({ domains }: ContainerState): bigint {
  let sizes = ANY_PAGE_SIZE;
  for (const { domain } of domains) sizes &= domain.pageSizes.reduce((bits, pages) => bits | (BigInt(pages) * 4096n), 0n);
  return sizes;
}

function capabilitiesOf(state: ContainerState): Capability[] {
  const all = [
    capability(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, TYPE1_CAP_MIGRATION.encode({ flags: 0, pgsize_bitmap: 4096, max_dirty_bitmap_size: DIRTY_BITMAP_SIZE_MAX })),
    capability(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, TYPE1_CAP_DMA_AVAIL.encode({ avail: state.dmaAvailable })),
  ];
  const { validIova } = state;
  if (validIova.length > 0) {
    const ranges = validIova.map(({ start, end }) => IOVA_RANGE.encode({ start: toAddress(start), end: toAddress(end) - 1n }));
    all.push(capability(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, concatWords(TYPE1_CAP_IOVA_RANGE.encode({ nr_iovas: ranges.length, reserved: 0 }), ...ranges)));
  }
  return all;
}
