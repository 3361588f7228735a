/** A command of a batch that the database will not take: it is found by splitting, and refused alone. */
import { describe, expect, test } from "vitest";
import { LedgerEntry, Wallet } from "../../src/balance/balance.entity.ts";
import { type Command, type Tx, touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { DomainError } from "../../src/error.ts";
import { Event } from "../../src/outbox/event.entity.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, addWallet, callOf, open, stockOf } from "./harness.ts";

const url = await createDatabase();
const SIZE = 32;

type Target = Readonly<{ id: string; userId: string }>;

const entryOf = (userId: string, seq: bigint, reference: string) =>
  Object.assign(new LedgerEntry(), {
    ...{ userId, seq, kind: "CHARGE" as const, amount: 1n, balanceAfter: 1n, reference },
    createTime: new Date(),
  });

/** Past all rules of the entity. */
const setStock = (tx: Tx, id: string, stock: number) => {
  tx.get(Variant, { id }).stock = stock;
};

/** What one command does besides what all do, and how its caller hears of it. */
const poisons: Record<string, { decide: (tx: Tx, target: Target) => void; refusal: object }> = {
  "a CHECK that is broken": {
    decide: (tx, { id }) => setStock(tx, id, -1),
    refusal: { code: "23514" },
  },
  "a NUL character in a text": {
    decide: (tx, { userId }) => tx.add(entryOf(userId, 5n, "a\0b")),
    refusal: { reason: "ARGUMENT_INVALID" },
  },
  "a NUL character in JSON": {
    decide: (tx, { id }) => tx.add(Event.of("stock.adjusted", id, { reference: "a\0b" }, tx.now)),
    refusal: { reason: "ARGUMENT_INVALID" },
  },
  "a key that is taken": {
    decide: (tx, { userId }) => tx.add(entryOf(userId, 1n, "again")),
    refusal: { reason: "CONFLICT" },
  },
  "a text that is too long": {
    decide: (tx, { userId }) => tx.add(entryOf(userId, 5n, "x".repeat(129))),
    refusal: { code: "22001" },
  },
  "a value that is missing": {
    decide: (tx, { userId }) => tx.add(Object.assign(entryOf(userId, 5n, ""), { reference: undefined })),
    refusal: { code: "23502" },
  },
  "a date that is none": {
    decide: (tx, { userId }) => tx.add(Object.assign(entryOf(userId, 5n, ""), { createTime: new Date(Number.NaN) })),
    refusal: { name: "RangeError" },
  },
};

/** SIZE commands that all take a unit of one hot variant and charge a wallet each; one of them does more. */
async function runBatch(db: Database, at: number, poison: (tx: Tx, target: Target) => void) {
  const [hot = "", ...own] = await addVariants(db, 1_000, ...Array<number>(SIZE).fill(5));
  const userIds = await Promise.all(own.map(() => addWallet(db, 100n)));
  await Promise.all(
    userIds.map((userId) => db.apply({ touches: [], decide: (tx) => tx.add(entryOf(userId, 1n, "")) })),
  );
  const command = (id: string, index: number): Command<string> => {
    const userId = userIds[index] as string;
    return {
      touches: [touch(Variant, { id: hot }), touch(Variant, { id }), touch(Wallet, { userId })],
      decide: (tx) => {
        tx.get(Variant, { id: hot }).take(1);
        tx.get(Variant, { id }).take(1);
        tx.get(Wallet, { userId }).balance += 1n;
        if (index === at) poison(tx, { id, userId });
        return id;
      },
    };
  };
  const ends = await Promise.allSettled(
    own.map((id, index) => db.write(callOf(`${hot} ${index}`), command(id, index))),
  );
  return { hot, own, userIds, ends };
}

describe("a poisoned command", () => {
  const cases = Object.entries(poisons).map(([name, poison], index) => ({ name, at: (index * 13) % SIZE, ...poison }));
  test.each(cases)("is refused alone: $name", async ({ at, decide, refusal }) => {
    const { db, seen } = await open(url);
    const { hot, own, userIds, ends } = await runBatch(db, at, decide);
    const failed = ends.flatMap((end, index) => (end.status === "rejected" ? [{ index, reason: end.reason }] : []));
    expect(failed).toEqual([{ index: at, reason: expect.objectContaining(refusal) }]);
    expect(ends.flatMap((end) => (end.status === "fulfilled" ? [end.value] : []))).toEqual(own.toSpliced(at, 1));
    expect(await stockOf(db, hot)).toBe(1_000 - (SIZE - 1));
    const balances = await Promise.all(userIds.map(async (userId) => (await db.find(Wallet, { userId }))?.balance));
    expect(balances).toEqual(userIds.map((_, index) => (index === at ? 100n : 101n)));
    // Half, half of the half, and so on until it stands alone.
    expect(seen.split.map(({ size }) => size)).toEqual([32, 16, 8, 4, 2]);
  });

  test("beside another one: both are found, with few splits", async () => {
    const { db, seen } = await open(url);
    const ids = await addVariants(db, ...Array<number>(64).fill(5));
    const ends = await Promise.allSettled(
      ids.map((id, index) =>
        db.apply({
          touches: [touch(Variant, { id })],
          decide: (tx) => setStock(tx, id, index === 5 || index === 60 ? -1 : 7),
        }),
      ),
    );
    expect(ends.flatMap(({ status }, index) => (status === "rejected" ? [index] : []))).toEqual([5, 60]);
    expect(seen.split.length).toBe(11);
  });

  test("in a key that it asks for is refused before anything is decided on it", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 5);
    const ask = (key: string) =>
      db.apply({ touches: [touch(Variant, { id: key })], decide: (tx) => tx.get(Variant, { id: key }).stock });
    const [broken, fine] = await Promise.allSettled([ask("no uuid"), ask(id)]);
    expect(broken).toMatchObject({ status: "rejected", reason: { name: "RangeError" } });
    expect(fine).toEqual({ status: "fulfilled", value: 5 });
  });

  test("is not a refusal of its neighbours, which keep their own", async () => {
    const { db } = await open(url);
    const [id = "", other = ""] = await addVariants(db, 5, 5);
    const refusal = new DomainError("INSUFFICIENT_STOCK", "no");
    const ends = await Promise.allSettled([
      db.apply({
        touches: [touch(Variant, { id })],
        decide: () => {
          throw refusal;
        },
      }),
      db.apply({
        touches: [touch(Variant, { id: other })],
        decide: (tx) => setStock(tx, other, -1),
      }),
      db.apply({ touches: [touch(Variant, { id })], decide: (tx) => tx.get(Variant, { id }).take(1) }),
    ]);
    expect(ends).toMatchObject([{ reason: refusal }, { reason: { code: "23514" } }, { status: "fulfilled" }]);
    expect(await stockOf(db, id)).toBe(4);
  });
});
