/** Embedded Postgres servers for tests, in this process and in others. */
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import { pino } from "pino";
import { afterEach, expect } from "vitest";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { type Run, type RunOptions, run } from "./processes.ts";

/** The module under test. */
export const EMBEDDED = join(import.meta.dirname, "../../src/db/embedded.ts");
const SERVICE = join(import.meta.dirname, "embedded-service.ts");

/** What a test leaves behind, removed after it in the opposite order. */
export const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** A directory for one test; 0755 lets the user `postgres` in, 0700 does not. */
export function directory(mode = 0o755): string {
  const path = mkdtempSync(join(tmpdir(), "doorbuster-embedded-"));
  cleanUps.push(() => rmSync(path, { recursive: true, force: true }));
  chmodSync(path, mode);
  return join(path, "data");
}

/** Starts it in this process, until the end of the test. */
export async function start(
  dataDir: string,
  log = pino({ level: "silent" }),
  port?: number,
): Promise<EmbeddedPostgres> {
  const postgres = await startEmbeddedPostgres({ dataDir, log, ...(port && { port }) });
  cleanUps.push(() => postgres.stop());
  return postgres;
}

/** Runs statements and returns the rows of the last one. */
export async function query(url: string, ...statements: string[]): Promise<Record<string, unknown>[]> {
  const client = new Client({ connectionString: url });
  // A Postgres that stops may end the session before we do; a statement that fails by that rejects all the same.
  client.on("error", () => {});
  await client.connect();
  try {
    for (const statement of statements.slice(0, -1)) await client.query(statement);
    return (await client.query(statements.at(-1) ?? "")).rows;
  } finally {
    await client.end();
  }
}

/** Starts it in a process of its own, which `embedded-service.ts` describes. */
export function service(dataDir: string, options: RunOptions = {}, embedded = EMBEDDED): Run {
  return run(process.execPath, [SERVICE, embedded, dataDir], options);
}

/** Waits for such a process. */
export async function urlOf(started: Run): Promise<string> {
  return /ready (.*)\n/.exec(await started.printed(/ready .*\n/))?.[1] ?? "";
}

/** The pid of the Postgres that runs on a cluster. */
export function postmaster(cluster: string): number {
  return Number(readFileSync(join(cluster, "postmaster.pid"), "utf8").split("\n")[0]);
}

/** Ends a process as a power cut would. */
export async function killed(started: Run): Promise<void> {
  started.kill("SIGKILL");
  await started.exited;
}

/** Tells a service to stop, and only then lets its request go on. */
export async function stopped(started: Run, url: string, interrupt: () => void): Promise<void> {
  interrupt();
  await started.printed(/stopping/);
  await query(url, "notify go");
  const { code, stdout } = await started.exited;
  expect(stdout).toContain("the request is done");
  expect(code).toBe(0);
}
