/** Records that the fabric leaves in the trace. `pci:dma` and `pci:translation` are for checkers and recorded only while they watch. */
import type { Trace, TraceKind } from '../../../sim/trace.js';

export interface FabricTrace {
  readonly trace: Trace;
  readonly dma: TraceKind;
  readonly translation: TraceKind;
  readonly pageRequest: TraceKind;
  readonly pageResponse: TraceKind;
  readonly invalidate: TraceKind;
  readonly invalidateCompletion: TraceKind;
  readonly configWrite: TraceKind;
  readonly violation: TraceKind;
  readonly remove: TraceKind;
  readonly reset: TraceKind;
}

/** `pasid` is -1 (NO_PASID) where the TLP has no prefix; `pages` is -1 for all addresses. */
export function declareFabricTrace(trace: Trace): FabricTrace {
  return {
    trace,
    dma: trace.define('pci:dma', [
      ['source', 'hex'], ['pasid', 'dec'], ['iova', 'page'], ['physical', 'page'], ['bytes', 'dec'], ['write', 'bool'], ['translated', 'bool'],
    ], { hashed: false }),
    translation: trace.define('pci:translation', [
      ['source', 'hex'], ['pasid', 'dec'], ['iova', 'page'], ['physical', 'page'], ['pages', 'dec'], ['read', 'bool'], ['write', 'bool'],
    ], { hashed: false }),
    pageRequest: trace.define('pci:page_request', [
      ['source', 'hex'], ['pasid', 'dec'], ['page', 'page'], ['access', 'hex'], ['last', 'bool'], ['prg', 'dec'],
    ]),
    pageResponse: trace.define('pci:page_response', [['source', 'hex'], ['pasid', 'dec'], ['prg', 'dec'], ['code', 'hex']]),
    invalidate: trace.define('pci:invalidate', [
      ['source', 'hex'], ['pasid', 'dec'], ['page', 'page'], ['pages', 'dec'], ['tag', 'dec'], ['global', 'bool'],
    ]),
    invalidateCompletion: trace.define('pci:invalidate_completion', [['source', 'hex'], ['tag', 'dec']]),
    configWrite: trace.define('pci:config_write', [['source', 'hex'], ['register', 'str'], ['value', 'hex']]),
    violation: trace.define('pci:violation', [['source', 'hex'], ['what', 'str']]),
    remove: trace.define('pci:remove', [['source', 'hex'], ['surprise', 'bool']]),
    reset: trace.define('pci:flr', [['source', 'hex'], ['kind', 'str']]),
  };
}
