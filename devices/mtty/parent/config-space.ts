/**
 * The card's virtual configuration space, 256 bytes: identity and interrupt pin as in Linux' sample, a memory BAR for
 * each port, and MSI with one vector (64-bit, no masking). Sizing works as PCIe Base 6.0 section 7.5.1.2.1 says: address
 * bits below the size read as zero. What is written has two effects only: bus master lets the DMA engines run, and
 * INTX_DISABLE silences INTx; decoding of the BARs is up to who maps them.
 */
import {
  barOffset, PCI_BASE_ADDRESS_MEM_MASK, PCI_CACHE_LINE_SIZE, PCI_CAP_ID_MSI, PCI_CAPABILITY_LIST, PCI_CLASS_REVISION, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_INTERRUPT_LINE, PCI_INTERRUPT_PIN, PCI_MSI_ADDRESS_HI, PCI_MSI_ADDRESS_LO, PCI_MSI_DATA_64, PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT, PCI_MSI_FLAGS_ENABLE, PCI_STATUS, PCI_STATUS_CAP_LIST, PCI_SUBSYSTEM_VENDOR_ID, PCI_VENDOR_ID,
} from '../../../host/pci/spec/index.js';
import { MTTY_CLASS_CODE, MTTY_CONFIG_SIZE, MTTY_DEVICE_ID, MTTY_MSI_OFFSET, MTTY_REVISION, MTTY_VENDOR_ID, PORT_BAR_SIZE } from '../spec/registers.js';

const ID = MTTY_DEVICE_ID * 0x1_0000 + MTTY_VENDOR_ID;
/** DEVSEL timing medium, as the sample says. */
const STATUS_DEVSEL_MEDIUM = 0x0200;
const STATUS_INTERRUPT = 0x08;
/** The sample's vendor-specific bytes, and the text at 0x60. */
const VENDOR_BYTES: readonly (readonly [offset: number, value: number])[] = [[0x40, 0x23], [0x43, 0x80], [0x44, 0x23], [0x48, 0x23], [0x4c, 0x23]];
const VENDOR_TEXT = 'PCI Serial/UART';
const VENDOR_TEXT_OFFSET = 0x60;

export class MttyConfigSpace {
  /** A level interrupt is asserted: bit 3 of the status register. */
  interruptStatus: () => boolean = () => false;
  private readonly bytes = new Uint8Array(MTTY_CONFIG_SIZE);
  /** Bits that software writes. */
  private readonly writable = new Uint8Array(MTTY_CONFIG_SIZE);
  private readonly view = new DataView(this.bytes.buffer);
  private readonly changed: () => void;

  /** @param changed called after every write */
  constructor(ports: number, changed: () => void) {
    this.changed = changed;
    const { view } = this;
    const writable = new DataView(this.writable.buffer);
    view.setUint32(PCI_VENDOR_ID, ID, true);
    view.setUint32(PCI_CLASS_REVISION, MTTY_CLASS_CODE * 256 + MTTY_REVISION, true);
    view.setUint32(PCI_SUBSYSTEM_VENDOR_ID, ID, true);
    view.setUint16(PCI_STATUS, STATUS_DEVSEL_MEDIUM | PCI_STATUS_CAP_LIST, true);
    view.setUint8(PCI_CAPABILITY_LIST, MTTY_MSI_OFFSET);
    view.setUint8(PCI_INTERRUPT_PIN, 1);
    view.setUint8(MTTY_MSI_OFFSET, PCI_CAP_ID_MSI);
    view.setUint16(MTTY_MSI_OFFSET + PCI_MSI_FLAGS, PCI_MSI_FLAGS_64BIT, true);
    for (const [offset, value] of VENDOR_BYTES) view.setUint8(offset, value);
    for (let i = 0; i < VENDOR_TEXT.length; i++) view.setUint8(VENDOR_TEXT_OFFSET + i, VENDOR_TEXT.charCodeAt(i));
    writable.setUint16(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE, true);
    writable.setUint8(PCI_CACHE_LINE_SIZE, 0xff);
    writable.setUint8(PCI_INTERRUPT_LINE, 0xff);
    for (let port = 0; port < ports; port++) writable.setUint32(barOffset(port), (PCI_BASE_ADDRESS_MEM_MASK & ~(PORT_BAR_SIZE - 1)) >>> 0, true);
    writable.setUint16(MTTY_MSI_OFFSET + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE, true);
    writable.setUint32(MTTY_MSI_OFFSET + PCI_MSI_ADDRESS_LO, 0xffff_fffc, true);
    writable.setUint32(MTTY_MSI_OFFSET + PCI_MSI_ADDRESS_HI, 0xffff_ffff, true);
    writable.setUint16(MTTY_MSI_OFFSET + PCI_MSI_DATA_64, 0xffff, true);
  }

  get busMaster(): boolean {
    return (this.bytes[PCI_COMMAND]! & PCI_COMMAND_MASTER) !== 0;
  }

  get intxDisabled(): boolean {
    return (this.view.getUint16(PCI_COMMAND, true) & PCI_COMMAND_INTX_DISABLE) !== 0;
  }

  read(offset: number): number {
    const value = this.bytes[offset]!;
    return offset === PCI_STATUS && this.interruptStatus() ? value | STATUS_INTERRUPT : value;
  }

  /** Several bytes, as one access. */
  write(offset: number, source: Uint8Array): void {
    for (let i = 0; i < source.length; i++) {
      const mask = this.writable[offset + i]!;
      this.bytes[offset + i] = (this.bytes[offset + i]! & ~mask) | (source[i]! & mask);
    }
    this.changed();
  }

  /** Everything that software wrote is forgotten. */
  reset(): void {
    for (let i = 0; i < this.bytes.length; i++) this.bytes[i]! &= ~this.writable[i]!;
    this.changed();
  }

  /** What software wrote, for migration: all bytes. */
  save(): Uint8Array {
    return this.bytes.slice();
  }

  /** Takes over what software may write; identity stays. */
  load(bytes: Uint8Array): void {
    this.write(0, bytes.subarray(0, MTTY_CONFIG_SIZE));
  }
}
