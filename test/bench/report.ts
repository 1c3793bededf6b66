/** What the benchmarks print: one row for each number, with the target beside it. */
import Table from 'cli-table3';

export type Unit = '/s' | 'GB/s' | 'bytes' | 'µs' | 'ms' | '%' | 'ratio';

export interface Row {
  readonly group: string;
  readonly name: string;
  readonly value: number;
  readonly unit: Unit;
  /** What we want, as docs/BENCHMARKS.md explains it. */
  readonly target?: { readonly atLeast: number } | { readonly atMost: number };
  /** Samples behind the median. */
  readonly samples?: readonly number[];
  readonly note?: string;
}

/** Undefined where there is no target. */
export function reached({ value, target }: Row): boolean | undefined {
  if (target === undefined) return undefined;
  return 'atLeast' in target ? value >= target.atLeast : value <= target.atMost;
}

export function formatValue(value: number, unit: Unit): string {
  switch (unit) {
    case '/s': return value >= 1e6 ? `${(value / 1e6).toFixed(2)} M/s` : `${(value / 1e3).toFixed(1)} k/s`;
    case 'GB/s': return `${value.toFixed(2)} GB/s`;
    case 'bytes': return value >= 10_000 ? `${(value / 1024).toFixed(1)} KiB` : `${value.toFixed(0)} B`;
    case 'µs': return `${value.toFixed(2)} µs`;
    case 'ms': return `${value.toFixed(2)} ms`;
    case '%': return `${value.toFixed(1)} %`;
    case 'ratio': return value.toFixed(2);
  }
}

function formatTarget(row: Row): string {
  if (row.target === undefined) return '';
  return 'atLeast' in row.target ? `≥ ${formatValue(row.target.atLeast, row.unit)}` : `≤ ${formatValue(row.target.atMost, row.unit)}`;
}

/** Half the distance between the fastest and the slowest repetition, in percent of the median. */
function spread({ samples, value }: Row): string {
  if (samples === undefined || samples.length < 2) return '';
  return `± ${((Math.max(...samples) - Math.min(...samples)) / 2 / value * 100).toFixed(0)} %`;
}

export function printTable(rows: readonly Row[]): string {
  const table = new Table({
    head: ['', 'measured', '', 'wanted', '', 'note'], colAligns: ['left', 'right', 'right', 'right', 'left', 'left'],
    style: { head: [], border: [], compact: true },
  });
  let group = '';
  for (const row of rows) {
    if (row.group !== group) table.push([{ content: row.group.toUpperCase(), colSpan: 6 }]);
    group = row.group;
    const verdict = reached(row);
    table.push([`  ${row.name}`, formatValue(row.value, row.unit), spread(row), formatTarget(row), verdict === undefined ? '' : verdict ? 'yes' : 'NO', row.note ?? '']);
  }
  return table.toString();
}
