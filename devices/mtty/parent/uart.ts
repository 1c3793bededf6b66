/**
 * One 16550A port with a loopback plug, as in Linux' sample: what is transmitted is received at once, through one FIFO
 * that is transmitter and receiver together, so that the transmitter is empty when everything has been read. Where the
 * sample takes short cuts this follows the chip (PC16550D data sheet): one interrupt cause at a time by priority, the
 * character timeout, the overrun bit and the modem deltas cleared by reading, MCR's diagnostic loop, trigger levels.
 * Left out: parity, framing and break errors, automatic RTS, time on the line (the divisor only sets the timeout).
 */
import type { Alarm, Clock } from '../../../sim/clock.js';
import {
  UART_BASE_BAUD, UART_FCR, UART_FCR_CLEAR_RCVR, UART_FCR_CLEAR_XMIT, UART_FCR_ENABLE_FIFO, UART_FCR_TRIGGER_MASK, UART_FIFO_SIZE, UART_IER, UART_IER_MSI,
  UART_IER_RDI, UART_IER_RLSI, UART_IER_THRI, UART_IIR, UART_IIR_FIFO_ENABLED, UART_IIR_MSI, UART_IIR_NO_INT, UART_IIR_RDI, UART_IIR_RLSI,
  UART_IIR_RX_TIMEOUT, UART_IIR_THRI, UART_LCR, UART_LCR_DLAB, UART_LCR_PARITY, UART_LCR_STOP, UART_LCR_WLEN_MASK, UART_LSR, UART_LSR_DR, UART_LSR_OE,
  UART_LSR_TEMT, UART_LSR_THRE, UART_MCR, UART_MCR_AFE, UART_MCR_DTR, UART_MCR_LOOP, UART_MCR_OUT1, UART_MCR_OUT2, UART_MCR_RTS, UART_MSR, UART_MSR_CTS,
  UART_MSR_DCD, UART_MSR_DSR, UART_MSR_RI, UART_MSR_TERI, UART_RX, UART_SCR, UART_TRIGGER_LEVELS, UART_TX,
} from '../spec/registers.js';

/** Interrupt causes as bits, for who counts edges. */
export const CAUSE_LINE_STATUS = 1 << 0;
export const CAUSE_RECEIVE = 1 << 1;
export const CAUSE_TIMEOUT = 1 << 2;
export const CAUSE_TRANSMIT = 1 << 3;
export const CAUSE_MODEM = 1 << 4;

/** Writable bits: four interrupt enables; DTR to AFE. */
const IER_MASK = 0x0f;
const MCR_MASK = 0x3f;
/** Deltas without the trailing edge of RI, which has a direction. */
const DELTAS = 0x0b;

/** What migration carries; the FIFO in order of arrival. */
export interface UartState {
  ier: number;
  fcr: number;
  lcr: number;
  mcr: number;
  scr: number;
  divisor: number;
  overrun: boolean;
  transmitPending: boolean;
  timeoutPending: boolean;
  msr: number;
  fifo: number[];
}

export class Uart16550 {
  private ier = 0;
  private fcr = 0;
  private lcr = 0;
  private mcr = 0;
  private scr = 0;
  private divisor = 0;
  /** LSR's OE, until LSR is read. */
  private overrun = false;
  /** THRE has come true since IIR last told. */
  private transmitPending = false;
  private timeoutPending = false;
  /** Lines in bits 7:4 as last seen, deltas in bits 3:0 until MSR is read. */
  private msr = 0;
  private readonly fifo = new Uint8Array(UART_FIFO_SIZE);
  private head = 0;
  private count = 0;
  private alarm: Alarm | undefined;
  private running = true;
  private readonly clock: Clock;
  private readonly changed: () => void;

  /** @param changed called after every access and timeout that may have changed `causes` */
  constructor(clock: Clock, changed: () => void) {
    this.clock = clock;
    this.changed = changed;
    this.msr = this.lines();
  }

  /** Interrupts that are enabled and pending, as CAUSE_* bits. */
  get causes(): number {
    const { ier } = this;
    return ((ier & UART_IER_RLSI) !== 0 && this.overrun ? CAUSE_LINE_STATUS : 0)
      | ((ier & UART_IER_RDI) !== 0 && this.timeoutPending ? CAUSE_TIMEOUT : 0)
      | ((ier & UART_IER_RDI) !== 0 && this.count >= this.trigger ? CAUSE_RECEIVE : 0)
      | ((ier & UART_IER_THRI) !== 0 && this.transmitPending ? CAUSE_TRANSMIT : 0)
      | ((ier & UART_IER_MSI) !== 0 && (this.msr & 0x0f) !== 0 ? CAUSE_MODEM : 0);
  }

