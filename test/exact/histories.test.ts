/**
 * Random histories against a plain model of the rules: one step after the other the answers are the model's; of steps at
 * once, on two replicas, there is an order in which the model gives the same answers and ends in the same state.
 */
import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { broken } from "../support/invariants.ts";
import { openDatabase, rankingCaughtUp } from "./audit.ts";
import { type Action, type After, adviceOf, after, emptyModel, MAX_BALANCE, type Model, type Step } from "./model.ts";
import { expireAll, openReplica, type Replica } from "./verbs.ts";
import { type Stored, World } from "./world.ts";

const STOCKS = [6, 4];
/** Each history begins with these, so that there is something to spend. */
const OPENING: readonly Action[] = [0, 1].flatMap((user): Action[] => [
  { kind: "charge", user, amount: 1_200 },
  { kind: "claim", user },
]);
/** For each of the two tests; fast-check prints the seed of a failure. */
const TIME_LIMIT = 10_000;

let database: Pool;
let replicas: Replica[];
let now = Date.now();

beforeAll(async () => {
  const url = await createDatabase();
  database = openDatabase(url);
  const options = { clock: () => new Date(now), maxBalance: BigInt(MAX_BALANCE) };
  // One of them looks for earlier answers only when it has to.
  replicas = [await openReplica(url, options), await openReplica(url, { ...options, carefulMs: 0 })];
});

/** A step that may point to earlier ones, as "the n-th, counted around". */
type Draft =
  | { kind: "new"; action: Action; twin: boolean }
  | { kind: "order"; verb: "pay" | "cancel" | "refund"; nth: number; twin: boolean }
  | { kind: "buy"; action: Extract<Action, { lines: unknown }>; nthPiece: number | null; twin: boolean }
  | { kind: "replay"; nth: number }
  | { kind: "expire" };

const user = fc.nat({ max: 1 });
const variant = fc.nat({ max: 1 });
const quantity = fc.integer({ min: 1, max: 4 });
const twin = fc.nat({ max: 9 }).map((n) => n === 0);
const action = (fields: object) => fc.record(fields) as unknown as fc.Arbitrary<Action>;
const made = (...kinds: fc.Arbitrary<Action>[]): fc.Arbitrary<Draft> =>
  fc.record({ kind: fc.constant("new" as const), action: fc.oneof(...kinds), twin });
const lines = fc
  .tuple(fc.nat({ max: 2 }), fc.nat({ max: 2 }), fc.boolean())
  .filter(([a, b]) => a + b > 0)
  .map(([a, b, turned]) => {
    const both = [[0, a] as const, [1, b] as const].filter(([, count]) => count > 0);
    return turned ? both.toReversed() : both;
  });
const purchase = action({
  kind: fc.constantFrom("place", "placeCovered", "checkout"),
  user,
  lines: fc.oneof(lines, fc.constant("cart")),
  piece: fc.constant(null),
}) as fc.Arbitrary<Extract<Action, { lines: unknown }>>;

const draft: fc.Arbitrary<Draft> = fc.oneof(
  made(
    action({ kind: fc.constant("charge"), user, amount: fc.integer({ min: 1, max: 15 }).map((n) => n * 100) }),
    action({ kind: fc.constant("adjust"), variant, delta: fc.integer({ min: -3, max: 3 }).filter((n) => n !== 0) }),
    action({ kind: fc.constant("claim"), user }),
  ),
  made(
    action({ kind: fc.constant("add"), user, variant, quantity, reject: twin }),
    action({ kind: fc.constant("update"), user, variant, quantity }),
    action({ kind: fc.constant("remove"), user, variant }),
    action({ kind: fc.constant("clear"), user }),
  ),
  fc.record({
    kind: fc.constant("buy" as const),
    action: purchase,
    nthPiece: fc.option(fc.nat({ max: 5 }), { freq: 2 }),
    twin,
  }),
  fc.record({
    kind: fc.constant("order" as const),
    verb: fc.constantFrom("pay", "cancel", "refund"),
    nth: fc.nat({ max: 20 }),
    twin,
  }),
  fc.record({ kind: fc.constant("replay" as const), nth: fc.nat({ max: 50 }) }),
  fc.constant({ kind: "expire" as const }),
);

/** Some steps at once, after some minutes. */
type Batch = { minutes: number; drafts: Draft[] };
const history = (atOnce: { min: number; max: number }, length: number): fc.Arbitrary<Batch[]> =>
  fc.array(
    fc.record({
      minutes: fc.constantFrom(0, 0, 0, 1, 8),
      drafts: fc.array(draft, { minLength: atOnce.min, maxLength: atOnce.max }),
    }),
    { minLength: 1, maxLength: length },
  );

const nth = <T>(list: readonly T[], index: number): T | undefined => list[index % Math.max(list.length, 1)];

/** What the drafts of one batch mean in this state. New steps are added to `sent`. */
function stepsOf(drafts: readonly Draft[], model: Model, paid: ReadonlySet<number>, sent: Step[]): Step[] {
  const before = [...sent];
  return drafts.flatMap((it): Step[] => {
    if (it.kind === "replay") return [nth(before, it.nth) ?? []].flat();
    if (it.kind === "expire") {
      const overdue = Object.entries(model.orders).filter(([, order]) => order.expireTime <= now);
      return overdue.map(([key]) => ({ key: -1, action: { kind: "expire", order: Number(key) } }));
    }
    const step = { key: sent.length, action: actionOf(it, model, paid) };
    sent.push(step);
    return it.twin ? [step, step] : [step];
  });
}

