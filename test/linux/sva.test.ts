/**
 * Processes of a real Linux share their addresses with our accelerator: its driver gives each queue a PASID, Linux serves
 * the page faults, and takes everything back when the queue is closed, or the process dies.
 */
import { describe, expect, it } from 'vitest';
import { boot, type Boot, type Row } from './world.js';

const RESPONSE_SUCCESS = '0x0', RESPONSE_INVALID = '0x1';
const WHOLE_DEVICE_TLB = { q1_lo: '0xfffff800', q1_hi: '0x7fffffff' };

/** The descriptor's PASID; wait descriptors have their status data there. */
function pasidOf(row: Row): number {
  return Number(row['q0_hi']) & 0xf_ffff;
}

function after(guest: Boot, last: (row: Row) => boolean): readonly Row[] {
  return guest.rows.slice(guest.rows.findLastIndex(last) + 1);
}

function descriptors(rows: readonly Row[]): Row[] {
  return rows.filter(({ kind }) => kind === 'vtd:descriptor');
}

function types(rows: readonly Row[]): string[] {
  return descriptors(rows).map((row) => row['type']!);
}

describe('one process with one queue', () => {
  it('copies between pages that Linux brings, is told of one that it unmapped, and leaves nothing behind', async () => {
    const guest = await boot({ linux: { run: ['dsa', 'irq'] } });
    expect(guest.shortcomings).toEqual([]);
    expect(guest.fact('dsa', 'dsa0', 'bind')).toMatchObject({ errno: '0', cmd_status: '0x0' });
    expect(guest.fact('dsa', 'wq0.0', 'bind')).toMatchObject({ errno: '0', cmd_status: '0x0' });
    expect(guest.fact('dsa-test', 'wq0.0', 'open')['errno']).toBe('0');
    expect(guest.fact('dsa-test', 'wq0.0', 'second-open')['errno']).toBe('EBUSY');
    expect(guest.fact('dsa-test', 'wq0.0', 'memmove')).toMatchObject({ status: '0x01', completed: '20000' });
    expect(guest.fact('dsa-test', 'wq0.0', 'memmove-data')['equal']).toBe('yes');

    // the destination was never touched: its five pages were asked for, one after the other; the last request is the one after munmap
    const responses = guest.of('vtd:page_response').map(({ code }) => code);
    expect(responses).toEqual([...Array<string>(5).fill(RESPONSE_SUCCESS), RESPONSE_INVALID]);
    expect(guest.count('vtd:page_request')).toBe(responses.length);
    expect(guest.interrupts('dmar0-prq')).toBe(guest.of('vtd:event').filter(({ event }) => event === 'page request').length);
    expect(guest.interrupts('dmar0-prq')).toBeGreaterThan(0);

    const { fault, status } = guest.fact('dsa-test', 'wq0.0', 'after-munmap');
    expect(status).toBe('0x84');
    expect(guest.of('dsa:complete').at(-1)).toMatchObject({ status: '0x84', bytes: '0', fault_page: fault, page_requests: '1' });
    // a refused page request is the device's to report: the IOMMU logs nothing (VT-d 4.1, chapter 7), and Linux has nothing to print
    expect(guest.count('vtd:fault')).toBe(0);
    expect(guest.interrupts('dmar0')).toBe(0);

    const rest = after(guest, ({ kind }) => kind === 'dsa:complete');
    expect(types(rest)).toEqual([
      // munmap of the portal, as of any memory of the process: its page from the IOTLB and the device TLB
      'P-IOTLB', 'P-DIOTLB', 'IWD',
      // close: the PASID's entry is cleared, then forgotten from the inside out, and each step waited for
      'PC-inv', 'IWD', 'P-IOTLB', 'IWD', 'P-DIOTLB', 'IWD',
      // draining page requests (7.10): a fence, both TLBs again, and a wait for requests and responses under way
      'IWD', 'P-IOTLB', 'P-DIOTLB', 'IWD',
    ]);
    const [pasidCache, , iotlb, , deviceTlb, , fence, , again, drain] = descriptors(rest).slice(3);
    // the queue had been drained, reset and enabled without a PASID before (commands 8, 10, 6): nobody used the entry any more
    expect(rest.filter(({ kind }) => kind === 'dsa:command').map(({ command }) => command)).toEqual(['8', '10', '6', '2']);
    expect(rest.findIndex((row) => row === pasidCache)).toBeGreaterThan(rest.findIndex(({ kind, command }) => kind === 'dsa:command' && command === '6'));
    expect(pasidCache).toMatchObject({ q0_lo: '0x10017', q0_hi: '0x2' });
    expect(iotlb).toMatchObject({ q0_lo: '0x10026', q0_hi: '0x2' });
    expect(deviceTlb).toMatchObject({ q0_lo: '0x200008', q0_hi: '0x2', ...WHOLE_DEVICE_TLB });
    // FN alone; then PD with a status write
    expect(fence).toMatchObject({ q0_lo: '0x45' });
    expect(again).toMatchObject({ q0_lo: '0x200008', ...WHOLE_DEVICE_TLB });
    expect(drain).toMatchObject({ q0_lo: '0xa5' });
  });
});

