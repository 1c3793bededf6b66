/**
 * Error messages as they travel to the root complex (PCIe Base 6.0 section 6.2.2, table 6-2; message codes in section
 * 2.2.8.3). Left out: the Advanced Error Reporting capability with its causes and header log.
 */

/** ERR_COR, ERR_NONFATAL, ERR_FATAL. Fatal: the link is not reliable any more. */
export type PciErrorSeverity = 'correctable' | 'nonfatal' | 'fatal';

export interface PciErrorMessage {
  readonly segment: number;
  /** Requester id of the function that reports. */
  readonly sourceId: number;
  readonly severity: PciErrorSeverity;
}

/** Where the root complex tells software of error messages. */
export interface PciErrorSource {
  /** Calls `listener` for each message after it arrived; the result ends that. */
  listenErrors(listener: (message: PciErrorMessage) => void): () => void;
}
