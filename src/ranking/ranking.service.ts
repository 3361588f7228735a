import type { EntityManager } from "@mikro-orm/postgresql";
import type { Database } from "../db/database.ts";
import { PROJECT, RANKED, SALES } from "./projection.ts";
import type { Top, TopQuery } from "./top.ts";

const DAY = 24 * 60 * 60 * 1000;
const HOUR = 60 * 60 * 1000;
/** How many events one run of the projection counts at the most. */
const BATCH = 1000;

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

type Progress = { waiting: boolean; counted: Date | string | null };

/** Whether events wait to be counted, and the time of the last one that was. */
async function progressOf(em: EntityManager): Promise<Progress> {
  const [row] = await em.execute<Progress[]>(
    // Ordered, so that no plan looks for the first of them among all that were counted before.
    `select (select e.id from event e where ${RANKED} and (e.xid, e.id) > (p.xid, p.event_id)
              order by e.xid, e.id limit 1) is not null as waiting,
            (select create_time from event where id = p.event_id) as counted
       from event_reader p where p.name = '${SALES}'`,
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
