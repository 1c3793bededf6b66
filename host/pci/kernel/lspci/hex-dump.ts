/** `lspci -xxx` and `-xxxx`: configuration space as hex, and back. */
import { devfnOf, PCI_CFG_SPACE_EXP_SIZE, PCI_DEVICE_ID, PCI_VENDOR_ID } from '../../spec/index.js';
import { hexDigits } from './source.js';
import type { ConfigSize } from '../config-access.js';
import type { LspciFunction } from './source.js';

/** The first `sizeBytes`, 16 bytes a line: `00: 86 80 25 0b …`. */
export function hexDumpLines(fn: LspciFunction, sizeBytes: number): string[] {
  return Array.from({ length: sizeBytes / 16 }, (_, line) => {
    const bytes = Array.from({ length: 16 }, (_unused, i) => hexDigits(fn.config.read(line * 16 + i, 1), 2));
    return `${hexDigits(line * 16, 2)}: ${bytes.join(' ')}`;
  });
}

const TITLE = /^(?:([0-9a-f]{4,}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])(?: |$)/i;
const BYTES = /^([0-9a-f]{2,3}):((?: [0-9a-f]{2}){1,16})\s*$/i;

/**
 * Functions of the text that `lspci -x…` printed, of this or of a real machine. Lines that are neither a title nor
 * bytes are skipped; bytes that the dump lacks read as zero.
 */
export function parseHexDump(text: string): LspciFunction[] {
  const found: { segment: number; bus: number; devfn: number; bytes: DataView }[] = [];
  for (const line of text.split('\n')) {
    const bytes = BYTES.exec(line), title = bytes === null ? TITLE.exec(line) : null;
    if (title !== null) {
      const number = (part: string | undefined): number => parseInt(part ?? '0', 16);
      const view = new DataView(new ArrayBuffer(PCI_CFG_SPACE_EXP_SIZE));
      found.push({ segment: number(title[1]), bus: number(title[2]), devfn: devfnOf(number(title[3]), number(title[4])), bytes: view });
    } else if (bytes !== null) {
      const start = parseInt(bytes[1]!, 16);
      bytes[2]!.trim().split(' ').forEach((byte, i) => found.at(-1)?.bytes.setUint8(start + i, parseInt(byte, 16)));
    }
  }
  return found.map(({ segment, bus, devfn, bytes }) => {
    const read = (offset: number, size: ConfigSize): number => {
      if (offset + size > PCI_CFG_SPACE_EXP_SIZE) return 2 ** (8 * size) - 1;
      return size === 4 ? bytes.getUint32(offset, true) : size === 2 ? bytes.getUint16(offset, true) : bytes.getUint8(offset);
    };
    return { segment, bus, devfn, config: { read }, vendorId: read(PCI_VENDOR_ID, 2), deviceId: read(PCI_DEVICE_ID, 2) };
  });
}
