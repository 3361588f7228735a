/** What makes no false alarm: events that are deleted, a ranking that is behind, writes that go on; and what an audit costs. */
import type { Client } from "pg";
import { describe, expect, test, vi } from "vitest";
import { audit, SETTINGS, SNAPSHOT } from "../../src/audit/audit.ts";
import { invariants, RANKING, RANKING_BEHIND } from "../../src/audit/invariants.ts";
import { eventsAfter } from "../../src/outbox/feed.ts";
import { purgeEvents } from "../../src/outbox/retention.ts";
import { connect, open } from "../db/harness.ts";
import { callOf, newShop, openReplica } from "../exact/verbs.ts";
import { createDatabase } from "../support/database.ts";
import { addOrders } from "../support/history.ts";

const ORDERS = 600;
const DAY = 86_400_000;
const daysAgo = (days: number) => new Date(Date.now() - days * DAY);
const ANNOUNCED = Object.keys(invariants).filter((name) => name.includes("announced"));

async function openHistory(orders = ORDERS) {
  const url = await createDatabase();
  const client = await connect(url);
  await addOrders(client, orders);
  return { url, client };
}

/** What an audit finds but for what holds without a word. */
async function found(client: Client): Promise<Record<string, string>> {
  const { verdicts } = await audit(client);
  const worth = verdicts.filter(({ verdict, note }) => verdict !== "holds" || note !== null);
  return Object.fromEntries(worth.map(({ name, verdict, ids, note }) => [name, [verdict, ...ids, note].join(" ")]));
}

describe("events that are deleted", () => {
  async function openPurged(before: Date) {
    const { url, client } = await openHistory();
    const { db } = await open(url);
    const purged = await db.maintain((em) => purgeEvents(em, before, 100_000, [{ name: "sink" }]));
    expect(purged).toBeGreaterThan(0);
    return client;
  }

  test("are not missed, and the others are", async () => {
    const client = await openPurged(daysAgo(10));
    const { rows } = await client.query("select min(create_time) as kept from event");
    expect(rows[0].kept.getTime()).toBeGreaterThan(daysAgo(10).getTime() - DAY / 24);
    const note = /^holds events that are missing are noticed from \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00 on$/;
    expect(await found(client)).toEqual(
      Object.fromEntries(ANNOUNCED.map((name) => [name, expect.stringMatching(note)])),
    );
    const [orders = "", , pieces = ""] = ANNOUNCED;
    const deleted = await client.query(
      `delete from event where id in (select id from event where type = 'order.placed'
         and create_time > now() - interval '9 days' limit 1) returning aggregateid as id`,
    );
    expect((await found(client))[orders]).toMatch(new RegExp(`^broken ${deleted.rows[0].id} `));
    // Twice is twice, however long ago.
    const repeated = await client.query(
      `insert into event (id, aggregatetype, aggregateid, type, payload, create_time)
       select uuidv7(), 'coupon', coupon_id, 'coupon.claimed', jsonb_build_object('issued_coupon_id', id), now()
         from (select * from issued_coupon where issue_time < now() - interval '11 days' limit 1) i, generate_series(1, 2)
       returning payload ->> 'issued_coupon_id' as id`,
    );
    expect((await found(client))[pieces]).toMatch(new RegExp(`^broken ${repeated.rows[0].id} `));
  });

  test("all of them: nobody can tell", async () => {
    const client = await openPurged(new Date());
    const skipped = /^skipped all of it happened before \d{4}-.*\+00, and events of then are deleted$/;
    expect(await found(client)).toEqual(
      Object.fromEntries(ANNOUNCED.map((name) => [name, expect.stringMatching(skipped)])),
    );
  });

  test("nobody knows how far", async () => {
    const { client } = await openHistory();
    await client.query("delete from event_reader where name = 'purged'");
    const skipped = "skipped how far events were deleted is not known";
    expect(await found(client)).toEqual(Object.fromEntries(ANNOUNCED.map((name) => [name, skipped])));
  });
});

