import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/postgres.ts"],
    // Real servers and a real Postgres on two cores: slow is not yet wrong.
    testTimeout: 30_000,
    hookTimeout: 60_000,
    maxWorkers: 2,
    // .ci/run counts from the second.
    reporters: ["default", ["json", { outputFile: "build/test-results.json" }]],
  },
});
