import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";
import type { Order } from "../order/order.entity.ts";

export const paymentMethods = ["BALANCE", "EXTERNAL"] as const;
export type PaymentMethod = (typeof paymentMethods)[number];

export const paymentStates = ["PENDING", "COMPLETED", "FAILED", "REFUNDED", "REFUNDING"] as const;
export type PaymentState = (typeof paymentStates)[number];

/** Characters that are kept of what a gateway calls a charge or refund. */
const MAX_REFERENCE = 255;

const paymentSchema = defineEntity({
  name: "Payment",
  tableName: "payment",
  properties: {
    orderId: p.uuid().primary(),
    id: p.uuid().primary(),
    userId: p.uuid(),
    method: p.enum(paymentMethods),
    /** Through which gateway; null when through none, or one that was not noted yet. */
    gateway: p.string().length(50).strictNullable(),
    state: p.enum(paymentStates),
    amount: p.bigint(),
    /** Given back. */
    refundedAmount: p.bigint(),
    /** On its way back, by the gateway. */
    refundingAmount: p.bigint().defaultRaw("0"),
    /** Changes so far, which is the seq of the last event. */
    events: p.integer(),
    /** How often the gateway was asked what has become of it. */
    tries: p.integer().default(0),
    /** When the gateway is asked next; null unless PENDING. */
    nextTryTime: p.datetime().strictNullable(),
    createTime: p.datetime(),
    updateTime: p.datetime(),
    version: p.integer().version(),
  },
  indexes: [
    { properties: ["id"] },
    { name: "payment_pending_index", properties: ["nextTryTime"], where: "state = 'PENDING'" },
  ],
  uniques: [
    // An order is paid at most once, whatever else fails.
    { name: "payment_completed_once", properties: ["orderId"], where: "state = 'COMPLETED'" },
    // Two callers must not charge the card for one order.
    { name: "payment_pending_once", properties: ["orderId"], where: "state = 'PENDING'" },
  ],
  checks: [
    {
      name: "payment_amount_check",
      expression: "refunded_amount >= 0 and refunding_amount >= 0 and refunded_amount + refunding_amount <= amount",
    },
    { name: "payment_refunding_check", expression: "state <> 'REFUNDING' or refunding_amount > 0" },
  ],
});

const eventSchema = defineEntity({
  name: "PaymentEvent",
  tableName: "payment_event",
  properties: {
    orderId: p.uuid().primary(),
    paymentId: p.uuid().primary(),
    seq: p.integer().primary(),
    state: p.enum(paymentStates),
    amount: p.bigint(),
    cause: p.string().length(200),
    gatewayReference: p.string().length(MAX_REFERENCE).strictNullable(),
    createTime: p.datetime(),
  },
});

/** One change of a payment; never changed once written. */
export class PaymentEvent extends eventSchema.class {}
eventSchema.setClass(PaymentEvent);

/** One attempt to pay an order. */
export class Payment extends paymentSchema.class {
  static notFound(key: { id: string }): DomainError {
    return new DomainError("PAYMENT_NOT_FOUND", "the user has no such payment", { payment_id: key.id });
  }

  /** A payment of the order's total whose money has moved already, and its first event. */
  static completed(id: string, order: Order, method: PaymentMethod, cause: string, now: Date): [Payment, PaymentEvent] {
    const payment = Payment.of(id, order, method, now);
    return [payment, payment.reach("COMPLETED", payment.amount, cause, now)];
  }

  /** A payment of the order's total that the gateway is about to be asked for, and again at `nextTryTime`. */
  static pending(
    id: string,
    order: Order,
    { cause, gateway, nextTryTime }: { cause: string; gateway: string; nextTryTime: Date },
    now: Date,
  ): [Payment, PaymentEvent] {
    const payment = Payment.of(id, order, "EXTERNAL", now);
    payment.gateway = gateway;
    const event = payment.reach("PENDING", 0n, cause, now);
    payment.nextTryTime = nextTryTime;
    return [payment, event];
  }

  private static of(id: string, order: Order, method: PaymentMethod, now: Date): Payment {
    const { id: orderId, userId, total: amount } = order;
    const values = {
      orderId,
      id,
      userId,
      method,
      gateway: null,
      amount,
      refundedAmount: 0n,
      refundingAmount: 0n,
      events: 0,
      createTime: now,
    };
    return Object.assign(new Payment(), values);
  }

  /** Refuses with PAYMENT_IN_PROGRESS to pay an order for which a gateway may be taking the money already. */
  static assertNonePending(payments: readonly Payment[]): void {
    const pending = payments.find(({ state }) => state === "PENDING");
    if (pending) {
      throw new DomainError("PAYMENT_IN_PROGRESS", "another payment of the order is not settled yet", {
        order_id: pending.orderId,
        payment_id: pending.id,
      });
    }
  }

  /** Whether that gateway is the one to ask about it. */
  isOf(gateway: string | undefined): boolean {
    return gateway !== undefined && (this.gateway === null || this.gateway === gateway);
  }

  /** The refusal of a payment that has FAILED. */
  get declined(): DomainError {
    return new DomainError("PAYMENT_DECLINED", "the payment gateway has declined the payment", {
      payment_id: this.id,
      order_id: this.orderId,
    });
  }

