/** Orders that nobody has paid in time give back what they hold, whichever process sees to it. */
import type { EntityManager } from "@mikro-orm/postgresql";
import type { Database } from "../db/database.ts";
import { MOST, type Waiting } from "../db/lag.ts";
import { expire, touchesToGiveUp } from "../payment/settlement.ts";
import { Order } from "./order.entity.ts";

/**
 * How long an order is left to the process that has claimed it, in milliseconds: longer than an expiry takes, also when it
 * waits for a locked row or for a database that says nothing.
 */
const LEASE = 30_000;

/**
 * Up to `?` orders that are due for the first time, and as many that could not be expired before: those don't stand in front
 * of others. Until their next time they are nobody else's.
 */
const CLAIM = `
  with fresh as (
    select id from shop_order
     where state = 'PENDING_PAYMENT' and next_expire_time is null and expire_time <= ?
     order by expire_time limit ? for update skip locked
  ), again as (
    select id from shop_order
     where state = 'PENDING_PAYMENT' and next_expire_time <= ?
     order by next_expire_time limit ? for update skip locked
  )
  update shop_order set expire_tries = expire_tries + 1, next_expire_time = ?
   where id = any (array(select id from fresh union all select id from again))
  returning id`;

/** The pause doubles from a second up to five minutes. Not of orders whose lease has ended, and which may be somebody else's. */
const putBehind = (count: number) => `
  update shop_order
     set next_expire_time = ?::timestamptz + least(power(2, least(expire_tries, 10) - 1), 300) * interval '1 second'
   where id in (${Array.from({ length: count }, () => "?").join(", ")})
     and state = 'PENDING_PAYMENT' and next_expire_time = ?`;

/** `claimed`: how many orders were this process's; `failures`: of those that could not be expired, why. */
export type Expiry = Readonly<{ claimed: number; failures: readonly unknown[] }>;

/**
 * Expires orders that were not paid in time, up to `limit` of those that nobody has tried to expire yet, and as many others.
 * Any replica may do so at any time: no two work on the same order. One that can't be expired is tried again after a pause.
 */
export async function expireOverdue(db: Database, limit: number): Promise<Expiry> {
  const now = db.now();
  const leaseEnd = new Date(now.getTime() + LEASE);
  const ids = await db.maintain((em) => claimOverdue(em, now, leaseEnd, limit));
  const results = await Promise.allSettled(ids.map((id) => expireOne(db, id)));
  const failed = ids.filter((_, index) => results[index]?.status === "rejected");
  if (failed.length > 0) {
    await db.maintain((em) => em.execute(putBehind(failed.length), [db.now(), ...failed, leaseEnd]));
  }
  const failures = results.flatMap((result) => (result.status === "rejected" ? [result.reason] : []));
  return { claimed: ids.length, failures };
}

/** The ids of orders that are this process's alone until `leaseEnd`. */
export async function claimOverdue(em: EntityManager, now: Date, leaseEnd: Date, limit: number): Promise<string[]> {
  const rows = await em.execute<{ id: string }[]>(CLAIM, [now, limit, now, limit, leaseEnd]);
  return rows.map(({ id }) => id);
}

/** In step with all else that touches its rows: whoever was faster has paid or cancelled it, and nothing is done. */
function expireOne(db: Database, id: string): Promise<boolean> {
  return db.apply({
    touches: () => touchesToGiveUp(db, id),
    decide: (tx) => expire(tx, tx.get(Order, { id })),
  });
}

/** Orders whose time is over. Of the tries, the last one may be under way. */
export const overdueOrders: Waiting = {
  sql: `
    (select expire_time as due_time, 0 as failures from shop_order
      where state = 'PENDING_PAYMENT' and next_expire_time is null and expire_time <= now()
      order by expire_time limit ${MOST})
    union all
    (select expire_time, expire_tries - 1 from shop_order
      where state = 'PENDING_PAYMENT' and next_expire_time is not null order by next_expire_time limit ${MOST})`,
  values: [],
};
