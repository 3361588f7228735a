import { AsyncLocalStorage } from "node:async_hooks";
import type { Pool, PoolClient } from "pg";

/** How long a statement may take, in milliseconds. */
const limits = new AsyncLocalStorage<number>();

/**
 * Runs `work`. Of the statements that it sends through the ORM, each has to answer within `ms` milliseconds: one that does
 * not fails, and its connection is gone. A database that drops packets is noticed by the operating system after a quarter
 * of an hour only.
 */
export function withSilenceLimit<T>(ms: number, work: () => Promise<T>): Promise<T> {
  return limits.run(ms, work);
}

/**
 * Makes a pool keep to it. The driver's own `query_timeout` fails the query and keeps the connection: its transaction would
 * stay open, and Kysely would wait for the answer to a rollback behind it.
 */
export function discardSilentConnections(pool: Pool): void {
  pool.on("connect", (client) => {
    // Looked up for each query: whoever traces the driver wraps its own method.
    const driver = Object.getPrototypeOf(client) as { query(...args: unknown[]): unknown };
    const limited = (...args: unknown[]) => {
      const answer = driver.query.apply(client, args);
      const ms = limits.getStore();
      if (ms === undefined || !(answer instanceof Promise)) return answer;
      const timer = setTimeout(() => destroy(client), ms);
      return answer.finally(() => clearTimeout(timer));
    };
    client.query = limited as PoolClient["query"];
  });
}

/** All that waits for this connection fails at once. */
function destroy(client: PoolClient): void {
  (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
}
