/**
 * Every device, PASID and domain in the tables of a stopped unit: root → context → PASID directory → PASID entry (VT-d
 * rev 4.1, sections 9.1 to 9.6), and what the page tables behind them map. Entries are judged by the lookup of the
 * hardware model itself (`RequesterTables`, uncached), so "not valid" means that a request would fault, with that
 * reason. Bounded: MAX_DEVICES, MAX_PASIDS and a number of entries that may be read.
 */
import { hex } from '../../sim/address.js';
import { qwordsOf } from '../../sim/layout.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { RequesterTables, beyondWidth, type AddressSpaceRoot, type ContextSlot } from '../../iommu/intel-vtd/hardware/requester-tables.js';
import { faultText } from '../../iommu/intel-vtd/spec/fault-reasons.js';
import {
  PASID_DIRECTORY_ENTRY_SIZE, PASID_ENTRY, PASID_ENTRY_SIZE, PASID_FPD, PASID_P, PASID_TABLE_ENTRIES, PGTT_FIRST_LEVEL, PGTT_NESTED, PGTT_PASS_THROUGH,
  PGTT_SECOND_LEVEL, PASID_DIRECTORY_ENTRY,
} from '../../iommu/intel-vtd/spec/pasid-table.js';
import { CONTEXT_ENTRY, CONTEXT_P, ROOT_ENTRY, ROOT_ENTRY_SIZE, SM_CONTEXT_ENTRY, SM_ROOT_ENTRY } from '../../iommu/intel-vtd/spec/root-context.js';
import { mappedRanges, throughSecondLevel, type Mapping, type ReadBudget } from './mapped-ranges.js';
import { translationState, type UnitState } from './unit-state.js';

export const MAX_DEVICES = 1024;
export const MAX_PASIDS = 16_384;
/** Page table entries that are read for one address space, and for all; PASID directory entries in all. */
const SPACE_ENTRIES = 2 ** 22;
const ALL_ENTRIES = 2 ** 24;
const DIRECTORY_ENTRIES = 2 ** 22;
const MAX_PROBLEMS = 32;

export type TranslationType = 'first-level' | 'second-level' | 'nested' | 'pass-through';

/** One present context or PASID entry. */
export interface SpaceReport {
  /** Undefined in legacy mode. */
  readonly pasid: number | undefined;
  /** Requests without PASID use this entry. */
  readonly rid: boolean;
  /** The entry: physical address, raw words, fields that are not zero. */
  readonly address: number;
  readonly qwords: readonly bigint[];
  readonly text: string;
  /** Fault that every request would meet; 0 when the entry is valid. */
  readonly reason: number;
  readonly problem: string | undefined;
  readonly type: TranslationType | undefined;
  readonly domain: number | undefined;
  /** Levels and root of the tables that the entry uses; a nested first-level root is guest-physical. */
  readonly firstLevel: { readonly root: number; readonly levels: number } | undefined;
  readonly secondLevel: { readonly root: number; readonly levels: number } | undefined;
  /** FPD: faults of this entry are not recorded. */
  readonly silent: boolean;
  /** Key into `TablesReport.mappings`; undefined when there are no tables. */
  readonly mapping: string | undefined;
}

export interface DeviceReport {
  readonly bdf: string;
  readonly sourceId: number;
  /** The context entry. */
  readonly address: number;
  readonly qwords: readonly bigint[];
  readonly text: string;
  readonly reason: number;
  readonly problem: string | undefined;
  /** Scalable mode: what the context entry allows. */
  readonly deviceTlb: boolean;
  readonly pasidEnable: boolean;
  readonly pageRequests: boolean;
  /** PASIDs that the directory has room for; 0 in legacy mode. */
  readonly pasidLimit: number;
  /** PASID that requests without one use; undefined in legacy mode. */
  readonly ridPasid: number | undefined;
  readonly spaces: readonly SpaceReport[];
}

export interface DomainReport {
  readonly id: number;
  /** `6a:01.0` or `6a:01.0 PASID 1`. */
  readonly users: readonly string[];
}

