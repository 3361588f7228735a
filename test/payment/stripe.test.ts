/** The adapter against Stripe's API: what each answer means, and that a key which was asked for takes no money any more. */
import { beforeEach, describe, expect, test } from "vitest";
import { startStripe } from "../support/stripe.ts";
import { gatewayAt } from "../support/stripe-gateway.ts";

const stripe = await startStripe();
const { books } = stripe;
const { failures, open, newKey, charge, retrieve } = gatewayAt(stripe);

const HOUR = 3_600_000;
const CREATE = /^POST \/v1\/payment_intents$/;
const CONFIRM = /\/confirm$/;
const CANCEL = /\/cancel$/;

beforeEach(() => {
  books.searchable = false;
});

const statusesOf = (key: string) => books.intentsOf(key).map(({ status }) => status);

test("approved: one intent, of cards alone, over the amount in the currency's own units, with the payment's id", async () => {
  const key = newKey();
  expect(await charge(key)).toEqual({ outcome: "approved", reference: expect.stringMatching(/^pi_/) });
  expect(books.intentsOf(key)).toMatchObject([
    { status: "succeeded", amount: 700, currency: "krw", payment_method_types: ["card"] },
  ]);
  expect(await retrieve(key)).toEqual({ outcome: "approved", reference: books.intentsOf(key)[0]?.id });
  expect(failures).toEqual([]);
  expect(await charge(key)).toMatchObject({ outcome: "approved" });
  expect(books.held(key)).toBe(700);
});

describe("declined, with Stripe's own code, and nothing can be taken later", () => {
  test.each([
    ["pm_card_visa_chargeDeclinedInsufficientFunds", "insufficient_funds"],
    ["pm_card_chargeDeclinedExpiredCard", "expired_card"],
    ["pm_card_authenticationRequired", "authentication_required"],
    ["pm_that_is_none", "resource_missing"],
  ])("%s: %s", async (token, code) => {
    const key = newKey();
    expect(await charge(key, token)).toEqual({ outcome: "declined", reference: expect.stringMatching(/^pi_/), code });
    expect(statusesOf(key)).toEqual(["canceled"]);
    expect(await retrieve(key)).toMatchObject({ outcome: "declined" });
    expect(await charge(key)).toMatchObject({ outcome: "declined" });
    expect(books.held(key)).toBe(0);
  });

  test.each([
    [49n, "amount_too_small"],
    [100_000_000n, "amount_too_large"],
    [2n ** 63n - 1n, "amount_too_large"],
  ])("an amount of %s: %s, and there is no intent", async (amount, code) => {
    const key = newKey({ amount });
    const answer = { outcome: "declined", reference: null, code };
    expect(await charge(key)).toEqual(answer);
    expect(await retrieve(key)).toEqual(answer);
    expect(failures).toMatchObject([{ code, status: 400 }, { code }]);
  });
});

test("the code of a decline that was not heard is found at the intent", async () => {
  const key = newKey();
  stripe.hold(CONFIRM, "answers");
  expect(await charge(key, "pm_card_visa_chargeDeclinedInsufficientFunds", { timeoutMs: 200 })).toMatchObject({
    outcome: "unknown",
  });
  expect(await retrieve(key)).toMatchObject({ outcome: "declined", code: "insufficient_funds" });
  expect(statusesOf(key)).toEqual(["canceled"]);
});

describe("silence", () => {
  test.each([
    ["before the intent is there", CREATE, "arrives", "declined"],
    ["when the intent is there", CREATE, "answers", "declined"],
    ["before it is confirmed", CONFIRM, "arrives", "declined"],
    ["when the money was taken", CONFIRM, "answers", "approved"],
  ] as const)("%s: unknown, then it is found out", async (_, on, at, outcome) => {
    const key = newKey();
    const { release } = stripe.hold(on, at);
    expect(await charge(key, "pm_card_visa", { timeoutMs: 200 })).toMatchObject({ outcome: "unknown" });
    expect(await retrieve(key)).toMatchObject({ outcome });
    // What was still on its way arrives now.
    release();
    expect(await retrieve(key)).toMatchObject({ outcome });
    expect(books.held(key)).toBe(outcome === "approved" ? 700 : 0);
  });

  test("a charge whose key is closed while it is on its way takes no money, and says so", async () => {
    for (const on of [CREATE, CONFIRM]) {
      const key = newKey();
      const late = stripe.hold(on, "arrives");
      const answer = charge(key);
      await late.reached;
      expect(await retrieve(key)).toMatchObject({ outcome: "declined", code: "canceled" });
      late.release();
      expect(await answer).toMatchObject({ outcome: "declined" });
      expect(statusesOf(key)).toEqual(["canceled"]);
    }
  });

  test("while the bank is asked nothing is cancelled: it is not known yet", async () => {
    const key = newKey();
    const running = stripe.hold(CONFIRM, "runs");
    const answer = charge(key);
    await running.reached;
    expect(await retrieve(key)).toMatchObject({ outcome: "unknown" });
    running.release();
    expect(await answer).toMatchObject({ outcome: "approved" });
    expect(await retrieve(key)).toMatchObject({ outcome: "approved" });
  });

  test("who waits no more is not charged", async () => {
    const key = newKey();
    const created = stripe.hold(CREATE, "answers");
    const before = stripe.requests.length;
    const answer = charge(key, "pm_card_visa", { timeoutMs: 100 });
    await created.reached;
    expect(await answer).toMatchObject({ outcome: "unknown" });
    created.release();
    expect(await retrieve(key)).toMatchObject({ outcome: "declined" });
    expect(stripe.requests.slice(before).filter((call) => CONFIRM.test(call))).toEqual([]);
  });
});

