/**
 * What stands in a slot of a bus: an endpoint function or a bridge. And the bus itself, whose number is the host
 * bridge's or what software programmed into the bridge above (PCIe 6.0 section 7.3).
 */
import { assert } from '../../../sim/assert.js';
import { PCI_HEADER_TYPE, PCI_HEADER_TYPE_MFD } from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

/** `windows`: what the function itself decodes; `tree`: anything else, numbers, routes, who exists. */
export type RoutingChange = 'windows' | 'tree';

export abstract class PciNode {
  readonly name: string;
  abstract readonly config: ConfigSpace;
  /** device << 3 | function; undefined outside a bus. */
  devfn = -1;
  bus: PciBus | undefined;
  /** Set by the topology: something changed that decides about routes, windows or rights. */
  onRoutingChange: ((change: RoutingChange) => void) | undefined;

  constructor(name: string) {
    this.name = name;
  }

  get present(): boolean {
    return this.bus !== undefined;
  }
}

export class PciBus {
  readonly nodes = new Map<number, PciNode>();
  /** The bridge above; undefined on a root bus. */
  readonly bridge: PciNode | undefined;
  private readonly currentNumber: () => number;

  constructor(currentNumber: () => number, bridge?: PciNode) {
    this.currentNumber = currentNumber;
    this.bridge = bridge;
  }

  /** 0 behind a bridge that software has not programmed. */
  get number(): number {
    return this.currentNumber();
  }

  /** @internal the topology plugs a node in and recomputes */
  insert(node: PciNode, devfn: number): void {
    assert(node.bus === undefined, `${node.name} is plugged in already`);
    assert(devfn >= 0 && devfn < 256 && !this.nodes.has(devfn), `slot ${devfn} of ${node.name} is taken or does not exist`);
    this.nodes.set(devfn, node);
    node.bus = this;
    node.devfn = devfn;
    this.markMultifunction(devfn >> 3);
  }

  /** @internal */
  remove(node: PciNode): void {
    assert(this.nodes.get(node.devfn) === node, `${node.name} is not on this bus`);
    this.nodes.delete(node.devfn);
    node.bus = undefined;
  }

  /** Function 0 tells software whether to look for others. */
  private markMultifunction(device: number): void {
    const functions = [...this.nodes.values()].filter((node) => node.devfn >> 3 === device);
    for (const node of functions) node.config.setBits(PCI_HEADER_TYPE, 1, PCI_HEADER_TYPE_MFD, functions.length > 1);
  }
}
