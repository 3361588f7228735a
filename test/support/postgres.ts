/**
 * The database of a test run: one embedded cluster in a temporary directory, migrated once, stopped and removed at the
 * end. Loaded by Vitest before the tests; `database.ts` gives each test file a database of its own.
 */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import type { TestProject } from "vitest/node";
import { entities } from "../../src/app.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { createOrm, migrate } from "../../src/db/orm.ts";

declare module "vitest" {
  export interface ProvidedContext {
    /** The migrated database that others are cloned from; nobody may be connected to it. */
    templateUrl: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const dataDir = mkdtempSync(join(tmpdir(), "doorbuster-test-"));
  // As root, the user `postgres` has to get into it.
  chmodSync(dataDir, 0o755);
  // Also when the run is broken off and nobody waits for Postgres, which is told to stop at the same time.
  process.on("exit", () => rmSync(dataDir, { recursive: true, force: true, maxRetries: 5 }));
  const log = pino({ level: "error" }, pino.destination(2));
  const postgres = await startEmbeddedPostgres({ dataDir, log, durable: false });
  try {
    const orm = await createOrm({ url: postgres.url, poolSize: 2, entities });
    await migrate(orm);
    await orm.close();
  } catch (error) {
    await postgres.stop();
    throw error;
  }
  project.provide("templateUrl", postgres.url);
  return () => postgres.stop();
}
