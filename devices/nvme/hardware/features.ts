/** Features: values that a host sets and gets (NVMe 1.4 section 5.21.1). None can be saved; a controller reset brings the defaults back. */
import { DNR, STATUS } from '../spec/commands.js';
import { FEATURE, FEATURE_CHANGEABLE, FEATURE_NAMESPACE_SPECIFIC } from '../spec/logs.js';

/** Composite temperature in kelvin, and the thresholds that the controller itself suggests. */
export const TEMPERATURE = 323;
export const WARNING_TEMPERATURE_KELVIN = 343;
export const CRITICAL_TEMPERATURE_KELVIN = 373;

/** Arbitration burst without limit. */
const ARBITRATION_DEFAULT = 7;
const DULBE = 1 << 16;

export class Features {
  arbitration = ARBITRATION_DEFAULT;
  errorRecovery = 0;
  writeCache = true;
  coalescing = 0;
  writeAtomicity = 0;
  events = 0;
  over = WARNING_TEMPERATURE_KELVIN;
  under = 0;
  /** Bit for each vector: coalescing disable. */
  private readonly coalescingDisabled = new Set<number>();
  private readonly ioQueues: number;

  constructor(ioQueues: number) {
    this.ioQueues = ioQueues;
  }

  /** The composite temperature has crossed a threshold. */
  get temperatureWarning(): boolean {
    return TEMPERATURE >= this.over || TEMPERATURE <= this.under;
  }

  /** Word 11 of a Set Features; answers a status. What changes the world outside is the caller's. */
  set(feature: number, value: number): number {
    const invalid = STATUS.INVALID_FIELD | DNR;
    switch (feature) {
      case FEATURE.ARBITRATION: this.arbitration = value; return STATUS.SUCCESS;
      // one power state
      case FEATURE.POWER: return (value & 0x1f) === 0 ? STATUS.SUCCESS : invalid;
      case FEATURE.TEMPERATURE: return this.setTemperature(value);
      case FEATURE.ERROR_RECOVERY:
        if ((value & DULBE) !== 0) return invalid;
        this.errorRecovery = value & 0xffff;
        return STATUS.SUCCESS;
      case FEATURE.WRITE_CACHE: this.writeCache = (value & 1) !== 0; return STATUS.SUCCESS;
      // the caller has refused what is wrong; the controller allocates all it has
      case FEATURE.QUEUES: return STATUS.SUCCESS;
      // accepted; every completion interrupts all the same
      case FEATURE.COALESCING: this.coalescing = value & 0xffff; return STATUS.SUCCESS;
      case FEATURE.VECTOR: return this.setVector(value);
      case FEATURE.WRITE_ATOMICITY: this.writeAtomicity = value & 1; return STATUS.SUCCESS;
      case FEATURE.EVENTS: this.events = value; return STATUS.SUCCESS;
      default: return invalid;
    }
  }

  /** Current value; undefined for a feature that is not there, or a vector or sensor that is not. @param detail word 11 */
  get(feature: number, detail: number): number | undefined {
    switch (feature) {
      case FEATURE.ARBITRATION: return this.arbitration;
      case FEATURE.POWER: return 0;
      case FEATURE.TEMPERATURE: return composite(detail) ? (((detail >>> 20) & 3) === 0 ? this.over : ((detail >>> 20) & 3) === 1 ? this.under : undefined) : undefined;
      case FEATURE.ERROR_RECOVERY: return this.errorRecovery;
      case FEATURE.WRITE_CACHE: return this.writeCache ? 1 : 0;
      case FEATURE.QUEUES: return (this.ioQueues - 1) | ((this.ioQueues - 1) << 16);
      case FEATURE.COALESCING: return this.coalescing;
      case FEATURE.VECTOR: {
        const vector = detail & 0xffff;
        if (vector > this.ioQueues) return undefined;
        return vector | (vector === 0 || this.coalescingDisabled.has(vector) ? 0x1_0000 : 0);
      }
      case FEATURE.WRITE_ATOMICITY: return this.writeAtomicity;
      case FEATURE.EVENTS: return this.events;
      default: return undefined;
    }
  }

  /** What a host may do with a feature; undefined for one that is not there. */
  static capabilities(feature: number): number | undefined {
    if (feature === FEATURE.ERROR_RECOVERY) return FEATURE_CHANGEABLE | FEATURE_NAMESPACE_SPECIFIC;
    return Object.values<number>(FEATURE).includes(feature) ? FEATURE_CHANGEABLE : undefined;
  }

  private setTemperature(value: number): number {
    const type = (value >>> 20) & 3;
    if (!composite(value) || type > 1) return STATUS.INVALID_FIELD | DNR;
    if (type === 0) this.over = value & 0xffff;
    else this.under = value & 0xffff;
    return STATUS.SUCCESS;
  }

  private setVector(value: number): number {
    const vector = value & 0xffff;
    if (vector > this.ioQueues) return STATUS.INVALID_FIELD | DNR;
    if ((value & 0x1_0000) !== 0) this.coalescingDisabled.add(vector);
    else this.coalescingDisabled.delete(vector);
    return STATUS.SUCCESS;
  }
}

/** TMPSEL names the composite temperature, the only sensor; all sensors is it, too. */
function composite(detail: number): boolean {
  const select = (detail >>> 16) & 0xf;
  return select === 0 || select === 0xf;
}