export interface TablesReport {
  readonly devices: readonly DeviceReport[];
  readonly domains: readonly DomainReport[];
  /** What page tables map, by key; address spaces that share tables share an entry. */
  readonly mappings: ReadonlyMap<string, Mapping>;
  readonly problems: readonly string[];
  /** What was left out, and why. */
  readonly limits: readonly string[];
}

/** `6a:01.0` of a source id. */
export function bdfText(sourceId: number): string {
  const part = (value: number): string => value.toString(16).padStart(2, '0');
  return `${part(sourceId >>> 8)}:${part((sourceId >>> 3) & 0x1f)}.${sourceId & 7}`;
}

/** Surveys the tables below RTADDR. */
export function surveyTables(memory: PhysicalMemory, state: UnitState): TablesReport {
  return new Survey(memory, state).run();
}

class Survey {
  private readonly memory: PhysicalMemory;
  private readonly state: UnitState;
  private readonly scalable: boolean;
  private readonly lookup: RequesterTables;
  private readonly devices: DeviceReport[] = [];
  private readonly domains = new Map<number, string[]>();
  private readonly mappings = new Map<string, Mapping>();
  private readonly problems: string[] = [];
  private readonly limits = new Set<string>();
  private readonly contextTables = new Map<number, number>();
  private pasids = 0;
  private pageEntries = ALL_ENTRIES;
  private directoryEntries = DIRECTORY_ENTRIES;
  private moreProblems = 0;

  constructor(memory: PhysicalMemory, state: UnitState) {
    this.memory = memory;
    this.state = state;
    const { rootTable, mode } = translationState(state);
    this.scalable = state.mode === 'scalable';
    this.lookup = new RequesterTables({ memory, capabilities: state.capabilities, caching: false });
    this.lookup.rootTable = rootTable;
    this.lookup.mode = mode;
  }

  run(): TablesReport {
    const { rootTable, mode } = this.state;
    if (rootTable !== undefined && (mode === 'legacy' || mode === 'scalable')) {
      for (let bus = 0; bus < 256; bus++) this.bus(rootTable, bus);
    }
    if (this.moreProblems > 0) this.problems.push(`… and ${this.moreProblems} more`);
    if (this.problems.length >= MAX_PROBLEMS) this.problems.push('this hardly is a root table: is the image complete, does it start at the right address, is RTADDR of the same moment?');
    return {
      devices: this.devices,
      domains: [...this.domains].map(([id, users]) => ({ id, users })).sort((a, b) => a.id - b.id),
      mappings: this.mappings, problems: this.problems, limits: [...this.limits],
    };
  }

  private bus(rootTable: number, bus: number): void {
    const address = rootTable + bus * ROOT_ENTRY_SIZE;
    const layout = this.scalable ? SM_ROOT_ENTRY : ROOT_ENTRY;
    const words = layout.load(this.memory, address);
    if (words === undefined) {
      if (bus === 0) this.problem(`the root table at ${hex(rootTable)} is not in the image`);
      return;
    }
    const where = `root entry of bus ${bus.toString(16).padStart(2, '0')}`;
    const present = this.scalable ? SM_ROOT_ENTRY.f.LP.get(words) + SM_ROOT_ENTRY.f.UP.get(words) > 0 : ROOT_ENTRY.f.P.get(words) === 1;
    if (present && layout.reservedSet(words)) this.problem(`${where} at ${hex(address)}: reserved bits are set`);
    if (!this.scalable) {
      if (ROOT_ENTRY.f.P.get(words) === 1) this.contextTable(bus, ROOT_ENTRY.f.CTP.get(words), 0, 256, where);
      return;
    }
    if (SM_ROOT_ENTRY.f.LP.get(words) === 1) this.contextTable(bus, SM_ROOT_ENTRY.f.LCTP.get(words), 0, 128, where);
    if (SM_ROOT_ENTRY.f.UP.get(words) === 1) this.contextTable(bus, SM_ROOT_ENTRY.f.UCTP.get(words), 128, 256, where);
  }

