/**
 * A function's hardware as a device of VFIO, for serving it to somebody else's machine: configuration space as bytes,
 * BARs as their windows, interrupts by eventfd. What a kernel's vfio-pci virtualizes (BAR addresses, MSI control) is
 * the client's business here; the function's own registers are the truth. A vector is sent when the function's own
 * enables and masks let it through and the client gave an eventfd. The MSI-X table is an exception: QEMU and
 * cloud-hypervisor keep it to themselves (QEMU hw/vfio/pci.c vfio_msix_setup), so that the guest's writes never arrive.
 * An eventfd therefore unmasks its vector and taking it away masks it, as the kernel does with the real table under
 * vfio-pci; what is raised in between is pending and sent afterwards. Writes of a client that does forward them count
 * from then on. Left out: expansion ROM, VGA, mapping of BARs, migration.
 */
import { Errno } from '../../sim/errno.js';
import { load32, loadSized, store32, storeSized } from '../../sim/little-endian.js';
import type { Mmio } from '../../sim/mmio.js';
import type { Steps } from '../../sim/task.js';
import type { EventFd } from '../../host/eventfd.js';
import type { InterruptDelivery, PciFunction } from '../../host/pci/hardware/pci-function.js';
import { PCI_CFG_SPACE_EXP_SIZE, PCI_MSIX_ENTRY_CTRL_MASKBIT, PCI_MSIX_ENTRY_SIZE, PCI_STD_NUM_BARS } from '../../host/pci/spec/index.js';
import {
  DEVICE_FLAGS_PCI, DEVICE_FLAGS_RESET, IRQ_INFO_AUTOMASKED, IRQ_INFO_EVENTFD, IRQ_INFO_MASKABLE, PCI_CONFIG_REGION, PCI_ERR_IRQ, PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ,
  PCI_NUM_IRQS, PCI_NUM_REGIONS, PCI_REQ_IRQ, REGION_INFO_READ, REGION_INFO_WRITE, REGION_STRIDE, type VfioDeviceInfo, type VfioDeviceOps, type VfioIrqInfo, type VfioIrqSet,
  type VfioRegionInfo,
} from '../device.js';

/** Vector control in an entry of the MSI-X table. */
const VECTOR_CONTROL = 12;
/** MOVDIR64B and ENQCMD write so much. */
const WIDE_BYTES = 64;

interface Vector {
  trigger: EventFd | undefined;
  masked: boolean;
}

export class PciFunctionOps implements VfioDeviceOps, InterruptDelivery {
  readonly name: string;
  private readonly pci: PciFunction;
  private readonly vectors: readonly Vector[][];
  /** The pin is asserted. */
  private line = false;
  private stopUnmasking: (() => void) | undefined;

