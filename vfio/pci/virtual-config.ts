/**
 * The configuration space that a user of a function sees (drivers/vfio/pci/vfio_pci_config.c): its own bytes where a
 * bit is virtual, the function's elsewhere, and what has to happen when the user writes certain registers. Sizing of
 * BARs works on virtual registers; memory space, bus master and error reporting go to the hardware; Interrupt
 * Disable, function level reset, power state and maximum read request are carried out by the driver.
 * Left out: I/O space, expansion ROM, VPD, power management events, advanced features.
 */
import { Errno } from '../../sim/errno.js';
import { WORD } from '../../sim/address.js';
import {
  PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64, PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_PM,
  PCI_CAP_LIST_NEXT, PCI_CAPABILITY_LIST, PCI_CFG_SPACE_EXP_SIZE, PCI_CFG_SPACE_SIZE, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_COMMAND_IO,
  PCI_COMMAND_MEMORY, PCI_DEVICE_ID, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_FLR, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR, PCI_EXP_DEVCTL_PAYLOAD,
  PCI_EXP_DEVCTL_READRQ, PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_START, PCI_INTERRUPT_PIN, PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE, PCI_MSI_FLAGS_QSIZE,
  PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK, PCI_ROM_ADDRESS, PCI_STATUS, PCI_STATUS_CAP_LIST, PCI_STD_HEADER_SIZEOF, PCI_STD_NUM_BARS, PCI_VENDOR_ID,
} from '../../host/pci/spec/index.js';
import { updateWord } from '../../host/pci/kernel/config-access.js';
import { Permissions, permitCapability, permitExtCapability, permitHeader } from './permissions.js';
import type { ConfigSize } from '../../host/pci/kernel/config-access.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';

/** What the driver does when the user writes. */
export interface ConfigEffects {
  /** Memory space or power state changed: is memory reachable now? Told `false` before the hardware, `true` after it. */
  memory(reachable: boolean): void;
  /** Interrupt Disable of the virtual command register was set or cleared. */
  intxDisable(disabled: boolean): void;
  /** The function level reset bit was written to a function that has it. */
  functionReset(): void;
  /** MSI was enabled by SET_IRQS, with 2^order vectors; undefined: it was not. */
  readonly msiOrder: number | undefined;
}

const D3HOT = 3;
/** Sizes of Max_Payload_Size and Max_Read_Request_Size fields: 128 bytes shifted. */
const PAYLOAD_SHIFT = 5;
const READRQ_SHIFT = 12;

export class VirtualConfig {
  readonly sizeBytes: number;
  /** What the user's writes to virtual bits left. */
  readonly bytes: Uint8Array;
  private readonly view: DataView;
  private readonly device: PciFunctionDevice;
  private readonly effects: ConfigEffects;
  private readonly permissions: Permissions;
  /** The real BARs, to be put back after a reset that nobody noticed. */
  private readonly realBars: readonly number[];
  private readonly express: number | undefined;
  private readonly msi: number | undefined;
  private readonly pm: number | undefined;
  private readonly barWriteThrough: boolean;
  private powerState = 0;
  private intxDisabled = false;

  /** Copies what the function shows now. @param defects `vfio-pci.bar-write-through`, `vfio-pci.ats-not-hidden` */
  constructor(device: PciFunctionDevice, effects: ConfigEffects, defects: ReadonlySet<string>) {
    this.device = device;
    this.effects = effects;
    this.barWriteThrough = defects.has('vfio-pci.bar-write-through');
    this.sizeBytes = device.pcieType === undefined ? PCI_CFG_SPACE_SIZE : PCI_CFG_SPACE_EXP_SIZE;
    this.bytes = new Uint8Array(this.sizeBytes);
    this.view = new DataView(this.bytes.buffer);
    this.permissions = new Permissions(this.sizeBytes, PCI_STD_HEADER_SIZEOF);
    this.express = device.findCapability(PCI_CAP_ID_EXP);
    this.msi = device.findCapability(PCI_CAP_ID_MSI);
    this.pm = device.findCapability(PCI_CAP_ID_PM);
    for (let offset = 0; offset < this.sizeBytes; offset += 4) this.view.setUint32(offset, device.config.read(offset, 4), true);
    this.realBars = Array.from({ length: PCI_STD_NUM_BARS }, (_, i) => this.view.getUint32(PCI_BASE_ADDRESS_0 + i * 4, true));
    this.initHeader();
    this.initCapabilities();
    if (this.sizeBytes > PCI_CFG_SPACE_SIZE) this.initExtCapabilities(defects.has('vfio-pci.ats-not-hidden'));
  }

