import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";

/** What a coupon takes off, and when. An issued coupon keeps its own copy, so using it never waits for the coupon. */
export type Terms = Readonly<{
  /** Fixed amount off; null when it is a percentage. */
  discountAmount: bigint | null;
  /** 1..100; null when it is a fixed amount. */
  discountPercent: number | null;
  /** The most that a percentage takes off; null for no limit. */
  maxDiscount: bigint | null;
  minOrderAmount: bigint;
  validFrom: Date;
  /** The first moment at which it can't be used any more. */
  validUntil: Date;
}>;

const terms = () => ({
  discountAmount: p.bigint().strictNullable(),
  discountPercent: p.integer().strictNullable(),
  maxDiscount: p.bigint().strictNullable(),
  minOrderAmount: p.bigint(),
  validFrom: p.datetime(),
  validUntil: p.datetime(),
});

function termsOf(source: Terms): Terms {
  const { discountAmount, discountPercent, maxDiscount, minOrderAmount, validFrom, validUntil } = source;
  return { discountAmount, discountPercent, maxDiscount, minOrderAmount, validFrom, validUntil };
}

const couponSchema = defineEntity({
  name: "Coupon",
  tableName: "coupon",
  properties: {
    id: p.uuid().primary(),
    name: p.string().length(200),
    ...terms(),
    totalQuantity: p.integer(),
    /** Pieces issued so far. */
    issued: p.integer(),
    perUserLimit: p.integer(),
    createTime: p.datetime(),
    /** Changes other than of the pieces issued. */
    edits: p.integer().default(0),
    version: p.integer().version(),
  },
  checks: [
    { name: "coupon_issued_check", expression: "issued >= 0 and issued <= total_quantity" },
    { name: "coupon_discount_check", expression: "(discount_amount is null) <> (discount_percent is null)" },
  ],
});

export type NewCoupon = Terms & Readonly<{ id: string; name: string; totalQuantity: number; perUserLimit: number }>;

/** A limited number of equal pieces, issued first come, first served. */
export class Coupon extends couponSchema.class {
  static readonly counters = ["issued"];

  static notFound(key: { id: string }): DomainError {
    return new DomainError("COUPON_NOT_FOUND", "there is no such coupon", { coupon_id: key.id });
  }

  static create(values: NewCoupon, now: Date): Coupon {
    return Object.assign(new Coupon(), { ...values, issued: 0, createTime: now });
  }

  get remaining(): number {
    return this.totalQuantity - this.issued;
  }

  /**
   * Issues one piece to a user who holds `held` already.
   *
   * Refused with COUPON_NOT_USABLE outside its time, COUPON_ALREADY_CLAIMED at the user's limit, COUPON_SOLD_OUT when
   * none is left.
   */
  issueTo(userId: string, held: number, id: string, now: Date): IssuedCoupon {
    assertInTime(this, { coupon_id: this.id }, now);
    if (held >= this.perUserLimit) {
      throw new DomainError("COUPON_ALREADY_CLAIMED", "the user has claimed all the pieces that one user may", {
        coupon_id: this.id,
        per_user_limit: String(this.perUserLimit),
      });
    }
    if (this.remaining === 0) {
      throw new DomainError("COUPON_SOLD_OUT", "all pieces have been issued", { coupon_id: this.id });
    }
    this.issued += 1;
    return Object.assign(new IssuedCoupon(), {
      ...termsOf(this),
      userId,
      id,
      couponId: this.id,
      ordinal: held + 1,
      orderId: null,
      issueTime: now,
    });
  }
}
couponSchema.setClass(Coupon);

const issuedSchema = defineEntity({
  name: "IssuedCoupon",
  tableName: "issued_coupon",
  properties: {
    userId: p.uuid().primary(),
    id: p.uuid().primary(),
    couponId: p.uuid(),
    /** 1 for the user's first piece of this coupon, 2 for the second: unique, so two claims at once can't both be the second. */
    ordinal: p.integer(),
    ...terms(),
    /** The order that used it; null while it is free. Stays when that order is given up after `validUntil`. */
    orderId: p.uuid().strictNullable(),
    issueTime: p.datetime(),
    version: p.integer().version(),
  },
  uniques: [{ properties: ["userId", "couponId", "ordinal"] }],
});

/** One piece of a coupon in the hand of one user. */
export class IssuedCoupon extends issuedSchema.class {
  static notFound(key: { userId?: string; id: string }): DomainError {
    return new DomainError("ISSUED_COUPON_NOT_FOUND", "the user holds no such coupon", { issued_coupon_id: key.id });
  }

  /**
   * What it takes off an order, in minor units: a percentage is rounded down, and no discount exceeds the subtotal.
   * Refused with COUPON_NOT_USABLE when it was used, is outside its time, or the subtotal is too small.
   */
  discountOn(subtotal: bigint, now: Date): bigint {
    const metadata = { issued_coupon_id: this.id };
    if (this.orderId !== null) {
      throw new DomainError("COUPON_NOT_USABLE", "the coupon was used already", { ...metadata, cause: "USED" });
    }
    assertInTime(this, metadata, now);
    if (subtotal < this.minOrderAmount) {
      throw new DomainError("COUPON_NOT_USABLE", "the order is too small for the coupon", {
        ...metadata,
        cause: "MIN_ORDER_AMOUNT",
        required: String(this.minOrderAmount),
        available: String(subtotal),
      });
    }
    const full = this.discountAmount ?? (subtotal * BigInt(this.discountPercent ?? 0)) / 100n;
    const capped = this.maxDiscount !== null && full > this.maxDiscount ? this.maxDiscount : full;
    return capped > subtotal ? subtotal : capped;
  }

  /** Marks it as used by an order that `discountOn` has accepted. */
  useFor(orderId: string): void {
    this.orderId = orderId;
  }

  /** Gives it back when its order is given up; one that has run out meanwhile stays used. */
  restore(now: Date): void {
    if (now < this.validUntil) this.orderId = null;
  }
}
issuedSchema.setClass(IssuedCoupon);

function assertInTime(source: Terms, metadata: Record<string, string>, now: Date): void {
  if (now < source.validFrom || now >= source.validUntil) {
    const cause = now < source.validFrom ? "NOT_YET_VALID" : "EXPIRED";
    throw new DomainError("COUPON_NOT_USABLE", "the coupon is not valid at this time", { ...metadata, cause });
  }
}
