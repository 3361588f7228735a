/** The adapter at a Stripe of the tests, and payments to ask it about. */
import { randomBytes } from "node:crypto";
import { afterEach, beforeEach, expect } from "vitest";
import { answerWithin, type GatewayAnswer, type RefundAnswer } from "../../src/payment/gateway.ts";
import { type StripeFailure, StripeGateway, type StripeOptions } from "../../src/payment/stripe.ts";
import { type FakeStripe, STRIPE_KEY } from "./stripe.ts";

export function gatewayAt(stripe: FakeStripe) {
  const failures: StripeFailure[] = [];
  const payments = new Map<string, { amount: bigint; reference: string | undefined }>();

  beforeEach(() => {
    failures.length = 0;
  });
  // What an operator gets to see holds no secret, and nothing of the card.
  afterEach(() => expect(JSON.stringify(failures)).not.toMatch(/hunter2|pm_|No such/));

  const open = (options: Partial<StripeOptions> = {}) =>
    new StripeGateway({
      secretKey: STRIPE_KEY,
      apiUrl: new URL(stripe.url),
      currency: "KRW",
      stored: async (id) => payments.get(id),
      failed: (failure) => failures.push(failure),
      ...options,
    });
  const gateway = open();

  /** The key of a payment that is stored, as the service makes them: a UUIDv7 of now, or of so many milliseconds ago. */
  function newKey({ amount = 700n, ago = 0 } = {}): string {
    const hex = (Date.now() - ago).toString(16).padStart(12, "0") + randomBytes(10).toString("hex");
    const key = hex.replace(/^(.{8})(.{4}).(.{3})(.{4})(.{12})$/, "$1-$2-7$3-$4-$5");
    payments.set(key, { amount, reference: undefined });
    return key;
  }

  async function charge(
    key: string,
    token = "pm_card_visa",
    { timeoutMs = 10_000, through = gateway } = {},
  ): Promise<GatewayAnswer> {
    const amount = payments.get(key)?.amount ?? 0n;
    const what = { key, amount, currency: "KRW", token };
    const answer = await answerWithin(timeoutMs, (signal) => through.charge(what, signal));
    if (answer.outcome === "approved") payments.set(key, { amount, reference: answer.reference });
    return answer;
  }

  const retrieve = (key: string, through = gateway): Promise<GatewayAnswer> =>
    answerWithin(10_000, (signal) => through.retrieve(key, signal));

  const refund = (key: string, refundKey: string, amount = 700n, timeoutMs = 10_000): Promise<RefundAnswer> =>
    answerWithin(timeoutMs, (signal) => gateway.refund({ refundKey, key, amount }, signal));

  return { failures, open, newKey, charge, retrieve, refund };
}