  constructor(pci: PciFunction) {
    this.pci = pci;
    this.name = pci.name;
    const counts = [pci.hasIntx ? 1 : 0, pci.msi?.vectors ?? 0, pci.msix?.options.vectors ?? 0, 1, 1];
    this.vectors = counts.map((count) => Array.from({ length: count }, () => ({ trigger: undefined, masked: false })));
    // a reset that the guest asks for in configuration space is none to the client: it does not send its eventfds again
    pci.listen((change) => {
      if (change === 'reset') this.maskUnwired();
    });
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps.open may sleep
  *open(): Steps {
    this.pci.deliverInterrupts(this);
  }

  /** The next user finds the function as after a reset (C18). */
  // oxlint-disable-next-line require-yield -- VfioDeviceOps.close may sleep
  *close(): Steps {
    for (const [index] of this.vectors.entries()) this.disable(index);
    this.pci.deliverInterrupts(undefined);
    this.pci.reset('flr');
  }

  info(): VfioDeviceInfo {
    return { flags: DEVICE_FLAGS_PCI | DEVICE_FLAGS_RESET, regions: PCI_NUM_REGIONS, irqs: PCI_NUM_IRQS };
  }

  regionInfo(index: number): VfioRegionInfo {
    const sizeBytes = this.regionSize(index);
    return { flags: sizeBytes === 0 ? 0 : REGION_INFO_READ | REGION_INFO_WRITE, sizeBytes };
  }

  irqInfo(index: number): VfioIrqInfo {
    return { flags: IRQ_INFO_EVENTFD | (index === PCI_INTX_IRQ ? IRQ_INFO_MASKABLE | IRQ_INFO_AUTOMASKED : 0), count: this.vectorsOf(index).length };
  }

  read(offset: number, target: Uint8Array): number {
    const { region, at, count } = this.locate(offset, target.length);
    const window = this.windowOf(region);
    for (let done = 0; done < count; ) {
      const size = pieceAt(at + done, count - done);
      if (window === undefined) {
        const piece = size === 8 ? 4 : size;
        storeSized(target, done, piece, this.pci.config.read(at + done, piece));
        done += piece;
        continue;
      }
      const value = window.read(at + done, size);
      storeSized(target, done, size === 8 ? 4 : size, value);
      if (size === 8) store32(target, done + 4, window.high);
      done += size;
    }
    return count;
  }

  /** Naturally aligned pieces; 64 aligned bytes are one write, as the processor instruction's that makes them. */
  write(offset: number, source: Uint8Array): number {
    const { region, at, count } = this.locate(offset, source.length);
    const window = this.windowOf(region);
    for (let done = 0; done < count; ) {
      if (window !== undefined && (at + done) % WIDE_BYTES === 0 && count - done >= WIDE_BYTES) {
        window.write64(at + done, source.slice(done, done + WIDE_BYTES));
        done += WIDE_BYTES;
        continue;
      }
      const size = pieceAt(at + done, count - done), low = size === 8 ? 4 : size;
      const value = loadSized(source, done, low);
      if (window === undefined) this.pci.config.write(at + done, low, value);
      else window.write(at + done, size, value, size === 8 ? load32(source, done + 4) : 0);
      done += window === undefined ? low : size;
    }
    return count;
  }

  /** The registers themselves, for a client in this process. EINVAL no BAR, or beyond it. */
  mmap(offset: number, sizeBytes: number): Mmio {
    const region = Math.floor(offset / REGION_STRIDE), window = this.windowOf(region);
    if (window === undefined || offset % REGION_STRIDE !== 0 || sizeBytes > this.regionSize(region)) throw new Errno('EINVAL', `${this.name}: region ${region} is mapped as a whole BAR or not at all`);
    return window;
  }

  /** EINVAL index, range; ENOTTY masking of a kind that has its masks in its own registers. */
  // oxlint-disable-next-line require-yield -- VfioDeviceOps.setIrqs may sleep
  *setIrqs(request: VfioIrqSet): Steps {
    const { index, start, count, action, data } = request;
    const vectors = this.vectorsOf(index);
    if (action === 'trigger' && data.kind === 'none' && count === 0) {
      this.disable(index);
      return;
    }
    if (start >= vectors.length || start + count > vectors.length) throw new Errno('EINVAL', `interrupts [${start}, ${start + count}) of index ${index} of ${this.name}, which has ${vectors.length}`);
    if (action !== 'trigger' && index !== PCI_INTX_IRQ) throw new Errno('ENOTTY', `interrupts of index ${index} of ${this.name} are masked in their registers`);
    if (data.kind === 'eventfd' && action === 'mask') throw new Errno('ENOTTY', `INTx of ${this.name} cannot be masked by an eventfd`);
    for (let i = 0; i < count; i++) this.setOne(index, start + i, request, i);
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps.reset may sleep
  *reset(): Steps {
    this.pci.reset('flr');
  }

  request(): void {
    this.vectors[PCI_REQ_IRQ]![0]!.trigger?.signal();
  }

  /** The function met an error that its user has to know. */
  reportError(): void {
    this.vectors[PCI_ERR_IRQ]![0]!.trigger?.signal();
  }

  // --- what the function wants

  msi(vector: number): void {
    this.vectors[PCI_MSI_IRQ]![vector]!.trigger?.signal();
  }

  msix(vector: number): void {
    this.vectors[PCI_MSIX_IRQ]![vector]!.trigger?.signal();
  }

  /** Level-triggered: masked by its own arrival, and sent again when it is unmasked while the pin is still asserted. */
  intx(high: boolean): void {
    this.line = high;
    if (high) this.sendIntx();
  }

  private sendIntx(): void {
    const vector = this.vectors[PCI_INTX_IRQ]![0]!;
    if (vector.masked || vector.trigger === undefined) return;
    vector.masked = true;
    vector.trigger.signal();
  }

  private setOne(index: number, subindex: number, { action, data }: VfioIrqSet, i: number): void {
    const vector = this.vectors[index]![subindex]!;
    if (data.kind === 'eventfd') {
      if (action === 'unmask') this.listenForUnmask(data.fds[i]);
      else this.setTrigger(index, subindex, data.fds[i]);
      return;
    }
    if (data.kind === 'bool' && data.values[i] !== true) return;
    if (action === 'trigger') vector.trigger?.signal();
    else if (action === 'mask') vector.masked = true;
    else this.unmask();
  }

  private setTrigger(index: number, subindex: number, trigger: EventFd | undefined): void {
    const vector = this.vectors[index]![subindex]!;
    vector.trigger = trigger;
    if (index === PCI_MSIX_IRQ) this.maskMsix(subindex, trigger === undefined);
    if (index !== PCI_INTX_IRQ) return;
    vector.masked = false;
    if (this.line) this.sendIntx();
  }

  private unmask(): void {
    this.vectors[PCI_INTX_IRQ]![0]!.masked = false;
    if (this.line) this.sendIntx();
  }

  private listenForUnmask(fd: EventFd | undefined): void {
    this.stopUnmasking?.();
    this.stopUnmasking = fd?.listen(() => {
      if (fd.count > 0) fd.read();
      this.unmask();
    });
  }

  private disable(index: number): void {
    for (const vector of this.vectorsOf(index)) {
      vector.trigger = undefined;
      vector.masked = false;
    }
    if (index === PCI_INTX_IRQ) this.listenForUnmask(undefined);
    if (index === PCI_MSIX_IRQ) this.maskUnwired();
  }

  /** Unmasking sends what is pending. */
  private maskMsix(vector: number, masked: boolean): void {
    this.pci.msix!.writeTable(vector * PCI_MSIX_ENTRY_SIZE + VECTOR_CONTROL, masked ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0);
  }

  private maskUnwired(): void {
    for (const [vector, { trigger }] of this.vectors[PCI_MSIX_IRQ]!.entries()) this.maskMsix(vector, trigger === undefined);
  }

  private vectorsOf(index: number): readonly Vector[] {
    const vectors = this.vectors[index];
    if (vectors === undefined) throw new Errno('EINVAL', `${this.name} has no interrupts of index ${index}`);
    return vectors;
  }

  private windowOf(region: number): Mmio | undefined {
    return region < PCI_STD_NUM_BARS ? this.pci.window(region) : undefined;
  }

  /** EINVAL no such index; 0 a region that the function lacks. */
  private regionSize(index: number): number {
    if (!(index >= 0 && index < PCI_NUM_REGIONS)) throw new Errno('EINVAL', `${this.name} has no region ${index}`);
    if (index === PCI_CONFIG_REGION) return PCI_CFG_SPACE_EXP_SIZE;
    return index < PCI_STD_NUM_BARS ? this.pci.bars[index]?.sizeBytes ?? 0 : 0;
  }

  /** Where an access goes, cut at the region's end. EINVAL outside of every region. */
  private locate(offset: number, length: number): { region: number; at: number; count: number } {
    const region = Math.floor(offset / REGION_STRIDE), at = offset % REGION_STRIDE, sizeBytes = this.regionSize(region);
    if (at >= sizeBytes) throw new Errno('EINVAL', `${this.name}: region ${region} has ${sizeBytes} bytes`);
    return { region, at, count: Math.min(length, sizeBytes - at) };
  }
}

/** The largest naturally aligned access that begins here and is not longer than the rest. */
function pieceAt(at: number, rest: number): 1 | 2 | 4 | 8 {
  if (at % 8 === 0 && rest >= 8) return 8;
  if (at % 4 === 0 && rest >= 4) return 4;
  return at % 2 === 0 && rest >= 2 ? 2 : 1;
}
