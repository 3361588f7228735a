/** Another gateway than the one that has the money, or none: it is not asked, and nobody guesses. */
import { expect, test } from "vitest";
import { Orders } from "../../src/order/order.service.ts";
import { External } from "../../src/payment/external.ts";
import { Payments } from "../../src/payment/payment.service.ts";
import { SandboxGateway } from "../../src/payment/sandbox.ts";
import { unsettledElsewhere } from "../../src/payment/unsettled.ts";
import { callOf, ORDER_TTL } from "../exact/verbs.ts";
import { type Target, Till } from "./till.ts";

const till = await Till.open();
const { db, orm } = till.replica;
const never = new AbortController().signal;
const external = (paymentToken: string) => ({ method: "EXTERNAL" as const, paymentToken });
const elsewhere = (name: string) => unsettledElsewhere(orm.em.fork(), name);
const paymentOf = async (target: Target) => (await till.paymentsOf(target))[0];

/** Another gateway, whose books are empty, is asked about all that is due. */
async function askAnother(): Promise<External> {
  const gateway = new SandboxGateway(`${till.directory}-other`);
  const other = new External(db, { gateway, name: "another", currency: "KRW", timeoutMs: 1_000 });
  till.pass(60_000);
  await other.reconcile(100, never);
  return other;
}

test("what is on its way through one is not settled by another", async () => {
  const target = await till.place(1);
  const { id } = await till.process().payments.pay(callOf(), { ...target, ...external("reset") });
  const other = await askAnother();
  await other.hear(id, { outcome: "declined", reference: null, code: "unknown_to_it" });
  expect(await paymentOf(target)).toMatchObject({ state: "PENDING", tries: 0, gateway: "sandbox" });
  const waiting = [{ gateway: "sandbox", open: 1 }];
  expect([await elsewhere("another"), await elsewhere("off"), await elsewhere("sandbox")]).toEqual([
    waiting,
    waiting,
    [],
  ]);
  await till.settle();
  expect(await paymentOf(target)).toMatchObject({ state: "COMPLETED" });
  await till.expectExact();
});

test("a refund is made by the gateway that has the money", async () => {
  const target = await till.place(1);
  await till.process().payments.pay(callOf(), { ...target, ...external("ok") });
  await till.replica.orders.cancel(callOf(), target);
  await askAnother();
  expect(await paymentOf(target)).toMatchObject({ state: "REFUNDING" });
  expect(await elsewhere("another")).toEqual([{ gateway: "sandbox", open: 1 }]);
  await till.settle();
  expect(await paymentOf(target)).toMatchObject({ state: "REFUNDED" });
  await till.expectExact();
});

test.each([undefined, "another"])(
  "through %s, what one has the money of is neither cancelled nor refunded",
  async (name) => {
    const target = await till.place(1);
    const { id: paymentId } = await till.process().payments.pay(callOf(), { ...target, ...external("ok") });
    const orders = new Orders(db, ORDER_TTL, name);
    const payments = new Payments(db, name === undefined ? undefined : await askAnother());
    const refused = { reason: "METHOD_NOT_SERVED" };
    const { userId } = target;
    await expect(orders.cancel(callOf(), target)).rejects.toMatchObject(refused);
    await expect(payments.refund(callOf(), { userId, paymentId, amount: 1n })).rejects.toMatchObject(refused);
    await expect(payments.refund(callOf(), { userId, paymentId })).rejects.toMatchObject(refused);
    expect(await till.stateOf(target)).toBe("PAID");
    await till.process().payments.refund(callOf(), { userId, paymentId, amount: 700n });
    await till.settle();
    // All of it is back: there is nothing that anybody would have to be asked for.
    await orders.cancel(callOf(), target);
    expect(await till.stateOf(target)).toBe("CANCELLED");
    await till.expectExact();
  },
);
