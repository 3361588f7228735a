/** Which rows a batch takes over from the one in front, and which ones make it wait for the end of that. */
import { randomUUID, randomUUIDv7 } from "node:crypto";
import { beforeEach, describe, expect, test } from "vitest";
import { LedgerEntry, Wallet } from "../../src/balance/balance.entity.ts";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import { type Command, Replayed, type Tx, touch } from "../../src/db/command.ts";
import { Order, OrderLine } from "../../src/order/order.entity.ts";
import { Orders } from "../../src/order/order.service.ts";
import { Payments } from "../../src/payment/payment.service.ts";
import { payFromWallet } from "../../src/payment/settlement.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, follow, lead, openShop, send, settle, takeAnd } from "./chain.ts";
import {
  addVariants,
  addWallet,
  callOf,
  connect,
  hold,
  holdVariant,
  type Opened,
  stockOf,
  takeOne,
} from "./harness.ts";

const url = await createDatabase();

let shop: Opened;
/** The first is written first: a batch that takes both hangs there, and `x` is as it was. */
let y: string;
let x: string;

beforeEach(async () => {
  const opened = await openShop(url, [100, 10]);
  shop = opened;
  [y, x] = opened.ids;
});

/** A cart with one item of one unit. */
async function addCart(): Promise<{ userId: string; variantId: string }> {
  const item = { userId: randomUUIDv7(), variantId: randomUUIDv7() };
  await shop.db.apply({
    touches: [],
    decide: (tx) => {
      tx.add(Cart.open(item.userId));
      tx.add(Object.assign(new CartItem(), { ...item, quantity: 1, position: 1n }));
    },
  });
  return item;
}

/** Commits at once what a process elsewhere does. */
async function elsewhere(statement: string, ...values: unknown[]): Promise<void> {
  const client = await connect(url);
  await client.query(statement, values);
}

const behind = () => shop.seen.committed.filter((batch) => batch.behind).length;

describe("a row that the batch in front does not have", () => {
  const onItem = <R>(
    item: { userId: string; variantId: string },
    decide: (found: CartItem | undefined, tx: Tx) => R,
  ) => ({
    touches: [touch(CartItem, item)],
    decide: (tx: Tx) => decide(tx.find(CartItem, item), tx),
  });

  test("that is changed behind another batch keeps what was written meanwhile", async () => {
    const { db } = shop;
    const item = await addCart();
    const raise = onItem(item, (found) => {
      if (found) found.quantity += 1;
      return found?.quantity;
    });
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(db, takeAnd(x, raise));
    await elsewhere("update cart_item set quantity = 50, version = version + 1 where user_id = $1", item.userId);
    await held.release();
    expect(await endsOf(first, second)).toEqual([
      [9, 99],
      [8, 51],
    ]);
    expect((await db.find(CartItem, item))?.quantity).toBe(51);
    expect([behind(), second.decisions]).toEqual([0, 2]);
  });

  test("that is removed behind another batch is looked at once more", async () => {
    const { db } = shop;
    const item = await addCart();
    const removeSingle = onItem(item, (found, tx) => {
      if (found?.quantity === 1) tx.remove(found);
      return found?.quantity;
    });
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(db, takeAnd(x, removeSingle));
    await elsewhere("update cart_item set quantity = 50, version = version + 1 where user_id = $1", item.userId);
    await held.release();
    expect(await endsOf(first, second)).toEqual([
      [9, 99],
      [8, 50],
    ]);
    expect((await db.find(CartItem, item))?.quantity).toBe(50);
    expect([behind(), second.decisions]).toEqual([0, 2]);
  });

  test("that is only looked at keeps nobody from following", async () => {
    const { db } = shop;
    const item = await addCart();
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]));
    const second = await follow(
      db,
      takeAnd(
        x,
        onItem(item, (found) => found?.quantity),
      ),
    );
    await held.release();
    expect(await endsOf(first, second)).toEqual([
      [9, 99],
      [8, 1],
    ]);
    expect([behind(), second.decisions]).toEqual([1, 1]);
  });
});