function actionOf(it: Exclude<Draft, { kind: "replay" | "expire" }>, model: Model, paid: ReadonlySet<number>): Action {
  if (it.kind === "new") return it.action;
  if (it.kind === "buy") {
    const held = Object.keys(model.pieces).filter((key) => model.pieces[Number(key)]?.user === it.action.user);
    // Of somebody who holds none, a piece that never was is asked for now and then only.
    const piece = nth(held, it.nthPiece ?? 0) ?? (it.nthPiece === 0 ? -1 : null);
    return { ...it.action, piece: it.nthPiece === null || piece === null ? null : Number(piece) };
  }
  const order = Number(nth(Object.keys(model.orders), it.nth) ?? -1);
  const known = it.verb !== "refund" || paid.has(order);
  return { kind: it.verb, user: model.orders[order]?.user ?? 0, order: known ? order : -1 };
}

type Done = Step & { outcome: string | undefined };

/** Without `advice`, checks that reserve nothing may have seen the stock or balance of any moment of the batch. */
function possibilities(model: Model, step: Step, advice: boolean): After[] {
  const strict = after(model, step, now);
  const refusal = adviceOf(step.action);
  if (advice || refusal === undefined) return [strict];
  return [strict, after(model, step, now, true), { model, outcome: refusal }];
}

/** The state after the steps in an order that explains their outcomes and ends in `stored`; undefined when none does. */
function explain(model: Model, steps: readonly Done[], stored: Stored, advice: boolean): Model | undefined {
  if (steps.length === 0) {
    const { answered, ...reached } = model;
    return isDeepStrictEqual(reached, stored) ? model : undefined;
  }
  for (const [index, step] of steps.entries()) {
    for (const next of possibilities(model, step, advice)) {
      if (step.outcome !== undefined && step.outcome !== next.outcome) continue;
      const end = explain(next.model, steps.toSpliced(index, 1), stored, advice);
      if (end) return end;
    }
  }
  return undefined;
}

async function live(batches: readonly Batch[]): Promise<void> {
  const world = await World.create(replicas, database, STOCKS);
  const sent: Step[] = [];
  let model = emptyModel(STOCKS);
  for (const action of OPENING) {
    const step = { key: sent.push({ key: sent.length, action }) - 1, action };
    expect(await world.run(step, 0)).toBe("OK");
    model = after(model, step, now).model;
  }
  for (const [turn, { minutes, drafts }] of batches.entries()) {
    now += minutes * 60_000;
    const steps = stepsOf(drafts, model, world.paid, sent);
    const expiring = steps.find(({ action }) => action.kind === "expire");
    const [outcomes] = await Promise.all([
      Promise.all(steps.map((step, i) => (step.action.kind === "expire" ? undefined : world.run(step, turn + i)))),
      ...(expiring ? [world.run(expiring, 0), world.run(expiring, 1)] : []),
    ]);
    const done = steps.map((step, index) => ({ ...step, outcome: outcomes[index] }));
    const stored = await world.read();
    const end = explain(model, done, stored, true) ?? explain(model, done, stored, steps.length === 1);
    if (!end) {
      const only = done.length === 1 && done[0] ? after(model, done[0], now) : undefined;
      expect({ done, stored }, "no order of the steps explains this").toEqual({ expected: only, before: model });
    }
    model = end ?? model;
  }
  for (const [key, answers] of world.answers) expect(answers.size, `answers to step ${key}`).toBe(1);
}

const foundBefore = new Set<string>();

/** What breaks the invariants since the last time this was asked, once nothing is pending any more. */
async function newlyBroken(): Promise<string[]> {
  now += 20 * 60_000;
  await expireAll(replicas[0] as Replica);
  await rankingCaughtUp(database, async () => replicas[0]?.ranking.project());
  const found = (await broken(database)).filter((id) => !foundBefore.has(id));
  for (const id of found) foundBefore.add(id);
  return found;
}

/** As many histories as fit into the time: how many they are depends on the machine. */
async function checkHistories(histories: fc.Arbitrary<Batch[]>): Promise<void> {
  const deadline = performance.now() + TIME_LIMIT;
  let lived = 0;
  const property = fc.asyncProperty(histories, async (batches) => {
    // Its own `interruptAfterTimeLimit` would leave a history running.
    if (performance.now() > deadline) return;
    const [end] = await Promise.allSettled([live(batches)]);
    // Asked in any case: left to the next history, which is perhaps a smaller one of the same failure, it would look
    // like that one's fault.
    const found = await newlyBroken();
    if (end.status === "rejected") throw end.reason;
    expect(found).toEqual([]);
    lived += 1;
  });
  await fc.assert(property, { numRuns: 500 });
  expect(lived).toBeGreaterThan(5);
}

test("one step after the other", () => checkHistories(history({ min: 1, max: 1 }, 30)));

test("several steps at once, on two replicas", () => checkHistories(history({ min: 1, max: 5 }, 12)));
