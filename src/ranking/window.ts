/** Running totals of the questions that are asked, so that an answer is read from an index. */
import type { EntityManager } from "@mikro-orm/postgresql";
import type { TopQuery } from "./top.ts";

const DAY = 24 * 60 * 60 * 1000;
/** The most questions that have totals at a time: each sale is added to all of them. Others are added up when asked. */
const MAX_WINDOWS = 8;
/** What was not asked for so long has no totals any more. */
const KEPT = DAY;

type Question = Pick<TopQuery, "days" | "byVariant">;

/** The column of whatever is counted: products, or their variants. */
export const columnOf = ({ byVariant }: Pick<Question, "byVariant">) => (byVariant ? "variant_id" : "product_id");

/**
 * Start of the first hour that an answer counts, as a whole: the one in which its days of 24 hours began. An expression of a
 * parameter, the time, and of `days`.
 */
export const sinceOf = (days: string) => `date_trunc('hour', ?::timestamptz - ${days} * interval '24 hours', 'UTC')`;

/** A part of the projection: adds `sold` to the totals of all windows that reach back so far. */
export const TOTALLED = `totalled as (
    insert into ranking_total as total (days, by_variant, id, units)
    select w.days, w.by_variant, case when w.by_variant then s.variant_id else s.product_id end, sum(s.quantity)
      from sold s join ranking_window w on s.hour >= w.since
     group by 1, 2, 3
        on conflict (days, by_variant, id) do update set units = total.units + excluded.units
  )`;

/** Whether hours have passed out of some window. */
export const PASSED = `exists (select from ranking_window where since < ${sinceOf("days")})`;

/** Takes the hours that have passed out of the windows, out of their totals. No sales may be counted meanwhile. */
export async function advanceWindows(em: EntityManager, now: Date): Promise<void> {
  await em.execute(
    `with passed as (
       select days, by_variant, since as first, ${sinceOf("days")} as next from ranking_window
        where since < ${sinceOf("days")}
     ), gone as (
       select p.days, p.by_variant, case when p.by_variant then b.variant_id else b.product_id end as id,
              sum(b.quantity) as units
         from passed p join ranking_bucket b on b.hour >= p.first and b.hour < p.next
        group by 1, 2, 3
     ), taken as (
       update ranking_total t set units = t.units - g.units from gone g
        where t.days = g.days and t.by_variant = g.by_variant and t.id = g.id
     )
     update ranking_window w set since = p.next from passed p where w.days = p.days and w.by_variant = p.by_variant`,
    [now, now],
  );
}

/** Notes that these are asked, and adds up what has no totals yet. No sales may be counted meanwhile. */
export async function openWindows(em: EntityManager, questions: readonly Question[], now: Date): Promise<void> {
  for (const { days, byVariant } of questions) {
    const known = await em.execute(
      "update ranking_window set asked_time = ? where days = ? and by_variant = ? returning days",
      [now, days, byVariant],
    );
    if (known.length > 0) continue;
    await em.execute(
      `with opened as (
         insert into ranking_window (days, by_variant, since, asked_time)
         select ?, ?, ${sinceOf("?::int")}, ? where (select count(*) from ranking_window) < ${MAX_WINDOWS}
         returning days, by_variant, since
       )
       insert into ranking_total (days, by_variant, id, units)
       select o.days, o.by_variant, b.${columnOf({ byVariant })}, sum(b.quantity)
         from opened o join ranking_bucket b on b.hour >= o.since
        group by 1, 2, 3`,
      [days, byVariant, now, days, now],
    );
  }
}

/** Forgets totals that nobody asks for any more. No sales may be counted meanwhile. */
export async function closeWindows(em: EntityManager, now: Date): Promise<void> {
  const before = new Date(now.getTime() - KEPT);
  await em.execute(
    `with closed as (delete from ranking_window where asked_time < ? returning days, by_variant)
     delete from ranking_total t using closed c where t.days = c.days and t.by_variant = c.by_variant`,
    [before],
  );
  await em.execute("delete from ranking_total where units = 0");
}

/** Forgets all totals: the buckets have become others. No sales may be counted meanwhile. */
export async function forgetWindows(em: EntityManager): Promise<void> {
  await em.execute("delete from ranking_window");
  await em.execute("delete from ranking_total");
}
