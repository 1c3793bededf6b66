/**
 * A function's way to the world: the fabric's side of `DmaPort`. Requests are split at 4 KiB pages, each page is
 * translated by the agent at the root complex, neighbouring physical pages move in one copy. Refusals are values:
 * Unsupported Request for what the function or a port on its path may not send (PCIe 6.0 sections 2.3.1, 6.12,
 * 6.20, 10.2), revoked when bus mastering is off or the function is gone.
 * Left out: completion time-outs, payload sizes, link credits, poisoned data.
 */
import {
  ATTR_EXECUTE, ATTR_PRIVILEGED, ATTR_TRANSLATED, DMA_DONE, DMA_HELD, DMA_REVOKED, DMA_UR, NO_PASID,
  copyCompletion, type DmaClient, type DmaPort, type DmaStatus, type TranslationAgent, type TranslationCompletion,
} from '../dma-port.js';
import { moveThroughMmio } from './peer-access.js';
import type { Fabric, HeldOperation } from './fabric.js';
import type { PageRequestInterface } from './page-request-interface.js';
import type { PeerWindow } from './peer-access.js';

/** What of a path and a configuration space decides about requests; the function recomputes it on every change. */
export interface PortRights {
  /** The function is there. */
  readonly present: boolean;
  /** Bus master enable of the function itself. */
  readonly busMaster: boolean;
  /** Every bridge above forwards requests, and no port finds the requester id outside its bus range. */
  readonly pathForwards: boolean;
  /** ACS translation blocking at the first port that checks. */
  readonly translationBlocked: boolean;
  readonly atsCapable: boolean;
  readonly atsEnabled: boolean;
  /** 2^width when PASID is enabled and the path takes prefixes, else 0. */
  readonly pasidLimit: number;
  readonly executeEnabled: boolean;
  readonly privilegedEnabled: boolean;
  /** Windows of peers that a switch reaches without asking the root complex (no P2P request redirect). */
  readonly peers: readonly PeerWindow[] | undefined;
  /** The same for translated requests (direct translated P2P). */
  readonly translatedPeers: readonly PeerWindow[] | undefined;
}

export interface FunctionPortOptions {
  readonly client: DmaClient;
  /** The page request interface of the physical function. */
  readonly pri: PageRequestInterface | undefined;
  /** `pci.ignore-bus-master`, `pci.translated-without-ats`, `pci.bypass-iommu` */
  readonly defects?: ReadonlySet<string>;
  /** Transactions Pending changed. */
  readonly onPending: (pending: boolean) => void;
}

export class FunctionPort implements DmaPort {
  requesterId = 0;
  /** What stands in the requests; differs from `requesterId` only when a test makes the device forge its id. */
  sourceId = 0;
  /** What is under way has to end now: a reset, bus mastering off, the function gone. For what a wrapper holds. */
  onRevoke: (() => void) | undefined;
  /** @internal */
  forgedId: number | undefined;
  heldToken = 0;
  doneBytes = 0;
  costNs = 0;
  readonly translation: TranslationCompletion = {
    page: 0, pages: 1, read: false, write: false, execute: false, privileged: false, global: false, untranslatedOnly: false,
  };
  /** Whom messages and ends of held operations go to. */
  client: DmaClient;
  agent: TranslationAgent | undefined;
  present = false;
  atsCapable = false;
  /** Requests that were refused with Unsupported Request before any agent saw them. */
  refused = 0;
  /** @internal time of the last message on its way here */
  nextArrivalNs = -Infinity;
  /** @internal */
  heldOperations = 0;
  /** @internal the agent's name of what it holds */
  agentHeldToken = 0;
  private fabric: Fabric | undefined;
  private readonly pri: PageRequestInterface | undefined;
  private readonly onPending: (pending: boolean) => void;
  private readonly interruptBytes = new Uint8Array(4);
  private live = false;
  private pathForwards = false;
  private translationBlocked = false;
  private atsEnabled = false;
  private pasidLimit = 0;
  /** Attribute bits that the PASID control register does not allow. */
  private forbidden = 0;
  private peers: readonly PeerWindow[] | undefined;
  private translatedPeers: readonly PeerWindow[] | undefined;
  private nextCompletionNs = -Infinity;
  private readonly ignoreBusMaster: boolean;
  private readonly ignoreAtsEnable: boolean;
  private readonly bypassIommu: boolean;

