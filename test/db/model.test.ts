/** Random histories against a plain model of the rules, executed one command after the other. */
import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { LedgerEntry, Wallet } from "../../src/balance/balance.entity.ts";
import { type Command, Replayed, touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { DomainError } from "../../src/error.ts";
import { Event } from "../../src/outbox/event.entity.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, addWallet, callOf, open, stocksOf } from "./harness.ts";

const url = await createDatabase();
const STOCKS = [0, 3, 12, 40];
const WALLETS = [0n, 55n, 400n];
const PRICE = 10;

/** What one caller wants; `request` says which of few request ids it uses. */
type Step = Readonly<
  { request: number } & (
    | { kind: "buy"; user: number; lines: readonly { variant: number; quantity: number }[] }
    | { kind: "charge"; user: number; amount: number }
    | { kind: "adjust"; variant: number; delta: number }
    | { kind: "count"; user: number }
  )
>;

const index = (below: number) => fc.nat({ max: below - 1 });
const request = fc.nat({ max: 60 });
const line = fc.record({ variant: index(STOCKS.length), quantity: fc.integer({ min: 1, max: 4 }) });
const lines = fc.uniqueArray(line, { minLength: 1, maxLength: 3, selector: ({ variant }) => variant });
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ kind: fc.constant("buy" as const), request, user: index(WALLETS.length), lines }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("charge" as const),
      request,
      user: index(WALLETS.length),
      amount: fc.integer({ min: 1, max: 60 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("adjust" as const),
      request,
      variant: index(STOCKS.length),
      delta: fc.integer({ min: -5, max: 8 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("count" as const), request, user: index(WALLETS.length) }),
  },
);

const contentOf = (wanted: Step) => JSON.stringify(wanted);

/** The rules once more, as plainly as can be. */
class Model {
  readonly stocks = [...STOCKS];
  readonly balances = WALLETS.map(Number);
  readonly #entries = WALLETS.map(() => 0);
  readonly #answers = new Map<number, { content: string; answer: string }>();

  run(wanted: Step): string {
    const known = this.#answers.get(wanted.request);
    if (known) return known.content === contentOf(wanted) ? `replayed ${known.answer}` : "REQUEST_ID_REUSED";
    const result = this.#decide(wanted);
    if (typeof result === "string") return result;
    const answer = JSON.stringify(result);
    this.#answers.set(wanted.request, { content: contentOf(wanted), answer });
    return `first ${answer}`;
  }

  #decide(wanted: Step): string | number[] {
    const { stocks, balances } = this;
    if (wanted.kind === "count") return [balances[wanted.user] ?? 0, this.#entries[wanted.user] ?? 0];
    if (wanted.kind === "charge") {
      this.#moved(wanted.user);
      balances[wanted.user] = (balances[wanted.user] ?? 0) + wanted.amount;
      return [balances[wanted.user] ?? 0];
    }
    if (wanted.kind === "adjust") {
      const stock = (stocks[wanted.variant] ?? 0) + wanted.delta;
      if (stock < 0) return "INSUFFICIENT_STOCK";
      stocks[wanted.variant] = stock;
      return [stock];
    }
    if (wanted.lines.some(({ variant, quantity }) => (stocks[variant] ?? 0) < quantity)) return "INSUFFICIENT_STOCK";
    const total = wanted.lines.reduce((sum, { quantity }) => sum + quantity * PRICE, 0);
    if ((balances[wanted.user] ?? 0) < total) return "INSUFFICIENT_BALANCE";
    this.#moved(wanted.user);
    balances[wanted.user] = (balances[wanted.user] ?? 0) - total;
    return wanted.lines.map(({ variant, quantity }) => {
      stocks[variant] = (stocks[variant] ?? 0) - quantity;
      return stocks[variant];
    });
  }

  #moved(user: number): void {
    this.#entries[user] = (this.#entries[user] ?? 0) + 1;
  }
}

type Shop = Readonly<{ variants: readonly string[]; users: readonly string[] }>;

async function createShop(db: Database): Promise<Shop> {
  const users = await Promise.all(WALLETS.map((balance) => addWallet(db, balance)));
  return { variants: await addVariants(db, ...STOCKS), users };
}

/** The same step as a command: it changes one row after the other, and may be refused at any of them. */
function commandOf(shop: Shop, wanted: Step): Command<number[]> {
  const variantId = (variant: number) => shop.variants[variant] as string;
  if (wanted.kind === "adjust") {
    const id = variantId(wanted.variant);
    return {
      touches: [touch(Variant, { id })],
      decide: (tx) => {
        const variant = tx.get(Variant, { id });
        variant.adjust(wanted.delta);
        return [variant.stock];
      },
    };
  }
  const userId = shop.users[wanted.user] as string;
  if (wanted.kind === "count") {
    // The ledger as a whole, to which the others add without asking for it.
    return {
      touches: [touch(Wallet, { userId }), touch(LedgerEntry, { userId })],
      decide: (tx) => [Number(tx.get(Wallet, { userId }).balance), tx.list(LedgerEntry, { userId }).length],
    };
  }
  if (wanted.kind === "charge") {
    return {
      touches: [touch(Wallet, { userId })],
      decide: (tx) => {
        const wallet = tx.get(Wallet, { userId });
        tx.add(wallet.charge(BigInt(wanted.amount), 1_000_000n, "charge", tx.now));
        return [Number(wallet.balance)];
      },
    };
  }
  const ids = wanted.lines.map(({ variant }) => variantId(variant));
  return {
    touches: [touch(Wallet, { userId }), ...ids.map((id) => touch(Variant, { id }))],
    decide: (tx) => {
      const left = wanted.lines.map(({ variant: number, quantity }) => {
        const variant = tx.get(Variant, { id: variantId(number) });
        variant.take(quantity);
        tx.add(Event.of("stock.adjusted", variant.id, { delta: -quantity }, tx.now));
        return variant.stock;
      });
      const total = wanted.lines.reduce((sum, { quantity }) => sum + quantity * PRICE, 0);
      tx.add(tx.get(Wallet, { userId }).pay(BigInt(total), "buy", tx.now));
      return left;
    },
  };
}

