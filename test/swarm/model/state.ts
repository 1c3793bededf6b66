/** Everything that the model remembers. Names follow requirements 7.5 and 7.6. */
import { FUNCTIONS, INSTANCES, PARENTS, READABLE_PAGES, WRITABLE_PAGES, type FunctionFacts, type ParentFacts } from './facts.js';

/** A page of memory, which outlives the address space that owns it while a device may reach it. */
export class Frame {
  content: number;

  constructor(content: number) {
    this.content = content;
  }
}

export interface Rights {
  /** RLIMIT_MEMLOCK in pages. */
  readonly limit: number;
  /** CAP_IPC_LOCK, and may attach to everybody. */
  readonly root: boolean;
  readonly uid: number;
}

/** An address space: the pages of its arena. */
export class ModelMm {
  alive = true;
  /** A bind succeeded: it keeps a PASID until it is freed (M7). */
  bound = false;
  /** As a bind returned it. */
  pasid: number | undefined;
  readonly frames: Frame[] = [];
  readonly rights: Rights;

  constructor(rights: Rights) {
    this.rights = rights;
  }

  /** What the process may do with page `at` of the arena. */
  reads(at: number): boolean {
    return at >= 0 && at < READABLE_PAGES;
  }

  writes(at: number): boolean {
    return at >= 0 && at < WRITABLE_PAGES;
  }
}

/** An open file; fork gives it more descriptors. */
export interface ModelFile {
  readonly of: ModelContainer | ModelGroup | ModelDevice;
  descriptors: number;
}

export class ModelProcess {
  readonly name: string;
  mm: ModelMm;
  alive = true;
  fds: (ModelFile | undefined)[] = [];

  constructor(name: string, mm: ModelMm) {
    this.name = name;
    this.mm = mm;
  }

  file(fd: number): ModelFile | undefined {
    return this.fds[fd];
  }

  lowestFree(): number {
    const free = this.fds.findIndex((file) => file === undefined);
    return free < 0 ? this.fds.length : free;
  }
}

export interface VendorPin {
  readonly frame: Frame;
  references: number;
}

export interface Mapping {
  readonly start: number;
  readonly end: number;
  /** Page of the arena at `start`; outside of it there is no memory. */
  readonly vaddr: number;
  readonly read: boolean;
  readonly write: boolean;
  readonly mm: ModelMm;
  /** Pinned and mapped by the container, undefined while it is only recorded (C8). */
  frames: Frame[] | undefined;
  /** By I/O virtual page. */
  readonly vendor: Map<number, VendorPin>;
}

/** How a group's requests are translated (Y1). */
export type Backing = 'function' | 'aux' | 'parent' | 'vendor';

export interface ModelDomain {
  readonly unit: FunctionFacts['unit'];
  readonly groups: ModelGroup[];
}

export class ModelContainer {
  /** EMPTY or HAS_GROUPS while undefined, then IOMMU_SET (7.6): 1, 3 or 6. */
  type: number | undefined;
  /** In the order in which they came. */
  readonly groups: ModelGroup[] = [];
  readonly domains: ModelDomain[] = [];
  /** Ascending. */
  mappings: Mapping[] = [];
  readonly binds = new Set<ModelMm>();

  get v2(): boolean {
    return this.type !== 1;
  }
}

export class ModelGroup {
  readonly name: string;
  /** Of PCI functions; empty for a mediated device's. */
  readonly functions: readonly ModelFunction[];
  container: ModelContainer | undefined;
  backing: Backing | undefined;
  /** Its file is open. */
  opened = false;
  /** Descriptors of devices in it, and one for being in a container. */
  users = 0;
  dead = false;
  readonly devices: ModelDevice[] = [];

  constructor(name: string, functions: readonly ModelFunction[]) {
    this.name = name;
    this.functions = functions;
  }
}

export class ModelDevice {
  readonly name: string;
  readonly group: ModelGroup;
  readonly function: ModelFunction | undefined;
  readonly mdev: ModelMdev | undefined;
  /** Open files. */
  users = 0;

  constructor(name: string, group: ModelGroup, of: ModelFunction | ModelMdev) {
    this.name = name;
    this.group = group;
    this.function = of instanceof ModelFunction ? of : undefined;
    this.mdev = of instanceof ModelFunction ? undefined : of;
  }
}

export class ModelFunction {
  readonly facts: FunctionFacts;
  /** `vfio-pci`, `host`, or the name of a parent. */
  driver: string | undefined;
  /** Its driver is being taken away and waits. */
  unbinding = false;
  aux = false;
  /** Bus master enable. */
  master = false;
  device: ModelDevice | undefined;

  constructor(facts: FunctionFacts) {
    this.facts = facts;
  }
}

export class ModelParent {
  readonly facts: ParentFacts;
  registered = false;
  unregistering = false;
  left = INSTANCES;
  refuseCreate = false;
  /** In the order of their creation. */
  readonly children: ModelMdev[] = [];

  constructor(facts: ParentFacts) {
    this.facts = facts;
  }
}

export class ModelMdev {
  readonly uuid: string;
  readonly parent: ModelParent;
  /** Instances it takes. */
  readonly takes: number;
  readonly device: ModelDevice;
  removing = false;
  /** Pins that its driver holds, by I/O virtual page. */
  readonly pins = new Map<number, number>();

  constructor(uuid: string, parent: ModelParent, takes: number) {
    this.uuid = uuid;
    this.parent = parent;
    this.takes = takes;
    const group = new ModelGroup(`mdev ${uuid.slice(-1)}`, []);
    this.device = new ModelDevice(uuid, group, this);
    group.devices.push(this.device);
  }

  get state(): 'ACTIVE' | 'OPEN' | 'REMOVING' {
    return this.removing ? 'REMOVING' : this.device.users > 0 ? 'OPEN' : 'ACTIVE';
  }
}

/** Something that waits for a user to let go; `proceed` says whether it went on. */
export interface Waiting {
  readonly what: string;
  proceed(): boolean;
  done: boolean;
}

export class State {
  readonly processes: ModelProcess[] = [];
  readonly mms = new Set<ModelMm>();
  readonly functions: readonly ModelFunction[] = FUNCTIONS.map((facts) => new ModelFunction(facts));
  readonly parents: readonly ModelParent[] = PARENTS.map((facts) => new ModelParent(facts));
  /** Groups that VFIO shows. */
  readonly groups: ModelGroup[] = [];
  /** Containers that anything refers to. */
  readonly containers = new Set<ModelContainer>();
  readonly waiting: Waiting[] = [];

  function(bdf: string): ModelFunction {
    return this.functions.find(({ facts }) => facts.bdf === bdf)!;
  }

  get mdevs(): ModelMdev[] {
    return this.parents.flatMap(({ children }) => children);
  }

  mdev(uuid: string): ModelMdev | undefined {
    return this.mdevs.find((mdev) => mdev.uuid === uuid);
  }
}
