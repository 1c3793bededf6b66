/**
 * Lines about the two queues: errors of queued invalidation (drivers/iommu/intel/dmar.c, qi_dump_fault and qi_check_fault) and page
 * requests (drivers/iommu/intel/prq.c, svm.c in older kernels; drivers/iommu/io-pgfault.c).
 */
import { hexPage } from '../../sim/address.js';
import { wordsOf } from '../../sim/layout.js';
import { PAGE_REQUEST } from '../../iommu/intel-vtd/spec/descriptors.js';
import { IQEI_TEXT } from '../../iommu/intel-vtd/spec/registers.js';
import type { Finding } from './log-finding.js';
import { describeDescriptor, describePageRequest } from './queues.js';
import { bdfText } from './tables.js';

interface QueuePattern {
  readonly pattern: RegExp;
  readonly explain: (match: RegExpExecArray) => Finding;
}

const HEX = '([0-9a-f]{1,16})';
const ALL_ONES = 'the registers read as all ones: the unit does not answer (powered down, or another device claims its address)';

function say(kind: string, identity: string, title: string, what: string, causes: readonly string[] = [], more: Partial<Finding> = {}): Finding {
  return { kind, identity, title, what, ...(causes.length > 0 ? { causes } : {}), ...more };
}

const PATTERNS: readonly QueuePattern[] = [
  {
    pattern: new RegExp(`VT-d detected Invalidation Queue Error: Reason ${HEX}`, 'i'),
    explain(match) {
      const code = parseInt(match[1]!, 16);
      const known = IQEI_TEXT[code];
      return say('queue-error', `IQE ${code}`, `invalidation queue error, reason ${code}`,
        `The unit refused a descriptor: ${known ?? 'a reason that no revision names'}. The queue stood still until the kernel cleared the error.`,
        code === 0xf ? [ALL_ONES] : ['the unit or the hypervisor does not know this descriptor: check that it reports the feature (ECAP)', 'the descriptor or the queue was overwritten: see the QI HEAD line']);
    },
  },
  {
    pattern: new RegExp(`VT-d detected Invalidation Time-out Error: SID ${HEX}`, 'i'),
    explain(match) {
      const sid = parseInt(match[1]!, 16);
      const device = bdfText(sid);
      if (sid === 0xffff) return say('queue-error', 'ITE ffff', 'the invalidation queue reads as all ones', 'SID ffff is no device: every bit of the register reads as 1.', [ALL_ONES]);
      return say('queue-error', `ITE ${sid}`, `device-TLB invalidation timed out: ${sid === 0 ? 'unnamed device' : device}`,
        `${sid === 0 ? 'A device (this unit does not say which)' : `${device}, which caches translations (ATS),`} did not confirm in time that it forgot them. Until it does it may use addresses that are not its own any more.`,
        ['the device hangs, is being reset, or lost its link (hot unplug, D3, AER) while ATS was enabled', 'ATS of the device is faulty: pci=noats, or a quirk, proves it'],
        sid === 0 ? {} : { device });
    },
  },
  {
    pattern: new RegExp(`VT-d detected Invalidation Completion Error: SID ${HEX}`, 'i'),
    explain(match) {
      const sid = parseInt(match[1]!, 16);
      if (sid === 0xffff) return say('queue-error', 'ITE ffff', 'the invalidation queue reads as all ones', 'SID ffff is no device: every bit of the register reads as 1.', [ALL_ONES]);
      return say('queue-error', `ICE ${sid}`, `unexpected invalidation completion: ${bdfText(sid)}`,
        `${bdfText(sid)} confirmed an invalidation that nobody waited for.`,
        ['the confirmation came after its time-out', 'the device confirms twice, or with a wrong tag'], { device: bdfText(sid) });
    },
  },
  {
    pattern: new RegExp(`QI (HEAD|PRIOR): .{0,40} qw0 = 0x${HEX}, qw1 = 0x${HEX}`, 'i'),
    explain(match) {
      const empty = /^0+$/.test(match[2]!) && /^0+$/.test(match[3]!);
      const text = empty ? 'all zero, no descriptor' : describeDescriptor(wordsOf(BigInt(`0x${match[2]!}`), BigInt(`0x${match[3]!}`), 0n, 0n));
      const head = match[1]!.toUpperCase() === 'HEAD';
      return say('queue-entry', `${match[1]} ${match[2]} ${match[3]}`, head ? 'descriptor at the head of the queue' : 'descriptor before the head',
        `${head ? 'With a queue error this is the refused one' : 'Taken just before; with a time-out the invalidation is here or further back'}: ${text}.`, []);
    },
  },
  {
    pattern: new RegExp(`VT-d detected invalid descriptor: (?:low|qw0)\\s?=\\s?${HEX}, (?:high|qw1)\\s?=\\s?${HEX}`, 'i'),
    explain: (match) => say('queue-entry', `invalid ${match[1]} ${match[2]}`, 'descriptor that the unit refused',
      `${describeDescriptor(wordsOf(BigInt(`0x${match[1]!}`), BigInt(`0x${match[2]!}`), 0n, 0n))}.`, ['the unit or the hypervisor does not know this descriptor', 'the queue was overwritten']),
  },
  {
    pattern: /Invalidation (?:Queue|Time-out|Completion) Error \((IQE|ITE|ICE)\) cleared/i,
    explain: (match) => say('queue-cleared', match[1]!.toUpperCase(), `${match[1]!.toUpperCase()} cleared`, 'The kernel cleared the error and goes on.', [], { routine: true }),
  },
  {
    pattern: new RegExp(`Invalid page request: ${HEX} ${HEX}`, 'i'),
    explain(match) {
      const words = wordsOf(BigInt(`0x${match[1]!}`), BigInt(`0x${match[2]!}`), 0n, 0n);
      const { RID, PP, PASID, RD, WR, EXE, PM, ADDR } = PAGE_REQUEST.f;
      const page = Number(ADDR.getBig(words));
      const device = bdfText(RID.get(words));
      const pasid = PP.get(words) === 1 ? PASID.get(words) : undefined;
      const asks = RD.get(words) === 1 || WR.get(words) === 1;
      const canonical = page < 2 ** 35 || page >= 2 ** 52 - 2 ** 35;
      const why = pasid === undefined ? 'It has no PASID, which older kernels refuse.'
        : !canonical ? `The address ${hexPage(page)} is not canonical.`
          : PM.get(words) === 1 && asks ? 'It asks as supervisor.'
            : EXE.get(words) === 1 && RD.get(words) === 1 ? 'It asks for execute permission.' : 'Nothing is wrong with the words themselves: no device that takes page requests was found, or its PASID is not bound.';
      return say('page-request', `invalid ${match[1]} ${match[2]}`, `page request of ${device} refused`, `${describePageRequest(words)}. ${why} The kernel answers Invalid Request when it is the last of its group.`,
        ['the device goes on after its PASID was unbound', 'IOPF is not enabled for the device, or a bridge changed its requester id'], { device, ...(pasid === undefined ? {} : { pasid }), address: BigInt(page) << 12n });
    },
  },
  simple(/Page request without PASID/i, 'page-request', 'page request without PASID', 'A device asks for a page without naming a PASID. Older kernels refuse that; later ones (prq.c) handle it.', ['PRI is enabled in a device that uses no PASIDs', 'PRI was left on by an earlier kernel or guest']),
  simple(/Page request in Privilege Mode/i, 'page-request', 'page request as supervisor', 'A device asks for a page as supervisor, which the kernel refuses.', ['a work queue is configured as privileged but used by a process', 'the device sets Privileged Mode Requested by mistake']),
  simple(/Execution request not supported/i, 'page-request', 'page request for execution', 'A device wants to execute from a page, which the kernel does not grant.', ['the device sets Execute Requested by mistake']),
  simple(/Address is not canonical/i, 'page-request', 'page request for an impossible address', 'A device asks for a page whose address has bits that do not extend the sign.', ['a wild or truncated pointer in a descriptor', 'a 57-bit address while the CPU runs with 4 levels']),
  simple(/Page request for invalid PASID/i, 'page-request', 'page request for a PASID that is not bound', 'A device asks for a page under a PASID that no process has.', ['the process ended or unbound while the device was still working', 'a descriptor names a wrong PASID']),
  simple(/PRQ overflow detected/i, 'page-request-overflow', 'page request queue overflowed', 'Devices sent page requests faster than the kernel took them. Further ones were dropped, or answered by the unit so that the device asks again.', ['more outstanding page requests are allowed to the devices together than the queue holds', 'page faults are slow (swap, userfaultfd) and the queue fills up meanwhile']),
  simple(/PRQ overflow cleared/i, 'page-request-overflow-cleared', 'page request queue works again', 'The kernel dropped incomplete groups and cleared the overflow.', [], true),
  simple(/Failed to (?:allocate page request queue|create IRQ vector for page request queue|request IRQ for page request queue)/i, 'page-request-setup', 'page request queue could not be set up', 'This unit will take no page requests, so SVA with page faults does not work behind it.', ['no memory or no interrupt vector was left at boot']),
  simple(/no pending PRQ, drop response/i, 'page-response', 'page response without a request', 'Somebody answered a page request that is not open: it was answered already, timed out, or was discarded.', ['the same request was answered twice', 'the response came after the device was unbound or reset']),
  {
    pattern: /Page response time expired, pasid (\d{1,7}) gid (\d{1,5})/i,
    explain: (match) => say('page-response', `expired ${match[1]} ${match[2]}`, `page request of PASID ${match[1]}, group ${match[2]} was never answered`, 'Whoever handles faults (a guest, user space) did not answer in time.', ['the guest or its VMM hangs or was stopped', 'the response was sent for another group or PASID'], { pasid: Number(match[1]) }),
  },
];

function simple(pattern: RegExp, kind: string, title: string, what: string, causes: readonly string[], routine = false): QueuePattern {
  return { pattern, explain: () => say(kind, title, title, what, causes, routine ? { routine } : {}) };
}

/** Explains a line about a queue; undefined for other lines. */
export function queueLine(line: string): Finding | undefined {
  for (const { pattern, explain } of PATTERNS) {
    const match = pattern.exec(line);
    if (match !== null) return explain(match);
  }
  return undefined;
}
