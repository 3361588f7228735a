/** The database of a test as an auditor sees it: plain SQL beside the service. */
import { Pool } from "pg";
import { afterAll, expect, vi } from "vitest";
import { RANKING_BEHIND } from "../../src/audit/invariants.ts";
import { broken, type InitialStocks } from "../support/invariants.ts";

const pools: Pool[] = [];
afterAll(() => Promise.all(pools.map((pool) => pool.end())));

/** Connections of the test's own to the database. */
export function openDatabase(url: string): Pool {
  const pool = new Pool({ connectionString: url, max: 5, application_name: "auditor" });
  // Its end does not wait for the sockets: one that is still closing hears that its database is being dropped.
  pool.on("error", () => {});
  pools.push(pool);
  return pool;
}

/** The first column of the first row. */
export async function value<T>(database: Pool, sql: string, ...values: unknown[]): Promise<T> {
  const { rows } = await database.query({ text: sql, values, rowMode: "array" });
  return rows[0]?.[0] as T;
}

/** Waits until the ranking has counted all events: the servers do so, or `project` does. */
export async function rankingCaughtUp(database: Pool, project: () => Promise<unknown> = async () => {}): Promise<void> {
  // Events wait for the transactions of the whole cluster, those of other tests included.
  const catchUp = async () => {
    await project();
    expect((await database.query(RANKING_BEHIND)).rows).toEqual([]);
  };
  await vi.waitFor(catchUp, { timeout: 10_000, interval: 10 });
}

/** Expects that nothing is broken, once the ranking has caught up. */
export async function expectExact(database: Pool, stocks: InitialStocks): Promise<void> {
  await rankingCaughtUp(database);
  expect(await broken(database, stocks)).toEqual([]);
}
