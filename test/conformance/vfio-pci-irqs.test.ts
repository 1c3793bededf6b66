/** Interrupts to a user's eventfds (drivers/vfio/pci/vfio_pci_intrs.c, C17, C18): on hardware, through VFIO's core. */
import { describe, expect, it } from 'vitest';
import { EDU_REG, STATUS_IRQ_FACTORIAL } from '../../devices/edu/spec/registers.js';
import { PCI_ERR_IRQ, PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ, PCI_REQ_IRQ } from '../../vfio/device.js';
import { Scratch } from '../fixtures/pci-world.js';
import { ConfigPokes, VfioPciWorld, type DeviceUser } from '../fixtures/vfio-pci-world.js';
import type { EventFd } from '../../host/eventfd.js';
import type { PciFunction, PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import type { IrqRequest } from '../../vfio/client/index.js';

const NAME = '0000:00:01.0', COMMAND = 0x04, MEMORY = 2, MASTER = 4, INTX_DISABLE = 0x400;

const ALL_KINDS: Partial<PciFunctionOptions> = {
  bars: [{ index: 0, sizeBytes: 0x2000, is64: false, prefetchable: false, mmio: new Scratch() }],
  msix: { vectors: 8, tableBar: 0, tableOffset: 0, pbaOffset: 0x1000 }, msi: { vectors: 4 }, intx: 1,
};

interface Bench {
  readonly world: VfioPciWorld;
  readonly hardware: PciFunction;
  readonly user: DeviceUser;
  readonly config: ConfigPokes;
  readonly set: (request: IrqRequest) => void;
  readonly refused: (request: IrqRequest) => string;
  readonly events: (count: number) => { readonly fds: number[]; readonly events: EventFd[] };
}

function bench(options: Partial<PciFunctionOptions> = ALL_KINDS): Bench {
  const world = new VfioPciWorld();
  const hardware = world.plug(world.root, 0x08, options);
  world.boot();
  world.bind(NAME);
  const user = world.open(NAME);
  const config = new ConfigPokes(user.device.file);
  config.poke(COMMAND, 2, MEMORY | MASTER);
  return {
    world, hardware, user, config,
    set: (request) => world.run(user.device.setIrqs(request)),
    refused: (request) => world.refused(user.device.setIrqs(request)),
    events: (count) => {
      const made = Array.from({ length: count }, () => world.event(user));
      return { fds: made.map(({ fd }) => fd), events: made.map(({ event }) => event) };
    },
  };
}

const counts = (events: readonly EventFd[]): number[] => events.map(({ count }) => count);

describe('what there is', () => {
  it('says how many, and that vectors cannot be added later', () => {
    const { world, user } = bench();
    const irq = (index: number) => world.run(user.device.irq(index));
    expect([0, 1, 2, 3, 4].map(irq)).toEqual([{ flags: 7, count: 1 }, { flags: 9, count: 4 }, { flags: 9, count: 8 }, { flags: 9, count: 1 }, { flags: 9, count: 1 }]);
    expect(world.refused(user.device.irq(5))).toBe('EINVAL');
  });

  it('has none of a kind that the function lacks', () => {
    const { world, user, refused } = bench({});
    expect([0, 1, 2].map((index) => world.run(user.device.irq(index)).count)).toEqual([0, 0, 0]);
    for (const index of [PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ]) expect(refused({ index, count: 0 })).toBe('EINVAL');
  });
});

for (const [kind, index, vectors] of [['MSI-X', PCI_MSIX_IRQ, 8], ['MSI', PCI_MSI_IRQ, 4]] as const) {
  describe(kind, () => {
    const raise = ({ hardware, world }: Bench, vector: number): void => {
      if (index === PCI_MSIX_IRQ) hardware.raiseMsix(vector);
      else hardware.raiseMsi(vector);
      world.settle();
    };

    it('signals the eventfd of each vector', () => {
      const one = bench();
      const { fds, events } = one.events(3);
      one.set({ index, eventfds: fds });
      for (const vector of [0, 2, 2]) raise(one, vector);
      expect(counts(events)).toEqual([1, 0, 2]);
    });

    it('lets the user change and take away single eventfds, within what was enabled', () => {
      const one = bench();
      const { fds, events } = one.events(3);
      one.set({ index, eventfds: [-1, fds[0]!] });
      one.set({ index, start: 1, eventfds: [fds[1]!] });
      one.set({ index, start: 0, eventfds: [fds[2]!] });
      raise(one, 0);
      raise(one, 1);
      one.set({ index, start: 1, eventfds: [-1] });
      raise(one, 1);
      expect(counts(events)).toEqual([0, 1, 1]);
    });

    it('enables as many vectors as start and count reach, and no more afterwards (NORESIZE)', () => {
      const one = bench();
      const { fds, events } = one.events(2);
      one.set({ index, start: 1, eventfds: [fds[0]!] });
      expect(one.refused({ index, start: 2, eventfds: [fds[1]!] })).toBe('EINVAL');
      expect(one.refused({ index, start: 1, eventfds: [fds[1]!, fds[1]!] })).toBe('EINVAL');
      raise(one, 1);
      expect(counts(events)).toEqual([1, 0]);
    });

    it('is torn down by count 0 without data, and can be enabled with another number', () => {
      const one = bench();
      const { fds, events } = one.events(4);
      one.set({ index, eventfds: [fds[0]!] });
      one.set({ index, count: 0 });
      expect([one.hardware.msi!.enabled, one.hardware.msix!.enabled, one.world.interrupts.list()]).toEqual([false, false, []]);
      one.set({ index, eventfds: fds });
      raise(one, 3);
      expect(counts(events)).toEqual([0, 0, 0, 1]);
    });

    it('is tried out by software: trigger without data or with bools signals', () => {
      const one = bench();
      const { fds, events } = one.events(3);
      one.set({ index, eventfds: fds });
      one.set({ index, start: 1, count: 2 });
      one.set({ index, bools: [true, false, true] });
      expect(counts(events)).toEqual([1, 1, 2]);
      expect(one.refused({ index, start: 1, bools: [true, true, true] })).toBe('EINVAL');
    });

    it('survives a reset of the function', () => {
      const one = bench();
      const { fds, events } = one.events(2);
      one.set({ index, eventfds: fds });
      one.world.run(one.user.device.reset());
      raise(one, 1);
      expect(counts(events)).toEqual([0, 1]);
    });

    it('can be enabled while the user has memory space disabled, which stays so', () => {
      const one = bench();
      one.config.poke(COMMAND, 2, MASTER);
      const { fds, events } = one.events(1);
      one.set({ index, eventfds: fds });
      expect(one.hardware.memoryEnabled).toBe(false);
      raise(one, 0);
      expect(counts(events)).toEqual([1]);
    });

    it('refuses more than there are, nothing at all, masks, and what is not enabled', () => {
      const one = bench();
      const { fds } = one.events(1);
      expect(one.refused({ index, start: vectors, eventfds: fds })).toBe('EINVAL');
      expect(one.refused({ index, eventfds: Array.from({ length: vectors + 1 }, () => fds[0]!) })).toBe('EINVAL');
      expect(one.refused({ index, eventfds: [] })).toBe('EINVAL');
      expect(one.refused({ index, start: 1, eventfds: [] })).toBe('EINVAL');
      expect(one.refused({ index, count: 0 })).toBe('EINVAL');
      expect(one.refused({ index, count: 1 })).toBe('EINVAL');
      expect(one.refused({ index, bools: [true] })).toBe('EINVAL');
      expect(one.refused({ index, action: 'mask', count: 1 })).toBe('ENOTTY');
      expect(one.refused({ index, action: 'unmask', count: 1 })).toBe('ENOTTY');
      expect([one.hardware.msi!.enabled, one.hardware.msix!.enabled, one.world.interrupts.list()]).toEqual([false, false, []]);
    });
  });
}

describe('one kind at a time', () => {
  it('refuses a second kind while one is enabled', () => {
    const kinds = [PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ];
    for (const first of kinds) {
      const one = bench();
      const { fds, events } = one.events(2);
      one.set({ index: first, eventfds: [fds[0]!] });
      for (const second of kinds) if (second !== first) expect(one.refused({ index: second, eventfds: [fds[1]!] })).toBe('EINVAL');
      for (const second of kinds) if (second !== first) expect(one.refused({ index: second, count: 0 })).toBe('EINVAL');
      one.set({ index: first, count: 1 });
      expect(counts(events)).toEqual([1, 0]);
    }
  });
});

describe('INTx', () => {
  const on = (options: Partial<PciFunctionOptions> = ALL_KINDS): Bench & { readonly fd: number; readonly event: EventFd } => {
    const one = bench(options);
    const { fds, events } = one.events(1);
    one.set({ index: PCI_INTX_IRQ, eventfds: fds });
    return { ...one, fd: fds[0]!, event: events[0]! };
  };
  const masked = ({ hardware }: Bench): boolean => (hardware.config.get(COMMAND, 2) & INTX_DISABLE) !== 0;
  const level = ({ hardware, world }: Bench, high: boolean): void => {
    hardware.setIntx(high);
    world.settle();
  };

  it('is masked when it arrives and signalled once, until the user unmasks', () => {
    const one = on();
    level(one, true);
    expect([one.event.count, masked(one)]).toEqual([1, true]);
    level(one, false);
    one.set({ index: PCI_INTX_IRQ, action: 'unmask', count: 1 });
    expect([one.event.count, masked(one)]).toEqual([1, false]);
    level(one, true);
    expect(one.event.count).toBe(2);
  });

  it('is signalled again when it is unmasked while the line is still high, and stays masked', () => {
    const one = on();
    level(one, true);
    one.set({ index: PCI_INTX_IRQ, action: 'unmask', bools: [true] });
    expect([one.event.count, masked(one)]).toEqual([2, true]);
    one.set({ index: PCI_INTX_IRQ, action: 'unmask', bools: [false] });
    expect(one.event.count).toBe(2);
  });

  it('is unmasked by an eventfd, one at a time', () => {
    const one = on();
    const { fds, events } = one.events(2);
    one.set({ index: PCI_INTX_IRQ, action: 'unmask', eventfds: [fds[0]!] });
    expect(one.refused({ index: PCI_INTX_IRQ, action: 'unmask', eventfds: [fds[1]!] })).toBe('EBUSY');
    level(one, true);
    level(one, false);
    events[0]!.signal();
    expect([masked(one), events[0]!.count]).toEqual([false, 0]);
    one.set({ index: PCI_INTX_IRQ, action: 'unmask', eventfds: [-1] });
    level(one, true);
    events[0]!.signal();
    expect([masked(one), one.event.count]).toEqual([true, 2]);
  });

  it('can be masked by the user: nothing arrives until it is unmasked', () => {
    const one = on();
    one.set({ index: PCI_INTX_IRQ, action: 'mask', count: 1 });
    level(one, true);
    expect([one.event.count, masked(one)]).toEqual([0, true]);
    one.set({ index: PCI_INTX_IRQ, action: 'unmask', count: 1 });
    expect([one.event.count, masked(one)]).toEqual([1, true]);
  });

  it('follows Interrupt Disable of the virtual command register, also before it is enabled', () => {
    const one = on();
    one.config.poke(COMMAND + 1, 1, 0x04);
    level(one, true);
    expect([one.event.count, masked(one)]).toEqual([0, true]);
    one.config.poke(COMMAND + 1, 1, 0);
    expect(one.event.count).toBe(1);
    const late = bench();
    late.config.poke(COMMAND, 2, MEMORY | MASTER | INTX_DISABLE);
    const { fds, events } = late.events(1);
    late.set({ index: PCI_INTX_IRQ, eventfds: fds });
    level(late, true);
    expect(events[0]!.count).toBe(0);
    late.config.poke(COMMAND, 2, MEMORY | MASTER);
    expect(events[0]!.count).toBe(1);
  });

  it('is torn down by count 0: its line is free, another eventfd can come', () => {
    const one = on();
    const { fds, events } = one.events(1);
    one.set({ index: PCI_INTX_IRQ, eventfds: fds });
    level(one, true);
    expect([one.event.count, events[0]!.count]).toEqual([0, 1]);
    one.set({ index: PCI_INTX_IRQ, count: 0 });
    expect(one.world.interrupts.listLines()).toEqual([]);
    one.set({ index: PCI_INTX_IRQ, eventfds: [one.fd] });
    one.set({ index: PCI_INTX_IRQ, count: 1 });
    one.set({ index: PCI_INTX_IRQ, bools: [true] });
    expect(one.event.count).toBeGreaterThanOrEqual(2);
  });

  it('refuses masks before it is enabled, masks by eventfd, more than one, and a function without pin', () => {
    const one = bench();
    expect(one.refused({ index: PCI_INTX_IRQ, action: 'mask', count: 1 })).toBe('EINVAL');
    expect(one.refused({ index: PCI_INTX_IRQ, action: 'unmask', count: 1 })).toBe('EINVAL');
    expect(one.refused({ index: PCI_INTX_IRQ, count: 0 })).toBe('EINVAL');
    expect(one.refused({ index: PCI_INTX_IRQ, count: 1 })).toBe('EINVAL');
    const { fds } = one.events(2);
    expect(one.refused({ index: PCI_INTX_IRQ, eventfds: fds })).toBe('EINVAL');
    expect(one.refused({ index: PCI_INTX_IRQ, start: 1, eventfds: [fds[0]!] })).toBe('EINVAL');
    one.set({ index: PCI_INTX_IRQ, eventfds: [fds[0]!] });
    expect(one.refused({ index: PCI_INTX_IRQ, action: 'mask', eventfds: [fds[1]!] })).toBe('ENOTTY');
    expect(one.refused({ index: PCI_INTX_IRQ, action: 'mask', count: 0 })).toBe('EINVAL');
    expect(bench({}).refused({ index: PCI_INTX_IRQ, eventfds: [-1] })).toBe('EINVAL');
  });

  it('brings the interrupts of a real device (edu): by INTx with acknowledgement and unmask, then by MSI', () => {
    const world = new VfioPciWorld();
    world.plugEdu(world.root, 0x08);
    world.boot();
    world.bind(NAME);
    const user = world.open(NAME), registers = user.device.mmap(0, 0, 0x1000), { fd, event } = world.event(user);
    new ConfigPokes(user.device.file).poke(COMMAND, 2, MEMORY | MASTER);
    const factorial = (): number => {
      registers.write(EDU_REG.STATUS, 4, STATUS_IRQ_FACTORIAL);
      registers.write(EDU_REG.FACTORIAL, 4, 5);
      world.settle();
      const status = registers.read(EDU_REG.IRQ_STATUS, 4);
      registers.write(EDU_REG.IRQ_ACK, 4, status);
      return registers.read(EDU_REG.FACTORIAL, 4);
    };
    world.run(user.device.setIrqs({ index: PCI_INTX_IRQ, eventfds: [fd] }));
    expect([factorial(), event.read()]).toEqual([120, 1]);
    expect([factorial(), event.count]).toEqual([120, 0]);
    world.run(user.device.setIrqs({ index: PCI_INTX_IRQ, action: 'unmask', count: 1 }));
    expect([factorial(), event.read()]).toEqual([120, 1]);
    world.run(user.device.setIrqs({ index: PCI_INTX_IRQ, count: 0 }));
    world.run(user.device.setIrqs({ index: PCI_MSI_IRQ, eventfds: [fd] }));
    expect([factorial(), factorial(), event.read()]).toEqual([120, 120, 2]);
  });
});

describe('errors and requests', () => {
  it('tells the user of an uncorrectable error of the function, and votes for going on (C18)', () => {
    const one = bench();
    one.world.handleErrors();
    const { fds, events } = one.events(1);
    one.hardware.reportError('nonfatal');
    one.world.settle();
    one.set({ index: PCI_ERR_IRQ, eventfds: fds });
    one.hardware.reportError('nonfatal');
    one.hardware.reportError('correctable');
    one.world.settle();
    expect(events[0]!.count).toBe(1);
    expect(one.world.log.lines.map(({ text }) => text)).toContain(`vfio-pci ${NAME}: AER: device recovery successful`);
  });

  it('takes a single eventfd for errors and one for requests, to be tried out and taken away', () => {
    for (const index of [PCI_ERR_IRQ, PCI_REQ_IRQ]) {
      const one = bench();
      const { fds, events } = one.events(2);
      expect(one.refused({ index, count: 1 })).toBe('EINVAL');
      one.set({ index, eventfds: [fds[0]!] });
      one.set({ index, count: 1 });
      one.set({ index, bools: [true] });
      one.set({ index, bools: [false] });
      expect(events[0]!.count).toBe(2);
      one.set({ index, eventfds: [fds[1]!] });
      one.set({ index, count: 1 });
      expect(counts(events)).toEqual([2, 1]);
      one.set({ index, count: 0 });
      expect(one.refused({ index, count: 1 })).toBe('EINVAL');
      one.set({ index, eventfds: [fds[0]!] });
      one.set({ index, eventfds: [-1] });
      expect(one.refused({ index, count: 0 })).toBe('EINVAL');
    }
  });

  it('refuses masks, more than one, and data that is not there', () => {
    for (const index of [PCI_ERR_IRQ, PCI_REQ_IRQ]) {
      const one = bench();
      const { fds } = one.events(2);
      expect(one.refused({ index, action: 'mask', count: 1 })).toBe('ENOTTY');
      expect(one.refused({ index, eventfds: fds })).toBe('EINVAL');
      expect(one.refused({ index, start: 1, eventfds: [fds[0]!] })).toBe('EINVAL');
      expect(one.refused({ index, eventfds: [] })).toBe('EINVAL');
      expect(one.refused({ index, bools: [] })).toBe('EINVAL');
    }
  });
});
