/**
 * Orders on random ways through payment: paid from the wallet and through the gateway, cancelled, expired, refunded in parts,
 * by processes that may die at whatever they wait for. Each step leads to a state that the rules allow, and in the end
 * everything adds up.
 */
import fc from "fast-check";
import { beforeAll, expect, test } from "vitest";
import { DomainError } from "../../src/error.ts";
import { callOf, ORDER_TTL } from "../exact/verbs.ts";
import type { Death, Process } from "./mortal.ts";
import { PRICE, type Target, Till } from "./till.ts";

/** fast-check prints the seed of a failure. */
const TIME_LIMIT = 25_000;
const MAX_STEPS = 40;

let till: Till;
beforeAll(async () => {
  till = await Till.open();
});

/** Steps of an order, as the rules have them. */
const orderSteps = new Set([
  ...["PENDING_PAYMENT PAID", "PENDING_PAYMENT CANCELLED", "PENDING_PAYMENT EXPIRED", "PAID CANCELLED"],
]);
/** Of a payment: each has to be seen in the end, or the test is not what it says. */
const paymentSteps = [
  ...["PENDING COMPLETED", "PENDING FAILED", "PENDING REFUNDING", "COMPLETED COMPLETED", "COMPLETED REFUNDING"],
  ...["COMPLETED REFUNDED", "REFUNDING REFUNDING", "REFUNDING REFUNDED", " PENDING", " COMPLETED"],
];

type Model = { orders: number };
type World = { targets: Target[]; refusals: Set<string> };

/** The outcome of a verb: done, refused for a reason, or the process has died over it. */
async function outcome(work: Promise<unknown>): Promise<string> {
  try {
    return (await work) === "dead" ? "dead" : "OK";
  } catch (error) {
    if (error instanceof DomainError) return error.reason;
    throw error;
  }
}

/** One thing that somebody does to the n-th order. */
class Step implements fc.AsyncCommand<Model, World> {
  readonly name: string;
  readonly nth: number;
  readonly act: (target: Target) => Promise<unknown>;
  readonly refusals: readonly string[];

  constructor(name: string, nth: number, refusals: readonly string[], act: (target: Target) => Promise<unknown>) {
    this.name = name;
    this.nth = nth;
    this.refusals = refusals;
    this.act = act;
  }

  check(model: Model): boolean {
    return model.orders > 0;
  }

  async run(_: Model, world: World): Promise<void> {
    const target = world.targets[this.nth % world.targets.length] as Target;
    const before = await Promise.all(world.targets.map((one) => till.stateOf(one)));
    const result = await outcome(this.act(target));
    expect(["OK", "dead", ...this.refusals]).toContain(result);
    world.refusals.add(result);
    for (const [index, one] of world.targets.entries()) {
      const [was, is] = [before[index], await till.stateOf(one)];
      if (was !== is) expect([...orderSteps]).toContain(`${was} ${is}`);
    }
  }

  toString(): string {
    return `${this.name} #${this.nth}`;
  }
}

class Place implements fc.AsyncCommand<Model, World> {
  readonly quantity: number;

  constructor(quantity: number) {
    this.quantity = quantity;
  }

  check = () => true;

  async run(model: Model, world: World): Promise<void> {
    world.targets.push(await till.place(this.quantity));
    model.orders += 1;
  }

  toString(): string {
    return `place ${this.quantity}`;
  }
}

const NOT_PAYABLE = ["ORDER_NOT_PAYABLE", "PAYMENT_IN_PROGRESS", "INSUFFICIENT_BALANCE"];
const NOT_REFUNDABLE = ["PAYMENT_NOT_FOUND", "PAYMENT_NOT_REFUNDABLE"];
const never = new AbortController().signal;

const nth = fc.nat({ max: 5 });
const death = fc.option(
  fc.record({ step: fc.nat({ max: 4 }), when: fc.constantFrom("before" as const, "after" as const) }),
  { freq: 3 },
);
const mortal = (fate: Death | null, work: (process: Process) => Promise<unknown>) =>
  till.process(fate ?? undefined).live(work);

const pay = fc
  .tuple(nth, fc.constantFrom("ok", "ok", "decline", "unreachable", "reset", "reset"), death)
  .map(([order, token, fate]) => {
    const act = (target: Target) =>
      mortal(fate, ({ payments }) => payments.pay(callOf(), { ...target, method: "EXTERNAL", paymentToken: token }));
    return new Step(`pay ${token} ${JSON.stringify(fate)}`, order, [...NOT_PAYABLE, "PAYMENT_DECLINED"], act);
  });
