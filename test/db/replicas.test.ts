/** Two processes on the same rows: retry of whole batches, and locks while the storm lasts. */
import { randomUUID } from "node:crypto";
import { describe, expect, test, vi } from "vitest";
import { createDatabase } from "../support/database.ts";
import { addVariants, callOf, connect, holdVariant, open, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();

/** A storm lasts a second: a machine that stops for so long in the middle of a test may try again. */
const inStorm = { retry: 2 };

/** A foreign transaction that takes units out and stays open. */
async function foreignTake(id: string) {
  const client = await connect(url);
  await client.query("begin");
  await client.query("update variant set stock = stock - 100, version = version + 1 where id = $1", [id]);
  return { commit: () => client.query("commit") };
}

/** Resolves when a transaction of the database waits for a lock. */
async function blocked() {
  const watcher = await connect(url);
  await vi.waitFor(
    async () => {
      const { rowCount } = await watcher.query(
        "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
      );
      expect(rowCount).toBe(1);
    },
    { timeout: 10_000, interval: 5 },
  );
}

describe("a process that has met another one on its rows", () => {
  test("runs the whole batch again with locks, and then locks from the start", inStorm, async () => {
    const { db, seen } = await open(url);
    const [id = ""] = await addVariants(db, 1_000);
    const decided: string[] = [];
    const meet = async () => {
      const other = await foreignTake(id);
      const batch = Promise.all(
        [1, 2, 3].map(() =>
          db.write(
            callOf(),
            takeOne([id], () => void decided.push(id)),
          ),
        ),
      );
      await blocked();
      await other.commit();
      return batch;
    };
    seen.committed.length = 0;
    expect(await meet()).toEqual([[899], [898], [897]]);
    expect(decided).toHaveLength(6);
    expect(seen.conflicted).toEqual([{ size: 3, attempt: 1 }]);
    // It waits its turn now: the row is taken as the other has left it, and the decision is made once.
    expect(await meet()).toEqual([[796], [795], [794]]);
    expect(decided).toHaveLength(9);
    expect(seen.conflicted).toHaveLength(1);
    expect(seen.committed).toMatchObject([
      { size: 3, attempts: 2, locked: true },
      { size: 3, attempts: 1, locked: true },
    ]);
  });

  test("takes no locks any more when the storm is over", async () => {
    const { db, seen } = await open(url);
    const [id = ""] = await addVariants(db, 1_000);
    const other = await foreignTake(id);
    const first = db.apply(takeOne([id]));
    await blocked();
    const start = performance.now();
    await other.commit();
    await first;
    await vi.waitFor(
      async () => {
        await db.apply(takeOne([id]));
        expect(seen.committed.at(-1)?.locked).toBe(false);
      },
      { timeout: 5_000, interval: 20 },
    );
    expect(performance.now() - start).toBeGreaterThan(1_000);
  });
});

/** Opens a process that has just met another one, and so takes its locks first. */
async function openInStorm(id: string) {
  const opened = await open(url);
  const other = await foreignTake(id);
  const first = opened.db.apply(takeOne([id]));
  await blocked();
  await other.commit();
  await first;
  expect(opened.seen.conflicted).toHaveLength(1);
  return opened;
}

describe("a process that locks first", () => {
  test("takes its locks in one order, whatever the order in which it was asked", inStorm, async () => {
    const { db } = await open(url);
    const [first = "", second = ""] = (await addVariants(db, 1_000, 1_000)).sort();
    const { db: locking } = await openInStorm(first);
    const held = await holdVariant(url, first);
    const both = locking.apply(takeOne([second, first]));
    await held.waiting(1);
    // It holds nothing while it waits for the first.
    const probe = await connect(url);
    await probe.query("select 1 from variant where id = $1 for update nowait", [second]);
    await held.release();
    expect(await both).toEqual([999, 898]);
  });

  test("finds the answer to its request that was committed while it waited for the row", inStorm, async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 1_000);
    const { db: locking, seen } = await openInStorm(id);
    const call = callOf(randomUUID());
    const held = await holdVariant(url, id);
    const first = db.write(call, takeOne([id]));
    await held.waiting(1);
    const twin = locking.write(call, takeOne([id])).catch((error: unknown) => error);
    await held.waiting(2);
    await held.release();
    expect(await first).toEqual([898]);
    expect(await twin).toMatchObject({ name: "Replayed", response: Buffer.from("[898]") });
    expect(seen.conflicted).toHaveLength(1);
  });
});

describe("two processes", () => {
  test("finish everything on one hot row, exactly, and stop conflicting soon", async () => {
    const [p, q] = [await open(url), await open(url)];
    const [id = ""] = await addVariants(p.db, 10_000);
    const left = new Set<number | undefined>();
    const caller = async (db: typeof p.db) => {
      for (let round = 0; round < 25; round += 1) left.add((await db.write(callOf(), takeOne([id])))[0]);
    };
    await Promise.all([p, q].flatMap(({ db }) => Array.from({ length: 32 }, () => caller(db))));
    expect(await stockOf(p.db, id)).toBe(10_000 - 1_600);
    // Each answer is another state of the row: none was given twice.
    expect(left.size).toBe(1_600);
    // Alone each would need 25 batches at the least; without locks most of them fail.
    expect(p.seen.conflicted.length + q.seen.conflicted.length).toBeLessThan(10);
    expect([...p.seen.split, ...q.seen.split]).toEqual([]);
  });

  test("finish everything on rows taken in every order, without a CONFLICT", async () => {
    const [p, q] = [await open(url), await open(url)];
    const ids = await addVariants(p.db, 10_000, 10_000, 10_000, 10_000);
    const caller = async (db: typeof p.db, number: number) => {
      for (let round = 0; round < 10; round += 1) {
        const from = (number + round) % 4;
        const wanted = [...ids.slice(from), ...ids.slice(0, from)].slice(0, 1 + (round % 4));
        await db.write(callOf(), takeOne(round % 2 ? wanted : wanted.toReversed()));
      }
    };
    await Promise.all([p, q].flatMap(({ db }) => Array.from({ length: 24 }, (_, number) => caller(db, number))));
    const stocks = await Promise.all(ids.map((id) => stockOf(p.db, id)));
    // Rounds take 1, 2, 3, 4 rows in turn: 10 rounds are 1+2+3+4 + 1+2+3+4 + 1+2 = 23 units.
    expect(stocks.reduce<number>((sum, stock) => sum + (stock ?? 0), 0)).toBe(40_000 - 48 * 23);
  });

  test("that add the same key at once: one adds, the other hears what is there", async () => {
    const [p, q] = [await open(url), await open(url)];
    const [id = ""] = await addVariants(p.db, 100);
    const requestId = randomUUID();
    // Commands without a row to meet on: only the answer's key tells them apart.
    const nothing = { touches: [], decide: () => "done" };
    const ends = await Promise.allSettled(
      [p, q].map(({ db }, index) => db.write(callOf(requestId, String(index)), nothing)),
    );
    expect(ends.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    expect(ends.find((end) => end.status === "rejected")?.reason).toMatchObject({ reason: "REQUEST_ID_REUSED" });
    expect(await stockOf(p.db, id)).toBe(100);
  });
});
