/** Parsers of option values, for commander. */
import { InvalidArgumentError } from 'commander';

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^(0x[0-9a-fA-F]+|\d+)$/.test(text) || !Number.isSafeInteger(value) || value > 0xffff_ffff) {
    throw new InvalidArgumentError('expects a whole number from 0 to 4294967295.');
  }
  return value;
}

/** Of an option that may be given several times. */
export const gathered = (value: string, previous: readonly string[]): readonly string[] => [...previous, value];
export const counted = (_value: string, previous: number): number => previous + 1;