describe('ten processes on ten queues of two accelerators', () => {
  it('have a PASID each, and none sees anything of another', async () => {
    const guest = await boot({ accelerators: 2, linux: { run: ['dsa', 'irq'], set: { wqs: 5 } } });
    expect(guest.shortcomings).toEqual([]);
    const queues = [0, 1].flatMap((device) => [0, 1, 2, 3, 4].map((queue) => `wq${device}.${queue}`));
    for (const queue of queues) {
      expect(guest.fact('dsa-test', queue, 'second-open')['errno'], queue).toBe('EBUSY');
      expect(guest.fact('dsa-test', queue, 'memmove-data')['equal'], queue).toBe('yes');
      expect(guest.fact('dsa-test', queue, 'after-munmap')['status'], queue).toBe('0x84');
      expect(guest.fact('dsa-test', queue, 'end')['failures'], queue).toBe('0');
    }
    const users = new Map<string, Set<string>>();
    for (const { pasid, device, wq } of guest.of('dsa:submit')) users.set(pasid!, (users.get(pasid!) ?? new Set()).add(`${device}/${wq}`));
    expect([...users.values()].map((of) => of.size)).toEqual(Array<number>(10).fill(1));
    expect(new Set([...users.values()].flatMap((of) => [...of])).size).toBe(10);
    const refused = guest.of('vtd:page_response').filter(({ code }) => code === RESPONSE_INVALID).map((row) => row['pasid']!);
    expect(refused.toSorted()).toEqual([...users.keys()].toSorted());
    // closes run into each other; of each PASID the order is the same
    for (const pasid of users.keys()) {
      const own = descriptors(guest.rows).filter((row) => row['type'] !== 'IWD' && pasidOf(row) === Number(pasid)).map((row) => row['type']);
      expect(own.slice(-5), pasid).toEqual(['PC-inv', 'P-IOTLB', 'P-DIOTLB', 'P-IOTLB', 'P-DIOTLB']);
    }
  });
});

describe('processes that die with their queue open', () => {
  it('leave an accelerator that has lost its PASID in the middle of a copy: Linux prints the fault that our unit recorded', async () => {
    // a copy of 20,000 bytes takes 1.3 s, and the process is killed after one
    const guest = await boot({ timing: { 'copy-bytes-per-ns': 0.000015 }, linux: { run: ['dsa-kill', 'irq'], allow: ['dma-fault', 'fault-status', 'idxd'] } });
    expect(guest.shortcomings).toEqual([]);
    expect(guest.facts('dsa-kill').map(({ text }) => text)).toEqual(['dsa-kill exit=137', 'dsa-kill processes=1 bad=0']);

    const faults = guest.of('vtd:fault');
    expect(faults.length).toBeGreaterThan(0);
    // condition SPT.2: the PASID's entry is not present. That is recoverable, so the translation request is answered without
    // permissions; it is the page request for what was left of the copy, and for its record, that cannot be served and is logged
    for (const { source, reason } of faults) expect({ source, reason }).toEqual({ source: '0x20', reason: '0x59' });
    const recorded = faults.filter(({ outcome }) => outcome === 'recorded');
    const printed = guest.log.filter((text) => text.startsWith('DMAR: [DMA'));
    // a record of a page request has T1 clear and T2 set; Linux looks at T1 only, and calls it a write
    expect(printed).toEqual(recorded.map(({ pasid, page, reason }) => `DMAR: [DMA Write PASID 0x${Number(pasid).toString(16)}] Request device [0000:00:04.0] fault addr ${page} [fault reason ${reason}] SM: Present bit in PASID Table Entry is clear`));
    expect(guest.interrupts('dmar0')).toBeGreaterThan(0);

    // exit_mmap comes before the file is closed: the PASID goes first, and nothing is drained
    const killed = guest.rows.findIndex(({ kind }) => kind === 'vtd:fault');
    const before = descriptors(guest.rows.slice(0, killed));
    expect(before.slice(-6).map(({ type }) => type)).toEqual(['PC-inv', 'IWD', 'P-IOTLB', 'IWD', 'P-DIOTLB', 'IWD']);
    // a record that cannot be written is an error of the device, which idxd prints: VALID, code 0x1a in bits 15:8
    const [error] = guest.of('dsa:sw_error');
    expect(error).toMatchObject({ device: 'dsa0', error: '0x1a' });
    const [first] = guest.log.filter((text) => text.startsWith('idxd 0000:00:04.0: err[0]: '));
    expect((BigInt(first!.split(': ').at(-1)!) >> 8n) & 0xffn).toBe(0x1an);

    // the next process on the same queue has nothing to complain of
    expect(guest.fact('dsa-test', 'wq0.0', 'end')['failures']).toBe('0');
    expect(guest.fact('dsa-test', 'wq0.0', 'memmove-data')['equal']).toBe('yes');
  });

  it('leave nothing when they had no work under way', async () => {
    const guest = await boot({ linux: { run: ['dsa-exit', 'dsa', 'irq'] } });
    expect(guest.shortcomings).toEqual([]);
    expect(guest.fact('dsa-test', 'wq0.0', 'exit-without-close')['failures']).toBe('0');
    expect(guest.count('vtd:fault')).toBe(0);
    expect(guest.fact('dsa-test', 'wq0.0', 'end')['failures']).toBe('0');
  });
});
