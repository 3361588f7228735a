/** What callers and readers of events see while things happen. */
import { Client } from "pg";
import { expect, onTestFinished, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { doors } from "./clients.ts";
import { clientsOf, fresh, newUser, newVariant, serverOn, tokenOf } from "./shop.ts";

async function openShop() {
  const url = await createDatabase();
  const server = await serverOn(url);
  const shop = clientsOf(Object.values(doors)[0]?.(server, await tokenOf()) as never);
  const database = new Client({ connectionString: url });
  await database.connect();
  onTestFinished(() => database.end());
  return { shop, database };
}

test("the version of a product is never newer than the prices shown with it: an edit on it would undo the price", async () => {
  const { shop, database } = await openShop();
  const { product } = await shop.products.createProduct({
    requestId: fresh(),
    name: "product",
    variants: [{ name: "variant", price: 100n, stock: 1 }],
  });
  const productId = product?.id ?? "";
  await database.query("begin; lock table product in access exclusive mode");
  const read = shop.products.getProduct({ productId });
  const waiting = "select count(*)::int as n from pg_locks where not granted";
  await expect.poll(async () => (await database.query(waiting)).rows[0].n, { timeout: 10_000 }).toBeGreaterThan(0);
  await database.query("update variant set price = 200, version = version + 1 where product_id = $1", [productId]);
  await database.query("update product set revision = 2, version = version + 1 where id = $1", [productId]);
  await database.query("commit");
  const shown = (await read).product;
  expect([
    [1n, 100n],
    [1n, 200n],
    [2n, 200n],
  ]).toContainEqual([shown?.version, shown?.variants[0]?.price]);
});

test("the events of one purchase are read in the order in which they happened", async () => {
  const { shop, database } = await openShop();
  const variantId = await newVariant(shop, {}, 1n, 100);
  const userId = await newUser(shop, 100n);
  for (let count = 0; count < 20; count += 1) {
    await shop.orders.checkout({ requestId: fresh(), userId, lines: [{ variantId, quantity: 1 }] });
  }
  const { rows } = await database.query(
    `select array_agg(type order by xid, id) as types from event where aggregatetype = 'order' group by aggregateid`,
  );
  expect(rows.map(({ types }) => types.join())).toEqual(Array(20).fill("order.placed,order.paid"));
});
