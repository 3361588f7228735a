/**
 * What the descriptors can't tell about each RPC: who may call it, a good request on real data, which refusal each
 * unknown id gets, and the wrong inputs of its own.
 */
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { EventService } from "../../gen/shop/v1/event_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod, PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { badTokens, baskets, buyers, everybody, MAX_INT64, type Rule, rule } from "./rule.ts";
import { fresh, inDays, MAX_CHARGE, type Shop } from "./shop.ts";

async function basket(shop: Shop) {
  const userId = await shop.user(5_000n);
  const issuedCouponId = await shop.issued(userId);
  const { variantId } = await shop.product();
  return { userId, issuedCouponId, lines: [{ variantId, quantity: 2 }] };
}

async function item(shop: Shop) {
  const userId = await shop.user();
  const { variantId } = await shop.product();
  return { requestId: fresh(), userId, variantId, quantity: 2 };
}

async function itemInCart(shop: Shop) {
  const added = await item(shop);
  await shop.call(CartService.method.addItem, added);
  return { ...added, requestId: fresh() };
}

const positionOf = (text: string) => Buffer.from(text).toString("base64url");

const newVariant = { name: "Blue", price: 1_000n, stock: 5 };
const { method: users } = UserService;
const { method: balances } = BalanceService;
const { method: products } = ProductService;
const { method: carts } = CartService;
const { method: coupons } = CouponService;
const { method: orders } = OrderService;
const { method: payments } = PaymentService;
const { method: ranking } = RankingService;

