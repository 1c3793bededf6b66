/** What a kernel's message can complain about. */
export const COMPLAINT_KINDS = [
  'dma-fault', 'fault-status', 'invalidation', 'page-request', 'page-request-overflow', 'dmar', 'aer', 'nvme', 'idxd', 'warning', 'bug', 'hung-task', 'panic',
] as const;
export type ComplaintKind = (typeof COMPLAINT_KINDS)[number];
