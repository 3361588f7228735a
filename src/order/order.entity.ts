import { defineEntity, p } from "@mikro-orm/core";
import type { IssuedCoupon } from "../coupon/coupon.entity.ts";
import { DomainError } from "../error.ts";
import type { Variant } from "../product/product.entity.ts";

export const orderStates = ["PENDING_PAYMENT", "PAID", "CANCELLED", "EXPIRED"] as const;
export type OrderState = (typeof orderStates)[number];

const orderSchema = defineEntity({
  name: "Order",
  tableName: "shop_order",
  properties: {
    id: p.uuid().primary(),
    userId: p.uuid(),
    state: p.enum(orderStates),
    subtotal: p.bigint(),
    discount: p.bigint(),
    total: p.bigint(),
    issuedCouponId: p.uuid().strictNullable(),
    createTime: p.datetime(),
    expireTime: p.datetime(),
    payTime: p.datetime().strictNullable(),
    updateTime: p.datetime(),
    /**
     * How often a process has taken it on itself to expire it, and when it is anybody's again: see expiry.ts. Only that
     * writes them, and no verb loads them.
     */
    expireTries: p.integer().default(0).hydrate(false),
    nextExpireTime: p.datetime().nullable().hydrate(false),
    version: p.integer().version(),
  },
  indexes: [
    { properties: ["userId", "id"] },
    {
      name: "shop_order_pending_index",
      properties: ["expireTime"],
      where: "state = 'PENDING_PAYMENT' and next_expire_time is null",
    },
    {
      name: "shop_order_claimed_index",
      properties: ["nextExpireTime"],
      where: "state = 'PENDING_PAYMENT' and next_expire_time is not null",
    },
  ],
  checks: [
    { name: "shop_order_total_check", expression: "total = subtotal - discount and total >= 0 and discount >= 0" },
  ],
});

const lineSchema = defineEntity({
  name: "OrderLine",
  tableName: "order_line",
  properties: {
    /** Of the order that it is stored with, by one statement: a foreign key would look that up for each line once more. */
    orderId: p.uuid().primary(),
    lineNo: p.integer().primary(),
    variantId: p.uuid(),
    productId: p.uuid(),
    productName: p.string().length(200),
    variantName: p.string().length(100),
    price: p.bigint(),
    quantity: p.integer(),
    /** Units that have come back, of the quantity, while the order stayed PAID. */
    returned: p.integer().default(0),
    version: p.integer().version(),
  },
  checks: [
    { name: "order_line_quantity_check", expression: "quantity >= 1 and quantity <= 9999" },
    { name: "order_line_returned_check", expression: "returned >= 0 and returned <= quantity" },
  ],
});

/** Units of one variant in an order, with name and price as they were when it was placed. */
export class OrderLine extends lineSchema.class {
  static of(variant: Variant, quantity: number): OrderLine {
    const { id: variantId, productId, productName, name: variantName, price } = variant;
    const facts = { variantId, productId, productName, variantName, price, quantity };
    return Object.assign(new OrderLine(), { ...facts, returned: 0 });
  }

  /** Units that the buyer has, or is to get. */
  get kept(): number {
    return this.quantity - this.returned;
  }

  /** The buyer gives units back. Refused with PAYMENT_NOT_REFUNDABLE when there are not so many. */
  takeBack(quantity: number): void {
    if (this.kept < quantity) {
      throw new DomainError("PAYMENT_NOT_REFUNDABLE", "the buyer does not have so many units of it", {
        order_id: this.orderId,
        variant_id: this.variantId,
        available_units: String(this.kept),
        required_units: String(quantity),
      });
    }
    this.returned += quantity;
  }

  /** In minor units. */
  get total(): bigint {
    return this.price * BigInt(this.quantity);
  }
}
lineSchema.setClass(OrderLine);

/** Subtotal, discount and total in minor units: total = subtotal - discount. */
export type Totals = Readonly<{ subtotal: bigint; discount: bigint; total: bigint }>;

/** Adds up lines and takes the coupon's discount off. Refused with COUPON_NOT_USABLE as the coupon says. */
export function totalsOf(lines: readonly OrderLine[], coupon: IssuedCoupon | undefined, now: Date): Totals {
  const subtotal = lines.reduce((sum, line) => sum + line.total, 0n);
  const discount = coupon ? coupon.discountOn(subtotal, now) : 0n;
  return { subtotal, discount, total: subtotal - discount };
}

