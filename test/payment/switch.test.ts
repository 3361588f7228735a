/** Another gateway than the one that has the money, or none: nobody guesses what became of it. */
import { expect, test } from "vitest";
import { Orders } from "../../src/order/order.service.ts";
import { switchGateway } from "../../src/payment/external.ts";
import { Payments } from "../../src/payment/payment.service.ts";
import { callOf, ORDER_TTL } from "../exact/verbs.ts";
import { Till } from "./till.ts";

const till = await Till.open();
const { db, orm } = till.replica;
const start = (name: string) => switchGateway(orm.em.fork(), name);
const external = (paymentToken: string) => ({ method: "EXTERNAL" as const, paymentToken });

test("the service does not start with it while something is on its way", async () => {
  await start("sandbox");
  const target = await till.place(1);
  await till.process().payments.pay(callOf(), { ...target, ...external("reset") });
  await expect(start("off")).rejects.toThrow("PAYMENT_GATEWAY is off, but 1 payments or refunds wait for sandbox");
  await expect(start("stripe test")).rejects.toThrow("wait for sandbox");
  await start("sandbox");
  await till.settle();
  await till.replica.orders.cancel(callOf(), target);
  await expect(start("stripe test")).rejects.toThrow("wait for sandbox");
  await till.settle();
  await start("stripe test");
  await start("off");
  expect((await till.database.query("select name from payment_gateway")).rows).toEqual([{ name: "stripe test" }]);
});

test("without one, what it was paid for is neither cancelled nor refunded, but for nothing", async () => {
  const target = await till.place(1);
  const { id: paymentId } = await till.process().payments.pay(callOf(), { ...target, ...external("ok") });
  const [orders, payments] = [new Orders(db, ORDER_TTL), new Payments(db)];
  const refused = { reason: "METHOD_NOT_SERVED" };
  const { userId } = target;
  await expect(orders.cancel(callOf(), target)).rejects.toMatchObject(refused);
  await expect(payments.refund(callOf(), { userId, paymentId, amount: 1n })).rejects.toMatchObject(refused);
  await expect(payments.refund(callOf(), { userId, paymentId })).rejects.toMatchObject(refused);
  expect(await till.stateOf(target)).toBe("PAID");
  await till.process().payments.refund(callOf(), { userId, paymentId, amount: 700n });
  await till.settle();
  await orders.cancel(callOf(), target);
  expect(await till.stateOf(target)).toBe("CANCELLED");
  await till.expectExact();
});
