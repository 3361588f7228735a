/** Money that goes back in parts: never more than was paid, and with each unit its share. */
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
  newCoupon,
  newUser,
  newVariant,
  type Stocks,
  serverOn,
  tokenOf,
} from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { run } from "../support/processes.ts";

const dataDir = mkdtempSync(join(tmpdir(), "doorbuster-refund-"));
afterAll(() => rmSync(dataDir, { recursive: true, force: true }));
const books = new SandboxGateway(join(dataDir, "sandbox-gateway"));
const env = { PAYMENT_GATEWAY: "sandbox", DATA_DIR: dataDir };
const stocks: Stocks = {};
const { BALANCE, EXTERNAL } = PaymentMethod;
const { COMPLETED, REFUNDED, REFUNDING } = PaymentState;

const script = join(import.meta.dirname, "../../scripts/payments.ts");
/** Payments whose money has gone back, and not through the gateway. */
const byHand = new Set<string>();

let url: string;
let database: Pool;
let shops: [Clients, Clients];
let shop: Clients;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
  const token = await tokenOf();
  const [one, two] = [await serverOn(url, env), await serverOn(url, env)];
  shops = [clientsOf(new GrpcClient(one, token).transport), clientsOf(new GrpcClient(two, token).transport)];
  shop = shops[0];
});

type Bought = { userId: string; orderId: string; paymentId: string };

/** An order of some units, paid; with `off`, by a coupon that takes so much off. */
async function bought(variantId: string, quantity: number, method: PaymentMethod, off = 0n): Promise<Bought> {
  const userId = await newUser(shop, 10_000n);
  const couponId = off > 0n ? await newCoupon(shop, 1, off) : "";
  const { issuedCoupon } = off > 0n ? await shop.coupons.claimCoupon({ requestId: fresh(), userId, couponId }) : {};
  const lines = [{ variantId, quantity }];
  const purchase = { requestId: fresh(), userId, lines, issuedCouponId: issuedCoupon?.id ?? "" };
  const { order } = await shop.orders.placeOrder(purchase);
  const orderId = order?.id ?? "";
  const { payment } = await shop.payments.payOrder({ requestId: fresh(), userId, orderId, method, paymentToken: "ok" });
  return { userId, orderId, paymentId: payment?.id ?? "" };
}

const refund = ({ userId, paymentId }: Bought, part: object = { everything: true }) =>
  shop.payments.refundPayment({ requestId: fresh(), userId, paymentId, ...part });
const orderOf = async ({ userId, orderId }: Bought) => (await shop.orders.getOrder({ userId, orderId })).order;
const paymentOf = async ({ userId, paymentId }: Bought) =>
  (await shop.payments.getPayment({ userId, paymentId })).payment;
const balanceOf = async ({ userId }: Bought) => (await shop.balances.getBalance({ userId })).balance?.amount;
const stockOf = (variantId: string) => value(database, "select stock from variant where id = $1", variantId);
const OPEN = "select count(*)::int from gateway_refund where state = 'PENDING'";
const settled = () => expect.poll(() => value(database, OPEN), { timeout: 20_000 }).toBe(0);

test("an amount is money alone: the order stays paid, and more than is left is refused", async () => {
  const variantId = await newVariant(shop, stocks, 700n, 10);
  const target = await bought(variantId, 1, BALANCE);
  const { payment, refundAmount } = await refund(target, { amount: 300n });
  expect(refundAmount).toBe(300n);
  expect(payment).toMatchObject({ state: COMPLETED, amount: 700n, refundedAmount: 300n, refundingAmount: 0n });
  expect(await balanceOf(target)).toBe(9_600n);
  expect((await orderOf(target))?.state).toBe(OrderState.PAID);
  expect(await stockOf(variantId)).toBe(9);
  expect(await tally([refund(target, { amount: 401n })])).toEqual({ PAYMENT_NOT_REFUNDABLE: 1 });
  await refund(target, { amount: 400n });
  expect(await paymentOf(target)).toMatchObject({ state: COMPLETED, refundedAmount: 700n });
  // The goods can still be given back, for nothing.
  const last = await refund(target);
  expect(last).toMatchObject({ refundAmount: 0n, payment: { state: REFUNDED, refundedAmount: 700n } });
  expect([await balanceOf(target), await stockOf(variantId)]).toEqual([10_000n, 10]);
});

