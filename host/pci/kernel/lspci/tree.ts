/** `lspci -t`: buses and functions as a tree, drawn as pciutils draws it. */
import { PCI_CLASS_DEVICE, PCI_HEADER_TYPE, PCI_HEADER_TYPE_BRIDGE, PCI_HEADER_TYPE_MASK, PCI_SECONDARY_BUS, PCI_SUBORDINATE_BUS } from '../../spec/index.js';
import { compareBdf } from '../bdf.js';
import { hexDigits } from './source.js';
import type { LspciFunction } from './source.js';

interface Bus {
  readonly segment: number;
  readonly number: number;
  readonly functions: LspciFunction[];
}

interface Bridge {
  readonly segment: number;
  /** Undefined for the host bridge of a segment. */
  readonly fn: LspciFunction | undefined;
  readonly secondary: number;
  readonly subordinate: number;
  readonly children: Bridge[];
  readonly buses: Bus[];
}

/** @param title what to print behind a function that is no bridge, for `-tv` */
export function treeLines(functions: readonly LspciFunction[], title?: (fn: LspciFunction) => string): string[] {
  const sorted = [...functions].sort(compareBdf);
  const bridges = sorted.filter(isBridge).map((fn) => bridgeOf(fn));
  const drawing = new Drawing(new Map(bridges.map((bridge) => [bridge.fn!, bridge])), title);
  for (const segment of new Set(sorted.map((fn) => fn.segment))) {
    const host: Bridge = { segment, fn: undefined, secondary: 0, subordinate: Infinity, children: [], buses: [] };
    for (const bridge of bridges) if (bridge.segment === segment) parentOf(host, bridge).children.push(bridge);
    for (const bridge of bridges) if (bridge.segment === segment) bridge.buses.push({ segment, number: bridge.secondary, functions: [] });
    for (const fn of sorted) if (fn.segment === segment) insert(host, fn);
    drawing.bridge(host, 0);
  }
  return drawing.lines;
}

/** A bridge with a secondary bus. */
export function isBridge(fn: LspciFunction): boolean {
  return fn.config.read(PCI_CLASS_DEVICE, 2) >> 8 === 6 && (fn.config.read(PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MASK) === PCI_HEADER_TYPE_BRIDGE;
}

function bridgeOf(fn: LspciFunction): Bridge {
  const { segment } = fn;
  return { segment, fn, secondary: fn.config.read(PCI_SECONDARY_BUS, 1), subordinate: fn.config.read(PCI_SUBORDINATE_BUS, 1), children: [], buses: [] };
}

/** The innermost bridge whose range holds the bridge's own bus; parents come before their children in bus order. */
function parentOf(host: Bridge, bridge: Bridge): Bridge {
  let parent = host;
  for (let next: Bridge | undefined = host; next !== undefined; next = parent.children.find((child) => holds(child, bridge.fn!.bus))) parent = next;
  return parent;
}

function holds(bridge: Bridge, bus: number): boolean {
  return bridge.secondary <= bus && bus <= bridge.subordinate;
}

function insert(bridge: Bridge, fn: LspciFunction): void {
  const bus = bridge.buses.find((candidate) => candidate.number === fn.bus);
  if (bus !== undefined) {
    bus.functions.push(fn);
    return;
  }
  const below = bridge.children.find((child) => holds(child, fn.bus));
  if (below !== undefined) insert(below, fn);
  else bridge.buses.push({ segment: fn.segment, number: fn.bus, functions: [fn] });
}

/** Lines grow to the right; what was drawn continues below as `|` or blank. */
class Drawing {
  readonly lines: string[] = [];
  private line = '';
  private readonly bridges: ReadonlyMap<LspciFunction, Bridge>;
  private readonly title: ((fn: LspciFunction) => string) | undefined;

  constructor(bridges: ReadonlyMap<LspciFunction, Bridge>, title: ((fn: LspciFunction) => string) | undefined) {
    this.bridges = bridges;
    this.title = title;
  }

  bridge(bridge: Bridge, column: number): void {
    const at = this.put(column, '-');
    const label = (bus: Bus): string => `[${hexDigits(bus.segment, 4)}:${hexDigits(bus.number, 2)}]-`;
    if (bridge.buses.length === 1) {
      this.bus(bridge.buses[0]!, bridge.fn === undefined ? this.put(at, label(bridge.buses[0]!)) : at);
      return;
    }
    bridge.buses.forEach((bus, i) => this.bus(bus, this.put(at, (i === bridge.buses.length - 1 ? '\\-' : '+-') + label(bus))));
  }

  private bus(bus: Bus, column: number): void {
    const { functions } = bus;
    if (functions.length === 0) this.print(column);
    functions.forEach((fn, i) => this.fn(fn, this.put(column, functions.length === 1 ? '--' : i === functions.length - 1 ? '\\-' : '+-')));
  }

  private fn(fn: LspciFunction, column: number): void {
    const at = this.put(column, `${hexDigits(fn.devfn >> 3, 2)}.${(fn.devfn & 7).toString(16)}`);
    const bridge = this.bridges.get(fn);
    if (bridge === undefined) {
      this.print(this.title === undefined ? at : this.put(at, `  ${this.title(fn)}`));
      return;
    }
    const { secondary, subordinate } = bridge;
    const range = secondary === 0 ? '-' : secondary === subordinate ? `-[${hexDigits(secondary, 2)}]-` : `-[${hexDigits(secondary, 2)}-${hexDigits(subordinate, 2)}]-`;
    this.bridge(bridge, this.put(at, range));
  }

  /** Writes at a column and forgets what stood behind it. */
  private put(column: number, text: string): number {
    this.line = this.line.slice(0, column) + text;
    return this.line.length;
  }

  private print(column: number): void {
    const line = this.line.slice(0, column);
    this.lines.push(line);
    this.line = line.replaceAll(/[^+|]/g, ' ').replaceAll('+', '|');
  }
}
