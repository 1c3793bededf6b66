/** Streams that keep what a command writes. */
import { ioFor, type Io } from '../../cli/io.js';

export function captured(): { readonly io: Io; out(): string; err(): string } {
  const keep = (): { parts: string[]; stream: { write(text: string): boolean; once(): void } } => {
    const parts: string[] = [];
    return { parts, stream: { write: (text) => parts.push(text) > 0, once: () => undefined } };
  };
  const out = keep(), err = keep();
  return { io: ioFor(out.stream, err.stream, { NO_COLOR: '1' }), out: () => out.parts.join(''), err: () => err.parts.join('') };
}
