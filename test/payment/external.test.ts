/** Payments through a gateway: the money is taken once, whatever is silent, late, or dies in between. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Pool } from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod, PaymentState } from "../../gen/shop/v1/payment_pb.ts";
import { SandboxGateway } from "../../src/payment/sandbox.ts";
import { expectExact, openDatabase, value } from "../exact/audit.ts";
import { GrpcClient, reasonOf, tally } from "../exact/clients.ts";
import {
  type Clients,
  clientsOf,
  fresh,
  many,
  newUser,
  newVariant,
  type Stocks,
  serverOn,
  tokenOf,
} from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import type { Server } from "../support/processes.ts";

const dataDir = mkdtempSync(join(tmpdir(), "doorbuster-external-"));
afterAll(() => rmSync(dataDir, { recursive: true, force: true }));
const books = new SandboxGateway(join(dataDir, "sandbox-gateway"));
const env = { PAYMENT_GATEWAY: "sandbox", PAYMENT_TIMEOUT: "300ms", DATA_DIR: dataDir };
const stocks: Stocks = {};
const method = PaymentMethod.EXTERNAL;

let url: string;
let server: Server;
let database: Pool;
let shop: Clients;
let variantId: string;

beforeAll(async () => {
  url = await createDatabase();
  server = await serverOn(url, env);
  database = openDatabase(url);
  shop = clientsOf(new GrpcClient(server, await tokenOf()).transport);
  variantId = await newVariant(shop, stocks, 700n, 1_000);
});

async function placed(money = 0n) {
  const userId = await newUser(shop, money);
  const { order } = await shop.orders.placeOrder({ requestId: fresh(), userId, lines: [{ variantId, quantity: 1 }] });
  return { userId, orderId: order?.id ?? "" };
}

const stateOf = async (target: { userId: string; orderId: string }) =>
  (await shop.orders.getOrder(target)).order?.state;

/** Amounts charged and given back at the gateway for payments of these orders; it has charged for no payment that is unknown. */
async function moved(orderIds: readonly string[]) {
  const { rows } = await database.query("select id::text, order_id::text from payment where order_id = any($1)", [
    orderIds,
  ]);
  const orderOf = new Map(rows.map(({ id, order_id }) => [id, order_id]));
  const approved = (await books.entries()).filter((entry) => entry.approved);
  const known = await database.query("select id::text from payment");
  expect(known.rows.map(({ id }) => id)).toEqual(expect.arrayContaining(approved.map(({ key }) => key)));
  const entries = approved.filter(({ key }) => orderOf.has(key));
  const held = new Map(orderIds.map((id) => [id, 0n]));
  for (const { kind, key, amount } of entries) {
    const id = orderOf.get(key) ?? "";
    held.set(id, (held.get(id) ?? 0n) + (kind === "charge" ? BigInt(amount) : -BigInt(amount)));
  }
  return held;
}

const UNSETTLED = `
  select (select count(*) from payment where state = 'PENDING')::int
       + (select count(*) from gateway_refund where state = 'PENDING')::int`;
const unsettled = () => value(database, UNSETTLED);
const settled = () => expect.poll(unsettled, { timeout: 30_000 }).toBe(0);

test("approved: the order is paid, and the same request charges nothing more", async () => {
  const target = await placed();
  const pay = { requestId: fresh(), ...target, method, paymentToken: "ok" };
  const { payment } = await shop.payments.payOrder(pay);
  expect(payment).toMatchObject({ state: PaymentState.COMPLETED, amount: 700n });
  expect((await shop.payments.payOrder(pay)).payment).toEqual(payment);
  expect(await stateOf(target)).toBe(OrderState.PAID);
  const key = { userId: target.userId, paymentId: payment?.id ?? "" };
  const { events } = await shop.payments.listPaymentEvents(key);
  expect(events).toMatchObject([
    { state: PaymentState.COMPLETED, amount: 700n, gatewayReference: expect.stringMatching(/^sandbox_/) },
    { state: PaymentState.PENDING, amount: 0n, gatewayReference: "" },
  ]);
  expect((await moved([target.orderId])).get(target.orderId)).toBe(700n);
});

