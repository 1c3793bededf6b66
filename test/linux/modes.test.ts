/**
 * What modes Linux drives our unit in, one boot each. In every one a stock NVMe driver reads the disk and writes to it
 * through the IOMMU, and an accelerator's queue is opened: with shared virtual addresses, or with the error that Linux
 * gives. Counters of our hardware say that the mode was the mode.
 */
import { describe, expect, it } from 'vitest';
import { boot, type Boot, type Machine } from './world.js';

interface Mode {
  readonly machine: Machine;
  /** Of the iommu groups of disk and accelerator. */
  readonly type: 'DMA-FQ' | 'DMA' | 'identity';
  /** Bit 10 of RTADDR: the root table is one of scalable mode. */
  readonly scalable: boolean;
  /** Errno of opening the queue, and what idxd says. */
  readonly refused?: readonly [errno: string, ...log: readonly string[]];
  /** SVA whose pages nobody asks for. */
  readonly unrecoverable?: boolean;
  readonly proof: (guest: Boot) => void;
}

const NO_PASIDS = ['No in-kernel DMA with PASID. -28', 'pasid allocation failed: -28'] as const;
const BOOT_FLUSHES = { CC: 'CC global', PASIDS: 'PC-inv global', IOTLB: 'IOTLB global' } as const;

/** Kinds of descriptors that have been there, sorted. */
function kinds({ descriptors }: Boot): string[] {
  return Object.keys(descriptors).toSorted();
}

/** The kernel flushed everything once, when it had set the root table, and never again. */
function expectBootFlushes({ descriptors }: Boot, ...which: (keyof typeof BOOT_FLUSHES)[]): void {
  for (const flush of Object.keys(BOOT_FLUSHES) as (keyof typeof BOOT_FLUSHES)[]) expect(descriptors[BOOT_FLUSHES[flush]] ?? 0, flush).toBe(which.includes(flush) ? 1 : 0);
}

const MODES: Readonly<Record<string, Mode>> = {
  'scalable mode, default domains in first-level tables': {
    machine: {}, type: 'DMA-FQ', scalable: true,
    proof: (guest) => {
      expectBootFlushes(guest, 'CC', 'PASIDS', 'IOTLB');
      // first-level tables are invalidated by PASID, also those of devices without one
      expect(kinds(guest)).toEqual(['CC global', 'IOTLB global', 'IWD', 'P-DIOTLB', 'P-IOTLB page', 'P-IOTLB pasid', 'PC-inv global', 'PC-inv pasid', 'PGRP']);
    },
  },
  'legacy mode: no PASIDs, so SVA has no number to give (ENOSPC)': {
    machine: { iommu: { scalable: false } }, type: 'DMA-FQ', scalable: false, refused: ['ENOSPC', ...NO_PASIDS],
    proof: (guest) => {
      expectBootFlushes(guest, 'CC', 'IOTLB');
      expect(kinds(guest)).toEqual(['CC global', 'IOTLB domain', 'IOTLB global', 'IOTLB page', 'IWD']);
    },
  },
  'intel_iommu=sm_off: legacy mode on hardware that could do more (ENOSPC)': {
    machine: { kernel: { 'scalable-mode': false } }, type: 'DMA-FQ', scalable: false, refused: ['ENOSPC', ...NO_PASIDS],
    proof: (guest) => {
      expect(guest.log).toContain('DMAR: Scalable mode is disallowed');
      expectBootFlushes(guest, 'CC', 'IOTLB');
      expect(kinds(guest)).toEqual(['CC global', 'IOTLB domain', 'IOTLB global', 'IOTLB page', 'IWD']);
    },
  },
  // Linux finds no 1 GiB pages in CAP (FS1GP is clear, since it would mean nothing without first-level tables) while its
  // processors have them, and does without SVM from boot on: intel_svm_check() in drivers/iommu/intel/svm.c
  'scalable mode with second-level tables only: no table to share (ENODEV)': {
    machine: { iommu: { 'first-level': false } }, type: 'DMA-FQ', scalable: true, refused: ['ENODEV', 'pasid allocation failed: -19'],
    proof: (guest) => {
      expect(guest.log).toContainEqual(expect.stringContaining('SVM disabled, incompatible 1GB page capability'));
      expectBootFlushes(guest, 'CC', 'PASIDS', 'IOTLB');
      expect(kinds(guest)).toEqual(['CC global', 'IOTLB domain', 'IOTLB global', 'IOTLB page', 'IWD', 'PC-inv global']);
    },
  },
  'caching mode: what becomes present is invalidated too': {
    machine: { iommu: { 'caching-mode': true } }, type: 'DMA-FQ', scalable: true,
    proof: (guest) => {
      expectBootFlushes(guest, 'CC', 'PASIDS', 'IOTLB');
      // one context entry for each device; PASID entries of requests without PASID, of the kernel's own PASID, of the process: set, and cleared
      expect(guest.descriptors['CC device']).toBe(2);
      expect(guest.descriptors['PC-inv pasid']).toBeGreaterThan(3);
    },
  },
  'strict: a page is gone from the IOTLB before its unmap returns': {
    machine: { kernel: { 'iommu-mode': 'strict' } }, type: 'DMA', scalable: true,
    proof: (guest) => {
      // no flush queue that empties a whole domain: those of PASIDs are the two of the process's end
      expect(guest.descriptors['P-IOTLB pasid']).toBe(2);
      expect(guest.descriptors['P-IOTLB page']).toBeGreaterThan(20);
    },
  },
  'passthrough: the disk needs no invalidation at all': {
    machine: { kernel: { 'iommu-mode': 'passthrough' } }, type: 'identity', scalable: true,
    proof: (guest) => {
      expectBootFlushes(guest, 'CC', 'PASIDS', 'IOTLB');
      // what is left are the process's: each with its device TLB
      const { descriptors } = guest;
      expect(descriptors['P-IOTLB page']! + descriptors['P-IOTLB pasid']!).toBe(descriptors['P-DIOTLB']);
      expect(guest.count('nvme:complete')).toBeGreaterThan(60);
    },
  },
  'no PRI: SVA, but a page that is not there is an error of the descriptor': {
    machine: { accelerator: { pri: false } }, type: 'DMA-FQ', scalable: true, unrecoverable: true,
    proof: (guest) => {
      expect(guest.count('vtd:page_request')).toBe(0);
      // a translation request that finds no page is answered without permissions, and nothing is logged (VT-d 4.1, chapter 7)
      expect(guest.count('vtd:fault')).toBe(0);
      expect(guest.of('dsa:complete').map(({ status }) => status)).toContain('0x83');
      expect(kinds(guest)).not.toContain('PGRP');
    },
  },
  'no ATS: no SVA (EINVAL)': {
    machine: { accelerator: { ats: false, pri: false } }, type: 'DMA-FQ', scalable: true, refused: ['EINVAL', 'pasid allocation failed: -22'],
    proof: (guest) => expect(kinds(guest)).not.toContain('P-DIOTLB'),
  },
  'no PASID capability: no SVA (ENOSPC)': {
    machine: { accelerator: { 'pasid-bits': 0 } }, type: 'DMA-FQ', scalable: true, refused: ['ENOSPC', ...NO_PASIDS],
    proof: (guest) => expect(guest.of('pci:config_write').map(({ register }) => register)).not.toContain('pasid_ctrl'),
  },
  'ESRTPS: setting the root table is flush enough': {
    machine: { iommu: { esrtps: true } }, type: 'DMA-FQ', scalable: true,
    proof: (guest) => {
      expectBootFlushes(guest);
      expect(kinds(guest)).toEqual(['IWD', 'P-DIOTLB', 'P-IOTLB page', 'P-IOTLB pasid', 'PC-inv pasid', 'PGRP']);
    },
  },
};

