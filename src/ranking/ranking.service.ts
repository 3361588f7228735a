import type { EntityManager } from "@mikro-orm/postgresql";
import type { Database } from "../db/database.ts";
import { lockSales, PROJECT, RANKED, SALES } from "./projection.ts";
import type { Top, TopProduct, TopQuery } from "./top.ts";
import { advanceWindows, columnOf, openWindows, PASSED, sinceOf } from "./window.ts";

const HOUR = 60 * 60 * 1000;
/** How many events one run of the projection counts at the most. */
const BATCH = 1000;
/** How long a question without totals waits until it may be given some again, in milliseconds. */
const RETRY = 1_000;

type TopRow = {
  product_id: string | null;
  variant_id: string;
  product_name: string;
  variant_name: string;
  units: string;
};

/** What sells best, counted from the events of paid and cancelled orders. */
export class Ranking {
  readonly #db: Database;
  /** Questions, when they were asked, and whether that was noted in the database: once an hour is enough. */
  readonly #asked = new Map<string, { days: number; byVariant: boolean; at: number; noted: boolean }>();

  constructor(db: Database) {
    this.#db = db;
  }

  /** The best sellers of the last `days` days; the hour in which that time began counts as a whole. */
  async top(query: TopQuery): Promise<Top> {
    const now = this.#db.now();
    const { days, limit } = query;
    return this.#db.read(async (em) => {
      const { waiting, counted } = await progressOf(em, now);
      // One row without an id when the question has totals and nothing was sold; none when it has none, or not yet of this hour.
      let rows: TopRow[] = await em.execute(topOfTotals(query), [limit, days, now]);
      this.#ask(query, rows.length > 0, now);
      if (rows.length === 0) rows = await em.execute(topOfBuckets(query), [now, days, limit]);
      const products = rows.filter(isProduct).map(toProduct);
      return { products, asOf: waiting ? new Date(counted ?? waiting) : now };
    });
  }

  /**
   * Counts the next events, each exactly once: the position moves in the transaction that counts. Returns whether there
   * may be more. Of several replicas one does it at a time, the others pass.
   */
  async project(): Promise<boolean> {
    const now = this.#db.now();
    const asked = [...this.#asked.values()].filter(({ noted }) => !noted);
    // Looked for first: counting takes a lock, and an idle service should not write.
    const { waiting, passed } = await this.#db.read((em) => progressOf(em, now));
    if (!waiting && !passed && asked.length === 0) return false;
    return this.#db.maintain(async (em) => {
      if (!(await lockSales(em, { wait: false }))) return false;
      if (passed) await advanceWindows(em, now);
      await openWindows(em, asked, now);
      for (const one of asked) one.noted = true;
      const [row] = await em.execute<{ events: number }[]>(PROJECT, [BATCH]);
      return row?.events === BATCH;
    });
  }

  /** Remembers what is asked, for the projection to keep totals of it. */
  #ask({ days, byVariant }: TopQuery, hasTotals: boolean, now: Date): void {
    const key = `${days} ${byVariant}`;
    const known = this.#asked.get(key);
    const at = now.getTime();
    if (known && (!known.noted || at - known.at < (hasTotals ? HOUR : RETRY))) return;
    this.#asked.set(key, { days, byVariant, at, noted: false });
  }
}

const isProduct = (row: TopRow): row is TopRow & { product_id: string } => row.product_id !== null;

function toProduct(row: TopRow & { product_id: string }): TopProduct {
  return {
    productId: row.product_id,
    variantId: row.variant_id,
    productName: row.product_name,
    variantName: row.variant_name,
    unitsSold: BigInt(row.units),
  };
}

type Progress = { waiting: Date | string | null; counted: Date | string | null; passed: boolean };

/**
 * The time of the first event that waits to be counted, and of the last one that was, where it is still kept; and whether
 * hours have passed out of totals.
 */
async function progressOf(em: EntityManager, now: Date): Promise<Progress> {
  const [row] = await em.execute<Progress[]>(
    // Ordered, so that no plan looks for the first of them among all that were counted before.
    `select (select e.create_time from event e where ${RANKED} and (e.xid, e.id) > (p.xid, p.event_id)
              order by e.xid, e.id limit 1) as waiting,
            (select create_time from event where id = p.event_id) as counted,
            ${PASSED} as passed
       from event_reader p where p.name = '${SALES}'`,
    [now],
  );
  return row ?? { waiting: null, counted: null, passed: false };
}

type Group = Pick<TopQuery, "byVariant">;

const NAMES = {
  product: "n.id as product_id, '' as variant_id, n.name as product_name, '' as variant_name",
  variant: "n.product_id, n.id as variant_id, n.product_name, n.name as variant_name",
};

/** Gives the ids of `t` their names, which are today's. */
function named({ byVariant }: Group, ids: string, join = "join"): string {
  const table = byVariant ? "variant" : "product";
  return `select ${NAMES[table]}, t.units from ${ids} ${join} ${table} n on n.id = t.id`;
}

/** Ties are ordered by id. */
const IN_ORDER = "order by t.units desc, t.id";

/** Of a question that has totals of this hour: from an index. */
const topOfTotals = (group: Group) => `
  ${named(
    group,
    `ranking_window w left join lateral (
       select id, units from ranking_total where days = w.days and by_variant = w.by_variant and units > 0
        order by units desc, id limit ?) t on true`,
    "left join",
  )}
   where w.days = ? and w.by_variant = ${group.byVariant} and w.since = ${sinceOf("w.days")} ${IN_ORDER}`;

/** Of any question: added up. */
const topOfBuckets = (group: Group) => `
  ${named(
    group,
    `(select ${columnOf(group)} as id, sum(quantity) as units from ranking_bucket where hour >= ${sinceOf("?::int")}
       group by 1 having sum(quantity) > 0 order by 2 desc, 1 limit ?) t`,
  )} ${IN_ORDER}`;
