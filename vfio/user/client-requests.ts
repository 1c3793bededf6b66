/**
 * Messages from the server to its client, DMA_READ and DMA_WRITE, and the replies to them. Nobody waits: a reply that
 * arrives, an error, or the end of the connection calls back. What the client says in a reply is checked against what
 * was asked. QEMU before 11 has the data four bytes earlier than the text (its structure has a count of 32 bits and says
 * that it is 32 bytes long: hw/vfio-user/protocol.h VFIOUserDMARW, pci.c vfio_user_dma_read, vfio_user_dma_write); which of
 * the two a client means shows in its first answers. At most `MAX_IN_FLIGHT` are under way; others queue here, and fail at once when there are too many: a client
 * that does not answer must not fill this process.
 */
import { hex } from '../../sim/address.js';
import { ERRNO, Errno, type ErrnoName } from '../../sim/errno.js';
import { load32 } from '../../sim/little-endian.js';
import {
  DMA_ACCESS_SIZE, DMA_WRITE_REPLY_MIN_SIZE, HEADER_SIZE, load64, newMessage, store64, TYPE_COMMAND, VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE, type Message,
} from './protocol/index.js';

const MAX_IN_FLIGHT = 256;
const MAX_WAITING = 4096;
const NAMES = new Map<number, ErrnoName>(Object.entries(ERRNO).map(([name, number]) => [number, name as ErrnoName]));

/** Called once: undefined when the bytes have moved. */
export type RequestDone = (error: Errno | undefined) => void;

/** Where the data are: behind a count of 64 bits as the protocol's text says, or behind one of 32; messages are equally long. */
type Layout = 'text' | 'short';

/** Bytes between header and data in a short layout. */
const SHORT_ACCESS_SIZE = 12;

interface Request {
  /** That it was sent in. */
  layout: Layout;
  readonly command: typeof VFIO_USER_DMA_READ | typeof VFIO_USER_DMA_WRITE;
  readonly address: number;
  /** Where what is read goes, or what is written. */
  readonly bytes: Uint8Array;
  readonly done: RequestDone;
}

export class ClientRequests {
  /** Replies that nobody waits for, or that do not fit what was asked. */
  unexpected = 0;
  private readonly send: (bytes: Uint8Array) => void;
  private readonly inFlight = new Map<number, Request>();
  private waiting: Request[] = [];
  private nextId = 0;
  private over = false;
  private layout: Layout | 'unknown' = 'text';
  /** The write under way whose answer tells the layout; nothing else is sent meanwhile. */
  private probe: Request | undefined;

  /** @param send takes a whole message */
  constructor(send: (bytes: Uint8Array) => void) {
    this.send = send;
  }

  /** The client may be one of those that put data elsewhere. */
  doubtLayout(): void {
    this.layout = 'unknown';
  }

  get pending(): number {
    return this.inFlight.size + this.waiting.length;
  }

  /** One message. `bytes` is filled before `done`. ECONNRESET without a client, ENOMEM too many wait, EIO and the client's own errors. */
  read(address: number, bytes: Uint8Array, done: RequestDone): void {
    this.request({ layout: 'text', command: VFIO_USER_DMA_READ, address, bytes, done });
  }

  /** One message, or two while the layout is not known; `bytes` must not change before `done`. */
  write(address: number, bytes: Uint8Array, done: RequestDone): void {
    // zeros at the start tell nothing, and are the same in either layout: what follows them goes alone
    const zeros = this.layout === 'unknown' ? bytes.findIndex((byte) => byte !== 0) : -1;
    if (zeros > 0) this.write(address, bytes.subarray(0, zeros), (error) => (error === undefined ? this.write(address + zeros, bytes.subarray(zeros), done) : done(error)));
    else this.request({ layout: 'text', command: VFIO_USER_DMA_WRITE, address, bytes, done });
  }

  /** A reply has arrived. */
  reply({ header, payload }: Message): void {
    const request = this.inFlight.get(header.id);
    if (request === undefined || request.command !== header.command) {
      this.unexpected++;
      return;
    }
    this.inFlight.delete(header.id);
    if (request === this.probe) {
      this.probe = undefined;
      // a count with the first bytes as its upper half: who takes the text at its word finds it too large. What was
      // read before may have told the layout meanwhile
      if (this.layout === 'unknown') this.layout = header.error && header.errno === ERRNO.E2BIG ? 'text' : 'short';
      if (this.layout === 'text') {
        this.start(request);
        this.startWaiting();
        return;
      }
    }
    const error = header.error ? errnoOf(header.errno, request) : this.complete(request, payload);
    this.startWaiting();
    request.done(error);
  }

