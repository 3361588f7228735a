/** How events become buckets of hours. */
import type { EntityManager } from "@mikro-orm/postgresql";
import type { EventType } from "../outbox/event.entity.ts";
import { advanceWindows, closeWindows, TOTALLED } from "./window.ts";

const DAY = 24 * 60 * 60 * 1000;
/** Its row in `event_reader`. */
export const SALES = "sales";
/** Where it is notified that answers may have changed. */
export const CHANNEL = "doorbuster_ranking";
/** An answer reaches back 30 days, and counts the hour in which they began as a whole. */
const BUCKETS_KEPT_DAYS = 31;

/** The events that the ranking is made of; there is an index of them alone. */
export const rankedTypes = ["order.paid", "order.cancelled"] as const satisfies readonly EventType[];
export const RANKED = `e.type in (${rankedTypes.map((type) => `'${type}'`).join(", ")})`;

/**
 * Reads the events after the position whose transactions are older than every running one (so none can turn up behind
 * it), adds their units to the buckets of the hours in which they were paid, and moves the position. A cancelled order
 * that had been paid is counted back in the hour of its payment. `only`: of the events `e` only those that it holds for;
 * `also`: what else becomes of what was `sold`.
 */
export const projection = (reader: string, buckets: string, { only = "true", also = "" } = {}) => `
  with position as (
    select xid, event_id from event_reader where name = '${reader}' for update skip locked
  ), batch as (
    select e.xid, e.id, e.type, e.payload
      from event e, position p
     where ${RANKED} and (e.xid, e.id) > (p.xid, p.event_id) and e.xid < pg_snapshot_xmin(pg_current_snapshot())
       and ${only}
     order by e.xid, e.id limit ?
  ), sold as (
    select line.variant_id, line.product_id,
           date_trunc('hour', (batch.payload ->> 'pay_time')::timestamptz, 'UTC') as hour,
           sum(case batch.type when 'order.paid' then line.quantity else -line.quantity end) as quantity
      from batch,
           jsonb_to_recordset(batch.payload -> 'lines') as line (variant_id uuid, product_id uuid, quantity bigint)
     where batch.type = 'order.paid' or batch.payload ->> 'pay_time' is not null
     group by 1, 2, 3
  ), counted as (
    insert into ${buckets} as bucket (variant_id, product_id, hour, quantity)
    select variant_id, product_id, hour, quantity from sold
        on conflict (variant_id, hour) do update set quantity = bucket.quantity + excluded.quantity
  ), ${also}${also && ", "}moved as (
    update event_reader set xid = last.xid, event_id = last.id
      from (select xid, id from batch order by xid desc, id desc limit 1) last
     where name = '${reader}'
  )
  select count(*)::int as events, case when count(*) > 0 then pg_notify('${CHANNEL}', '') end from batch`;

/** Counts sales into the buckets and totals that are in use. */
export const PROJECT = projection(SALES, "ranking_bucket", { also: TOTALLED });

/**
 * Takes the right to count sales until the transaction ends. A statement of its own: one that counts has to see what was
 * done under the lock before. Answers whether it was free, unless `wait`.
 */
export async function lockSales(em: EntityManager, { wait }: { wait: boolean }): Promise<boolean> {
  const rows = await em.execute(
    `select name from event_reader where name = ? for update ${wait ? "" : "skip locked"}`,
    [SALES],
  );
  return rows.length > 0;
}

/** Deletes the buckets of hours that no answer reaches back to, and totals that nobody asks for. Returns how many buckets. */
export async function dropOldBuckets(em: EntityManager, now: Date): Promise<number> {
  await lockSales(em, { wait: true });
  await closeWindows(em, now);
  // What goes is no longer part of any totals.
  await advanceWindows(em, now);
  const before = new Date(now.getTime() - BUCKETS_KEPT_DAYS * DAY);
  return (await em.execute("delete from ranking_bucket where hour < ? returning hour", [before])).length;
}
