/** Rows that somebody outside keeps locked: who needs them waits, and nobody else for long. */
import { describe, expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { type Command, touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, follow, lead, openShop } from "./chain.ts";
import { addVariants, addWallet, callOf, hold, holdVariant, open as openPatient, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();

/** As impatient as the service is. */
const open = (database: string, poolSize?: number) => openPatient(database, { lockTimeoutMs: 250 }, poolSize);

/** Longer than a command waits for a locked row. */
const TOO_LONG = 10_000;

/** Buys one unit with one of the wallet. */
const buy = (id: string, userId: string): Command<number> => ({
  touches: [touch(Variant, { id }), touch(Wallet, { userId })],
  decide: (tx) => {
    const variant = tx.get(Variant, { id });
    variant.take(1);
    tx.get(Wallet, { userId }).balance -= 1n;
    return variant.stock;
  },
});

const holdWallet = (userId: string) => hold(url, "select 1 from wallet where user_id = $1 for update", userId);
const walletsOf = (db: Database, count: number) => Promise.all(Array.from({ length: count }, () => addWallet(db, 10n)));

/** How many of these are still waiting for their answer. */
async function countOpen(answers: readonly Promise<unknown>[]): Promise<number> {
  const turn = new Promise<boolean>((resolve) => setImmediate(resolve, true));
  const settled = () => false;
  const waits = await Promise.all(answers.map((answer) => Promise.race([answer.then(settled, settled), turn])));
  return waits.filter(Boolean).length;
}

describe("a wallet that is kept locked", () => {
  test("holds up its own user, and nobody else on the hot row, now or later", async () => {
    const { db, seen } = await open(url);
    const [hot = ""] = await addVariants(db, 1_000);
    const [locked = "", ...users] = await walletsOf(db, 40);
    const held = await holdWallet(locked);
    const own = db.write(callOf(), buy(hot, locked));
    const others = users.map((userId) => db.write(callOf(), buy(hot, userId)));
    expect(new Set(await Promise.all(others)).size).toBe(users.length);
    for (const userId of users) await db.write(callOf(), buy(hot, userId));
    expect(await countOpen([own])).toBe(1);
    expect(seen.split).toEqual([{ size: 40, cause: expect.objectContaining({ name: "LockedOut" }) }]);
    await held.release();
    expect(await own).toBe(1_000 - 2 * users.length - 1);
    expect(await stockOf(db, hot)).toBe(1_000 - 2 * users.length - 1);
  });

  test("takes nobody along who comes behind its batch", async () => {
    const { db } = await open(url);
    const [hot = "", other = ""] = await addVariants(db, 1_000, 1_000);
    const [locked = "", ...users] = await walletsOf(db, 20);
    const held = await holdWallet(locked);
    const own = db.write(callOf(), buy(hot, locked));
    await held.waiting(1);
    const behind = users.map((userId, index) => db.write(callOf(), buy(index % 2 ? hot : other, userId)));
    await Promise.all(behind);
    expect(await countOpen([own])).toBe(1);
    await held.release();
    await own;
    expect(await stockOf(db, hot)).toBe(990);
  });

  test("beside more of them than may wait apart: all that can be done is done, each once", async () => {
    const { db } = await open(url, 10);
    const [hot = ""] = await addVariants(db, 1_000);
    const [locked, users] = [await walletsOf(db, 6), await walletsOf(db, 20)];
    const held = await Promise.all(locked.map(holdWallet));
    const stuck = Promise.allSettled(locked.map((userId) => db.write(callOf(), buy(hot, userId))));
    await Promise.all(users.map((userId) => db.write(callOf(), buy(hot, userId))));
    for (const one of held) await one.release();
    const sold = (await stuck).filter(({ status }) => status === "fulfilled").length;
    expect(sold).toBeGreaterThan(0);
    expect(await stockOf(db, hot)).toBe(1_000 - users.length - sold);
  });
});

describe("the hot row itself, kept locked", () => {
  test("is waited for by all, and none has to be sent again", async () => {
    const { db, seen } = await open(url);
    const [hot = ""] = await addVariants(db, 100);
    const held = await holdVariant(url, hot);
    const answers = Array.from({ length: 20 }, () => db.write(callOf(), takeOne([hot])));
    // The first two times were short, to find out; from then on they wait.
    await expect.poll(() => seen.conflicted.length, { timeout: TOO_LONG }).toBe(3);
    await held.release();
    expect((await Promise.all(answers)).flat()).toEqual(answers.map((_, index) => 99 - index));
    expect(seen.split).toEqual([]);
  });

  test("is waited for by one transaction of a process, and then taken in the order of arrival", async () => {
    const { db, seen } = await open(url, 10);
    const [hot = "", other = ""] = await addVariants(db, 1_000, 1_000);
    const held = await holdVariant(url, hot);
    const answers: Promise<number[]>[] = [];
    for (let round = 1; round <= 4; round += 1) {
      for (let n = 0; n < 20; n += 1) answers.push(db.write(callOf(), takeOne([hot])));
      if (round === 1) await expect.poll(() => seen.conflicted.length, { timeout: TOO_LONG }).toBe(2);
      // As long as a row is waited for, others are sold; each of these takes its time.
      for (let n = 0; n < 5; n += 1) await db.write(callOf(), takeOne([other]));
      await held.waiting(1);
    }
    await held.release();
    expect((await Promise.all(answers)).flat()).toEqual(answers.map((_, index) => 999 - index));
  });

  test("does not make all of those pay for one that the database will not take", async () => {
    const { db, seen } = await open(url);
    const [hot = "", own = ""] = await addVariants(db, 100, 5);
    const held = await holdVariant(url, hot);
    // A CHECK: only behind the lock is it found out.
    const poisoned: Command<number[]> = {
      touches: [hot, own].map((id) => touch(Variant, { id })),
      decide: (tx) => {
        tx.get(Variant, { id: hot }).take(1);
        tx.get(Variant, { id: own }).stock = -1;
        return [];
      },
    };
    const answers = Array.from({ length: 20 }, (_, index) =>
      db.write(callOf(), index === 7 ? poisoned : takeOne([hot])),
    );
    const ends = Promise.allSettled(answers);
    await expect.poll(() => seen.conflicted.length, { timeout: TOO_LONG }).toBe(2);
    await held.release();
    const failed = (await ends).flatMap((end, index) => (end.status === "rejected" ? [[index, end.reason]] : []));
    expect(failed).toEqual([[7, expect.objectContaining({ code: "23514" })]]);
    expect(await stockOf(db, hot)).toBe(81);
  });

  test("for too long is CONFLICT for all at once, with advice when to come back", async () => {
    const { db } = await open(url);
    const [hot = ""] = await addVariants(db, 100);
    const held = await holdVariant(url, hot);
    const ends = await Promise.allSettled(Array.from({ length: 20 }, () => db.write(callOf(), takeOne([hot]))));
    const conflict = { status: "rejected", reason: { reason: "CONFLICT", retryAfterMs: 250 } };
    expect(ends).toMatchObject(ends.map(() => conflict));
    await held.release();
    expect(await db.write(callOf(), takeOne([hot]))).toEqual([99]);
  });
});

describe("the order of arrival", () => {
  test("is kept by a batch that was sent behind one that waits for its row", async () => {
    const { db, seen, ids } = await openShop(url, [100], { lockTimeoutMs: 250 });
    const [hot] = ids;
    const held = await holdVariant(url, hot);
    const first = await lead(db, held, takeOne([hot]));
    const second = await follow(db, takeOne([hot]));
    await expect.poll(() => seen.conflicted.length, { timeout: TOO_LONG, interval: 5 }).toBeGreaterThanOrEqual(2);
    // The first has waited for a second in vain, and does so again: a second group must not stand in front of it.
    const tries = seen.conflicted.length;
    await expect.poll(() => seen.conflicted.length, { timeout: TOO_LONG, interval: 5 }).toBeGreaterThan(tries);
    await held.release();
    expect(await endsOf(first, second)).toEqual([[99], [98]]);
  });

  test("is kept for each of two locked wallets of one batch, and who comes for them drags nobody along", async () => {
    const { db, seen } = await open(url, 10);
    const [hot = ""] = await addVariants(db, 1_000);
    const [a = "", b = "", c = ""] = await walletsOf(db, 3);
    const holds = [await holdWallet(a), await holdWallet(b)];
    const answers = [a, b].map((userId) => db.write(callOf(), buy(hot, userId)));
    // Both wait apart.
    await expect.poll(() => seen.conflicted.length, { timeout: TOO_LONG, interval: 5 }).toBe(2);
    answers.push(...[a, b].map((userId) => db.write(callOf(), buy(hot, userId))));
    await db.write(callOf(), buy(hot, c));
    expect(seen.split).toHaveLength(1);
    for (const held of holds) await held.release();
    await Promise.all(answers);
    expect(await stockOf(db, hot)).toBe(995);
  });
});
