/** Memory that users hand to devices: whose it is, and when its pages are given back. */
import { hexPage } from '../../sim/address.js';
import { Checker } from './invariant.js';
import { DomainSpace } from './spaces.js';

type Text = (id: number) => string;

/** Pages of a container are given back when no device can reach them through its domains any more: not mapped, and invalidated (C9). */
export class UnpinnedUnreachable extends Checker {
  readonly name = 'pages are given back only after the invalidation';
  readonly kinds = [
    'vfio:attach_group', 'vfio:unpin_run', 'iommu:map', 'iommu:unmap', 'iommu:flush', 'iommu:attach_device_to_domain', 'iommu:detach_device_from_domain',
  ];
  /** Domains of each container, also former ones. */
  private readonly domainsOf = new Map<number, Set<number>>();
  private readonly spaces = new Map<number, DomainSpace>();
  /** Attachments of each domain. */
  private readonly attached = new Map<number, number>();

  observe(kind: string, value: (argument: string) => number): void {
    const domain = value('domain');
    switch (kind) {
      case 'vfio:attach_group': return domain === 0 ? undefined : this.joined(value('container'), domain);
      case 'vfio:unpin_run': return value('vendor') === 1 ? undefined : this.unpinned(value('container'), value('iova'), value('pages'));
      case 'iommu:map': return this.space(domain).map(value('iova'), value('paddr') / 4096, value('size') / 4096);
      case 'iommu:unmap': return this.space(domain).unmap(value('iova'), Math.max(value('size'), value('unmapped_size')) / 4096);
      case 'iommu:flush': return this.space(domain).flushed(value('iova'), value('pages'));
      default: this.attached.set(domain, Math.max(0, (this.attached.get(domain) ?? 0) + (kind === 'iommu:attach_device_to_domain' ? 1 : -1)));
    }
  }

  private unpinned(container: number, iova: number, pages: number): void {
    this.checked++;
    for (const domain of this.domainsOf.get(container) ?? []) {
      if ((this.attached.get(domain) ?? 0) > 0 && this.spaces.get(domain)?.reaches(iova, pages) === true) {
        return this.violate(`container ${container} gave back ${pages} pages from ${hexPage(iova)} on, which devices still reach through domain ${domain}`);
      }
    }
  }

  private joined(container: number, domain: number): void {
    const domains = this.domainsOf.get(container);
    if (domains === undefined) this.domainsOf.set(container, new Set([domain]));
    else domains.add(domain);
  }

  private space(domain: number): DomainSpace {
    let space = this.spaces.get(domain);
    if (space === undefined) this.spaces.set(domain, (space = new DomainSpace()));
    return space;
  }
}

/** Drivers that pin their user's pages give them back before the user's unmap ends, and before they let the user go (C9, C10). */
export class VendorsGiveBack extends Checker {
  readonly name = 'drivers give the pages back that their user unmaps';
  readonly kinds = ['vfio:pin_run', 'vfio:violation'];
  private readonly text: Text;

  /** @param text an interned string */
  constructor(text: Text) {
    super();
    this.text = text;
  }

  observe(kind: string, value: (argument: string) => number): void {
    if (kind === 'vfio:violation') this.violate(`container ${value('container')} from ${hexPage(value('iova'))} on: ${this.text(value('what'))}`);
    else if (value('vendor') === 1) this.checked++;
  }
}

interface Slot {
  readonly page: number;
  readonly pages: number;
  /** Of the VMM, first page. */
  readonly hva: number;
}

interface Memory {
  readonly space: DomainSpace;
  /** The virtual machine whose memory it is, once that is known. */
  vm: number | undefined;
}

/**
 * What a device of a guest finds at a guest-physical address is what the guest's processors find there: the container maps
 * the VMM's memory as its slots do, and a page that is pinned for devices is the page that the guest gets.
 */
