/** What the shop itself refuses: each verb's reasons with the facts that a caller can act on. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService, IfPresent } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService, OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod, PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { type Expected, expectRefusals } from "./refusal.ts";
import { fresh, inDays, MAX_BALANCE, MAX_CHARGE, type Method, openShop, trusted } from "./shop.ts";

const shop = await openShop();
const { call } = shop;
const { method: carts } = CartService;
const { method: coupons } = CouponService;
const { method: orders } = OrderService;
const { method: payments } = PaymentService;
const { method: products } = ProductService;
const BALANCE = PaymentMethod.BALANCE;

async function refused<M extends Method>(
  method: M,
  request: MessageInitShape<M["input"]>,
  reason: string,
  facts: Omit<Expected, "name" | "reason">,
): Promise<void> {
  const { name } = method;
  await expectRefusals(shop, method, [
    { name, request: { requestId: fresh(), ...request }, token: trusted, reason, ...facts },
  ]);
}

/** By SQL, since no call can turn the clock. */
async function timePasses(table: string, column: string, id: string): Promise<void> {
  await shop.sql.query(`update ${table} set ${column} = now() - interval '1 second' where id = $1`, [id]);
}

/** A user with something to buy for 3,000: two units of one variant and one of another. */
async function basket(balance = 5_000n) {
  const userId = await shop.user(balance);
  const [two, one] = [await shop.product({ stock: 2 }), await shop.product({ stock: 2 })];
  const lines = [
    { variantId: two.variantId, quantity: 2 },
    { variantId: one.variantId, quantity: 1 },
  ];
  return { userId, lines, variantId: two.variantId };
}

test("INSUFFICIENT_STOCK says of which variant how many there are", async () => {
  const { userId, lines, variantId } = await basket();
  const metadata = { variant_id: variantId, available: "2", required: "3" };
  const greedy = [lines[1] ?? { variantId, quantity: 0 }, { variantId, quantity: 3 }];
  for (const method of [orders.placeOrder, orders.checkout]) {
    await refused(method, { userId, lines: greedy }, "INSUFFICIENT_STOCK", { metadata });
  }
  await refused(carts.addItem, { userId, variantId, quantity: 3 }, "INSUFFICIENT_STOCK", { metadata });
  await call(carts.addItem, { requestId: fresh(), userId, variantId, quantity: 2 });
  await refused(carts.addItem, { userId, variantId, quantity: 1 }, "INSUFFICIENT_STOCK", { metadata });
  await refused(carts.updateItem, { userId, variantId, quantity: 3 }, "INSUFFICIENT_STOCK", { metadata });
  await call(products.adjustStock, { requestId: fresh(), variantId, delta: -1 });
  const gone = { variant_id: variantId, available: "1", required: "2" };
  await refused(orders.checkout, { userId, fromCart: true }, "INSUFFICIENT_STOCK", { metadata: gone });
  await refused(products.adjustStock, { variantId, delta: -2 }, "INSUFFICIENT_STOCK", { metadata: gone });
});

test("INSUFFICIENT_BALANCE says what there is and what it takes", async () => {
  const { userId, lines } = await basket(2_999n);
  const facts = { metadata: { user_id: userId, available: "2999", required: "3000" } };
  await refused(orders.checkout, { userId, lines }, "INSUFFICIENT_BALANCE", facts);
  await refused(orders.placeOrder, { userId, lines, paymentMethod: BALANCE }, "INSUFFICIENT_BALANCE", facts);
  const { order } = await call(orders.placeOrder, { requestId: fresh(), userId, lines });
  const orderId = order?.id ?? "";
  await refused(payments.payOrder, { userId, orderId, method: BALANCE }, "INSUFFICIENT_BALANCE", facts);
});

test("BALANCE_LIMIT_EXCEEDED says what the wallet holds and may hold; a refund is never too much", async () => {
  const { userId, orderId, paymentId } = await shop.paid();
  const charge = (amount: bigint) => call(BalanceService.method.chargeBalance, { requestId: fresh(), userId, amount });
  await charge(MAX_CHARGE);
  await charge(MAX_CHARGE);
  await charge(MAX_BALANCE - 2n * MAX_CHARGE - 4_000n);
  const metadata = { user_id: userId, balance: String(MAX_BALANCE), limit: String(MAX_BALANCE) };
  await refused(BalanceService.method.chargeBalance, { userId, amount: 1n }, "BALANCE_LIMIT_EXCEEDED", { metadata });
  await call(payments.refundPayment, { requestId: fresh(), userId, paymentId, everything: true });
  const { balance } = await call(BalanceService.method.getBalance, { userId });
  expect(balance?.amount).toBe(MAX_BALANCE + 1_000n);
  const facts = { metadata: { payment_id: paymentId, state: "REFUNDED", available: "0", required: "0" } };
  await refused(payments.refundPayment, { userId, paymentId, everything: true }, "PAYMENT_NOT_REFUNDABLE", facts);
  const order = { metadata: { order_id: orderId, state: "CANCELLED" } };
  await refused(orders.cancelOrder, { userId, orderId }, "ORDER_NOT_CANCELLABLE", order);
});

