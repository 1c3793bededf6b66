/**
 * The tree below the root complex: buses, bridges, functions; who is reached under which bus number, which BARs
 * decode where, and what the way of each function to the root complex allows. Configuration requests are routed by
 * the bus numbers in the bridges (PCIe 6.0 section 7.3.3), memory by their windows, and everything is computed
 * again whenever software changes one of them.
 *
 * For software to keep in mind: a bridge forwards DMA of what is below only with its bus master bit set, and CPU
 * accesses only with memory space enabled and inside its memory or prefetchable window.
 */
import { assert } from '../../../sim/assert.js';
import { PlainMmio, type AccessSize } from '../../../sim/mmio.js';
import type { Window } from '../../system-bus.js';
import type { PciErrorMessage, PciErrorSeverity, PciErrorSource } from '../spec/index.js';
import {
  PCI_ACS_DT, PCI_ACS_EC, PCI_ACS_RR, PCI_ACS_SV, PCI_ACS_TB, PCI_EXP_TYPE_DOWNSTREAM, PCI_EXP_TYPE_UPSTREAM, requesterIdOf,
} from '../spec/index.js';
import { allOnes, type ConfigSize } from './config-space.js';
import type { Fabric } from './fabric.js';
import type { PeerWindow } from './peer-access.js';
import { PciBus, type PciNode, type RoutingChange } from './pci-node.js';
import { PciFunction, type BarDecode, type FunctionPath } from './pci-function.js';
import { PciPort } from './pci-port.js';

interface Claim {
  readonly bar: number;
  readonly start: number;
  readonly sizeBytes: number;
  readonly window: Window;
}

/** A function with the bridges above it, nearest first. */
interface Placed {
  readonly fn: PciFunction;
  readonly bus: PciBus;
  readonly above: readonly PciPort[];
}

export class RootComplex implements PciErrorSource {
  readonly segment: number;
  readonly fabric: Fabric;
  readonly rootBuses: PciBus[] = [];
  /** BARs that were not decoded because another window has their addresses. */
  conflicts = 0;
  private readonly claims = new Map<PciFunction, readonly Claim[]>();
  private virtualFunctions = new Map<number, Placed>();
  private registered: PciFunction[] = [];
  /** There is a switch, so functions may reach each other without the root complex. */
  private switched = false;
  private updating = false;
  private stale = false;
  private errorListeners: readonly ((message: PciErrorMessage) => void)[] = [];

  constructor(options: { fabric: Fabric; segment?: number }) {
    this.fabric = options.fabric;
    this.segment = options.segment ?? 0;
  }

  /** A bus that the host bridge numbers. */
  addRootBus(number = 0): PciBus {
    assert(this.rootBuses.every((bus) => bus.number !== number), `root bus ${number} twice`);
    const bus = new PciBus(() => number);
    this.rootBuses.push(bus);
    return bus;
  }

  /** Plugs a function or bridge (with what is below it) into a slot. */
  insert(bus: PciBus, devfn: number, node: PciNode): void {
    const onLink = bus.bridge instanceof PciPort && bus.bridge.type !== PCI_EXP_TYPE_UPSTREAM;
    assert(!onLink || devfn < 8, `${node.name}: only device 0 is at the end of a link`);
    bus.insert(node, devfn);
    this.adopt(node);
    this.update();
  }

  /**
   * Takes a function, or a bridge with everything below, away: from this moment configuration reads are all ones,
   * ports are revoked, held operations end, invalidations stay unanswered.
   * @param surprise without notice to software; recorded only
   */
  remove(node: PciNode, options: { surprise: boolean }): void {
    assert(node.bus !== undefined, `${node.name} is not plugged in`);
    const gone = this.place(node.bus, [], node);
    node.bus.remove(node);
    node.onRoutingChange = undefined;
    for (const { fn } of gone) {
      const { traced } = this.fabric;
      traced?.trace.record(traced.remove, 0, fn.requesterId, options.surprise ? 1 : 0);
      if (fn.bus?.nodes.get(fn.devfn) === fn) fn.bus.nodes.delete(fn.devfn);
      fn.bus = undefined;
      fn.onErrorMessage = undefined;
      fn.removed();
    }
    this.update();
  }

