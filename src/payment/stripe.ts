/**
 * Payments by card through Stripe's PaymentIntents.
 *
 * A charge is two requests: an intent is created with the payment's id as its idempotency key, then confirmed with the
 * card. Creating and confirming at once would save one, but then nobody could find the intent again who has not got its
 * answer: Stripe looks nothing up by idempotency key, its search is behind by a minute, and the same request can't be sent
 * again without the card, which is not stored. An intent without the card is created by the same request again: Stripe
 * answers it with the same intent. Asked for a key, this adapter does just that, and then cancels an intent that holds no
 * money. So the key is closed, whatever of the charge is still on its way: a late create gets the cancelled intent, and to
 * confirm it fails. Stripe lets a cancel and a confirm happen one after the other, never both.
 *
 * Nothing is answered as declined before its intent is cancelled.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import Stripe from "stripe";
import type { Charge, GatewayAnswer, PaymentGateway, RefundAnswer } from "./gateway.ts";
import type { StoredPayment } from "./stored.ts";

/** Stripe keeps the answer of an idempotency key for 24 hours at least. An hour less, so that clocks may differ. */
const KEPT_MS = 23 * 60 * 60_000;

/** States in which an intent holds no money and never will, once it is cancelled. */
const cancellable: readonly string[] = ["requires_payment_method", "requires_confirmation", "requires_action"];

const unknown = { outcome: "unknown" } as const;

/** What an operator may know of a request that failed: no message, since Stripe's repeat what was sent. */
export type StripeFailure = Readonly<{
  doing: "charge" | "retrieve" | "refund";
  key: string;
  type: string;
  code?: string | undefined;
  status?: number | undefined;
  /** By which Stripe's log finds the request. */
  stripeRequestId?: string | undefined;
}>;

export type StripeOptions = Readonly<{
  secretKey: string;
  /** Where the API is: protocol, host and port. */
  apiUrl: URL;
  /** ISO 4217, of every amount. */
  currency: string;
  /** What is stored of the payment with that id. */
  stored: (paymentId: string) => Promise<StoredPayment | undefined>;
  /** Told of each request that Stripe did not carry out; that a card was declined is none. */
  failed: (failure: StripeFailure) => void;
}>;

/** The gateway of PAYMENT_GATEWAY=stripe. Keys are ids of payments, and tokens ids of Stripe's payment methods. */
export class StripeGateway implements PaymentGateway {
  readonly #options: StripeOptions;
  readonly #stripe: Stripe;
  /** Of the call that sends a request: the library itself knows no signals. */
  readonly #signal = new AsyncLocalStorage<AbortSignal>();

  constructor(options: StripeOptions) {
    const { secretKey, apiUrl } = options;
    const secure = apiUrl.protocol === "https:";
    this.#options = options;
    this.#stripe = new Stripe(secretKey, {
      protocol: secure ? "https" : "http",
      host: apiUrl.hostname,
      port: apiUrl.port || (secure ? 443 : 80),
      // With a second try nothing is done twice: every POST has an idempotency key, the library's own where none is given.
      maxNetworkRetries: 1,
      telemetry: false,
      httpClient: Stripe.createFetchHttpClient((url: string | URL | Request, init?: RequestInit) =>
        fetch(url, { ...init, signal: this.#signal.getStore() ?? null }),
      ),
    });
  }

