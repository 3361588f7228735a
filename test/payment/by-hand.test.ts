/** A refund that was settled by hand while the gateway made it: the money went twice, and somebody has to hear of it. */
import { expect, test } from "vitest";
import { External, type Trouble } from "../../src/payment/external.ts";
import type { PaymentGateway } from "../../src/payment/gateway.ts";
import { listUnsettled, settleRefund } from "../../src/payment/unsettled.ts";
import { callOf } from "../exact/verbs.ts";
import { Till } from "./till.ts";

const till = await Till.open();
const never = new AbortController().signal;

/** A process whose gateway does something else before it makes a refund. */
function processWith(before: () => Promise<unknown>) {
  const troubles: Trouble[] = [];
  const real = till.gateway;
  const gateway: PaymentGateway = {
    charge: (charge, signal) => real.charge(charge, signal),
    retrieve: (key) => real.retrieve(key),
    refund: async (refund) => {
      await before();
      return real.refund(refund);
    },
  };
  const observer = { unsettled: (trouble: Trouble) => void troubles.push(trouble) };
  const external = new External(till.replica.db, {
    gateway,
    name: "sandbox",
    currency: "KRW",
    timeoutMs: 10_000,
    observer,
  });
  return { external, troubles };
}

/** A refund of a paid order that is on its way. Returns its id. */
async function onItsWay(): Promise<string> {
  const target = await till.place(1);
  await till.process().payments.pay(callOf(), { ...target, method: "EXTERNAL", paymentToken: "ok" });
  await till.replica.orders.cancel(callOf(), target);
  const [refund] = await listUnsettled(till.replica.orm.em.fork(), 10);
  return refund?.id ?? "";
}

test("is told", async () => {
  const id = await onItsWay();
  const { external, troubles } = processWith(() => settleRefund(till.replica.db, id, "bank transfer 7"));
  await external.reconcile(10, never);
  expect(troubles).toMatchObject([{ refundId: id, error: expect.stringContaining("the gateway has made it, too") }]);
});

test("is not told when it was another process that has heard the same", async () => {
  await onItsWay();
  const { external, troubles } = processWith(async () => {
    till.pass(60 * 60_000);
    await till.process().external.reconcile(10, never);
  });
  await external.reconcile(10, never);
  expect(troubles).toEqual([]);
  expect(await listUnsettled(till.replica.orm.em.fork(), 10)).toEqual([]);
});
