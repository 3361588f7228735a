/** Payments through the gateway. It is only ever asked outside of transactions; what it is asked for is committed before. */
import { Replayed, type Touch, touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { DomainError } from "../error.ts";
import { Order, OrderLine } from "../order/order.entity.ts";
import { answerWithin, type GatewayAnswer, type PaymentGateway } from "./gateway.ts";
import { Payment } from "./payment.entity.ts";
import { beginExternal, finishRefund, settleExternal } from "./settlement.ts";

/** Beyond the time in which the gateway may answer: then it is asked what became of the payment, in milliseconds. */
const ASK_AGAIN_MARGIN = 5_000;

/**
 * Of payments that are due, takes up to `?`: until their next try they are nobody else's. The pause doubles from a second
 * up to five minutes, on top of the time (`?`, in milliseconds) that the try itself may take.
 */
const CLAIM = `
  update payment p
     set tries = p.tries + 1,
         next_try_time = ?::timestamptz + (? + least(1000 * power(2, least(p.tries, 20)), 300000)) * interval '1 millisecond'
    from (select order_id, id from payment
           where state in ('PENDING', 'REFUNDING') and next_try_time <= ?
           order by next_try_time limit ? for update skip locked) due
   where p.order_id = due.order_id and p.id = due.id
  returning p.order_id, p.id, p.state, p.amount`;

type Due = { order_id: string; id: string; state: "PENDING" | "REFUNDING"; amount: string };

export type ExternalOptions = Readonly<{
  gateway: PaymentGateway;
  /** ISO 4217, of every amount. */
  currency: string;
  /** How long the gateway may take to answer, in milliseconds. */
  timeoutMs: number;
}>;

/** The two halves of a payment, and what brings them together when something came between. */
export class External {
  readonly #db: Database;
  readonly #options: ExternalOptions;

  constructor(db: Database, options: ExternalOptions) {
    this.#db = db;
    this.#options = options;
  }

  /**
   * Stores a PENDING payment, then charges it. The same request sent again charges nothing: it is answered with what has
   * become of its payment by then.
   *
   * @throws DomainError ORDER_NOT_FOUND, ORDER_NOT_PAYABLE, PAYMENT_IN_PROGRESS, PAYMENT_DECLINED, ARGUMENT_INVALID
   */
  async pay(call: Write, input: { userId: string; orderId: string; paymentToken?: string }): Promise<Payment> {
    const { userId, orderId, paymentToken: token = "" } = input;
    if (token === "") {
      const violations = [{ field: "payment_token", description: "must be set for this method" }];
      throw new DomainError("ARGUMENT_INVALID", "the payment token is missing", {}, { violations });
    }
    const { gateway, currency, timeoutMs } = this.#options;
    const begun = await this.#begin(call, userId, orderId);
    if (begun.state !== "PENDING") return begun;
    const { id: key, amount } = begun;
    const answer = await answerWithin(timeoutMs, (signal) => gateway.charge({ key, amount, currency, token }, signal));
    return this.#settle(begun, answer, "PayOrder");
  }

  /** Asks the gateway about up to `limit` payments that are due, and returns how many there were. Any replica may do so at any time. */
  async reconcile(limit: number, signal?: AbortSignal): Promise<number> {
    if (signal?.aborted) return 0;
    const now = this.#db.now().toISOString();
    const claim = [now, this.#options.timeoutMs, now, limit];
    const due = await this.#db.maintain((em) => em.execute<Due[]>(CLAIM, claim));
    const results = await Promise.allSettled(due.map((payment) => this.#ask(payment)));
    const failed = results.find((result) => result.status === "rejected");
    if (failed) throw failed.reason;
    return due.length;
  }

  /** What is stored as the answer is the id of the payment: its state is looked up when the request comes again. */
  async #begin(call: Write, userId: string, orderId: string): Promise<Payment> {
    const asksAgain = this.#options.timeoutMs + ASK_AGAIN_MARGIN;
    const stored: Write = { ...call, encode: (payment) => Buffer.from((payment as Payment).id) };
    try {
      return await this.#db.write(stored, {
        touches: touchesOf(orderId),
        decide: (tx) => {
          const order = tx.get(Order, { id: orderId });
          order.assertOwnedBy(userId);
          return beginExternal(tx, order, tx.list(OrderLine, { orderId }), asksAgain);
        },
      });
    } catch (error) {
      if (!(error instanceof Replayed)) throw error;
      const id = Buffer.from(error.response).toString();
      const payment = await this.#db.find(Payment, { id });
      if (!payment) throw Payment.notFound({ id });
      if (payment.state === "FAILED") throw payment.declined;
      throw new Replayed(call.encode(payment));
    }
  }

  /** @throws DomainError PAYMENT_DECLINED */
  async #settle(payment: Payment, answer: GatewayAnswer, cause: string): Promise<Payment> {
    if (answer.outcome === "unknown") return payment;
    const settled = await this.#apply(payment, answer, cause);
    if (settled.state === "FAILED") throw settled.declined;
    return settled;
  }

  #apply(
    { orderId, id }: { orderId: string; id: string },
    answer: Exclude<GatewayAnswer, { outcome: "unknown" }>,
    cause: string,
  ): Promise<Payment> {
    return this.#db.apply({
      touches: touchesOf(orderId),
      decide: (tx) => settleExternal(tx, { orderId, id }, answer, cause),
    });
  }

  async #ask({ order_id: orderId, id, state, amount }: Due): Promise<void> {
    const { gateway, timeoutMs } = this.#options;
    if (state === "PENDING") {
      const answer = await answerWithin(timeoutMs, (signal) => gateway.retrieve(id, signal));
      if (answer.outcome !== "unknown") await this.#apply({ orderId, id }, answer, "the gateway, asked again");
      return;
    }
    const refund = { refundKey: `${id}-refund`, key: id, amount: BigInt(amount) };
    const answer = await answerWithin(timeoutMs, (signal) => gateway.refund(refund, signal));
    if (answer.outcome === "unknown") return;
    await this.#db.apply({
      touches: touchesOf(orderId),
      decide: (tx) => finishRefund(tx, { orderId, id }, answer.reference),
    });
  }
}

function touchesOf(orderId: string): Touch[] {
  return [touch(Order, { id: orderId }), touch(OrderLine, { orderId }), touch(Payment, { orderId })];
}
