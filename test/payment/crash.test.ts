/** A process dies at each await of the flow through the gateway, before and after: another one finds its way from there. */
import { beforeAll, describe, expect, test } from "vitest";
import { expireOverdue } from "../../src/order/expiry.ts";
import { callOf, ORDER_TTL } from "../exact/verbs.ts";
import type { Death, Process } from "./mortal.ts";
import { type Target, Till } from "./till.ts";

let till: Till;
beforeAll(async () => {
  till = await Till.open();
});

const never = new AbortController().signal;
const pay =
  (target: Target, token: string, call = callOf()) =>
  (process: Process) =>
    process.payments.pay(call, { ...target, method: "EXTERNAL", paymentToken: token }).catch((error) => error);

type Scene = Readonly<{
  /** Brings an order to where the flow begins. */
  before(target: Target): Promise<unknown>;
  /** What the process is at when it dies. */
  flow(target: Target): (process: Process) => Promise<unknown>;
  /** States of the order that may come of it, when nothing else is done to it. */
  ends: readonly string[];
}>;

const nothing = async () => {};
const reconcile = () => (process: Process) => {
  till.pass(60_000);
  return process.external.reconcile(100, never);
};
const cancel = (target: Target) => till.replica.orders.cancel(callOf(), target);
const pending = (token: string) => (target: Target) => till.process().live(pay(target, token));

const scenes: Readonly<Record<string, Scene>> = {
  "a charge that is approved": {
    before: nothing,
    flow: (target) => pay(target, "ok"),
    ends: ["PAID", "PENDING_PAYMENT"],
  },
  "a charge that is declined": { before: nothing, flow: (target) => pay(target, "decline"), ends: ["PENDING_PAYMENT"] },
  "a charge without an answer": {
    before: nothing,
    flow: (target) => pay(target, "reset"),
    ends: ["PAID", "PENDING_PAYMENT"],
  },
  "asking again about one that was approved": { before: pending("reset"), flow: reconcile, ends: ["PAID"] },
  "asking again about one that never came": {
    before: pending("unreachable"),
    flow: reconcile,
    ends: ["PENDING_PAYMENT"],
  },
  "asking again about an order that was cancelled": {
    before: async (target) => {
      await pending("reset")(target);
      await cancel(target);
    },
    flow: reconcile,
    ends: ["CANCELLED"],
  },
  "giving the money back": {
    before: async (target) => {
      await pending("ok")(target);
      await cancel(target);
    },
    flow: reconcile,
    ends: ["CANCELLED"],
  },
  "a message of the gateway": {
    before: pending("reset"),
    flow: (target) => async (process) => {
      const [payment] = await till.paymentsOf(target);
      const id = payment?.id ?? "";
      return process.external.hear(id, await till.gateway.retrieve(id));
    },
    ends: ["PAID"],
  },
};

/** What may happen between the death and the next look of another process. */
const meanwhile: Readonly<Record<string, (target: Target, again: () => Promise<unknown>) => Promise<unknown>>> = {
  nothing,
  "the caller sends it again": (_, again) => again(),
  "the order is cancelled": (target) => cancel(target).catch(() => {}),
  "the order expires": async () => {
    till.pass(ORDER_TTL + 1);
    await expireOverdue(till.replica.db, 100);
  },
};

/** How many things the flow waits for when nobody dies. */
async function stepsOf(scene: Scene): Promise<string[]> {
  const target = await till.place(1);
  await scene.before(target);
  const process = till.process();
  await process.live(scene.flow(target));
  await till.settle();
  return process.steps;
}

async function die(scene: Scene, death: Death, then: keyof typeof meanwhile): Promise<void> {
  const target = await till.place(1);
  await scene.before(target);
  const flow = scene.flow(target);
  expect(await till.process(death).live(flow)).toBe("dead");
  await meanwhile[then]?.(target, () => till.process().live(flow));
  await till.settle();
  const states =
    then === "nothing" || then === "the caller sends it again" ? scene.ends : ["PAID", "CANCELLED", "EXPIRED"];
  expect(states).toContain(await till.stateOf(target));
}

describe.each(Object.keys(scenes))("%s", (name) => {
  const scene = scenes[name] as Scene;
  test.each(Object.keys(meanwhile))("meanwhile: %s", async (then) => {
    const steps = await stepsOf(scene);
    expect(steps.length).toBeGreaterThan(1);
    for (const step of steps.keys()) {
      await die(scene, { step, when: "before" }, then);
      await die(scene, { step, when: "after" }, then);
    }
    await till.expectExact();
  });
});
