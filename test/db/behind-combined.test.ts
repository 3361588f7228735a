/** A batch behind another one together with what else may happen to a batch. */
import { expect, test } from "vitest";
import { type Command, Replayed, touch } from "../../src/db/command.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, failOnce, follow, lead, openShop, send, settle } from "./chain.ts";
import { callOf, hold, holdVariant, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();

test("of three, the second fails when the third was sent: both run again, in order", async () => {
  const { db, ids } = await openShop(url, [100, 100, 10]);
  const [y1, y2, x] = ids;
  const front = await holdVariant(url, y1);
  const change = await hold(url, "update variant set stock = stock - 5, version = version + 1 where id = $1", y2);
  const first = await lead(db, front, takeOne([x, y1]));
  const second = await follow(db, takeOne([x, y2]));
  await front.release();
  expect(await endsOf(first)).toEqual([[9, 99]]);
  await change.waiting(1);
  const third = await follow(db, takeOne([x]));
  await change.release();
  expect(await endsOf(second, third)).toEqual([[8, 94], [7]]);
  expect([second.decisions, third.decisions]).toEqual([2, 2]);
  expect(await stocksOf(db, [x, y1, y2])).toEqual([7, 99, 94]);
});

test("a poisoned command is found; twins that are torn apart have one effect", async () => {
  const { db, seen, ids } = await openShop(url, [100, 100, 100]);
  const [y, x, z] = ids;
  const poisoned: Command<number[]> = {
    touches: [x, z].map((id) => touch(Variant, { id })),
    decide: (tx) => {
      tx.get(Variant, { id: x }).take(1);
      tx.get(Variant, { id: z }).stock = -1;
      return [];
    },
  };
  const call = callOf();
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeOne([x, y]));
  const behind = [
    send(db, takeOne([x]), call),
    send(db, poisoned),
    send(db, takeOne([x]), call),
    send(db, takeOne([x])),
  ];
  // The twin counts as a refusal: it is decided twice.
  await expect.poll(() => behind[0]?.decisions).toBe(2);
  await held.release();
  expect(await endsOf(first, ...behind)).toEqual([
    [99, 99],
    [98],
    expect.objectContaining({ code: "23514" }),
    expect.any(Replayed),
    [97],
  ]);
  expect(seen.split.map(({ size }) => size)).toEqual([4, 2]);
  expect(await stocksOf(db, [x, y, z])).toEqual([97, 99, 100]);
});

test("who misses a row plans again; its companion is answered", async () => {
  const { db, ids } = await openShop(url, [100, 100, 100]);
  const [y, x, z] = ids;
  let plans = 0;
  const planned: Command<number> = {
    touches: async () => {
      plans += 1;
      return [x, z].slice(0, plans).map((id) => touch(Variant, { id }));
    },
    decide: (tx) => {
      tx.get(Variant, { id: x }).take(1);
      tx.get(Variant, { id: z }).take(1);
      return tx.get(Variant, { id: x }).stock;
    },
  };
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeOne([x, y]));
  const [again, companion] = [send(db, planned), send(db, takeOne([x]))];
  await expect.poll(() => companion.decisions).toBe(2);
  // Not before it is known what became of the batch.
  expect(plans).toBe(1);
  await held.release();
  expect(await endsOf(first, again, companion)).toEqual([[99, 99], 97, [98]]);
  expect([plans, ...(await stocksOf(db, [x, y, z]))]).toEqual([2, 97, 99, 99]);
});

test("what a batch would have left is withdrawn when it fails", async () => {
  const shop = await openShop(url, [100, 100, 10]);
  const { db, ids } = shop;
  const [y, z, x] = ids;
  const holds = await failOnce(url, shop, y, z);
  const first = await lead(db, holds.change, takeOne([x, y, z]));
  const again = await holds.fail();
  const late = send(db, takeOne([x]));
  await settle(shop);
  expect(late.decisions).toBe(0);
  await again.release();
  expect(await endsOf(first, late)).toEqual([[9, 94, 99], [8]]);
});
