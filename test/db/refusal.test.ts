/** Decisions that throw half way: what their neighbours in the same batch see, and what is written. */
import { randomUUIDv7 } from "node:crypto";
import { beforeEach, describe, expect, test } from "vitest";
import { LedgerEntry, Wallet } from "../../src/balance/balance.entity.ts";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import { type Tx, touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { Answer } from "../../src/db/idempotency.entity.ts";
import { DomainError } from "../../src/error.ts";
import { Event } from "../../src/outbox/event.entity.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, addWallet, callOf, connect, open, type Seen, stockOf } from "./harness.ts";

const url = await createDatabase();
const refusal = new DomainError("COUPON_NOT_USABLE", "no");

let db: Database;
let seen: Seen;
let userId: string;
let id: string;
let variantIds: string[];

beforeEach(async () => {
  ({ db, seen } = await open(url));
  userId = await addWallet(db, 100n);
  [id = ""] = await addVariants(db, 50);
  // Sorted: items are found in the order of their key.
  variantIds = Array.from({ length: 4 }, () => randomUUIDv7()).sort();
  await db.apply({
    touches: [],
    decide: (tx) => {
      tx.add(Cart.open(userId));
      for (const variantId of variantIds.slice(0, 3)) tx.add(itemOf(variantId, 1));
    },
  });
  seen.committed.length = 0;
});

const itemOf = (variantId: string, quantity: number) =>
  Object.assign(new CartItem(), { userId, variantId, quantity, position: 1n });

const touches = () => [
  touch(Wallet, { userId }),
  touch(Variant, { id }),
  touch(Cart, { userId }),
  touch(CartItem, { userId }),
  touch(LedgerEntry, { userId }),
  ...variantIds.map((variantId) => touch(CartItem, { userId, variantId })),
];

/** Everything of the rows that a decision can see, as text. */
function view(tx: Tx): string {
  const short = (variantId: string) => variantIds.indexOf(variantId);
  const items = tx.list(CartItem, { userId }).map((item) => `${short(item.variantId)}x${item.quantity}`);
  const single = variantIds.map((variantId) => tx.find(CartItem, { userId, variantId })?.quantity ?? "-");
  const { balance, entries } = tx.get(Wallet, { userId });
  const ledger = tx.list(LedgerEntry, { userId }).map(({ seq }) => seq);
  return `${tx.get(Variant, { id }).stock} ${balance}/${entries} [${items}] ${single} ledger [${ledger}]`;
}

/** Takes a unit, pays, changes, adds and removes items. */
function good(tx: Tx): void {
  tx.get(Variant, { id }).take(1);
  tx.add(tx.get(Wallet, { userId }).pay(10n, "good", tx.now));
  const [, second, third] = variantIds.map((variantId) => tx.find(CartItem, { userId, variantId }));
  if (second) tx.remove(second);
  if (third) third.quantity += 1;
  const [, , , fourth = ""] = variantIds;
  if (!tx.find(CartItem, { userId, variantId: fourth })) tx.add(itemOf(fourth, 7));
}

/** Turns everything upside down, what earlier decisions have added included, and throws. */
function bad(tx: Tx): never {
  tx.get(Variant, { id }).take(20);
  tx.add(tx.get(Wallet, { userId }).pay(50n, "bad", tx.now));
  for (const entry of [...tx.list(LedgerEntry, { userId })]) entry.amount = 1_000n;
  const items = [...tx.list(CartItem, { userId })];
  for (const item of items) item.quantity += 100;
  for (const item of items.slice(0, 2)) tx.remove(item);
  const fresh = itemOf(randomUUIDv7(), 1);
  tx.add(fresh);
  tx.add(itemOf(randomUUIDv7(), 2));
  tx.remove(fresh);
  tx.add(Event.of("stock.adjusted", id, {}, tx.now));
  throw refusal;
}

/** Runs decisions in one batch and returns what each had seen before and how it ended. */
async function together(...decisions: ((tx: Tx) => void)[]): Promise<{ before: string[]; failed: unknown[] }> {
  const before: string[] = [];
  const ends = await Promise.allSettled(
    decisions.map((decide, index) =>
      db.write(callOf(`${userId} ${index}`), {
        touches: touches(),
        decide: (tx) => {
          before.push(view(tx));
          decide(tx);
        },
      }),
    ),
  );
  expect(seen.committed.map(({ size }) => size)).toEqual([decisions.length]);
  // Where somebody is refused, all are decided once more, when it is known who was answered before.
  return {
    before: before.slice(-decisions.length),
    failed: ends.map((end) => (end.status === "rejected" ? end.reason : undefined)),
  };
}

async function stored() {
  const client = await connect(url);
  const { rows } = await client.query(
    `select (select array_agg(quantity order by quantity) from cart_item where user_id = $1) items,
       (select array_agg(amount::int order by seq) from ledger_entry where user_id = $1) amounts,
       (select count(*)::int from event where aggregateid = $2) events,
       (select array_agg(request_id order by request_id) from idempotency where request_id like $1::text || '%') answers,
       (select balance::int from wallet where user_id = $1) balance`,
    [userId, id],
  );
  return rows[0];
}

describe("a refused command", () => {
  test("leaves no trace on its neighbours, wherever it stands", async () => {
    const { before, failed } = await together(bad, good, bad, good, bad, () => {});
    const start = "50 100/0 [0x1,1x1,2x1] 1,1,1,- ledger []";
    const once = "49 90/1 [0x1,2x2,3x7] 1,-,2,7 ledger [1]";
    const twice = "48 80/2 [0x1,2x3,3x7] 1,-,3,7 ledger [1,2]";
    expect(before).toEqual([start, start, once, once, twice, twice]);
    expect(failed).toEqual([refusal, undefined, refusal, undefined, refusal, undefined]);
    expect(await stockOf(db, id)).toBe(48);
    expect(await stored()).toEqual({
      items: [1, 3, 7],
      amounts: [-10, -10],
      events: 0,
      answers: [`${userId} 1`, `${userId} 3`, `${userId} 5`],
      balance: 80,
    });
  });

  test("writes nothing when it is alone, and its request id is free", async () => {
    const { failed } = await together(bad, bad);
    expect(failed).toEqual([refusal, refusal]);
    expect(await stored()).toEqual({ items: [1, 1, 1], amounts: null, events: 0, answers: null, balance: 100 });
    expect(await db.find(Variant, { id })).toMatchObject({ stock: 50, version: 1 });
    await db.write(callOf(`${userId} 0`), { touches: touches(), decide: good });
    expect(await stored()).toMatchObject({ balance: 90, answers: [`${userId} 0`] });
  });

  test("that removed and added the same keys gives neighbours the same rows back", async () => {
    const swap = (tx: Tx) => {
      for (const item of [...tx.list(CartItem, { userId })].reverse()) {
        tx.remove(item);
        tx.add(itemOf(item.variantId, 50));
      }
    };
    const { before } = await together(
      (tx) => {
        swap(tx);
        swap(tx);
        throw refusal;
      },
      swap,
      () => {},
    );
    expect(before).toEqual([
      "50 100/0 [0x1,1x1,2x1] 1,1,1,- ledger []",
      "50 100/0 [0x1,1x1,2x1] 1,1,1,- ledger []",
      "50 100/0 [2x50,1x50,0x50] 50,50,50,- ledger []",
    ]);
    expect(await stored()).toMatchObject({ items: [50, 50, 50] });
  });

  test("a row that is removed twice takes no other with it", async () => {
    const { before } = await together(
      (tx) => {
        const [first] = tx.list(CartItem, { userId });
        if (!first) throw refusal;
        tx.remove(first);
        tx.remove(first);
      },
      () => {},
    );
    expect(before[1]).toBe("50 100/0 [1x1,2x1] -,1,1,- ledger []");
    expect(await stored()).toMatchObject({ items: [1, 1] });
  });
});

test("a row that is there already can't be added", async () => {
  const { failed } = await together(
    (tx) => tx.list(CartItem, { userId }).forEach((item) => void tx.add(item)),
    (tx) => {
      const [first] = tx.list(CartItem, { userId });
      if (first) tx.remove(first);
      if (first) tx.add(first);
    },
  );
  expect(failed).toEqual([expect.any(Error), expect.any(Error)]);
  expect(seen.split).toEqual([]);
  expect(await stored()).toMatchObject({ items: [1, 1, 1] });
});

describe("a bug in a decision", () => {
  test("rejects its own caller only, as it was thrown", async () => {
    const bug = new TypeError("can't read properties of undefined");
    const { failed } = await together(
      good,
      (tx) => {
        tx.get(Variant, { id }).stock = -5;
        throw bug;
      },
      good,
    );
    expect(failed).toEqual([undefined, bug, undefined]);
    expect(seen.split).toEqual([]);
    expect(await stockOf(db, id)).toBe(48);
  });

  test("in what makes the answer undoes the decision, too", async () => {
    const broken = { ...callOf(`${userId} x`), encode: () => Buffer.from(JSON.stringify(1n)) };
    const ends = await Promise.allSettled([
      db.write(broken, { touches: touches(), decide: good }),
      db.apply({ touches: touches(), decide: good }),
    ]);
    expect(ends.map(({ status }) => status)).toEqual(["rejected", "fulfilled"]);
    expect(await stored()).toMatchObject({ balance: 90, answers: null });
    expect(
      await db.find(Answer, { scope: broken.scope, rpc: broken.rpc, requestId: broken.requestId }),
    ).toBeUndefined();
  });
});