test("COUPON_NOT_USABLE has a cause", async () => {
  const { userId, lines } = await basket();
  const buy = (issuedCouponId: string, metadata: Record<string, string>) =>
    refused(orders.checkout, { userId, lines, issuedCouponId }, "COUPON_NOT_USABLE", {
      metadata: { issued_coupon_id: issuedCouponId, ...metadata },
    });
  const large = await shop.issued(userId, { minOrderAmount: 3_001n });
  await buy(large, { cause: "MIN_ORDER_AMOUNT", required: "3001", available: "3000" });
  const old = await shop.issued(userId);
  await timePasses("issued_coupon", "valid_until", old);
  await buy(old, { cause: "EXPIRED" });
  const early = await shop.issued(userId);
  await shop.sql.query("update issued_coupon set valid_from = now() + interval '1 hour' where id = $1", [early]);
  await buy(early, { cause: "NOT_YET_VALID" });
  const used = await shop.issued(userId);
  const unit = [{ variantId: (await shop.product()).variantId, quantity: 1 }];
  await call(orders.placeOrder, { requestId: fresh(), userId, lines: unit, issuedCouponId: used });
  await buy(used, { cause: "USED" });

  const claim = (couponId: string, cause: string) =>
    refused(coupons.claimCoupon, { userId, couponId }, "COUPON_NOT_USABLE", {
      metadata: { coupon_id: couponId, cause },
    });
  await claim(await shop.coupon({ validFrom: inDays(1), validUntil: inDays(2) }), "NOT_YET_VALID");
  await claim(await shop.coupon({ validFrom: inDays(-2), validUntil: inDays(-1) }), "EXPIRED");
});

test("COUPON_SOLD_OUT and COUPON_ALREADY_CLAIMED", async () => {
  const couponId = await shop.coupon({ totalQuantity: 3, perUserLimit: 2 });
  const [greedy, quick, late] = [await shop.user(), await shop.user(), await shop.user()];
  for (const userId of [greedy, greedy]) await call(coupons.claimCoupon, { requestId: fresh(), userId, couponId });
  const metadata = { coupon_id: couponId, per_user_limit: "2" };
  await refused(coupons.claimCoupon, { userId: greedy, couponId }, "COUPON_ALREADY_CLAIMED", { metadata });
  await call(coupons.claimCoupon, { requestId: fresh(), userId: quick, couponId });
  await refused(coupons.claimCoupon, { userId: late, couponId }, "COUPON_SOLD_OUT", {
    metadata: { coupon_id: couponId },
  });
});

test("CART_ITEM_EXISTS when asked to reject, CART_ITEM_NOT_FOUND once it is gone, CART_EMPTY then", async () => {
  const { userId, variantId } = await basket();
  const item = { userId, variantId, quantity: 1 };
  await call(carts.addItem, { requestId: fresh(), ...item, ifPresent: IfPresent.REJECT });
  const facts = { metadata: { variant_id: variantId } };
  await refused(carts.addItem, { ...item, ifPresent: IfPresent.REJECT }, "CART_ITEM_EXISTS", facts);
  const { quantity } = await call(carts.addItem, { requestId: fresh(), ...item });
  expect(quantity).toBe(2);
  await call(carts.removeItem, { requestId: fresh(), userId, variantId });
  await refused(carts.removeItem, { userId, variantId }, "CART_ITEM_NOT_FOUND", facts);
  await refused(carts.updateItem, item, "CART_ITEM_NOT_FOUND", facts);
  for (const method of [orders.placeOrder, orders.checkout]) {
    await refused(method, { userId, fromCart: true }, "CART_EMPTY", { metadata: { user_id: userId } });
  }
});

test("a cart takes 100 different variants, and 9999 units of each", async () => {
  const userId = await shop.user();
  const variants = Array.from({ length: 100 }, (_, n) => ({ name: `No. ${n}`, price: 1n, stock: 20_000 }));
  const { product } = await call(products.createProduct, { requestId: fresh(), name: "Shelf", variants });
  const ids = product?.variants.map(({ id }) => id) ?? [];
  for (const variantId of ids) await call(carts.addItem, { requestId: fresh(), userId, variantId, quantity: 1 });
  const { variantId } = await shop.product();
  await refused(carts.addItem, { userId, variantId, quantity: 1 }, "CART_FULL", { metadata: { limit: "100" } });
  const [first = ""] = ids;
  const metadata = { variant_id: first };
  const tooMany = { userId, variantId: first, quantity: 9_999 };
  await refused(carts.addItem, tooMany, "ARGUMENT_INVALID", { metadata, fields: ["quantity"] });
  const { order } = await call(orders.placeOrder, { requestId: fresh(), userId, fromCart: true });
  expect(order?.lines.map((line) => line.variantId)).toEqual(ids);
});

