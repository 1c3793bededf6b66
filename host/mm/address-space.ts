/**
 * An address space as other rooms see it (`struct mm_struct`). Addresses are numbers: user addresses of 4-level
 * tables lie below 2^47.
 */
import type { Steps } from '../../sim/task.js';

/** What a fault needs: ACCESS_READ, ACCESS_WRITE, ACCESS_EXECUTE of host/pci/dma-port.ts, or-ed; they are the same bits. */
export type FaultAccess = number;

export type FaultOutcome = 'handled' | 'no-vma' | 'permission' | 'out-of-memory' | 'exiting';

/** Called by the address space; both may sleep and must not fault the same address space. */
export interface MmNotifier {
  /** `invalidateRange` never sleeps (MMU_INVALIDATE_DOES_NOT_BLOCK of Linux 4.16 to 4.19). Such notifiers are told before those that may. */
  readonly neverSleeps?: true;
  /** Page-table entries of [start, end) were removed or restricted; frames are freed after this returns. */
  invalidateRange(mm: AddressSpace, start: number, end: number): Steps;
  /** The last user is gone; the address space is about to be torn down (exit_mmap). Called once. */
  release(mm: AddressSpace): Steps;
}

export interface AddressSpace {
  readonly id: number;
  /** Name of the process that created it. */
  readonly name: string;
  /** Physical address of the root page table, 4 KiB aligned. */
  readonly pgd: number;
  readonly levels: 4 | 5;
  /** 1 GiB leaves may appear (a device's IOMMU must support them, U7). */
  readonly usesGigantic: boolean;
  /** mm_users: the address space exists while above zero. */
  readonly users: number;
  /** True from the last put on. */
  readonly exiting: boolean;

  /** mmget_not_zero: false when no user is left. */
  get(): boolean;
  /** mmput: the last one calls the notifiers' `release`, unmaps everything and drops the structure's reference. */
  put(): Steps;
  /** mmput_async: from code that must not tear down itself, such as a fault worker (M5). */
  putAsync(): void;
  /** mmgrab / mmdrop: keep the structure (not the mappings). */
  grab(): void;
  drop(): void;
  /** Called once when the structure is freed: the last drop after the last put (M7). */
  onFreed(callback: () => void): void;

  registerNotifier(notifier: MmNotifier): void;
  unregisterNotifier(notifier: MmNotifier): void;

  /** handle_mm_fault: makes `address` accessible. Values, no exceptions, for what the process did wrong. */
  handleFault(address: number, access: FaultAccess): Steps<FaultOutcome>;
  /** The same where it need not sleep, as for most faults; undefined, and nothing has changed, where it must. */
  tryHandleFault(address: number, access: FaultAccess): FaultOutcome | undefined;
}
