/** How far behind background jobs are, by what is stored: the same for all processes on the database. */
import type { EntityManager } from "@mikro-orm/postgresql";

/** No more pieces than these are looked at for one job, however many wait. */
export const MOST = 10_000;

/**
 * What waits for a job: a query of `due_time`, since when a piece should have been done, and `failures`, how often that was
 * tried in vain. It finds the piece that has waited the longest, and at most MOST of them, by an index.
 */
export type Waiting = Readonly<{ sql: string; values: readonly unknown[] }>;

/** How far behind a job is. */
export type Lag = Readonly<{
  /** How many pieces wait; MOST: that many or more. */
  waiting: number;
  /** Since when the oldest of them should have been done; null when none waits. */
  since: Date | null;
  /** The same in seconds until now, by the clock of the database; 0 when none waits. */
  seconds: number;
  /** Of those that wait, how many were tried in vain, and how often one was at the most. */
  failing: number;
  failures: number;
}>;

/** Of the job that something waits for. */
export async function lagOf(em: EntityManager, { sql, values }: Waiting): Promise<Lag> {
  const [row] = await em.execute<(Omit<Lag, "since"> & { since: Date | string | null })[]>(
    `select least(count(*), ${MOST})::int as waiting, min(due_time) as since,
            coalesce(greatest(extract(epoch from now() - min(due_time)), 0), 0)::float8 as seconds,
            count(*) filter (where failures > 0)::int as failing, coalesce(max(failures), 0)::int as failures
       from (${sql}) piece`,
    [...values],
  );
  if (!row) throw new Error("an aggregate is one row");
  return { ...row, since: row.since === null ? null : new Date(row.since) };
}
