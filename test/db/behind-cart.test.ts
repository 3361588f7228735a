/** Rows that are removed in a batch, or behind one that has changed them. */
import { randomUUIDv7 } from "node:crypto";
import { beforeEach, expect, test } from "vitest";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import { type Command, touch } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, lead, openShop, send, settle, takeAnd } from "./chain.ts";
import { holdVariant, type Opened } from "./harness.ts";

const url = await createDatabase();

let shop: Opened;
let y: string;
let item: { userId: string; variantId: string };

beforeEach(async () => {
  const opened = await openShop(url, [100]);
  shop = opened;
  [y] = opened.ids;
  item = { userId: randomUUIDv7(), variantId: randomUUIDv7() };
  await shop.db.apply({
    touches: [],
    decide: (tx) => {
      tx.add(Cart.open(item.userId));
      tx.add(Object.assign(new CartItem(), { ...item, quantity: 1, position: 1n }));
    },
  });
  shop.seen.committed.length = 0;
});

const touchesOf = (userId: string) => [touch(Cart, { userId }), touch(CartItem, { userId })];
const empty = (userId: string): Command<number> => ({
  touches: touchesOf(userId),
  decide: (tx) => {
    const items = [...tx.list(CartItem, { userId })];
    for (const one of items) tx.remove(one);
    if (items.length > 0) tx.find(Cart, { userId })?.removed();
    return items.length;
  },
});

test("a cart that the batch in front empties is waited for, by its list and by another key", async () => {
  const { db } = shop;
  const look: Command<number> = {
    touches: [touch(Cart, { userId: item.userId }), touch(CartItem, item)],
    decide: (tx) => tx.find(CartItem, item)?.quantity ?? 0,
  };
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeAnd(y, empty(item.userId)));
  // It shares the cart's row, so it comes behind, and may not read the item beside it.
  const single = send(db, look);
  await settle(shop);
  expect(single.decisions).toBe(0);
  const again = send(db, empty(item.userId));
  await settle(shop);
  expect(again.decisions).toBe(0);
  await held.release();
  expect(await endsOf(first, single, again)).toEqual([[99, 1], 0, 0]);
});

test("items taken over from the batch in front are removed once, however often that is decided", async () => {
  const { db, seen } = shop;
  const { userId } = item;
  const raise: Command<number> = {
    touches: touchesOf(userId),
    decide: (tx) => {
      for (const one of tx.list(CartItem, { userId })) one.quantity += 1;
      tx.find(Cart, { userId })?.removed();
      return 0;
    },
  };
  const refuse: Command<never> = {
    touches: [touch(Cart, { userId })],
    decide: () => {
      throw new DomainError("CART_EMPTY", "no");
    },
  };
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeAnd(y, raise));
  const [second, third] = [send(db, empty(userId)), send(db, refuse)];
  await expect.poll(() => second.decisions).toBe(2);
  await held.release();
  expect(await endsOf(first, second, third)).toEqual([[99, 0], 1, "CART_EMPTY"]);
  expect(seen.committed.filter(({ behind }) => behind)).toHaveLength(1);
  expect(await db.list(CartItem, { userId })).toEqual([]);
  expect(await db.find(Cart, { userId })).toMatchObject({ changes: 2n });
});
