/** Every row that has a version is written over that version only, and by this alone no change is lost. */
import { randomUUIDv7 } from "node:crypto";
import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import { Coupon, IssuedCoupon } from "../../src/coupon/coupon.entity.ts";
import { type Key, type RowClass, touch } from "../../src/db/command.ts";
import { Order, OrderLine } from "../../src/order/order.entity.ts";
import { GatewayRefund, Payment } from "../../src/payment/payment.entity.ts";
import { Product, Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { openDatabase, value } from "./audit.ts";
import { begin, commit, waitForLock } from "./interleave.ts";
import { callOf, newShop, openReplica, type Replica } from "./verbs.ts";

let url: string;
let database: Pool;
let replica: Replica;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
  replica = await openReplica(url);
});

/** One row of each versioned entity, and a number in it that two writers raise. */
async function versioned(): Promise<{ entity: RowClass<object>; key: Key<object>; field: string; column: string }[]> {
  const { userId, variantIds, productId } = await newShop(replica, 100n, [{ price: 1n, stock: 10 }]);
  const [variantId = ""] = variantIds;
  const terms = { discountAmount: 1n, discountPercent: null, maxDiscount: null, minOrderAmount: 0n };
  const quantities = { name: "A coupon", totalQuantity: 100, perUserLimit: 1 };
  const validUntil = new Date(Date.now() + 86_400_000);
  const coupon = await replica.coupons.create(callOf(), { ...terms, ...quantities, validFrom: undefined, validUntil });
  const { id } = await replica.coupons.claim(callOf(), { userId, couponId: coupon.id });
  await replica.carts.addItem(callOf(), { userId, variantId, quantity: 1, rejectPresent: false });
  const { order, payment } = await replica.orders.checkout(callOf(), {
    userId,
    lines: [{ variantId, quantity: 1 }],
    fromCart: false,
    issuedCouponId: undefined,
    expectedTotal: undefined,
  });
  const refund = GatewayRefund.of(randomUUIDv7(), payment, 1n, new Date());
  await replica.db.apply({ touches: [], decide: (tx) => tx.add(refund) });
  return [
    { entity: Product, key: { id: productId }, field: "revision", column: "product.revision" },
    { entity: Variant, key: { id: variantId }, field: "stock", column: "variant.stock" },
    { entity: Wallet, key: { userId }, field: "balance", column: "wallet.balance" },
    { entity: Coupon, key: { id: coupon.id }, field: "issued", column: "coupon.issued" },
    { entity: IssuedCoupon, key: { userId, id }, field: "ordinal", column: "issued_coupon.ordinal" },
    { entity: Cart, key: { userId }, field: "changes", column: "cart.changes" },
    { entity: CartItem, key: { variantId, userId }, field: "quantity", column: "cart_item.quantity" },
    { entity: Order, key: { id: order.id }, field: "subtotal", column: "shop_order.subtotal" },
    { entity: OrderLine, key: { lineNo: 1, orderId: order.id }, field: "quantity", column: "order_line.quantity" },
    {
      entity: GatewayRefund,
      key: { orderId: order.id, id: refund.id },
      field: "amount",
      column: "gateway_refund.amount",
    },
    { entity: Payment, key: { orderId: order.id, id: payment.id }, field: "events", column: "payment.events" },
  ];
}

test("every versioned row: of two changes at once, on the version alone, none is lost", async () => {
  const { rows } = await database.query(
    "select table_name from information_schema.columns where table_schema = 'public' and column_name = 'version'",
  );
  const targets = await versioned();
  expect(new Set(targets.map(({ column }) => column.split(".")[0]))).toEqual(
    new Set(rows.map((row) => row.table_name)),
  );
  // No amount of an order could change alone.
  await database.query("alter table shop_order drop constraint shop_order_total_check");
  const careless = await openReplica(url, { isolation: "read committed" });
  for (const { entity, key, field, column } of targets) {
    const [table, name] = column.split(".");
    const [property = "", id] = Object.entries(key).at(-1) ?? [];
    const where = [`${property.replace("Id", "_id")} = $1`, id] as const;
    const read = () => value<string>(database, `select ${name} from ${table} where ${where[0]}`, where[1]);
    const before = Number(await read());
    const other = await begin(
      database,
      `update ${table} set ${name} = ${name} + 10, version = version + 1 where ${where[0]}`,
      where[1],
    );
    const changed = careless.db.apply({
      touches: [touch(entity, key)],
      decide: (tx) => {
        const row = tx.find(entity, key) as unknown as Record<string, number | bigint>;
        const old = row[field] ?? 0;
        row[field] = typeof old === "bigint" ? old + 1n : old + 1;
      },
    });
    await waitForLock(database);
    await commit(other);
    await changed;
    expect(Number(await read()), column).toBe(before + 11);
  }
});
