/** Answers from running totals are those that adding up all hours gives, whatever has happened in between. */
import { randomUUIDv7 } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { invariants } from "../../src/audit/invariants.ts";
import { Event } from "../../src/outbox/event.entity.ts";
import { dropOldBuckets } from "../../src/ranking/projection.ts";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import type { TopQuery } from "../../src/ranking/top.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const START = new Date("2026-11-27T12:30:00Z");
const questions: readonly TopQuery[] = [1, 3, 30].flatMap((days) =>
  [false, true].map((byVariant) => ({ days, byVariant, limit: 4 })),
);

async function openRanking() {
  const url = await createDatabase();
  const clock = { now: START };
  const { db } = await open(url, { clock: () => clock.now });
  const client = await connect(url);
  // Two variants of each of three products.
  const variants: { variantId: string; productId: string }[] = [];
  for (const name of ["a", "b", "c"]) {
    const productId = randomUUIDv7();
    await client.query("insert into product values ($1, $2, '', now(), now(), 1)", [productId, name]);
    for (const position of [1, 2]) {
      const variantId = randomUUIDv7();
      await client.query(
        "insert into variant (id, product_id, position, product_name, name, price, stock, supplied) values ($1, $2, $3, $4, '', 1, 1, 1)",
        [...[variantId, productId, position, name]],
      );
      variants.push({ variantId, productId });
    }
  }
  /** Tells of a sale, or that it was given up again. */
  const sell = (index: number, quantity: number, hoursAgo: number, cancelled = false) => {
    const { variantId, productId } = variants[index % variants.length] as (typeof variants)[number];
    const lines = [{ variant_id: variantId, product_id: productId, quantity }];
    const payTime = new Date(clock.now.getTime() - hoursAgo * HOUR).toISOString();
    const type = cancelled ? "order.cancelled" : "order.paid";
    const event = Event.of(type, randomUUIDv7(), { pay_time: payTime, lines }, clock.now);
    return db.apply({ touches: [], decide: (tx) => tx.add(event) });
  };
  const rankings = [new Ranking(db), new Ranking(db)] as const;
  /** Counts until nothing is left: events wait for transactions of other tests, too. */
  const count = async () => {
    await expect
      .poll(
        async () => {
          await rankings[0].project();
          await rankings[1].project();
          const { rows } = await client.query(
            `select from event e, event_reader r where r.name = 'sales' and (e.xid, e.id) > (r.xid, r.event_id)`,
          );
          return rows.length;
        },
        { timeout: 20_000, interval: 5 },
      )
      .toBe(0);
  };
  /** The answer from totals, and as all hours add up to it. */
  const both = async (query: TopQuery) => {
    const { products } = await rankings[0].top(query);
    const since = new Date(Math.floor((clock.now.getTime() - query.days * DAY) / HOUR) * HOUR);
    const id = query.byVariant ? "variant_id" : "product_id";
    const { rows } = await client.query<{ id: string; units: string }>(
      `select ${id} as id, sum(quantity) as units from ranking_bucket where hour >= $1
        group by 1 having sum(quantity) > 0 order by 2 desc, 1 limit $2`,
      [since, query.limit],
    );
    return [
      products.map((one) => [query.byVariant ? one.variantId : one.productId, one.unitsSold]),
      rows.map(({ id: found, units }) => [found, BigInt(units)]),
    ];
  };
  return { db, client, clock, rankings, sell, count, both };
}

const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("sell" as const),
      index: fc.nat(5),
      quantity: fc.integer({ min: 1, max: 9 }),
      hoursAgo: fc.nat(80),
      cancelled: fc.boolean(),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("wait" as const), hours: fc.integer({ min: 1, max: 30 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("tidy" as const) }) },
);

test("whatever is sold, given up and passes by", async () => {
  const { db, client, clock, sell, count, both } = await openRanking();
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 15 }), async (steps) => {
      for (const one of steps) {
        if (one.kind === "sell") await sell(one.index, one.quantity, one.hoursAgo, one.cancelled);
        else if (one.kind === "wait") clock.now = new Date(clock.now.getTime() + one.hours * HOUR);
        else await db.maintain((em) => dropOldBuckets(em, clock.now, 1_000));
      }
      await count();
      for (const query of questions) {
        const [answer, expected] = await both(query);
        expect(answer).toEqual(expected);
      }
      const { rows } = await client.query(
        invariants["the totals of the ranking are the sums of their hours"]?.broken ?? "",
      );
      expect(rows).toEqual([]);
    }),
    { numRuns: 15 },
  );
  const { rows } = await client.query("select days, by_variant from ranking_window order by 1, 2");
  expect(rows).toHaveLength(questions.length);
}, 120_000);

test("totals are what is read: from an index, without the hours", async () => {
  const { client, rankings, sell, count } = await openRanking();
  const [ranking] = rankings;
  const query = { days: 3, byVariant: false, limit: 5 };
  await sell(0, 7, 0);
  await ranking.top(query);
  await count();
  // Nobody would notice that they are gone.
  await client.query("delete from ranking_bucket");
  expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 7n }]);
  expect((await ranking.top({ ...query, days: 4 })).products).toEqual([]);
  await client.query("set enable_seqscan = off; set enable_bitmapscan = off");
  const plan = await client.query<{ "QUERY PLAN": string }>(
    `explain select t.* from ranking_window w, lateral (
       select id, units from ranking_total where days = w.days and by_variant = w.by_variant and units > 0
        order by units desc, id limit 5) t where w.days = 3 and w.by_variant = false`,
  );
  const lines = plan.rows.map((row) => row["QUERY PLAN"]).join("\n");
  expect(lines).toMatch(/Index (Only )?Scan using ranking_total_top_index/);
  expect(lines).not.toContain("Sort");
});

test("an hour that has passed is not counted, before any totals have heard of it", async () => {
  const { client, clock, rankings, sell, count, both } = await openRanking();
  const [ranking] = rankings;
  const query = { days: 1, byVariant: true, limit: 5 };
  await sell(0, 3, 24);
  await sell(1, 2, 0);
  await ranking.top(query);
  await count();
  expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 3n }, { unitsSold: 2n }]);
  clock.now = new Date("2026-11-27T12:59:59.999Z");
  expect((await ranking.top(query)).products).toHaveLength(2);
  clock.now = new Date("2026-11-27T13:00:00.000Z");
  expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 2n }]);
  await ranking.project();
  expect(await both(query)).toEqual([[[expect.any(String), 2n]], [[expect.any(String), 2n]]]);
  await client.query("delete from ranking_bucket");
  expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 2n }]);
});

test("no more questions have totals than sales can be added to, and none that nobody asks", async () => {
  const { db, client, clock, rankings, count } = await openRanking();
  const [ranking] = rankings;
  for (let days = 1; days <= 12; days += 1) await ranking.top({ days, byVariant: false, limit: 1 });
  await count();
  const kept = async () => (await client.query("select from ranking_window")).rows.length;
  expect(await kept()).toBe(8);
  clock.now = new Date(clock.now.getTime() + DAY);
  await ranking.top({ days: 3, byVariant: false, limit: 1 });
  await count();
  clock.now = new Date(clock.now.getTime() + 1);
  await db.maintain((em) => dropOldBuckets(em, clock.now, 1_000));
  expect(await kept()).toBe(1);
});
