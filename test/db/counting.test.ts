/** Counters on which several processes count at the same time. */
import { randomUUIDv7 } from "node:crypto";
import { describe, expect, test } from "vitest";
import { type Command, share, type Tx, touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { User } from "../../src/user/user.entity.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, follow, lead, openShop, send } from "./chain.ts";
import { addVariants, callOf, connect, hold, holdVariant, open, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();

/** Takes units, and tells nobody how many are left. */
function take<R>(id: string, units: number, result: (tx: Tx, variant: Variant) => R): Command<R> {
  return {
    touches: [share(Variant, { id })],
    decide: (tx) => {
      const variant = tx.get(Variant, { id });
      variant.take(units);
      return result(tx, variant);
    },
  };
}

const taken = (id: string, units: number) => take(id, units, () => "taken");

const takenBoth = (...ids: [string, string]): Command<string> => ({
  touches: ids.map((id) => share(Variant, { id })),
  decide: (tx) => {
    for (const id of ids) tx.get(Variant, { id }).take(1);
    return "taken";
  },
});

/** A foreign transaction that has changed the row, and is not committed before it is released. */
const changing = (id: string, set: string) =>
  hold(url, `update variant set ${set}, version = version + 1 where id = $1`, id);

/** Commits at once what a process elsewhere does. */
async function elsewhere(id: string, set: string): Promise<void> {
  const client = await connect(url);
  await client.query(`update variant set ${set}, version = version + 1 where id = $1`, [id]);
}

const reasonsOf = (ends: PromiseSettledResult<unknown>[]) =>
  ends.map((end) => (end.status === "fulfilled" ? end.value : (end.reason.reason ?? end.reason)));

describe("what others have counted between the read and the write", () => {
  test("is added up, and nobody has to begin again", async () => {
    const { db, seen } = await open(url);
    const [id = ""] = await addVariants(db, 100);
    const other = await changing(id, "stock = stock - 5");
    const mine = db.write(callOf(), taken(id, 3));
    await other.waiting(1);
    await other.release();
    expect(await mine).toBe("taken");
    expect(await stockOf(db, id)).toBe(92);
    expect(seen.conflicted).toEqual([]);
    expect(seen.committed.at(-1)).toMatchObject({ attempts: 1, locked: false });
  });

  test("leaves too little for all of a batch: those for whom it is enough get theirs, the others are refused", async () => {
    const { db, seen } = await open(url);
    const [id = ""] = await addVariants(db, 10);
    const other = await changing(id, "stock = stock - 8");
    const ends = Promise.allSettled([db.write(callOf(), taken(id, 2)), db.write(callOf(), taken(id, 2))]);
    await other.waiting(1);
    await other.release();
    expect(reasonsOf(await ends)).toEqual(["taken", "INSUFFICIENT_STOCK"]);
    expect(await stockOf(db, id)).toBe(0);
    expect([seen.conflicted.length, seen.split.length]).toEqual([1, 0]);
  });

  test("makes a refusal untrue: it is decided again", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 3);
    const other = await changing(id, "stock = stock + 5");
    const ends = Promise.allSettled([db.write(callOf(), taken(id, 3)), db.write(callOf(), taken(id, 1))]);
    await other.waiting(1);
    await other.release();
    expect(reasonsOf(await ends)).toEqual(["taken", "taken"]);
    expect(await stockOf(db, id)).toBe(4);
  });

  test("is in the answer of a command that tells the count, also beside others that don't", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 100);
    const other = await changing(id, "stock = stock - 5");
    const ends = Promise.all([db.write(callOf(), taken(id, 1)), db.write(callOf(), takeOne([id]))]);
    await other.waiting(1);
    await other.release();
    expect(await ends).toEqual(["taken", [93]]);
    expect(await stockOf(db, id)).toBe(93);
  });
});

test("a change of anything else between the read and the write is seen: nothing is sold at a price of before", async () => {
  const { db, seen } = await open(url);
  const [id = ""] = await addVariants(db, 100);
  const other = await changing(id, "price = 99, edits = edits + 1");
  const price = db.write(
    callOf(),
    take(id, 1, (_, variant) => String(variant.price)),
  );
  await other.waiting(1);
  await other.release();
  expect(await price).toBe("99");
  expect(seen.conflicted).toHaveLength(1);
});

test("what one command takes and another gives back in the same batch is checked like anything else", async () => {
  const { db, seen } = await open(url);
  const [id = ""] = await addVariants(db, 100);
  const other = await changing(id, "price = 99, edits = edits + 1");
  const price = db.write(
    callOf(),
    take(id, 1, (_, variant) => String(variant.price)),
  );
  const back = db.write(callOf(), {
    touches: [share(Variant, { id })],
    decide: (tx) => tx.get(Variant, { id }).restore(1),
  });
  await other.waiting(1);
  await other.release();
  expect(await price).toBe("99");
  await back;
  expect(await db.find(Variant, { id })).toMatchObject({ stock: 100, price: 99n, edits: 1 });
  expect(seen.conflicted).toHaveLength(1);
});