async function send(db: Database, shop: Shop, history: string, wanted: Step): Promise<string> {
  try {
    const call = callOf(`${history} ${wanted.request}`, contentOf(wanted));
    return `first ${JSON.stringify(await db.write(call, commandOf(shop, wanted)))}`;
  } catch (error) {
    if (error instanceof Replayed) return `replayed ${Buffer.from(error.response)}`;
    if (error instanceof DomainError) return error.reason;
    throw error;
  }
}

/** Stock and events, balance and ledger: what must agree after any history. Returns what there is. */
async function audit(db: Database, shop: Shop): Promise<{ stocks: number[]; balances: number[] }> {
  const wallets = await Promise.all(shop.users.map((userId) => db.find(Wallet, { userId })));
  for (const [number, wallet] of wallets.entries()) {
    const entries = await db.list(LedgerEntry, { userId: shop.users[number] as string });
    const sum = entries.reduce((total, { amount }) => total + amount, WALLETS[number] ?? 0n);
    expect([wallet?.balance, wallet?.entries]).toEqual([sum, BigInt(entries.length)]);
    expect(entries.map(({ seq }) => Number(seq)).sort((a, b) => a - b)).toEqual(entries.map((_, at) => at + 1));
  }
  return {
    stocks: (await stocksOf(db, shop.variants)) as number[],
    balances: wallets.map((wallet) => Number(wallet?.balance)),
  };
}

test("one process answers every history as if its commands had run one after the other", async () => {
  const small = await open(url, { maxBatch: 3 });
  const large = await open(url);
  // It decides again whenever somebody is refused.
  const careless = await open(url, { maxBatch: 3, carefulMs: 0 });
  const bursts = fc.array(fc.array(step, { minLength: 1, maxLength: 64 }), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(bursts, fc.constantFrom(small, large, careless), async (history, { db }) => {
      const shop = await createShop(db);
      const model = new Model();
      const id = randomUUID();
      for (const burst of history) {
        const expected = burst.map((wanted) => model.run(wanted));
        expect(await Promise.all(burst.map((wanted) => send(db, shop, id, wanted)))).toEqual(expected);
      }
      expect(await audit(db, shop)).toEqual({ stocks: model.stocks, balances: model.balances });
    }),
    { numRuns: 90 },
  );
  expect([...small.seen.conflicted, ...large.seen.conflicted, ...large.seen.split]).toEqual([]);
  for (const { seen } of [small, careless]) expect(seen.committed.filter(({ behind }) => behind)).not.toEqual([]);
});

test("two processes at once keep what must hold, and give each request one answer", async () => {
  const processes = [await open(url, { maxBatch: 5, carefulMs: 0 }), await open(url)].map(({ db }) => db);
  const [p] = processes as [Database];
  const addressed = fc.record({ wanted: step, process: fc.nat({ max: 1 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(addressed, { minLength: 20, maxLength: 128 }), async (history) => {
      const shop = await createShop(p);
      const id = randomUUID();
      const answers = await Promise.all(
        history.map(({ wanted, process }) => send(processes[process] as Database, shop, id, wanted)),
      );
      const { stocks, balances } = await audit(p, shop);
      const first = history.flatMap(({ wanted }, at) => (answers[at]?.startsWith("first") ? [wanted] : []));
      // Whatever the order was: what has succeeded adds up.
      const moved = STOCKS.map((stock, variant) =>
        first.reduce((sum, wanted) => sum + deltaOf(wanted, variant), stock),
      );
      expect(stocks).toEqual(moved);
      expect([...stocks, ...balances].every((value) => value >= 0)).toBe(true);
      const byRequest = Map.groupBy(history.keys(), (at) => history[at]?.wanted.request);
      for (const attempts of byRequest.values()) {
        const given = attempts.map((at) => answers[at] as string);
        expect(given.filter((answer) => answer.startsWith("first")).length).toBeLessThanOrEqual(1);
        const bodies = given.flatMap((answer) => /^(?:first|replayed) (.*)/.exec(answer)?.[1] ?? []);
        expect(new Set(bodies).size).toBeLessThanOrEqual(1);
        expect(given).not.toContain("CONFLICT");
      }
    }),
    { numRuns: 40 },
  );
});

function deltaOf(wanted: Step, variant: number): number {
  if (wanted.kind === "charge" || wanted.kind === "count") return 0;
  if (wanted.kind === "adjust") return wanted.variant === variant ? wanted.delta : 0;
  return -(wanted.lines.find((line) => line.variant === variant)?.quantity ?? 0);
}