const payFromWallet = fc.tuple(nth, death).map(([order, fate]) => {
  const act = (target: Target) =>
    mortal(fate, ({ payments }) => payments.pay(callOf(), { ...target, method: "BALANCE" }));
  return new Step(`pay from the wallet ${JSON.stringify(fate)}`, order, NOT_PAYABLE, act);
});
const cancel = nth.map(
  (order) =>
    new Step("cancel", order, ["ORDER_NOT_CANCELLABLE"], (target) => till.replica.orders.cancel(callOf(), target)),
);
const part = fc.oneof(
  fc.constant({}),
  fc.integer({ min: 1, max: 2 * Number(PRICE) }).map((amount) => ({ amount: BigInt(amount) })),
  fc.integer({ min: 1, max: 2 }).map((quantity) => ({ quantity })),
);
const refund = fc.tuple(nth, part, fc.nat({ max: 3 }), death).map(([order, what, attempt, fate]) => {
  const units = "quantity" in what ? [{ variantId: "", quantity: what.quantity }] : [];
  const act = async (target: Target) => {
    const payments = await till.paymentsOf(target);
    const paymentId = payments[attempt % Math.max(payments.length, 1)]?.id ?? target.orderId;
    const { userId } = target;
    const given = units.map((unit) => ({ ...unit, variantId: till.variantId }));
    const input = { userId, paymentId, ...("amount" in what && { amount: what.amount }), units: given };
    return mortal(fate, (process) => process.payments.refund(callOf(), input));
  };
  const shown = Object.entries(what).map(([key, value]) => `${key} ${value}`);
  return new Step(`refund ${shown.join() || "all"} ${JSON.stringify(fate)}`, order, NOT_REFUNDABLE, act);
});
const reconcile = fc.tuple(fc.nat({ max: 400_000 }), death).map(([ms, fate]) => {
  const act = () => {
    till.pass(ms);
    return mortal(fate, ({ external }) => external.reconcile(100, never));
  };
  return new Step(`reconcile after ${ms} ms ${JSON.stringify(fate)}`, 0, [], act);
});
const expire = fc.nat({ max: 2 * ORDER_TTL }).map((ms) => {
  const act = () => {
    till.pass(ms);
    return till.replica.orders.expireOverdue(100);
  };
  return new Step(`expire after ${ms} ms`, 0, [], act);
});
/** What was on its way to the gateway, or from it, arrives. */
const late = fc.tuple(nth, fc.boolean(), death).map(([order, charge, fate]) => {
  const act = async (target: Target) => {
    for (const { id, state, amount } of await till.paymentsOf(target)) {
      if (state !== "PENDING") continue;
      if (charge) await till.gateway.charge({ key: id, amount, currency: "KRW", token: "ok" }, never);
      else await mortal(fate, async ({ external }) => external.hear(id, await till.gateway.retrieve(id)));
    }
  };
  return new Step(charge ? "a late charge" : `a message ${JSON.stringify(fate)}`, order, [], act);
});

test("random ways through payment lead to legal states, and the money adds up", async () => {
  const place = fc.integer({ min: 1, max: 3 }).map((quantity) => new Place(quantity));
  const steps = [place, pay, pay, pay, payFromWallet, cancel, refund, refund, refund, reconcile, expire, late];
  const refusals = new Set<string>();
  const property = fc.asyncProperty(fc.commands(steps, { maxCommands: MAX_STEPS, size: "max" }), async (commands) => {
    await fc.asyncModelRun(() => ({ model: { orders: 0 }, real: { targets: [], refusals } }), commands);
    await till.settle();
    await till.expectExact();
  });
  await fc.assert(property, { numRuns: 1_000, interruptAfterTimeLimit: TIME_LIMIT, endOnFailure: true });
  const { rows } = await till.database.query(
    `select distinct coalesce(lag(state) over (partition by payment_id order by seq), '') || ' ' || state as step
       from payment_event`,
  );
  expect(rows.map(({ step }) => step).toSorted()).toEqual(paymentSteps.toSorted());
  const seen = [
    "OK",
    "dead",
    ...NOT_PAYABLE.slice(0, 2),
    ...NOT_REFUNDABLE,
    "PAYMENT_DECLINED",
    "ORDER_NOT_CANCELLABLE",
  ];
  expect(refusals).toEqual(
    new Set([...seen, ...(refusals.has("INSUFFICIENT_BALANCE") ? ["INSUFFICIENT_BALANCE"] : [])]),
  );
}, 120_000);