test("units come back with their share of the total, and the last one cancels the order", async () => {
  const variantId = await newVariant(shop, stocks, 333n, 10);
  const target = await bought(variantId, 3, BALANCE, 100n);
  expect((await orderOf(target))?.total).toBe(899n);
  const lines = [{ variantId, quantity: 1 }];
  const amounts: bigint[] = [];
  amounts.push((await refund(target, { lines })).refundAmount);
  expect(await orderOf(target)).toMatchObject({
    state: OrderState.PAID,
    lines: [{ quantity: 3, returnedQuantity: 1 }],
  });
  expect(await stockOf(variantId)).toBe(8);
  const tooMany = refund(target, { lines: [{ variantId, quantity: 3 }] });
  expect(await tally([tooMany])).toEqual({ PAYMENT_NOT_REFUNDABLE: 1 });
  amounts.push((await refund(target, { lines })).refundAmount);
  amounts.push((await refund(target, { lines })).refundAmount);
  // 899 * 333 / 999 rounded down, then what is missing to 899 * 666 / 999 rounded down, then the rest.
  expect(amounts).toEqual([299n, 300n, 300n]);
  expect(await orderOf(target)).toMatchObject({ state: OrderState.CANCELLED, lines: [{ returnedQuantity: 3 }] });
  expect(await paymentOf(target)).toMatchObject({ state: REFUNDED, refundedAmount: 899n });
  expect([await balanceOf(target), await stockOf(variantId)]).toEqual([10_000n, 10]);
  const { issuedCoupons } = await shop.coupons.listIssuedCoupons({ userId: target.userId });
  expect(issuedCoupons).toMatchObject([{ orderId: "" }]);
});

test("of several lines each comes back for itself, or none of them", async () => {
  const prices = [700n, 0n, 333n];
  const ids = await Promise.all(prices.map((price) => newVariant(shop, stocks, price, 10)));
  const [a = "", free = "", b = ""] = ids;
  const userId = await newUser(shop, 10_000n);
  const wanted = ids.map((variantId, index) => ({ variantId, quantity: index + 1 }));
  const { payment, order } = await shop.orders.checkout({ requestId: fresh(), userId, lines: wanted });
  const target = { userId, orderId: order?.id ?? "", paymentId: payment?.id ?? "" };
  const stocksNow = () => Promise.all(ids.map(stockOf));
  const tooMany = refund(target, {
    lines: [
      { variantId: a, quantity: 1 },
      { variantId: b, quantity: 4 },
    ],
  });
  expect(await tally([tooMany])).toEqual({ PAYMENT_NOT_REFUNDABLE: 1 });
  expect(await stocksNow()).toEqual([9, 8, 7]);
  expect((await orderOf(target))?.lines.map(({ returnedQuantity }) => returnedQuantity)).toEqual([0, 0, 0]);
  const first = await refund(target, { lines: [{ variantId: b, quantity: 1 }] });
  expect(first).toMatchObject({ refundAmount: 333n, payment: { state: COMPLETED } });
  const second = await refund(target, {
    lines: [
      { variantId: free, quantity: 2 },
      { variantId: a, quantity: 1 },
    ],
  });
  expect(second).toMatchObject({ refundAmount: 700n, payment: { state: COMPLETED } });
  expect(await orderOf(target)).toMatchObject({
    state: OrderState.PAID,
    lines: [{ returnedQuantity: 1 }, { returnedQuantity: 2 }, { returnedQuantity: 1 }],
  });
  expect(await stocksNow()).toEqual([10, 10, 8]);
  const last = await refund(target, { lines: [{ variantId: b, quantity: 2 }] });
  expect(last).toMatchObject({ refundAmount: 666n, payment: { state: REFUNDED, refundedAmount: 1_699n } });
  expect([await balanceOf(target), ...(await stocksNow())]).toEqual([10_000n, 10, 10, 10]);
});

