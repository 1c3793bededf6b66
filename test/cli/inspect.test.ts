/** `vfiosim inspect`: run to a place, show the tables. */
import { describe, expect, it } from 'vitest';
import { config, expectGolden, vfiosim } from './vfiosim.js';

const QUICKSTART = config('quickstart');

interface Report {
  readonly timeNs: number;
  readonly event: number;
  readonly pasid: number | null;
  readonly address: string;
  readonly physical?: string;
  readonly steps: { readonly what: string; readonly qwords: string[] }[];
}

async function inspect(...argv: string[]): Promise<Report> {
  const { code, out } = await vfiosim('inspect', QUICKSTART, '--json', ...argv);
  expect(code).toBe(0);
  return JSON.parse(out) as Report;
}

describe('vfiosim inspect', () => {
  it('walks to a page before teardown', async () => {
    const { code, out, err } = await vfiosim('inspect', QUICKSTART, '--walk', 'dsa0/app/copy+0x1000');
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expectGolden('inspect-before-teardown.txt', out);
  });

  it('shows where a walk ends at the first fault', async () => {
    const { code, out } = await vfiosim('inspect', QUICKSTART, '--walk', 'dsa0/app/copy', '--at', 'fault:1');
    expect(code).toBe(0);
    expect(out).toContain('no translation: ');
    expectGolden('inspect-fault-1.txt', out);
  });

  it('takes the PASID as a number or a process, the address as a number or a buffer', async () => {
    const named = await inspect('--walk', 'dsa0/app/copy+4096');
    expect(await inspect('--walk', `0000:6a:01.0/${named.pasid}/${named.address}`)).toEqual({ ...named, device: '0000:6a:01.0' });
    expect(BigInt((await inspect('--walk', 'dsa0/app/copy')).address) + 4096n).toBe(BigInt(named.address));
    expect((await inspect('--walk', `dsa0/app/${named.address}`)).physical).toBe(named.physical);
  });

  it('walks requests without PASID', async () => {
    const report = await inspect('--walk', 'dsa0/-/0x1000', '--at', '1us');
    expect(report.pasid).toBeUndefined();
    expect(report.steps.map(({ what }) => what).slice(0, 2)).toEqual(['root', 'context']);
  });

  it('stops at a time, an event or a fault', async () => {
    expect((await inspect('--walk', 'dsa0/app/copy', '--at', '120us')).timeNs).toBe(120_000);
    expect((await inspect('--walk', 'dsa0/app/copy', '--at', 'event:500')).event).toBe(500);
    const first = await inspect('--walk', 'dsa0/app/copy', '--at', 'fault:1'), second = await inspect('--walk', 'dsa0/app/copy', '--at', 'fault:200');
    expect(first.timeNs).toBeLessThan(second.timeNs);
  });

  it.each([
    [['--walk', 'dsa1/app/copy'], '--walk: unknown device "dsa1"; did you mean "dsa0"? Allowed: dsa0\n'],
    [['--walk', 'dsa0/ap/copy'], '--walk: unknown process "ap"; did you mean "app"? Allowed: app\n'],
    [['--walk', 'dsa0/app/cop'], '--walk: process app has no buffer "cop" at this moment\n'],
    [['--walk', 'dsa0/app'], '--walk: "dsa0/app" is not DEVICE/PASID/ADDRESS, such as dsa0/1/0x7ffff7fbb000, dsa0/app/buffer+0x1000, or vm0/app/buffer of a guest\'s process\n'],
    [['--walk', 'dsa0/1048576/0'], '--walk: PASID 1048576 has more than 20 bits\n'],
    [['--walk', 'dsa0/1/copy'], '--walk: "copy" is no address; allowed: 0x…, or a buffer name when the PASID is given as a process name\n'],
    [['--walk', 'dsa0/app/copy', '--at', 'later'], '--at: "later" is no place in a run; allowed: a time such as 120us, event:N, fault:K, before-teardown\n'],
    [['--walk', 'dsa0/app/copy', '--at', '0ns'], '--walk: process app has no buffer "copy" at this moment\n'],
    [['--walk', 'dsa0/app/copy', '--at', 'fault:100000'], 'fault:100000 was not reached; this is the machine at its end, after its teardown\n--walk: process app has no PASID at this moment; --at names another\n'],
    [[], "error: required option '--walk <device/pasid/address>' not specified\n(vfiosim --help lists the commands)\n"],
  ])('refuses %j', async (argv, message) => {
    expect(await vfiosim('inspect', QUICKSTART, ...argv)).toEqual({ code: 2, out: '', err: message });
  });
});