describe('Linux on our VT-d unit', () => {
  it.each(Object.entries(MODES))('%s', async (_name, { machine, type, scalable, refused, unrecoverable, proof }) => {
    const guest = await boot({ ...machine, linux: { allow: refused === undefined ? [] : ['idxd'] } });
    // complaints of DMAR are shortcomings: none is allowed
    expect(guest.shortcomings).toEqual(refused === undefined && unrecoverable !== true ? [] : ['the guest: fail dsa 1 of 1 processes']);
    guest.expectGoodDisk();
    for (const slot of ['0000:00:03.0', '0000:00:04.0']) expect(guest.fact('pci', slot)['type']).toBe(type);
    expect(guest.log).toContain('DMAR: Intel(R) Virtualization Technology for Directed I/O');
    expect(guest.of('vtd:register_write').filter(({ offset }) => offset === '0x20').map(({ lo }) => (Number(lo) & 0x400) !== 0)).toEqual([scalable]);
    expect(guest.count('vtd:fault')).toBe(0);
    if (refused === undefined) expectSva(guest, unrecoverable === true);
    else {
      const [errno, ...log] = refused;
      expect(guest.fact('dsa-test', 'wq0.0', 'open')).toEqual({ errno });
      for (const text of log) expect(guest.log).toContainEqual(expect.stringMatching(new RegExp(`^idxd .*${text.replaceAll('.', String.raw`\.`)}`)));
      expect(guest.count('dsa:submit')).toBe(0);
    }
    proof(guest);
  });
});

function expectSva(guest: Boot, unrecoverable: boolean): void {
  expect(guest.fact('dsa-test', 'wq0.0', 'open')).toEqual({ errno: '0' });
  // bit 7: it was a write; 3: a page fault that was not blocked on; 4: a page request that was answered Invalid
  expect(guest.fact('dsa-test', 'wq0.0', 'memmove')['status']).toBe(unrecoverable ? '0x83' : '0x01');
  expect(guest.fact('dsa-test', 'wq0.0', 'memmove-data')['equal']).toBe(unrecoverable ? 'no' : 'yes');
  expect(guest.fact('dsa-test', 'wq0.0', 'after-munmap')['status']).toBe(unrecoverable ? '0x83' : '0x84');
}