describe("a ranking that is behind", () => {
  test("is right when what it has not counted yet is added", async () => {
    const { url, client } = await openHistory();
    const replica = await openReplica(url);
    const { userId, variantIds } = await newShop(replica, 1_000_000n, Array(3).fill({ price: 10n, stock: 100 }));
    const lines = variantIds.map((variantId, index) => ({ variantId, quantity: 1 + index }));
    const purchase = { userId, lines, fromCart: false, issuedCouponId: undefined, expectedTotal: undefined };
    const bought = await Promise.all([1, 2, 3, 4, 5].map(() => replica.orders.checkout(callOf(), purchase)));
    const cancel = (index: number) =>
      replica.orders.cancel(callOf(), { userId, orderId: bought[index]?.order.id ?? "" });
    await cancel(0);
    const behind = async () => (await client.query(RANKING_BEHIND)).rows.length > 0;
    expect(await behind()).toBe(true);
    expect(await found(client)).toEqual({});
    const caughtUp = async () => {
      await replica.ranking.project();
      expect(await behind()).toBe(false);
    };
    await vi.waitFor(caughtUp, { timeout: 10_000, interval: 10 });
    // What it has counted is taken back, and that is not counted yet.
    await cancel(1);
    expect(await behind()).toBe(true);
    expect(await found(client)).toEqual({});
    const wrong =
      "update ranking_bucket set quantity = quantity - 1 where variant_id = $1 returning variant_id, hour::text";
    const { rows } = await client.query(wrong, [variantIds[0]]);
    expect(await found(client)).toMatchObject({ [RANKING]: `broken ${rows[0].variant_id}/${rows[0].hour} ` });
  });

  test("does not keep hours for ever", async () => {
    const { client } = await openHistory();
    for (const table of ["shop_order", "payment", "payment_event", "event"])
      await client.query(`update ${table} set create_time = create_time - interval '15 days'`);
    await client.query("update shop_order set pay_time = pay_time - interval '15 days'");
    await client.query("update ranking_bucket set hour = hour - interval '15 days'");
    await client.query("delete from ranking_window; delete from ranking_total");
    await client.query("delete from ranking_bucket where hour < now() - interval '31 days'");
    expect(await found(client)).toEqual({});
    await client.query("delete from ranking_bucket where hour < now() - interval '29 days'");
    expect((await found(client))[RANKING]).toMatch(/^broken /);
  });
});

test("all is looked at as of one moment, whatever is written meanwhile", async () => {
  const { url, client } = await openHistory();
  const other = await connect(url);
  let asked = 0;
  const meddled = {
    async query(sql: string) {
      const answer = await client.query(sql);
      asked += 1;
      // Behind the first query that reads.
      if (asked === 3) await other.query("update wallet set balance = balance + 1; delete from event");
      return answer;
    },
  } as unknown as Client;
  const { verdicts } = await audit(meddled);
  expect(verdicts.filter(({ verdict }) => verdict !== "holds")).toEqual([]);
  expect(Object.keys(await found(client))).toContain("the balance is the sum of the ledger");
});

test("an audit keeps no events from those who read them", async () => {
  const { url, client } = await openHistory();
  const { db } = await open(url);
  await client.query(SNAPSHOT);
  await client.query("select count(*) from event");
  const other = await connect(url);
  const { rows } = await other.query(
    `insert into event (id, aggregatetype, aggregateid, type, payload, create_time)
     values (uuidv7(), 'stock', 'a variant', 'stock.adjusted', '{}', now()) returning xid::text, id`,
  );
  const last = { xid: String(BigInt(rows[0].xid) - 1n), id: rows[0].id };
  // Other tests of this cluster have transactions as well, but none for long.
  const read = async () => expect(await db.read((em) => eventsAfter(em, last, 10))).toHaveLength(1);
  await vi.waitFor(read, { timeout: 10_000, interval: 10 });
  // It had been open all the time, and has seen nothing of it.
  expect((await client.query("select from event where aggregateid = 'a variant'")).rows).toEqual([]);
  await client.query("rollback");
});

type Plan = { "Actual Loops": number; "Actual Rows": number; Plans?: Plan[] } & Record<string, unknown>;

/** Rows that were looked at, by all steps of a plan. */
function rowsOf(plan: Plan): number {
  const removed = Object.entries(plan).filter(([name]) => name.startsWith("Rows Removed by"));
  const rows = removed.reduce((sum, [, count]) => sum + Number(count), 1 + plan["Actual Rows"]);
  return plan["Actual Loops"] * rows + (plan.Plans ?? []).reduce((sum, part) => sum + rowsOf(part), 0);
}

/** Of what an index passes over only the pages are known. */
const ROWS_OF_A_PAGE = 10;
const workOf = (plan: Plan) =>
  rowsOf(plan) + ROWS_OF_A_PAGE * (Number(plan["Shared Hit Blocks"]) + Number(plan["Shared Read Blocks"]));

/** As if there had been next to nothing when it was last counted. */
const MISLEAD =
  "update pg_class set reltuples = 1, relpages = 1000000 where relkind = 'r' and relnamespace = 'public'::regnamespace";

test.each([
  ["as they are", "select"],
  ["wrong", MISLEAD],
])(
  "ten times as many orders make some ten times the work, for each query, with statistics %s",
  async (_, prepare) => {
    const works = [];
    for (const orders of [2_000, 20_000]) {
      const { client } = await openHistory(orders);
      await client.query(prepare);
      await client.query(SNAPSHOT);
      await client.query(SETTINGS);
      const work: Record<string, number> = {};
      for (const [name, { broken, scope = "select" }] of Object.entries(invariants)) {
        work[name] = 0;
        for (const query of [broken, scope]) {
          const { rows } = await client.query(`explain (analyze, buffers, timing off, format json) ${query}`);
          work[name] += workOf(rows[0]["QUERY PLAN"][0].Plan);
        }
      }
      await client.query("rollback");
      works.push(work);
    }
    const [few = {}, many = {}] = works;
    const growth = Object.keys(many).map((name) => [name, (many[name] ?? 0) / ((few[name] ?? 0) + 1_000)] as const);
    // Ten times would be linear, a hundred times quadratic.
    expect(growth.filter(([, times]) => times > 20)).toEqual([]);
  },
  120_000,
);