test("an edit and a count at the same time: both are kept, and the edit is counted as one", async () => {
  const { db } = await open(url);
  const [id = ""] = await addVariants(db, 100);
  const edited = db.write(callOf(), {
    touches: [touch(Variant, { id })],
    decide: (tx) => {
      tx.get(Variant, { id }).price = 7n;
    },
  });
  await Promise.all([edited, db.write(callOf(), taken(id, 1))]);
  expect(await db.find(Variant, { id })).toMatchObject({ stock: 99, price: 7n, edits: 1 });
});

test("what is put in by hand is counted too: it is no edit, after which others would have to read again", async () => {
  const { db } = await open(url);
  const [id = ""] = await addVariants(db, 100);
  const other = await changing(id, "stock = stock - 5");
  const left = db.write(callOf(), {
    touches: [touch(Variant, { id })],
    decide: (tx) => {
      const variant = tx.get(Variant, { id });
      variant.adjust(7);
      return variant.stock;
    },
  });
  await other.waiting(1);
  await other.release();
  expect(await left).toBe(102);
  expect(await db.find(Variant, { id })).toMatchObject({ stock: 102, supplied: 107n, edits: 0 });
});

describe("a batch behind another one, while somebody else counts as well", () => {
  test("is not content with the count that it took over", async () => {
    const { db, ids } = await openShop(url, [100, 10]);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takenBoth(x, y));
    const second = await follow(db, takeOne([x]));
    const third = send(db, taken(x, 1));
    await elsewhere(x, "stock = stock - 5");
    await held.release();
    const [, [left], last] = (await endsOf(first, second, third)) as [unknown, number[], unknown];
    // Either of the last two may have been first to be stored.
    expect([2, 3]).toContain(left);
    expect(last).toBe("taken");
    expect(await stockOf(db, x)).toBe(2);
    expect(second.decisions).toBe(2);
  });

  test("is not content with it either when one of its commands tells the count, and another does not", async () => {
    const { db, ids } = await openShop(url, [100, 10]);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takenBoth(x, y));
    const [counts, tells] = [send(db, taken(x, 1)), send(db, takeOne([x]))];
    await expect.poll(() => tells.decisions).toBe(1);
    await elsewhere(x, "stock = stock - 5");
    await held.release();
    expect(await endsOf(first, counts, tells)).toEqual(["taken", "taken", [2]]);
    expect(tells.decisions).toBe(2);
  });

  test("refuses nobody on a count that it took over", async () => {
    const { db, ids } = await openShop(url, [100, 1]);
    const [y, x] = ids;
    const held = await holdVariant(url, y);
    const first = await lead(db, held, takenBoth(x, y));
    const second = await follow(db, taken(x, 1));
    await elsewhere(x, "stock = stock + 5");
    await held.release();
    expect(await endsOf(first, second)).toEqual(["taken", "taken"]);
    expect(await stockOf(db, x)).toBe(4);
  });
});

describe("a process that has met another one counting", () => {
  /** Counts while somebody else has counted since it read. */
  async function meet(db: Database, id: string): Promise<void> {
    const other = await changing(id, "stock = stock - 5");
    const mine = db.write(callOf(), taken(id, 3));
    await other.waiting(1);
    await other.release();
    await mine;
  }

  test("goes on with what a batch leaves that has refused nobody", async () => {
    const { db, seen, ids } = await openShop(url, [100]);
    const [id] = ids;
    await meet(db, id);
    const held = await holdVariant(url, id);
    const first = await lead(db, held, taken(id, 1));
    const second = await follow(db, taken(id, 1));
    await held.release();
    expect(await endsOf(first, second)).toEqual(["taken", "taken"]);
    expect(seen.committed.map(({ behind }) => behind)).toEqual([false, false, true]);
    expect(await stockOf(db, id)).toBe(90);
  });

  test("does not where one was refused: on a guess the next would be, too", async () => {
    const { db, seen, ids } = await openShop(url, [100]);
    const [id] = ids;
    await meet(db, id);
    const held = await holdVariant(url, id);
    const refused = send(db, taken(id, 1_000));
    const first = await lead(db, held, taken(id, 1));
    const second = send(db, taken(id, 1));
    await held.release();
    expect(await endsOf(refused, first, second)).toEqual(["INSUFFICIENT_STOCK", "taken", "taken"]);
    expect(seen.committed.map(({ behind }) => behind)).toEqual([false, false, false]);
    expect(await stockOf(db, id)).toBe(90);
  });
});

test("a row without a version is changed by nobody, and its neighbours don't notice", async () => {
  const { db } = await open(url);
  const [id = ""] = await addVariants(db, 5);
  const userId = randomUUIDv7();
  await db.apply({ touches: [], decide: (tx) => tx.add(User.register(userId, "A buyer", tx.now)) });
  const rename = db.write(callOf(), {
    touches: [touch(User, { id: userId })],
    decide: (tx) => {
      tx.get(User, { id: userId }).name = "Somebody else";
    },
  });
  const ends = await Promise.allSettled([rename, db.write(callOf(), taken(id, 1))]);
  expect(ends).toMatchObject([{ reason: { message: expect.stringContaining("has no version") } }, { value: "taken" }]);
});
