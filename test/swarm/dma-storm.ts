/**
 * Devices that access whatever address they like, with whatever PASID, through the IOMMU or with translations they hold. Every access is judged by
 * what the calls of test/swarm/dma-swarm.ts have noted in `Space`s.
 */
import type { Random } from '../../sim/random.js';
import { Atc, ATC_READ, ATC_WRITE } from '../../host/pci/hardware/atc.js';
import { ATTR_NO_WRITE, ATTR_TRANSLATED, DMA_DONE, NO_PASID, type DmaPort } from '../../host/pci/dma-port.js';
import { MOVING, READ, SLOTS, WINDOW, WRITE, type Contents, type Space } from './dma-oracle.js';
import { AUX_PARENT } from './machine.js';

/** What is counted. */
export const COUNTS = [
  'dmas', 'reads', 'writes', 'translated', 'translations', 'refused', 'moving', 'moved', 'wrongPasids', 'outside', 'crossing', 'superpages',
  'maps', 'unmaps', 'attaches', 'detaches', 'binds', 'unbinds', 'renewed', 'refusedCalls', 'sweeps',
] as const;
export type Count = (typeof COUNTS)[number];

/** What a function does DMA with. */
export class SwarmDevice {
  readonly bdf: string;
  readonly port: DmaPort;
  readonly atc = new Atc({ entries: 256 });
  /** Whose memory requests without PASID reach; undefined: nobody's. */
  space: Space | undefined;
  /** The space is changing. */
  moving = false;
  /** Another one that may be reached while it is. */
  alternative: Space | undefined;
  readonly byPasid = new Map<number, Space>();
  /** A PASID that nobody has been told of yet may reach it. */
  arriving: Space | undefined;
  /** PASIDs that end now. */
  readonly leaving = new Set<number>();

  constructor(bdf: string, port: DmaPort) {
    this.bdf = bdf;
    this.port = port;
  }
}

export interface DmaStormOptions {
  readonly random: Random;
  readonly devices: readonly SwarmDevice[];
  /** What containers map. */
  readonly spaces: readonly Space[];
  readonly contents: Contents;
  readonly counts: Record<Count, number>;
  readonly violate: (text: string) => void;
  readonly readOnly: boolean;
}

export class DmaStorm {
  /** What a call is changing, or has changed last: most interesting for devices. */
  hot: { readonly space: Space; readonly page: number; readonly pages: number } | undefined;
  private readonly storms: Random;
  private readonly devices: readonly SwarmDevice[];
  private readonly spaces: readonly Space[];
  private readonly contents: Contents;
  private readonly counts: Record<Count, number>;
  private readonly violate: (text: string) => void;
  private readonly readOnly: boolean;
  private readonly buffer = new Uint8Array(8192);
  private readonly view = new DataView(this.buffer.buffer);

  constructor(options: DmaStormOptions) {
    this.storms = options.random;
    this.devices = options.devices;
    this.spaces = options.spaces;
    this.contents = options.contents;
    this.counts = options.counts;
    this.violate = options.violate;
    this.readOnly = options.readOnly;
  }

  /** One access by somebody to somewhere. */
  dma(): void {
    const { storms, counts } = this;
    counts.dmas++;
    const { hot } = this;
    if (hot !== undefined && storms.chance(0.4) && this.hotAccess(hot.space, hot.page + storms.below(hot.pages))) return;
    const device = storms.chance(0.35) ? this.devices.find(({ bdf }) => bdf === AUX_PARENT)! : storms.pick(this.devices);
    const pasid = this.choosePasid(device);
    const right = this.spaceOf(device, pasid);
    const page = this.choosePage(right ?? device.space ?? storms.pick(this.spaces));
    const slot = storms.below(SLOTS.length);
    const write = !this.readOnly && storms.chance(0.4);
    if (storms.chance(0.06)) return this.crossing(device, pasid, page);
    if (storms.chance(0.4)) this.translatedAccess(device, pasid, page, slot, write);
    else this.access(device, pasid, page, slot, write, page, pasid, 0);
  }

