/** Trace records of a remapping unit's front end. `unit` is the interned name of the unit. */
import type { Trace, TraceKind } from '../../../sim/trace.js';

export interface VtdTraceKinds {
  readonly registerWrite: TraceKind;
  readonly descriptor: TraceKind;
  readonly invalidationError: TraceKind;
  readonly wait: TraceKind;
  readonly fault: TraceKind;
  readonly pageRequest: TraceKind;
  readonly pageRequestOverflow: TraceKind;
  readonly pageResponse: TraceKind;
  readonly event: TraceKind;
}

export function defineVtdTraceKinds(trace: Trace): VtdTraceKinds {
  return {
    registerWrite: trace.define('vtd:register_write', [['unit', 'str'], ['offset', 'hex'], ['size', 'dec'], ['lo', 'hex'], ['hi', 'hex']]),
    /** A descriptor as the hardware read it: halves of its first two 64-bit words. */
    descriptor: trace.define('vtd:descriptor', [['unit', 'str'], ['head', 'hex'], ['type', 'str'], ['q0_lo', 'hex'], ['q0_hi', 'hex'], ['q1_lo', 'hex'], ['q1_hi', 'hex']]),
    /** IQE, ITE or ICE was set; `info` is IQEI for IQE, the requester otherwise. */
    invalidationError: trace.define('vtd:inv_error', [['unit', 'str'], ['error', 'str'], ['info', 'hex'], ['head', 'hex']]),
    /** A wait descriptor ended: done, or aborted by a timeout. */
    wait: trace.define('vtd:inv_wait', [['unit', 'str'], ['status_address', 'hex'], ['data', 'hex'], ['written', 'bool'], ['interrupt', 'bool'], ['aborted', 'bool']]),
    /** A non-recoverable fault: recorded in register `index`, or -1 when it was collapsed or overflowed. */
    fault: trace.define('vtd:fault', [['unit', 'str'], ['source', 'hex'], ['pasid', 'dec'], ['reason', 'hex'], ['page', 'page'], ['write', 'bool'], ['index', 'dec'], ['outcome', 'str']]),
    pageRequest: trace.define('vtd:page_request', [['unit', 'str'], ['source', 'hex'], ['pasid', 'dec'], ['page', 'page'], ['access', 'hex'], ['last', 'bool'], ['prg', 'dec'], ['tail', 'hex']]),
    /** A request that the full queue could not take; `answered`: by hardware, with Success. */
    pageRequestOverflow: trace.define('vtd:prq_overflow', [['unit', 'str'], ['source', 'hex'], ['pasid', 'dec'], ['page', 'page'], ['last', 'bool'], ['prg', 'dec'], ['answered', 'bool']]),
    /** A page group response on its way to the device. */
    pageResponse: trace.define('vtd:page_response', [['unit', 'str'], ['source', 'hex'], ['pasid', 'dec'], ['prg', 'dec'], ['code', 'hex']]),
    /** An interrupt message of the unit itself. */
    event: trace.define('vtd:event', [['unit', 'str'], ['event', 'str'], ['address', 'hex'], ['data', 'hex']]),
  };
}
