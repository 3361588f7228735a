/** The service with Stripe behind it: money is taken once, whatever is silent, late, or dies in between. */
import { expect, test } from "vitest";
import { OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentState } from "../../gen/shop/v1/payment_pb.ts";
import { expectExact } from "../exact/audit.ts";
import { reasonOf, tally } from "../exact/clients.ts";
import { fresh } from "../exact/shop.ts";
import { stripeShop } from "../support/stripe-shop.ts";

const CREATE = /^POST \/v1\/payment_intents$/;
const CONFIRM = /\/confirm$/;

const { stripe, books, stocks, state, another, placed, pay, stateOf, paymentIdOf, due, settled } = await stripeShop();

test("approved: the order is paid, and its payment tells the intent", async () => {
  const target = await placed();
  const { payment } = await pay(target);
  expect(payment).toMatchObject({ state: PaymentState.COMPLETED, amount: 700n });
  expect(await stateOf(target)).toBe(OrderState.PAID);
  const key = { userId: target.userId, paymentId: payment?.id ?? "" };
  const [completed] = (await state.shop.payments.listPaymentEvents(key)).events;
  expect(completed?.gatewayReference).toBe(books.intentsOf(key.paymentId)[0]?.id);
  expect(books.held(key.paymentId)).toBe(700);
});

test("declined: nothing is taken, and another card pays", async () => {
  const target = await placed();
  for (const token of ["pm_card_visa_chargeDeclinedInsufficientFunds", "pm_card_authenticationRequired", "pm_none"]) {
    expect(await tally([pay(target, token)])).toEqual({ PAYMENT_DECLINED: 1 });
  }
  expect((await pay(target)).payment?.state).toBe(PaymentState.COMPLETED);
});

test("silence after the money was taken: pending, then paid", async () => {
  const target = await placed();
  stripe.hold(CONFIRM, "answers");
  const { payment } = await pay(target);
  expect(payment?.state).toBe(PaymentState.PENDING);
  await due();
  await settled();
  expect(await stateOf(target)).toBe(OrderState.PAID);
  expect(books.held(payment?.id ?? "")).toBe(700);
});

test("silence before it: pending, then payable by another card, and what is late takes nothing", async () => {
  for (const on of [CREATE, CONFIRM]) {
    const target = await placed();
    const late = stripe.hold(on, "arrives");
    const { payment } = await pay(target);
    expect(payment?.state).toBe(PaymentState.PENDING);
    await due();
    await settled();
    expect(await stateOf(target)).toBe(OrderState.PENDING_PAYMENT);
    late.release();
    expect((await pay(target)).payment?.state).toBe(PaymentState.COMPLETED);
    expect(books.held(payment?.id ?? "")).toBe(0);
  }
});

test("a charge that another process has closed on its way is declined", async () => {
  const slow = await another({ PAYMENT_TIMEOUT: "20s" });
  const target = await placed();
  const late = stripe.hold(CONFIRM, "arrives");
  const answer = tally([pay(target, "pm_card_visa", slow.shop)]);
  await late.reached;
  await due();
  await settled();
  late.release();
  expect(await answer).toEqual({ PAYMENT_DECLINED: 1 });
  expect(books.held(await paymentIdOf(target))).toBe(0);
  slow.server.kill("SIGKILL");
});

test("a process that dies at any moment of a charge leaves what another one settles", async () => {
  const moments = [
    [CREATE, "arrives", OrderState.PENDING_PAYMENT],
    [CREATE, "answers", OrderState.PENDING_PAYMENT],
    [CONFIRM, "arrives", OrderState.PENDING_PAYMENT],
    [CONFIRM, "answers", OrderState.PAID],
  ] as const;
  const doomed = await another({ PAYMENT_TIMEOUT: "60s" });
  const calls: Promise<unknown>[] = [];
  const targets = [];
  for (const [on, at] of moments) {
    const target = await placed();
    const { reached } = stripe.hold(on, at);
    calls.push(pay(target, "pm_card_visa", doomed.shop).catch(reasonOf));
    await reached;
    targets.push(target);
  }
  doomed.server.kill("SIGKILL");
  await Promise.all(calls);
  await due();
  await settled();
  expect(await Promise.all(targets.map(stateOf))).toEqual(moments.map(([, , end]) => end));
});

test("a refund goes back once, and one that is pending is asked about until it is done", async () => {
  const target = await placed();
  const { payment } = await pay(target);
  const key = { userId: target.userId, paymentId: payment?.id ?? "" };
  books.refundStatus = "pending";
  await state.shop.payments.refundPayment({ requestId: fresh(), ...key, everything: true });
  await expect.poll(() => books.held(key.paymentId), { timeout: 10_000 }).toBe(0);
  const { payment: waiting } = await state.shop.payments.getPayment(key);
  expect(waiting?.state).toBe(PaymentState.REFUNDING);
  books.refundStatus = "succeeded";
  for (const refund of books.refunds) refund.status = "succeeded";
  await due();
  await settled();
  const { payment: refunded } = await state.shop.payments.getPayment(key);
  expect(refunded).toMatchObject({ state: PaymentState.REFUNDED, refundedAmount: 700n });
  expect(books.refunds.filter(({ metadata }) => metadata.payment_id === key.paymentId)).toHaveLength(1);
});

test("an order that is cancelled while Stripe is silent gets its money back", async () => {
  const target = await placed();
  stripe.hold(CONFIRM, "answers");
  const { payment } = await pay(target);
  await state.shop.orders.cancelOrder({ requestId: fresh(), ...target });
  await due();
  await settled();
  expect(books.held(payment?.id ?? "")).toBe(0);
  await expectExact(state.database, stocks);
});

test("Stripe's failures leave a payment pending until Stripe answers", async () => {
  const target = await placed();
  stripe.fail(CONFIRM, 429);
  expect((await pay(target)).payment?.state).toBe(PaymentState.PENDING);
  stripe.fail(CREATE, 429);
  await due();
  await state.server.logged(/"doing":"retrieve"[^\n]*"status":429/);
  expect(
    (await state.shop.payments.getPayment({ userId: target.userId, paymentId: await paymentIdOf(target) })).payment,
  ).toMatchObject({ state: PaymentState.PENDING });
  await due();
  await settled();
  expect(await stateOf(target)).toBe(OrderState.PENDING_PAYMENT);
});

test("the log of all this has no secret in it, and nothing of the cards", async () => {
  const { stderr, stdout } = await state.server.stop();
  expect(stderr).toMatch(/a request to Stripe failed/);
  expect(stderr + stdout).not.toMatch(/hunter2|pm_|No such/);
});