  /** Memory space is enabled, as the user sees it; a virtual function's is its physical function's affair. */
  get memoryReachable(): boolean {
    return this.powerState < D3HOT && (this.device.physfn !== undefined || (this.view.getUint16(PCI_COMMAND, true) & PCI_COMMAND_MEMORY) !== 0);
  }

  /** Interrupt Disable as the user set it. */
  get virtualIntxDisable(): boolean {
    return this.intxDisabled;
  }

  /** EFAULT a part lies outside of configuration space. */
  read(offset: number, target: Uint8Array): number {
    this.checkRange(offset, target.length);
    for (let at = 0; at < target.length; ) {
      const size = chunk(offset + at, target.length - at);
      store(target, at, size, this.readChunk(offset + at, size));
      at += size;
    }
    return target.length;
  }

  /** As `read`. */
  write(offset: number, source: Uint8Array): number {
    this.checkRange(offset, source.length);
    for (let at = 0; at < source.length; ) {
      const size = chunk(offset + at, source.length - at);
      this.writeChunk(offset + at, size, load(source, at, size));
      at += size;
    }
    return source.length;
  }

  /** The function was reset to D0. */
  poweredOn(): void {
    this.powerState = 0;
  }

  // ---- construction

  private initHeader(): void {
    const { device, view } = this;
    permitHeader(this.permissions);
    view.setUint16(PCI_VENDOR_ID, device.vendorId, true);
    view.setUint16(PCI_DEVICE_ID, device.deviceId, true);
    if (device.physfn !== undefined) {
      // no pin, and memory space enable that does not exist in hardware but has to look enabled
      view.setUint8(PCI_INTERRUPT_PIN, 0);
      view.setUint16(PCI_COMMAND, view.getUint16(PCI_COMMAND, true) | PCI_COMMAND_MEMORY, true);
    }
    view.setUint16(PCI_COMMAND, view.getUint16(PCI_COMMAND, true) & ~PCI_COMMAND_INTX_DISABLE, true);
    this.fixBars();
  }

  private initCapabilities(): void {
    const { device, view, permissions } = this;
    let previous = PCI_CAPABILITY_LIST;
    const starts = device.capabilities.map(({ offset }) => offset).sort((a, b) => a - b);
    for (const { id, offset } of device.capabilities) {
      const limit = starts.find((start) => start > offset) ?? PCI_CFG_SPACE_SIZE;
      if (!permitCapability(permissions, id, offset, limit, device.config)) {
        this.bytes.fill(0, offset, limit);
        continue;
      }
      view.setUint8(previous, offset);
      previous = offset + PCI_CAP_LIST_NEXT;
    }
    view.setUint8(previous, 0);
    if (previous === PCI_CAPABILITY_LIST) view.setUint16(PCI_STATUS, view.getUint16(PCI_STATUS, true) & ~PCI_STATUS_CAP_LIST, true);
  }

  private initExtCapabilities(showAts: boolean): void {
    const { device, permissions } = this;
    const starts = device.extCapabilities.map(({ offset }) => offset).sort((a, b) => a - b);
    let previous: number | undefined;
    for (const { id, offset } of device.extCapabilities) {
      const limit = starts.find((start) => start > offset) ?? this.sizeBytes;
      const shown = (showAts && id === PCI_EXT_CAP_ID_ATS) || permitExtCapability(permissions, id, offset, limit, device.config);
      if (!shown) {
        this.bytes.fill(0, offset, hiddenEnd(permissions, offset, limit));
        // the head of the list stays, as a capability without id
        if (offset !== PCI_EXT_CAP_START) continue;
      }
      if (previous !== undefined) this.link(previous, offset);
      previous = offset;
    }
    if (previous !== undefined) this.link(previous, 0);
  }

  private link(from: number, to: number): void {
    this.view.setUint32(from, (this.view.getUint32(from, true) & 0x000f_ffff) | (to << 20), true);
  }

  // ---- access

  private readChunk(at: number, size: ConfigSize): number {
    const virt = load(this.permissions.virt, at, size);
    let value = load(this.bytes, at, size);
    if (virt !== mask(size)) value = ((this.device.config.read(at, size) & ~virt) | (value & virt)) >>> 0;
    if (this.device.physfn !== undefined && at <= PCI_COMMAND && PCI_COMMAND < at + size) {
      value |= (this.bytes[PCI_COMMAND]! & PCI_COMMAND_MEMORY) << (8 * (PCI_COMMAND - at));
    }
    return value >>> 0;
  }

