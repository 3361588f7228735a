/** What becomes of a batch when the one in front of it fails, and its rows look as if that had been stored. */
import { randomUUID } from "node:crypto";
import { describe, expect, test, vi } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { type Command, Replayed, touch } from "../../src/db/command.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, failOnce, follow, lead, openShop, orderOf, send, settle, takeAnd } from "./chain.ts";
import {
  addVariants,
  addWallet,
  callOf,
  connect,
  hold,
  holdVariant,
  open,
  stockOf,
  stocksOf,
  takeOne,
} from "./harness.ts";

const url = await createDatabase();

const look = (userId: string): Command<number> => ({
  touches: [touch(Wallet, { userId })],
  decide: (tx) => Number(tx.get(Wallet, { userId }).balance),
});

/** Keeps everybody from reading any wallet. */
const holdWallets = () => hold(url, "lock table wallet in access exclusive mode");

describe("nothing that others wrote is lost when the batch in front fails", () => {
  test("and they left the very version that it would have left", async () => {
    const { db, ids } = await openShop(url, [100, 100]);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(db, takeOne([x]));
    const client = await connect(url);
    await client.query("update variant set stock = stock - 50, version = version + 1 where id = $1", [x]);
    await held.release();
    expect(await endsOf(first, second)).toEqual([[49, 99], [48]]);
    expect(await stocksOf(db, [x, y])).toEqual([48, 99]);
  });

  test("because another process was faster with the same request, and has stored its answer", async () => {
    const { db, ids } = await openShop(url, [100, 100]);
    const { db: other } = await open(url);
    const [x, gate] = ids;
    const call = callOf(randomUUID());
    const held = await holdVariant(url, gate);
    // The other process takes one unit more than the request asks for, in the same transaction.
    const there = [send(other, takeOne([x]), call), send(other, takeOne([x, gate]))];
    await held.waiting(1);
    const twin = send(db, takeOne([x]), call);
    await held.waiting(2);
    const behind = await follow(db, takeOne([x]));
    await held.release();
    const [, , again, last] = await endsOf(...there, twin, behind);
    expect(again).toBeInstanceOf(Replayed);
    expect(last).toEqual([97]);
    expect(await stocksOf(db, [x, gate])).toEqual([97, 99]);
  });

  test("and its second attempt has stored its answers before the one behind it is sent", async () => {
    const { db, seen, ids } = await openShop(url, [100, 3]);
    const [y, x] = ids;
    const userId = await addWallet(db, 0n);
    const held = await holdVariant(url, y);
    // One batch: the second time only its first command is not refused.
    const front = [send(db, takeOne([y])), send(db, takeOne([x]))];
    await held.waiting(1);
    const wallets = await holdWallets();
    const behind = send(db, takeAnd(x, look(userId)));
    await held.waiting(2);
    const client = await connect(url);
    await client.query("update variant set stock = 0, version = version + 1 where id = $1", [x]);
    await held.release();
    expect(await endsOf(...front)).toEqual([[99], "INSUFFICIENT_STOCK"]);
    expect(seen.conflicted).toEqual([{ size: 2, attempt: 1 }]);
    await wallets.release();
    expect(await endsOf(behind)).toEqual(["INSUFFICIENT_STOCK"]);
    expect(await stocksOf(db, [x, y])).toEqual([0, 99]);
  });
});

describe("a connection that is lost", () => {
  test("while a batch hangs takes the one behind it along, and nobody else", async () => {
    const { db, pool, ids } = await openShop(url, [100, 10]);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const calls = [callOf(), callOf()] as const;
    const first = await lead(db, held, takeOne([x, y]), calls[0]);
    const second = await follow(db, takeOne([x]), calls[1]);
    const order = orderOf({ second, first });
    const [pid] = await held.waiting(1);
    const client = await connect(url);
    await client.query("select pg_terminate_backend($1)", [pid]);
    expect(await endsOf(first, second)).toEqual(["DATABASE_UNAVAILABLE", "DATABASE_UNAVAILABLE"]);
    expect(order).toEqual(["first", "second"]);
    await held.release();
    expect(await stocksOf(db, [x, y])).toEqual([10, 100]);
    // Nothing of them is stored: sent again, both are as new.
    expect(await endsOf(send(db, takeOne([x, y]), calls[0]), send(db, takeOne([x]), calls[1]))).toEqual([[9, 99], [8]]);
    await Promise.all(Array.from({ length: 20 }, () => db.write(callOf(), takeOne([y]))));
    expect(pool.totalCount).toBe(pool.idleCount);
  });

  test("beside a batch that hangs does not free the rows of that", async () => {
    const shop = await openShop(url, [100, 100, 10]);
    const { db, pool, seen, ids } = shop;
    const [y, z, x] = ids;
    const userId = await addWallet(db, 0n);
    const holds = await failOnce(url, shop, y, z);
    const first = await lead(db, holds.change, takeOne([x, y, z]));
    const [front] = await holds.change.waiting(1);
    const wallets = await holdWallets();
    const second = send(db, takeAnd(x, look(userId)));
    const beside = (await wallets.waiting(2)).find((pid) => pid !== front);
    const lost = new Promise((resolve) => pool.once("remove", resolve));
    const client = await connect(url);
    await client.query("select pg_terminate_backend($1)", [beside]);
    await lost;
    await wallets.release();
    // The first is at work once more.
    const again = await holds.fail();
    const third = send(db, takeOne([x]));
    await settle(shop);
    expect(third.decisions).toBe(0);
    await again.release();
    expect(await endsOf(first, second, third)).toEqual([[9, 94, 99], "DATABASE_UNAVAILABLE", [8]]);
    expect(seen.conflicted).toEqual([{ size: 1, attempt: 1 }]);
  });
});

test("batches behind others don't wait for ever for the connections that these have left them", async () => {
  const { db, seen } = await open(url, { maxRunning: 4 }, 2);
  const [y1 = "", y2 = "", x1 = "", x2 = ""] = await addVariants(db, 100, 100, 10, 10);
  seen.waited.length = 0;
  const holds = [await holdVariant(url, y1), await holdVariant(url, y2)];
  const sent = [send(db, takeOne([x1, y1]))];
  await holds[0]?.waiting(1);
  sent.push(send(db, takeOne([x2, y2])));
  await holds[0]?.waiting(2);
  // Both connections are in use now, and each of these needs one of them and one more.
  sent.push(send(db, takeOne([x1])));
  await vi.waitFor(() => expect(seen.waited).toHaveLength(3), { timeout: 10_000, interval: 5 });
  sent.push(send(db, takeOne([x2])));
  await vi.waitFor(() => expect(seen.waited).toHaveLength(4), { timeout: 10_000, interval: 5 });
  for (const held of holds) await held.release();
  expect(await endsOf(...sent)).toEqual([[9, 99], [9, 99], [8], [8]]);
  expect(await stockOf(db, x1)).toBe(8);
});
