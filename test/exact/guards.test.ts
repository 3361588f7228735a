import { IsolationLevel } from "@mikro-orm/core";
import type { Pool } from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { Replayed, touch } from "../../src/db/command.ts";
import { isConflict } from "../../src/db/conflict.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { broken } from "../support/invariants.ts";
import { openDatabase, value } from "./audit.ts";
import { begin, commit, waitForLock } from "./interleave.ts";
import { callOf, newShop, openReplica, type Replica } from "./verbs.ts";

let url: string;
let database: Pool;
let replica: Replica;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
  replica = await openReplica(url);
});

/** An order of some units of each variant. */
function purchaseOf(userId: string, variantIds: readonly string[], quantity = 1) {
  const lines = variantIds.map((variantId) => ({ variantId, quantity }));
  return { userId, lines, fromCart: false, issuedCouponId: undefined, expectedTotal: undefined };
}

/** By hand: no order tells of it. */
const sell = "update variant set stock = stock - 1, supplied = supplied - 1, version = version + 1 where id = any($1)";
const stocksOf = (ids: readonly string[]) =>
  value<string>(database, "select string_agg(stock::text, ',' order by position) from variant where id = any($1)", ids);

describe("trap 1: two versioned rows in one flush of the ORM", () => {
  /** Sells one unit of each of two variants through the ORM while somebody else does the same. */
  async function race(isolationLevel: IsolationLevel): Promise<{ stocks: string; error: unknown }> {
    const { variantIds } = await newShop(replica, 0n, Array(2).fill({ price: 1n, stock: 10 }));
    const em = replica.orm.em.fork();
    await em.begin({ isolationLevel });
    for (const variant of await em.find(Variant, { id: { $in: variantIds } })) variant.take(1);
    const other = await begin(database, sell, variantIds);
    const committed = em.commit().then(
      () => undefined,
      (error: unknown) => error,
    );
    await waitForLock(database);
    await commit(other);
    const error = await committed;
    if (error) await em.rollback();
    const stocks = await stocksOf(variantIds);
    // The ORM has sold them to nobody, which the books of this database are not to show.
    await database.query("delete from variant where id = any($1)", [variantIds]);
    return { stocks, error };
  }

  test("at READ COMMITTED an update is lost, which is why the service writes by itself", async () => {
    expect(await race(IsolationLevel.READ_COMMITTED)).toEqual({ stocks: "9,9", error: undefined });
  });

  test("at REPEATABLE READ one of them fails", async () => {
    const { stocks, error } = await race(IsolationLevel.REPEATABLE_READ);
    expect(stocks).toBe("9,9");
    expect(error).toMatchObject({ name: "DeadlockException", code: "40001" });
    expect(isConflict(error)).toBe(true);
  });

  test.each(["repeatable read", "read committed"] as const)("an order at %s loses nothing", async (isolation) => {
    const conflicts: number[] = [];
    const observer = { conflicted: ({ attempt }: { attempt: number }) => conflicts.push(attempt) };
    const seller = await openReplica(url, { isolation, observer });
    const { userId, variantIds } = await newShop(seller, 0n, Array(2).fill({ price: 1n, stock: 10 }));
    const other = await begin(database, sell, variantIds);
    const placed = seller.orders.place(callOf(), purchaseOf(userId, variantIds), undefined);
    await waitForLock(database);
    await commit(other);
    await placed;
    expect(await stocksOf(variantIds)).toBe("8,8");
    // Both have counted, and neither had to begin again.
    expect(conflicts).toEqual([]);
    expect(await broken(database, Object.fromEntries(variantIds.map((id) => [id, 9])))).toEqual([]);
  });
});

test("traps 3 and 8: the second attempt reads again, and waits its turn instead of failing once more", async () => {
  const committed: { attempts: number; locked: boolean }[] = [];
  const seller = await openReplica(url, {
    observer: { committed: ({ attempts, locked }) => committed.push({ attempts, locked }) },
  });
  const [id = ""] = (await newShop(replica, 0n, [{ price: 1n, stock: 10 }])).variantIds;
  const seen: number[] = [];
  const first = await begin(database, sell, [id]);
  const taken = seller.db.apply({
    touches: [touch(Variant, { id })],
    decide: (tx) => {
      const variant = tx.get(Variant, { id });
      seen.push(variant.stock);
      variant.take(1);
    },
  });
  await waitForLock(database);
  // In the queue for the row before the second attempt is: that one meets a lock again.
  const second = await database.connect();
  await second.query("begin");
  const queued = second.query(sell, [[id]]);
  await waitForLock(database, 2);
  await commit(first);
  await queued;
  await waitForLock(database, 1, "%for update");
  await commit(second);
  await taken;
  expect(seen).toEqual([10, 8]);
  expect(committed).toEqual([{ attempts: 2, locked: true }]);
  expect(await stocksOf([id])).toBe("7");
});

