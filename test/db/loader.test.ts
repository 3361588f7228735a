/** Reads by key that share queries. */
import { randomUUIDv7 } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Pool } from "pg";
import { describe, expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { Product, Variant } from "../../src/product/product.entity.ts";
import { Products } from "../../src/product/product.service.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, addWallet, connect, hold, open, stockOf, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();

/** Counts the queries sent meanwhile: each takes a connection of the pool once. */
async function queriesOf<T>(pool: Pool, work: () => Promise<T>): Promise<{ result: T; queries: number }> {
  let queries = 0;
  const count = () => {
    queries += 1;
  };
  pool.on("acquire", count);
  const result = await work();
  pool.off("acquire", count);
  return { result, queries };
}

describe("reads of the same moment", () => {
  test("share one query, missing keys and keys asked for twice included", async () => {
    const { db, pool } = await open(url);
    const ids = await addVariants(db, 1, 2, 3, 4);
    const [first = ""] = ids;
    const asked = [...ids, first, randomUUIDv7(), first];
    const { result, queries } = await queriesOf(pool, () => stocksOf(db, asked));
    expect(result).toEqual([1, 2, 3, 4, 1, undefined, 1]);
    expect(queries).toBe(1);
  });

  test("of different kinds take one query each", async () => {
    const { db, pool } = await open(url);
    const [id = "", other = ""] = await addVariants(db, 1, 2);
    const userId = await addWallet(db, 5n);
    const { productId = "" } = (await db.find(Variant, { id })) ?? {};
    const { result, queries } = await queriesOf(pool, () =>
      Promise.all([
        stocksOf(db, [id, other]),
        db.list(Variant, { productId }),
        db.list(Variant, { productId: randomUUIDv7() }),
        db.list(Variant, { productId, id }),
        db.list(Variant, { id, productId }),
        db.list(Variant, { productId, id: randomUUIDv7() }),
        db.find(Wallet, { userId }),
      ]),
    );
    const [stocks, variants, none, both, reversed, neither, wallet] = result;
    expect(stocks).toEqual([1, 2]);
    expect(variants.map((variant) => variant.stock).sort()).toEqual([1, 2]);
    expect([none, neither]).toEqual([[], []]);
    expect([both, reversed].map((rows) => rows.map((row) => row.id))).toEqual([[id], [id]]);
    expect(wallet?.balance).toBe(5n);
    expect(queries).toBe(4);
  });

  test("of a verb that reads two kinds take one round trip for many products", async () => {
    const { db, pool } = await open(url);
    const products = new Products(db);
    const ids: string[] = [];
    for (let count = 0; count < 20; count += 1) {
      const [id = ""] = await addVariants(db, count, 7);
      ids.push((await db.find(Variant, { id }))?.productId ?? "");
    }
    const { result, queries } = await queriesOf(pool, () => products.batchGet([...ids, ...ids]));
    expect(result.map(({ variants }) => variants[0]?.stock)).toEqual([...ids.keys(), ...ids.keys()]);
    expect(queries).toBe(1);
  });

  test("of more keys than one query takes are split", async () => {
    const { db, pool } = await open(url);
    const ids = await addVariants(db, ...Array.from({ length: 90 }, (_, index) => index));
    const asked = Array.from({ length: 1_200 }, (_, index) => ids[index % 90] as string);
    const { result, queries } = await queriesOf(pool, () => stocksOf(db, asked));
    expect(result).toEqual(asked.map((_, index) => index % 90));
    expect(queries).toBe(3);
  });
});

describe("a read that comes while another is under way", () => {
  const lockTable = () => hold(url, "lock table variant in access exclusive mode");

  test("waits for it and shares the next query, so that it sees what was there when it was asked", async () => {
    const { db, pool } = await open(url);
    const [id = ""] = await addVariants(db, 5);
    const held = await lockTable();
    const { queries, result } = await queriesOf(pool, async () => {
      const first = stockOf(db, id);
      await held.waiting(1);
      const later: Promise<unknown>[] = [];
      for (let turn = 0; turn < 10; turn += 1) {
        later.push(stockOf(db, id), stockOf(db, id));
        await nextTurn();
      }
      await held.release();
      return Promise.all([first, ...later]);
    });
    expect(new Set(result)).toEqual(new Set([5]));
    expect(queries).toBe(2);
  });

  test("does not hold up the answers of that one when it has to wait for a connection", async () => {
    const { db, pool } = await open(url, {}, 1);
    const [id = ""] = await addVariants(db, 5);
    const held = await lockTable();
    const first = stockOf(db, id);
    await held.waiting(1);
    const later = stockOf(db, id);
    await nextTurn();
    // In front of the later read, and not given back before the first one was answered.
    const taken = pool.connect();
    await held.release();
    expect(await first).toBe(5);
    (await taken).release();
    expect(await later).toBe(5);
  });

  test("takes its turn, too, when that one could not even be sent", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 5);
    const bad = Promise.allSettled([stockOf(db, "no uuid")]);
    await nextTurn();
    expect([await stockOf(db, id), (await bad).map(({ status }) => status)]).toEqual([5, ["rejected"]]);
  });

  test("hears of a lost connection only when it is its own", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 5);
    const held = await lockTable();
    const shared = Promise.allSettled([stockOf(db, id), db.find(Variant, { id: randomUUIDv7() })]);
    const [pid] = await held.waiting(1);
    const next = Promise.allSettled([stockOf(db, id)]);
    await (await connect(url)).query("select pg_terminate_backend($1)", [pid]);
    const lost = { status: "rejected", reason: { reason: "DATABASE_UNAVAILABLE" } };
    expect(await shared).toMatchObject([lost, lost]);
    await held.release();
    expect(await next).toEqual([{ status: "fulfilled", value: 5 }]);
    expect(await stockOf(db, id)).toBe(5);
  });
});

describe("nothing is cached", () => {
  test("a read after a write sees it, whoever wrote", async () => {
    const { db } = await open(url);
    const { db: other } = await open(url);
    const [id = ""] = await addVariants(db, 500);
    // The very same object: what was asked for with it is not kept either.
    const key = { id };
    for (let round = 0; round < 100; round += 1) {
      // Readers that keep a query under way, so that the one that matters has to join the right one.
      const noise = [stockOf(db, id), stockOf(db, id)];
      const [left] = await (round % 2 ? db : other).apply(takeOne([id]));
      expect((await db.find(Variant, key))?.stock).toBe(left);
      await Promise.all(noise);
    }
  });

  test("a query that fails rejects those who share it, and the next one works", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 5);
    const failed = await Promise.allSettled([stockOf(db, id), stockOf(db, "no uuid")]);
    expect(failed.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(await stockOf(db, id)).toBe(5);
    expect(await db.find(Product, { id: randomUUIDv7() })).toBeUndefined();
  });
});
