/** Statements at the beginning of a transaction. */
import type { Statement } from "./table.ts";

/**
 * For one transaction. Rows are always found by index: a plan made while a table is empty would read it from end to end,
 * and being prepared it would do so until somebody analyses the table. Nested loops also keep updates in the order of
 * their keys. And a row that somebody outside keeps locked holds a batch up for a second, not for ever.
 */
const settings = {
  enable_seqscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
  // Planning anew would find the same plan, for a twentieth of what a batch costs Postgres.
  plan_cache_mode: "force_generic_plan",
  lock_timeout: "1s",
  idle_in_transaction_session_timeout: "30s",
};
const set = Object.entries(settings).map(([name, value]) => `set_config('${name}', '${value}', true)`);

export const SETTINGS: Statement = { name: "settings", text: `select ${set.join(", ")}`, values: [] };

/** The same, and returns first the id of the transaction, for a `proofOf` it. */
export const IDENTIFIED: Statement = {
  name: "identified",
  text: `select ${["pg_current_xact_id()::text", ...set].join(", ")}`,
  values: [],
};

/**
 * Fails (division by zero) unless the transaction was committed, and with it all behind it in its own transaction. By its
 * id and not by what it has stored: another attempt, or another process that was sent the same request, may have stored
 * the same and left other rows.
 */
export function proofOf(transaction: string): Statement {
  const text = "select 1 / (pg_xact_status($1::xid8) is not distinct from 'committed')::int";
  return { name: "proof", text, values: [transaction] };
}
