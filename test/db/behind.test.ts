/** A batch that goes on with the rows of one that is still being written, and is written behind it. */
import { describe, expect, test, vi } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { type Command, type Tx, touch } from "../../src/db/command.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { endsOf, failOnce, follow, lead, openShop, orderOf, send, settle, takeAnd } from "./chain.ts";
import { addWallet, holdVariant, open, type Seen, stockOf, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();

/** How many commands each batch had, and whether it was written behind another one. */
const batchesOf = (seen: Seen) => seen.committed.map(({ size, behind }) => ({ size, behind }));

describe("a batch that is sent behind another one", () => {
  test("is decided on what the other has not yet stored, and answered after it", async () => {
    const { db, seen, ids } = await openShop(url, [100, 10]);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(db, takeOne([x]));
    const order = orderOf({ second, first });
    expect(await stockOf(db, x)).toBe(10);
    expect(order).toEqual([]);
    await held.release();
    expect(await endsOf(first, second)).toEqual([[9, 99], [8]]);
    expect(order).toEqual(["first", "second"]);
    expect([first.decisions, second.decisions]).toEqual([1, 1]);
    expect(batchesOf(seen)).toEqual([
      { size: 1, behind: false },
      { size: 1, behind: true },
    ]);
    expect(await stocksOf(db, [x, y])).toEqual([8, 99]);
    expect(seen.conflicted).toEqual([]);
  });

  test("is answered after it also when both are heard of at once", async () => {
    const proxy = await createProxy(url);
    const { db, seen, ids } = await openShop(proxy.url, [100, 10]);
    const { db: direct } = await open(url);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(db, takeOne([x]));
    const order = orderOf({ second, first });
    proxy.keep();
    await held.release();
    await vi.waitFor(async () => expect(await stockOf(direct, x)).toBe(8), { timeout: 10_000, interval: 5 });
    expect(order).toEqual([]);
    proxy.pass();
    expect(await endsOf(first, second)).toEqual([[9, 99], [8]]);
    expect(order).toEqual(["first", "second"]);
    expect(batchesOf(seen)).toEqual([
      { size: 1, behind: false },
      { size: 1, behind: true },
    ]);
  });

  test("fails with it when others were faster, and is run again behind its end", async () => {
    const shop = await openShop(url, [100, 100, 10]);
    const { db, seen, ids } = shop;
    const [y, z, x] = ids;
    const holds = await failOnce(url, shop, y, z);
    const first = await lead(db, holds.change, takeOne([x, y, z]));
    const second = await follow(db, takeOne([x]));
    const order = orderOf({ second, first });
    const again = await holds.fail();
    await settle(shop);
    // The one in front is at work once more, and has not ended.
    expect(order).toEqual([]);
    expect(second.decisions).toBe(1);
    await again.release();
    expect(await endsOf(first, second)).toEqual([[9, 94, 99], [8]]);
    expect(order).toEqual(["first", "second"]);
    expect([first.decisions, second.decisions]).toEqual([2, 2]);
    expect(await stocksOf(db, [x, y, z])).toEqual([8, 94, 99]);
    expect(seen.committed.some(({ behind }) => behind)).toBe(false);
  });

  test("lets a third one follow only when the first has ended", async () => {
    const shop = await openShop(url, [100, 10, 10]);
    const { db, seen, ids } = shop;
    const [y, x, a] = ids;
    const look = {
      touches: [touch(Variant, { id: a })],
      decide: (tx) => tx.get(Variant, { id: a }).stock,
    } as Command<number>;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, a, y]));
    // The second only looks at `a`, so that a third one would read it beside them: as it was before the first.
    const second = await follow(db, takeAnd(x, look));
    const third = send(db, takeAnd(x, look));
    await settle(shop);
    expect(third.decisions).toBe(0);
    await held.release();
    expect(await endsOf(first, second, third)).toEqual([
      [9, 9, 99],
      [8, 9],
      [7, 9],
    ]);
    expect([second.decisions, third.decisions]).toEqual([1, 1]);
    expect(seen.conflicted).toEqual([]);
  });

  test("follows one only: whoever shares rows with two waits until there is one of them left", async () => {
    const shop = await openShop(url, [100, 100, 10, 10]);
    const { db, ids } = shop;
    const [y1, y2, a, b] = ids;
    const look = { touches: [touch(Variant, { id: b })], decide: (tx: Tx) => tx.get(Variant, { id: b }).stock };
    const holds = [await holdVariant(url, y1), await holdVariant(url, y2)] as const;
    const first = await lead(db, holds[0], takeOne([y1, a]));
    const second = send(db, takeOne([y2, b]));
    await holds[1].waiting(2);
    const third = send(db, takeAnd(a, look));
    await settle(shop);
    expect(third.decisions).toBe(0);
    await holds[0].release();
    expect(await endsOf(first)).toEqual([[99, 9]]);
    await vi.waitFor(() => expect(third.decisions).toBe(1), { timeout: 10_000, interval: 5 });
    await holds[1].release();
    expect(await endsOf(second, third)).toEqual([
      [99, 9],
      [8, 9],
    ]);
  });
});

