/** The ranking counted anew from the events gives the same answer, also while sales go on. */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { invariants } from "../../src/audit/invariants.ts";
import { purgeEvents } from "../../src/outbox/retention.ts";
import { rebuildRanking } from "../../src/ranking/rebuild.ts";
import { hold } from "../db/harness.ts";
import { openDatabase, rankingCaughtUp } from "../exact/audit.ts";
import { GrpcClient } from "../exact/clients.ts";
import { clientsOf, fresh, many, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { run } from "../support/processes.ts";
import { HOUR, hourOf, openSales } from "./sales.ts";

const RANKING = join(import.meta.dirname, "../../scripts/ranking.ts");
const TOTALS = invariants["the totals of the ranking are the sums of their hours"]?.broken ?? "";

test("npm run ranking -- rebuild", async () => {
  const url = await createDatabase();
  const server = await serverOn(url);
  const database = openDatabase(url);
  const client = new GrpcClient(server, await tokenOf());
  onTestFinished(async () => {
    client.close();
    await server.stop();
  });
  const shop = clientsOf(client.transport);
  const variants = await many(5, () => newVariant(shop, {}, 1n, 10_000));
  const users = await many(10, () => newUser(shop, 100_000n));
  const buy = async (userId: string, index: number) => {
    const lines = [{ variantId: variants[index % 5] as string, quantity: 1 + (index % 3) }];
    const { order } = await shop.orders.checkout({ requestId: fresh(), userId, lines });
    if (index % 4 === 0) await shop.orders.cancelOrder({ requestId: fresh(), userId, orderId: order?.id ?? "" });
  };
  const trade = async (rounds: number) => {
    for (let round = 0; round < rounds; round += 1)
      await Promise.all(users.map((user, index) => buy(user, index + round)));
  };
  const buckets = async () => (await database.query("select * from ranking_bucket order by variant_id, hour")).rows;
  const top = async () => (await shop.ranking.listTopProducts({})).products;
  /** Waits until the question has totals, which are the sums of their hours. */
  const totalled = () =>
    vi.waitFor(
      async () => {
        await top();
        expect((await database.query("select from ranking_window")).rows).toHaveLength(1);
        expect((await database.query(TOTALS)).rows).toEqual([]);
      },
      { timeout: 10_000, interval: 20 },
    );
  await totalled();
  await trade(5);
  await rankingCaughtUp(database);
  const before = await buckets();
  expect(before.length).toBeGreaterThan(0);
  const answer = await top();
  expect(answer).toHaveLength(5);
  // Whatever it was, it is counted from the events alone.
  await database.query("update ranking_bucket set quantity = quantity + 1000");
  await database.query("update ranking_total set units = units + 1000");
  const rebuild = () => run(process.execPath, [RANKING, "rebuild"], { env: { DATABASE_URL: url } }).exited;
  const { code, stdout, stderr } = await rebuild();
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toMatch(/^\[#{40}\] 100% (\d+)\/\1\nthe ranking is counted anew\n$/);
  expect(await buckets()).toEqual(before);
  expect(await top()).toEqual(answer);
  await totalled();
  expect(await top()).toEqual(answer);
  // And while sales go on.
  const [again] = await Promise.all([rebuild(), trade(40)]);
  expect(again.code).toBe(0);
  await rankingCaughtUp(database);
  const live = await buckets();
  expect((await rebuild()).code).toBe(0);
  await rankingCaughtUp(database);
  expect(await buckets()).toEqual(live);
  await totalled();
  expect((await database.query("select name from event_reader order by name")).rows).toEqual([
    { name: "purged" },
    { name: "sales" },
    { name: "sink" },
  ]);
});

test("hours whose events are no longer kept stay as they are, and are not counted back for later events", async () => {
  const { db, client, happen, caughtUp, buckets } = await openSales();
  const ago = (hours: number) => new Date(Date.now() - hours * HOUR);
  const [long, short] = [ago(120), ago(1)];
  await happen("order.paid", long, 10);
  await happen("order.paid", long, 4);
  await happen("order.cancelled", long, 4, ago(24));
  await happen("order.paid", short, 3);
  await caughtUp();
  expect(await db.maintain((em) => purgeEvents(em, ago(48), 100, []))).toBe(2);
  // What was paid before the end of what is kept, and cancelled later.
  await happen("order.cancelled", long, 1, ago(0));
  await caughtUp();
  const right = [
    [hourOf(long), 9],
    [hourOf(short), 3],
  ];
  expect(await buckets()).toEqual(right);
  await client.query("update ranking_bucket set quantity = 100 where hour = $1", [hourOf(short)]);
  // Not counted yet: it is counted by whoever counts sales, and once.
  await happen("order.cancelled", long, 2, ago(0));
  await happen("order.paid", short, 5);
  await rebuildRanking(db, () => {});
  expect(await buckets()).toEqual(right);
  await caughtUp();
  expect(await buckets()).toEqual([
    [hourOf(long), 7],
    [hourOf(short), 8],
  ]);
});

test("one at a time: a second one is refused at once, until the first has ended or died", async () => {
  const { url, db, client, happen, caughtUp, buckets } = await openSales();
  const now = new Date();
  await happen("order.paid", now, 3);
  await caughtUp();
  const projector = await hold(url, "select from event_reader where name = 'sales' for update");
  const first = rebuildRanking(db, () => {});
  await projector.waiting(1);
  const began = performance.now();
  await expect(rebuildRanking(db, () => {})).rejects.toThrow("somebody rebuilds the ranking already");
  expect(performance.now() - began).toBeLessThan(2_000);
  await projector.release();
  await first;
  expect(await buckets()).toEqual([[hourOf(now), 3]]);
  // Somebody else is at it, and then has not been heard of for too long.
  const other = "insert into event_reader values ('sales.rebuild', $1, now() + interval '1 minute', '7', $1)";
  await client.query(other, [randomUUID()]);
  await expect(rebuildRanking(db, () => {})).rejects.toThrow("somebody rebuilds the ranking already");
  await client.query("update event_reader set lease_end = now() - interval '1 second' where name = 'sales.rebuild'");
  await rebuildRanking(db, () => {});
  expect(await buckets()).toEqual([[hourOf(now), 3]]);
});