  /** What may still be given back, in minor units: what was neither given back, nor is on its way. */
  get refundable(): bigint {
    return this.amount - this.refundedAmount - this.refundingAmount;
  }

  /** As much of the amount as may still be given back. */
  refundableOf(amount: bigint): bigint {
    const isLeft = amount <= this.refundable;
    return isLeft ? amount : this.refundable;
  }

  /** Refuses with PAYMENT_NOT_REFUNDABLE a payment that does not hold its order's money, or so much of it. */
  assertRefundable(amount = 0n): void {
    if (this.state === "COMPLETED" && this.refundable >= amount) return;
    throw new DomainError("PAYMENT_NOT_REFUNDABLE", "the payment does not hold that money", {
      payment_id: this.id,
      state: this.state,
      available: String(this.state === "COMPLETED" ? this.refundable : 0n),
      required: String(amount),
    });
  }

  /** PENDING -> COMPLETED, FAILED or REFUNDING, FAILED -> REFUNDING (approved too late: the money is there, and goes back). */
  settle(
    state: "COMPLETED" | "FAILED" | "REFUNDING",
    cause: string,
    reference: string | null,
    now: Date,
  ): PaymentEvent {
    if (state === "REFUNDING") this.refundingAmount = this.amount;
    return this.reach(state, state === "FAILED" ? 0n : this.amount, cause, now, reference);
  }

  /** Money goes back at once. `ends`: its order is given up, the payment is REFUNDED when nothing else is on its way. */
  refund(amount: bigint, cause: string, now: Date, ends: boolean): PaymentEvent {
    this.assertRefundable(amount);
    this.refundedAmount += amount;
    const ended = this.refundingAmount > 0n ? "REFUNDING" : "REFUNDED";
    return this.reach(ends ? ended : "COMPLETED", -amount, cause, now);
  }

  /** The gateway is to give money back. `ends`: its order is given up, the payment is REFUNDING. */
  startRefund(amount: bigint, cause: string, now: Date, ends: boolean): PaymentEvent {
    this.assertRefundable(amount);
    this.refundingAmount += amount;
    return this.reach(ends ? "REFUNDING" : "COMPLETED", 0n, cause, now);
  }

  /** The gateway has given money back. REFUNDING -> REFUNDED when nothing else is on its way. */
  finishRefund(amount: bigint, cause: string, reference: string, now: Date): PaymentEvent {
    this.refundingAmount -= amount;
    this.refundedAmount += amount;
    const ended = this.state === "REFUNDING" && this.refundingAmount === 0n;
    return this.reach(ended ? "REFUNDED" : this.state, -amount, cause, now, reference);
  }

  /** The payment for those who hear of it in events: plain JSON, amounts as decimal strings. */
  describe() {
    return {
      payment_id: this.id,
      order_id: this.orderId,
      user_id: this.userId,
      method: this.method,
      state: this.state,
      amount: String(this.amount),
      refunded_amount: String(this.refundedAmount),
    };
  }

  private reach(
    state: PaymentState,
    amount: bigint,
    cause: string,
    now: Date,
    gatewayReference: string | null = null,
  ): PaymentEvent {
    this.state = state;
    this.nextTryTime = null;
    this.updateTime = now;
    this.events += 1;
    const { orderId, id: paymentId, events: seq } = this;
    const reference = gatewayReference?.slice(0, MAX_REFERENCE) ?? null;
    const change = { orderId, paymentId, seq, state, amount, cause, gatewayReference: reference, createTime: now };
    return Object.assign(new PaymentEvent(), change);
  }
}
paymentSchema.setClass(Payment);

const refundStates = ["PENDING", "COMPLETED"] as const;

const refundSchema = defineEntity({
  name: "GatewayRefund",
  tableName: "gateway_refund",
  properties: {
    orderId: p.uuid().primary(),
    id: p.uuid().primary(),
    paymentId: p.uuid(),
    /** Of the payment, in minor units. */
    amount: p.bigint(),
    state: p.enum(refundStates),
    /** How often the gateway was asked. */
    tries: p.integer().default(0),
    /** When the gateway is asked next; null when it has done it. */
    nextTryTime: p.datetime().strictNullable(),
    createTime: p.datetime(),
    version: p.integer().version(),
  },
  indexes: [{ name: "gateway_refund_pending_index", properties: ["nextTryTime"], where: "state = 'PENDING'" }],
  checks: [
    { name: "gateway_refund_amount_check", expression: "amount > 0" },
    { name: "gateway_refund_try_check", expression: "(state = 'PENDING') = (next_try_time is not null)" },
  ],
});

/** Money that the gateway is to give back: asked for until it has done it, always by the same key. */
export class GatewayRefund extends refundSchema.class {
  static notFound(key: { id: string }): DomainError {
    return new DomainError("INTERNAL", "there is no such refund", { refund_id: key.id });
  }

  static of(id: string, { orderId, id: paymentId }: Payment, amount: bigint, now: Date): GatewayRefund {
    const values = { orderId, id, paymentId, amount, nextTryTime: now, createTime: now };
    return Object.assign(new GatewayRefund(), { ...values, state: "PENDING" as const });
  }

  /** PENDING -> COMPLETED. */
  complete(): void {
    this.state = "COMPLETED";
    this.nextTryTime = null;
  }
}
refundSchema.setClass(GatewayRefund);