  private writeChunk(at: number, size: ConfigSize, value: number): void {
    const command = covers(at, size, PCI_COMMAND);
    if (command) this.beforeCommand(byteAt(at, value, PCI_COMMAND));
    this.writeBits(at, size, value);
    if (command) this.afterCommand(byteAt(at, value, PCI_COMMAND));
    if (command || covers(at, size, PCI_COMMAND + 1)) this.emulateIntxDisable();
    if (isBar(at)) this.writtenBar(at, size, value);
    if (this.msi !== undefined && covers(at, size, this.msi + PCI_MSI_FLAGS)) this.correctMsi(this.msi + PCI_MSI_FLAGS);
    if (this.pm !== undefined && covers(at, size, this.pm + PCI_PM_CTRL)) this.changePower(this.pm + PCI_PM_CTRL, byteAt(at, value, this.pm + PCI_PM_CTRL));
    const control = this.express === undefined ? undefined : this.express + PCI_EXP_DEVCTL;
    if (control !== undefined && (covers(at, size, control) || covers(at, size, control + 1))) this.writtenDeviceControl(control);
  }

  /** Virtual bits to our bytes, the others to the function: only in the bytes that have one, for neighbours are cleared by a written 1. */
  private writeBits(at: number, size: ConfigSize, value: number): void {
    const write = load(this.permissions.write, at, size), virt = load(this.permissions.virt, at, size);
    const own = write & virt;
    if (own !== 0) store(this.bytes, at, size, (load(this.bytes, at, size) & ~own) | (value & own));
    let bits = (write & ~virt) >>> 0;
    if (bits === 0) return;
    let width = size, from = at, word = value;
    while (width > 1) {
      const half = (width / 2) as ConfigSize, low = mask(half);
      if ((bits & low) === 0) {
        from += half;
        bits >>>= half * 8;
        word >>>= half * 8;
      } else if (bits > low) {
        break;
      }
      width = half;
    }
    const { config } = this.device;
    if (bits === mask(width)) config.write(from, width, (word & mask(width)) >>> 0);
    else config.write(from, width, ((config.read(from, width) & ~bits) | (word & bits)) >>> 0);
  }

  private checkRange(offset: number, length: number): void {
    if (offset < 0 || offset + length > this.sizeBytes) {
      throw new Errno('EFAULT', `${length} bytes at ${offset} of the configuration space of ${this.device.name}, which has ${this.sizeBytes}`);
    }
  }

  // ---- command register

  private beforeCommand(value: number): void {
    const enables = (value & PCI_COMMAND_MEMORY) !== 0;
    if (!enables && this.device.physfn === undefined) this.effects.memory(false);
    if (this.device.physfn !== undefined) return;
    const was = this.view.getUint16(PCI_COMMAND, true), real = this.device.config.read(PCI_COMMAND, 2);
    // enabled in our eyes and not in the function's: it was reset behind our back
    const lost = enables && (was & PCI_COMMAND_MEMORY) !== 0 && (real & PCI_COMMAND_MEMORY) === 0;
    if (lost || this.realBars.some((bar, i) => bar !== 0 && this.device.config.read(PCI_BASE_ADDRESS_0 + i * 4, 4) !== bar)) this.restoreBars();
  }

  private afterCommand(value: number): void {
    const kept = PCI_COMMAND_MEMORY | PCI_COMMAND_IO;
    this.bytes[PCI_COMMAND] = (this.bytes[PCI_COMMAND]! & ~kept) | (value & kept);
    this.effects.memory(this.memoryReachable);
  }

  private emulateIntxDisable(): void {
    const disabled = (this.view.getUint16(PCI_COMMAND, true) & PCI_COMMAND_INTX_DISABLE) !== 0;
    if (disabled === this.intxDisabled) return;
    this.intxDisabled = disabled;
    this.effects.intxDisable(disabled);
  }

  // ---- BARs

  private restoreBars(): void {
    if (this.barWriteThrough) return;
    this.realBars.forEach((bar, i) => this.device.config.write(PCI_BASE_ADDRESS_0 + i * 4, 4, bar));
  }

  private writtenBar(at: number, size: ConfigSize, value: number): void {
    if (this.barWriteThrough) this.device.config.write(at, size, value);
    this.fixBars();
  }

