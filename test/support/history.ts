/** Orders by the thousand with all that belongs to them, as the service would have left them: by SQL, in a moment. */
import type { ClientBase } from "pg";

const prefixes = { user: 1, product: 2, variant: 3, coupon: 4, piece: 5, order: 6, payment: 7 };

/** The id of the thing with that number. */
const idOf = (kind: keyof typeof prefixes, number: string) =>
  `('0199d1f2-000${prefixes[kind]}-7000-8000-' || lpad(to_hex(${number}), 12, '0'))::uuid`;

const SUPPLIED = 100_000_000;
const MONEY = 1_000_000_000;

/**
 * Of ten orders in a row seven are paid, one of them with a coupon; one waits; one was paid and cancelled; one has expired.
 * The oldest is 20 days old, the newest an hour.
 */
const SALES = (orders: number, users: number, variants: number, coupons: number) => `
  create temp table sale on commit drop as
    select s.*, subtotal - discount as total, case when state in ('PAID', 'CANCELLED') then time + interval '1 minute' end as pay_time,
           time + case state when 'PAID' then interval '1 minute' when 'PENDING_PAYMENT' then '0' else '20 minutes' end as end_time
      from (
        select n, ${idOf("order", "n")} as id, ${idOf("payment", "n")} as payment_id, ${idOf("user", `n % ${users}`)} as user_id,
               (array['PAID', 'PAID', 'PAID', 'PAID', 'PAID', 'PAID', 'PAID', 'PENDING_PAYMENT', 'CANCELLED', 'EXPIRED'])[1 + n % 10] as state,
               now() - interval '20 days 1 hour' + interval '20 days' * (n::float8 / ${orders}) as time,
               case when n % 10 = 0 then ${idOf("piece", "n")} end as piece_id, ${idOf("coupon", `n / 10 % ${coupons}`)} as coupon_id,
               n % ${variants} as v1, (n * 7 + 3) % ${variants} as v2, 1 + n % 3 as q1, 1 + n % 2 as q2,
               (1 + n % 3) * (100 + n % ${variants} % 900) + (1 + n % 2) * (100 + (n * 7 + 3) % ${variants} % 900) as subtotal,
               case when n % 10 = 0 then 50 else 0 end as discount
          from generate_series(0, ${orders} - 1) n
      ) s`;

const LINES = [1, 2].map(
  (line) => `
  insert into order_line (order_id, line_no, variant_id, product_id, product_name, variant_name, price, quantity)
    select id, ${line}, ${idOf("variant", `v${line}`)}, ${idOf("product", `v${line}`)}, 'Product ' || v${line}, 'Standard',
           100 + v${line} % 900, q${line} from sale`,
);

const CATALOGUE = (variants: number, coupons: number) => [
  `insert into product (id, name, description, create_time, update_time, revision)
    select ${idOf("product", "n")}, 'Product ' || n, '', now(), now(), 1 from generate_series(0, ${variants} - 1) n`,
  `insert into variant (id, product_id, position, product_name, name, price, stock, supplied)
    select v.id, ${idOf("product", "n")}, 1, 'Product ' || n, 'Standard', 100 + n % 900, ${SUPPLIED} - coalesce(units, 0), ${SUPPLIED}
      from (select n, ${idOf("variant", "n")} as id from generate_series(0, ${variants} - 1) n) v
      left join (select variant_id, sum(quantity) as units from order_line l join sale on sale.id = l.order_id
                  where state in ('PAID', 'PENDING_PAYMENT') group by 1) s on s.variant_id = v.id`,
  `insert into issued_coupon (user_id, id, coupon_id, ordinal, discount_amount, min_order_amount, valid_from, valid_until, order_id,
                              issue_time)
    select user_id, piece_id, coupon_id, row_number() over (partition by user_id, coupon_id order by n), 50, 0, time,
           now() + interval '1 year', id, time from sale where piece_id is not null`,
  `insert into coupon (id, name, discount_amount, min_order_amount, valid_from, valid_until, total_quantity, issued, per_user_limit,
                       create_time)
    select c.id, 'Coupon ' || n, 50, 0, now(), now() + interval '1 year', 1000000000, coalesce(pieces, 0), 1000000, now()
      from (select n, ${idOf("coupon", "n")} as id from generate_series(0, ${coupons} - 1) n) c
      left join (select coupon_id, count(*) as pieces from issued_coupon group by 1) i on i.coupon_id = c.id`,
];

const ORDERS = `
  insert into shop_order (id, user_id, state, subtotal, discount, total, issued_coupon_id, create_time, expire_time, pay_time, update_time)
    select id, user_id, state, subtotal, discount, total, piece_id, time, time + interval '15 minutes', pay_time, end_time from sale`;