export class GuestMemoryIsOne extends Checker {
  readonly name = "a guest's devices and its processors see one memory";
  readonly kinds = ['vfio:register', 'vfio:group_set_container', 'vfio:map_dma', 'vfio:pin_run', 'vfio:unpin_run', 'kvm:set_memory_region', 'kvm:page_fault', 'vmm:state'];
  private readonly guestsOf: (device: number) => readonly number[];
  private readonly text: Text;
  /** Slots of each virtual machine by number. */
  private readonly slots = new Map<number, Map<number, Slot>>();
  /** Devices of each group, groups of each container. */
  private readonly devices = new Map<number, Set<number>>();
  private readonly groups = new Map<number, Set<number>>();
  private readonly containers = new Map<number, Memory>();

  /** @param guestsOf guests, by name, that may have a device @param text an interned string */
  constructor(guestsOf: (device: number) => readonly number[], text: Text) {
    super();
    this.guestsOf = guestsOf;
    this.text = text;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'vfio:register': return add(this.devices, value('group'), value('device'));
      case 'vfio:group_set_container': return add(this.groups, value('container'), value('group'));
      case 'vfio:map_dma': return this.mapped(value('container'), value('iova'), value('vaddr'), value('pages'));
      case 'vfio:pin_run': return value('vendor') === 1 ? undefined : this.memory(value('container')).space.map(value('iova'), value('frame'), value('pages'));
      case 'vfio:unpin_run': return value('vendor') === 1 ? undefined : this.unpinned(value('container'), value('iova'), value('pages'));
      case 'kvm:set_memory_region': return this.slot(value('vm'), value('slot'), { page: value('gpa'), pages: value('pages'), hva: value('hva') });
      case 'kvm:page_fault': return this.faulted(value('vm'), value('gpa'), value('hpa'));
      // its devices may be somebody else's from now on
      default: if (this.text(value('state')) === 'off') this.slots.delete(value('guest'));
    }
  }

  private slot(vm: number, id: number, slot: Slot): void {
    let slots = this.slots.get(vm);
    if (slots === undefined) this.slots.set(vm, (slots = new Map<number, Slot>()));
    if (slot.pages === 0) slots.delete(id);
    else slots.set(id, slot);
  }

  /** One of the virtual machines that may have the container's devices has the memory where the container maps it. */
  private mapped(container: number, iova: number, vaddr: number, pages: number): void {
    let wrong: { vm: number; slot: Slot } | undefined;
    for (const vm of this.candidates(container)) {
      const overlapping = [...(this.slots.get(vm)?.values() ?? [])].filter((slot) => slot.page < iova + pages && iova < slot.page + slot.pages);
      const other = overlapping.find((slot) => slot.hva - slot.page !== vaddr - iova);
      if (other !== undefined) wrong = { vm, slot: other };
      else if (overlapping.length > 0) {
        this.checked++;
        this.memory(container).vm = vm;
        return;
      }
    }
    if (wrong === undefined) return;
    this.checked++;
    this.violate(`container ${container} maps ${hexPage(iova)} to ${hexPage(vaddr)} of the VMM; in ${this.text(wrong.vm)} that address is ${hexPage(wrong.slot.hva + iova - wrong.slot.page)}`);
  }

  private candidates(container: number): number[] {
    const found = new Set<number>();
    for (const group of this.groups.get(container) ?? []) for (const device of this.devices.get(group) ?? []) for (const vm of this.guestsOf(device)) found.add(vm);
    return [...found];
  }

  private faulted(vm: number, page: number, frame: number): void {
    for (const [container, memory] of this.containers) {
      if (memory.vm !== vm) continue;
      const pinned = memory.space.frameAt(page);
      if (pinned === undefined) continue;
      this.checked++;
      if (pinned !== frame) this.violate(`${this.text(vm)} has frame ${hexPage(frame)} at ${hexPage(page)}, devices of container ${container} reach frame ${hexPage(pinned)} there`);
    }
  }

  private unpinned(container: number, iova: number, pages: number): void {
    const { space } = this.memory(container);
    space.unmap(iova, pages);
    space.flushed(iova, pages);
  }

  private memory(container: number): Memory {
    let memory = this.containers.get(container);
    if (memory === undefined) this.containers.set(container, (memory = { space: new DomainSpace(), vm: undefined }));
    return memory;
  }
}

function add(map: Map<number, Set<number>>, key: number, value: number): void {
  const known = map.get(key);
  if (known === undefined) map.set(key, new Set([value]));
  else known.add(value);
}
