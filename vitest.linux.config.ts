import { defineConfig } from 'vitest/config';

/** Boots of a real Linux: one virtual machine at a time, each test a boot of seconds. `npm run test:linux` starts it. */
export default defineConfig({
  test: {
    include: ['test/linux/**/*.test.ts'],
    pool: 'threads',
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
