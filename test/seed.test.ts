import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { run } from "./support/processes.ts";

const SEED = join(import.meta.dirname, "../scripts/seed.ts");

test.each(["SIGINT", "SIGTERM"] as const)("%s ends a load, and the Postgres started for it", async (signal) => {
  const dataDir = mkdtempSync(join(tmpdir(), "doorbuster-seed-"));
  onTestFinished(() => rmSync(dataDir, { recursive: true, force: true }));
  // As root, the user `postgres` has to get into it.
  chmodSync(dataDir, 0o755);
  const args = [SEED, "--products", "1000000", "--users", "0"];
  const seed = run(process.execPath, args, { env: { DATA_DIR: dataDir } });
  await expect.poll(() => existsSync(join(dataDir, "database-url")), { timeout: 20_000 }).toBe(true);
  seed.kill(signal);
  const { code, stderr } = await seed.exited;
  expect(stderr).toContain("seed: stopped; what was loaded by then stays\n");
  expect(code).toBe(1);
  // Postgres removes postmaster.pid when it has ended in order.
  expect(existsSync(join(dataDir, "postgres/PG_VERSION"))).toBe(true);
  expect(readdirSync(dataDir).sort()).toEqual(["postgres", "postgres-password"]);
  expect(existsSync(join(dataDir, "postgres/postmaster.pid"))).toBe(false);
});
