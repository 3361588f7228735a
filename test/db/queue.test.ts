/** Commands that wait: how many may, and what becomes of those whose callers have gone. */
import { describe, expect, test } from "vitest";
import { touch } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, callOf, holdVariant, open, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();

const reasonOf = (end: PromiseSettledResult<unknown>) =>
  end.status === "rejected" ? ((end.reason as Partial<DomainError>).reason ?? end.reason) : "done";

describe("a caller that has gone", () => {
  test("while its command waited: it is dropped unrun, and nobody else is", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 10);
    const held = await holdVariant(url, id);
    const decided: string[] = [];
    const run = (name: string, signal?: AbortSignal) =>
      db.write(
        callOf(`${id} ${name}`, "", signal),
        takeOne([id], () => void decided.push(name)),
      );
    const running = run("running");
    await held.waiting(1);
    const caller = new AbortController();
    const waiting = [run("before"), run("gone", caller.signal), run("behind")];
    const ends = Promise.allSettled(waiting);
    const late = new DomainError("DEADLINE_EXCEEDED", "too late");
    caller.abort(late);
    await held.release();
    expect((await ends).map(reasonOf)).toEqual(["done", "DEADLINE_EXCEEDED", "done"]);
    expect(await running).toEqual([9]);
    expect(decided).toEqual(["running", "before", "behind"]);
    expect(await stockOf(db, id)).toBe(7);
    // Nothing is stored of it either: the same request, sent again, is the first.
    expect(await run("gone")).toEqual([6]);
  });

  test("before its command was lined up: it is dropped, too", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 10);
    const never = takeOne([id], () => expect.unreachable("it was decided"));
    const late = new DomainError("CANCELLED", "gone");
    await expect(db.write(callOf(undefined, "", AbortSignal.abort(late)), never)).rejects.toBe(late);
    expect(await stockOf(db, id)).toBe(10);
  });

  test("while its batch is being written: the batch is not torn", async () => {
    const { db } = await open(url);
    const [id = ""] = await addVariants(db, 10);
    const held = await holdVariant(url, id);
    const caller = new AbortController();
    const both = [db.write(callOf(undefined, "", caller.signal), takeOne([id])), db.write(callOf(), takeOne([id]))];
    await held.waiting(1);
    caller.abort(new DomainError("CANCELLED", "gone"));
    await held.release();
    expect(await Promise.all(both)).toEqual([[9], [8]]);
    expect(await stockOf(db, id)).toBe(8);
  });

  test("while its batch has to be tried again: nothing of it is written, and the rest is", async () => {
    const { db, seen } = await open(url, { lockTimeoutMs: 250 });
    const [id = ""] = await addVariants(db, 10);
    const held = await holdVariant(url, id);
    const caller = new AbortController();
    const both = [db.write(callOf(undefined, "", caller.signal), takeOne([id])), db.write(callOf(), takeOne([id]))];
    const ends = Promise.allSettled(both);
    await held.waiting(1);
    caller.abort(new DomainError("CANCELLED", "gone"));
    // The lock was waited for in vain once.
    await expect.poll(() => seen.conflicted.length, { timeout: 5_000 }).toBe(1);
    await held.release();
    expect((await ends).map(reasonOf)).toEqual(["CANCELLED", "done"]);
    expect(await stockOf(db, id)).toBe(9);
  });
});

describe("the queue", () => {
  test("refuses with OVERLOADED what it can't hold, and goes on", async () => {
    const { db } = await open(url, { maxQueued: 5 });
    const [id = ""] = await addVariants(db, 10);
    const held = await holdVariant(url, id);
    const running = db.apply(takeOne([id]));
    await held.waiting(1);
    const queued = Array.from({ length: 5 }, () => db.apply(takeOne([id])));
    const other = { touches: [], decide: () => "?" };
    const refused = await Promise.allSettled([db.write(callOf(), takeOne([id])), db.write(callOf(), other)]);
    const overloaded = { reason: "OVERLOADED", retryAfterMs: expect.toSatisfy((ms: number) => ms > 0) };
    expect(refused).toMatchObject([{ reason: overloaded }, { reason: overloaded }]);
    // What the service has begun itself, it ends.
    const own = db.apply(takeOne([id]));
    await held.release();
    await Promise.all([running, ...queued, own]);
    expect(await db.write(callOf(), takeOne([id]))).toEqual([2]);
  });

  test("of 10,000 commands is answered, each of them, in bounded memory", async () => {
    const { db, seen } = await open(url);
    const [hot = "", other = ""] = await addVariants(db, 20_000, 1);
    const held = await holdVariant(url, hot);
    const running = db.apply(takeOne([hot]));
    await held.waiting(1);
    const before = process.memoryUsage().heapUsed;
    const queued = Promise.allSettled(Array.from({ length: 10_500 }, () => db.write(callOf(), takeOne([hot]))));
    const grown = process.memoryUsage().heapUsed - before;
    expect(grown).toBeLessThan(64 * 1024 * 1024);
    expect(await stockOf(db, other)).toBe(1);
    await held.release();
    const ends = Map.groupBy((await queued).map(reasonOf), (reason) => reason);
    expect(Object.fromEntries([...ends].map(([reason, all]) => [reason, all.length]))).toEqual({
      done: 10_000,
      OVERLOADED: 500,
    });
    expect(await running).toEqual([19_999]);
    expect(await stockOf(db, hot)).toBe(9_999);
    expect(seen.conflicted).toEqual([]);
    // The most that may run together did.
    expect(seen.committed.filter(({ size }) => size === 128)).toHaveLength(78);
    expect(seen.waited).toHaveLength(1 + 1 + 10_000);
  });

  test("of commands that can't run does not keep others from running", async () => {
    const { db } = await open(url);
    const [hot = "", ...cold] = await addVariants(db, 10_000, ...Array<number>(50).fill(10));
    const held = await holdVariant(url, hot);
    const blocked = [db.apply(takeOne([hot]))];
    await held.waiting(1);
    for (let count = 0; count < 5_000; count += 1) blocked.push(db.apply(takeOne([hot])));
    for (const id of cold) expect(await db.apply(takeOne([id]))).toEqual([9]);
    await held.release();
    await Promise.all(blocked);
    expect(await stockOf(db, hot)).toBe(4_999);
  });
});

test("a plan that fails rejects its own caller", async () => {
  const { db } = await open(url);
  const [id = ""] = await addVariants(db, 10);
  const lost = new DomainError("DATABASE_UNAVAILABLE", "gone");
  const planned = db.apply({ touches: () => Promise.reject(lost), decide: () => "?" });
  const other = db.apply({
    touches: async () => [touch(Variant, { id })],
    decide: (tx) => tx.get(Variant, { id }).stock,
  });
  await expect(planned).rejects.toBe(lost);
  expect(await other).toBe(10);
});