  /** Bytes in the FIFO. */
  get level(): number {
    return this.count;
  }

  read(register: number): number {
    switch (register) {
      case UART_RX: return this.divisorSelected ? this.divisor & 0xff : this.receive();
      case UART_IER: return this.divisorSelected ? this.divisor >> 8 : this.ier;
      case UART_IIR: return this.readIir();
      case UART_LCR: return this.lcr;
      case UART_MCR: return this.mcr;
      case UART_LSR: return this.readLsr();
      case UART_MSR: return this.readMsr();
      case UART_SCR: return this.scr;
      default: return 0xff;
    }
  }

  write(register: number, value: number): void {
    switch (register) {
      case UART_TX:
        if (this.divisorSelected) this.divisor = (this.divisor & 0xff00) | value;
        else this.transmit(value);
        break;
      case UART_IER:
        if (this.divisorSelected) this.divisor = (this.divisor & 0x00ff) | (value << 8);
        else this.writeIer(value & IER_MASK);
        break;
      case UART_FCR:
        this.writeFcr(value);
        break;
      case UART_LCR:
        this.lcr = value;
        break;
      case UART_MCR:
        this.mcr = value & MCR_MASK;
        this.updateModem();
        break;
      case UART_SCR:
        this.scr = value;
        break;
      // LSR and MSR are for factory tests when written
      default: return;
    }
    this.changed();
  }

  reset(): void {
    this.load({ ier: 0, fcr: 0, lcr: 0, mcr: 0, scr: 0, divisor: 0, overrun: false, transmitPending: false, timeoutPending: false, msr: 0, fifo: [] });
    this.msr = this.lines();
    this.changed();
  }

  /** A stopped port's timeout does not run; it begins anew when the port goes on. */
  setRunning(running: boolean): void {
    this.running = running;
    this.armTimeout();
  }

  save(): UartState {
    const { ier, fcr, lcr, mcr, scr, divisor, overrun, transmitPending, timeoutPending, msr } = this;
    const fifo = Array.from({ length: this.count }, (_, i) => this.fifo[(this.head + i) % UART_FIFO_SIZE]!);
    return { ier, fcr, lcr, mcr, scr, divisor, overrun, transmitPending, timeoutPending, msr, fifo };
  }

  /** Takes a state over without telling anybody. */
  load(state: UartState): void {
    this.ier = state.ier & IER_MASK;
    this.fcr = state.fcr;
    this.lcr = state.lcr;
    this.mcr = state.mcr & MCR_MASK;
    this.scr = state.scr;
    this.divisor = state.divisor;
    this.overrun = state.overrun;
    this.transmitPending = state.transmitPending;
    this.timeoutPending = state.timeoutPending;
    this.msr = state.msr;
    this.head = 0;
    this.count = Math.min(state.fifo.length, UART_FIFO_SIZE);
    this.fifo.set(state.fifo.slice(0, UART_FIFO_SIZE));
    this.armTimeout();
  }

  private get divisorSelected(): boolean {
    return (this.lcr & UART_LCR_DLAB) !== 0;
  }

  private get fifoEnabled(): boolean {
    return (this.fcr & UART_FCR_ENABLE_FIFO) !== 0;
  }

  private get capacity(): number {
    return this.fifoEnabled ? UART_FIFO_SIZE : 1;
  }

  private get trigger(): number {
    return this.fifoEnabled ? UART_TRIGGER_LEVELS[(this.fcr & UART_FCR_TRIGGER_MASK) >> 6]! : 1;
  }

  private transmit(value: number): void {
    this.transmitPending = false;
    if (this.count < this.capacity) this.push(value);
    else {
      this.overrun = true;
      // a full FIFO keeps what it has; without FIFO the new character takes the old one's place
      if (!this.fifoEnabled) this.fifo[this.head] = value;
    }
    this.timeoutPending = false;
    this.armTimeout();
    this.updateModem();
  }

  private push(value: number): void {
    this.fifo[(this.head + this.count) % UART_FIFO_SIZE] = value;
    this.count++;
  }

  /** An empty receiver reads as zero. */
  private receive(): number {
    let value = 0;
    if (this.count > 0) {
      value = this.fifo[this.head]!;
      this.head = (this.head + 1) % UART_FIFO_SIZE;
      this.count--;
      if (this.count === 0) this.transmitPending = true;
    }
    this.timeoutPending = false;
    this.armTimeout();
    this.updateModem();
    this.changed();
    return value;
  }

