/** Checks a database against every invariant, as it is in one moment: what others write meanwhile is not seen. */
import type { ClientBase } from "pg";
import { type Invariant, tableOf } from "./invariant.ts";
import { invariants } from "./invariants.ts";

/** The most ids that are named of what breaks an invariant. */
const MAX_IDS = 20;

export const SNAPSHOT = "begin isolation level repeatable read, read only";

/** For the transaction of an audit alone. */
const settings = {
  // However long it takes: whoever asks can break it off. The limits of a role or a database are for the service.
  statement_timeout: "0",
  transaction_timeout: "0",
  // Each plan reads its tables once, whatever the statistics say: of a million rows looked up one by one some take hours.
  enable_nestloop: "off",
  work_mem: "64MB",
  // The other cores belong to the service. To compile a plan takes longer here than it saves.
  max_parallel_workers_per_gather: "0",
  jit: "off",
  TimeZone: "UTC",
};

/** Makes those settings that this Postgres knows. */
export const SETTINGS = `
  select set_config(name, value, true)
    from (values ${Object.entries(settings).map(([name, value]) => `('${name}', '${value}')`)}) as setting (name, value)
   where name in (select name from pg_settings)`;

export type Verdict = Readonly<{
  /** What the invariant says. */
  name: string;
  /** `skipped`: nothing breaks it, but the database can't tell whether anything does. */
  verdict: "holds" | "broken" | "skipped";
  /** What it is about, and how many rows of that there are. */
  table: string;
  rows: number;
  /** How many break it, and the first of their ids. */
  broken: number;
  ids: readonly string[];
  /** Why it was skipped, or what the database can't tell. */
  note: string | null;
}>;

export type Audit = Readonly<{
  /** When all of this was so. */
  asOf: Date;
  /** How long it took. */
  ms: number;
  verdicts: readonly Verdict[];
}>;

/**
 * Checks everything, in a transaction of its own on a connection that is in none. `onProgress` hears how many steps are
 * done, of how many; what it throws ends the audit.
 */
export async function audit(
  client: ClientBase,
  onProgress: (done: number, total: number) => void = () => {},
): Promise<Audit> {
  const start = performance.now();
  const all = Object.entries(invariants);
  const total = all.length + 1;
  await client.query(SNAPSHOT);
  try {
    onProgress(0, total);
    await client.query(SETTINGS);
    const { asOf, rowsOf } = await countRows(client, new Set(all.map(([, invariant]) => tableOf(invariant))));
    const verdicts: Verdict[] = [];
    for (const [name, invariant] of all) {
      onProgress(1 + verdicts.length, total);
      verdicts.push(await judge(client, name, invariant, rowsOf));
    }
    onProgress(total, total);
    return { asOf, ms: performance.now() - start, verdicts };
  } finally {
    await client.query("rollback");
  }
}

type Rows = (table: string) => number;

async function countRows(client: ClientBase, tables: ReadonlySet<string>): Promise<{ asOf: Date; rowsOf: Rows }> {
  const counts = [...tables].map((table) => `(select count(*) from ${table}) as ${table}`);
  const { rows } = await client.query(`select now() as "asOf", ${counts}`);
  // The ORM's connections give times as they are written.
  return { asOf: new Date(rows[0].asOf), rowsOf: (table) => Number(rows[0][table]) };
}

async function judge(client: ClientBase, name: string, invariant: Invariant, rowsOf: Rows): Promise<Verdict> {
  const { rows } = await client.query<{ id: string; broken: string }>(
    `select id, count(*) over () as broken from (${invariant.broken}) as found order by id limit ${MAX_IDS}`,
  );
  const { skipped, note } = await scopeOf(client, invariant);
  const table = tableOf(invariant);
  return {
    name,
    verdict: rows.length > 0 ? "broken" : skipped ? "skipped" : "holds",
    table,
    rows: rowsOf(table),
    broken: Number(rows[0]?.broken ?? 0),
    ids: rows.map(({ id }) => id),
    note: skipped ?? note,
  };
}

type Scope = { skipped: string | null; note: string | null };

async function scopeOf(client: ClientBase, { scope }: Invariant): Promise<Scope> {
  const known = { skipped: null, note: null };
  if (!scope) return known;
  const { rows } = await client.query<Scope>(scope);
  return rows[0] ?? known;
}
