import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";
import type { Order } from "../order/order.entity.ts";

export const paymentMethods = ["BALANCE", "EXTERNAL"] as const;
export type PaymentMethod = (typeof paymentMethods)[number];

export const paymentStates = ["PENDING", "COMPLETED", "FAILED", "REFUNDED", "REFUNDING"] as const;
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
    /** How often the gateway was asked since the state was reached, without an answer that settles it. */
    tries: p.integer().default(0),
    /** When the gateway is asked next; null when there is nothing to ask. */
    nextTryTime: p.datetime().strictNullable(),
    createTime: p.datetime(),
    updateTime: p.datetime(),
    version: p.integer().version(),
  },
  indexes: [
    { properties: ["id"] },
    { name: "payment_unsettled_index", properties: ["nextTryTime"], where: "state in ('PENDING', 'REFUNDING')" },
  ],
  uniques: [
    // An order is paid at most once, whatever else fails.
    { name: "payment_completed_once", properties: ["orderId"], where: "state = 'COMPLETED'" },
    // Two callers must not charge the card for one order.
    { name: "payment_pending_once", properties: ["orderId"], where: "state = 'PENDING'" },
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
    gatewayReference: p.string().length(255).strictNullable(),
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
  static pending(id: string, order: Order, cause: string, now: Date, nextTryTime: Date): [Payment, PaymentEvent] {
    const payment = Payment.of(id, order, "EXTERNAL", now);
    const event = payment.reach("PENDING", 0n, cause, now);
    payment.nextTryTime = nextTryTime;
    return [payment, event];
  }

  private static of(id: string, order: Order, method: PaymentMethod, now: Date): Payment {
    const { id: orderId, userId, total: amount } = order;
    const values = { orderId, id, userId, method, amount, refundedAmount: 0n, events: 0, createTime: now };
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

  /** The refusal of a payment that has FAILED. */
  get declined(): DomainError {
    return new DomainError("PAYMENT_DECLINED", "the payment gateway has declined the payment", {
      payment_id: this.id,
      order_id: this.orderId,
    });
  }

  /** PENDING -> COMPLETED, FAILED or REFUNDING (approved too late: the money is there, and goes back). */
  settle(
    state: "COMPLETED" | "FAILED" | "REFUNDING",
    cause: string,
    reference: string | null,
    now: Date,
  ): PaymentEvent {
    return this.reach(state, state === "FAILED" ? 0n : this.amount, cause, now, reference);
  }

  /** COMPLETED -> REFUNDING: the gateway is to give all of the money back. */
  startRefund(cause: string, now: Date): PaymentEvent {
    this.assertRefundable();
    return this.reach("REFUNDING", 0n, cause, now);
  }

  /** REFUNDING -> REFUNDED: the gateway has done it. */
  finishRefund(cause: string, reference: string | null, now: Date): PaymentEvent {
    this.refundedAmount = this.amount;
    return this.reach("REFUNDED", -this.amount, cause, now, reference);
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

  private reach(
    state: PaymentState,
    amount: bigint,
    cause: string,
    now: Date,
    gatewayReference: string | null = null,
  ): PaymentEvent {
    this.state = state;
    this.tries = 0;
    this.nextTryTime = state === "REFUNDING" ? now : null;
    this.updateTime = now;
    this.events += 1;
    const { orderId, id: paymentId, events: seq } = this;
    const change = { orderId, paymentId, seq, state, amount, cause, gatewayReference, createTime: now };
    return Object.assign(new PaymentEvent(), change);
  }
}
paymentSchema.setClass(Payment);
