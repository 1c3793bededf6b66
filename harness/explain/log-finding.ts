/** What one line of a kernel log says, before lines are grouped. */
import type { FaultEntry } from './fault-causes.js';

export interface Finding {
  /** Kind of line, such as `dma-fault`, `queue-error`. */
  readonly kind: string;
  /** Lines with the same kind and identity are one group. */
  readonly identity: string;
  /** Heading of the group. */
  readonly title: string;
  /** Plain words; of the first line of a group. */
  readonly what: string;
  readonly entry?: FaultEntry;
  readonly causes?: readonly string[];
  /** `6a:01.0`, with the segment when the line has one. */
  readonly device?: string;
  readonly pasid?: number;
  /** Fault reason code. */
  readonly reason?: number;
  readonly address?: bigint;
  /** Decoded words, one per line. */
  readonly details?: readonly string[];
  /** Normal at boot: shown last and short. */
  readonly routine?: boolean;
}