  private writeIer(value: number): void {
    const enabled = value & ~this.ier;
    this.ier = value;
    if ((enabled & UART_IER_THRI) !== 0 && this.count === 0) this.transmitPending = true;
    this.armTimeout();
  }

  private writeFcr(value: number): void {
    const toggled = ((value ^ this.fcr) & UART_FCR_ENABLE_FIFO) !== 0;
    // the other bits count only together with the enable
    const bits = (value & UART_FCR_ENABLE_FIFO) === 0 ? 0 : value;
    this.fcr = bits & (UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_MASK);
    if (toggled || (bits & (UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT)) !== 0) {
      if (this.count > 0) this.transmitPending = true;
      this.head = this.count = 0;
      this.timeoutPending = false;
    }
    this.armTimeout();
    this.updateModem();
  }

  /** Priorities of the data sheet's table; reading the transmitter's cause clears it. */
  private readIir(): number {
    const { causes } = this;
    let id: number = UART_IIR_NO_INT;
    if ((causes & CAUSE_LINE_STATUS) !== 0) id = UART_IIR_RLSI;
    else if ((causes & CAUSE_TIMEOUT) !== 0) id = UART_IIR_RX_TIMEOUT;
    else if ((causes & CAUSE_RECEIVE) !== 0) id = UART_IIR_RDI;
    else if ((causes & CAUSE_TRANSMIT) !== 0) id = UART_IIR_THRI;
    else if ((causes & CAUSE_MODEM) !== 0) id = UART_IIR_MSI;
    if (id === UART_IIR_THRI) {
      this.transmitPending = false;
      this.changed();
    }
    return id | (this.fifoEnabled ? UART_IIR_FIFO_ENABLED : 0);
  }

  private readLsr(): number {
    const value = (this.count > 0 ? UART_LSR_DR : UART_LSR_THRE | UART_LSR_TEMT) | (this.overrun ? UART_LSR_OE : 0);
    if (this.overrun) {
      this.overrun = false;
      this.changed();
    }
    return value;
  }

  private readMsr(): number {
    const value = this.msr;
    if ((value & 0x0f) !== 0) {
      this.msr = value & 0xf0;
      this.changed();
    }
    return value;
  }

  /** The sample's plug: DSR and DCD always, CTS unless automatic flow control finds the FIFO full. */
  private lines(): number {
    const { mcr } = this;
    if ((mcr & UART_MCR_LOOP) !== 0) {
      return ((mcr & UART_MCR_RTS) !== 0 ? UART_MSR_CTS : 0) | ((mcr & UART_MCR_DTR) !== 0 ? UART_MSR_DSR : 0)
        | ((mcr & UART_MCR_OUT1) !== 0 ? UART_MSR_RI : 0) | ((mcr & UART_MCR_OUT2) !== 0 ? UART_MSR_DCD : 0);
    }
    return UART_MSR_DSR | UART_MSR_DCD | ((mcr & UART_MCR_AFE) === 0 || this.count < this.capacity ? UART_MSR_CTS : 0);
  }

  private updateModem(): void {
    const lines = this.lines();
    const changed = (this.msr ^ lines) & 0xf0;
    if (changed === 0) return;
    const ringEnded = (changed & UART_MSR_RI) !== 0 && (lines & UART_MSR_RI) === 0;
    this.msr = lines | (this.msr & 0x0f) | ((changed >> 4) & DELTAS) | (ringEnded ? UART_MSR_TERI : 0);
  }

  /** Nothing came or went for four characters while bytes wait below the trigger level. */
  private armTimeout(): void {
    this.alarm?.cancel();
    this.alarm = undefined;
    if (!this.running || !this.fifoEnabled || this.count === 0 || this.timeoutPending || (this.ier & UART_IER_RDI) === 0) return;
    this.alarm = this.clock.after(4 * this.characterNs(), () => {
      this.alarm = undefined;
      this.timeoutPending = true;
      this.changed();
    });
  }

  /** A divisor of 0 counts as 1. */
  private characterNs(): number {
    const bits = 1 + 5 + (this.lcr & UART_LCR_WLEN_MASK) + ((this.lcr & UART_LCR_PARITY) !== 0 ? 1 : 0) + ((this.lcr & UART_LCR_STOP) !== 0 ? 2 : 1);
    return Math.ceil((bits * Math.max(this.divisor, 1) * 1e9) / UART_BASE_BAUD);
  }
}
