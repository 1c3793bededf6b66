import { defineConfig } from 'vitest/config';

const nightly = process.env['VFIOSIM_NIGHTLY'] === '1';
const resultsFile = process.env['VFIOSIM_TEST_RESULTS'];

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // boots of a real Linux: vitest.linux.config.ts
    exclude: ['**/node_modules/**', 'test/linux/**'],
    // All files share a few workers and their module caches: four times faster than a fresh
    // world per file, and the reason why tests must leave no global state behind.
    pool: 'threads',
    isolate: false,
    testTimeout: nightly ? 600_000 : 20_000,
    hookTimeout: 30_000,
    reporters:
      resultsFile === undefined ? ['default'] : ['default', ['json', { outputFile: resultsFile }]],
    coverage: {
      provider: 'v8',
      include: ['{sim,host,iommu,vfio,mdev,devices,guest,harness,cli}/**/*.ts'],
      reporter: ['text-summary', 'html'],
    },
  },
});
