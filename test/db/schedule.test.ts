/** Which commands run together, which one after the other, and in which order. */
import { describe, expect, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { addVariants, callOf, holdVariant, open, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();

describe("batches of one process", () => {
  test("never conflict with each other, however many may run and whatever they share", async () => {
    const { db, seen } = await open(url, { maxRunning: 8, maxBatch: 4 }, 10);
    const ids = await addVariants(db, ...Array<number>(6).fill(10_000));
    const taken = new Map(ids.map((id) => [id, 0]));
    const caller = async (number: number) => {
      for (let round = 0; round < 15; round += 1) {
        const size = 1 + ((number + round) % 3);
        const wanted = Array.from({ length: size }, (_, index) => ids[(number * 5 + round * 7 + index) % 6] as string);
        await db.apply(takeOne(wanted));
        for (const id of wanted) taken.set(id, (taken.get(id) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: 64 }, (_, number) => caller(number)));
    expect(seen.conflicted).toEqual([]);
    expect(seen.committed.every(({ locked, attempts }) => !locked && attempts === 1)).toBe(true);
    expect(await stocksOf(db, ids)).toEqual(ids.map((id) => 10_000 - (taken.get(id) ?? 0)));
  });

  test("never run the same request at the same time", async () => {
    const { db, seen } = await open(url, { maxRunning: 8, maxBatch: 1 }, 10);
    const [free = "", first = "", ...others] = await addVariants(db, ...Array<number>(6).fill(5));
    // All connections are there already, so that whoever may run does.
    await Promise.all([free, first, ...others].map((id) => db.apply(takeOne([id]))));
    const held = await holdVariant(url, first);
    const decided: string[] = [];
    // The same request id on rows of their own: only the id keeps them apart.
    const twins = [first, ...others].map((id) =>
      db.write(
        callOf("twin", id),
        takeOne([id], () => void decided.push(id)),
      ),
    );
    const answered = Promise.allSettled(twins);
    await held.waiting(1);
    for (let round = 0; round < 3; round += 1) await db.apply(takeOne([free]));
    await held.waiting(1);
    expect(decided).toEqual([first]);
    await held.release();
    const [winner, ...losers] = await answered;
    expect(winner?.status).toBe("fulfilled");
    expect(losers.map((loser) => loser.status === "rejected" && loser.reason.reason)).toEqual(
      losers.map(() => "REQUEST_ID_REUSED"),
    );
    expect(await stocksOf(db, [first, ...others])).toEqual([3, 4, 4, 4, 4]);
    expect(seen.conflicted).toEqual([]);
  });

  test("run at once when they have no row in common", async () => {
    const { db } = await open(url);
    const [x = "", y = ""] = await addVariants(db, 5, 5);
    const holds = [await holdVariant(url, x), await holdVariant(url, y)];
    const first = db.apply(takeOne([x]));
    await holds[0]?.waiting(1);
    const second = db.apply(takeOne([y]));
    await holds[0]?.waiting(2);
    for (const held of holds) await held.release();
    expect(await Promise.all([first, second])).toEqual([[4], [4]]);
  });

  test("a lone command goes at once, and what comes in the same turn goes with it", async () => {
    const { db, seen } = await open(url);
    const [x = ""] = await addVariants(db, 100);
    await Promise.all(Array.from({ length: 50 }, () => db.apply(takeOne([x]))));
    await db.apply(takeOne([x]));
    expect(seen.committed.map(({ size }) => size)).toEqual([1, 50, 1]);
    expect(await stocksOf(db, [x])).toEqual([49]);
  });
});

describe("commands behind one that waits", () => {
  test("wait when they share a row with it, pass when they don't", async () => {
    const { db } = await open(url);
    const [x = "", y = ""] = await addVariants(db, 5, 5);
    const held = await holdVariant(url, x);
    const decided: string[] = [];
    const run = (name: string, ...ids: string[]) => db.apply(takeOne(ids, () => void decided.push(name)));
    const first = run("first", x);
    await held.waiting(1);
    const same = run("same", x);
    await run("other", y);
    await run("another", y);
    expect(decided).toEqual(["first", "other", "another"]);
    await held.release();
    expect(await Promise.all([first, same])).toEqual([[4], [3]]);
    expect(decided).toEqual(["first", "other", "another", "same"]);
  });

  test("keep their order also through rows that are free: A{x} B{x,y} C{y}", async () => {
    const { db } = await open(url);
    const [x = "", y = "", z = ""] = await addVariants(db, 5, 5, 5);
    const held = await holdVariant(url, x);
    const decided: string[] = [];
    const run = (name: string, ...ids: string[]) => db.apply(takeOne(ids, () => void decided.push(name)));
    const a = run("A", x);
    await held.waiting(1);
    const b = run("B", x, y);
    const c = run("C", y);
    // Its answer says that the queue was gone through, C included.
    await run("D", z);
    expect(decided).toEqual(["A", "D"]);
    await held.release();
    expect(await Promise.all([a, b, c])).toEqual([[4], [3, 4], [3]]);
    expect(decided).toEqual(["A", "D", "B", "C"]);
  });

  test("nobody who came later on one of its rows passes a command over many hot rows", async () => {
    const { db } = await open(url, { maxBatch: 4 });
    const ids = await addVariants(db, ...Array<number>(8).fill(100_000));
    let submitted = 0;
    let bigAt: number | undefined;
    let bigDone = false;
    let passed = 0;
    const single = (id: string) => {
      submitted += 1;
      const number = submitted;
      return db.apply(
        takeOne([id], () => {
          if (bigAt !== undefined && !bigDone && number > bigAt) passed += 1;
        }),
      );
    };
    // Two callers a row, so that a row is asked for again before it is free.
    const streams = [...ids, ...ids].map(async (id) => {
      for (let round = 0; round < 500 && !bigDone; round += 1) await single(id);
    });
    await Promise.all(ids.map((id) => single(id)));
    bigAt = submitted;
    await db.apply(
      takeOne(ids, () => {
        bigDone = true;
      }),
    );
    expect(passed).toBe(0);
    await Promise.all(streams);
  });
});

test("as many as may run, all waiting for somebody, keep nobody else from starting", { timeout: 4_000 }, async () => {
  const { db } = await open(url, { maxRunning: 2 });
  const [x = "", y = "", z = ""] = await addVariants(db, 5, 5, 5);
  const holds = [await holdVariant(url, x), await holdVariant(url, y)] as const;
  const stuck = [db.apply(takeOne([x]))];
  await holds[0].waiting(1);
  stuck.push(db.apply(takeOne([y])));
  await holds[0].waiting(2);
  expect(await db.apply(takeOne([z]))).toEqual([4]);
  for (const held of holds) await held.release();
  expect(await Promise.all(stuck)).toEqual([[4], [4]]);
});