describe("a key to which the batch in front adds a row", () => {
  test("is waited for: the list of a cart", async () => {
    const { db } = shop;
    const { userId } = await addCart();
    const put: Command<number> = {
      touches: [touch(CartItem, { userId })],
      decide: (tx) => {
        tx.add(Object.assign(new CartItem(), { userId, variantId: randomUUIDv7(), quantity: 1, position: 2n }));
        return tx.list(CartItem, { userId }).length;
      },
    };
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeAnd(y, put));
    const second = send(db, put);
    await settle(shop);
    expect(second.decisions).toBe(0);
    await held.release();
    expect(await endsOf(first, second)).toEqual([[99, 2], 3]);
    expect(behind()).toBe(0);
  });

  test("is waited for: the answer to the same request", async () => {
    const { db } = shop;
    const call = callOf(randomUUID());
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeOne([x, y]), call);
    const twin = send(db, takeOne([x, y]), call);
    const other = send(db, takeOne([x]), callOf(call.requestId, "other content"));
    await settle(shop);
    await held.release();
    const [answer, again, reused] = await endsOf(first, twin, other);
    expect(answer).toEqual([9, 99]);
    expect(again).toBeInstanceOf(Replayed);
    expect(String((again as Replayed).response)).toBe("[9,99]");
    expect(reused).toBe("REQUEST_ID_REUSED");
    // The twin is taken to be new, until somebody of its batch is refused.
    expect([first, twin, other].map(({ decisions }) => decisions)).toEqual([1, 1, 0]);
    expect(await stockOf(db, x)).toBe(9);
    expect([behind(), shop.seen.conflicted]).toEqual([0, []]);
  });

  test("is waited for also when that batch does not touch it: the ledger of a wallet", async () => {
    const { db } = shop;
    const userId = await addWallet(db, 0n);
    const charge: Command<number> = {
      touches: [touch(Wallet, { userId })],
      decide: (tx) => {
        const wallet = tx.get(Wallet, { userId });
        tx.add(wallet.charge(50n, 1_000n, "charge", tx.now));
        return Number(wallet.balance);
      },
    };
    const sum: Command<bigint[]> = {
      touches: [touch(Wallet, { userId }), touch(LedgerEntry, { userId })],
      decide: (tx) => [
        tx.get(Wallet, { userId }).balance,
        ...tx.list(LedgerEntry, { userId }).map(({ amount }) => amount),
      ],
    };
    const call = { ...callOf(), encode: () => Buffer.from("") };
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takeAnd(y, charge));
    const second = send(db, sum, call);
    await settle(shop);
    await held.release();
    expect(await endsOf(first, second)).toEqual([
      [99, 50],
      [50n, 50n],
    ]);
  });

  test("is waited for also when that batch does not touch it: an order is paid, and given up at once", async () => {
    const { db, seen } = shop;
    const orders = new Orders(db, 60_000);
    const payments = new Payments(db);
    const userId = await addWallet(db, 100n);
    const purchase = { userId, lines: [{ variantId: x, quantity: 1 }], fromCart: false, issuedCouponId: undefined };
    const { order } = await orders.place(callOf(), { ...purchase, expectedTotal: undefined }, undefined);
    seen.waited.length = 0;
    const held = await hold(url, "select 1 from wallet where user_id = $1 for update", userId);
    const orderId = order.id;
    // As a purchase does, it adds a payment without having asked for those that are there.
    const paid = db.write(callOf(), {
      touches: [touch(Order, { id: orderId }), touch(OrderLine, { orderId }), touch(Wallet, { userId })],
      decide: (tx) => payFromWallet(tx, tx.get(Order, { id: orderId }), tx.list(OrderLine, { orderId }), "test"),
    });
    await held.waiting(1);
    const cancelled = orders.cancel(callOf(), { userId, orderId: order.id });
    await settle(shop, 2);
    await held.release();
    const [payment] = await Promise.all([paid, cancelled]);
    const { state } = await payments.get(userId, payment.id);
    const wallet = await db.find(Wallet, { userId });
    expect([(await cancelled).order.state, state, wallet?.balance]).toEqual(["CANCELLED", "REFUNDED", 100n]);
    expect(await stockOf(db, x)).toBe(10);
  });
});

test("a list of which the batch in front changes some rows only is waited for, and read anew", async () => {
  const { db } = shop;
  const [one = "", other = ""] = await addVariants(db, 5, 5);
  const productId = (await db.find(Variant, { id: one }))?.productId ?? "";
  const list = (taken?: string): Command<number[]> => ({
    touches: [touch(Variant, { productId })],
    decide: (tx) => {
      const variants = tx.list(Variant, { productId }).toSorted((a, b) => a.position - b.position);
      variants.find(({ id }) => id === taken)?.take(1);
      return variants.map(({ stock }) => stock);
    },
  });
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeAnd(y, list(one)));
  await elsewhere("update variant set stock = 3, version = version + 1 where id = $1", other);
  // Whoever comes now has to see that.
  const second = send(db, list(one));
  await settle(shop);
  expect(second.decisions).toBe(0);
  await held.release();
  expect(await endsOf(first, second)).toEqual([
    [99, [4, 5]],
    [3, 3],
  ]);
  expect(behind()).toBe(0);
});

test("a list of which the batch in front changes all rows is taken over", async () => {
  const { db } = shop;
  const [one = ""] = await addVariants(db, 5, 4);
  const productId = (await db.find(Variant, { id: one }))?.productId ?? "";
  const list: Command<number[]> = {
    touches: [touch(Variant, { productId })],
    decide: (tx) => {
      const variants = tx.list(Variant, { productId }).toSorted((a, b) => a.position - b.position);
      for (const variant of variants) variant.take(1);
      return variants.map(({ stock }) => stock);
    },
  };
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeAnd(y, list));
  const second = await follow(db, list);
  await held.release();
  expect(await endsOf(first, second)).toEqual([
    [99, [4, 3]],
    [3, 2],
  ]);
  expect(behind()).toBe(1);
});