  constructor(options: FunctionPortOptions) {
    this.client = options.client;
    this.pri = options.pri;
    this.onPending = options.onPending;
    this.ignoreBusMaster = options.defects?.has('pci.ignore-bus-master') ?? false;
    this.ignoreAtsEnable = options.defects?.has('pci.translated-without-ats') ?? false;
    this.bypassIommu = options.defects?.has('pci.bypass-iommu') ?? false;
  }

  get revoked(): boolean {
    return !this.live;
  }

  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const status = this.admit(pasid, attributes);
    if (status !== DMA_DONE) return status;
    const timing = this.fabric!.timing;
    this.costNs = timing.jittered(2 * timing.options.tlpNs);
    return this.transfer(false, page, offset, target, targetOffset, length, pasid, attributes);
  }

  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const status = this.admit(pasid, attributes);
    if (status !== DMA_DONE) return status;
    const timing = this.fabric!.timing;
    this.costNs = timing.jittered(timing.options.tlpNs);
    return this.transfer(true, page, offset, source, sourceOffset, length, pasid, attributes);
  }

  translate(page: number, pasid: number, attributes: number): DmaStatus {
    const status = this.admit(pasid, attributes);
    if (status !== DMA_DONE) return status;
    const agent = this.agent;
    // without ATS in the function, or without anybody who answers translation requests (section 10.2)
    if ((!this.atsEnabled && !this.ignoreAtsEnable) || this.translationBlocked || agent === undefined) return this.refuse();
    const timing = this.fabric!.timing;
    const answer = agent.translationRequest(this.sourceId, pasid, attributes, page);
    this.costNs = timing.jittered(2 * timing.options.tlpNs) + agent.walkAccesses * timing.options.memoryAccessNs;
    if (answer === DMA_DONE) {
      copyCompletion(agent.completion, this.translation);
      if (this.fabric!.watchDma) this.recordTranslation(page, pasid);
    }
    return answer;
  }

  pageRequest(page: number, access: number, last: boolean, prgIndex: number, pasid: number): DmaStatus {
    const status = this.admit(pasid, 0);
    if (status !== DMA_DONE) return status;
    const agent = this.agent;
    if (this.pri === undefined || !this.pri.active || agent === undefined) return this.refuse();
    const { timing, traced } = this.fabric!;
    this.costNs = timing.jittered(timing.options.tlpNs);
    traced?.trace.record(traced.pageRequest, access === 0 ? 0 : traced.trace.shared.open(this.sourceId, prgIndex), this.sourceId, pasid, page, access, last ? 1 : 0, prgIndex);
    agent.pageRequest(this.sourceId, pasid, page, access, last, prgIndex);
    return DMA_DONE;
  }

  messageInterrupt(address: number, data: number): DmaStatus {
    const bytes = this.interruptBytes;
    bytes[0] = data;
    bytes[1] = data >>> 8;
    bytes[2] = data >>> 16;
    bytes[3] = data >>> 24;
    return this.write(Math.floor(address / 4096), address % 4096, bytes, 0, 4, NO_PASID, 0);
  }

  invalidateCompletion(tag: number): void {
    // a message: bus mastering does not gate it, removal does
    if (!this.present) return;
    const { clock, timing, traced } = this.fabric!;
    traced?.trace.record(traced.invalidateCompletion, 0, this.requesterId, tag);
    const agent = this.agent, sourceId = this.sourceId;
    if (agent === undefined) return;
    const arrival = Math.max(clock.now + timing.jittered(timing.options.tlpNs), this.nextCompletionNs);
    this.nextCompletionNs = arrival;
    clock.post(arrival - clock.now, () => agent.invalidateCompletion(sourceId, tag));
  }

  /** @internal the topology plugs the function in */
  connect(fabric: Fabric): void {
    this.fabric = fabric;
  }

  /** @internal something in the configuration of the function or of its path changed */
  setRights(rights: PortRights): void {
    const wasLive = this.live;
    this.present = rights.present;
    this.live = rights.present && (rights.busMaster || this.ignoreBusMaster);
    this.pathForwards = rights.pathForwards;
    this.translationBlocked = rights.translationBlocked;
    this.atsCapable = rights.atsCapable;
    this.atsEnabled = rights.atsEnabled;
    this.pasidLimit = rights.pasidLimit;
    this.forbidden = (rights.executeEnabled ? 0 : ATTR_EXECUTE) | (rights.privilegedEnabled ? 0 : ATTR_PRIVILEGED);
    this.peers = rights.peers;
    this.translatedPeers = rights.translatedPeers;
    if (wasLive && !this.live) this.abandon();
  }

  /** @internal ends held operations without revoking the port (a reset) */
  abandon(): void {
    this.fabric?.revoke(this);
    this.onRevoke?.();
  }

  /** @internal */
  noteHeld(): void {
    this.onPending(this.heldOperations > 0);
  }

  /** @internal the agent lets a held operation try again from the page at which it stopped */
  retry(operation: HeldOperation): DmaStatus {
    this.costNs = 0;
    if (!this.live) return DMA_REVOKED;
    const status = this.move(
      operation.write, operation.page, operation.offset, operation.buffer, operation.bufferOffset, operation.length,
      operation.pasid, operation.attributes,
    );
    this.advance(operation);
    return status;
  }

  private advance(operation: HeldOperation): void {
    const byte = operation.offset + this.doneBytes;
    operation.page += Math.floor(byte / 4096);
    operation.offset = byte % 4096;
    operation.bufferOffset += this.doneBytes;
    operation.length -= this.doneBytes;
  }

  /** What is decided before anybody looks at the address. */
  private admit(pasid: number, attributes: number): DmaStatus {
    this.doneBytes = 0;
    this.costNs = 0;
    if (!this.live) return DMA_REVOKED;
    if (!this.pathForwards) return this.refuse();
    if (pasid !== NO_PASID) {
      // a prefix that is not enabled, or that a port of the path does not support, makes the TLP malformed (section 2.2.10)
      if (pasid < 0 || pasid >= this.pasidLimit || (attributes & this.forbidden) !== 0) return this.refuse();
    }
    if ((attributes & ATTR_TRANSLATED) !== 0 && ((!this.atsEnabled && !this.ignoreAtsEnable) || this.translationBlocked)) return this.refuse();
    return DMA_DONE;
  }

  private refuse(): DmaStatus {
    const timing = this.fabric!.timing;
    this.refused++;
    this.costNs = timing.options.tlpNs;
    return DMA_UR;
  }

  private transfer(write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const status = this.move(write, page, offset, buffer, bufferOffset, length, pasid, attributes);
    if (status === DMA_HELD) {
      const done = this.doneBytes, byte = offset + done;
      // the 4 bytes of an interrupt are the port's own and will be used again
      const kept = buffer === this.interruptBytes ? buffer.slice() : buffer;
      this.heldToken = this.fabric!.hold(
        this, this.agentHeldToken, write, page + Math.floor(byte / 4096), byte % 4096, kept, bufferOffset + done, length - done, pasid, attributes,
      );
    }
    return status;
  }

  /** Adds to `costNs`, sets `doneBytes`; DMA_HELD leaves the agent's token in `agentHeldToken`. */
  private move(write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const fabric = this.fabric!;
    const agent = this.agent, source = this.sourceId, watch = fabric.watchDma;
    const peers = (attributes & ATTR_TRANSLATED) === 0 ? this.peers : this.translatedPeers;
    let status: DmaStatus = DMA_DONE;
    let walks = 0, left = length, moved = 0;
    // pages that are neighbours in physical memory move together
    let runStart = 0, runBytes = 0;
    while (left > 0) {
      const chunk = 4096 - offset < left ? 4096 - offset : left;
      let physical = page;
      const peer = peers === undefined ? undefined : peerAt(peers, page);
      if (peer !== undefined && peer.blocked) {
        status = DMA_UR;
        break;
      }
      if (peer === undefined && agent !== undefined && !this.bypassIommu) {
        status = agent.translate(source, pasid, attributes, page, write);
        walks += agent.walkAccesses;
        if (status !== DMA_DONE) break;
        physical = agent.page;
      }
      const address = physical * 4096 + offset;
      if (runBytes > 0 && (address !== runStart + runBytes || watch)) {
        status = this.copy(write, runStart, buffer, bufferOffset + moved, runBytes);
        if (status !== DMA_DONE) {
          runBytes = 0;
          break;
        }
        moved += runBytes;
        runBytes = 0;
      }
      if (runBytes === 0) runStart = address;
      runBytes += chunk;
      if (watch) this.recordDma(pasid, page, physical, chunk, write, attributes);
      left -= chunk;
      offset = 0;
      page++;
    }
    if (status === DMA_HELD) this.agentHeldToken = agent!.heldToken;
    if (runBytes > 0) {
      const last = this.copy(write, runStart, buffer, bufferOffset + moved, runBytes);
      if (last === DMA_DONE) moved += runBytes;
      else if (status === DMA_DONE) status = last;
    }
    const timing = fabric.timing;
    this.doneBytes = moved;
    this.costNs += walks * timing.options.memoryAccessNs + timing.copyNs(moved);
    return status;
  }

  /** A completion that says that there is no translation gives none. */
  private recordTranslation(page: number, pasid: number): void {
    const traced = this.fabric!.traced;
    const { page: physical, pages, read, write } = this.translation;
    if (read || write) traced?.trace.record(traced.translation, 0, this.sourceId, pasid, page, physical, pages, read ? 1 : 0, write ? 1 : 0);
  }

  private recordDma(pasid: number, page: number, physical: number, bytes: number, write: boolean, attributes: number): void {
    const traced = this.fabric!.traced;
    traced?.trace.record(traced.dma, 0, this.sourceId, pasid, page, physical, bytes, write ? 1 : 0, (attributes & ATTR_TRANSLATED) === 0 ? 0 : 1);
  }

  /** Moves bytes between the buffer and physical addresses that need no translation. */
  private copy(write: boolean, address: number, buffer: Uint8Array, bufferOffset: number, length: number): DmaStatus {
    const fabric = this.fabric!;
    if (address >= fabric.interruptEnd || address + length <= fabric.interruptStart) {
      const done = write
        ? fabric.memory.write(address, buffer, bufferOffset, length)
        : fabric.memory.read(address, buffer, bufferOffset, length);
      if (done) return DMA_DONE;
    }
    return this.copyElsewhere(write, address, buffer, bufferOffset, length);
  }

  /** A message on its way to the processors, which the agent may remap or drop. */
  private interrupt(address: number, data: number): DmaStatus {
    const { agent, sourceId } = this, { interrupts, timing } = this.fabric!;
    if (agent?.remapInterrupt === undefined || this.bypassIommu) {
      interrupts.message(address, data, sourceId);
      return DMA_DONE;
    }
    const status = agent.remapInterrupt(sourceId, address, data);
    this.costNs += agent.walkAccesses * timing.options.memoryAccessNs;
    if (status === DMA_DONE) interrupts.message(agent.messageAddress!, agent.messageData!, sourceId);
    return status;
  }

  /** An interrupt, a register window, or a run that is only partly memory: page by page. */
  private copyElsewhere(write: boolean, address: number, buffer: Uint8Array, bufferOffset: number, length: number): DmaStatus {
    const fabric = this.fabric!;
    while (length > 0) {
      const chunk = Math.min(4096 - (address % 4096), length);
      if (address < fabric.interruptEnd && address + chunk > fabric.interruptStart) {
        // only aligned 4-byte writes are messages; anything else there is refused by the root complex
        if (!write || chunk !== 4 || length !== 4 || address % 4 !== 0) return DMA_UR;
        const data = buffer[bufferOffset]! | (buffer[bufferOffset + 1]! << 8) | (buffer[bufferOffset + 2]! << 16) | (buffer[bufferOffset + 3]! << 24);
        return this.interrupt(address, data >>> 0);
      }
      const done = write
        ? fabric.memory.write(address, buffer, bufferOffset, chunk)
        : fabric.memory.read(address, buffer, bufferOffset, chunk);
      if (!done) {
        const window = fabric.bus.find(address);
        if (window === undefined || address + chunk > window.end) return DMA_UR;
        moveThroughMmio(write, window.mmio, address - window.start, buffer, bufferOffset, chunk);
      }
      address += chunk;
      bufferOffset += chunk;
      length -= chunk;
    }
    return DMA_DONE;
  }
}

function peerAt(peers: readonly PeerWindow[], page: number): PeerWindow | undefined {
  for (let i = 0; i < peers.length; i++) if (page >= peers[i]!.startPage && page < peers[i]!.endPage) return peers[i];
  return undefined;
}
