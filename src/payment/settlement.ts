/** Decisions that move an order and its money together, shared by the verbs of orders and payments. */
import { randomUUIDv7 } from "node:crypto";
import { Wallet } from "../balance/balance.entity.ts";
import { IssuedCoupon } from "../coupon/coupon.entity.ts";
import { share, type Touch, type Tx, touch } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { DomainError } from "../error.ts";
import { Order, OrderLine } from "../order/order.entity.ts";
import { Event } from "../outbox/event.entity.ts";
import { Variant } from "../product/product.entity.ts";
import { GatewayRefund, Payment, type PaymentEvent, type PaymentMethod } from "./payment.entity.ts";

/** Units of one variant. */
export type Units = Readonly<{ variantId: string; quantity: number }>;

/** Refuses with METHOD_NOT_SERVED a method that this service can't carry out: EXTERNAL where there is no gateway. */
export function assertServed(method: PaymentMethod, hasGateway: boolean): void {
  if (method !== "BALANCE" && !hasGateway) {
    throw new DomainError("METHOD_NOT_SERVED", "this payment method is not served", { method });
  }
}

/** Pays an order from its owner's wallet: debit, payment, PAID. @throws DomainError ORDER_NOT_PAYABLE, INSUFFICIENT_BALANCE */
export function payFromWallet(tx: Tx, order: Order, lines: readonly OrderLine[], cause: string): Payment {
  order.assertPayable(tx.now);
  const [payment, change] = Payment.completed(randomUUIDv7(), order, "BALANCE", cause, tx.now);
  // A free order moves no money, and the ledger lists movements.
  if (order.total > 0n) tx.add(tx.get(Wallet, { userId: order.userId }).pay(order.total, payment.id, tx.now));
  tx.add(payment);
  completed(tx, order, lines, payment, change);
  return payment;
}

/** The order is paid by a payment that has just been completed. */
function completed(tx: Tx, order: Order, lines: readonly OrderLine[], payment: Payment, change: PaymentEvent): void {
  order.pay(tx.now);
  tx.add(change);
  tx.add(Event.of("payment.completed", payment.id, payment.describe(), tx.now));
  tx.add(Event.of("order.paid", order.id, order.describe(lines), tx.now));
}

/**
 * Stores the payment that the gateway is about to be asked for; a free order is paid at once, no gateway takes nothing.
 *
 * @throws DomainError ORDER_NOT_PAYABLE, PAYMENT_IN_PROGRESS
 */
export function beginExternal(
  tx: Tx,
  order: Order,
  lines: readonly OrderLine[],
  { gateway, askAgainMs }: { gateway: string; askAgainMs: number },
): Payment {
  order.assertPayable(tx.now);
  Payment.assertNonePending(tx.list(Payment, { orderId: order.id }));
  const id = randomUUIDv7();
  if (order.total === 0n) {
    const [payment, change] = Payment.completed(id, order, "EXTERNAL", "PayOrder", tx.now);
    tx.add(payment);
    completed(tx, order, lines, payment, change);
    return payment;
  }
  order.awaitGateway(tx.now);
  const nextTryTime = new Date(tx.now.getTime() + askAgainMs);
  const [payment, change] = Payment.pending(id, order, { cause: "PayOrder", gateway, nextTryTime }, tx.now);
  tx.add(payment);
  tx.add(change);
  return payment;
}

/**
 * What the gateway has said of a pending payment comes true; of one that is settled already nothing changes. But money that
 * was taken for one that has FAILED goes back: no gateway should, and it must not stay there.
 */
export function settleExternal(
  tx: Tx,
  key: { orderId: string; id: string },
  answer: { outcome: "approved" | "declined"; reference: string | null },
  cause: string,
): Payment {
  const payment = paymentOf(tx, key);
  const late = (why: string) => {
    tx.add(payment.settle("REFUNDING", `${cause}: ${why}`, answer.reference, tx.now));
    tx.add(GatewayRefund.of(randomUUIDv7(), payment, payment.amount, tx.now));
    return payment;
  };
  if (payment.state === "FAILED" && answer.outcome === "approved") return late("after it had failed");
  if (payment.state !== "PENDING") return payment;
  const order = tx.get(Order, { id: key.orderId });
  if (answer.outcome === "declined") {
    tx.add(payment.settle("FAILED", cause, answer.reference, tx.now));
    tx.add(Event.of("payment.failed", payment.id, payment.describe(), tx.now));
  } else if (order.isPayable(tx.now)) {
    const change = payment.settle("COMPLETED", cause, answer.reference, tx.now);
    completed(tx, order, tx.list(OrderLine, { orderId: order.id }), payment, change);
  } else {
    // Expired or cancelled meanwhile: its stock may be sold already.
    late("too late");
  }
  return payment;
}

/** A refund is done; one that was done already changes nothing. Answers whether it was not. */
export function finishRefund(
  tx: Tx,
  key: { orderId: string; id: string },
  reference: string,
  cause = "the gateway's answer",
): boolean {
  const refund = tx.get(GatewayRefund, key);
  if (refund.state !== "PENDING") return false;
  refund.complete();
  const payment = paymentOf(tx, { orderId: key.orderId, id: refund.paymentId });
  tx.add(payment.finishRefund(refund.amount, cause, reference, tx.now));
  tx.add(refunded(payment, refund.amount, tx.now));
  return true;
}