  /** Somebody who may reach what is changing accesses it; false when nobody may. */
  private hotAccess(space: Space, page: number): boolean {
    const { storms } = this;
    const device = storms.pick(this.devices);
    let pasid: number | undefined;
    if (device.space === space || device.alternative === space) pasid = NO_PASID;
    for (const [tag, other] of device.byPasid) if (other === space) pasid = tag;
    if (pasid === undefined) return false;
    const slot = storms.below(SLOTS.length), write = !this.readOnly && storms.chance(0.4);
    if (storms.chance(0.5)) this.translatedAccess(device, pasid, page, slot, write);
    else this.access(device, pasid, page, slot, write, page, pasid, 0);
    return true;
  }

  private choosePasid(device: SwarmDevice): number {
    const { storms } = this;
    if (storms.chance(0.12)) {
      this.counts.wrongPasids++;
      return storms.chance(0.5) ? storms.below(12) : storms.chance(0.5) ? storms.below(2 ** 20) : NO_PASID;
    }
    if (device.byPasid.size === 0 || storms.chance(0.1)) return NO_PASID;
    let at = storms.below(device.byPasid.size);
    for (const pasid of device.byPasid.keys()) if (at-- === 0) return pasid;
    return NO_PASID;
  }

  private choosePage({ base, mapped }: Space): number {
    const { storms } = this;
    if (mapped.length > 0 && storms.chance(0.75)) {
      const { page, pages } = storms.pick(mapped);
      // inside, and sometimes at the edges: the last page, the one before the first, the one behind the last
      return storms.chance(0.8) ? page + storms.below(pages) : storms.pick([page, page + pages - 1, Math.max(0, page - 1), page + pages]);
    }
    if (storms.chance(0.7)) return base + storms.below(WINDOW);
    this.counts.outside++;
    return storms.pick([0, 1, 0x100, 0x4000, 0xfedff, 0xfef00, 0x7_ffff, 2 ** 27 - 1, 2 ** 27, 2 ** 35, 2 ** 36 - 1, 2 ** 36, 2 ** 45, 2 ** 52 - 1]);
  }

  /** Whose memory a request reaches; undefined: nobody's. */
  private spaceOf(device: SwarmDevice, pasid: number): Space | undefined {
    return pasid === NO_PASID ? device.space : device.byPasid.get(pasid);
  }

  /** The space itself is coming or going. */
  private isMoving(device: SwarmDevice, pasid: number, space: Space | undefined): boolean {
    return pasid === NO_PASID ? device.moving : space === undefined ? device.arriving !== undefined : device.leaving.has(pasid);
  }

  /** What the device itself keeps: it asks for a translation when it has none, and uses it for requests that nobody checks. */
  private translatedAccess(device: SwarmDevice, pasid: number, page: number, slot: number, write: boolean): void {
    const { atc, port } = device;
    let entry = atc.lookup(page, pasid, false);
    if (entry < 0 || (atc.flagsAt(entry) & (write ? ATC_WRITE : ATC_READ)) === 0) {
      this.counts.translations++;
      const status = port.translate(page, pasid, write ? 0 : ATTR_NO_WRITE);
      const { translation } = port;
      const rights = status === DMA_DONE ? (translation.read ? READ : 0) | (translation.write ? WRITE : 0) : 0;
      this.judgeRights(device, pasid, page, rights);
      if (rights === 0) return;
      if (translation.pages > 1) this.counts.superpages++;
      atc.insert(page, pasid, false, translation);
      entry = atc.lookup(page, pasid, false);
      if ((rights & (write ? WRITE : READ)) === 0) return;
    }
    this.counts.translated++;
    this.access(device, pasid, page, slot, write, atc.pageAt(entry, page), NO_PASID, ATTR_TRANSLATED);
  }

  private judgeRights(device: SwarmDevice, pasid: number, page: number, rights: number): void {
    const space = this.spaceOf(device, pasid);
    const may = this.mayReach(device, pasid, space, page);
    // a translation for reading may say that it is for writing as well, never more than the mapping
    if ((rights & ~may) !== 0) this.violate(`${this.who(device, pasid, page)} was given a translation with rights ${rights}, of which it has ${may}`);
  }

