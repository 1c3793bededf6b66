/** Holds the product's own files against the rules of this folder. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { checkArchitecture, formatViolation, ROOMS, type SourceFile } from './rules.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

function sourcesOf(room: string): SourceFile[] {
  const folder = join(ROOT, room);
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.[cm]?ts$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .map((file) => ({
      path: relative(ROOT, file).split(sep).join('/'),
      text: readFileSync(file, 'utf8'),
    }));
}

function included(configFile: string): string[] {
  return (JSON.parse(readFileSync(join(ROOT, configFile), 'utf8')) as { include: string[] }).include;
}

test('every import of the product respects the rooms', () => {
  const files = ROOMS.flatMap(sourcesOf);
  expect(files.length).toBeGreaterThan(0);
  expect(checkArchitecture(files).map(formatViolation)).toEqual([]);
});

test('both compiler configurations include every room', () => {
  expect(included('tsconfig.json')).toEqual(expect.arrayContaining([...ROOMS]));
  expect(included('tsconfig.build.json')).toEqual([...ROOMS]);
});
