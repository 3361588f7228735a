/** What is deleted in the background: by several processes at once, none of which waits for another. */
import { randomUUIDv7 } from "node:crypto";
import type { EntityManager } from "@mikro-orm/postgresql";
import type { Client } from "pg";
import { beforeEach, expect, test } from "vitest";
import type { Database } from "../src/db/database.ts";
import { purgeAnswers } from "../src/db/idempotency.ts";
import { purgeEvents } from "../src/outbox/retention.ts";
import { dropOldBuckets } from "../src/ranking/projection.ts";
import { connect, hold, open } from "./db/harness.ts";
import { addEvents, aggregates } from "./outbox/receiver.ts";
import { createDatabase } from "./support/database.ts";

let url: string;
let client: Client;
let one: Database;
let other: Database;

beforeEach(async () => {
  url = await createDatabase();
  client = await connect(url);
  ({ db: one } = await open(url, { limits: { lockMs: 500, idleMs: 10_000, silenceMs: 15_000 } }));
  ({ db: other } = await open(url, { limits: { lockMs: 500, idleMs: 10_000, silenceMs: 15_000 } }));
});

type Purge = (em: EntityManager) => Promise<number>;

/** How much each of two processes deletes, the second one while the first one's transaction is open. */
async function sideBySide(purge: Purge): Promise<[number, number]> {
  let second = -1;
  const first = await one.maintain(async (em) => {
    const deleted = await purge(em);
    second = await other.maintain(purge);
    return deleted;
  });
  return [first, second];
}

const left = async (table: string) => (await client.query(`select from ${table}`)).rows.length;
const soon = () => new Date(Date.now() + 60_000);

test("answers: each process takes others", async () => {
  await client.query(
    "insert into idempotency select 'test', 'rpc', n::text, '', '', now() from generate_series(1, 10) n",
  );
  expect(await sideBySide((em) => purgeAnswers(em, soon(), 4))).toEqual([4, 4]);
  expect(await left("idempotency")).toBe(2);
});

test("events: one process does it at a time, the other one passes", async () => {
  await addEvents(client, aggregates(10));
  const purge: Purge = (em) => purgeEvents(em, soon(), 4, []);
  expect(await sideBySide(purge)).toEqual([4, 0]);
  expect(await other.maintain(purge)).toBe(4);
  expect(await left("event")).toBe(2);
});

const counting = () => hold(url, "select from event_reader where name = 'sales' for update");
const drop: Purge = (em) => dropOldBuckets(em, new Date(), 4);

test("buckets: each process takes others, also while sales are counted", async () => {
  await client.query(
    "insert into ranking_bucket select gen_random_uuid(), now() - interval '40 days', gen_random_uuid(), 1 from generate_series(1, 10)",
  );
  const counts = await counting();
  expect(await sideBySide(drop)).toEqual([4, 4]);
  await counts.release();
  expect(await sideBySide(drop)).toEqual([2, 0]);
});

test("totals, and buckets that are part of them, wait until nobody counts sales", async () => {
  const id = randomUUIDv7();
  await client.query("insert into ranking_bucket values ($1, date_trunc('hour', now() - interval '40 days'), $1, 7)", [
    id,
  ]);
  // Nobody has counted for ten days. The second was not asked for lately.
  await client.query("insert into ranking_window select 30, false, hour, now() from ranking_bucket");
  await client.query("insert into ranking_window values (3, false, now(), now() - interval '2 days')");
  await client.query("insert into ranking_total values (30, false, $1, 8), (3, false, $1, 1)", [id]);
  const counts = await counting();
  expect(await one.maintain(drop)).toBe(0);
  expect([await left("ranking_bucket"), await left("ranking_window")]).toEqual([1, 2]);
  await counts.release();
  expect(await one.maintain(drop)).toBe(1);
  expect((await client.query("select days, units from ranking_total")).rows).toEqual([{ days: 30, units: "1" }]);
  expect((await client.query("select days from ranking_window")).rows).toEqual([{ days: 30 }]);
});