describe("a refusal decided behind another batch", () => {
  test("stands when that is stored, and is heard no sooner", async () => {
    const shop = await openShop(url, [100, 1]);
    const { db, seen, ids } = shop;
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(db, takeOne([x]));
    const order = orderOf({ second, first });
    await settle(shop);
    expect(order).toEqual([]);
    await held.release();
    expect(await endsOf(first, second)).toEqual([[0, 99], "INSUFFICIENT_STOCK"]);
    expect(order).toEqual(["first", "second"]);
    // Once more with its earlier answer read, since it was refused.
    expect(second.decisions).toBe(2);
    expect(seen.committed.map(({ behind }) => behind)).toContain(true);
  });

  test("is none when the database refuses that: the last unit goes to whoever came behind", async () => {
    const { db, ids } = await openShop(url, [100, 1, 100]);
    const [y, x, z] = ids;
    const take = takeOne([x, y]);
    // Past all rules of the entity, and written behind the row at which it hangs.
    const poisoned: Command<number[]> = {
      touches: [...(take.touches as []), touch(Variant, { id: z })],
      decide: (tx) => {
        tx.get(Variant, { id: z }).stock = -1;
        return take.decide(tx);
      },
    };
    const held = await holdVariant(url, y);
    const first = await lead(db, held, poisoned);
    const second = await follow(db, takeOne([x]));
    const order = orderOf({ second, first });
    await held.release();
    expect(await endsOf(first, second)).toEqual([expect.objectContaining({ code: "23514" }), [0]]);
    expect(order).toEqual(["first", "second"]);
    expect(second.decisions).toBe(3);
    expect(await stocksOf(db, [x, y, z])).toEqual([0, 100, 100]);
  });
});

describe("two commands of one caller, sent without waiting", () => {
  const charge = (userId: string): Command<number> => ({
    touches: [touch(Wallet, { userId })],
    decide: (tx) => {
      const wallet = tx.get(Wallet, { userId });
      tx.add(wallet.charge(50n, 1_000n, "charge", tx.now));
      return Number(wallet.balance);
    },
  });
  const spend = (userId: string): Command<number> => ({
    touches: [touch(Wallet, { userId })],
    decide: (tx) => {
      const wallet = tx.get(Wallet, { userId });
      tx.add(wallet.pay(30n, "spend", tx.now));
      return Number(wallet.balance);
    },
  });

  test("a charge and what it is spent on keep their order, the one behind the other", async () => {
    const { db, seen, ids } = await openShop(url, [100]);
    const userId = await addWallet(db, 0n);
    seen.committed.length = 0;
    const held = await holdVariant(url, ids[0]);
    const charged = await lead(db, held, takeAnd(ids[0], charge(userId)));
    const spent = await follow(db, spend(userId));
    await held.release();
    expect(await endsOf(charged, spent)).toEqual([[99, 50], 20]);
    expect(batchesOf(seen)).toEqual([
      { size: 1, behind: false },
      { size: 1, behind: true },
    ]);
  });

  test("also when the charge fails once and is tried again", async () => {
    const shop = await openShop(url, [100, 100]);
    const { db, ids } = shop;
    const [y, z] = ids;
    const userId = await addWallet(db, 0n);
    const holds = await failOnce(url, shop, y, z);
    const charged = await lead(db, holds.change, takeAnd(y, takeAnd(z, charge(userId))));
    const spent = await follow(db, spend(userId));
    const order = orderOf({ spent, charged });
    const again = await holds.fail();
    await settle(shop);
    expect(order).toEqual([]);
    await again.release();
    expect(await endsOf(charged, spent)).toEqual([[94, [99, 50]], 20]);
    expect(order).toEqual(["charged", "spent"]);
    expect((await db.find(Wallet, { userId }))?.balance).toBe(20n);
  });

  test("also when a hundred do so at once, in batches that tear every other pair apart", async () => {
    const { db, seen } = await openShop(url, [], { maxBatch: 3 });
    const users = await Promise.all(Array.from({ length: 100 }, () => addWallet(db, 0n)));
    const pairs = users.map((userId) => [send(db, charge(userId)), send(db, spend(userId))]);
    expect(await Promise.all(pairs.map((pair) => endsOf(...pair)))).toEqual(users.map(() => [50, 20]));
    expect(seen.conflicted).toEqual([]);
  });
});
