/**
 * Which domain translates a function's requests without PASID, and the PCI features that depend on it. PASID is
 * switched on before ATS, and ATS only after the domain stands on the invalidation list (A2).
 */
import { isErrno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import { TT_DEVICE_TLB, TT_PASS_THROUGH, TT_UNTRANSLATED } from '../spec/root-context.js';
import type { VtdDomain } from './domain.js';
import { FLPT_DEFAULT_DID } from './domain-ids.js';
import type { Entries } from './entries.js';
import { RID_PASID, type PasidTranslation } from './pasid-table.js';
import type { VtdDevice } from './vtd-device.js';

/** Smallest translation unit that ATS may answer with: 4 KiB. */
const ATS_PAGE_SHIFT = 12;

export class DomainAttachment {
  private readonly entries: Entries;
  private readonly log: KernelLog;

  constructor(entries: Entries, log: KernelLog) {
    this.entries = entries;
    this.log = log;
  }

  /** Context entry, then PASID and ATS; what a function needs before it is used with PASIDs. ENOMEM. */
  *prepare(info: VtdDevice): Steps {
    if (!info.unit.scalable) return;
    yield* this.entries.setUpContext(info);
    this.enablePciFeatures(info);
  }

  /** Replaces what was attached. ENOSPC no domain id, ENOMEM. */
  *attach(domain: VtdDomain, info: VtdDevice): Steps {
    const { unit } = info;
    yield* this.entries.setUpContext(info);
    const owned = domain.kind !== 'none';
    const domainId = owned ? domain.takeId(unit) : FLPT_DEFAULT_DID;
    if (info.domain !== undefined) yield* this.detach(info);
    if (owned) domain.addAttachment(info, RID_PASID);
    try {
      if (domain.type !== 'blocked') {
        if (unit.scalable) yield* this.entries.setPasidEntry(info, RID_PASID, translationOf(domain, domainId));
        else yield* this.setLegacyContext(domain, info, domainId);
      }
    } catch (error) {
      if (owned) {
        domain.removeAttachment(info, RID_PASID);
        domain.dropId(unit);
      }
      throw error;
    }
    info.domain = domain;
    if (unit.scalable || (owned && domain.type !== 'blocked')) this.enablePciFeatures(info);
  }

  /** Requests without PASID are blocked afterwards. */
  *detach(info: VtdDevice): Steps {
    const { unit, domain } = info;
    if (domain === undefined) return;
    if (domain.type !== 'blocked') {
      if (unit.scalable) yield* this.entries.tearDownPasidEntry(info, RID_PASID);
      else yield* this.entries.tearDownContext(info, domain.kind === 'none' ? FLPT_DEFAULT_DID : domain.idIn(unit));
    }
    if (domain.kind !== 'none') {
      domain.removeAttachment(info, RID_PASID);
      domain.dropId(unit);
    }
    info.domain = undefined;
  }

  /** ATS before PASID (A2). */
  disablePciFeatures(info: VtdDevice): void {
    if (info.device.present) {
      if (info.atsEnabled) info.device.disableAts();
      if (info.pasidEnabled) info.device.disablePasid();
    }
    info.atsEnabled = info.pasidEnabled = false;
  }

  private *setLegacyContext(domain: VtdDomain, info: VtdDevice, domainId: number): Steps {
    const { unit } = info;
    const passThrough = domain.kind === 'none';
    // pass-through blocks translation requests: the device must not send any
    if (passThrough && info.atsEnabled) this.disablePciFeatures(info);
    unit.contexts.setLegacy(info.sourceId, {
      translationType: passThrough ? TT_PASS_THROUGH : info.atsSupported ? TT_DEVICE_TLB : TT_UNTRANSLATED,
      table: domain.table?.root ?? 0, addressWidth: passThrough ? unit.addressWidth : domain.addressWidth, domainId,
    });
    yield* this.entries.contextBecamePresent(info);
  }

  private enablePciFeatures(info: VtdDevice): void {
    const { device } = info;
    this.tolerate(() => {
      if (info.maxPasids > 0 && !info.pasidEnabled) {
        if (!device.pasidEnabled) device.enablePasid(device.pasidFeatures);
        info.pasidEnabled = true;
      }
    });
    this.tolerate(() => {
      if (info.atsSupported && !info.atsEnabled) {
        if (!device.atsEnabled) device.enableAts(ATS_PAGE_SHIFT);
        info.atsEnabled = true;
      }
    });
  }

  /** A function whose feature cannot be switched on works without it; who needs it is refused later. */
  private tolerate(enable: () => void): void {
    try {
      enable();
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.log.log('warn', `DMAR: ${error.message}`);
    }
  }
}

/** What a PASID entry of the domain says. */
export function translationOf(domain: VtdDomain, domainId: number): PasidTranslation {
  if (domain.table === undefined) return { kind: 'pass-through', domainId };
  return domain.kind === 'first-level'
    ? { kind: 'first-level', table: domain.table.root, levels: 4, domainId }
    : { kind: 'second-level', table: domain.table.root, addressWidth: domain.addressWidth, domainId };
}
