/** One whole purchase, and its way back, through each door with a real client. */
import type { Pool } from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { LedgerKind } from "../../gen/shop/v1/balance_pb.ts";
import { IssuedCouponState } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod, PaymentState } from "../../gen/shop/v1/payment_pb.ts";
import { createDatabase } from "../support/database.ts";
import type { Server } from "../support/processes.ts";
import { expectExact, openDatabase } from "./audit.ts";
import { doors } from "./clients.ts";
import { type Clients, clientsOf, fresh, newCoupon, newUser, newVariant, serverOn, tokenOf } from "./shop.ts";

let server: Server;
let database: Pool;

beforeAll(async () => {
  const url = await createDatabase();
  server = await serverOn(url);
  database = openDatabase(url);
});

/** Buys three units at 1000 from the cart with a coupon of 100, and pays. */
async function buy(shop: Clients, stocks: Record<string, number>) {
  const userId = await newUser(shop, 10_000n);
  const variantId = await newVariant(shop, stocks, 1_000n, 10);
  const couponId = await newCoupon(shop, 5);
  await shop.carts.addItem({ requestId: fresh(), userId, variantId, quantity: 3 });
  const { issuedCoupon } = await shop.coupons.claimCoupon({ requestId: fresh(), userId, couponId });
  const issuedCouponId = issuedCoupon?.id ?? "";
  const purchase = { userId, fromCart: true, issuedCouponId };
  const quote = await shop.orders.quoteOrder(purchase);
  expect(quote).toMatchObject({ subtotal: 3_000n, discount: 100n, total: 2_900n, obstacles: [] });
  const { order } = await shop.orders.placeOrder({
    ...purchase,
    requestId: fresh(),
    expectedTotal: quote.total,
    paymentMethod: PaymentMethod.BALANCE,
  });
  expect(order).toMatchObject({ state: OrderState.PENDING_PAYMENT, total: 2_900n, issuedCouponId });
  const orderId = order?.id ?? "";
  const { payment } = await shop.payments.payOrder({
    requestId: fresh(),
    userId,
    orderId,
    method: PaymentMethod.BALANCE,
  });
  expect(payment).toMatchObject({ orderId, state: PaymentState.COMPLETED, amount: 2_900n });
  return { userId, variantId, couponId, orderId, paymentId: payment?.id ?? "", productId: order?.lines[0]?.productId };
}

type Bought = Awaited<ReturnType<typeof buy>>;

async function unitsSold(shop: Clients, productId: string | undefined): Promise<bigint> {
  const { products } = await shop.ranking.listTopProducts({ limit: 100 });
  return products.find((product) => product.productId === productId)?.unitsSold ?? 0n;
}

async function stockOf(shop: Clients, { productId = "", variantId }: Bought): Promise<number | undefined> {
  const { product } = await shop.products.getProduct({ productId });
  return product?.variants.find(({ id }) => id === variantId)?.stock;
}

async function expectBought(shop: Clients, bought: Bought): Promise<void> {
  const { userId, orderId, paymentId, couponId, productId } = bought;
  expect((await shop.orders.getOrder({ userId, orderId })).order?.state).toBe(OrderState.PAID);
  expect((await shop.balances.getBalance({ userId })).balance?.amount).toBe(7_100n);
  const { entries } = await shop.balances.listLedgerEntries({ userId });
  expect(entries).toMatchObject([
    { seq: 2n, kind: LedgerKind.PAYMENT, amount: -2_900n, balanceAfter: 7_100n, reference: paymentId },
    { seq: 1n, kind: LedgerKind.CHARGE, amount: 10_000n, balanceAfter: 10_000n },
  ]);
  expect(await stockOf(shop, bought)).toBe(7);
  expect((await shop.coupons.getCoupon({ couponId })).coupon?.remaining).toBe(4);
  expect((await shop.carts.getCart({ userId })).cart?.items).toEqual([]);
  await expect.poll(() => unitsSold(shop, productId), { timeout: 10_000 }).toBe(3n);
}

async function expectReturned(shop: Clients, bought: Bought): Promise<void> {
  const { userId, orderId, paymentId, productId } = bought;
  expect((await shop.orders.getOrder({ userId, orderId })).order?.state).toBe(OrderState.CANCELLED);
  expect((await shop.balances.getBalance({ userId })).balance?.amount).toBe(10_000n);
  const { entries } = await shop.balances.listLedgerEntries({ userId, pageSize: 1 });
  expect(entries).toMatchObject([{ seq: 3n, kind: LedgerKind.REFUND, amount: 2_900n, reference: paymentId }]);
  const { events } = await shop.payments.listPaymentEvents({ userId, paymentId });
  expect(events).toMatchObject([
    { seq: 2, state: PaymentState.REFUNDED, amount: -2_900n },
    { seq: 1, state: PaymentState.COMPLETED, amount: 2_900n },
  ]);
  expect(await stockOf(shop, bought)).toBe(10);
  const { issuedCoupons } = await shop.coupons.listIssuedCoupons({ userId });
  expect(issuedCoupons).toMatchObject([{ state: IssuedCouponState.ISSUED, orderId: "" }]);
  await expect.poll(() => unitsSold(shop, productId), { timeout: 10_000 }).toBe(0n);
}

describe.each(Object.keys(doors))("%s", (door) => {
  test.for(["CancelOrder", "RefundPayment"] as const)("buys, and gives back with %s", async (way) => {
    const stocks = {};
    const shop = clientsOf(doors[door]?.(server, await tokenOf()) as never);
    const bought = await buy(shop, stocks);
    await expectBought(shop, bought);
    const { userId, orderId, paymentId } = bought;
    if (way === "CancelOrder") {
      const { order } = await shop.orders.cancelOrder({ requestId: fresh(), userId, orderId });
      expect(order?.state).toBe(OrderState.CANCELLED);
    } else {
      const { payment } = await shop.payments.refundPayment({
        requestId: fresh(),
        userId,
        paymentId,
        everything: true,
      });
      expect(payment).toMatchObject({ state: PaymentState.REFUNDED, refundedAmount: 2_900n });
    }
    await expectReturned(shop, bought);
    await expectExact(database, stocks);
  });
});
