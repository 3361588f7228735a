/** The invariants of the stored state, and the stock of variants whose beginning a test knows. */
import { invariants } from "../../src/audit/invariants.ts";

/** Anything that runs SQL: a `pg` client or pool. */
type Queryable = { query(sql: string, values?: unknown[]): Promise<{ rows: { id: string }[] }> };

/** Units in stock when a variant was made, by its id; the sum of stock movements is checked for these only. */
export type InitialStocks = Readonly<Record<string, number>>;

/** `$1` is the JSON of InitialStocks. */
const STOCK = `
  select v.id::text from variant v join jsonb_each_text($1::jsonb) initial on initial.key = v.id::text
   where v.stock <> initial.value::int
     + coalesce((select sum((e.payload ->> 'delta')::int) from event e
                  where e.type = 'stock.adjusted' and e.aggregateid = v.id::text), 0)
     - coalesce((select sum(l.quantity - l.returned) from order_line l join shop_order o on o.id = l.order_id
                  where l.variant_id = v.id and o.state in ('PENDING_PAYMENT', 'PAID')), 0)`;

/** Everything that is broken, as `invariant: id`; empty when all is well. */
export async function broken(database: Queryable, stocks: InitialStocks = {}): Promise<string[]> {
  const found: string[] = [];
  for (const [name, sql] of Object.entries(invariants)) {
    const { rows } = await database.query(sql);
    found.push(...rows.map(({ id }) => `${name}: ${id}`));
  }
  const { rows } = await database.query(STOCK, [JSON.stringify(stocks)]);
  return [...found, ...rows.map(({ id }) => `stock and sold units add up to what there was: ${id}`)];
}
