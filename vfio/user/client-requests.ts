/**
 * Messages from the server to its client, DMA_READ and DMA_WRITE, and the replies to them. Nobody waits: a reply that
 * arrives, an error, or the end of the connection calls back. What the client says in a reply is checked against what
 * was asked. At most `MAX_IN_FLIGHT` are under way; others queue here, and fail at once when there are too many: a client
 * that does not answer must not fill this process.
 */
import { hex } from '../../sim/address.js';
import { ERRNO, Errno, type ErrnoName } from '../../sim/errno.js';
import {
  DMA_ACCESS_SIZE, DMA_WRITE_REPLY_MIN_SIZE, HEADER_SIZE, load64, newMessage, store64, TYPE_COMMAND, VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE, type Message,
} from './protocol/index.js';

const MAX_IN_FLIGHT = 256;
const MAX_WAITING = 4096;
const NAMES = new Map<number, ErrnoName>(Object.entries(ERRNO).map(([name, number]) => [number, name as ErrnoName]));

/** Called once: undefined when the bytes have moved. */
export type RequestDone = (error: Errno | undefined) => void;

interface Request {
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

  /** @param send takes a whole message */
  constructor(send: (bytes: Uint8Array) => void) {
    this.send = send;
  }

  get pending(): number {
    return this.inFlight.size + this.waiting.length;
  }

  /** One message. `bytes` is filled before `done`. ECONNRESET without a client, ENOMEM too many wait, EIO and the client's own errors. */
  read(address: number, bytes: Uint8Array, done: RequestDone): void {
    this.request({ command: VFIO_USER_DMA_READ, address, bytes, done });
  }

  /** One message; `bytes` must not change before `done`. */
  write(address: number, bytes: Uint8Array, done: RequestDone): void {
    this.request({ command: VFIO_USER_DMA_WRITE, address, bytes, done });
  }

  /** A reply has arrived. */
  reply({ header, payload }: Message): void {
    const request = this.inFlight.get(header.id);
    if (request === undefined || request.command !== header.command) {
      this.unexpected++;
      return;
    }
    this.inFlight.delete(header.id);
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
    else if (this.inFlight.size < MAX_IN_FLIGHT) this.start(request);
    else if (this.waiting.length < MAX_WAITING) this.waiting.push(request);
    else request.done(new Errno('ENOMEM', `${MAX_IN_FLIGHT + MAX_WAITING} messages wait for the client's answers`));
  }

  private start(request: Request): void {
    while (this.inFlight.has(this.nextId)) this.nextId = (this.nextId + 1) & 0xffff;
    const id = this.nextId;
    this.nextId = (id + 1) & 0xffff;
    this.inFlight.set(id, request);
    const write = request.command === VFIO_USER_DMA_WRITE;
    const message = newMessage(id, request.command, TYPE_COMMAND, DMA_ACCESS_SIZE + (write ? request.bytes.length : 0));
    store64(message, HEADER_SIZE, request.address);
    store64(message, HEADER_SIZE + 8, request.bytes.length);
    if (write) message.set(request.bytes, HEADER_SIZE + DMA_ACCESS_SIZE);
    this.send(message);
  }

  private startWaiting(): void {
    const next = this.waiting.length > 0 && this.inFlight.size < MAX_IN_FLIGHT ? this.waiting.shift() : undefined;
    if (next !== undefined) this.start(next);
  }

  private complete(request: Request, payload: Uint8Array): Errno | undefined {
    const { command, address, bytes } = request;
    const write = command === VFIO_USER_DMA_WRITE;
    // QEMU 10's answer to a write is a header alone (hw/vfio-user/pci.c vfio_user_dma_write)
    if (write && payload.length === 0) return undefined;
    try {
      const long = write ? payload.length >= DMA_WRITE_REPLY_MIN_SIZE : payload.length === DMA_ACCESS_SIZE + bytes.length;
      const count = long && payload.length >= DMA_ACCESS_SIZE ? load64(payload, 8, 'count') : bytes.length;
      if (!long || load64(payload, 0, 'address') !== address || count !== bytes.length) {
        this.unexpected++;
        return new Errno('EPROTO', `the client's answer about ${bytes.length} bytes at ${hex(address)} is about something else`);
      }
    } catch (error) {
      this.unexpected++;
      return error as Errno;
    }
    if (!write) bytes.set(payload.subarray(DMA_ACCESS_SIZE));
    return undefined;
  }
}

function gone({ address }: Request): Errno {
  return new Errno('ECONNRESET', `the client that had memory at ${hex(address)} is gone`);
}

function errnoOf(number: number, { command, address, bytes }: Request): Errno {
  return new Errno(NAMES.get(number) ?? 'EIO', `the client refused to ${command === VFIO_USER_DMA_WRITE ? 'write' : 'read'} ${bytes.length} bytes at ${hex(address)} (error ${number})`);
}
