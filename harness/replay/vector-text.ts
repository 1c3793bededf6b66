/** Steps, answers and walks of a replay in words. */
import { hex, hexPage } from '../../sim/address.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED, NO_PASID } from '../../host/pci/dma-port.js';
import type { TranslationCompletion } from '../../host/pci/dma-port.js';
import type { CachedTranslation } from '../../iommu/intel-vtd/hardware/translation-cache.js';
import type { WalkExplanation } from '../../iommu/intel-vtd/hardware/walk-explanation.js';
import { formatRequester, type DmaStep, type OutputStep, type PageRequestStep, type TranslateStep, type TranslationAnswer } from './vector.js';

export function hex64(value: bigint): string {
  return `0x${value.toString(16)}`;
}

export function pasidText(pasid: number): string {
  return pasid === NO_PASID ? '' : ` PASID ${pasid}`;
}

export function describeRequest(step: DmaStep | TranslateStep | PageRequestStep): string {
  const who = `${formatRequester(step.sourceId)}${pasidText(step.pasid)}`;
  if (step.op === 'pageRequest') return `${who} requests page ${hexPage(step.page)} (${rightsOfAccess(step.access)})`;
  const attributes = [
    (step.attributes & ATTR_EXECUTE) !== 0 && 'execute', (step.attributes & ATTR_PRIVILEGED) !== 0 && 'privileged',
    (step.attributes & ATTR_TRANSLATED) !== 0 && 'translated', (step.attributes & ATTR_NO_WRITE) !== 0 && 'no write',
  ].filter((text) => text !== false).join(', ');
  const verb = step.op === 'translate' ? 'asks for a translation of' : step.write ? 'writes' : 'reads';
  return `${who} ${verb} ${hexPage(step.page, step.offset)}${attributes === '' ? '' : ` (${attributes})`}`;
}

/** `rw`, as page requests of a vector are written. */
export function rightsOfAccess(access: number): string {
  return ((access & ACCESS_READ) !== 0 ? 'r' : '') + ((access & ACCESS_WRITE) !== 0 ? 'w' : '') + ((access & ACCESS_EXECUTE) !== 0 ? 'x' : '') + ((access & ACCESS_PRIVILEGED) !== 0 ? 'p' : '');
}

/** `rwu`, as answers to translation requests are written. */
export function rightsOfCompletion(completion: TranslationCompletion): string {
  const { read, write, execute, privileged, global, untranslatedOnly } = completion;
  return (read ? 'r' : '') + (write ? 'w' : '') + (execute ? 'x' : '') + (privileged ? 'p' : '') + (global ? 'g' : '') + (untranslatedOnly ? 'u' : '');
}

export function describeAnswer(answer: TranslationAnswer | string): string {
  if (typeof answer === 'string') return answer;
  return answer.rights.replace(/[pg]/g, '') === '' ? 'no translation (R = W = 0)' : `${hex(answer.pa)}, ${answer.pages} ${answer.pages === 1 ? 'page' : 'pages'}, ${answer.rights}`;
}

export function describeOutput(output: OutputStep): string {
  switch (output.op) {
    case 'interrupt': return `interrupt ${hex(output.address)} data ${hex(output.data)}`;
    case 'pageResponse': return `page response to ${formatRequester(output.sourceId)}${pasidText(output.pasid)} group ${output.group} code ${output.code}`;
    case 'deviceTlbInvalidate': {
      const range = output.pages === Infinity ? 'all addresses' : `${hexPage(output.page)}, ${output.pages} ${output.pages === 1 ? 'page' : 'pages'}`;
      return `device-TLB invalidation to ${formatRequester(output.sourceId)}${pasidText(output.pasid)} tag ${output.tag}: ${range}${output.global ? ', global' : ''}`;
    }
  }
}

export function describeBytes(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.subarray(0, 64)).toString('hex');
  return bytes.length > 64 ? `${text}…` : text;
}

/** The cached translation that answered, and which invalidation ends it (VT-d rev 4.1, 6.5.2.3 and 6.5.2.4). */
export function describeHit(hit: CachedTranslation, tablesSay: WalkExplanation): string {
  const tag = hit.pasid === NO_PASID ? `domain ${hit.domainId}` : `domain ${hit.domainId} PASID ${hit.pasid}`;
  const invalidation = hit.pasid === NO_PASID ? 'IOTLB invalidation (6.5.2.3)' : 'PASID-based IOTLB invalidation (6.5.2.4)';
  const inTables = tablesSay.reason !== 0 && !tablesSay.steps.some(({ what }) => what === 'first-level' || what === 'second-level');
  return `IOTLB entry of ${tag}, ${hexPage(hit.page)} → ${hexPage(hit.frame)}, ${hit.pages} ${hit.pages === 1 ? 'page' : 'pages'}; `
    + `not reached by ${inTables ? 'a context-cache invalidation (6.5.2.1) and ' : ''}an ${invalidation}`.replace('an PASID', 'a PASID');
}

const LEVELS = ['PTE', 'PDE', 'PDPTE', 'PML4E', 'PML5E'];

/** The entries of a walk and how it ends, one line each. */
export function describeWalk({ steps, page, text, reason }: WalkExplanation): string[] {
  const lines = steps.map((step) => {
    const name = step.what === 'first-level' || step.what === 'second-level' ? `${step.what} ${LEVELS[step.level] ?? step.level}` : step.what;
    const raw = step.qwords.map((qword) => qword.toString(16).padStart(16, '0')).join(' ');
    return `${name.padEnd(19)} ${hex(step.address).padStart(12)}  ${raw}  ${step.text === '' ? 'all zero' : step.text}`;
  });
  return [...lines, page === undefined ? `no translation: ${text}${reason > 0 ? ` (fault reason ${hex(reason)})` : ''}` : `→ ${hexPage(page)}`];
}
