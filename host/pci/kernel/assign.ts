/**
 * Gives addresses to BARs and windows to bridges, out of the ranges of a bus (drivers/pci/setup-bus.c in spirit).
 * A 64-bit prefetchable BAR goes to the prefetchable range where every bridge on its way forwards one, everything
 * else to the memory range. Largest alignment first; a bridge's window is what its children need, in whole MiB
 * (PCIe Base 6.0 section 7.5.1.3.8), and at least 2 MiB below a hot-plug slot (Linux' `hpmemsize`). A BAR that finds
 * no place stays without address. Left out: I/O windows, moving what was assigned before.
 */
import { alignUp, hex, WORD } from '../../../sim/address.js';
import type { KernelLog } from '../../kernel-log.js';
import {
  BRIDGE_WINDOW_ALIGNMENT, PCI_CAP_ID_EXP, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_EXP_FLAGS,
  PCI_EXP_FLAGS_SLOT, PCI_EXP_SLTCAP, PCI_IO_BASE, PCI_MEMORY_BASE, PCI_MEMORY_RANGE_MASK, PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32, PCI_PREF_MEMORY_BASE,
} from '../spec/index.js';
import { AddressRange } from './address-range.js';
import { programBar } from './bars.js';
import { updateWord } from './config-access.js';
import type { BarResource } from './bars.js';
import type { ConfigWindow } from './pci-device.js';
import type { PciFunctionDevice } from './function-device.js';

/** BARs below this size get a page of their own, so that one page never shows two functions. */
const SMALLEST_ALIGNMENT = 4096;
const HOTPLUG_WINDOW = 0x20_0000;
/** Slot capability: hot-plug capable. */
const SLTCAP_HOTPLUG = 0x40;

export interface BusRanges {
  readonly memory: AddressRange | undefined;
  readonly prefetchable: AddressRange | undefined;
}

interface Request {
  readonly sizeBytes: number;
  readonly alignment: number;
  /** Called once with the address, or undefined when there was no place. */
  readonly place: (start: number | undefined, range: AddressRange | undefined) => void;
}

interface Plan {
  readonly memory: Request[];
  readonly prefetchable: Request[];
}

/** Assigns what `functions` and everything below them still lack, then switches memory decode on. */
export function assignResources(functions: readonly PciFunctionDevice[], ranges: BusRanges, log: KernelLog): void {
  const plan = planBus(functions, ranges.prefetchable !== undefined, log);
  placeAll(plan.memory, ranges.memory);
  placeAll(plan.prefetchable, ranges.prefetchable);
  for (const device of functions) enableDecode(device);
}

/** Gives back the addresses of a function that is removed. */
export function releaseResources(device: PciFunctionDevice): void {
  for (const bar of [...device.bars, ...(device.sriov?.bars ?? [])]) {
    if (bar.start !== undefined) bar.range?.free(bar.start);
    bar.start = undefined;
    bar.range = undefined;
  }
  for (const window of [device.memoryWindow, device.prefetchableWindow]) window?.parent?.free(window.start);
  device.memoryWindow = undefined;
  device.prefetchableWindow = undefined;
}

function planBus(functions: readonly PciFunctionDevice[], has64: boolean, log: KernelLog): Plan {
  const plan: Plan = { memory: [], prefetchable: [] };
  for (const device of functions) {
    for (const bar of [...device.bars, ...(device.sriov?.bars ?? [])]) {
      if (bar.start === undefined) (bar.is64 && bar.prefetchable && has64 ? plan.prefetchable : plan.memory).push(barRequest(device, bar, log));
    }
    if (device.isBridge) planBridge(device, plan, has64, log);
  }
  return plan;
}

function barRequest(device: PciFunctionDevice, bar: BarResource, log: KernelLog): Request {
  const sizeBytes = bar.sizeBytes * bar.count;
  const place = (start: number | undefined, range: AddressRange | undefined): void => {
    bar.start = start;
    bar.range = range;
    if (start !== undefined) programBar(device.config, bar);
    else log.log('err', `pci ${device.name}: BAR ${bar.index} [mem size ${hex(sizeBytes, 8)}${bar.is64 ? ' 64bit' : ''}${bar.prefetchable ? ' pref' : ''}]: can't assign; no space`);
  };
  return { sizeBytes, alignment: Math.max(bar.sizeBytes, SMALLEST_ALIGNMENT), place };
}

