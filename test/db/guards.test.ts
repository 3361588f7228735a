/** Two processes on one database: what catches a row that somebody else has changed in between. */
import { randomUUIDv7 } from "node:crypto";
import { describe, expect, test, vi } from "vitest";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import { type Command, touch } from "../../src/db/command.ts";
import type { Isolation } from "../../src/db/transaction.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { endsOf, openShop, send } from "./chain.ts";
import { addVariants, callOf, connect, hold, type Opened, open, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();

describe("the version, at READ COMMITTED", () => {
  test("keeps every update of two processes that change the same two rows", async () => {
    const [p, q] = [await open(url, { isolation: "read committed" }), await open(url, { isolation: "read committed" })];
    const ids = (await addVariants(p.db, 10, 10)).sort();
    // Q writes the first row and then waits for the second, with its transaction open.
    const held = await hold(url, "select 1 from variant where id = $1 for update", ids[1]);
    const second = q.db.apply(takeOne(ids));
    await held.waiting(1);
    // P has read both rows as they were before Q, and waits for Q to write them.
    const first = p.db.apply(takeOne(ids));
    await held.waiting(2);
    await held.release();
    expect(await second).toEqual([9, 9]);
    expect(await first).toEqual([8, 8]);
    expect(await stocksOf(p.db, ids)).toEqual([8, 8]);
    expect(p.seen.conflicted).toEqual([{ size: 1, attempt: 1 }]);
  });

  test("keeps every update of eight writers in two processes, two rows at a time", async () => {
    const options = { isolation: "read committed" } as const;
    const processes = [await open(url, options), await open(url, options)];
    const [first] = processes;
    const ids = await addVariants(first?.db as never, 1_000, 1_000);
    const writers = processes.flatMap(({ db }) => Array.from({ length: 4 }, () => db));
    await Promise.all(
      writers.map(async (db) => {
        for (let round = 0; round < 20; round += 1) await db.apply(takeOne(ids));
      }),
    );
    expect(await stocksOf(first?.db as never, ids)).toEqual([840, 840]);
  });
});

/** What a command gets to see of a cart while somebody adds an item between the reads of the cart and of its items. */
async function seenMeanwhile(isolation?: Isolation) {
  const { db } = await open(url, isolation ? { isolation } : {});
  const userId = randomUUIDv7();
  await db.apply({ touches: [], decide: (tx) => tx.add(Cart.open(userId)) });
  const other = await connect(url);
  await other.query("begin; lock table cart_item in access exclusive mode");
  const watched = await hold(url, "select 1");
  const seen = db.apply({
    touches: [touch(Cart, { userId }), touch(CartItem, { userId })],
    decide: (tx) => ({ changes: tx.find(Cart, { userId })?.changes, items: tx.list(CartItem, { userId }).length }),
  });
  await watched.waiting(1);
  await other.query("insert into cart_item (user_id, variant_id, quantity, position) values ($1, $1, 1, 1)", [userId]);
  await other.query("update cart set changes = changes + 1, version = version + 1 where user_id = $1", [userId]);
  await other.query("commit");
  return seen;
}

describe("isolation", () => {
  test("shows a decision one moment of all entities", async () => {
    expect(await seenMeanwhile("repeatable read")).toEqual({ changes: 0n, items: 0 });
  });

  test("is what shows it: at READ COMMITTED there is an item in a cart that never changed", async () => {
    expect(await seenMeanwhile("read committed")).toEqual({ changes: 0n, items: 1 });
  });

  test("is the default", async () => {
    expect(await seenMeanwhile()).toEqual({ changes: 0n, items: 0 });
  });
});

describe("a transaction whose BEGIN has failed, with all else of it on its way,", () => {
  // BEGIN is sent as text when a connection prepares it: everything else is set up on others.
  const fail = (proxy: { spoil(text: string, other: string): void }) =>
    proxy.spoil("begin isolation level read committed", "bogus");

  test("counts nothing, and stores no answer", async () => {
    const proxy = await createProxy(url);
    const { db } = await open(proxy.url);
    const [id] = (await addVariants((await open(url)).db, 10)) as [string];
    const call = callOf();
    fail(proxy);
    await expect(db.write(call, takeOne([id]))).rejects.toThrow(/syntax error/);
    expect(await stocksOf(db, [id])).toEqual([10]);
    expect(await db.write(call, takeOne([id]))).toEqual([9]);
  });

  test("changes and deletes nothing", async () => {
    const proxy = await createProxy(url);
    const { db } = await open(proxy.url);
    const [userId, variantId] = [randomUUIDv7(), randomUUIDv7()];
    const cart = Cart.open(userId);
    const item = Object.assign(new CartItem(), { userId, variantId, quantity: 1, position: 1n });
    const { db: other } = await open(url);
    await other.apply({ touches: [], decide: (tx) => [cart, item].forEach((row) => void tx.add(row)) });
    const clear: Command<void> = {
      touches: [touch(Cart, { userId }), touch(CartItem, { userId })],
      decide: (tx) => {
        for (const row of tx.list(Cart, { userId })) row.changes += 1n;
        for (const row of tx.list(CartItem, { userId })) tx.remove(row);
      },
    };
    fail(proxy);
    await expect(db.write(callOf(), clear)).rejects.toThrow(/syntax error/);
    expect(await db.find(Cart, { userId })).toMatchObject({ changes: 0n });
    expect(await db.list(CartItem, { userId })).toHaveLength(1);
  });

  test("is not taken for stored by the one behind it", async () => {
    const proxy = await createProxy(url);
    const client = await connect(url);
    const [id] = (await openShop(url, [10])).ids;
    const behindEachOther = async ({ db }: Opened, sold: number) => {
      const first = send(db, takeOne([id]), callOf(), () => proxy.keep());
      await vi.waitFor(() => expect(first.decisions).toBe(1));
      // Nobody sends this one twice: there is no answer of it to be read beside the first.
      const { promise: decided, resolve } = Promise.withResolvers<void>();
      const second = db.apply(takeOne([id], () => resolve()));
      await decided;
      // Somebody else leaves the very version that the first would have left.
      if (sold)
        await client.query("update variant set stock = stock - $2, version = version + 1 where id = $1", [id, sold]);
      proxy.pass();
      return endsOf(first, { answer: second, decisions: 1 });
    };
    const sound = await open(proxy.url);
    expect(await behindEachOther(sound, 0)).toEqual([[9], [8]]);
    expect(sound.seen.committed.map(({ behind }) => behind)).toEqual([false, true]);
    fail(proxy);
    const spoiled = await open(proxy.url);
    expect(await behindEachOther(spoiled, 5)).toEqual([expect.objectContaining({ code: "42601" }), [2]]);
    expect(await stocksOf(spoiled.db, [id])).toEqual([2]);
  });
});