  charge({ key, amount, token }: Charge, signal: AbortSignal): Promise<GatewayAnswer> {
    return this.#do("charge", key, signal, async () => {
      // One that was stopped in between for so long would be a new one to Stripe.
      if (mayBeForgotten(key)) return unknown;
      return this.#withIntent(key, amount, async ({ id }) => {
        signal.throwIfAborted();
        return mayBeForgotten(key) ? unknown : this.#confirm(id, key, token);
      });
    });
  }

  retrieve(key: string, signal: AbortSignal): Promise<GatewayAnswer> {
    return this.#do("retrieve", key, signal, async () => {
      const earlier = mayBeForgotten(key) ? await this.#search(key) : undefined;
      if (earlier) return earlier;
      const { amount } = await this.#stored(key);
      try {
        return await this.#withIntent(key, amount, async ({ id, created }) => {
          // First of all: nothing can be charged to this one then, whatever else is found.
          const answer = await this.#look(id);
          // By Stripe's own clock, it is not the intent that was made for the charge.
          const isNew = created * 1_000 - timeOf(key) > KEPT_MS;
          return (isNew ? await this.#search(key) : undefined) ?? answer;
        });
      } catch (error) {
        if (!(error instanceof Stripe.errors.StripeIdempotencyError)) throw error;
        // Its intent was created by another version of this code, or in another currency.
        return (await this.#search(key)) ?? unknown;
      }
    });
  }

  refund(refund: { refundKey: string; key: string; amount: bigint }, signal: AbortSignal): Promise<RefundAnswer> {
    const { refundKey, key, amount } = refund;
    return this.#do("refund", key, signal, async () => {
      const { reference: intent } = await this.#stored(key);
      if (intent === undefined) throw new Error("the payment has no intent");
      try {
        const earlier = await this.#findRefund(intent, refundKey);
        if (earlier) return refundAnswerOf(earlier);
        const metadata = { payment_id: key, refund_key: refundKey };
        const params = { payment_intent: intent, amount: Number(amount), metadata };
        return refundAnswerOf(await this.#stripe.refunds.create(params, { idempotencyKey: refundKey }));
      } catch (error) {
        const code = refusalOf(error);
        if (code === undefined) throw error;
        this.#report("refund", key, error);
        return { outcome: "refused", code };
      }
    });
  }

  /** Whatever goes wrong leaves open what became of the request. */
  async #do<A>(doing: StripeFailure["doing"], key: string, signal: AbortSignal, work: () => Promise<A>) {
    try {
      return await this.#signal.run(signal, work);
    } catch (error) {
      this.#report(doing, key, error);
      return unknown;
    }
  }

  #report(doing: StripeFailure["doing"], key: string, error: unknown): void {
    if (error instanceof Stripe.errors.StripeCardError) return;
    const { type, code, statusCode: status, requestId: stripeRequestId } = error as Partial<Stripe.errors.StripeError>;
    this.#options.failed({ doing, key, type: type ?? (error as Error).name, code, status, stripeRequestId });
  }

  async #stored(key: string): Promise<StoredPayment> {
    const payment = await this.#options.stored(key);
    if (!payment) throw new Error("no such payment is stored");
    return payment;
  }

  /** Goes on with the intent of a key: the one that there is, or a new one. Its params must not depend on who asks. */
  async #withIntent(
    key: string,
    amount: bigint,
    goOn: (intent: Stripe.PaymentIntent) => Promise<GatewayAnswer>,
  ): Promise<GatewayAnswer> {
    let intent: Stripe.PaymentIntent;
    try {
      intent = await this.#stripe.paymentIntents.create(
        {
          // Beyond what a number holds exactly is beyond what Stripe takes, too.
          amount: Number(amount),
          currency: this.#options.currency.toLowerCase(),
          // Whatever else the account has switched on may take days, or send the buyer elsewhere. What was called
          // payment_method_types is refused since this version of the API.
          allowed_payment_method_types: ["card"],
          metadata: { payment_id: key },
        },
        { idempotencyKey: key },
      );
    } catch (error) {
      const code = refusalOf(error) ?? (isSaved(error) ? "api_error" : undefined);
      if (code === undefined) throw error;
      // It is answered so each time, so there never is an intent to confirm.
      this.#report("charge", key, error);
      return { outcome: "declined", reference: null, code };
    }
    return goOn(intent);
  }

  async #confirm(id: string, key: string, token: string): Promise<GatewayAnswer> {
    // Who would have to prove to the bank that the card is theirs is not here to do it.
    const params = { payment_method: token, error_on_requires_action: true };
    let intent: Stripe.PaymentIntent;
    try {
      intent = await this.#stripe.paymentIntents.confirm(id, params);
    } catch (error) {
      const code = refusalOf(error);
      if (code === undefined) throw error;
      this.#report("charge", key, error);
      return this.#look(id, code);
    }
    return this.#settle(intent);
  }

  /** What became of an intent by now, which a repeated answer does not tell. */
  async #look(id: string, code?: string): Promise<GatewayAnswer> {
    return this.#settle(await this.#stripe.paymentIntents.retrieve(id), code);
  }

  async #settle(intent: Stripe.PaymentIntent, refusal?: string): Promise<GatewayAnswer> {
    const { id: reference, status, last_payment_error: last } = intent;
    if (status === "succeeded") return { outcome: "approved", reference };
    if (status !== "canceled" && !cancellable.includes(status)) return unknown;
    const without = status === "requires_action" ? "authentication_required" : "canceled";
    const code = refusal ?? (last ? codeOf(last) : without);
    if (status !== "canceled") {
      await this.#stripe.paymentIntents.cancel(reference, { cancellation_reason: "abandoned" });
    }
    return { outcome: "declined", reference, code };
  }

  /** What became of the intents with that payment's id; undefined when none is found, which proves little for an hour. */
  async #search(key: string): Promise<GatewayAnswer | undefined> {
    const { data } = await this.#stripe.paymentIntents.search({ query: `metadata['payment_id']:'${key}'` });
    let answer: GatewayAnswer | undefined;
    for (const { id } of data) {
      answer = await this.#look(id);
      if (answer.outcome !== "declined") return answer;
    }
    return answer;
  }

  /** The refund that was made with that key. Its idempotency key proves that for a day only. */
  async #findRefund(intent: string, refundKey: string): Promise<Stripe.Refund | undefined> {
    for await (const refund of this.#stripe.refunds.list({ payment_intent: intent, limit: 100 })) {
      if (refund.metadata?.refund_key === refundKey) return refund;
    }
    return undefined;
  }
}

