/** Many callers at once on the same rows, in one server process and in two on one database. */

import type { Pool } from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { OrderService, OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod } from "../../gen/shop/v1/payment_pb.ts";
import { createDatabase } from "../support/database.ts";
import { expectExact, openDatabase, value } from "./audit.ts";
import { GrpcClient, tally } from "./clients.ts";
import {
  type Clients,
  clientsOf,
  fresh,
  many,
  newCoupon,
  newUser,
  newVariant,
  type Stocks,
  serverOn,
  tokenOf,
} from "./shop.ts";

const BALANCE = PaymentMethod.BALANCE;
const BUYERS = 200;

let database: Pool;
let grpc: GrpcClient[];
let shops: Clients[];
const stocks: Stocks = {};

beforeAll(async () => {
  const url = await createDatabase();
  database = openDatabase(url);
  const first = await serverOn(url);
  const second = await serverOn(url);
  const token = await tokenOf();
  // Two connections to each process: calls of one connection arrive in the order in which they were sent.
  grpc = [first, second, first, second].map((server) => new GrpcClient(server, token));
  shops = grpc.map((client) => clientsOf(client.transport));
});

describe.each([
  { processes: 1, name: "in one process" },
  { processes: 2, name: "in two processes" },
])("$name", ({ processes }) => {
  /** The clients take turns. */
  const shop = (index: number) => shops[processes === 1 ? (index % 2) * 2 : index % 4] as Clients;
  const client = (index: number) => grpc[processes === 1 ? (index % 2) * 2 : index % 4] as GrpcClient;
  const variant = (price: bigint, stock: number) => newVariant(shop(0), stocks, price, stock);
  const buyers = (money = 0n) => many(BUYERS, (index) => newUser(shop(index), money));

  test("200 buyers order 50 units", async () => {
    const variantId = await variant(100n, 50);
    const lines = [{ variantId, quantity: 1 }];
    const users = await buyers();
    const calls = users.map((userId, index) => shop(index).orders.placeOrder({ requestId: fresh(), userId, lines }));
    expect(await tally(calls)).toEqual({ OK: 50, INSUFFICIENT_STOCK: 150 });
    expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(0);
    await expectExact(database, stocks);
  });

  test("200 buyers check out 50 units", async () => {
    const lines = [{ variantId: await variant(100n, 50), quantity: 1 }];
    const users = await buyers(100n);
    const calls = users.map((userId, index) => shop(index).orders.checkout({ requestId: fresh(), userId, lines }));
    expect(await tally(calls)).toEqual({ OK: 50, INSUFFICIENT_STOCK: 150 });
    await expectExact(database, stocks);
  });

  test("200 users claim 20 pieces of a coupon", async () => {
    const couponId = await newCoupon(shop(0), 20);
    const users = await buyers();
    const calls = users.map((userId, index) =>
      shop(index).coupons.claimCoupon({ requestId: fresh(), userId, couponId }),
    );
    expect(await tally(calls)).toEqual({ OK: 20, COUPON_SOLD_OUT: 180 });
    expect((await shop(0).coupons.getCoupon({ couponId })).coupon?.remaining).toBe(0);
    await expectExact(database, stocks);
  });

  test("one user claims a coupon 20 times at once, and gets one piece", async () => {
    const userId = await newUser(shop(0));
    const couponId = await newCoupon(shop(0), 20);
    const calls = many(20, (index) =>
      tally([shop(index).coupons.claimCoupon({ requestId: fresh(), userId, couponId })]),
    );
    const outcomes = (await calls).flatMap(Object.keys).toSorted();
    expect(outcomes).toEqual([...Array(19).fill("COUPON_ALREADY_CLAIMED"), "OK"]);
    await expectExact(database, stocks);
  });

  test("180 purchases and 20 charges meet in one wallet", async () => {
    const userId = await newUser(shop(0), 6_500n);
    const variantId = await variant(700n, 1_000);
    const lines = [{ variantId, quantity: 1 }];
    const calls = Array.from({ length: 200 }, (_, index) =>
      index % 10 === 0
        ? shop(index).balances.chargeBalance({ requestId: fresh(), userId, amount: 1n })
        : shop(index).orders.checkout({ requestId: fresh(), userId, lines }),
    );
    // 6500 + 20 covers nine times 700, whenever the charges come.
    expect(await tally(calls)).toEqual({ OK: 9 + 20, INSUFFICIENT_BALANCE: 171 });
    expect((await shop(0).balances.getBalance({ userId })).balance?.amount).toBe(220n);
    expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(991);
    await expectExact(database, stocks);
  });

  test("orders that take two variants in opposite order", async () => {
    const [a, b] = [await variant(1n, 60), await variant(1n, 40)];
    const users = await many(80, (index) => newUser(shop(index)));
    const calls = users.map((userId, index) => {
      const lines = (index % 2 ? [a, b] : [b, a]).map((variantId) => ({ variantId, quantity: 1 }));
      return shop(index).orders.placeOrder({ requestId: fresh(), userId, lines });
    });
    expect(await tally(calls)).toEqual({ OK: 40, INSUFFICIENT_STOCK: 40 });
    await expectExact(database, stocks);
  });

  test("units are put in and taken out by hand while others buy them", async () => {
    const variantId = await variant(1n, 30);
    const lines = [{ variantId, quantity: 1 }];
    const users = await buyers();
    const bought = users.map((userId, index) => shop(index).orders.placeOrder({ requestId: fresh(), userId, lines }));
    const adjusted = Array.from({ length: 40 }, (_, index) =>
      shop(index).products.adjustStock({ requestId: fresh(), variantId, delta: index % 4 === 3 ? -1 : 2 }),
    );
    const [orders, adjustments] = await Promise.all([tally(bought), tally(adjusted)]);
    // There is enough of it only for those who come late.
    expect((orders.OK ?? 0) + (orders.INSUFFICIENT_STOCK ?? 0)).toBe(BUYERS);
    expect((adjustments.OK ?? 0) + (adjustments.INSUFFICIENT_STOCK ?? 0)).toBe(40);
    await expectExact(database, stocks);
  });

  test("the same request 20 times at once is one purchase with one answer", async () => {
    const userId = await newUser(shop(0), 1_000n);
    const request = { requestId: fresh(), userId, lines: [{ variantId: await variant(100n, 20), quantity: 1 }] };
    const answers = await many(20, (index) => client(index).raw(OrderService.method.checkout, request));
    expect(new Set(answers.map(({ bytes }) => bytes.toString("hex"))).size).toBe(1);
    expect(answers.filter(({ replayed }) => !replayed)).toHaveLength(1);
    expect(await value(database, "select count(*)::int from shop_order where user_id = $1", userId)).toBe(1);
    const known = "select count(*)::int from idempotency where request_id = $1";
    expect(await value(database, known, request.requestId)).toBe(1);
    await expectExact(database, stocks);
  });

  test("pay and cancel of the same order at once", async () => {
    const variantId = await variant(100n, 50);
    const races = many(20, async (index) => {
      const userId = await newUser(shop(index), 100n);
      const lines = [{ variantId, quantity: 1 }];
      const { order } = await shop(index).orders.placeOrder({ requestId: fresh(), userId, lines });
      const target = { userId, orderId: order?.id ?? "" };
      const [paid, cancelled] = await Promise.all([
        tally([1, 2].map((n) => shop(index + n).payments.payOrder({ requestId: fresh(), ...target, method: BALANCE }))),
        tally([1, 2].map((n) => shop(index + n).orders.cancelOrder({ requestId: fresh(), ...target }))),
      ]);
      // Whoever came first: a cancelled order can't be paid, a paid one can be cancelled.
      expect(paid.OK ?? 0).toBeLessThanOrEqual(1);
      expect({ OK: 0, ...paid }).toEqual({ OK: paid.OK ?? 0, ORDER_NOT_PAYABLE: 2 - (paid.OK ?? 0) });
      expect(cancelled).toEqual({ OK: 1, ORDER_NOT_CANCELLABLE: 1 });
      expect((await shop(0).orders.getOrder(target)).order?.state).toBe(OrderState.CANCELLED);
      expect((await shop(0).balances.getBalance({ userId })).balance?.amount).toBe(100n);
    });
    await races;
    expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(50);
    await expectExact(database, stocks);
  });

  test("a full cart is bought once, however often it is checked out at once", async () => {
    const userId = await newUser(shop(0), 10_000n);
    const variantId = await variant(100n, 100);
    await shop(0).carts.addItem({ requestId: fresh(), userId, variantId, quantity: 5 });
    const request = () => ({ requestId: fresh(), userId, fromCart: true });
    const calls = Array.from({ length: 8 }, (_, index) => shop(index).orders.checkout(request()));
    expect(await tally(calls)).toEqual({ OK: 1, CART_EMPTY: 7 });
    expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(95);
    await expectExact(database, stocks);
  });

  test("all that is added to a cart at once counts", async () => {
    const userId = await newUser(shop(0));
    const [a, b] = [await variant(1n, 100), await variant(1n, 100)];
    await many(12, (index) =>
      shop(index).carts.addItem({ requestId: fresh(), userId, variantId: index % 3 ? a : b, quantity: 2 }),
    );
    const { cart } = await shop(0).carts.getCart({ userId });
    const quantities = new Map(cart?.items.map((item) => [item.variantId, item.quantity]));
    expect([quantities.get(a), quantities.get(b)]).toEqual([16, 8]);
  });

  test("one piece of a coupon in several orders at once takes its discount off one", async () => {
    const userId = await newUser(shop(0));
    const couponId = await newCoupon(shop(0), 1);
    const { issuedCoupon } = await shop(0).coupons.claimCoupon({ requestId: fresh(), userId, couponId });
    const purchase = { userId, issuedCouponId: issuedCoupon?.id ?? "" };
    const calls = await many(6, async (index) => {
      const lines = [{ variantId: await variant(500n, 10), quantity: 1 }];
      return () => shop(index).orders.placeOrder({ requestId: fresh(), ...purchase, lines });
    });
    expect(await tally(calls.map((call) => call()))).toEqual({ OK: 1, COUPON_NOT_USABLE: 5 });
    await expectExact(database, stocks);
  });
});

test("nobody ran into a deadlock: all lock in the same order", async () => {
  expect(await value(database, "select deadlocks::int from pg_stat_database where datname = current_database()")).toBe(
    0,
  );
});