  /** The connection is over: everything that waits fails. */
  end(): void {
    this.over = true;
    const all = [...this.inFlight.values(), ...this.waiting];
    this.inFlight.clear();
    this.waiting = [];
    for (const request of all) request.done(gone(request));
  }

  private request(request: Request): void {
    if (this.over) request.done(gone(request));
    else if (this.inFlight.size < MAX_IN_FLIGHT && this.probe === undefined) this.start(request);
    else if (this.waiting.length < MAX_WAITING) this.waiting.push(request);
    else request.done(new Errno('ENOMEM', `${MAX_IN_FLIGHT + MAX_WAITING} messages wait for the client's answers`));
  }

  private start(request: Request): void {
    while (this.inFlight.has(this.nextId)) this.nextId = (this.nextId + 1) & 0xffff;
    const id = this.nextId;
    this.nextId = (id + 1) & 0xffff;
    this.inFlight.set(id, request);
    const { command, address, bytes } = request;
    const write = command === VFIO_USER_DMA_WRITE;
    if (this.layout === 'unknown' && write && (bytes[0] ?? 0) !== 0) this.probe = request;
    request.layout = this.layout === 'short' || request === this.probe ? 'short' : 'text';
    const message = newMessage(id, command, TYPE_COMMAND, DMA_ACCESS_SIZE + (write ? bytes.length : 0));
    store64(message, HEADER_SIZE, address);
    store64(message, HEADER_SIZE + 8, bytes.length);
    if (write) message.set(bytes, HEADER_SIZE + (request.layout === 'short' ? SHORT_ACCESS_SIZE : DMA_ACCESS_SIZE));
    this.send(message);
  }

  /** After one answer: as many as may be under way. */
  private startWaiting(): void {
    while (this.waiting.length > 0 && this.inFlight.size < MAX_IN_FLIGHT && this.probe === undefined) this.start(this.waiting.shift()!);
  }

  private complete(request: Request, payload: Uint8Array): Errno | undefined {
    const { command, address, bytes } = request;
    const write = command === VFIO_USER_DMA_WRITE;
    // QEMU 10's answer to a write is a header alone (hw/vfio-user/pci.c vfio_user_dma_write)
    if (write && payload.length === 0) return undefined;
    try {
      const short = !write && payload.length === DMA_ACCESS_SIZE + bytes.length && this.answersShort(payload);
      const long = write ? payload.length >= DMA_WRITE_REPLY_MIN_SIZE : payload.length === DMA_ACCESS_SIZE + bytes.length;
      const count = !long || payload.length < DMA_ACCESS_SIZE ? bytes.length : short ? load32(payload, 8) : load64(payload, 8, 'count');
      if (!write && long) bytes.set(short ? payload.subarray(SHORT_ACCESS_SIZE, SHORT_ACCESS_SIZE + bytes.length) : payload.subarray(DMA_ACCESS_SIZE));
      if (!long || load64(payload, 0, 'address') !== address || count !== bytes.length) {
        this.unexpected++;
        return new Errno('EPROTO', `the client's answer about ${bytes.length} bytes at ${hex(address)} is about something else`);
      }
    } catch (error) {
      this.unexpected++;
      return error as Errno;
    }
    return undefined;
  }

  /** What a client reads for us tells where it puts data: the upper half of a count is zero, and so is what a short layout leaves at the end. */
  private answersShort(payload: Uint8Array): boolean {
    if (this.layout === 'unknown' && payload.length >= DMA_ACCESS_SIZE + 4) {
      if (load32(payload, SHORT_ACCESS_SIZE) !== 0) this.layout = 'short';
      else if (load32(payload, payload.length - 4) !== 0) this.layout = 'text';
    }
    return this.layout === 'short';
  }
}

function gone({ address }: Request): Errno {
  return new Errno('ECONNRESET', `the client that had memory at ${hex(address)} is gone`);
}

function errnoOf(number: number, { command, address, bytes }: Request): Errno {
  return new Errno(NAMES.get(number) ?? 'EIO', `the client refused to ${command === VFIO_USER_DMA_WRITE ? 'write' : 'read'} ${bytes.length} bytes at ${hex(address)} (error ${number})`);
}