/** When the key was made, in milliseconds: a UUIDv7 begins with that. */
function timeOf(key: string): number {
  return Number.parseInt(key.replaceAll("-", "").slice(0, 12), 16);
}

/** Whether Stripe may have forgotten the idempotency key. */
function mayBeForgotten(key: string): boolean {
  return Date.now() - timeOf(key) > KEPT_MS;
}

/** Stripe's word for its no; undefined for a failure that leaves open what became of the request. */
function refusalOf(error: unknown): string | undefined {
  const { StripeCardError, StripeInvalidRequestError } = Stripe.errors;
  const refused = error instanceof StripeCardError || error instanceof StripeInvalidRequestError;
  return refused ? codeOf(error) : undefined;
}

/** Of a card that was declined it is the bank's reason. */
function codeOf({
  code,
  decline_code: reason,
}: {
  code?: string | undefined;
  decline_code?: string | undefined;
}): string {
  return (code === "card_declined" ? reason : undefined) ?? code ?? "invalid_request";
}

/** Whether it is a failure that Stripe has saved, and answers with from now on. */
function isSaved(error: unknown): boolean {
  if (!(error instanceof Stripe.errors.StripeError)) return false;
  return (error.statusCode ?? 0) >= 500 && error.headers?.["idempotent-replayed"] === "true";
}

/** One that is pending waits for the bank, or for money on the account, and may fail yet. */
function refundAnswerOf({ id: reference, status, failure_reason: reason }: Stripe.Refund): RefundAnswer {
  if (status === "succeeded") return { outcome: "refunded", reference };
  if (status === "failed" || status === "canceled") return { outcome: "refused", code: reason ?? status };
  return unknown;
}