  private contextTable(bus: number, table: number, firstDevfn: number, endDevfn: number, where: string): void {
    const { memory, scalable } = this;
    if (!memory.has(table, 4096)) return this.problem(`${where}: the context table at ${hex(table)} is not in the image`);
    const owner = this.contextTables.get(table);
    if (owner !== undefined) this.problem(`${where}: the context table at ${hex(table)} is that of bus ${owner.toString(16).padStart(2, '0')} too`);
    else this.contextTables.set(table, bus);
    const layout = scalable ? SM_CONTEXT_ENTRY : CONTEXT_ENTRY;
    for (let devfn = firstDevfn; devfn < endDevfn; devfn++) {
      const address = table + (devfn - firstDevfn) * layout.sizeBytes;
      if ((memory.load(address, 4) & CONTEXT_P) === 0) continue;
      if (this.devices.length >= MAX_DEVICES) {
        this.limits.add(`only the first ${MAX_DEVICES} devices are shown`);
        return;
      }
      this.device((bus << 8) | devfn, address);
    }
  }

  private device(sourceId: number, address: number): void {
    const { scalable, lookup } = this;
    const layout = scalable ? SM_CONTEXT_ENTRY : CONTEXT_ENTRY;
    const words = layout.load(this.memory, address)!;
    const slot = lookup.context(sourceId);
    const reason = slot === undefined ? lookup.reason : 0;
    const entry = { address, qwords: qwordsOf(words), text: layout.format(words), reason, problem: reason === 0 ? undefined : faultText(reason) };
    const bdf = bdfText(sourceId);
    const spaces = slot === undefined ? [] : scalable ? this.pasidSpaces(slot, bdf) : [this.space(undefined, slot.root, 0, { ...entry, silent: slot.fpd }, bdf)];
    this.devices.push({
      bdf, sourceId, ...entry, spaces,
      deviceTlb: slot?.deviceTlb ?? false, pasidEnable: slot?.pasidEnable ?? false, pageRequests: slot?.pageRequests ?? false,
      pasidLimit: scalable ? slot?.pasidLimit ?? 0 : 0, ridPasid: scalable ? slot?.ridPasid : undefined,
    });
  }

  private pasidSpaces(slot: ContextSlot, bdf: string): SpaceReport[] {
    const { memory } = this;
    const spaces: SpaceReport[] = [];
    for (let index = 0; index < slot.pasidLimit / PASID_TABLE_ENTRIES; index++) {
      if (this.directoryEntries-- <= 0) {
        this.directoryEntries = 0;
        this.limits.add(`PASID directories were read up to ${DIRECTORY_ENTRIES} entries in all`);
        break;
      }
      const address = slot.directory + index * PASID_DIRECTORY_ENTRY_SIZE;
      if (!memory.load64(address)) {
        this.problem(`${bdf}: the PASID directory ends at ${hex(address)}, entry ${index} of ${slot.pasidLimit / PASID_TABLE_ENTRIES}, which is not in the image`);
        break;
      }
      const { lo } = memory;
      if ((lo & (PASID_P | PASID_FPD)) === 0 || (lo & PASID_P) === 0) continue;
      const table = PASID_DIRECTORY_ENTRY.f.SMPTBLPTR.get([memory.lo, memory.hi]);
      if (!memory.has(table, PASID_TABLE_ENTRIES * PASID_ENTRY_SIZE)) {
        this.problem(`${bdf}: the PASID table at ${hex(table)}, for PASIDs from ${index * PASID_TABLE_ENTRIES} on, is not in the image`);
        continue;
      }
      if (!this.pasidTable(slot, bdf, index, table, spaces)) break;
    }
    return spaces;
  }

