/**
 * What must hold of the stored state in every moment, as SQL. Each query returns the ids of what breaks it, so none at all
 * when all is well. None may look something up for each of many rows: there are millions.
 */
import { linesOf, RANKED, SALES, unitsOf } from "../ranking/projection.ts";
import { announcements } from "./announcements.ts";
import type { Invariant } from "./invariant.ts";
import { paymentInvariants } from "./payments.ts";

export const RANKING = "the ranking counts the units of paid orders, in the hour of their payment";

/**
 * From when on all hours are there: no answer reaches back further. They are kept for a day longer, by the clocks of the
 * processes that delete them.
 */
const RANKED_SINCE = "date_trunc('hour', now() - interval '30 days', 'UTC')";

/** What events that the ranking has not counted yet will add to its hours. */
const UNCOUNTED = `
  select line.variant_id, date_trunc('hour', (e.payload ->> 'pay_time')::timestamptz, 'UTC') as hour,
         ${unitsOf("e")} as quantity
    from event e, ${linesOf("e")}
   where ${RANKED} and (e.xid, e.id) > (select xid, event_id from event_reader where name = '${SALES}')
     and e.payload ->> 'pay_time' is not null`;

const plain: Readonly<Record<string, string>> = {
  "the balance is the sum of the ledger": `
    select w.user_id::text as id
      from wallet w left join (select user_id, sum(amount) as total from ledger_entry group by user_id) l using (user_id)
     where w.balance <> coalesce(l.total, 0)`,

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
    select coalesce(c.id, i.coupon_id)::text as id
      from coupon c full join (select coupon_id, count(*) as pieces from issued_coupon group by coupon_id) i
        on i.coupon_id = c.id
     where c.id is null or c.issued > c.total_quantity or c.issued <> coalesce(i.pieces, 0)`,

  "nobody holds more pieces of a coupon than one user may": `
    select c.id || '/' || i.user_id as id from coupon c join issued_coupon i on i.coupon_id = c.id
     group by c.id, c.per_user_limit, i.user_id
    having count(*) > c.per_user_limit or max(i.ordinal) <> count(*) or min(i.ordinal) <> 1`,

  "a used piece and the one order that uses it know each other": `
    select coalesce(i.id, o.issued_coupon_id)::text as id
      from (select * from issued_coupon where order_id is not null) i
      full join (select *, state in ('PENDING_PAYMENT', 'PAID') as stands from shop_order where issued_coupon_id is not null) o
        on o.id = i.order_id and o.issued_coupon_id = i.id and o.user_id = i.user_id
     where o.id is null or (i.id is null and o.stands) or (not o.stands and i.valid_until > o.update_time)`,

  "units come back of orders that were paid, and an order of which all came back is cancelled": `
    select o.id::text from shop_order o join order_line l on l.order_id = o.id
     group by o.id
    having (sum(l.returned) > 0 and o.state not in ('PAID', 'CANCELLED'))
        or (sum(l.returned) = sum(l.quantity) and o.state = 'PAID')`,

  "each line is of an order, and an order's subtotal is the sum of its lines, numbered from 1": `
    select coalesce(o.id, l.order_id)::text as id from shop_order o full join order_line l on l.order_id = o.id
     group by o.id, l.order_id, o.subtotal
    having o.id is null or coalesce(sum(l.price * l.quantity), -1) <> o.subtotal or max(l.line_no) <> count(*) or min(l.line_no) <> 1`,

  "the stock is what was supplied, less the units of orders that are waiting or paid": `
    select coalesce(v.id, s.variant_id)::text as id
      from variant v full join (
          select l.variant_id, sum(l.quantity - l.returned) as units from order_line l join shop_order o on o.id = l.order_id
           where o.state in ('PENDING_PAYMENT', 'PAID') group by l.variant_id
        ) s on s.variant_id = v.id
     where v.id is null or v.stock <> v.supplied - coalesce(s.units, 0)`,

  ...paymentInvariants,

  [RANKING]: `
    select coalesce(b.variant_id, s.variant_id) || '/' || coalesce(b.hour, s.hour) as id
      from (select variant_id, hour, sum(quantity) as quantity
              from (select variant_id, hour, quantity from ranking_bucket union all ${UNCOUNTED}) counted
             where hour >= ${RANKED_SINCE} group by 1, 2 having sum(quantity) <> 0) b
      full join (select l.variant_id, date_trunc('hour', o.pay_time, 'UTC') as hour, sum(l.quantity - l.returned) as quantity
                   from order_line l join shop_order o on o.id = l.order_id
                  where o.state = 'PAID' and o.pay_time >= ${RANKED_SINCE} group by 1, 2
                 having sum(l.quantity - l.returned) <> 0) s
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

/** By what they say. */
export const invariants: Readonly<Record<string, Invariant>> = {
  ...Object.fromEntries(Object.entries(plain).map(([name, broken]) => [name, { broken }])),
  ...announcements,
};

/** Whether events wait to be counted by the ranking: one row when so. */
export const RANKING_BEHIND = `
  select e.id::text from event e, event_reader p
   where p.name = '${SALES}' and ${RANKED} and (e.xid, e.id) > (p.xid, p.event_id) limit 1`;
