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

async function openRanking(timezone = "UTC") {
  const url = await createDatabase();
  const clock = { now: START };
  // Of sessions that say nothing of it themselves.
  const database = new URL(url).pathname.slice(1);
  await (await connect(url)).query(`alter database ${database} set timezone = '${timezone}'`);
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
  /** All that was sold, and not given up again. */
  const sold: { variantId: string; productId: string; quantity: number; payTime: Date }[] = [];
  const tell = (type: "order.paid" | "order.cancelled", { payTime, ...line }: (typeof sold)[number]) => {
    const lines = [{ variant_id: line.variantId, product_id: line.productId, quantity: line.quantity }];
    const event = Event.of(type, randomUUIDv7(), { pay_time: payTime.toISOString(), lines }, clock.now);
    return db.apply({ touches: [], decide: (tx) => tx.add(event) });
  };
  const sell = (index: number, quantity: number, hoursAgo: number) => {
    const variant = variants[index % variants.length] as (typeof variants)[number];
    const sale = { ...variant, quantity, payTime: new Date(clock.now.getTime() - hoursAgo * HOUR) };
    sold.push(sale);
    return tell("order.paid", sale);
  };
  /** Gives up one of those that were sold, if there is one. */
  const cancel = async (which: number) => {
    const [sale] = sold.splice(which % Math.max(1, sold.length), 1);
    if (sale) await tell("order.cancelled", sale);
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
  /** The ids that an answer lists, with their units. */
  const listed = async (query: TopQuery) => {
    const { products } = await rankings[0].top(query);
    return products.map((one) => [query.byVariant ? one.variantId : one.productId, Number(one.unitsSold)]);
  };
  /** What it has to list, by what was sold. */
  const expected = ({ days, limit, byVariant }: TopQuery) => {
    const since = Math.floor((clock.now.getTime() - days * DAY) / HOUR) * HOUR;
    const units = new Map<string, number>();
    for (const { variantId, productId, payTime, quantity } of sold) {
      const id = byVariant ? variantId : productId;
      if (payTime.getTime() >= since) units.set(id, (units.get(id) ?? 0) + quantity);
    }
    const inOrder = [...units].sort(([a, one], [b, other]) => other - one || (a < b ? -1 : 1));
    return inOrder.slice(0, limit);
  };
  return { db, client, clock, rankings, variants, sell, cancel, count, listed, expected };
}

const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("sell" as const),
      index: fc.nat(5),
      quantity: fc.integer({ min: 1, max: 9 }),
      hoursAgo: fc.oneof(fc.nat(80), fc.nat(30 * 24)),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("cancel" as const), which: fc.nat(1_000) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("wait" as const), hours: fc.integer({ min: 1, max: 30 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("tidy" as const) }) },
);

test("whatever is sold, given up and passes by", async () => {
  const { db, client, clock, sell, cancel, count, listed, expected } = await openRanking();
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 15 }), async (steps) => {
      for (const one of steps) {
        if (one.kind === "sell") await sell(one.index, one.quantity, one.hoursAgo);
        else if (one.kind === "cancel") await cancel(one.which);
        else if (one.kind === "wait") clock.now = new Date(clock.now.getTime() + one.hours * HOUR);
        else await db.maintain((em) => dropOldBuckets(em, clock.now, 1_000));
      }
      await count();
      for (const query of questions) expect(await listed(query)).toEqual(expected(query));
      const { rows } = await client.query(
        invariants["the totals of the ranking are the sums of their hours"]?.broken ?? "",
      );
      expect(rows).toEqual([]);
    }),
    // One run goes on where the last one ended: what fails could not be told with fewer steps.
    { numRuns: 20, endOnFailure: true },
  );
  // What the last one has asked.
  await count();
  const { rows } = await client.query("select days, by_variant from ranking_window order by 1, 2");
  expect(rows).toHaveLength(questions.length);
}, 120_000);