test("declined: refused each time that it is sent, and the order can be paid by another card", async () => {
  const target = await placed();
  const pay = { requestId: fresh(), ...target, method, paymentToken: "decline" };
  for (let turn = 0; turn < 2; turn += 1)
    expect(await tally([shop.payments.payOrder(pay)])).toEqual({ PAYMENT_DECLINED: 1 });
  const tried = "select count(*)::int from payment where order_id = $1";
  expect(await value(database, tried, target.orderId)).toBe(1);
  const { payment } = await shop.payments.payOrder({ ...pay, requestId: fresh(), paymentToken: "ok" });
  expect(payment?.state).toBe(PaymentState.COMPLETED);
});

test("silence is pending, keeps other payments out, and is settled by asking", async () => {
  const target = await placed(700n);
  const pay = { requestId: fresh(), ...target, method, paymentToken: "hang-approved" };
  expect((await shop.payments.payOrder(pay)).payment?.state).toBe(PaymentState.PENDING);
  expect((await shop.payments.payOrder(pay)).payment?.state).toBe(PaymentState.PENDING);
  const others = [method, PaymentMethod.BALANCE].map((other) =>
    shop.payments.payOrder({ ...pay, requestId: fresh(), method: other }),
  );
  expect(await tally(others)).toEqual({ PAYMENT_IN_PROGRESS: 2 });
  await settled();
  expect((await shop.payments.payOrder(pay)).payment?.state).toBe(PaymentState.COMPLETED);
  expect(await stateOf(target)).toBe(OrderState.PAID);
});

test("an approval after the order was cancelled goes back by itself", async () => {
  const target = await placed();
  const pay = { requestId: fresh(), ...target, method, paymentToken: "hang-approved" };
  const { payment } = await shop.payments.payOrder(pay);
  await shop.orders.cancelOrder({ requestId: fresh(), ...target });
  await settled();
  const key = { userId: target.userId, paymentId: payment?.id ?? "" };
  expect((await shop.payments.getPayment(key)).payment).toMatchObject({
    state: PaymentState.REFUNDED,
    refundedAmount: 700n,
  });
  const { events } = await shop.payments.listPaymentEvents(key);
  expect(events.map(({ state }) => state)).toEqual([
    PaymentState.REFUNDED,
    PaymentState.REFUNDING,
    PaymentState.PENDING,
  ]);
  expect((await moved([target.orderId])).get(target.orderId)).toBe(0n);
});

test("a paid order that is cancelled or refunded goes back through the gateway, once", async () => {
  const targets = [await placed(), await placed()];
  const paid = await Promise.all(
    targets.map(async (target) => {
      const { payment } = await shop.payments.payOrder({ requestId: fresh(), ...target, method, paymentToken: "ok" });
      return { userId: target.userId, paymentId: payment?.id ?? "" };
    }),
  );
  const [cancelled, refunded] = [targets[0] ?? { userId: "", orderId: "" }, paid[1] ?? { userId: "", paymentId: "" }];
  await shop.orders.cancelOrder({ requestId: fresh(), ...cancelled });
  const { payment } = await shop.payments.refundPayment({ requestId: fresh(), ...refunded, everything: true });
  expect(payment).toMatchObject({ state: PaymentState.REFUNDING, refundedAmount: 0n });
  const again = shop.payments.refundPayment({ requestId: fresh(), ...refunded, everything: true });
  expect(await tally([again])).toEqual({ PAYMENT_NOT_REFUNDABLE: 1 });
  await settled();
  for (const key of paid) {
    const state = PaymentState.REFUNDED;
    expect((await shop.payments.getPayment(key)).payment).toMatchObject({ state, refundedAmount: 700n });
  }
  expect([...(await moved(targets.map(({ orderId }) => orderId))).values()]).toEqual([0n, 0n]);
});

test("a process that dies before, while or after the gateway is asked leaves what another one settles", async () => {
  const dying = await serverOn(url, { ...env, PAYMENT_TIMEOUT: "60s" });
  const doomed = clientsOf(new GrpcClient(dying, await tokenOf()).transport);
  const targets = await many(4, () => placed());
  const tokens = ["hang", "hang-approved", "late", "hang"];
  const calls = targets.map((target, index) =>
    doomed.payments
      .payOrder({ requestId: fresh(), ...target, method, paymentToken: tokens[index] ?? "" })
      .then(() => "OK", reasonOf),
  );
  await expect.poll(unsettled).toBe(4);
  await expect
    .poll(async () => (await moved(targets.map(({ orderId }) => orderId))).get(targets[1]?.orderId ?? ""))
    .toBe(700n);
  dying.kill("SIGKILL");
  await Promise.all(calls);
  // As if the time in which the gateway may answer had passed.
  await database.query("update payment set next_try_time = now() where state = 'PENDING'");
  await settled();
  const pending = OrderState.PENDING_PAYMENT;
  expect(await Promise.all(targets.map(stateOf))).toEqual([pending, OrderState.PAID, pending, pending]);
});