  /** What a configuration read returns; all ones where nobody is. */
  configRead(bus: number, devfn: number, offset: number, size: ConfigSize): number {
    return this.find(bus, devfn)?.config.read(offset, size) ?? allOnes(size);
  }

  configWrite(bus: number, devfn: number, offset: number, size: ConfigSize, value: number): void {
    this.find(bus, devfn)?.config.write(offset, size, value);
  }

  /** Who answers configuration requests for (bus, devfn) now. */
  find(bus: number, devfn: number): PciNode | undefined {
    for (const root of this.rootBuses) if (root.number === bus) return root.nodes.get(devfn) ?? this.virtualAt(bus, devfn);
    for (const root of this.rootBuses) {
      let below = this.below(root, bus);
      while (below !== undefined) {
        if (below.secondary.number === bus) return below.secondary.nodes.get(devfn) ?? this.virtualAt(bus, devfn);
        const next = this.below(below.secondary, bus);
        if (next === undefined) return this.virtualAt(bus, devfn);
        below = next;
      }
    }
    return undefined;
  }

  /** All functions, virtual ones too. */
  functions(): PciFunction[] {
    return this.placed().map(({ fn }) => fn);
  }

  /** Error messages of functions, when the interrupt that tells software of them would arrive. */
  listenErrors(listener: (message: PciErrorMessage) => void): () => void {
    this.errorListeners = [...this.errorListeners, listener];
    return () => {
      this.errorListeners = this.errorListeners.filter((other) => other !== listener);
    };
  }

  private errorMessage(fn: PciFunction, severity: PciErrorSeverity): void {
    const { clock, timing, traced } = this.fabric, { requesterId: sourceId } = fn;
    // declared here and not with the others: a kind that never occurs moves nobody's number
    traced?.trace.record(traced.trace.define('pci:error', [['source', 'hex'], ['severity', 'str']]), 0, sourceId, traced.trace.intern(severity));
    const delayNs = timing.jittered(timing.options.tlpNs) + timing.jittered(timing.options.interruptNs);
    clock.post(delayNs, () => {
      for (const listener of this.errorListeners) listener({ segment: this.segment, sourceId, severity });
    });
  }

  private below(bus: PciBus, number: number): PciPort | undefined {
    for (const node of bus.nodes.values()) if (node instanceof PciPort && node.routes(number)) return node;
    return undefined;
  }

  private virtualAt(bus: number, devfn: number): PciFunction | undefined {
    const placed = this.virtualFunctions.get(requesterIdOf(bus, devfn));
    return placed !== undefined && (placed.bus.number === bus || placed.above.every((port) => port.routes(bus))) ? placed.fn : undefined;
  }

  private adopt(node: PciNode): void {
    node.onRoutingChange = (change) => this.changed(node, change);
    if (!(node instanceof PciPort)) return;
    node.onBusReset = () => this.resetBelow(node);
    for (const child of node.secondary.nodes.values()) this.adopt(child);
  }

  /** Secondary bus reset (section 6.6.1): everything below the bridge. */
  private resetBelow(port: PciPort): void {
    for (const node of port.secondary.nodes.values()) {
      if (node instanceof PciPort) {
        this.resetBelow(node);
        node.reset();
      } else if (node instanceof PciFunction) {
        node.reset('bus');
      }
    }
    this.update();
  }

  private placed(): Placed[] {
    return this.rootBuses.flatMap((bus) => this.place(bus, []));
  }

  /** Functions on a bus and below, in slot order; only below `only` when given. */
  private place(bus: PciBus, above: readonly PciPort[], only?: PciNode): Placed[] {
    const found: Placed[] = [];
    const nodes = only === undefined ? [...bus.nodes.values()].sort((a, b) => a.devfn - b.devfn) : [only];
    for (const node of nodes) {
      if (node instanceof PciPort) {
        found.push(...this.place(node.secondary, [node, ...above]));
      } else if (node instanceof PciFunction) {
        found.push({ fn: node, bus, above });
        for (const fn of node.sriov?.functions ?? []) found.push({ fn, bus, above });
      }
    }
    return found;
  }

