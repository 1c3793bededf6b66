/** What each process did with each of its handles, counted while a run goes on. */
import { latencyOf, type FlowSummary } from '../summary.js';

/** A descriptor that ended, as its device reported it. */
export interface DescriptorEnd {
  readonly bytes: number;
  readonly pageRequests: number;
  readonly responses: { readonly success: number; readonly invalid: number; readonly failure: number };
  readonly latencyNs: number;
}

export class Flow {
  /** Null for a process of the host. */
  readonly guest: string | null;
  readonly process: string;
  readonly handle: string;
  readonly device: string;
  descriptors = 0;
  bytes = 0;
  pageRequests = 0;
  success = 0;
  invalid = 0;
  failure = 0;
  unrecoverable = 0;
  reason = '';
  private readonly latencies: number[] = [];

  constructor(guest: string | null, process: string, handle: string, device: string) {
    this.guest = guest;
    this.process = process;
    this.handle = handle;
    this.device = device;
  }

  get name(): string {
    return this.guest === null ? `${this.process}/${this.handle}` : `${this.guest}/${this.process}/${this.handle}`;
  }

  ended(descriptor: DescriptorEnd): void {
    this.descriptors++;
    this.bytes += descriptor.bytes;
    this.pageRequests += descriptor.pageRequests;
    this.success += descriptor.responses.success;
    this.invalid += descriptor.responses.invalid;
    this.failure += descriptor.responses.failure;
    this.latencies.push(descriptor.latencyNs);
  }

  /** Keeps the first reason. */
  fail(reason: string): void {
    if (this.reason === '') this.reason = reason;
  }

  summary(): FlowSummary {
    return {
      name: this.name, guest: this.guest, process: this.process, device: this.device,
      status: this.reason === '' ? 'ok' : 'failed', reason: this.reason,
      descriptors: this.descriptors, bytes: this.bytes, pageRequests: this.pageRequests,
      responses: { success: this.success, invalid: this.invalid, failure: this.failure },
      unrecoverable: this.unrecoverable, latencyNs: latencyOf(this.latencies),
    };
  }
}

/** Flows in order of their first use. A process that opens the same handle name again goes on with its flow. */
export class Flows {
  private readonly byName = new Map<string, Flow>();

  open(guest: string | null, process: string, handle: string, device: string): Flow {
    const flow = new Flow(guest, process, handle, device);
    const known = this.byName.get(flow.name);
    if (known !== undefined) return known;
    this.byName.set(flow.name, flow);
    return flow;
  }

  [Symbol.iterator](): IterableIterator<Flow> {
    return this.byName.values();
  }
}
