import type { Pool, PoolClient } from "pg";

/**
 * Takes connections that break while in use out of the pool. Kysely (0.29) gives a connection back only after a commit or
 * rollback that succeeds, and after a `begin` that fails never: each transaction that was open when the database went
 * away would hold its place for ever, until the pool has none left. And once it has told the pool to end, it forgets a
 * connection that is opened at that moment, for which the pool would wait for ever.
 */
export function discardLostConnections(pool: Pool): void {
  const inUse = new Set<PoolClient>();
  const discard = (client: PoolClient) => {
    if (!inUse.has(client)) return;
    client.release(true);
    // Whoever still gives it back in due form must not fail by that.
    client.release = () => {};
  };
  pool.on("acquire", (client) => {
    inUse.add(client);
    if (pool.ending) setImmediate(discard, client);
  });
  pool.on("release", (_error, client) => inUse.delete(client));
  pool.on("connect", (client) => {
    client.once("end", () => discard(client));
  });
}
