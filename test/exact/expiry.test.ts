/** Orders that nobody pays: given back once, whoever does it and whatever else is done to them at the same moment. */

import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod } from "../../gen/shop/v1/payment_pb.ts";
import { DomainError } from "../../src/error.ts";
import { createDatabase } from "../support/database.ts";
import { broken } from "../support/invariants.ts";
import { expectExact, openDatabase, rankingCaughtUp, value } from "./audit.ts";
import { GrpcClient, tally } from "./clients.ts";
import { clientsOf, fresh, many, newCoupon, newUser, newVariant, type Stocks, serverOn, tokenOf } from "./shop.ts";
import { callOf, expireAll, newShop, ORDER_TTL, openReplica, type Replica } from "./verbs.ts";

let url: string;
let database: Pool;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
});

test("two processes expire the same orders, and stock and coupons come back once", async () => {
  const servers = [await serverOn(url, { ORDER_TTL: "1s" }), await serverOn(url, { ORDER_TTL: "1s" })];
  const token = await tokenOf();
  const shops = servers.map((server) => clientsOf(new GrpcClient(server, token).transport));
  const [shop = clientsOf(null as never), other = shop] = shops;
  const stocks: Stocks = {};
  const [variantId, couponId] = [await newVariant(shop, stocks, 500n, 100), await newCoupon(shop, 60)];
  const orders = await many(60, async (index) => {
    const userId = await newUser(shop, 1_000n);
    const { issuedCoupon } = await shop.coupons.claimCoupon({ requestId: fresh(), userId, couponId });
    const lines = [{ variantId, quantity: 1 + (index % 2) }];
    const { order } = await shop.orders.placeOrder({
      requestId: fresh(),
      userId,
      lines,
      issuedCouponId: issuedCoupon?.id ?? "",
    });
    return { userId, orderId: order?.id ?? "" };
  });
  expect(await value(database, "select stock from variant where id = $1", variantId)).toBeLessThanOrEqual(100);

  const waiting = () => value(database, "select count(*)::int from shop_order where state = 'PENDING_PAYMENT'");
  await expect.poll(waiting, { timeout: 20_000 }).toBe(0);
  expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(100);
  expect(await value(database, "select count(*)::int from event where type = 'order.expired'")).toBe(60);
  expect(await value(database, "select count(*)::int from issued_coupon where order_id is not null")).toBe(0);
  const [target = { userId: "", orderId: "" }] = orders;
  expect((await other.orders.getOrder(target)).order?.state).toBe(OrderState.EXPIRED);
  const method = PaymentMethod.BALANCE;
  expect(await tally([other.payments.payOrder({ requestId: fresh(), ...target, method })])).toEqual({
    ORDER_NOT_PAYABLE: 1,
  });
  expect(await tally([shop.orders.cancelOrder({ requestId: fresh(), ...target })])).toEqual({
    ORDER_NOT_CANCELLABLE: 1,
  });
  await expectExact(database, stocks);
  await Promise.all(servers.map((server) => server.stop()));
});

/** Reasons of what was refused, OK otherwise. */
async function outcome(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return "OK";
  } catch (error) {
    if (error instanceof DomainError) return error.reason;
    throw error;
  }
}

async function race([early, late, third]: Replica[], userId: string, variantId: string): Promise<string> {
  if (!early || !late || !third) throw new Error("three replicas race");
  const purchase = { userId, lines: [{ variantId, quantity: 1 }], fromCart: false };
  const wanted = { ...purchase, issuedCouponId: undefined, expectedTotal: undefined };
  const orderId = (await early.orders.place(callOf(), wanted, "BALANCE")).order.id;
  const [paid, cancelled] = await Promise.all([
    outcome(early.payments.pay(callOf(), { userId, orderId, method: "BALANCE" })),
    outcome(third.orders.cancel(callOf(), { userId, orderId })),
    expireAll(late),
    expireAll(third),
  ]);
  const { state } = (await early.orders.get(userId, orderId)).order;
  return `pay: ${paid}, cancel: ${cancelled}, then ${state}`;
}

test("pay, cancel and expire at once end in one state that one of their orders leads to", async () => {
  const clocks = [0, ORDER_TTL + 1_000, ORDER_TTL + 1_000].map((ahead) => () => new Date(Date.now() + ahead));
  // Clocks of replicas differ: for the first one the order can still be paid, for the others its time has passed.
  const replicas = await Promise.all(clocks.map((clock) => openReplica(url, { clock })));
  const { userId, variantIds } = await newShop(replicas[0] as Replica, 1_000n, [{ price: 100n, stock: 40 }]);
  const [variantId = ""] = variantIds;
  const legal = [
    "pay: OK, cancel: OK, then CANCELLED",
    "pay: ORDER_NOT_PAYABLE, cancel: OK, then CANCELLED",
    "pay: ORDER_NOT_PAYABLE, cancel: ORDER_NOT_CANCELLABLE, then EXPIRED",
  ];
  for (let turn = 0; turn < 40; turn += 1) {
    expect(legal).toContain(await race(replicas, userId, variantId));
  }
  expect(await value(database, "select balance::int from wallet where user_id = $1", userId)).toBe(1_000);
  await rankingCaughtUp(database, async () => replicas[0]?.ranking.project());
  expect(await broken(database, { [variantId]: 40 })).toEqual([]);
});
