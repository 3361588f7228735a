/** For operators: what the gateway has not settled yet, and refunds that were made in another way. */
import type { EntityManager } from "@mikro-orm/postgresql";
import { touch } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { MOST, type Waiting } from "../db/lag.ts";
import { GatewayRefund, Payment } from "./payment.entity.ts";
import { finishRefund } from "./settlement.ts";

/** A pending payment, or a refund on its way: `amount` in minor units, `tries` so far. */
export type Unsettled = Readonly<{
  kind: "payment" | "refund";
  id: string;
  orderId: string;
  /** The same as `id` for a payment. */
  paymentId: string;
  amount: string;
  tries: number;
  createTime: Date;
}>;

/** The oldest of them, up to `limit`. */
export async function listUnsettled(em: EntityManager, limit: number): Promise<Unsettled[]> {
  const rows = await em.execute<(Omit<Unsettled, "createTime"> & { createTime: string })[]>(
    `select 'payment' as kind, id, order_id as "orderId", id as "paymentId", amount, tries, create_time as "createTime"
       from payment where state = 'PENDING'
      union all
     select 'refund', id, order_id, payment_id, amount, tries, create_time from gateway_refund where state = 'PENDING'
      order by "createTime" limit ?`,
    [limit],
  );
  return rows.map(({ createTime, ...rest }) => ({ ...rest, createTime: new Date(createTime) }));
}

/** What is on its way through other gateways than that, and nobody asks about: how much, by the gateway. */
export function unsettledElsewhere(em: EntityManager, name: string): Promise<{ gateway: string; open: number }[]> {
  return em.execute(
    `select coalesce(p.gateway, 'a gateway that was not noted') as gateway, count(*)::int as open
       from (select gateway from payment where state = 'PENDING'
             union all
             select o.gateway from gateway_refund r join payment o on o.order_id = r.order_id and o.id = r.payment_id
              where r.state = 'PENDING') p
      where case when ? = 'off' then true else p.gateway <> ? end
      group by 1 order by 1`,
    [name, name],
  );
}

/**
 * Notes that a refund that is on its way was made in another way, such as a bank transfer: `reference` says how. The gateway
 * is not asked for it any more; it must not be able to make it, too. Answers whether there was such a refund.
 */
export async function settleRefund(db: Database, id: string, reference: string): Promise<boolean> {
  const pending = "select order_id from gateway_refund where state = 'PENDING' and id = ?";
  const [row] = await db.maintain((em) => em.execute<{ order_id: string }[]>(pending, [id]));
  if (!row) return false;
  const key = { orderId: row.order_id, id };
  return db.apply({
    touches: [touch(GatewayRefund, key), touch(Payment, { orderId: row.order_id })],
    decide: (tx) => finishRefund(tx, key, reference, "settled by hand"),
  });
}

/** Payments that the gateway is to be asked about, `timeoutMs` after they were begun. Of the tries, the last one may be under way. */
export function unsettledPayments(timeoutMs: number): Waiting {
  return {
    sql: `
      select update_time + ? * interval '1 ms' as due_time, greatest(tries - 1, 0) as failures
        from payment where state = 'PENDING' and (tries > 0 or next_try_time <= now())
       order by next_try_time limit ${MOST}`,
    values: [timeoutMs],
  };
}

/** Refunds that the gateway has not made. A bank may take days: late is only what it was not asked about in time. */
export const unmadeRefunds: Waiting = {
  sql: `
    select case when next_try_time <= now() then next_try_time end as due_time, greatest(tries - 1, 0) as failures
      from gateway_refund where state = 'PENDING' order by next_try_time limit ${MOST}`,
  values: [],
};
