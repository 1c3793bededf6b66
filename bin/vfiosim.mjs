#!/usr/bin/env node
// Starts the command: from the TypeScript sources in a checkout, from dist/ in an installed package.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const source = new URL('../cli/main.ts', import.meta.url);
const built = new URL('../dist/cli/main.js', import.meta.url);

async function load() {
  if (!existsSync(source)) return import(built.href);
  const { register } = await import('tsx/esm/api');
  // The checkout's own options, whatever the current directory is.
  register({ tsconfig: fileURLToPath(new URL('../tsconfig.json', import.meta.url)) });
  return import(source.href);
}

// A reader that stops early (`vfiosim … | head`) is no error.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error) => {
    if (error.code === 'EPIPE') process.exit();
    if (stream === process.stdout) process.stderr.write(`the output cannot be written: ${error.message}\n`);
    process.exit(2);
  });
}

const { main } = await load();
process.exitCode = await main(process.argv.slice(2));
