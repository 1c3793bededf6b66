/** Runs command lines in this process, with what they write kept; and compares with golden files. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { ioFor, type Io, type Output } from '../../cli/io.js';
import { main } from '../../cli/main.js';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));
export const config = (name: string): string => fileURLToPath(new URL(`../../configs/${name}.yaml`, import.meta.url));

export class Captured implements Output {
  text = '';
  readonly isTTY: boolean;

  constructor(isTTY = false) {
    this.isTTY = isTTY;
  }

  write(text: string): boolean {
    this.text += text;
    return true;
  }

  once(): void {}
}

export interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export function capture(options: { terminal?: boolean; env?: Record<string, string> } = {}): { io: Io; out: Captured; err: Captured } {
  const out = new Captured(options.terminal), err = new Captured();
  return { io: ioFor(out, err, options.env ?? {}), out, err };
}

export async function vfiosim(...argv: string[]): Promise<Ran> {
  const { io, out, err } = capture();
  const code = await main(argv, io);
  return { code, out: out.text, err: err.text };
}

/** UPDATE_GOLDEN=1 writes the files instead. */
export function expectGolden(name: string, text: string): void {
  const file = fileURLToPath(new URL(`../golden/${name}`, import.meta.url));
  if (process.env['UPDATE_GOLDEN'] === '1') {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
  expect(existsSync(file), `${name} is missing; UPDATE_GOLDEN=1 writes it`).toBe(true);
  expect(text).toBe(readFileSync(file, 'utf8'));
}