test("a connection that breaks is tried once more with the same key: the money is taken once", async () => {
  for (const at of ["arrives", "answers"] as const) {
    const key = newKey();
    stripe.cut(CONFIRM, at);
    expect(await charge(key)).toMatchObject({ outcome: "approved" });
    expect(books.held(key)).toBe(700);
  }
});

describe("failures of Stripe", () => {
  test("429 is unknown, and asking tells", async () => {
    for (const on of [CREATE, CONFIRM]) {
      const key = newKey();
      stripe.fail(on, 429);
      expect(await charge(key)).toMatchObject({ outcome: "unknown" });
      expect(await retrieve(key)).toMatchObject({ outcome: "declined" });
      expect(statusesOf(key)).toEqual(["canceled"]);
    }
    expect(failures).toMatchObject([{ doing: "charge", type: "StripeRateLimitError", status: 429 }, {}]);
  });

  test("500 at the confirmation is unknown, and asking tells", async () => {
    const key = newKey();
    stripe.fail(CONFIRM, 500);
    expect(await charge(key)).toMatchObject({ outcome: "unknown" });
    expect(await retrieve(key)).toMatchObject({ outcome: "declined" });
    expect(failures).toMatchObject([{ type: "StripeAPIError", stripeRequestId: expect.stringMatching(/^req_/) }]);
  });

  test("500 for the intent itself is what Stripe answers from then on: nothing of that key can be confirmed", async () => {
    const key = newKey();
    stripe.fail(CREATE, 500);
    expect(await charge(key)).toMatchObject({ outcome: "unknown" });
    expect(await retrieve(key)).toEqual({ outcome: "declined", reference: null, code: "api_error" });
    expect(await charge(key)).toMatchObject({ outcome: "declined" });
  });

  test("a key that is not let in is unknown, and is told to the operator", async () => {
    const key = newKey();
    const through = open({ secretKey: "sk_test_wrong" });
    expect(await charge(key, "pm_card_visa", { through })).toMatchObject({ outcome: "unknown" });
    expect(await retrieve(key, through)).toMatchObject({ outcome: "unknown" });
    expect(failures).toMatchObject([{ type: "StripeAuthenticationError", status: 401 }, { doing: "retrieve" }]);
  });
});

test("one that the bank still works on is unknown until it is done", async () => {
  const key = newKey();
  expect(await charge(key, "pm_slow")).toMatchObject({ outcome: "unknown" });
  expect(await retrieve(key)).toMatchObject({ outcome: "unknown" });
  Object.assign(books.intentsOf(key)[0] ?? {}, { status: "succeeded", amount_received: 700 });
  expect(await retrieve(key)).toMatchObject({ outcome: "approved" });
});

test("a bank that wants the buyer there declines at once: the intent never waits for anybody", async () => {
  const key = newKey();
  await charge(key, "pm_card_authenticationRequired");
  expect(books.intentsOf(key)[0]?.last_payment_error).toMatchObject({ code: "authentication_required" });
});

test("an intent that waits for the buyer is cancelled", async () => {
  const key = newKey();
  await charge(key, "pm_slow");
  Object.assign(books.intentsOf(key)[0] ?? {}, { status: "requires_action" });
  expect(await retrieve(key)).toMatchObject({ outcome: "declined", code: "authentication_required" });
  expect(statusesOf(key)).toEqual(["canceled"]);
});

describe("when Stripe has forgotten the idempotency key", () => {
  /** A payment of yesterday, charged then. */
  async function charged25hAgo() {
    const key = newKey();
    await charge(key);
    const old = newKey({ ago: 25 * HOUR });
    Object.assign(books.intentsOf(key)[0]?.metadata ?? {}, { payment_id: old });
    stripe.forgetKeys();
    return old;
  }

  test("what was charged is found by a search", async () => {
    books.searchable = true;
    const key = await charged25hAgo();
    expect(await retrieve(key)).toMatchObject({ outcome: "approved" });
    expect(books.intentsOf(key)).toHaveLength(1);
  });

  test("what was not is closed as ever, and the old charge is not sent any more", async () => {
    const key = newKey({ ago: 25 * HOUR });
    expect(await retrieve(key)).toMatchObject({ outcome: "declined" });
    expect(statusesOf(key)).toEqual(["canceled"]);
    const before = stripe.requests.length;
    expect(await charge(key)).toMatchObject({ outcome: "unknown" });
    expect(stripe.requests.length).toBe(before);
  });
});

test("a key that was used in another currency is searched for, and unknown while the search is behind", async () => {
  const key = newKey();
  await charge(key);
  const through = open({ currency: "JPY" });
  expect(await retrieve(key, through)).toMatchObject({ outcome: "unknown" });
  books.searchable = true;
  expect(await retrieve(key, through)).toMatchObject({ outcome: "approved" });
});

test("a cancellation that fails leaves it open, and is done the next time", async () => {
  const key = newKey();
  stripe.fail(CANCEL, 500);
  expect(await charge(key, "pm_card_chargeDeclinedExpiredCard")).toMatchObject({ outcome: "unknown" });
  expect(await retrieve(key)).toMatchObject({ outcome: "declined", code: "expired_card" });
  expect(statusesOf(key)).toEqual(["canceled"]);
});
