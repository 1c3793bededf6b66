/** Code blocks of the documents, so that tests can run what they show. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

export function textOf(document: string): string {
  return readFileSync(`${ROOT}${document}`, 'utf8');
}

/** Contents of the fenced blocks in a language, in order. */
export function blocksOf(document: string, language: string): string[] {
  return [...textOf(document).matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\`$`, 'gm'))].map(([, block]) => block!);
}