describe("trap 2: what tells a conflict", () => {
  const failureOf = (promise: Promise<unknown>) =>
    promise.then(
      () => undefined,
      (error: unknown) => error,
    );

  test("a serialization failure of COMMIT, which the ORM does not wrap", async () => {
    const { variantIds } = await newShop(replica, 0n, Array(2).fill({ price: 1n, stock: 10 }));
    const isolationLevel = IsolationLevel.SERIALIZABLE;
    const ems = [replica.orm.em.fork(), replica.orm.em.fork()];
    for (const em of ems) await em.begin({ isolationLevel });
    // Each reads what the other one writes.
    for (const [index, em] of ems.entries()) {
      const variants = await em.find(Variant, { id: { $in: variantIds } });
      variants[index]?.take(1);
    }
    for (const em of ems) await em.flush();
    await ems[0]?.commit();
    const error = await failureOf(ems[1]?.commit() as Promise<void>);
    expect(error).toMatchObject({ code: "40001" });
    expect(error).not.toMatchObject({ name: "DeadlockException" });
    expect(isConflict(error)).toBe(true);
    await ems[1]?.rollback().catch(() => {});
  });

  test("a deadlock", async () => {
    const { variantIds } = await newShop(replica, 0n, Array(2).fill({ price: 1n, stock: 10 }));
    const [a, b] = variantIds;
    const clients = [await begin(database, sell, [a]), await begin(database, sell, [b])];
    for (const client of clients) await client.query("set local deadlock_timeout = '10ms'");
    const crossing = [clients[0]?.query(sell, [[b]]), clients[1]?.query(sell, [[a]])];
    const errors = await Promise.all(crossing.map((query) => failureOf(query as Promise<unknown>)));
    const [error] = errors.filter((it) => it !== undefined);
    expect(error).toMatchObject({ code: "40P01" });
    expect(isConflict(error)).toBe(true);
    for (const client of clients) await client.query("rollback").then(() => client.release());
  });
});

test("trap 7: amounts beyond 2^53 are exact", async () => {
  const huge = 2n ** 53n + 1n;
  const price = 999_999_999_999n;
  const { userId, variantIds } = await newShop(replica, huge, [{ price, stock: 9_999 }]);
  expect((await replica.balances.charge(callOf(), { userId, amount: huge + 2n, reference: "" })).wallet.balance).toBe(
    2n * huge + 2n,
  );
  const { order, wallet } = await replica.orders.checkout(callOf(), purchaseOf(userId, variantIds, 9_999));
  const rest = 2n * huge + 2n - price * 9_999n;
  expect([order.total, wallet.balance]).toEqual([price * 9_999n, rest]);
  expect((await replica.balances.get(userId)).balance).toBe(rest);
  const { items } = await replica.balances.listEntries(userId, { pageSize: 10, pageToken: "" });
  expect(items.map(({ amount }) => amount)).toEqual([-price * 9_999n, huge + 2n, huge]);
  const paid = "select payload ->> 'total' from event where type = 'order.paid' and aggregateid = $1";
  expect(await value(database, paid, order.id)).toBe(String(price * 9_999n));
});

test("isolation: a decision sees its rows as of one moment", async () => {
  const { userId, variantIds } = await newShop(replica, 100n, [{ price: 1n, stock: 10 }]);
  const [id = ""] = variantIds;
  // Whoever reads the wallets waits, having read the variant.
  const other = await begin(database, "lock table wallet in access exclusive mode");
  const seen = replica.db.apply({
    touches: [touch(Variant, { id }), touch(Wallet, { userId })],
    decide: (tx) => [tx.get(Variant, { id }).stock, tx.get(Wallet, { userId }).balance],
  });
  await waitForLock(database);
  await other.query("update wallet set balance = 0, version = version + 1 where user_id = $1", [userId]);
  await other.query(sell, [[id]]);
  await commit(other);
  expect(await seen).toEqual([10, 100n]);
});

test("unique indexes: who is second to insert a row begins again, and finds it", async () => {
  const { userId, variantIds } = await newShop(replica, 0n, [{ price: 1n, stock: 10 }]);
  const [variantId = ""] = variantIds;
  const other = await begin(database, "insert into cart (user_id, changes) values ($1, 1)", userId);
  await other.query("insert into cart_item values ($1, $2, 3, 1)", [userId, variantId]);
  const added = replica.carts.addItem(callOf(), { userId, variantId, quantity: 2, rejectPresent: false });
  await waitForLock(database);
  await commit(other);
  expect((await added).quantity).toBe(5);
});

test("key scheduling: a process never conflicts with itself", async () => {
  const conflicts: unknown[] = [];
  const observer = { conflicted: (batch: unknown) => conflicts.push(batch) };
  const busy = await openReplica(url, { maxBatch: 8, observer });
  const lonely = await openReplica(url, { maxBatch: 1, observer });
  const { userId, variantIds } = await newShop(busy, 10_000n, Array(3).fill({ price: 1n, stock: 1_000 }));
  const [a = "", b = "", c = ""] = variantIds;
  const orders = [[a], [b, c], [c, a], [b]];
  await Promise.all(
    Array.from({ length: 200 }, async (_, index) => {
      // Every fourth request is sent twice.
      const call = callOf(null, `scheduled-${index - (index % 4 === 3 ? 1 : 0)}`);
      const lines = orders[(index - (index % 4 === 3 ? 1 : 0)) % 4] ?? [];
      const sent = busy.orders.checkout(call, purchaseOf(userId, lines));
      await sent.catch((error: unknown) => expect(error).toBeInstanceOf(Replayed));
    }),
  );
  // Nothing but its id says that these are one; the connections for two at once are there already.
  await Promise.all([1, 2].map(() => lonely.users.create(callOf(), "A buyer")));
  const twins = await Promise.allSettled(
    Array.from({ length: 10 }, () => lonely.users.create(callOf(null, "a twin"), "A buyer")),
  );
  expect(twins.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  expect(conflicts).toEqual([]);
  expect(await stocksOf(variantIds)).toBe("900,950,900");
  expect(await value(database, "select entries::int from wallet where user_id = $1", userId)).toBe(151);
});
