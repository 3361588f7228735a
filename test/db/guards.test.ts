/** Two processes on one database: what catches a row that somebody else has changed in between. */
import { randomUUIDv7 } from "node:crypto";
import { describe, expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import type { Isolation } from "../../src/db/batch.ts";
import { type Tx, touch } from "../../src/db/command.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, addWallet, hold, open, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();

/** A cart with items of one unit each, and the ids of their variants. */
async function addCart(db: Awaited<ReturnType<typeof open>>["db"], items: number) {
  const userId = randomUUIDv7();
  const variantIds = Array.from({ length: items }, () => randomUUIDv7());
  await db.apply({
    touches: [],
    decide: (tx) => {
      tx.add(Cart.open(userId));
      variantIds.forEach((variantId, index) => {
        tx.add(Object.assign(new CartItem(), { userId, variantId, quantity: 1, position: BigInt(index) }));
      });
    },
  });
  return { userId, variantIds };
}

const raise = (tx: Tx, userId: string, variantId: string) => {
  const item = tx.find(CartItem, { userId, variantId });
  if (item) item.quantity += 1;
};

describe("the version, at READ COMMITTED", () => {
  test("keeps every update of two processes that change the same two rows", async () => {
    const [p, q] = [await open(url, { isolation: "read committed" }), await open(url, { isolation: "read committed" })];
    const ids = await addVariants(p.db, 10, 10);
    const userId = await addWallet(p.db, 100n);
    // Q writes both variants and then waits for the wallet, with its transaction open.
    const held = await hold(url, "select 1 from wallet where user_id = $1 for update", userId);
    const slow = takeOne(ids);
    const second = q.db.apply({
      touches: [...(slow.touches as []), touch(Wallet, { userId })],
      decide: (tx) => {
        tx.get(Wallet, { userId }).balance += 1n;
        return slow.decide(tx);
      },
    });
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

/** Two processes raise the same item, a row without version, at the same time. Returns its quantity afterwards. */
async function raiseTwice(isolation?: Isolation) {
  const options = isolation ? { isolation } : {};
  const [p, q] = [await open(url, options), await open(url, options)];
  const { userId, variantIds } = await addCart(p.db, 1);
  const [variantId = ""] = variantIds;
  const [gate = ""] = await addVariants(p.db, 10);
  const held = await hold(url, "select 1 from variant where id = $1 for update", gate);
  const command = {
    touches: [touch(CartItem, { userId, variantId })],
    decide: (tx: Tx) => raise(tx, userId, variantId),
  };
  const second = q.db.apply({
    touches: [...command.touches, touch(Variant, { id: gate })],
    decide: (tx) => {
      raise(tx, userId, variantId);
      tx.get(Variant, { id: gate }).take(1);
    },
  });
  await held.waiting(1);
  const first = p.db.apply(command);
  await held.waiting(2);
  await held.release();
  await Promise.all([first, second]);
  const item = await p.db.find(CartItem, { userId, variantId });
  return { quantity: item?.quantity, conflicts: p.seen.conflicted.length };
}

describe("isolation", () => {
  test("keeps an update of a row that has no version", async () => {
    expect(await raiseTwice("repeatable read")).toEqual({ quantity: 3, conflicts: 1 });
  });

  test("is what keeps it: at READ COMMITTED it is lost", async () => {
    expect(await raiseTwice("read committed")).toEqual({ quantity: 2, conflicts: 0 });
  });

  test("is the default", async () => {
    expect(await raiseTwice()).toEqual({ quantity: 3, conflicts: 1 });
  });
});