test("cancelling gives back what is left, and a coupon that has run out stays used", async () => {
  const variantId = await newVariant(shop, stocks, 500n, 10);
  const target = await bought(variantId, 4, BALANCE, 200n);
  await refund(target, { lines: [{ variantId, quantity: 1 }] });
  await refund(target, { amount: 50n });
  await database.query("update issued_coupon set valid_until = now() where user_id = $1", [target.userId]);
  await shop.orders.cancelOrder({ requestId: fresh(), userId: target.userId, orderId: target.orderId });
  expect(await paymentOf(target)).toMatchObject({ state: REFUNDED, refundedAmount: 1_800n });
  expect([await balanceOf(target), await stockOf(variantId)]).toEqual([10_000n, 10]);
  const { issuedCoupons } = await shop.coupons.listIssuedCoupons({ userId: target.userId });
  expect(issuedCoupons).toMatchObject([{ orderId: target.orderId }]);
});

test("what is refused: parts of nothing, of something else, of both kinds", async () => {
  const [variantId, other] = [await newVariant(shop, stocks, 500n, 10), await newVariant(shop, stocks, 500n, 10)];
  const target = await bought(variantId, 1, BALANCE);
  const units = (id: string, quantity = 1) => ({ variantId: id, quantity });
  const wrong: [object, string][] = [
    [{ lines: [units(other)] }, "VARIANT_NOT_FOUND"],
    [{ lines: [units(variantId), units(variantId)] }, "ARGUMENT_INVALID"],
    [{ amount: 1n, lines: [units(variantId)] }, "ARGUMENT_INVALID"],
    [{ amount: -1n }, "ARGUMENT_INVALID"],
    // Nothing must not be taken for everything.
    [{ amount: 0n }, "ARGUMENT_INVALID"],
    [{ lines: [] }, "ARGUMENT_INVALID"],
    [{ everything: true, amount: 1n }, "ARGUMENT_INVALID"],
    [{ lines: [units(variantId, 0)] }, "ARGUMENT_INVALID"],
  ];
  for (const [part, reason] of wrong)
    expect([part, await refund(target, part).then(String, reasonOf)]).toEqual([part, reason]);
  const stranger = { ...target, userId: await newUser(shop) };
  expect(await tally([refund(stranger, { amount: 1n })])).toEqual({ PAYMENT_NOT_FOUND: 1 });
  expect(await paymentOf(target)).toMatchObject({ state: COMPLETED, refundedAmount: 0n });
});

test("parts go back through the gateway, each once, also while others are on their way", async () => {
  const variantId = await newVariant(shop, stocks, 250n, 10);
  const target = await bought(variantId, 4, EXTERNAL);
  const first = await refund(target, { amount: 100n });
  expect(first).toMatchObject({ refundAmount: 100n, payment: { state: COMPLETED } });
  await refund(target, { lines: [{ variantId, quantity: 1 }] });
  await shop.orders.cancelOrder({ requestId: fresh(), userId: target.userId, orderId: target.orderId });
  expect((await paymentOf(target))?.state).toBe(REFUNDING);
  await settled();
  expect(await paymentOf(target)).toMatchObject({ state: REFUNDED, refundedAmount: 1_000n, refundingAmount: 0n });
  const entries = (await books.entries()).filter(({ key }) => key === target.paymentId);
  const given = entries.filter(({ kind }) => kind === "refund").map(({ amount }) => Number(amount));
  expect(given.toSorted((a, b) => a - b)).toEqual([100, 250, 650]);
  const { events } = await shop.payments.listPaymentEvents(target);
  expect(events.reduce((sum, { amount }) => sum + amount, 0n)).toBe(0n);
});

