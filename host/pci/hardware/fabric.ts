/**
 * The fabric between functions and the root complex: which function has which requester id, which agent translates
 * for it, and the way back from agents to functions. Messages to one function arrive in the order in which they
 * were sent (posted requests and completions do not pass posted requests: PCIe 6.0 section 2.4.1), each after the
 * time of a TLP, as an event of its own.
 */
import { assert } from '../../../sim/assert.js';
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Trace } from '../../../sim/trace.js';
import type { InterruptSink } from '../../interrupts.js';
import type { SystemBus } from '../../system-bus.js';
import type { Timing } from '../../timing.js';
import { DMA_HELD, DMA_REVOKED, type DmaStatus, type FunctionRouter, type TranslationAgent } from '../dma-port.js';
import { declareFabricTrace, type FabricTrace } from './fabric-trace.js';
import type { FunctionPort } from './function-port.js';

export interface FabricOptions {
  readonly clock: Clock;
  readonly timing: Timing;
  readonly memory: PhysicalMemory;
  readonly bus: SystemBus;
  readonly interrupts: InterruptSink;
  /** Physical addresses whose 4-byte writes are interrupts; X86_INTERRUPT_WINDOW on x86, none without. */
  readonly interruptWindow?: { readonly start: number; readonly end: number };
  readonly trace?: Trace;
}

/** A requester id, or a rule over them. */
export type AgentScope = number | ((requesterId: number) => boolean);

/** A transaction that an agent suspended. */
export interface HeldOperation {
  /** The function's name for it. */
  readonly token: number;
  readonly port: FunctionPort;
  readonly write: boolean;
  page: number;
  offset: number;
  readonly buffer: Uint8Array;
  bufferOffset: number;
  length: number;
  readonly pasid: number;
  readonly attributes: number;
  ended: boolean;
}

export class Fabric implements FunctionRouter {
  readonly clock: Clock;
  readonly timing: Timing;
  readonly memory: PhysicalMemory;
  readonly bus: SystemBus;
  readonly interrupts: InterruptSink;
  readonly interruptStart: number;
  readonly interruptEnd: number;
  readonly traced: FabricTrace | undefined;
  /** Checkers switch it on: every page that moves leaves a `pci:dma` record. */
  watchDma = false;
  private readonly ports = new Map<number, FunctionPort>();
  private readonly scopes: { readonly scope: AgentScope; readonly agent: TranslationAgent | undefined }[] = [];
  /** Held operations by the agent's token; tokens of all agents of one fabric differ. */
  private readonly held = new Map<number, HeldOperation>();
  private nextToken = 1;

  constructor(options: FabricOptions) {
    this.clock = options.clock;
    this.timing = options.timing;
    this.memory = options.memory;
    this.bus = options.bus;
    this.interrupts = options.interrupts;
    this.interruptStart = options.interruptWindow?.start ?? 0;
    this.interruptEnd = options.interruptWindow?.end ?? 0;
    this.traced = options.trace === undefined ? undefined : declareFabricTrace(options.trace);
  }

  /** From now on `agent` translates for these functions (undefined: nobody does); the latest matching rule wins. */
  setAgent(scope: AgentScope, agent: TranslationAgent | undefined): void {
    this.scopes.push({ scope, agent });
    for (const [id, port] of this.ports) port.agent = this.agentOf(id);
  }

  agentOf(requesterId: number): TranslationAgent | undefined {
    for (let i = this.scopes.length - 1; i >= 0; i--) {
      const { scope, agent } = this.scopes[i]!;
      if (typeof scope === 'number' ? scope === requesterId : scope(requesterId)) return agent;
    }
    return undefined;
  }

  /** Makes a function reachable under its requester id; false when another one answers to that id. */
  register(port: FunctionPort): boolean {
    if (this.ports.has(port.requesterId)) return this.ports.get(port.requesterId) === port;
    this.ports.set(port.requesterId, port);
    port.agent = this.agentOf(port.requesterId);
    return true;
  }

  unregister(port: FunctionPort): void {
    if (this.ports.get(port.requesterId) === port) this.ports.delete(port.requesterId);
  }

  portOf(requesterId: number): FunctionPort | undefined {
    return this.ports.get(requesterId);
  }

  invalidate(sourceId: number, tag: number, page: number, pages: number, pasid: number, global: boolean): boolean {
    const port = this.ports.get(sourceId);
    if (port === undefined || !port.present || !port.atsCapable) return false;
    this.deliver(port, () => {
      if (!port.present) return;
      const traced = this.traced;
      traced?.trace.record(traced.invalidate, 0, sourceId, pasid, page, Number.isFinite(pages) ? pages : -1, tag, global ? 1 : 0);
      port.client.invalidate(tag, page, pages, pasid, global);
    });
    return true;
  }

  pageResponse(sourceId: number, prgIndex: number, code: number, pasid: number): boolean {
    const port = this.ports.get(sourceId);
    if (port === undefined || !port.present) return false;
    this.deliver(port, () => {
      if (!port.present) return;
      const traced = this.traced;
      traced?.trace.record(traced.pageResponse, traced.trace.shared.close(sourceId, prgIndex), sourceId, pasid, prgIndex, code);
      port.client.pageResponse(prgIndex, code, pasid);
    });
    return true;
  }

  releaseHeld(token: number, action: 'retry' | DmaStatus): void {
    const operation = this.held.get(token);
    // the function may be gone: the agent's late answer finds nothing
    if (operation === undefined) return;
    this.held.delete(token);
    this.deliver(operation.port, () => this.finish(operation, action));
  }

  /** Operations that agents hold now. */
  get heldCount(): number {
    return this.held.size;
  }

  /** @internal a port hands over an operation that `agentToken` holds; returns the token for the function */
  hold(port: FunctionPort, agentToken: number, write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number): number {
    const token = this.nextToken++;
    this.keep(agentToken, { token, port, write, page, offset, buffer, bufferOffset, length, pasid, attributes, ended: false });
    port.heldOperations++;
    port.noteHeld();
    return token;
  }

  /** @internal ends everything that is held for `port` */
  revoke(port: FunctionPort): void {
    for (const [agentToken, operation] of this.held) {
      if (operation.port !== port) continue;
      this.held.delete(agentToken);
      this.end(operation, DMA_REVOKED, 0);
    }
  }

  /** @internal runs `run` when a message sent now arrives at the function, behind all earlier ones */
  deliver(port: FunctionPort, run: () => void): void {
    const now = this.clock.now;
    const arrival = Math.max(now + this.timing.jittered(this.timing.options.tlpNs), port.nextArrivalNs);
    port.nextArrivalNs = arrival;
    this.clock.post(arrival - now, run);
  }

  private keep(agentToken: number, operation: HeldOperation): void {
    assert(!this.held.has(agentToken), `two agents hold operations under token ${agentToken}`);
    this.held.set(agentToken, operation);
  }

  private finish(operation: HeldOperation, action: 'retry' | DmaStatus): void {
    const port = operation.port;
    if (operation.ended) return;
    if (action !== 'retry') {
      this.end(operation, action, 0);
      return;
    }
    const status = port.retry(operation);
    if (status === DMA_HELD) this.keep(port.agentHeldToken, operation);
    else this.end(operation, status, port.costNs);
  }

  private end(operation: HeldOperation, status: DmaStatus, delayNs: number): void {
    const port = operation.port;
    operation.ended = true;
    port.heldOperations--;
    port.noteHeld();
    this.clock.post(delayNs, () => port.client.heldDone(operation.token, status));
  }
}
