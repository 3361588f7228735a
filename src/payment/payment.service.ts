import { Wallet } from "../balance/balance.entity.ts";
import { touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { bySeq, type Page, type PageRequest, pageOf } from "../db/page.ts";
import { Order, OrderLine } from "../order/order.entity.ts";
import type { External } from "./external.ts";
import { Payment, PaymentEvent, type PaymentMethod } from "./payment.entity.ts";
import {
  assertServed,
  cancel,
  payFromWallet,
  refundAmount,
  returnUnits,
  touchesToGiveUp,
  type Units,
} from "./settlement.ts";

/** What to give back of a payment: `amount` in minor units, or `units` when there are some, else all. */
export type Refund = Readonly<{
  userId: string;
  paymentId: string;
  amount?: bigint | undefined;
  units?: readonly Units[];
}>;

/** Paying orders and giving the money back. */
export class Payments {
  readonly #db: Database;
  readonly #external: External | undefined;

  /** `external` is undefined where there is no gateway. */
  constructor(db: Database, external?: External) {
    this.#db = db;
    this.#external = external;
  }

  /**
   * Pays an order: at once from the wallet, or through the gateway; PENDING when that has not answered in time.
   *
   * @throws DomainError ORDER_NOT_FOUND, ORDER_NOT_PAYABLE, PAYMENT_IN_PROGRESS, INSUFFICIENT_BALANCE, PAYMENT_DECLINED,
   *   METHOD_NOT_SERVED
   */
  async pay(
    call: Write,
    input: { userId: string; orderId: string; method: PaymentMethod | undefined; paymentToken?: string },
  ): Promise<Payment> {
    const { userId, orderId, method } = input;
    if (method !== "BALANCE") {
      assertServed("EXTERNAL", this.#external !== undefined);
      if (this.#external) return this.#external.pay(call, input);
    }
    return this.#db.write(call, {
      touches: [
        touch(Order, { id: orderId }),
        touch(OrderLine, { orderId }),
        touch(Wallet, { userId }),
        touch(Payment, { orderId }),
      ],
      decide: (tx) => {
        const order = tx.get(Order, { id: orderId });
        order.assertOwnedBy(userId);
        order.assertPayable(tx.now);
        Payment.assertNonePending(tx.list(Payment, { orderId }));
        return payFromWallet(tx, order, tx.list(OrderLine, { orderId }), "PayOrder");
      },
    });
  }

  /**
   * Gives money of a paid order back: an amount, and nothing else changes; or the share of some units, which come back too;
   * or all that is left, and the order is cancelled. Answers how much this is, too.
   *
   * @throws DomainError PAYMENT_NOT_FOUND, PAYMENT_NOT_REFUNDABLE, VARIANT_NOT_FOUND for one that is not in the order
   */
  refund(call: Write, input: Refund): Promise<{ payment: Payment; amount: bigint }> {
    const { userId, paymentId, amount, units = [] } = input;
    // A payment never changes its order, so what the plan reads holds in the transaction too.
    let orderId: string | undefined;
    return this.#db.write(call, {
      touches: async () => {
        const payment = await this.#db.find(Payment, { id: paymentId });
        orderId = payment?.userId === userId ? payment.orderId : undefined;
        return orderId === undefined ? [] : touchesToGiveUp(this.#db, orderId);
      },
      // What is not there is refused here and not by the plan: before that comes whether the request id was used.
      decide: (tx) => {
        if (orderId === undefined) throw Payment.notFound({ id: paymentId });
        const payment = tx.list(Payment, { orderId }).find(({ id }) => id === paymentId);
        if (!payment) throw Payment.notFound({ id: paymentId });
        payment.assertRefundable();
        const before = payment.refundable;
        const how = { cause: "RefundPayment", gateway: this.#external?.name };
        const order = tx.get(Order, { id: orderId });
        if (amount !== undefined) refundAmount(tx, payment, amount, how);
        else if (units.length > 0) returnUnits(tx, order, payment, units, how);
        else cancel(tx, order, how);
        return { payment, amount: before - payment.refundable };
      },
    });
  }

  /** @throws DomainError PAYMENT_NOT_FOUND, also for a payment of somebody else */
  async get(userId: string, id: string): Promise<Payment> {
    const payment = await this.#db.find(Payment, { id });
    if (payment?.userId !== userId) throw Payment.notFound({ id });
    return payment;
  }

  /** Newest first. @throws DomainError PAYMENT_NOT_FOUND, PAGE_TOKEN_INVALID */
  async listEvents(userId: string, paymentId: string, request: PageRequest): Promise<Page<PaymentEvent>> {
    const { orderId } = await this.get(userId, paymentId);
    return this.#db.read((em) =>
      pageOf(
        `payment-events/${paymentId}`,
        request,
        bySeq,
        (event: PaymentEvent) => String(event.seq),
        (after, limit) =>
          em.find(
            PaymentEvent,
            { orderId, paymentId, ...(after && { seq: { $lt: Number(after) } }) },
            { limit, orderBy: { seq: "desc" } },
          ),
      ),
    );
  }
}