test("TOTAL_CHANGED when the price is another one by now", async () => {
  const { userId, lines, variantId } = await basket(10_000n);
  const productId = (await call(orders.quoteOrder, { userId, lines })).lines[0]?.productId ?? "";
  const change = { requestId: fresh(), productId, version: 1n, variants: [{ variantId, price: 1_500n }] };
  await call(products.updateProduct, change);
  const facts = { metadata: { expected: "3000", total: "4000" } };
  for (const method of [orders.placeOrder, orders.checkout]) {
    await refused(method, { userId, lines, expectedTotal: 3_000n }, "TOTAL_CHANGED", facts);
  }
  await call(orders.checkout, { requestId: fresh(), userId, lines, expectedTotal: 4_000n });
  const older = { metadata: { product_id: productId, version: "2" } };
  await refused(products.updateProduct, { productId, version: 1n, name: "Old" }, "VERSION_MISMATCH", older);
});

test("an order is paid once, and given up once", async () => {
  const paid = await shop.paid();
  const orderIs = (orderId: string, state: string) => ({ metadata: { order_id: orderId, state } });
  await refused(payments.payOrder, { ...paid, method: BALANCE }, "ORDER_NOT_PAYABLE", orderIs(paid.orderId, "PAID"));
  const given = await shop.placed();
  await call(orders.cancelOrder, { requestId: fresh(), ...given });
  const cancelled = orderIs(given.orderId, "CANCELLED");
  await refused(payments.payOrder, { ...given, method: BALANCE }, "ORDER_NOT_PAYABLE", cancelled);
  await refused(orders.cancelOrder, given, "ORDER_NOT_CANCELLABLE", cancelled);
  const foreign = { metadata: { method: "EXTERNAL" } };
  await refused(payments.payOrder, { ...given, method: PaymentMethod.EXTERNAL }, "METHOD_NOT_SERVED", foreign);
});

async function stateOf({ userId, orderId }: { userId: string; orderId: string }): Promise<OrderState | undefined> {
  return (await call(orders.getOrder, { userId, orderId })).order?.state;
}

test("an order expires, also behind one that can't; then it is neither payable nor cancellable", async () => {
  const [stuck, late] = [await shop.placed(), await shop.placed()];
  await shop.sql.query("update variant set stock = 2147483647 where id = $1", [stuck.variantId]);
  await timePasses("shop_order", "expire_time", stuck.orderId);
  await timePasses("shop_order", "expire_time", late.orderId);
  await expect.poll(() => stateOf(late), { timeout: 10_000 }).toBe(OrderState.EXPIRED);
  expect(await stateOf(stuck)).toBe(OrderState.PENDING_PAYMENT);
  for (const { orderId, userId } of [late, stuck]) {
    const facts = { metadata: { order_id: orderId, state: "EXPIRED" } };
    await refused(payments.payOrder, { userId, orderId, method: BALANCE }, "ORDER_NOT_PAYABLE", facts);
  }
  const facts = { metadata: { order_id: late.orderId, state: "EXPIRED" } };
  await refused(orders.cancelOrder, late, "ORDER_NOT_CANCELLABLE", facts);
});

test("an order can be given up, also when the shelf has been filled up meanwhile", async () => {
  const userId = await shop.user();
  const { variantId } = await shop.product({ stock: 1_000_000_000 });
  const { order } = await call(orders.placeOrder, { requestId: fresh(), userId, lines: [{ variantId, quantity: 9 }] });
  await call(products.adjustStock, { requestId: fresh(), variantId, delta: 9 });
  await call(orders.cancelOrder, { requestId: fresh(), userId, orderId: order?.id ?? "" });
  const { variant } = await call(products.adjustStock, { requestId: fresh(), variantId, delta: -1 });
  expect(variant?.stock).toBe(1_000_000_008);
});

test("a quote names every obstacle, and its total leaves out what can't be bought", async () => {
  const { userId, lines, variantId } = await basket();
  const [unknown, coupon] = [fresh(), await shop.issued(userId, { minOrderAmount: 1_000_000n })];
  const wanted = [{ variantId, quantity: 3 }, { variantId: unknown, quantity: 1 }, ...lines.slice(1)];
  const quote = await call(orders.quoteOrder, { userId, lines: wanted, issuedCouponId: coupon });
  expect(quote.obstacles.map((it) => [it.reason, it.variantId || it.issuedCouponId])).toEqual([
    ["INSUFFICIENT_STOCK", variantId],
    ["VARIANT_NOT_FOUND", unknown],
    ["COUPON_NOT_USABLE", coupon],
  ]);
  expect([quote.subtotal, quote.discount, quote.total]).toEqual([4_000n, 0n, 4_000n]);
  const none = fresh();
  const empty = await call(orders.quoteOrder, { userId, fromCart: true, issuedCouponId: none });
  expect(empty.obstacles.map(({ reason }) => reason)).toEqual(["CART_EMPTY", "ISSUED_COUPON_NOT_FOUND"]);
});
