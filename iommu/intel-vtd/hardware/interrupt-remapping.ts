/**
 * Interrupt remapping as hardware does it (VT-d rev 4.1, sections 5.1.2 to 5.1.4): which entry of the table in memory a
 * message asks for, whether its sender may use it, and what goes to the processors instead. Entries are cached
 * until an invalidation matches them or another entry takes their place; what is not present or has reserved bits set
 * is never cached, also in caching mode, so that every invalidation that is needed there is also enough.
 *
 * A message that has no fault goes on in the format of the local APIC (Intel SDM vol. 3, "MSI"): destination, RH and DM
 * in the address, vector, delivery mode and trigger in the data.
 * Left out: posted interrupts.
 */
import { WORD } from '../../../sim/address.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import { FAULT } from '../spec/fault-reasons.js';
import {
  FORMAT_REMAPPABLE, IRTE, IRTE_FPD, IRTE_P, IRTE_RESERVED_0, IRTE_RESERVED_1_XAPIC, IRTE_RESERVED_2, IRTE_SIZE, MESSAGE_BASE, SQ_MASKS, SUBHANDLE_DATA_RESERVED,
  SUBHANDLE_VALID, SVT_BUS, SVT_NONE, SVT_REQUESTER, XAPIC_DESTINATION_SHIFT, interruptIndex,
} from '../spec/interrupt-remapping.js';
import type { InterruptState } from './back-end.js';

/** Cached entries, one place for each index modulo this. */
const CACHE_ENTRIES = 1024;
/** 32-bit words kept of an entry: the last one is reserved. */
const WORDS = 3;

export interface InterruptRemappingOptions {
  readonly memory: PhysicalMemory;
  readonly caching: boolean;
  /** Defect `vtd.ignore-irte-source`: whoever names an entry may use it. */
  readonly ignoreSource: boolean;
}

export class InterruptRemapping {
  state: InterruptState = { enabled: false, table: 0, entries: 2, extended: false, compatibility: false };
  /** Results of the last `remap`: what goes to the processors, */
  messageAddress = 0;
  messageData = 0;
  /** the entry it asked for (-1 none: it passed as it was), with vector and destination, */
  index = -1;
  vector = 0;
  destination = 0;
  /** FPD of the entry, and memory accesses. */
  fpd = false;
  accesses = 0;
  private readonly memory: PhysicalMemory;
  private readonly ignoreSource: boolean;
  private readonly caching: boolean;
  /** Index of the entry in each place, -1 none. */
  private readonly tags = new Int32Array(CACHE_ENTRIES).fill(-1);
  private readonly words = new Int32Array(CACHE_ENTRIES * WORDS);
  /** The entry that was found last. */
  private word0 = 0;
  private word1 = 0;
  private word2 = 0;

  constructor(options: InterruptRemappingOptions) {
    this.memory = options.memory;
    this.caching = options.caching;
    this.ignoreSource = options.ignoreSource;
  }

  /** A message of a device: 0, or the fault reason for which it is blocked. */
  remap(sourceId: number, address: number, data: number): number {
    const { state } = this;
    this.accesses = 0;
    this.fpd = false;
    this.index = -1;
    if (!state.enabled) return this.pass(address, data);
    if ((address & FORMAT_REMAPPABLE) === 0) {
      if (state.compatibility && !state.extended) return this.pass(address, data);
      this.index = 0;
      return FAULT.IR_COMPATIBILITY;
    }
    this.index = interruptIndex(address, data);
    if ((address & SUBHANDLE_VALID) !== 0 && (data & SUBHANDLE_DATA_RESERVED) !== 0) return FAULT.IR_REQUEST_RESERVED;
    if (this.index >= state.entries) return FAULT.IR_INDEX;
    const reason = this.find(this.index);
    if (reason !== 0) return reason;
    if (!this.ignoreSource && !this.mayUse(sourceId)) return FAULT.IR_SOURCE;
    this.compose();
    return 0;
  }

  /** Forgets [index, index + entries). */
  invalidate(index: number, entries: number): void {
    const { tags } = this;
    for (let place = 0; place < CACHE_ENTRIES; place++) if (tags[place]! >= index && tags[place]! < index + entries) tags[place] = -1;
  }

  private pass(address: number, data: number): number {
    this.messageAddress = address;
    this.messageData = data;
    return 0;
  }

  /** Finds the entry in the cache or in memory. */
  private find(index: number): number {
    const place = index % CACHE_ENTRIES, at = place * WORDS;
    if (this.tags[place] === index) {
      this.word0 = this.words[at]!;
      this.word1 = this.words[at + 1]!;
      this.word2 = this.words[at + 2]!;
      this.fpd = (this.word0 & IRTE_FPD) !== 0;
      return 0;
    }
    const { memory, state } = this;
    const address = state.table + index * IRTE_SIZE;
    this.accesses = 1;
    if (!memory.load64(address + 8)) return FAULT.IR_ACCESS;
    const word3 = memory.hi;
    this.word2 = memory.lo;
    if (!memory.load64(address)) return FAULT.IR_ACCESS;
    this.word0 = memory.lo;
    this.word1 = memory.hi;
    this.fpd = (this.word0 & IRTE_FPD) !== 0;
    if ((this.word0 & IRTE_P) === 0) return FAULT.IR_P;
    const reserved = (this.word0 & IRTE_RESERVED_0) | (this.word2 & IRTE_RESERVED_2) | word3 | (state.extended ? 0 : this.word1 & IRTE_RESERVED_1_XAPIC);
    if (reserved !== 0) return FAULT.IR_RESERVED;
    if (!this.caching) return 0;
    this.tags[place] = index;
    this.words[at] = this.word0;
    this.words[at + 1] = this.word1;
    this.words[at + 2] = this.word2;
    return 0;
  }

  /** Source validation (9.10): SVT 3 is reserved, so that nobody passes it. */
  private mayUse(sourceId: number): boolean {
    const { SID, SQ, SVT } = IRTE.f;
    const id = this.word2 & SID.mask;
    switch ((this.word2 >>> SVT.shift) & 3) {
      case SVT_NONE: return true;
      case SVT_REQUESTER: return ((sourceId ^ id) & SQ_MASKS[(this.word2 >>> SQ.shift) & 3]!) === 0;
      case SVT_BUS: return sourceId >>> 8 >= id >>> 8 && sourceId >>> 8 <= (id & 0xff);
      default: return false;
    }
  }

  private compose(): void {
    const { word0 } = this;
    const { DM, RH, TM, DLM, V } = IRTE.f;
    const destination = this.state.extended ? this.word1 >>> 0 : (this.word1 >>> XAPIC_DESTINATION_SHIFT) & 0xff;
    const trigger = (word0 >>> TM.shift) & 1;
    this.destination = destination;
    this.vector = (word0 >>> V.shift) & 0xff;
    // the upper 24 bits of an x2APIC id stand in the upper half of the address; ids from 2^21 on lose low bits of it
    const low = MESSAGE_BASE | ((destination & 0xff) << 12) | (((word0 >>> RH.shift) & 1) << 3) | (((word0 >>> DM.shift) & 1) << 2);
    this.messageAddress = (destination - (destination & 0xff)) * WORD + (low >>> 0);
    // a level-triggered message asserts (bit 14)
    this.messageData = this.vector | (((word0 >>> DLM.shift) & 7) << 8) | (trigger * 0xc000);
  }
}
