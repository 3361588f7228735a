/** The ranking counted anew from the events gives the same answer, also while sales go on. */
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { openDatabase, rankingCaughtUp } from "../exact/audit.ts";
import { GrpcClient } from "../exact/clients.ts";
import { clientsOf, fresh, many, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { run } from "../support/processes.ts";

const RANKING = join(import.meta.dirname, "../../scripts/ranking.ts");

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
  await trade(5);
  await rankingCaughtUp(database);
  const before = await buckets();
  expect(before.length).toBeGreaterThan(0);
  // Whatever it was, it is counted from the events alone.
  await database.query("update ranking_bucket set quantity = quantity + 1000");
  const rebuild = () => run(process.execPath, [RANKING, "rebuild"], { env: { DATABASE_URL: url } }).exited;
  const { code, stdout, stderr } = await rebuild();
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toMatch(/^\[#{40}\] 100% (\d+)\/\1\nthe ranking is counted anew\n$/);
  expect(await buckets()).toEqual(before);
  // And while sales go on.
  const [again] = await Promise.all([rebuild(), trade(40)]);
  expect(again.code).toBe(0);
  await rankingCaughtUp(database);
  const live = await buckets();
  expect((await rebuild()).code).toBe(0);
  await rankingCaughtUp(database);
  expect(await buckets()).toEqual(live);
  expect((await database.query("select name from event_reader order by name")).rows).toEqual([
    { name: "purged" },
    { name: "sales" },
    { name: "sink" },
  ]);
});
