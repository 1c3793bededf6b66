/** What the model knows about the hardware of test/swarm/machine.ts. Page numbers; literals from the VT-d specification, not from the product. */

export interface UnitFacts {
  /** First page behind what a domain can translate: 2^48 and 2^39 bytes (SAGAW). */
  readonly endPage: number;
  /** NEST of ECAP. */
  readonly nests: boolean;
  /** IR of ECAP (E33). */
  readonly remapsInterrupts: boolean;
  /** First-level tables, PASIDs and page requests: what shared address spaces need (F1). */
  readonly sharesAddressSpaces: boolean;
}

export const UNITS: readonly UnitFacts[] = [
  { endPage: 2 ** 36, nests: true, remapsInterrupts: true, sharesAddressSpaces: true },
  { endPage: 2 ** 27, nests: false, remapsInterrupts: true, sharesAddressSpaces: false },
  { endPage: 2 ** 36, nests: true, remapsInterrupts: false, sharesAddressSpaces: true },
];

/** Requests without PASID to 0xfee0_0000–0xfeef_ffff are interrupts and meet no tables (VT-d 4.1, section 3.14). */
export const INTERRUPT_WINDOW = { start: 0xfee00, end: 0xfef00 };

export interface FunctionFacts {
  readonly bdf: string;
  readonly unit: UnitFacts;
  /** Functions of one group have one name. */
  readonly group: string;
  /** It can be reset without its neighbours. */
  readonly resets: boolean;
}

function fact(bdf: string, unit: number, group: string, resets = true): FunctionFacts {
  return { bdf, unit: UNITS[unit]!, group, resets };
}

export const FUNCTIONS: readonly FunctionFacts[] = [
  fact('0000:00:01.0', 0, 'A'),
  fact('0000:00:02.0', 0, 'B', false),
  fact('0000:00:02.1', 0, 'B', false),
  fact('0000:00:03.0', 0, 'P'),
  fact('0000:00:04.0', 1, 'C'),
  fact('0000:00:05.0', 0, 'Q'),
  fact('0000:00:06.0', 2, 'D'),
  fact('0000:00:07.0', 0, 'E'),
];

export type ParentName = 'aux' | 'plain' | 'vendor';

export interface ParentFacts {
  readonly name: ParentName;
  /** The function whose driver is the parent; none for the one without hardware. */
  readonly bdf: string | undefined;
  /** 7.5: a device in use is asked back and waited for; otherwise its removal is refused. */
  readonly hotUnplug: boolean;
}

export const PARENTS: readonly ParentFacts[] = [
  { name: 'aux', bdf: '0000:00:03.0', hotUnplug: true },
  { name: 'plain', bdf: '0000:00:05.0', hotUnplug: false },
  { name: 'vendor', bdf: undefined, hotUnplug: false },
];

/** Instances that the two types of a parent share; type `1` takes one, type `2` two. */
export const INSTANCES = 3;
/** Mappings that a container may have (`dma_entry_limit`). */
export const DMA_ENTRIES = 5;

/** The memory of a program that mappings are made of: pages of one area. */
export const ARENA_PAGES = 24;
export const WRITABLE_PAGES = 16;
/** Behind the writable ones; behind those, nothing is mapped. */
export const READABLE_PAGES = 20;
