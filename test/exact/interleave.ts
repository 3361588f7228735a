/** Transactions of somebody else beside the service's. Signals are the waits that Postgres reports, never time. */
import type { Pool, PoolClient } from "pg";
import { expect } from "vitest";
import { value } from "./audit.ts";

/** Resolves when `count` connections wait for a lock with a statement like `pattern`. */
export async function waitForLock(database: Pool, count = 1, pattern = "%"): Promise<void> {
  const waiting = `select count(*)::int from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock' and query ilike $1`;
  await expect.poll(() => value<number>(database, waiting, pattern), { timeout: 10_000, interval: 5 }).toBe(count);
}

/** Begins a transaction of somebody else that runs `sql`. */
export async function begin(database: Pool, sql: string, ...values: unknown[]): Promise<PoolClient> {
  const client = await database.connect();
  await client.query("begin");
  await client.query(sql, values);
  return client;
}

export async function commit(client: PoolClient): Promise<void> {
  await client.query("commit");
  client.release();
}
