/**
 * Controller registers of NVM Express 1.4 over PCI Express: BAR 0, doorbells from 0x1000 on (NVMe 1.4 section 3.1;
 * offsets and fields agree with Linux' include/linux/nvme.h and SPDK's nvme_spec.h). Ids, class, revision and the place
 * of the MSI-X structures are those of QEMU's controller (hw/nvme/ctrl.c: registers and doorbells, then from the next
 * 4 KiB on the vector table, then from the next the pending bits).
 * Left out because no model advertises them: controller memory buffer, persistent memory region, boot partitions.
 */
import { bit, bits, struct } from '../../../sim/layout.js';
import type { RegisterSpec } from '../../../sim/registers.js';

export const NVME_VENDOR_ID = 0x1b36;
export const NVME_DEVICE_ID = 0x0010;
export const NVME_SUBSYSTEM_VENDOR_ID = 0x1af4;
export const NVME_SUBSYSTEM_ID = 0x1100;
export const NVME_REVISION = 0x02;
/** Mass storage, non-volatile memory, NVM Express. */
export const NVME_CLASS_CODE = 0x010802;
export const NVME_BAR = 0;

export const REG = {
  CAP: 0x00, VS: 0x08, INTMS: 0x0c, INTMC: 0x10, CC: 0x14, CSTS: 0x1c, NSSR: 0x20, AQA: 0x24, ASQ: 0x28, ACQ: 0x30, DOORBELLS: 0x1000,
} as const;

/** Version 1.4.0: major, minor, tertiary. */
export const VS_1_4 = 0x0001_0400;

export const CAP = struct('CAP', 8, {
  MQES: bits(15, 0), CQR: bit(16), AMS: bits(18, 17), TO: bits(31, 24), DSTRD: bits(35, 32), NSSRS: bit(36), CSS: bits(44, 37), BPS: bit(45),
  MPSMIN: bits(51, 48), MPSMAX: bits(55, 52), PMRS: bit(56), CMBS: bit(57),
});
/** CAP.CSS: the NVM command set. */
export const CSS_NVM = 1;

export const CC = struct('CC', 4, { EN: bit(0), CSS: bits(6, 4), MPS: bits(10, 7), AMS: bits(13, 11), SHN: bits(15, 14), IOSQES: bits(19, 16), IOCQES: bits(23, 20) });
export const CC_EN = 1;
export const SHN_NORMAL = 1;
export const SHN_ABRUPT = 2;
/** Log2 of the entry sizes, the only ones there are. */
export const SQES = 6;
export const CQES = 4;
export const SQE_SIZE = 64;
export const CQE_SIZE = 16;

export const CSTS_RDY = 1 << 0;
/** Controller fatal status. */
export const CSTS_CFS = 1 << 1;
export const CSTS_SHST = 3 << 2;
export const CSTS_SHST_OCCURRING = 1 << 2;
export const CSTS_SHST_COMPLETE = 2 << 2;

export const AQA = struct('AQA', 4, { ASQS: bits(11, 0), ACQS: bits(27, 16) });

export interface NvmeLayout {
  /** I/O queue pairs; with the admin pair as many as there are vectors. */
  readonly ioQueues: number;
  /** CAP.DSTRD: doorbells are 4 << stride bytes apart. */
  readonly doorbellStride: number;
}

export interface NvmeWindow {
  readonly doorbellEnd: number;
  readonly tableOffset: number;
  readonly pbaOffset: number;
  readonly barBytes: number;
}

/** Doorbells, MSI-X table and pending bits one after the other, each from a 4 KiB boundary on; 16 KiB up to 64 queue pairs. */
export function windowOf({ ioQueues, doorbellStride }: NvmeLayout): NvmeWindow {
  const vectors = ioQueues + 1;
  const doorbellEnd = REG.DOORBELLS + 2 * (ioQueues + 1) * (4 << doorbellStride);
  const tableOffset = Math.ceil(doorbellEnd / 4096) * 4096;
  const pbaOffset = tableOffset + Math.ceil((vectors * 16) / 4096) * 4096;
  return { doorbellEnd, tableOffset, pbaOffset, barBytes: 2 ** Math.ceil(Math.log2(pbaOffset + Math.ceil(vectors / 64) * 8)) };
}

/** Offset of the doorbell of a submission queue's tail or a completion queue's head (NVMe 1.4 sections 3.1.24, 3.1.25). */
export function doorbellOf(queue: number, completion: boolean, stride: number): number {
  return REG.DOORBELLS + (2 * queue + (completion ? 1 : 0)) * (4 << stride);
}

export interface NvmeCapabilityValues {
  /** Largest number of entries of a queue. */
  readonly queueEntries: number;
  /** In units of 500 ms. */
  readonly timeout: number;
  readonly doorbellStride: number;
  /** Log2 of the largest memory page, less 12. */
  readonly mpsMax: number;
}

/** ASQ and ACQ: 4 KiB aligned. */
const QUEUE_BASE = 0xffff_ffff_ffff_f000n;

export function nvmeRegisterSpecs(values: NvmeCapabilityValues): Record<'CAP' | 'VS' | 'INTMS' | 'INTMC' | 'CC' | 'CSTS' | 'NSSR' | 'AQA' | 'ASQ' | 'ACQ', RegisterSpec> {
  const cap = CAP.encode({
    MQES: values.queueEntries - 1, CQR: 1, TO: values.timeout, DSTRD: values.doorbellStride, CSS: CSS_NVM, MPSMAX: values.mpsMax,
  });
  return {
    CAP: { offset: REG.CAP, size: 8, reset: (BigInt(cap[1]!) << 32n) | BigInt(cap[0]!) },
    VS: { offset: REG.VS, size: 4, reset: BigInt(VS_1_4) },
    INTMS: { offset: REG.INTMS, size: 4 },
    INTMC: { offset: REG.INTMC, size: 4 },
    CC: { offset: REG.CC, size: 4, rw: 0x00ff_fff1n },
    CSTS: { offset: REG.CSTS, size: 4 },
    NSSR: { offset: REG.NSSR, size: 4, wo: 0xffff_ffffn },
    AQA: { offset: REG.AQA, size: 4, rw: 0x0fff_0fffn },
    ASQ: { offset: REG.ASQ, size: 8, rw: QUEUE_BASE },
    ACQ: { offset: REG.ACQ, size: 8, rw: QUEUE_BASE },
  };
}
