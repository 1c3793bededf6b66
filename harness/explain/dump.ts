/**
 * A simulated machine written down as `explain` reads it: `memory.img`, whose offset is the physical address, and
 * `registers.yaml`. Only pages with a byte that is not zero are written, so the image is as large as the machine's
 * memory and takes as much room on disk as its content, where the file system knows holes.
 */
import { closeSync, ftruncateSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Ram } from '../../sim/memory.js';
import { hex } from '../../sim/address.js';
import type { Host } from '../compose/host.js';
import { InvalidInput } from '../topology/problems.js';

const PAGE_BYTES = 4096;

export interface DumpedMachine {
  readonly image: string;
  readonly registers: string;
  /** Pages that were written. */
  readonly pages: number;
}

/** Writes the machine into `directory`, which is made when it is missing. Throws InvalidInput. */
export function dumpMachine(host: Host, directory: string): DumpedMachine {
  const { unit, memory } = host;
  if (unit === undefined) throw new InvalidInput([{ file: directory, message: 'nothing to dump for explain: the topology has no iommu' }]);
  if (!(memory instanceof Ram)) throw new InvalidInput([{ file: directory, message: 'the memory of this machine belongs to somebody else' }]);
  const image = join(directory, 'memory.img'), registers = join(directory, 'registers.yaml');
  try {
    mkdirSync(directory, { recursive: true });
    const pages = writeMemory(image, memory);
    writeFileSync(registers, registerText(unit));
    return { image, registers, pages };
  } catch (error) {
    throw new InvalidInput([{ file: directory, message: `cannot be written (${(error as NodeJS.ErrnoException).code ?? String(error)})` }]);
  }
}

function writeMemory(file: string, memory: Ram): number {
  const descriptor = openSync(file, 'w');
  let pages = 0;
  try {
    for (const { start, bytes } of memory.touched()) {
      const words = new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8);
      for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
        if (isZero(words, at / 8)) continue;
        writeSync(descriptor, bytes, at, PAGE_BYTES, start + at);
        pages++;
      }
    }
    ftruncateSync(descriptor, memory.ranges.at(-1)!.end);
  } finally {
    closeSync(descriptor);
  }
  return pages;
}

/** Minus zero equals 0 but has a bit set. */
function isZero(words: Float64Array, at: number): boolean {
  for (let i = at; i < at + PAGE_BYTES / 8; i++) if (!Object.is(words[i], 0)) return false;
  return true;
}

function registerText(unit: NonNullable<Host['unit']>): string {
  const lines = [`# Registers of ${unit.name}. HAW is the host address width of the DMAR table.`, `HAW: ${unit.capabilities.hostAddressWidth}`];
  for (const { name, size, value, text } of unit.describeRegisters()) {
    lines.push(`${name}: 0x${value.toString(16).padStart(size * 2, '0')}${text === '' || /[\n\r]/.test(text) ? '' : ` # ${text}`}`);
  }
  return `${lines.join('\n')}\n`;
}

/** Where a dump's files lie and how much they hold, for people. */
export function dumpText({ image, registers, pages }: DumpedMachine): string {
  return `wrote ${image} (${pages} pages, ${hex(pages * PAGE_BYTES)} bytes that are not zero) and ${registers}`;
}
