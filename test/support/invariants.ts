/**
 * What must hold of the stored state whenever nothing is being written, as SQL. Each query returns the ids of what breaks
 * it, so none at all when all is well.
 */

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
     - coalesce((select sum(l.quantity) from order_line l join shop_order o on o.id = l.order_id
                  where l.variant_id = v.id and o.state in ('PENDING_PAYMENT', 'PAID')), 0)`;

/** By what they say. */
export const invariants: Readonly<Record<string, string>> = {
  "the balance is the sum of the ledger": `
    select w.user_id::text as id from wallet w
     where w.balance <> coalesce((select sum(amount) from ledger_entry l where l.user_id = w.user_id), 0)`,

  "ledger entries are numbered without a gap, up to what the wallet counts": `
    select w.user_id::text as id from wallet w left join ledger_entry l using (user_id)
     group by w.user_id
    having count(l.seq) <> w.entries or coalesce(max(l.seq), 0) <> w.entries or coalesce(min(l.seq), 1) <> 1`,

  "each ledger entry holds the balance that it led to": `
    select user_id || '/' || seq as id
      from (select *, sum(amount) over (partition by user_id order by seq) as running from ledger_entry) l
     where balance_after <> running`,

  "each ledger entry belongs to a wallet": `
    select user_id || '/' || seq as id from ledger_entry l
     where not exists (select 1 from wallet w where w.user_id = l.user_id)`,

  "each user has a wallet": `
    select coalesce(u.id, w.user_id)::text as id from shop_user u full join wallet w on w.user_id = u.id
     where u.id is null or w.user_id is null`,

  "a coupon counts its issued pieces, and they are not more than there are": `
    select c.id::text from coupon c
     where c.issued > c.total_quantity
        or c.issued <> (select count(*) from issued_coupon i where i.coupon_id = c.id)`,

  "nobody holds more pieces of a coupon than one user may": `
    select c.id || '/' || i.user_id as id from coupon c join issued_coupon i on i.coupon_id = c.id
     group by c.id, c.per_user_limit, i.user_id
    having count(*) > c.per_user_limit or max(i.ordinal) <> count(*) or min(i.ordinal) <> 1`,

  "a used piece and the one order that uses it know each other": `
    select coalesce(i.id, o.issued_coupon_id)::text as id
      from (select * from issued_coupon where order_id is not null) i
      full join (select * from shop_order where issued_coupon_id is not null and state in ('PENDING_PAYMENT', 'PAID')) o
        on o.id = i.order_id and o.issued_coupon_id = i.id and o.user_id = i.user_id
     where i.id is null or o.id is null`,

  "an order's subtotal is the sum of its lines, numbered from 1": `
    select o.id::text from shop_order o left join order_line l on l.order_id = o.id
     group by o.id
    having coalesce(sum(l.price * l.quantity), -1) <> o.subtotal or max(l.line_no) <> count(*) or min(l.line_no) <> 1`,

  "a paid order has exactly one completed payment, no other order has one": `
    select o.id::text from shop_order o
      left join payment p on p.order_id = o.id and p.state = 'COMPLETED' and p.amount = o.total and p.user_id = o.user_id
     group by o.id
    having count(p.id) <> case o.state when 'PAID' then 1 else 0 end`,

  "each payment belongs to an order, and holds its money as long as that is paid": `
    select p.id::text from payment p left join shop_order o on o.id = p.order_id
     where o.id is null or (p.state = 'COMPLETED' and o.state <> 'PAID')
        or p.refunded_amount <> case p.state when 'REFUNDED' then p.amount else 0 end
        or (p.state in ('REFUNDING', 'REFUNDED') and p.method = 'BALANCE' and o.state <> 'CANCELLED')`,

  "the gateway is asked about what it has to settle, and about nothing else": `
    select p.id::text from payment p
     where (p.state in ('PENDING', 'REFUNDING')) <> (p.next_try_time is not null)
        or (p.method = 'BALANCE' and p.state in ('PENDING', 'FAILED', 'REFUNDING'))`,

  "a payment from the wallet has one debit, and one credit when it was refunded": `
    select p.id::text from payment p left join ledger_entry l on l.user_id = p.user_id and l.reference = p.id::text
     where p.method = 'BALANCE' and p.amount > 0
     group by p.order_id, p.id
    having count(*) filter (where l.kind = 'PAYMENT' and l.amount = -p.amount) <> 1
        or count(*) filter (where l.kind = 'REFUND' and l.amount = p.amount)
           <> case p.state when 'REFUNDED' then 1 else 0 end
        or count(*) <> case p.state when 'REFUNDED' then 2 else 1 end`,

  "money leaves and returns for payments only": `
    select l.user_id || '/' || l.seq as id from ledger_entry l
     where l.kind <> 'CHARGE'
       and not exists (select 1 from payment p where p.id::text = l.reference and p.user_id = l.user_id)`,

  "the history of a payment is numbered without a gap and ends in its state": `
    select p.id::text from payment p left join payment_event e on e.order_id = p.order_id and e.payment_id = p.id
     group by p.order_id, p.id
    having count(e.seq) <> p.events or max(e.seq) <> p.events or min(e.seq) <> 1
        or (array_agg(e.state order by e.seq desc))[1] <> p.state
        or sum(e.amount) <> case when p.state in ('COMPLETED', 'REFUNDING') then p.amount else 0 end`,

  "each order was announced once, and so was what became of it": `
    select o.id::text from shop_order o left join event e on e.aggregatetype = 'order' and e.aggregateid = o.id::text
     group by o.id
    having count(*) filter (where e.type = 'order.placed') <> 1
        or count(*) filter (where e.type = 'order.paid') <> case when o.pay_time is null then 0 else 1 end
        or count(*) filter (where e.type = 'order.cancelled') <> case o.state when 'CANCELLED' then 1 else 0 end
        or count(*) filter (where e.type = 'order.expired') <> case o.state when 'EXPIRED' then 1 else 0 end`,

  "each issued piece was announced once": `
    select i.id::text from issued_coupon i
      left join event e on e.type = 'coupon.claimed' and e.aggregateid = i.coupon_id::text
                       and e.payload ->> 'issued_coupon_id' = i.id::text
     group by i.user_id, i.id having count(e.id) <> 1`,

  // Only when the projection has caught up with the events.
  "the ranking counts the units of paid orders, in the hour of their payment": `
    select coalesce(b.variant_id, s.variant_id) || '/' || coalesce(b.hour, s.hour) as id
      from (select variant_id, hour, quantity from ranking_bucket where quantity <> 0) b
      full join (select l.variant_id, date_trunc('hour', o.pay_time, 'UTC') as hour, sum(l.quantity) as quantity
                   from order_line l join shop_order o on o.id = l.order_id where o.state = 'PAID' group by 1, 2) s
        on s.variant_id = b.variant_id and s.hour = b.hour
     where b.quantity is distinct from s.quantity`,

  "the totals of the ranking are the sums of their hours": `
    select coalesce(t.days, s.days) || '/' || coalesce(t.id, s.id) as id
      from (select days, by_variant, id, units from ranking_total where units <> 0) t
      full join (select w.days, w.by_variant, case when w.by_variant then b.variant_id else b.product_id end as id,
                        sum(b.quantity) as units
                   from ranking_window w join ranking_bucket b on b.hour >= w.since group by 1, 2, 3
                 having sum(b.quantity) <> 0) s
        on s.days = t.days and s.by_variant = t.by_variant and s.id = t.id
     where t.units is distinct from s.units`,
};

/** Whether events wait to be counted by the ranking: one row when so. */
export const RANKING_BEHIND = `
  select e.id::text from event e, event_reader p
   where p.name = 'sales' and e.type in ('order.paid', 'order.cancelled') and (e.xid, e.id) > (p.xid, p.event_id) limit 1`;

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
