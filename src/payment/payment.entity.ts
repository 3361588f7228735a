import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";
import type { Order } from "../order/order.entity.ts";

export const paymentMethods = ["BALANCE", "EXTERNAL"] as const;
export type PaymentMethod = (typeof paymentMethods)[number];

export const paymentStates = ["PENDING", "COMPLETED", "FAILED", "REFUNDED"] as const;
export type PaymentState = (typeof paymentStates)[number];

const paymentSchema = defineEntity({
  name: "Payment",
  tableName: "payment",
  properties: {
    orderId: p.uuid().primary(),
    id: p.uuid().primary(),
    userId: p.uuid(),
    method: p.enum(paymentMethods),
    state: p.enum(paymentStates),
    amount: p.bigint(),
    refundedAmount: p.bigint(),
    /** Changes so far, which is the seq of the last event. */
    events: p.integer(),
    createTime: p.datetime(),
    updateTime: p.datetime(),
    version: p.integer().version(),
  },
  indexes: [{ properties: ["id"] }],
  uniques: [
    // An order is paid at most once, whatever else fails.
    { name: "payment_completed_once", properties: ["orderId"], where: "state = 'COMPLETED'" },
  ],
  checks: [
    { name: "payment_amount_check", expression: "amount >= 0 and refunded_amount >= 0 and refunded_amount <= amount" },
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
    const payment = Object.assign(new Payment(), {
      orderId: order.id,
      id,
      userId: order.userId,
      method,
      amount: order.total,
      refundedAmount: 0n,
      events: 0,
      createTime: now,
    });
    return [payment, payment.reach("COMPLETED", payment.amount, cause, now)];
  }

  /** Refuses with PAYMENT_NOT_REFUNDABLE a payment that holds no money. */
  assertRefundable(): void {
    if (this.state !== "COMPLETED") {
      throw new DomainError("PAYMENT_NOT_REFUNDABLE", "the payment holds no money to give back", {
        payment_id: this.id,
        state: this.state,
      });
    }
  }

  /** COMPLETED -> REFUNDED, with all of its money. */
  refund(cause: string, now: Date): PaymentEvent {
    this.assertRefundable();
    this.refundedAmount = this.amount;
    return this.reach("REFUNDED", -this.amount, cause, now);
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

  private reach(state: PaymentState, amount: bigint, cause: string, now: Date): PaymentEvent {
    this.state = state;
    this.updateTime = now;
    this.events += 1;
    const { orderId, id: paymentId, events: seq } = this;
    return Object.assign(new PaymentEvent(), { orderId, paymentId, seq, state, amount, cause, createTime: now });
  }
}
paymentSchema.setClass(Payment);