export const rules: readonly Rule[] = [
  rule(users.createUser, { roles: ["service", "admin"], good: async () => ({ requestId: fresh(), name: "Ada" }) }),
  rule(users.getUser, { roles: buyers, good: async (shop) => ({ userId: await shop.user() }) }),

  rule(balances.getBalance, { roles: buyers, good: async (shop) => ({ userId: await shop.user() }) }),
  rule(balances.chargeBalance, {
    roles: ["service"],
    good: async (shop) => ({ requestId: fresh(), userId: await shop.user(), amount: 500n, reference: "till 4" }),
    wrong: {
      "amount: above MAX_CHARGE": [{ amount: MAX_CHARGE + 1n }, ["amount"]],
      "amount: largest": [{ amount: MAX_INT64 }, ["amount"]],
    },
  }),
  rule(balances.listLedgerEntries, {
    roles: buyers,
    good: async (shop) => ({ userId: await shop.user(500n) }),
    wrong: badTokens("ledger"),
  }),

  rule(products.createProduct, {
    roles: ["admin"],
    good: async () => ({ requestId: fresh(), name: "Mug", description: "Holds tea.", variants: [newVariant] }),
  }),
  rule(products.updateProduct, {
    roles: ["admin"],
    good: async (shop) => {
      const { productId, variantId } = await shop.product();
      const variants = [{ variantId, name: "Navy", price: 900n }];
      return {
        requestId: fresh(),
        productId,
        version: 1n,
        name: "Cup",
        description: "",
        variants,
        addVariants: [newVariant],
      };
    },
    wrong: {
      "version: old": [{ version: 2n }, "VERSION_MISMATCH"],
      "version: largest": [{ version: MAX_INT64 }, "VERSION_MISMATCH"],
      "more variants than a product has": [
        (request) => request.addVariants.push(...Array(99).fill(request.addVariants[0])),
        ["add_variants"],
      ],
    },
  }),
  rule(products.adjustStock, {
    roles: ["admin"],
    good: async (shop) => ({
      requestId: fresh(),
      variantId: (await shop.product()).variantId,
      delta: 5,
      reference: "delivery",
    }),
    wrong: {
      "more than fits": [{ delta: 1_000_000_000 }, ["delta"]],
      "more than there is": [{ delta: -101 }, "INSUFFICIENT_STOCK"],
    },
  }),
  rule(products.getProduct, {
    roles: everybody,
    good: async (shop) => ({ productId: (await shop.product()).productId }),
  }),
  rule(products.batchGetProducts, {
    roles: everybody,
    good: async (shop) => ({ productIds: [(await shop.product()).productId, (await shop.product()).productId] }),
  }),
  rule(products.listProducts, { roles: everybody, good: async () => ({}), wrong: badTokens("products") }),

  rule(carts.addItem, { roles: buyers, good: item }),
  rule(carts.updateItem, { roles: buyers, good: itemInCart, unknown: { variant_id: "CART_ITEM_NOT_FOUND" } }),
  rule(carts.removeItem, { roles: buyers, good: itemInCart, unknown: { variant_id: "CART_ITEM_NOT_FOUND" } }),
  rule(carts.getCart, { roles: buyers, good: async (shop) => ({ userId: (await itemInCart(shop)).userId }) }),
  rule(carts.clearCart, { roles: buyers, good: itemInCart }),

  rule(coupons.createCoupon, {
    roles: ["admin"],
    good: async () => ({
      requestId: fresh(),
      name: "Tenth",
      discount: { kind: { case: "percent" as const, value: { percent: 10, maxDiscount: 5_000n } } },
      minOrderAmount: 1_000n,
      totalQuantity: 5,
      perUserLimit: 2,
      validFrom: inDays(-1),
      validUntil: inDays(1),
    }),
    wrong: {
      "a discount of nothing": [
        { discount: { $typeName: "shop.v1.Discount", kind: { case: undefined } } },
        ["discount.kind"],
      ],
      "no end": [{ validUntil: undefined }, ["valid_until"]],
      "ends when it starts": [(request) => Object.assign(request.validUntil ?? {}, request.validFrom), [""]],
      "ends before it starts": [({ validUntil }) => void Object.assign(validUntil ?? {}, inDays(-2)), [""]],
      "ends before now, where it starts": [
        (request) => {
          Object.assign(request.validUntil ?? {}, inDays(-2));
          Object.assign(request, { validFrom: undefined });
        },
        ["valid_until"],
      ],
      "valid_from: before all times": [
        ({ validFrom }) => void Object.assign(validFrom ?? {}, { seconds: -MAX_INT64 }),
        ["valid_from"],
        true,
      ],
      "valid_from: before 1970": [
        ({ validFrom }) => void Object.assign(validFrom ?? {}, { seconds: -1n }),
        ["valid_from"],
      ],
      "valid_until: after the year 9999": [
        ({ validUntil }) => void Object.assign(validUntil ?? {}, { seconds: 253_402_300_800n }),
        ["valid_until"],
        true,
      ],
      "valid_until: after all times": [
        ({ validUntil }) => void Object.assign(validUntil ?? {}, { seconds: MAX_INT64 }),
        ["valid_until"],
        true,
      ],
    },
  }),
  rule(coupons.getCoupon, { roles: everybody, good: async (shop) => ({ couponId: await shop.coupon() }) }),
  rule(coupons.listCoupons, { roles: everybody, good: async () => ({}), wrong: badTokens("coupons") }),
  rule(coupons.claimCoupon, {
    roles: buyers,
    good: async (shop) => ({ requestId: fresh(), userId: await shop.user(), couponId: await shop.coupon() }),
  }),
  rule(coupons.listIssuedCoupons, {
    roles: buyers,
    good: async (shop) => ({ userId: await shop.user() }),
    wrong: badTokens("issued-coupons"),
  }),

  rule(orders.quoteOrder, {
    roles: buyers,
    good: basket,
    unknown: { "lines[0].variant_id": null, issued_coupon_id: null },
    wrong: baskets,
  }),
  rule(orders.placeOrder, {
    roles: buyers,
    good: async (shop) => ({ requestId: fresh(), ...(await basket(shop)) }),
    foreign: "ISSUED_COUPON_NOT_FOUND",
    wrong: {
      ...baskets,
      "expected_total: largest": [{ expectedTotal: MAX_INT64 }, "TOTAL_CHANGED"],
      "payment_method: not served": [{ paymentMethod: PaymentMethod.EXTERNAL }, "METHOD_NOT_SERVED"],
    },
  }),
  rule(orders.checkout, {
    roles: buyers,
    good: async (shop) => ({ requestId: fresh(), ...(await basket(shop)) }),
    foreign: "ISSUED_COUPON_NOT_FOUND",
    wrong: {
      ...baskets,
      "expected_total: largest": [{ expectedTotal: MAX_INT64 }, "TOTAL_CHANGED"],
    },
  }),
  rule(orders.getOrder, {
    roles: buyers,
    good: (shop) => shop.placed(),
    unknown: { user_id: "ORDER_NOT_FOUND" },
    foreign: "ORDER_NOT_FOUND",
  }),
  rule(orders.listOrders, {
    roles: buyers,
    good: async (shop) => ({ userId: (await shop.placed()).userId }),
    wrong: badTokens("orders"),
  }),
  rule(orders.cancelOrder, {
    roles: buyers,
    good: async (shop) => ({ requestId: fresh(), ...(await shop.placed()) }),
    unknown: { user_id: "ORDER_NOT_FOUND" },
    foreign: "ORDER_NOT_FOUND",
  }),

  rule(payments.payOrder, {
    roles: buyers,
    good: async (shop) => ({ requestId: fresh(), ...(await shop.placed()), method: PaymentMethod.BALANCE }),
    unknown: { user_id: "ORDER_NOT_FOUND" },
    foreign: "ORDER_NOT_FOUND",
    wrong: { "method: not served": [{ method: PaymentMethod.EXTERNAL }, "METHOD_NOT_SERVED"] },
  }),
  rule(payments.refundPayment, {
    roles: ["service"],
    good: async (shop) => {
      const { variantId, ...paid } = await shop.paid();
      return { requestId: fresh(), ...paid, lines: [{ variantId, quantity: 1 }] };
    },
    unknown: { user_id: "PAYMENT_NOT_FOUND" },
    foreign: "PAYMENT_NOT_FOUND",
    wrong: {
      "amount and lines": [{ amount: 1n }, [""]],
      "a variant twice": [(request) => void request.lines.push({ ...request.lines[0] } as never), [""]],
      "amount: largest": [{ amount: MAX_INT64, lines: [] }, "PAYMENT_NOT_REFUNDABLE"],
      "nothing at all": [{ lines: [] }, [""]],
      "everything, and lines": [{ everything: true }, [""]],
    },
  }),
  rule(payments.getPayment, {
    roles: buyers,
    good: (shop) => shop.paid(),
    unknown: { user_id: "PAYMENT_NOT_FOUND" },
    foreign: "PAYMENT_NOT_FOUND",
  }),
  rule(payments.listPaymentEvents, {
    roles: buyers,
    good: (shop) => shop.paid(),
    unknown: { user_id: "PAYMENT_NOT_FOUND" },
    foreign: "PAYMENT_NOT_FOUND",
    wrong: badTokens("payment-events"),
  }),

  rule(ranking.listTopProducts, { roles: everybody, good: async () => ({}) }),
  rule(ranking.watchTopProducts, { roles: everybody, good: async () => ({}) }),

  rule(EventService.method.streamEvents, {
    roles: ["service"],
    good: async (shop) => {
      // Something has happened.
      await shop.user(5n);
      return { types: ["balance.charged"] };
    },
    wrong: {
      "after_position: garbage": [{ afterPosition: "no position" }, "POSITION_INVALID"],
      "after_position: NUL": [{ afterPosition: "a\0b" }, "POSITION_INVALID"],
      "after_position: no id": [{ afterPosition: positionOf("7:") }, "POSITION_INVALID"],
      "after_position: SQL": [{ afterPosition: positionOf("7:' or 1=1 --") }, "POSITION_INVALID"],
      "after_position: beyond int64": [
        { afterPosition: positionOf(`99999999999999999999:${fresh()}`) },
        "POSITION_INVALID",
      ],
      "after_position: another spelling": [{ afterPosition: `${positionOf(`7:${fresh()}`)}=` }, "POSITION_INVALID"],
      "types: unknown": [{ types: ["order.lost"] }, ["types[0]"]],
      "types: twice": [{ types: ["order.paid", "order.paid"] }, ["types"]],
    },
  }),
];
