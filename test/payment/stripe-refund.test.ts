/** Refunds at Stripe: once a key, for as long as the refund can be found. */
import { beforeEach, expect, test } from "vitest";
import { startStripe } from "../support/stripe.ts";
import { gatewayAt } from "../support/stripe-gateway.ts";

const stripe = await startStripe();
const { books } = stripe;
const { failures, newKey, charge, refund } = gatewayAt(stripe);

beforeEach(() => {
  books.refundStatus = "succeeded";
});

test("once a key, also after Stripe has forgotten it; parts of a charge up to all of it", async () => {
  const key = newKey();
  await charge(key);
  const part = await refund(key, "part", 300n);
  expect(part).toEqual({ outcome: "refunded", reference: expect.stringMatching(/^re_/) });
  expect(await refund(key, "part", 300n)).toEqual(part);
  stripe.forgetKeys();
  expect(await refund(key, "part", 300n)).toEqual(part);
  expect(await refund(key, "rest", 400n)).toMatchObject({ outcome: "refunded" });
  expect(books.held(key)).toBe(0);
  expect(books.refunds.filter(({ metadata }) => metadata.payment_id === key)).toHaveLength(2);
});

test("an answer that is lost: the refund is found", async () => {
  const key = newKey();
  await charge(key);
  stripe.hold(/POST \/v1\/refunds/, "answers");
  expect(await refund(key, `${key}-r`, 700n, 200)).toMatchObject({ outcome: "unknown" });
  stripe.forgetKeys();
  expect(await refund(key, `${key}-r`)).toMatchObject({ outcome: "refunded" });
  expect(books.held(key)).toBe(0);
});

test("refused when somebody has given it back already", async () => {
  const key = newKey();
  await charge(key);
  await refund(key, `${key}-dashboard`);
  expect(await refund(key, `${key}-refund`)).toEqual({ outcome: "refused", code: "charge_already_refunded" });
  expect(failures).toMatchObject([{ doing: "refund", code: "charge_already_refunded" }]);
});

test("pending is not known yet, and may fail", async () => {
  const key = newKey();
  await charge(key);
  books.refundStatus = "pending";
  expect(await refund(key, `${key}-refund`)).toMatchObject({ outcome: "unknown" });
  const made = books.refunds.at(-1) ?? {};
  Object.assign(made, { status: "failed", failure_reason: "expired_or_canceled_card" });
  expect(await refund(key, `${key}-refund`)).toEqual({ outcome: "refused", code: "expired_or_canceled_card" });
  Object.assign(made, { status: "succeeded" });
  expect(await refund(key, `${key}-refund`)).toMatchObject({ outcome: "refunded" });
});

test("429 and silence are unknown", async () => {
  const key = newKey();
  await charge(key);
  stripe.fail(/POST \/v1\/refunds/, 429);
  expect(await refund(key, `${key}-refund`)).toMatchObject({ outcome: "unknown" });
  expect(await refund(key, `${key}-refund`)).toMatchObject({ outcome: "refunded" });
});

test("two that ask at once with one key give the money back once", async () => {
  const key = newKey();
  await charge(key);
  const answers = await Promise.all([1, 2].map(() => refund(key, `${key}-part`, 300n)));
  expect(answers[0]).toMatchObject({ outcome: "refunded" });
  expect(answers[1]).toEqual(answers[0]);
  expect(books.held(key)).toBe(400);
});