  private changed(node: PciNode, change: RoutingChange): void {
    const alone = change === 'windows' && node instanceof PciFunction && !this.switched && !this.updating;
    if (!alone) {
      this.update();
      return;
    }
    // nobody else's rights depend on this function's windows without a switch that delivers peer to peer
    const above = this.bridgesAbove(node);
    for (const fn of [node, ...(node.sriov?.functions ?? [])]) this.release(fn, above);
    for (const fn of [node, ...(node.sriov?.functions ?? [])]) this.claim(fn, above);
  }

  private bridgesAbove(node: PciNode): PciPort[] {
    const above: PciPort[] = [];
    for (let bridge = node.bus?.bridge; bridge instanceof PciPort; bridge = bridge.bus?.bridge) above.push(bridge);
    return above;
  }

  /** Computes everything that follows from configuration bytes and the tree. */
  private update(): void {
    // a change made by the update itself (a reset in a hook) asks for another round
    this.stale = true;
    if (this.updating) return;
    this.updating = true;
    try {
      while (this.stale) {
        this.stale = false;
        const placed = this.placed();
        this.switched = placed.some(({ above }) => above.some((port) => port.type === PCI_EXP_TYPE_DOWNSTREAM));
        this.number(placed);
        this.decode(placed);
        for (const one of placed) one.fn.setPath(this.fabric, this.pathOf(one, placed));
      }
    } finally {
      this.updating = false;
    }
  }

  private number(placed: readonly Placed[]): void {
    this.virtualFunctions = new Map();
    for (const fn of this.registered) this.fabric.unregister(fn.fabricPort);
    this.registered = [];
    for (const one of placed) {
      const { fn, bus, above } = one, { fabricPort } = fn;
      // below a bridge without bus number nobody can be reached
      const reachable = above.every((port) => port.secondary.number !== 0);
      const physfn = fn.physfn;
      fabricPort.requesterId = physfn === undefined
        ? requesterIdOf(bus.number, fn.devfn)
        : physfn.sriov!.requesterIdOf(physfn.sriov!.functions.indexOf(fn), physfn.requesterId);
      fabricPort.sourceId = fabricPort.forgedId ?? fabricPort.requesterId;
      if (physfn !== undefined) {
        fn.devfn = fabricPort.requesterId & 0xff;
        this.virtualFunctions.set(fabricPort.requesterId, one);
      }
      if (reachable && this.fabric.register(fabricPort)) this.registered.push(fn);
      fn.onRoutingChange ??= (change) => this.changed(fn, change);
      fn.onErrorMessage ??= (severity) => this.errorMessage(fn, severity);
    }
  }

  /** Claims on the system bus the BARs that decode, releases those that no longer do. */
  private decode(placed: readonly Placed[]): void {
    const here = new Map(placed.map(({ fn, above }) => [fn, above]));
    for (const fn of this.claims.keys()) this.release(fn, here.get(fn));
    for (const { fn, above } of placed) this.claim(fn, above);
  }

  /** What the function decodes and the bridges above let through; nothing when it is gone. */
  private wanted(fn: PciFunction, above: readonly PciPort[] | undefined): BarDecode[] {
    if (above === undefined) return [];
    return fn.decodes().filter(({ start, sizeBytes }) => above.every((port) => port.forwardsMemory(start, start + sizeBytes)));
  }

  private release(fn: PciFunction, above: readonly PciPort[] | undefined): void {
    const claims = this.claims.get(fn);
    if (claims === undefined) return;
    const wanted = this.wanted(fn, above);
    const kept = claims.filter((claim) => wanted.some((want) => sameClaim(claim, want)));
    for (const claim of claims) if (!kept.includes(claim)) this.fabric.bus.release(claim.window);
    if (kept.length > 0) this.claims.set(fn, kept);
    else this.claims.delete(fn);
  }

  private claim(fn: PciFunction, above: readonly PciPort[]): void {
    const { bus } = this.fabric;
    const claims = [...(this.claims.get(fn) ?? [])];
    for (const want of this.wanted(fn, above)) {
      if (claims.some((claim) => sameClaim(claim, want))) continue;
      const { bar, start, sizeBytes, mmio } = want;
      // software that gives one address to two windows finds the second one silent
      if (bus.list().some((window) => start < window.end && window.start < start + sizeBytes)) {
        this.conflicts++;
        continue;
      }
      claims.push({ bar, start, sizeBytes, window: bus.claim(start, sizeBytes, `${fn.name} BAR ${bar}`, mmio) });
    }
    if (claims.length > 0) this.claims.set(fn, claims);
  }