  /** Makes the virtual registers look like hardware: address bits below the size read as zero, the type is fixed. */
  private fixBars(): void {
    const { view, device } = this;
    for (let i = 0; i < PCI_STD_NUM_BARS; i++) {
      const register = PCI_BASE_ADDRESS_0 + i * 4;
      const bar = device.bars.find(({ index }) => index === i);
      if (bar?.start === undefined) {
        view.setUint32(register, 0, true);
        continue;
      }
      const type = (bar.is64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) | (bar.prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
      const low = bar.sizeBytes >= WORD ? 0 : ~(bar.sizeBytes - 1);
      view.setUint32(register, ((view.getUint32(register, true) & low) | type) >>> 0, true);
      if (!bar.is64) continue;
      const high = bar.sizeBytes > WORD ? ~(bar.sizeBytes / WORD - 1) : ~0;
      view.setUint32(register + 4, (view.getUint32(register + 4, true) & high) >>> 0, true);
      i++;
    }
    view.setUint32(PCI_ROM_ADDRESS, 0, true);
  }

  // ---- capabilities

  /** MSI is enabled by SET_IRQS, and no more vectors than it asked for; then the function follows the virtual word. */
  private correctMsi(at: number): void {
    const order = this.effects.msiOrder;
    let flags = this.view.getUint16(at, true);
    if (order === undefined) flags &= ~PCI_MSI_FLAGS_ENABLE;
    if ((flags & PCI_MSI_FLAGS_QSIZE) >> 4 > (order ?? 0)) flags = (flags & ~PCI_MSI_FLAGS_QSIZE) | ((order ?? 0) << 4);
    this.view.setUint16(at, flags, true);
    this.device.config.write(at, 2, flags);
  }

  private changePower(at: number, value: number): void {
    const state = value & PCI_PM_CTRL_STATE_MASK;
    if (state >= D3HOT) this.effects.memory(false);
    updateWord(this.device.config, at, PCI_PM_CTRL_STATE_MASK, state);
    this.powerState = this.device.config.read(at, 2) & PCI_PM_CTRL_STATE_MASK;
    this.effects.memory(this.memoryReachable);
  }

  private writtenDeviceControl(at: number): void {
    const control = this.view.getUint16(at, true);
    if ((control & PCI_EXP_DEVCTL_BCR_FLR) !== 0) {
      this.view.setUint16(at, control & ~PCI_EXP_DEVCTL_BCR_FLR, true);
      const capable = (this.device.config.read(this.express! + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR) !== 0;
      if (capable) this.effects.functionReset();
    }
    // a read request below the real payload size would only waste packets; the payload size itself is the system's
    const real = this.device.config.read(at, 2);
    const payload = (real & PCI_EXP_DEVCTL_PAYLOAD) >> PAYLOAD_SHIFT;
    const wanted = Math.max((control & PCI_EXP_DEVCTL_READRQ) >> READRQ_SHIFT, payload);
    if (wanted !== (real & PCI_EXP_DEVCTL_READRQ) >> READRQ_SHIFT) updateWord(this.device.config, at, PCI_EXP_DEVCTL_READRQ, wanted << READRQ_SHIFT);
  }
}

function hiddenEnd(permissions: Permissions, from: number, limit: number): number {
  let end = from;
  while (end < limit && permissions.virt[end] === 0xff && permissions.write[end] === 0) end++;
  return end;
}

/** The largest aligned access that begins at `offset`. */
function chunk(offset: number, length: number): ConfigSize {
  if (length >= 4 && offset % 4 === 0) return 4;
  return length >= 2 && offset % 2 === 0 ? 2 : 1;
}

function mask(size: ConfigSize): number {
  return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
}

function covers(at: number, size: number, offset: number): boolean {
  return at <= offset && offset < at + size;
}

/** Aligned accesses never reach into the BARs from outside. */
function isBar(at: number): boolean {
  return (at >= PCI_BASE_ADDRESS_0 && at < PCI_BASE_ADDRESS_0 + PCI_STD_NUM_BARS * 4) || (at >= PCI_ROM_ADDRESS && at < PCI_ROM_ADDRESS + 4);
}

/** The byte of `value`, written at `at`, that belongs to `offset`. */
function byteAt(at: number, value: number, offset: number): number {
  return (value >>> (8 * (offset - at))) & 0xff;
}

function load(bytes: Uint8Array, at: number, size: ConfigSize): number {
  let value = 0;
  for (let i = 0; i < size; i++) value |= bytes[at + i]! << (8 * i);
  return value >>> 0;
}

function store(bytes: Uint8Array, at: number, size: ConfigSize, value: number): void {
  for (let i = 0; i < size; i++) bytes[at + i] = value >>> (8 * i);
}
