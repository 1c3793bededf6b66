/** `vfiosim lspci` with the flags that lspci's users type. */
import { describe, expect, it } from 'vitest';
import { parseSlotFilter } from '../../host/pci/kernel/lspci/slot-filter.js';
import { config, expectGolden, vfiosim } from './vfiosim.js';

const QUICKSTART = config('quickstart');
const UNPLUG = config('unplug-during-dma');

async function lspci(...argv: string[]): Promise<string> {
  const { code, out, err } = await vfiosim('lspci', ...argv);
  expect({ code, err }).toEqual({ code: 0, err: '' });
  return out;
}

describe('vfiosim lspci', () => {
  it('prints -vv as golden', async () => {
    expectGolden('lspci-vv-quickstart.txt', await lspci('-vv', QUICKSTART));
  });

  it('takes flags together, before and after the file', async () => {
    const all = await lspci('-v', '-v', '-n', '-n', QUICKSTART);
    expect(await lspci('-vvnn', QUICKSTART)).toBe(all);
    expect(await lspci(QUICKSTART, '-nnvv')).toBe(all);
    expect(await lspci('-nnvvv', '-s', '6a:01.0', QUICKSTART)).toBe(all);
    expect(await lspci('-vvnns6a:01.0', QUICKSTART)).toBe(all);
    expect(await lspci('-tv', QUICKSTART)).toBe('-[0000:6a]---01.0  Intel Corporation Device 0b25\n');
    expect(await lspci('-t', '-v', QUICKSTART)).toBe(await lspci('-vt', QUICKSTART));
  });

  it('dumps 64, 256 or 4096 bytes', async () => {
    const lines = async (...argv: string[]): Promise<number> => (await lspci(...argv, QUICKSTART)).split('\n').filter((line) => /^[0-9a-f]{2,3}: /.test(line)).length;
    expect([await lines('-x'), await lines('-xx'), await lines('-xxx'), await lines('-xxxx')]).toEqual([4, 4, 16, 256]);
  });

  it('shows segments with -D', async () => {
    expect(await lspci('-Dn', QUICKSTART)).toBe('0000:6a:01.0 0880: 8086:0b25\n');
  });

  it.each([
    ['6b:01.0', ['6b:01.0']], ['6a:', ['6a:01.0']], ['01', ['6a:01.0', '6b:01.0']], ['.0', ['6a:01.0', '6b:01.0']], ['0000:6b:', ['6b:01.0']], ['0000::1.0', ['6a:01.0', '6b:01.0']],
    ['*:*.0', ['6a:01.0', '6b:01.0']], ['7f:00.0', []], ['.1', []], ['0001:6a:01.0', []],
  ])('selects with -s %s', async (slot, expected) => {
    expect((await lspci('-s', slot, UNPLUG)).split('\n').filter(Boolean).map((line) => line.split(' ')[0])).toEqual(expected);
  });

  it.each([
    ['zz', '"zz" is no [[[segment:]bus:][device][.function]] in hex, such as 6a:01.0, 6a: or .0'], ['6a:20.0', '"6a:20.0": device 20 is above 1f'], ['100:00.0', '"100:00.0": bus 100 is above ff'], ['.8', '".8": function 8 is above 7'],
    ['10000:00:00.0', '"10000:00:00.0": segment 10000 is above ffff'],
  ])('refuses -s %s', async (slot, message) => {
    expect(parseSlotFilter(slot)).toBe(message);
    expect(await vfiosim('lspci', QUICKSTART, '-s', slot)).toEqual({ code: 2, out: '', err: `-s: ${message}\n` });
  });
});