  /** False when the limit is reached. */
  private pasidTable(slot: ContextSlot, bdf: string, directoryIndex: number, table: number, spaces: SpaceReport[]): boolean {
    for (let i = 0; i < PASID_TABLE_ENTRIES; i++) {
      const address = table + i * PASID_ENTRY_SIZE;
      const low = this.memory.load(address, 4);
      if ((low & (PASID_P | PASID_FPD)) === 0) continue;
      if (this.pasids++ >= MAX_PASIDS) {
        this.limits.add(`only the first ${MAX_PASIDS} PASIDs are shown`);
        return false;
      }
      const pasid = directoryIndex * PASID_TABLE_ENTRIES + i;
      const words = PASID_ENTRY.load(this.memory, address)!;
      const root = this.lookup.addressSpace(slot, pasid === slot.ridPasid ? NO_PASID : pasid);
      const entry = { address, qwords: qwordsOf(words), text: PASID_ENTRY.format(words), silent: (low & PASID_FPD) !== 0 };
      spaces.push(this.space(pasid, root, this.lookup.reason, entry, bdf, pasid === slot.ridPasid));
    }
    return true;
  }

  private space(pasid: number | undefined, root: AddressSpaceRoot | undefined, reason: number, entry: Pick<SpaceReport, 'address' | 'qwords' | 'text' | 'silent'>, bdf: string, rid = true): SpaceReport {
    const base = { ...entry, pasid, rid, reason, problem: reason === 0 ? undefined : faultText(reason) };
    if (root === undefined) return { ...base, type: undefined, domain: undefined, firstLevel: undefined, secondLevel: undefined, mapping: undefined };
    const user = pasid === undefined || rid ? bdf : `${bdf} PASID ${pasid}`;
    const users = this.domains.get(root.domainId);
    if (users === undefined) this.domains.set(root.domainId, [user]);
    else users.push(user);
    const first = root.type === PGTT_FIRST_LEVEL || root.type === PGTT_NESTED;
    const second = root.type === PGTT_SECOND_LEVEL || root.type === PGTT_NESTED;
    return {
      ...base, type: TYPES[root.type], domain: root.domainId,
      firstLevel: first ? { root: root.firstRoot, levels: root.firstLevels } : undefined,
      secondLevel: second ? { root: root.secondRoot, levels: root.secondLevels } : undefined,
      mapping: root.type === PGTT_PASS_THROUGH ? undefined : this.mapping(root),
    };
  }

  private mapping(root: AddressSpaceRoot): string {
    const { memory, state } = this;
    const { capabilities } = state;
    const nested = root.type === PGTT_NESTED;
    const second = root.type === PGTT_SECOND_LEVEL;
    const key = second
      ? `second-level ${hex(root.secondRoot)}, ${root.secondLevels} levels`
      : `${nested ? `nested under ${hex(root.secondRoot)}, ` : ''}first-level ${hex(root.firstRoot)}, ${root.firstLevels} levels`;
    const { secondRoot, secondLevels } = root;
    if (!this.mappings.has(key)) {
      const budget: ReadBudget = { entries: Math.min(SPACE_ENTRIES, this.pageEntries) };
      const given = budget.entries;
      this.mappings.set(key, mappedRanges(memory, {
        kind: second ? 'second-level' : 'first-level',
        root: second ? secondRoot : root.firstRoot,
        levels: second ? secondLevels : root.firstLevels,
        largeLeaves: second ? (capabilities.secondLevel2M ? 2 : 0) | (capabilities.secondLevel1G ? 4 : 0) : 2 | (capabilities.firstLevel1G ? 4 : 0),
        beyondHost: nested ? 0 : beyondWidth(state.hostAddressWidth),
        ...(nested ? { translate: (address: number) => throughSecondLevel(memory, secondRoot, secondLevels, address) } : {}),
      }, budget));
      this.pageEntries -= given - budget.entries;
      if (budget.entries === 0) this.limits.add('page tables are so large that only a part was counted');
    }
    return key;
  }

  private problem(text: string): void {
    if (this.problems.length < MAX_PROBLEMS) this.problems.push(text);
    else this.moreProblems++;
  }
}

const TYPES: readonly (TranslationType | undefined)[] = [undefined, 'first-level', 'second-level', 'nested', 'pass-through'];
