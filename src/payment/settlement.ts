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
import { Payment, type PaymentMethod } from "./payment.entity.ts";

/** Refuses with METHOD_NOT_SERVED a method that this service can't carry out. */
export function assertServed(method: PaymentMethod): void {
  if (method !== "BALANCE") {
    throw new DomainError("METHOD_NOT_SERVED", "this payment method is not served yet", { method });
  }
}

/** Pays an order from its owner's wallet: debit, payment, PAID. @throws DomainError ORDER_NOT_PAYABLE, INSUFFICIENT_BALANCE */
export function payFromWallet(tx: Tx, order: Order, lines: readonly OrderLine[], cause: string): Payment {
  order.assertPayable(tx.now);
  const [payment, change] = Payment.completed(randomUUIDv7(), order, "BALANCE", cause, tx.now);
  // A free order moves no money, and the ledger lists movements.
  if (order.total > 0n) tx.add(tx.get(Wallet, { userId: order.userId }).pay(order.total, payment.id, tx.now));
  order.pay(tx.now);
  tx.add(payment);
  tx.add(change);
  tx.add(Event.of("payment.completed", payment.id, payment.describe(), tx.now));
  tx.add(Event.of("order.paid", order.id, order.describe(lines), tx.now));
  return payment;
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

/** Cancels an order: stock and coupon come back, and the money when it was paid. @throws DomainError ORDER_NOT_CANCELLABLE */
export function cancel(tx: Tx, order: Order, cause: string): void {
  const lines = tx.list(OrderLine, { orderId: order.id });
  const payment = tx.list(Payment, { orderId: order.id }).find(({ state }) => state === "COMPLETED");
  order.cancel(tx.now);
  giveBack(tx, order, lines);
  if (payment) refund(tx, payment, cause);
  tx.add(Event.of("order.cancelled", order.id, order.describe(lines), tx.now));
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
  for (const line of lines) tx.get(Variant, { id: line.variantId }).restore(line.quantity);
  const { userId, issuedCouponId: id } = order;
  if (id !== null) tx.get(IssuedCoupon, { userId, id }).restore();
}

function refund(tx: Tx, payment: Payment, cause: string): void {
  tx.add(payment.refund(cause, tx.now));
  const { userId, amount } = payment;
  if (amount > 0n) tx.add(tx.get(Wallet, { userId }).refund(amount, payment.id, tx.now));
  tx.add(Event.of("payment.refunded", payment.id, payment.describe(), tx.now));
}