/** A purchase: placed, then paid, cancelled or expired. */
export class Order extends orderSchema.class {
  static notFound(key: { id: string }): DomainError {
    return new DomainError("ORDER_NOT_FOUND", "the user has no such order", { order_id: key.id });
  }

  /** A new order over lines that were taken from the stock; it numbers the lines. */
  static place(
    values: { id: string; userId: string; totals: Totals; issuedCouponId: string | null; expireTime: Date },
    lines: readonly OrderLine[],
    now: Date,
  ): Order {
    const { totals, ...rest } = values;
    lines.forEach((line, index) => {
      line.orderId = values.id;
      line.lineNo = index + 1;
    });
    return Object.assign(new Order(), {
      ...rest,
      ...totals,
      state: "PENDING_PAYMENT" as const,
      createTime: now,
      payTime: null,
      updateTime: now,
    });
  }

  /** Refuses with ORDER_NOT_FOUND an order of somebody else: its existence is nobody else's business. */
  assertOwnedBy(userId: string): void {
    if (this.userId !== userId) throw Order.notFound({ id: this.id });
  }

  /** Refuses with ORDER_NOT_PAYABLE unless the order waits for its payment. */
  assertPayable(now: Date): void {
    if (!this.isPayable(now)) {
      const state = this.state === "PENDING_PAYMENT" ? "EXPIRED" : this.state;
      throw new DomainError("ORDER_NOT_PAYABLE", "the order does not wait for a payment", { order_id: this.id, state });
    }
  }

  /**
   * A gateway is about to be asked for its payment. Its state stays; that it is written keeps processes that decide on the
   * same order at the same time from both being right.
   */
  awaitGateway(now: Date): void {
    this.assertPayable(now);
    this.updateTime = now;
  }

  /** Whether it waits for its payment, and its time has not passed. */
  isPayable(now: Date): boolean {
    return this.state === "PENDING_PAYMENT" && now < this.expireTime;
  }

  /** PENDING_PAYMENT -> PAID. */
  pay(now: Date): void {
    this.assertPayable(now);
    this.state = "PAID";
    this.payTime = now;
    this.updateTime = now;
  }

  /** PENDING_PAYMENT or PAID -> CANCELLED; refused with ORDER_NOT_CANCELLABLE from elsewhere. */
  cancel(now: Date): void {
    if (this.state !== "PENDING_PAYMENT" && this.state !== "PAID") {
      throw new DomainError("ORDER_NOT_CANCELLABLE", "the order can't be cancelled any more", {
        order_id: this.id,
        state: this.state,
      });
    }
    this.state = "CANCELLED";
    this.updateTime = now;
  }

  /**
   * What has been paid for the units that were returned so far, in minor units: their share of the total, rounded down, so
   * that the shares of several returns add up to the total when nothing is left.
   */
  priceOfReturned(lines: readonly OrderLine[]): bigint {
    const value = lines.reduce((sum, { price, returned }) => sum + price * BigInt(returned), 0n);
    return this.subtotal === 0n ? 0n : (this.total * value) / this.subtotal;
  }

  /** Whether its time to be paid has passed. */
  isOverdue(now: Date): boolean {
    return this.state === "PENDING_PAYMENT" && now >= this.expireTime;
  }

  /** PENDING_PAYMENT -> EXPIRED, for an order that is overdue. */
  expire(now: Date): void {
    this.state = "EXPIRED";
    this.updateTime = now;
  }

  /** The order for those who hear of it in events: plain JSON, amounts as decimal strings. */
  describe(lines: readonly OrderLine[]) {
    return {
      order_id: this.id,
      user_id: this.userId,
      state: this.state,
      subtotal: String(this.subtotal),
      discount: String(this.discount),
      total: String(this.total),
      issued_coupon_id: this.issuedCouponId,
      pay_time: this.payTime?.toISOString() ?? null,
      lines: lines.map((line) => ({
        variant_id: line.variantId,
        product_id: line.productId,
        quantity: line.quantity,
        returned: line.returned,
        price: String(line.price),
      })),
    };
  }
}
orderSchema.setClass(Order);