/** What has to be at hand to give an order up. Empty lists when there is no such order: the decision refuses then. */
export async function touchesToGiveUp(db: Database, orderId: string): Promise<Touch[]> {
  const [order, lines] = await Promise.all([db.find(Order, { id: orderId }), db.list(OrderLine, { orderId })]);
  const touches = [touch(Order, { id: orderId }), touch(OrderLine, { orderId }), touch(Payment, { orderId })];
  if (!order) return touches;
  const { userId, issuedCouponId } = order;
  return [
    ...touches,
    touch(Wallet, { userId }),
    ...lines.map((line) => share(Variant, { id: line.variantId })),
    ...(issuedCouponId === null ? [] : [touch(IssuedCoupon, { userId, id: issuedCouponId })]),
  ];
}

/** What gives money back: `cause` is for the history; only the gateway that has taken it can give it back. */
export type Refunding = Readonly<{ cause: string; gateway: string | undefined }>;

/**
 * Cancels an order: stock and coupon come back, and the money when it was paid.
 *
 * @throws DomainError ORDER_NOT_CANCELLABLE, METHOD_NOT_SERVED where another gateway has the money
 */
export function cancel(tx: Tx, order: Order, how: Refunding): void {
  const lines = tx.list(OrderLine, { orderId: order.id });
  const payment = tx.list(Payment, { orderId: order.id }).find(({ state }) => state === "COMPLETED");
  order.cancel(tx.now);
  giveBack(tx, order, lines);
  if (payment) refundMoney(tx, payment, payment.refundable, how, true);
  tx.add(Event.of("order.cancelled", order.id, order.describe(lines), tx.now));
}

/** Gives money of a paid order back; the buyer keeps the goods. @throws DomainError PAYMENT_NOT_REFUNDABLE, METHOD_NOT_SERVED */
export function refundAmount(tx: Tx, payment: Payment, amount: bigint, how: Refunding): void {
  payment.assertRefundable(amount);
  refundMoney(tx, payment, amount, how, false);
}

/**
 * Takes units of a paid order back, and gives their share of what was paid for it back, or what is left of that. With the
 * last unit the order is cancelled.
 *
 * @throws DomainError VARIANT_NOT_FOUND for one that is not in the order, PAYMENT_NOT_REFUNDABLE, METHOD_NOT_SERVED
 */
export function returnUnits(tx: Tx, order: Order, payment: Payment, units: readonly Units[], how: Refunding): void {
  const lines = tx.list(OrderLine, { orderId: order.id });
  const before = order.priceOfReturned(lines);
  const returned = units.map(({ variantId, quantity }) => {
    const line = lines.find((one) => one.variantId === variantId);
    if (!line) throw Variant.notFound({ id: variantId });
    line.takeBack(quantity);
    tx.get(Variant, { id: variantId }).restore(quantity);
    return { variant_id: variantId, product_id: line.productId, quantity };
  });
  const facts = { ...order.describe(lines), returned_lines: returned };
  tx.add(Event.of("order.returned", order.id, facts, tx.now));
  if (lines.every(({ kept }) => kept === 0)) {
    cancel(tx, order, how);
  } else {
    refundMoney(tx, payment, payment.refundableOf(order.priceOfReturned(lines) - before), how, false);
  }
}

/** Expires an order that nobody has paid in time; one that is not overdue (any more) stays as it is. */
export function expire(tx: Tx, order: Order): boolean {
  if (!order.isOverdue(tx.now)) return false;
  const lines = tx.list(OrderLine, { orderId: order.id });
  order.expire(tx.now);
  giveBack(tx, order, lines);
  tx.add(Event.of("order.expired", order.id, order.describe(lines), tx.now));
  return true;
}

function giveBack(tx: Tx, order: Order, lines: readonly OrderLine[]): void {
  for (const line of lines) tx.get(Variant, { id: line.variantId }).restore(line.kept);
  const { userId, issuedCouponId: id } = order;
  if (id !== null) tx.get(IssuedCoupon, { userId, id }).restore(tx.now);
}

/** `ends`: the order is given up, and no money of the payment is to stay. */
function refundMoney(tx: Tx, payment: Payment, amount: bigint, { cause, gateway }: Refunding, ends: boolean): void {
  if (payment.method === "EXTERNAL" && amount > 0n) {
    assertServed(payment.method, payment.isOf(gateway));
    // Only recorded here: the gateway is asked outside of the transaction, until it has done it.
    tx.add(payment.startRefund(amount, cause, tx.now, ends));
    tx.add(GatewayRefund.of(randomUUIDv7(), payment, amount, tx.now));
    return;
  }
  tx.add(payment.refund(amount, cause, tx.now, ends));
  const { userId } = payment;
  if (amount > 0n) tx.add(tx.get(Wallet, { userId }).refund(amount, payment.id, tx.now));
  if (amount > 0n || payment.state === "REFUNDED") tx.add(refunded(payment, amount, tx.now));
}

function refunded(payment: Payment, amount: bigint, now: Date): Event {
  return Event.of("payment.refunded", payment.id, { ...payment.describe(), refund_amount: String(amount) }, now);
}

/** One of the payments of an order; all of them are what is touched. */
function paymentOf(tx: Tx, { orderId, id }: { orderId: string; id: string }): Payment {
  const payment = tx.list(Payment, { orderId }).find((candidate) => candidate.id === id);
  if (!payment) throw Payment.notFound({ id });
  return payment;
}
