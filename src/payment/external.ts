/** Payments through the gateway. It is only ever asked outside of transactions; what it is asked for is committed before. */
import { Replayed, type Touch, touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { DomainError } from "../error.ts";
import { Order, OrderLine } from "../order/order.entity.ts";
import { answerWithin, type GatewayAnswer, type PaymentGateway, type Unknown } from "./gateway.ts";
import { GatewayRefund, Payment, PaymentEvent } from "./payment.entity.ts";
import { beginExternal, finishRefund, settleExternal } from "./settlement.ts";

/** Beyond the time in which the gateway may answer: then it is asked what became of the payment, in milliseconds. */
const ASK_AGAIN_MARGIN = 5_000;

/**
 * Of pending rows that are due, takes up to `?`: until their next try they are nobody else's. The pause doubles from a second
 * up to five minutes, on top of the time (`?`, in milliseconds) that the try itself may take.
 */
const claim = (table: string, own: string, returning: string) => `
  update ${table} p
     set tries = p.tries + 1,
         next_try_time = ?::timestamptz + (? + least(1000 * power(2, least(p.tries, 20)), 300000)) * interval '1 millisecond'
    from (select order_id, id from ${table}
           where state = 'PENDING' and next_try_time <= ? and ${own}
           order by next_try_time limit ? for update skip locked) due
   where p.order_id = due.order_id and p.id = due.id
  returning p.order_id as "orderId", p.id, ${returning}`;
const OWN = "(gateway is null or gateway = ?)";
const CLAIM_PAYMENTS = claim("payment", OWN, "p.tries");
const OWN_REFUND = `exists (select from payment o where o.order_id = gateway_refund.order_id and o.id = payment_id and ${OWN})`;
const CLAIM_REFUNDS = claim("gateway_refund", OWN_REFUND, `p.tries, p.payment_id as "paymentId", p.amount`);

const askNow = (table: string, id: string) =>
  `update ${table} set next_try_time = ? where order_id = ? and ${id} = ? and state = 'PENDING'`;
const ASK_NOW = [askNow("payment", "id"), askNow("gateway_refund", "payment_id")];

type DuePayment = { orderId: string; id: string; tries: number };
type DueRefund = DuePayment & { paymentId: string; amount: string };
type Settled = Exclude<GatewayAnswer, { outcome: "unknown" }>;

export type ExternalOptions = Readonly<{
  gateway: PaymentGateway;
  /** Of the gateway: it is asked about payments of this name alone. At most 50 characters. */
  name: string;
  /** ISO 4217, of every amount. */
  currency: string;
  /** How long the gateway may take to answer, in milliseconds. */
  timeoutMs: number;
  /** Hears of what does not come to an end, each time that the gateway was asked. */
  observer?: { unsettled(trouble: Trouble): void };
}>;

/**
 * A refund that is refused, a payment or refund about which the gateway has said nothing useful for several times, or an
 * answer that could not be stored.
 */
export type Trouble = Readonly<{ paymentId: string; refundId?: string; tries: number; error: string }>;
/** Up to so many times it is nothing special that the gateway does not know. */
const PATIENCE = 5;

/** The two halves of a payment, and what brings them together when something came between. */
export class External {
  readonly #db: Database;
  readonly #options: ExternalOptions;

  constructor(db: Database, options: ExternalOptions) {
    this.#db = db;
    this.#options = options;
  }

  get name(): string {
    return this.#options.name;
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

  /**
   * Asks the gateway about up to `limit` pending payments that are due, and for as many refunds. Returns whether there may be
   * more. Any replica may do so at any time; `signal` fires when the answers are not waited for any more.
   */
  async reconcile(limit: number, signal: AbortSignal): Promise<boolean> {
    const payments = await this.#claim<DuePayment>(CLAIM_PAYMENTS, limit);
    const refunds = await this.#claim<DueRefund>(CLAIM_REFUNDS, limit);
    const results = await Promise.allSettled([
      ...payments.map((payment) => this.#ask(payment, signal)),
      ...refunds.map((refund) => this.#refund(refund, signal)),
    ]);
    const failed = results.find((result) => result.status === "rejected");
    if (failed) throw failed.reason;
    return payments.length === limit || refunds.length === limit;
  }

  /**
   * What the gateway says of a payment without having been asked. `unknown`: it is asked at once, for refunds too. Of a
   * payment that is not its own nothing changes, nor of one that is settled, but when it has FAILED and money was taken.
   */
  async hear(id: string, answer: GatewayAnswer): Promise<void> {
    const payment = await this.#db.find(Payment, { id });
    if (!payment?.isOf(this.name)) return;
    if (answer.outcome === "unknown") {
      const values = [this.#db.now().toISOString(), payment.orderId, id];
      await this.#db.maintain(async (em) => {
        for (const sql of ASK_NOW) await em.execute(sql, values);
      });
    } else if (payment.state === "PENDING" || payment.state === "FAILED") {
      await this.#apply(payment, answer, "the gateway's message");
    }
  }

  #claim<D>(sql: string, limit: number): Promise<D[]> {
    const now = this.#db.now().toISOString();
    const { timeoutMs, name } = this.#options;
    return this.#db.maintain((em) => em.execute<D[]>(sql, [now, timeoutMs, now, name, limit]));
  }

  /** What is stored as the answer is the id of the payment: its state is looked up when the request comes again. */
  async #begin(call: Write, userId: string, orderId: string): Promise<Payment> {
    const begun = { gateway: this.name, askAgainMs: this.#options.timeoutMs + ASK_AGAIN_MARGIN };
    const stored: Write = { ...call, encode: (payment) => Buffer.from((payment as Payment).id) };
    try {
      return await this.#db.write(stored, {
        touches: touchesOf(orderId),
        decide: (tx) => {
          const order = tx.get(Order, { id: orderId });
          order.assertOwnedBy(userId);
          return beginExternal(tx, order, tx.list(OrderLine, { orderId }), begun);
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
    // What can't be stored now stays pending, and the caller must hear nothing else: the money may have moved.
    const settled = await this.#apply(payment, answer, cause).catch((error: Error) => {
      this.#options.observer?.unsettled({ paymentId: payment.id, tries: 0, error: error.message });
      return payment;
    });
    if (settled.state === "FAILED") throw settled.declined;
    return settled;
  }

  #apply({ orderId, id }: { orderId: string; id: string }, answer: Settled, cause: string): Promise<Payment> {
    return this.#db.apply({
      touches: touchesOf(orderId),
      decide: (tx) => settleExternal(tx, { orderId, id }, answer, cause),
    });
  }

  async #ask({ orderId, id, tries }: DuePayment, stop: AbortSignal): Promise<void> {
    const { gateway, timeoutMs } = this.#options;
    const answer = await answerWithin(timeoutMs, (signal) => gateway.retrieve(id, signal), stop);
    if (answer.outcome !== "unknown") await this.#apply({ orderId, id }, answer, "the gateway, asked again");
    else if (!stop.aborted) this.#note({ paymentId: id, tries }, answer);
  }

  async #refund({ orderId, id, paymentId, amount, tries }: DueRefund, stop: AbortSignal): Promise<void> {
    const { gateway, timeoutMs } = this.#options;
    const refund = { refundKey: `${id}-refund`, key: paymentId, amount: BigInt(amount) };
    const answer = await answerWithin(timeoutMs, (signal) => gateway.refund(refund, signal), stop);
    if (answer.outcome === "refunded") {
      const done = await this.#db.apply({
        touches: [touch(GatewayRefund, { orderId, id }), touch(Payment, { orderId })],
        decide: (tx) => finishRefund(tx, { orderId, id }, answer.reference),
      });
      if (!done) await this.#noteIfTwice({ orderId, id, paymentId, tries }, answer.reference);
    } else if (!stop.aborted) this.#note({ paymentId, refundId: id, tries }, answer);
  }

  /** Of a refund that is settled already: by another process that has heard the same, or by hand, and then the money went twice. */
  async #noteIfTwice({ orderId, id, paymentId, tries }: Omit<DueRefund, "amount">, reference: string): Promise<void> {
    const changes = await this.#db.list(PaymentEvent, { orderId, paymentId });
    if (changes.some(({ gatewayReference }) => gatewayReference === reference)) return;
    const error = `the gateway has made it, too (${reference}): it was settled by hand`;
    this.#options.observer?.unsettled({ paymentId, refundId: id, tries, error });
  }

  #note(trouble: Omit<Trouble, "error">, answer: Unknown | { outcome: "refused"; code: string }): void {
    if (answer.outcome === "unknown" && trouble.tries < PATIENCE) return;
    const error = answer.outcome === "refused" ? `refused: ${answer.code}` : (answer.error ?? "no answer");
    this.#options.observer?.unsettled({ ...trouble, error });
  }
}

function touchesOf(orderId: string): Touch[] {
  return [touch(Order, { id: orderId }), touch(OrderLine, { orderId }), touch(Payment, { orderId })];
}
