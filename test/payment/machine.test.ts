/**
 * Orders on random ways through payment: paid from the wallet and through the gateway, cancelled, expired, refunded in parts,
 * by processes that may die at whatever they wait for. Each step leads to a state that the rules allow, and in the end
 * everything adds up.
 */
import fc from "fast-check";
import { beforeAll, expect, test } from "vitest";
import { DomainError } from "../../src/error.ts";
import { expireOverdue } from "../../src/order/expiry.ts";
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

type Part = Readonly<{ amount?: bigint; quantity?: number }>;

/** Each thing that can be done to the n-th order, as it is done once. */
const steps = {
  pay: (order: number, token: string, fate: Death | null = null) =>
    new Step(`pay ${token} ${JSON.stringify(fate)}`, order, [...NOT_PAYABLE, "PAYMENT_DECLINED"], (target) =>
      mortal(fate, ({ payments }) => payments.pay(callOf(), { ...target, method: "EXTERNAL", paymentToken: token })),
    ),
  payFromWallet: (order: number, fate: Death | null = null) =>
    new Step(`pay from the wallet ${JSON.stringify(fate)}`, order, NOT_PAYABLE, (target) =>
      mortal(fate, ({ payments }) => payments.pay(callOf(), { ...target, method: "BALANCE" })),
    ),
  cancel: (order: number) =>
    new Step("cancel", order, ["ORDER_NOT_CANCELLABLE"], (target) => till.replica.orders.cancel(callOf(), target)),
  refund: (order: number, { amount, quantity }: Part, attempt = 0, fate: Death | null = null) => {
    const what = `${amount ?? ""} ${quantity ?? ""} of attempt ${attempt}`;
    return new Step(`refund ${what} ${JSON.stringify(fate)}`, order, NOT_REFUNDABLE, async (target) => {
      const payments = await till.paymentsOf(target);
      const paymentId = payments[attempt % Math.max(payments.length, 1)]?.id ?? target.orderId;
      const units = quantity === undefined ? [] : [{ variantId: till.variantId, quantity }];
      const input = { userId: target.userId, paymentId, amount, units };
      return mortal(fate, (process) => process.payments.refund(callOf(), input));
    });
  },
  reconcile: (ms: number, fate: Death | null = null) =>
    new Step(`reconcile after ${ms} ms ${JSON.stringify(fate)}`, 0, [], () => {
      till.pass(ms);
      return mortal(fate, ({ external }) => external.reconcile(100, never));
    }),
  expire: (ms: number) =>
    new Step(`expire after ${ms} ms`, 0, [], () => {
      till.pass(ms);
      return expireOverdue(till.replica.db, 100);
    }),
};

const pay = fc
  .tuple(nth, fc.constantFrom("ok", "ok", "decline", "unreachable", "reset", "reset"), death)
  .map((values) => steps.pay(...values));
const payFromWallet = fc.tuple(nth, death).map((values) => steps.payFromWallet(...values));
const cancel = nth.map(steps.cancel);
const part: fc.Arbitrary<Part> = fc.oneof(
  fc.constant({}),
  fc.integer({ min: 1, max: 2 * Number(PRICE) }).map((amount) => ({ amount: BigInt(amount) })),
  fc.integer({ min: 1, max: 2 }).map((quantity) => ({ quantity })),
);
const refund = fc.tuple(nth, part, fc.nat({ max: 3 }), death).map((values) => steps.refund(...values));
const reconcile = fc.tuple(fc.nat({ max: 400_000 }), death).map((values) => steps.reconcile(...values));
const expire = fc.nat({ max: 2 * ORDER_TTL }).map(steps.expire);
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

/** So that each step of a payment is seen, however few histories the machine has time for. */
const examples: [fc.AsyncCommand<Model, World>[]][] = [
  [[new Place(3), steps.pay(0, "ok"), steps.refund(0, { amount: 100n }), steps.cancel(0), steps.reconcile(1_000)]],
  [[new Place(1), steps.pay(0, "reset"), steps.pay(0, "ok"), steps.cancel(0), steps.cancel(0)]],
  [[new Place(1), steps.refund(0, {}), steps.pay(0, "decline"), steps.pay(0, "ok", { step: 1, when: "before" })]],
  [[new Place(1), steps.payFromWallet(0), steps.pay(0, "ok"), steps.refund(0, {}), steps.refund(0, {})]],
];

test("random ways through payment lead to legal states, and the money adds up", async () => {
  const place = fc.integer({ min: 1, max: 3 }).map((quantity) => new Place(quantity));
  const any = [place, pay, pay, pay, payFromWallet, cancel, refund, refund, refund, reconcile, expire, late];
  const refusals = new Set<string>();
  const property = fc.asyncProperty(fc.commands(any, { maxCommands: MAX_STEPS, size: "max" }), async (commands) => {
    await fc.asyncModelRun(() => ({ model: { orders: 0 }, real: { targets: [], refusals } }), commands);
    await till.settle();
    await till.expectExact();
  });
  await fc.assert(property, { numRuns: 1_000, interruptAfterTimeLimit: TIME_LIMIT, endOnFailure: true, examples });
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