const MONEY_MOVES = [
  `insert into payment (order_id, id, user_id, method, state, amount, refunded_amount, events, create_time, update_time)
    select id, payment_id, user_id, 'BALANCE', case state when 'PAID' then 'COMPLETED' else 'REFUNDED' end, total,
           case state when 'PAID' then 0 else total end, case state when 'PAID' then 1 else 2 end, pay_time, end_time
      from sale where pay_time is not null`,
  `insert into payment_event (order_id, payment_id, seq, state, amount, cause, create_time)
    select id, payment_id, 1, 'COMPLETED', total, 'Checkout', pay_time from sale where pay_time is not null
    union all select id, payment_id, 2, 'REFUNDED', -total, 'CancelOrder', end_time from sale where state = 'CANCELLED'`,
  `insert into ledger_entry (user_id, seq, kind, amount, balance_after, reference, create_time)
    select user_id, row_number() over moves, kind, amount, sum(amount) over moves, reference, time
      from (select id as user_id, -1 as n, 0 as step, 'CHARGE' as kind, ${MONEY} as amount, 'opening' as reference, create_time as time
              from shop_user
            union all select user_id, n, 1, 'PAYMENT', -total, payment_id::text, pay_time from sale where pay_time is not null
            union all select user_id, n, 2, 'REFUND', total, payment_id::text, end_time from sale where state = 'CANCELLED') m
    window moves as (partition by user_id order by n, step)`,
  `insert into wallet (user_id, balance, entries) select user_id, sum(amount), count(*) from ledger_entry group by 1`,
];

/** An event's id tells its time. */
const event = (type: string, id: string, payload: string, time: string, where: string) => `
  insert into event (id, aggregatetype, aggregateid, type, payload, create_time)
    select uuidv7(${time} - now()), '${type.split(".")[0]}', ${id}, '${type}', ${payload}, ${time} from sale where ${where}`;

const line = (n: number) =>
  `jsonb_build_object('variant_id', ${idOf("variant", `v${n}`)}, 'product_id', ${idOf("product", `v${n}`)}, 'quantity', q${n})`;
const order = `jsonb_build_object('order_id', id, 'user_id', user_id, 'state', state, 'total', total::text, 'pay_time', pay_time,
                                  'lines', jsonb_build_array(${line(1)}, ${line(2)}))`;
const payment =
  "jsonb_build_object('payment_id', payment_id, 'order_id', id, 'user_id', user_id, 'amount', total::text)";
const piece = "jsonb_build_object('coupon_id', coupon_id, 'user_id', user_id, 'issued_coupon_id', piece_id)";

const EVENTS = [
  event("coupon.claimed", "coupon_id", piece, "time", "piece_id is not null"),
  event("order.placed", "id", order, "time", "true"),
  event("payment.completed", "payment_id", payment, "pay_time", "pay_time is not null"),
  event("order.paid", "id", order, "pay_time", "pay_time is not null"),
  event("payment.refunded", "payment_id", payment, "end_time", "state = 'CANCELLED'"),
  event("order.cancelled", "id", order, "end_time", "state = 'CANCELLED'"),
  event("order.expired", "id", order, "end_time", "state = 'EXPIRED'"),
];

const RANKING = [
  `update event_reader r set xid = e.xid, event_id = e.id from (select xid, id from event order by xid desc, id desc limit 1) e
    where r.name in ('sales', 'sink')`,
  `insert into ranking_bucket (variant_id, hour, product_id, quantity)
    select variant_id, date_trunc('hour', pay_time, 'UTC'), product_id, sum(quantity)
      from order_line l join sale on sale.id = l.order_id where state = 'PAID' group by 1, 2, 3`,
  `insert into ranking_window (days, by_variant, since, asked_time)
    select days, days = 3, date_trunc('hour', now() - days * interval '24 hours', 'UTC'), now() from (values (1), (3)) d (days)`,
  `insert into ranking_total (days, by_variant, id, units)
    select days, by_variant, case when by_variant then variant_id else product_id end, sum(quantity)
      from ranking_window join ranking_bucket on hour >= since group by 1, 2, 3`,
];

/** Fills an empty database with so many orders, which the ranking has counted. */
export async function addOrders(client: ClientBase, orders: number): Promise<void> {
  const users = Math.ceil(orders / 20);
  const variants = Math.min(1_000, Math.ceil(orders / 5));
  const coupons = Math.ceil(orders / 100);
  const statements = [
    SALES(orders, users, variants, coupons),
    `insert into shop_user (id, name, create_time)
      select ${idOf("user", "n")}, 'Buyer ' || n, now() - interval '30 days' from generate_series(0, ${users} - 1) n`,
    ORDERS,
    ...LINES,
    ...CATALOGUE(variants, coupons),
    ...MONEY_MOVES,
    ...EVENTS,
    ...RANKING,
    `insert into idempotency (scope, rpc, request_id, fingerprint, response, create_time)
      select user_id, 'shop.v1.OrderService/Checkout', 'request-' || n, sha256(n::text::bytea), repeat('x', 300)::bytea, time from sale`,
  ];
  // As one transaction.
  await client.query(statements.join(";\n"));
}
