/** What Stripe tells by itself: believed when it is signed and about a payment of ours, once, and never needed. */
import Stripe from "stripe";
import { expect, test } from "vitest";
import { OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentState } from "../../gen/shop/v1/payment_pb.ts";
import { value } from "../exact/audit.ts";
import { many } from "../exact/shop.ts";
import { createProxy } from "../support/proxy.ts";
import { STRIPE_KEY } from "../support/stripe.ts";
import { stripeShop, type Target, WEBHOOK_SECRET } from "../support/stripe-shop.ts";

const CONFIRM = /\/confirm$/;
const MAX_BODY = 1024 * 1024;

const { stripe, books, state, another, placed, pay, stateOf, paymentIdOf, due, notDue, settled } = await stripeShop();

const now = () => Math.floor(Date.now() / 1_000);

/** An event as Stripe sends it. */
const eventOf = (type: string, object: object) =>
  JSON.stringify({
    id: "evt_1",
    object: "event",
    api_version: "2026-09-30.endive",
    created: now(),
    type,
    data: { object },
  });

const sign = (payload: string, { secret = WEBHOOK_SECRET, timestamp = now() } = {}) =>
  Stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp });

async function send(body: string, { signature = sign(body), server = state.server, method = "POST" } = {}) {
  const response = await fetch(`http://127.0.0.1:${server.httpPort}/webhooks/stripe`, {
    method,
    headers: { "content-type": "application/json", ...(signature && { "stripe-signature": signature }) },
    ...(method === "POST" && { body }),
  });
  return { status: response.status, text: await response.text() };
}

/** A payment whose money was taken without an answer, and that nobody asks about for an hour. */
async function taken(): Promise<Target & { paymentId: string; intent: object }> {
  const target = await placed();
  stripe.hold(CONFIRM, "answers");
  const { payment } = await pay(target);
  const paymentId = payment?.id ?? "";
  await notDue();
  return { ...target, paymentId, intent: books.intentsOf(paymentId)[0] ?? {} };
}

async function paymentOf({ userId, paymentId }: { userId: string; paymentId: string }) {
  const key = { userId, paymentId };
  const [{ payment }, { events }] = await Promise.all([
    state.shop.payments.getPayment(key),
    state.shop.payments.listPaymentEvents(key),
  ]);
  return { state: payment?.state, events: events.length };
}

test("a pending payment is completed before anybody asks, once, however often and at once it is told", async () => {
  const target = await taken();
  const asked = stripe.requests.length;
  const event = eventOf("payment_intent.succeeded", target.intent);
  const answers = await many(16, () => send(event));
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
  expect(await paymentOf(target)).toEqual({ state: PaymentState.COMPLETED, events: 2 });
  expect(await stateOf(target)).toBe(OrderState.PAID);
  expect((await send(event)).status).toBe(200);
  expect(await paymentOf(target)).toEqual({ state: PaymentState.COMPLETED, events: 2 });
  expect(stripe.requests.length).toBe(asked);
});

test.each(["payment_intent.payment_failed", "payment_intent.canceled"])("%s: Stripe is asked at once", async (type) => {
  const target = await placed();
  stripe.hold(CONFIRM, "arrives");
  const { payment } = await pay(target);
  await notDue();
  const paymentId = payment?.id ?? "";
  expect((await send(eventOf(type, books.intentsOf(paymentId)[0] ?? {}))).status).toBe(200);
  await settled();
  expect(await paymentOf({ ...target, paymentId })).toEqual({ state: PaymentState.FAILED, events: 2 });
});

test("an event that is overtaken by another changes nothing: what Stripe answers counts", async () => {
  const target = await taken();
  expect((await send(eventOf("payment_intent.canceled", target.intent))).status).toBe(200);
  await settled();
  expect((await paymentOf(target)).state).toBe(PaymentState.COMPLETED);
  expect((await send(eventOf("payment_intent.payment_failed", target.intent))).status).toBe(200);
  expect(await paymentOf(target)).toEqual({ state: PaymentState.COMPLETED, events: 2 });
});

test("a refund that was pending is done as soon as Stripe says so", async () => {
  const target = await placed();
  const paymentId = (await pay(target)).payment?.id ?? "";
  books.refundStatus = "pending";
  await state.shop.payments.refundPayment({ requestId: "refund", userId: target.userId, paymentId, everything: true });
  await expect.poll(() => books.held(paymentId), { timeout: 10_000 }).toBe(0);
  await notDue();
  const refund = books.refunds.at(-1);
  if (refund) refund.status = "succeeded";
  expect((await send(eventOf("refund.updated", refund ?? {}))).status).toBe(200);
  await settled();
  expect((await paymentOf({ ...target, paymentId })).state).toBe(PaymentState.REFUNDED);
});

