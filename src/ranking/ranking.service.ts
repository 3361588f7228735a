import { setTimeout as delay } from "node:timers/promises";
import type { EntityManager } from "@mikro-orm/postgresql";
import type { Database } from "../db/database.ts";

const DAY = 24 * 60 * 60 * 1000;
const HOUR = 60 * 60 * 1000;
/** How many events one run of the projection counts at the most. */
const BATCH = 1000;
/** How often a watcher looks for a change, in milliseconds. */
const WATCH_INTERVAL = 250;

export type TopQuery = Readonly<{ days: number; limit: number; byVariant: boolean }>;

/** `variantId` and `variantName` are empty when grouped by product. */
export type TopProduct = Readonly<{
  productId: string;
  variantId: string;
  productName: string;
  variantName: string;
  unitsSold: bigint;
}>;

/** `asOf`: sales up to here are counted. */
export type Top = Readonly<{ products: readonly TopProduct[]; asOf: Date }>;

type TopRow = { product_id: string; variant_id: string; product_name: string; variant_name: string; units: string };

/** What sells best, counted from the events of paid and cancelled orders. */
export class Ranking {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** The best sellers of the last `days` days; the hour in which that time began counts as a whole. */
  async top(query: TopQuery): Promise<Top> {
    const now = this.#db.now();
    const since = new Date(Math.floor((now.getTime() - query.days * DAY) / HOUR) * HOUR);
    return this.#db.read(async (em) => {
      const { waiting, counted } = await progressOf(em);
      const rows: TopRow[] = await em.execute(TOP[query.byVariant ? "variant" : "product"], [since, query.limit]);
      const products = rows.map((row) => ({
        productId: row.product_id,
        variantId: row.variant_id,
        productName: row.product_name,
        variantName: row.variant_name,
        unitsSold: BigInt(row.units),
      }));
      return { products, asOf: waiting && counted ? new Date(counted) : now };
    });
  }

  /** The answer of `top` at once, and again whenever it has changed, until `signal` fires. */
  async *watch(query: TopQuery, signal: AbortSignal): AsyncGenerator<Top> {
    let shown: string | undefined;
    while (!signal.aborted) {
      const top = await this.top(query);
      const text = JSON.stringify(top.products, (_, value) => (typeof value === "bigint" ? String(value) : value));
      if (text !== shown) yield top;
      shown = text;
      await delay(WATCH_INTERVAL, undefined, { signal }).catch(() => {});
    }
  }

  /**
   * Counts the next events, each exactly once: the position moves in the transaction that counts. Returns whether there
   * may be more. Of several replicas one does it at a time, the others pass.
   */
  async project(): Promise<boolean> {
    // Looked for first: counting takes a lock, and an idle service should not write.
    if (!(await this.#db.read(progressOf)).waiting) return false;
    const [row] = await this.#db.maintain((em) => em.execute<{ events: number }[]>(PROJECT, [BATCH]));
    return row?.events === BATCH;
  }
}

/** The events that the ranking is made of; there is an index of them alone. */
const RANKED = "e.type in ('order.paid', 'order.cancelled')";

type Progress = { waiting: boolean; counted: Date | string | null };

/** Whether events wait to be counted, and the time of the last one that was. */
async function progressOf(em: EntityManager): Promise<Progress> {
  const [row] = await em.execute<Progress[]>(
    // Ordered, so that no plan looks for the first of them among all that were counted before.
    `select (select e.id from event e where ${RANKED} and (e.xid, e.id) > (p.xid, p.event_id)
              order by e.xid, e.id limit 1) is not null as waiting,
            (select create_time from event where id = p.event_id) as counted
       from ranking_position p where p.name = 'sales'`,
  );
  return row ?? { waiting: false, counted: null };
}

/** Ties are ordered by id. Names are today's. */
const TOP = {
  product: `
    select t.product_id, '' as variant_id, p.name as product_name, '' as variant_name, t.units
      from (select product_id, sum(quantity) as units from ranking_bucket where hour >= ?
             group by product_id having sum(quantity) > 0 order by units desc, product_id limit ?) t
      join product p on p.id = t.product_id
     order by t.units desc, t.product_id`,
  variant: `
    select v.product_id, t.variant_id, v.product_name, v.name as variant_name, t.units
      from (select variant_id, sum(quantity) as units from ranking_bucket where hour >= ?
             group by variant_id having sum(quantity) > 0 order by units desc, variant_id limit ?) t
      join variant v on v.id = t.variant_id
     order by t.units desc, t.variant_id`,
};

/**
 * Reads the events after the position whose transactions are older than every running one (so none can turn up behind
 * it), adds their units to the buckets of the hours in which they were paid, and moves the position. A cancelled order
 * that had been paid is counted back in the hour of its payment.
 */
const PROJECT = `
  with position as (
    select xid, event_id from ranking_position where name = 'sales' for update skip locked
  ), batch as (
    select e.xid, e.id, e.type, e.payload
      from event e, position p
     where ${RANKED} and (e.xid, e.id) > (p.xid, p.event_id) and e.xid < pg_snapshot_xmin(pg_current_snapshot())
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
    insert into ranking_bucket as bucket (variant_id, product_id, hour, quantity)
    select variant_id, product_id, hour, quantity from sold
        on conflict (variant_id, hour) do update set quantity = bucket.quantity + excluded.quantity
  ), moved as (
    update ranking_position set xid = last.xid, event_id = last.id
      from (select xid, id from batch order by xid desc, id desc limit 1) last
     where name = 'sales'
  )
  select count(*)::int as events from batch`;