test("64 callers of two processes pay, cancel, refund and expire ten orders at once: each ends in one state, the money in its place", async () => {
  const second = await serverOn(url, env);
  const shops = [shop, clientsOf(new GrpcClient(second, await tokenOf()).transport)] as const;
  const targets = await many(10, () => placed(7_000n));
  const ids = targets.map(({ orderId }) => orderId);
  // Their time passes while they are being paid and cancelled.
  await database.query("update shop_order set expire_time = now() + interval '2 seconds' where id = any($1)", [ids]);
  const legal = new Set([
    ...["OK", "ORDER_NOT_PAYABLE", "ORDER_NOT_CANCELLABLE", "PAYMENT_IN_PROGRESS", "PAYMENT_DECLINED"],
    ...["PAYMENT_NOT_REFUNDABLE", "INSUFFICIENT_BALANCE"],
  ]);
  const outcomes = new Set<string>();
  const note = (call: Promise<unknown>) =>
    call.then(() => "OK", reasonOf).then((outcome) => void outcomes.add(outcome));
  const act = async (index: number, round: number) => {
    const nth = (index + round) % 10;
    const target = targets[nth] as (typeof targets)[number];
    const { orders, payments } = shops[index % 2] as Clients;
    const kind = Math.floor(index / 10 + round) % 4;
    // Some are never cancelled, and some are never paid, or all would end alike.
    if (kind === 3 && nth < 4) return note(orders.cancelOrder({ requestId: fresh(), ...target }));
    const token = nth >= 8 ? "hang" : ["ok", "decline", "hang-approved", "reset"][(index + round) % 4];
    const how = kind === 1 && nth % 2 === 0 && nth < 8 ? PaymentMethod.BALANCE : method;
    const pay = { requestId: fresh(), ...target, method: how, paymentToken: token ?? "" };
    const paid = payments.payOrder(pay);
    await note(paid);
    const { payment } = await paid.catch(() => ({ payment: undefined }));
    if (payment?.state !== PaymentState.COMPLETED) return;
    const key = { userId: target.userId, paymentId: payment.id };
    const part = nth === 7 ? { everything: true } : { amount: 400n };
    await many(2, () => note(payments.refundPayment({ requestId: fresh(), ...key, ...part })));
  };
  await many(64, async (index) => {
    for (let round = 0; round < 8; round += 1) await act(index, round);
  });
  const open = () =>
    value(database, "select count(*)::int from shop_order where state = 'PENDING_PAYMENT' and id = any($1)", ids);
  await expect.poll(open, { timeout: 20_000 }).toBe(0);
  await settled();
  expect([...outcomes].filter((outcome) => !legal.has(outcome))).toEqual([]);
  const held = await moved(ids);
  for (const { orderId } of targets) {
    const sql = `select coalesce(sum(amount - refunded_amount), 0)::int from payment
                  where order_id = $1 and method = 'EXTERNAL' and state = 'COMPLETED'`;
    expect(Number(held.get(orderId))).toBe(await value(database, sql, orderId));
  }
  const { PAID, CANCELLED, EXPIRED } = OrderState;
  const states = await Promise.all(targets.map(stateOf));
  expect(new Set(states)).toEqual(new Set([PAID, CANCELLED, EXPIRED]));
  await expectExact(database, stocks);
});

test("a gateway that hangs delays nobody else", async () => {
  const patient = await serverOn(url, { ...env, PAYMENT_TIMEOUT: "20s" });
  const other = clientsOf(new GrpcClient(patient, await tokenOf()).transport);
  const targets = await many(40, () => placed());
  let answered = 0;
  const hanging = targets.map((target) =>
    other.payments
      .payOrder({ requestId: fresh(), ...target, method, paymentToken: "hang" })
      .catch(reasonOf)
      .finally(() => (answered += 1)),
  );
  await expect.poll(unsettled).toBe(40);
  await many(40, () => newUser(other, 10n));
  expect(answered).toBe(0);
  patient.kill("SIGKILL");
  await Promise.all(hanging);
});