test("what Stripe has not signed, or not lately, is refused without a word", async () => {
  const target = await taken();
  const event = eventOf("payment_intent.succeeded", target.intent);
  const refused = { status: 400, text: "Bad Request\n" };
  expect(await send(event, { signature: "" })).toEqual(refused);
  expect(await send(event, { signature: "t=1,v1=00" })).toEqual(refused);
  expect(await send(event, { signature: sign(event, { secret: "whsec_other" }) })).toEqual(refused);
  expect(await send(event, { signature: sign(event, { timestamp: now() - 301 }) })).toEqual(refused);
  expect(await send(`${event} `, { signature: sign(event) })).toEqual(refused);
  expect(await send("no JSON")).toEqual(refused);
  expect((await paymentOf(target)).state).toBe(PaymentState.PENDING);
  expect((await send(event, { signature: sign(event, { timestamp: now() - 240 }) })).status).toBe(200);
  expect((await paymentOf(target)).state).toBe(PaymentState.COMPLETED);
});

test("what is about none of our payments, or says otherwise than we know, is taken and changes nothing", async () => {
  const target = await taken();
  const { intent, paymentId } = target;
  const others: [type: string, object: object][] = [
    ["payment_intent.succeeded", { ...intent, metadata: {} }],
    ["payment_intent.succeeded", { ...intent, metadata: { payment_id: "no id'; drop table payment" } }],
    ["payment_intent.succeeded", { ...intent, metadata: { payment_id: crypto.randomUUID() } }],
    ["payment_intent.canceled", { ...intent, metadata: { payment_id: crypto.randomUUID() } }],
    ["payment_intent.succeeded", { ...intent, amount: 699, amount_received: 699 }],
    ["payment_intent.succeeded", { ...intent, amount_received: 0 }],
    ["payment_intent.succeeded", { ...intent, currency: "jpy" }],
    ["payment_intent.created", intent],
    ["customer.created", { id: "cus_1", metadata: { payment_id: paymentId } }],
  ];
  for (const [type, object] of others) expect(await send(eventOf(type, object))).toEqual({ status: 200, text: "OK\n" });
  expect(await paymentOf(target)).toEqual({ state: PaymentState.PENDING, events: 1 });
  const asked = "select next_try_time < now() + interval '30 minutes' from payment where id = $1";
  expect(await value(state.database, asked, paymentId)).toBe(false);
  await due();
  await settled();
});

test("money that was taken for a payment that had failed goes back", async () => {
  books.refundStatus = "succeeded";
  const target = await placed();
  await expect(pay(target, "pm_card_visa_chargeDeclinedInsufficientFunds")).rejects.toThrow();
  const paymentId = await paymentIdOf(target);
  // What nobody should do: one more intent for the same payment.
  const { hostname: host, port } = new URL(stripe.url);
  const other = new Stripe(STRIPE_KEY, { protocol: "http", host, port });
  const params = {
    amount: 700,
    currency: "krw",
    allowed_payment_method_types: ["card"],
    metadata: { payment_id: paymentId },
  };
  const { id } = await other.paymentIntents.create(params as Stripe.PaymentIntentCreateParams, {
    idempotencyKey: paymentId + 2,
  });
  await other.paymentIntents.confirm(id, { payment_method: "pm_card_visa" });
  const taken = books.intentsOf(paymentId).find((one) => one.id === id) ?? {};
  expect(books.held(paymentId)).toBe(700);
  expect((await send(eventOf("payment_intent.succeeded", taken))).status).toBe(200);
  await settled();
  expect(books.held(paymentId)).toBe(0);
  expect(await paymentOf({ ...target, paymentId })).toEqual({ state: PaymentState.REFUNDED, events: 4 });
  expect(await stateOf(target)).toBe(OrderState.PENDING_PAYMENT);
});

test("only a POST is taken, and none larger than a request may be", async () => {
  expect((await send("", { method: "GET" })).status).toBe(405);
  expect((await send("x".repeat(MAX_BODY + 1))).status).toBe(413);
  expect((await send("x".repeat(MAX_BODY))).status).toBe(400);
  const padded = eventOf("customer.created", { padding: "x".repeat(MAX_BODY - 1_000) });
  expect((await send(padded)).status).toBe(200);
});

test("without the database it is told to come again, and then it is heard", async () => {
  const target = await taken();
  const proxy = await createProxy(state.url);
  const { server } = await another({}, proxy.url);
  const event = eventOf("payment_intent.succeeded", target.intent);
  proxy.refuse(true);
  proxy.cut();
  expect(await send(event, { server })).toEqual({ status: 503, text: "Service Unavailable\n" });
  proxy.refuse(false);
  await expect.poll(async () => (await send(event, { server })).status, { timeout: 10_000 }).toBe(200);
  expect(await paymentOf(target)).toEqual({ state: PaymentState.COMPLETED, events: 2 });
});

test("without its secret there is no webhook", async () => {
  const { server } = await another({ STRIPE_WEBHOOK_SECRET: "" });
  expect((await send(eventOf("payment_intent.succeeded", {}), { server })).status).toBe(404);
});