  /** Rights that an access may have now, whatever call is under way. */
  private mayReach(device: SwarmDevice, pasid: number, space: Space | undefined, page: number): number {
    let may = (space?.flagsOf(page) ?? 0) & (READ | WRITE);
    const other = pasid === NO_PASID ? device.alternative : space === undefined ? device.arriving : undefined;
    if (other !== undefined) may |= other.flagsOf(page) & (READ | WRITE);
    return may;
  }

  /** @param at @param tag @param attributes what stands in the request; the first arguments say what it is meant for */
  private access(device: SwarmDevice, pasid: number, page: number, slot: number, write: boolean, at: number, tag: number, attributes: number): void {
    const { counts, contents, view, buffer } = this;
    const needed = write ? WRITE : READ;
    const space = this.spaceOf(device, pasid);
    const flags = space?.flagsOf(page) ?? 0;
    const may = this.mayReach(device, pasid, space, page);
    const moving = (flags & MOVING) !== 0 || this.isMoving(device, pasid, space);
    const reached = (flags & needed) !== 0 ? space! : pasid === NO_PASID ? device.alternative : device.arriving;
    const word = write ? contents.fresh(reached?.owner ?? 0) : 0;
    if (write) view.setUint32(0, word, true);
    const status = write ? device.port.write(at, SLOTS[slot]!, buffer, 0, 4, tag, attributes) : device.port.read(at, SLOTS[slot]!, buffer, 0, 4, tag, attributes);
    if (moving) counts.moving++;
    if (status !== DMA_DONE) {
      counts.refused++;
      if (!moving && (flags & needed) !== 0) this.violate(`${this.who(device, pasid, page)} was refused to ${write ? 'write' : 'read'} what is mapped there`);
      return;
    }
    if (moving) counts.moved++;
    if ((may & needed) === 0 || reached === undefined) return this.violate(`${this.who(device, pasid, page)} ${write ? 'wrote to' : 'read'} what is not mapped there`);
    const frame = reached.frames[page - reached.base]!;
    const exchanged = reached.process && (reached.flagsOf(page) & MOVING) !== 0;
    if (write) {
      counts.writes++;
      // which of two frames has got it, the look at the new one will tell
      if (!exchanged) contents.set(frame, slot, word);
    } else {
      counts.reads++;
      const found = view.getUint32(0, true);
      if (exchanged) return;
      if (found !== contents.get(frame, slot) || found >>> 24 !== reached.owner) this.violate(`${this.who(device, pasid, page)} read ${found.toString(16)} of owner ${found >>> 24}; ${reached.name} has ${contents.get(frame, slot).toString(16)} there`);
    }
  }

  /** A read over a page's end: what is mapped before the first hole is moved, nothing behind it. */
  private crossing(device: SwarmDevice, pasid: number, page: number): void {
    const { storms, counts, view } = this;
    counts.crossing++;
    const pages = storms.between(2, 3), length = pages * 4096 - 8192 + 4096;
    const status = device.port.read(page, 4092, this.buffer, 0, length > 8192 ? 8192 : length, pasid, 0);
    const space = this.spaceOf(device, pasid);
    const reached = Math.ceil((4092 + device.port.doneBytes) / 4096);
    for (let at = page; device.port.doneBytes > 0 && at < page + reached; at++) {
      if ((this.mayReach(device, pasid, space, at) & READ) === 0) this.violate(`${this.who(device, pasid, at)} read across the end of what is mapped`);
    }
    if (status === DMA_DONE && space !== undefined && !space.process && !this.isMoving(device, pasid, space) && (space.flagsOf(page) & MOVING) === 0) {
      const found = view.getUint32(0, true);
      if (found !== this.contents.get(space.frames[page - space.base]!, 3)) this.violate(`${this.who(device, pasid, page)} read ${found.toString(16)} of owner ${found >>> 24} before the end of a page`);
    }
  }

  private who({ bdf }: SwarmDevice, pasid: number, page: number): string {
    return `${bdf}${pasid === NO_PASID ? '' : ` with PASID ${pasid}`} at page 0x${page.toString(16)}`;
  }
}