function planBridge(bridge: PciFunctionDevice, plan: Plan, has64: boolean, log: KernelLog): void {
  if (bridge.memoryWindow !== undefined || bridge.prefetchableWindow !== undefined) {
    // the windows stand; what is new below takes its place in them
    assignResources(bridge.children, { memory: bridge.memoryWindow, prefetchable: bridge.prefetchableWindow }, log);
    return;
  }
  const forwards64 = forwardsPrefetchable(bridge.config);
  const below64 = has64 && forwards64;
  const below = planBus(bridge.children, below64, log);
  const least = hotplugSlot(bridge) ? HOTPLUG_WINDOW : 0;
  disableWindows(bridge.config, forwards64);
  windowRequest(below.memory, least, plan.memory, (range) => {
    bridge.memoryWindow = range;
    programMemoryWindow(bridge.config, range);
  });
  if (!below64) return;
  windowRequest(below.prefetchable, least, plan.prefetchable, (range) => {
    bridge.prefetchableWindow = range;
    programPrefetchableWindow(bridge.config, range);
  });
}

function windowRequest(below: readonly Request[], least: number, requests: Request[], program: (range: AddressRange) => void): void {
  const sizeBytes = alignUp(Math.max(packedSize(below), least), BRIDGE_WINDOW_ALIGNMENT);
  if (sizeBytes === 0) return;
  const alignment = below.reduce((most, request) => Math.max(most, request.alignment), BRIDGE_WINDOW_ALIGNMENT);
  const place = (start: number | undefined, parent: AddressRange | undefined): void => {
    const range = start === undefined ? undefined : new AddressRange(start, sizeBytes, parent);
    if (range !== undefined) program(range);
    placeAll(below, range);
  };
  requests.push({ sizeBytes, alignment, place });
}

function inOrder(requests: readonly Request[]): Request[] {
  return [...requests].sort((a, b) => b.alignment - a.alignment || b.sizeBytes - a.sizeBytes);
}

/** Bytes that the requests take when placed one after the other from an address aligned for all. */
function packedSize(requests: readonly Request[]): number {
  return inOrder(requests).reduce((end, request) => alignUp(end, request.alignment) + request.sizeBytes, 0);
}

function placeAll(requests: readonly Request[], range: AddressRange | undefined): void {
  for (const request of inOrder(requests)) {
    const start = range?.allocate(request.sizeBytes, request.alignment);
    request.place(start, start === undefined ? undefined : range);
  }
}

function enableDecode(device: PciFunctionDevice): void {
  const bits = device.isBridge ? PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER : device.bars.some((bar) => bar.start !== undefined) ? PCI_COMMAND_MEMORY : 0;
  if ((device.config.read(PCI_COMMAND, 2) & bits) !== bits) updateWord(device.config, PCI_COMMAND, 0, bits);
  for (const child of device.children) enableDecode(child);
}

function hotplugSlot(bridge: PciFunctionDevice): boolean {
  const express = bridge.findCapability(PCI_CAP_ID_EXP);
  if (express === undefined || (bridge.config.read(express + PCI_EXP_FLAGS, 2) & PCI_EXP_FLAGS_SLOT) === 0) return false;
  return (bridge.config.read(express + PCI_EXP_SLTCAP, 4) & SLTCAP_HOTPLUG) !== 0;
}

/** The window registers are hardwired to zero where a bridge has no prefetchable window. */
function forwardsPrefetchable(config: ConfigWindow): boolean {
  const old = config.read(PCI_PREF_MEMORY_BASE, 4);
  if (old !== 0) return true;
  config.write(PCI_PREF_MEMORY_BASE, 4, 0xffe0_fff0);
  const there = config.read(PCI_PREF_MEMORY_BASE, 4) !== 0;
  config.write(PCI_PREF_MEMORY_BASE, 4, old);
  return there;
}

/** Base above limit: nothing is forwarded. */
function disableWindows(config: ConfigWindow, has64: boolean): void {
  config.write(PCI_IO_BASE, 2, 0x00f0);
  config.write(PCI_MEMORY_BASE, 4, 0x0000_fff0);
  if (!has64) return;
  config.write(PCI_PREF_LIMIT_UPPER32, 4, 0);
  config.write(PCI_PREF_MEMORY_BASE, 4, 0x0000_fff0);
  config.write(PCI_PREF_BASE_UPPER32, 4, 0);
}

function windowWord(range: AddressRange): number {
  const base = (range.start >>> 16) & PCI_MEMORY_RANGE_MASK;
  const limit = ((range.end - 1) >>> 16) & PCI_MEMORY_RANGE_MASK;
  return ((limit << 16) | base) >>> 0;
}

function programMemoryWindow(config: ConfigWindow, range: AddressRange): void {
  config.write(PCI_MEMORY_BASE, 4, windowWord(range));
}

function programPrefetchableWindow(config: ConfigWindow, range: AddressRange): void {
  config.write(PCI_PREF_LIMIT_UPPER32, 4, 0);
  config.write(PCI_PREF_MEMORY_BASE, 4, windowWord(range));
  config.write(PCI_PREF_BASE_UPPER32, 4, Math.floor(range.start / WORD));
  config.write(PCI_PREF_LIMIT_UPPER32, 4, Math.floor((range.end - 1) / WORD));
}