test("a gateway that refuses keeps the money on its way, and the order's story goes on", async () => {
  const variantId = await newVariant(shop, stocks, 250n, 10);
  const { userId } = await bought(variantId, 1, BALANCE);
  const { order } = await shop.orders.placeOrder({ requestId: fresh(), userId, lines: [{ variantId, quantity: 1 }] });
  const orderId = order?.id ?? "";
  const pay = { requestId: fresh(), userId, orderId, method: EXTERNAL, paymentToken: "no-refund" };
  const { payment } = await shop.payments.payOrder(pay);
  const target = { userId, orderId, paymentId: payment?.id ?? "" };
  await refund(target);
  const tries = () => value(database, "select tries from gateway_refund where payment_id = $1", target.paymentId);
  await expect.poll(tries, { timeout: 10_000 }).toBeGreaterThan(0);
  expect(await paymentOf(target)).toMatchObject({ state: REFUNDING, refundedAmount: 0n, refundingAmount: 250n });
  expect((await orderOf(target))?.state).toBe(OrderState.CANCELLED);
  const payments = (...args: string[]) =>
    run(process.execPath, [script, ...args], { env: { DATABASE_URL: url } }).exited;
  const { stdout } = await payments("list");
  const [, id = ""] = /^refund {3}([\da-f-]{36}) .* 250, \d+ tries/m.exec(stdout) ?? [];
  expect(await payments("settle-refund", id)).toMatchObject({ code: 1 });
  expect(await payments("settle-refund", id, "bank transfer 7")).toMatchObject({ code: 0, stderr: "" });
  expect(await payments("settle-refund", id, "bank transfer 7")).toMatchObject({ code: 1 });
  expect(await paymentOf(target)).toMatchObject({ state: REFUNDED, refundedAmount: 250n, refundingAmount: 0n });
  const { events } = await shop.payments.listPaymentEvents(target);
  expect(events[0]).toMatchObject({ amount: -250n, cause: "settled by hand", gatewayReference: "bank transfer 7" });
  byHand.add(target.paymentId);
  expect(await payments("list")).toMatchObject({ code: 0, stdout: "nothing waits for the payment gateway\n" });
});

test.each([BALANCE, EXTERNAL])(
  "64 callers of two processes refund one payment at once (method %s): as much as was paid",
  async (method) => {
    const variantId = await newVariant(shop, stocks, 100n, 100);
    const target = await bought(variantId, 10, method);
    const calls = Array.from({ length: 64 }, (_, index) => {
      const part = index % 4 === 0 ? { lines: [{ variantId, quantity: 1 }] } : { amount: 30n };
      const { userId, paymentId } = target;
      const { payments } = shops[index % 2] as Clients;
      return payments.refundPayment({ requestId: fresh(), userId, paymentId, ...part }).then(
        ({ refundAmount }) => refundAmount,
        (error) => void expect(reasonOf(error)).toBe("PAYMENT_NOT_REFUNDABLE"),
      );
    });
    const amounts = await Promise.all(calls);
    // More units are asked back than there are: with the last one goes what is left.
    const sum = amounts.reduce<bigint>((total, amount) => total + (amount ?? 0n), 0n);
    expect(sum).toBe(1_000n);
    if (method === BALANCE) expect(await balanceOf(target)).toBe(9_000n + sum);
    const { refundedAmount = 0n, refundingAmount = 0n } = (await paymentOf(target)) ?? {};
    expect(refundedAmount + refundingAmount).toBe(sum);
  },
);

test("the same request again gives back nothing more", async () => {
  const variantId = await newVariant(shop, stocks, 100n, 100);
  const target = await bought(variantId, 1, BALANCE);
  const { userId, paymentId } = target;
  const request = { requestId: fresh(), userId, paymentId, amount: 40n };
  const answers = await many(8, () => shop.payments.refundPayment(request));
  expect(new Set(answers.map(({ payment }) => payment?.refundedAmount))).toEqual(new Set([40n]));
  expect(await balanceOf(target)).toBe(9_940n);
});

test("in the end everything adds up", async () => {
  await settled();
  await expectExact(database, stocks);
  const sql = `select id::text, (amount - refunded_amount)::int as held from payment where method = 'EXTERNAL'`;
  const { rows } = await database.query<{ id: string; held: number }>(sql);
  const held = new Map(rows.map(({ id }) => [id, 0]));
  for (const { kind, key, amount } of await books.entries()) {
    held.set(key, (held.get(key) ?? 0) + Number(amount) * (kind === "charge" ? 1 : -1));
  }
  for (const id of byHand) held.set(id, (held.get(id) ?? 0) - 250);
  expect(held).toEqual(new Map(rows.map((row) => [row.id, row.held])));
});
