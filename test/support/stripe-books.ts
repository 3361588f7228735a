/** What Stripe keeps and does with it, as far as the service uses it: intents, cards and refunds in memory. */

type Failure = { type: string; code?: string; decline_code?: string; param?: string; message: string };
type Status = "requires_payment_method" | "requires_action" | "processing" | "succeeded" | "canceled";

export type Intent = {
  id: string;
  object: "payment_intent";
  status: Status;
  amount: number;
  amount_received: number;
  currency: string;
  metadata: Record<string, string>;
  payment_method_types: string[];
  last_payment_error: Failure | null;
};

export type Refund = {
  id: string;
  object: "refund";
  status: "succeeded" | "pending" | "failed";
  amount: number;
  payment_intent: string;
  metadata: Record<string, string>;
  failure_reason?: string;
};

export type Answer = { status: number; body: unknown; replayed?: boolean };
export type Params = Record<string, string>;

/** A failure that Stripe answers with. */
export class Refusal extends Error {
  readonly answer: Answer;

  constructor(status: number, failure: Failure, intent?: Intent) {
    super(failure.message);
    this.answer = { status, body: { error: { ...failure, payment_intent: intent && { ...intent } } } };
  }
}

const invalid = (code: string, message: string, intent?: Intent) =>
  new Refusal(400, { type: "invalid_request_error", code, message }, intent);

const declined = (code: string, reason?: string): Failure => ({
  type: "card_error",
  code,
  ...(reason && { decline_code: reason }),
  message: "Your card was declined.",
});

/** Payment methods by what becomes of them; all others do not exist. */
const cards: Record<string, Status | Failure> = {
  pm_card_visa: "succeeded",
  pm_slow: "processing",
  pm_card_authenticationRequired: "requires_action",
  pm_card_visa_chargeDeclinedInsufficientFunds: declined("card_declined", "insufficient_funds"),
  pm_card_chargeDeclinedExpiredCard: declined("expired_card", "expired_card"),
};

/** What is below a name: of `a[b]=1` and the name `a` it is `{ b: "1" }`. */
const below = (params: Params, name: string): Params =>
  Object.fromEntries(
    Object.entries(params).flatMap(([key, value]) =>
      key.startsWith(`${name}[`) ? [[key.slice(name.length + 1, -1), value]] : [],
    ),
  );

export class StripeBooks {
  readonly intents = new Map<string, Intent>();
  readonly refunds: Refund[] = [];
  /** Whether a search finds anything: it is behind, mostly by less than a minute. */
  searchable = true;
  /** The status of refunds that are made now. */
  refundStatus: Refund["status"] = "succeeded";
  #count = 0;

  intentsOf(paymentId: string): Intent[] {
    return [...this.intents.values()].filter(({ metadata }) => metadata.payment_id === paymentId);
  }

  /** What is held of a payment: charged, less what was given back. */
  held(paymentId: string): number {
    const intents = this.intentsOf(paymentId);
    const ids = new Set(intents.map(({ id }) => id));
    const back = this.refunds.filter(({ payment_intent, status }) => ids.has(payment_intent) && status !== "failed");
    return (
      intents.reduce((sum, { amount_received }) => sum + amount_received, 0) -
      back.reduce((sum, { amount }) => sum + amount, 0)
    );
  }

  /** Does what a request wants, `POST /v1/refunds`, and returns the body of the answer. @throws Refusal */
  carryOut(call: string, params: Params): unknown {
    const [, id, verb] = /\/payment_intents\/(pi_\w+)(?:\/(\w+))?$/.exec(call) ?? [];
    if (call === "POST /v1/payment_intents") return this.#create(params);
    if (call === "GET /v1/payment_intents/search") return this.#search(params);
    if (call === "POST /v1/refunds") return this.#refund(params);
    if (call === "GET /v1/refunds") {
      const data = this.refunds.filter(({ payment_intent }) => payment_intent === params.payment_intent);
      return { object: "list", url: "/v1/refunds", has_more: false, data };
    }
    const intent = this.intents.get(id ?? "");
    if (!intent)
      throw new Refusal(404, { type: "invalid_request_error", code: "resource_missing", message: "No such." });
    if (verb === "confirm") this.#confirm(intent, params);
    if (verb === "cancel") this.#cancel(intent);
    return { ...intent };
  }

  #create(params: Params): Intent {
    const amount = Number(params.amount);
    if (!(amount >= 50)) throw invalid("amount_too_small", "Amount must convert to at least 50 cents.");
    if (amount > 99_999_999) throw invalid("amount_too_large", "Amount must be no more than 999,999.99.");
    if (Object.keys(below(params, "payment_method_types")).length > 0) {
      throw invalid("payment_method_types_no_longer_supported", "Passing payment_method_types is not supported.");
    }
    this.#count += 1;
    const intent: Intent = {
      id: `pi_${this.#count}`,
      object: "payment_intent",
      status: "requires_payment_method",
      amount,
      amount_received: 0,
      currency: params.currency ?? "",
      metadata: below(params, "metadata"),
      payment_method_types: Object.values(below(params, "allowed_payment_method_types")),
      last_payment_error: null,
    };
    this.intents.set(intent.id, intent);
    return { ...intent };
  }

  #confirm(intent: Intent, { payment_method: card = "", error_on_requires_action: strict }: Params): void {
    if (intent.status !== "requires_payment_method") {
      throw invalid("payment_intent_unexpected_state", `This PaymentIntent's status is ${intent.status}.`, intent);
    }
    const end = cards[card];
    if (end === undefined) throw invalid("resource_missing", `No such PaymentMethod: '${card}'`);
    const failure =
      end === "requires_action" && strict === "true"
        ? declined("authentication_required", "authentication_not_handled")
        : end;
    if (typeof failure !== "string") {
      intent.last_payment_error = failure;
      throw new Refusal(402, failure, intent);
    }
    intent.status = failure;
    if (failure === "succeeded") intent.amount_received = intent.amount;
  }

  #cancel(intent: Intent): void {
    if (!intent.status.startsWith("requires_")) {
      throw invalid("payment_intent_unexpected_state", `You cannot cancel this PaymentIntent.`, intent);
    }
    intent.status = "canceled";
  }

  #search({ query = "" }: Params): unknown {
    const id = /^metadata\['payment_id'\]:'([^']*)'$/.exec(query)?.[1] ?? "";
    const data = this.searchable ? this.intentsOf(id) : [];
    return { object: "search_result", url: "/v1/payment_intents/search", has_more: false, next_page: null, data };
  }

  #refund(params: Params): Refund {
    const intent = this.intents.get(params.payment_intent ?? "");
    if (!intent) throw invalid("resource_missing", "No such payment_intent.");
    const amount = Number(params.amount);
    const left = this.held(intent.metadata.payment_id ?? "");
    if (left === 0) throw invalid("charge_already_refunded", "The charge has already been refunded.");
    if (amount > left) throw invalid("amount_too_large", "Refund amount is greater than unrefunded amount on charge.");
    this.#count += 1;
    const id = `re_${this.#count}`;
    const metadata = below(params, "metadata");
    const made = {
      id,
      object: "refund",
      status: this.refundStatus,
      amount,
      payment_intent: intent.id,
      metadata,
    } as const;
    this.refunds.push({ ...made });
    return { ...made };
  }
}