  private pathOf({ fn, above }: Placed, placed: readonly Placed[]): FunctionPath {
    // only ports at which requests enter from below check them; upstream ports do not
    const checking = above.filter((port) => port.type !== PCI_EXP_TYPE_UPSTREAM);
    const nearest = checking[0];
    const sourceBus = fn.fabricPort.sourceId >> 8;
    const spoofed = nearest !== undefined && (nearest.acsEnabled & PCI_ACS_SV) !== 0 && !nearest.routes(sourceBus);
    return {
      forwards: above.every((port) => port.busMaster) && !spoofed,
      translationBlocked: checking.some((port) => (port.acsEnabled & PCI_ACS_TB) !== 0),
      takesPrefixes: this.takesPrefixes(fn, above),
      peers: this.peersOf(fn, above, placed, false),
      translatedPeers: this.peersOf(fn, above, placed, true),
    };
  }

  private takesPrefixes(fn: PciFunction, above: readonly PciPort[]): boolean {
    return (fn.physfn ?? fn).e2eTlpPrefix && above.every((port) => port.takesPrefixes);
  }

  /**
   * What switches on the way deliver to directly: BARs below another downstream port of a switch, unless the port
   * where the request enters redirects it to the root complex (section 6.12.3, table 6-10).
   */
  private peersOf(fn: PciFunction, above: readonly PciPort[], placed: readonly Placed[], translated: boolean): PeerWindow[] | undefined {
    const windows: PeerWindow[] = [];
    above.forEach((ingress, level) => {
      const upstream = above[level + 1];
      if (ingress.type !== PCI_EXP_TYPE_DOWNSTREAM || upstream === undefined) return;
      const services = ingress.acsEnabled;
      const direct = translated && (services & PCI_ACS_DT) !== 0;
      for (const other of placed) {
        const at = other.above.indexOf(upstream);
        const egress = other.above[at - 1];
        if (at < 1 || egress === undefined || egress === ingress || other.fn === fn) continue;
        const stopped = (services & PCI_ACS_EC) !== 0 && ingress.egressStops(egress.portNumber);
        const redirect = (services & PCI_ACS_RR) !== 0;
        if (!direct && redirect && ((services & PCI_ACS_EC) === 0 || stopped)) continue;
        for (const { start, sizeBytes } of other.fn.decodes()) {
          windows.push({ startPage: start / 4096, endPage: (start + sizeBytes) / 4096, blocked: stopped && !direct });
        }
      }
    });
    return windows.length === 0 ? undefined : windows;
  }
}

function sameClaim(claim: Claim, want: BarDecode): boolean {
  return claim.bar === want.bar && claim.start === want.start && claim.sizeBytes === want.sizeBytes;
}

/** Enhanced configuration access (section 7.2.2): bus << 20 | devfn << 12 | register. */
export class EcamWindow extends PlainMmio {
  private readonly complex: RootComplex;
  private readonly firstBus: number;

  constructor(complex: RootComplex, firstBus = 0) {
    super();
    this.complex = complex;
    this.firstBus = firstBus;
  }

  read(offset: number, size: AccessSize): number {
    const bus = this.firstBus + (offset >>> 20), devfn = (offset >>> 12) & 0xff, register = offset & 0xfff;
    if (size < 8) return this.complex.configRead(bus, devfn, register, size as ConfigSize);
    this.high = this.complex.configRead(bus, devfn, register + 4, 4);
    return this.complex.configRead(bus, devfn, register, 4);
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const bus = this.firstBus + (offset >>> 20), devfn = (offset >>> 12) & 0xff, register = offset & 0xfff;
    this.complex.configWrite(bus, devfn, register, size === 8 ? 4 : size, lo);
    if (size === 8) this.complex.configWrite(bus, devfn, register + 4, 4, hi);
  }
}
