import type { MikroORM } from "@mikro-orm/postgresql";
import { expect, onTestFinished, test } from "vitest";
import { entities } from "../src/app.ts";
import { createOrm } from "../src/db/orm.ts";
import { demoSize, loadDemo } from "../src/demo.ts";
import { createDatabase } from "./support/database.ts";

async function open(url: string): Promise<MikroORM> {
  const orm = await createOrm({ url, poolSize: 1, entities });
  onTestFinished(() => orm.close());
  return orm;
}

async function sizeOf(orm: MikroORM): Promise<unknown> {
  const [row] = await orm.em.fork().execute(
    `select (select count(*)::int from product) as products, (select count(*)::int from shop_user) as users,
            (select count(*)::int from coupon) as coupons`,
  );
  return row;
}

test("replicas that start together load one demo shop", async () => {
  const url = await createDatabase();
  const replicas = await Promise.all([1, 2, 3].map(() => open(url)));
  await Promise.all(replicas.map(loadDemo));
  expect(await sizeOf(replicas[0] as MikroORM)).toEqual(demoSize);
});

test("a load that is broken off leaves nothing, and the next start loads all of it", async () => {
  const orm = await open(await createDatabase());
  await orm.em.fork().execute("alter table coupon rename to coupon_away");
  await expect(loadDemo(orm)).rejects.toThrow(/coupon/);
  await orm.em.fork().execute("alter table coupon_away rename to coupon");
  expect(await sizeOf(orm)).toEqual({ products: 0, users: 0, coupons: 0 });
  await loadDemo(orm);
  expect(await sizeOf(orm)).toEqual(demoSize);
});