test("totals are what is read, without the hours", async () => {
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
});

test.each([false, true])(
  "of those that sell equally the first by id are listed (by variant: %s)",
  async (byVariant) => {
    const { client, rankings, variants, sell, count, listed, expected } = await openRanking();
    const query = { days: 3, byVariant, limit: 2 };
    // One of each product, the last one by id first.
    const idOf = (index: number) => (byVariant ? variants[index]?.variantId : variants[index]?.productId) ?? "";
    const lastFirst = [0, 2, 4].sort((a, b) => (idOf(a) < idOf(b) ? 1 : -1));
    for (const index of lastFirst) await sell(index, 3, 0);
    await count();
    expect((await client.query("select from ranking_window")).rows).toEqual([]);
    expect(await listed(query)).toEqual(expected(query));
    await rankings[0].project();
    await client.query("delete from ranking_bucket");
    expect(await listed(query)).toEqual(expected(query));
    // Also where nothing but the query says so.
    await client.query("drop index ranking_total_top_index");
    for (const index of lastFirst)
      await client.query("update ranking_total set units = 3 where id = $1", [idOf(index)]);
    expect(await listed(query)).toEqual(expected(query));
    expect(expected(query)).toHaveLength(2);
  },
);

test("what was sold in the first hour of the longest time is not tidied away", async () => {
  const { db, clock, sell, count, listed, expected } = await openRanking();
  const query = { days: 30, byVariant: true, limit: 5 };
  await sell(0, 3, 30 * 24);
  await count();
  clock.now = new Date("2026-11-27T12:59:59.999Z");
  await db.maintain((em) => dropOldBuckets(em, clock.now, 1_000));
  expect(await listed(query)).toEqual(expected(query));
  expect(expected(query)).toHaveLength(1);
});

test("what is tidied away before anybody has counted on leaves the totals, too", async () => {
  const { db, client, clock, rankings, sell, count, listed, expected } = await openRanking();
  const query = { days: 30, byVariant: true, limit: 5 };
  await sell(0, 3, 30 * 24);
  await rankings[0].top(query);
  await count();
  // As after an outage of nearly a day: totals that were asked for before it are kept.
  clock.now = new Date(START.getTime() + DAY - 60_000);
  expect(await db.maintain((em) => dropOldBuckets(em, clock.now, 1_000))).toBe(1);
  await rankings[0].project();
  expect((await client.query("select since from ranking_window")).rows).toEqual([
    { since: new Date("2026-10-29T12:00:00Z") },
  ]);
  expect(await listed(query)).toEqual(expected(query));
  expect(expected(query)).toEqual([]);
});

// An hour of Kolkata begins in the middle of one of UTC.
test.each(["UTC", "Asia/Kolkata"])(
  "an hour that has passed is not counted, before any totals have heard of it (%s)",
  async (timezone) => {
    const { client, clock, rankings, sell, count, listed, expected } = await openRanking(timezone);
    const [ranking] = rankings;
    const query = { days: 1, byVariant: true, limit: 5 };
    await sell(0, 3, 24);
    await sell(1, 2, 0);
    await ranking.top(query);
    await count();
    const hours = (await client.query("select hour from ranking_bucket order by hour")).rows.map(({ hour }) => hour);
    expect(hours).toEqual([new Date("2026-11-26T12:00:00Z"), new Date("2026-11-27T12:00:00Z")]);
    expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 3n }, { unitsSold: 2n }]);
    clock.now = new Date("2026-11-27T12:59:59.999Z");
    expect((await ranking.top(query)).products).toHaveLength(2);
    clock.now = new Date("2026-11-27T13:00:00.000Z");
    expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 2n }]);
    await ranking.project();
    expect(await listed(query)).toEqual(expected(query));
    await client.query("delete from ranking_bucket");
    expect((await ranking.top(query)).products).toMatchObject([{ unitsSold: 2n }]);
  },
);

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
