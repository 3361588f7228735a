/** The invariants of the stored state, and what was put in stock of variants whose beginning a test knows. */
import { invariants } from "../../src/audit/invariants.ts";

/** Anything that runs SQL: a `pg` client or pool. */
type Queryable = { query(sql: string, values?: unknown[]): Promise<{ rows: { id: string }[] }> };

/** Units in stock when a variant was made, by its id; what was supplied is checked for these only. */
export type InitialStocks = Readonly<Record<string, number>>;

/** `$1` is the JSON of InitialStocks. What the invariants take for supplied, they have no other record of. */
const SUPPLIED = `
  select v.id::text from variant v join jsonb_each_text($1::jsonb) initial on initial.key = v.id::text
   where v.supplied <> initial.value::int
     + coalesce((select sum((e.payload ->> 'delta')::int) from event e
                  where e.type = 'stock.adjusted' and e.aggregateid = v.id::text), 0)`;

/** Everything that is broken, as `invariant: id`; empty when all is well. */
export async function broken(database: Queryable, stocks: InitialStocks = {}): Promise<string[]> {
  const found: string[] = [];
  for (const [name, invariant] of Object.entries(invariants)) {
    const { rows } = await database.query(invariant.broken);
    found.push(...rows.map(({ id }) => `${name}: ${id}`));
  }
  const { rows } = await database.query(SUPPLIED, [JSON.stringify(stocks)]);
  return [...found, ...rows.map(({ id }) => `what was supplied is what was put in: ${id}`)];
}
