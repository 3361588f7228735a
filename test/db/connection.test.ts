/** The connection of a batch is lost: before its commit, and after it, when nobody has heard of it. */
import { randomUUIDv7 } from "node:crypto";
import net, { type LookupFunction } from "node:net";
import type { Pool } from "pg";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { Replayed, type Write } from "../../src/db/command.ts";
import { isConflict, isUnavailable } from "../../src/db/conflict.ts";
import type { Database } from "../../src/db/database.ts";
import { Session } from "../../src/db/session.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { addVariants, callOf, connect, holdVariant, open, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();
const SIZE = 5;

let direct: Database;
let id: string;

beforeEach(async () => {
  ({ db: direct } = await open(url));
  [id = ""] = await addVariants(direct, 100);
});

const unavailable = {
  status: "rejected",
  reason: { reason: "DATABASE_UNAVAILABLE", retryAfterMs: expect.toSatisfy((ms: number) => ms > 0) },
};

async function send(db: Database, call: Write): Promise<string> {
  try {
    return `first ${await db.write(call, takeOne([id]))}`;
  } catch (error) {
    if (error instanceof Replayed) return `replayed ${JSON.parse(String(Buffer.from(error.response)))}`;
    throw error;
  }
}

describe("a lost connection", () => {
  test("before the commit is DATABASE_UNAVAILABLE for all of the batch, and nothing is written", async () => {
    const { db, pool, seen } = await open(url);
    const calls = Array.from({ length: SIZE }, () => callOf());
    const held = await holdVariant(url, id);
    const ends = Promise.allSettled(calls.map((call) => send(db, call)));
    const [pid] = await held.waiting(1);
    await (await connect(url)).query("select pg_terminate_backend($1)", [pid]);
    expect(await ends).toMatchObject(calls.map(() => unavailable));
    await held.release();
    expect(await stockOf(db, id)).toBe(100);
    expect(seen.split).toEqual([]);
    // The pool is none the worse, and the same requests are as new.
    expect(await Promise.all(calls.map((call) => send(db, call)))).toEqual(
      calls.map((_, index) => `first ${99 - index}`),
    );
    expect(pool.totalCount).toBeLessThanOrEqual(4);
  });

  test("behind the commit leaves it open what happened; sending it again gives each request one effect", async () => {
    const proxy = await createProxy(url);
    const { db } = await open(proxy.url);
    const calls = Array.from({ length: SIZE }, () => callOf());
    const held = await holdVariant(url, id);
    const ends = Promise.allSettled(calls.map((call) => send(db, call)));
    await held.waiting(1);
    proxy.keep();
    await held.release();
    await vi.waitFor(async () => expect(await stockOf(direct, id)).toBe(100 - SIZE), { timeout: 10_000, interval: 5 });
    proxy.cut();
    expect(await ends).toMatchObject(calls.map(() => unavailable));
    const again = await Promise.all(calls.map((call) => send(db, call)));
    expect(again).toEqual(calls.map((_, index) => `replayed ${99 - index}`));
    expect(await stockOf(direct, id)).toBe(100 - SIZE);
  });

  test("while idle is not noticed by anybody", async () => {
    const { db, pool } = await open(url);
    expect(await send(db, callOf())).toBe("first 99");
    const closed = new Promise((resolve) => pool.once("remove", resolve));
    const mine =
      "datname = current_database() and application_name = '' and state = 'idle' and pid <> pg_backend_pid()";
    await (await connect(url)).query(`select pg_terminate_backend(pid) from pg_stat_activity where ${mine}`);
    await closed;
    expect(await send(db, callOf())).toBe("first 98");
  });

  test("of a server that is gone is DATABASE_UNAVAILABLE, for writes and reads", async () => {
    const proxy = await createProxy(url);
    const { db } = await open(proxy.url);
    proxy.close();
    expect(await Promise.allSettled([send(db, callOf()), stockOf(db, id)])).toMatchObject([unavailable, unavailable]);
  });
});

describe("a database that takes no commands is DATABASE_UNAVAILABLE, for a batch as a whole:", () => {
  const elsewhere: [string, Partial<URL>][] = [
    ["it does not exist", { pathname: "nowhere" }],
    ["its address leads nowhere", { hostname: "[100::1]" }],
    ["its name is unknown", { hostname: "nowhere.invalid" }],
    ["nobody listens", { port: "1" }],
  ];
  const writesOf = (db: Database) => Array.from({ length: SIZE }, () => send(db, callOf()));

  test.each(elsewhere)("%s", async (_name, where) => {
    const { db, seen } = await open(Object.assign(new URL(url), where).href);
    const ends = await Promise.allSettled([...writesOf(db), stockOf(db, id), db.read((em) => em.count(Variant))]);
    expect(ends).toMatchObject(ends.map(() => unavailable));
    expect(seen.split).toEqual([]);
  });

  test("nobody listens on any of its addresses", async () => {
    const addresses = ["127.0.0.1", "127.0.0.2"].map((address) => ({ address, family: 4 }));
    const lookup: LookupFunction = (_host, _options, found) => found(null, addresses);
    const socket = net.connect({ host: "database", port: 1, lookup, autoSelectFamily: true });
    const error = await new Promise((resolve) => socket.once("error", resolve));
    expect(error).toBeInstanceOf(AggregateError);
    expect(isUnavailable(new Error("the ORM wraps it", { cause: error }))).toBe(true);
  });

  test("it only reads", async () => {
    const standby = await createDatabase();
    const client = await connect(standby);
    await client.query(`alter database ${client.database} set default_transaction_read_only = on`);
    const { db, seen } = await open(standby);
    const insert = () => db.apply({ touches: [], decide: (tx) => tx.add(Wallet.open(randomUUIDv7())) });
    const ends = await Promise.allSettled(Array.from({ length: SIZE }, insert));
    expect(ends).toMatchObject(ends.map(() => unavailable));
    expect(seen.split).toEqual([]);
  });

  test("the pool has ended", async () => {
    const { db, pool, seen } = await open(url);
    await pool.end();
    const ends = await Promise.allSettled([...writesOf(db), stockOf(db, id)]);
    expect(ends).toMatchObject(ends.map(() => unavailable));
    expect(seen.split).toEqual([]);
  });
});

describe("a prepared statement that can't be used any more is prepared again:", () => {
  const spoils: Record<string, (pool: Pool) => Promise<unknown>> = {
    "a migration has changed what it returns": async () =>
      (await connect(url)).query("alter table variant alter column name type varchar(150)"),
    "the connection has lost it": (pool) => pool.query("deallocate all"),
  };

  test.each(Object.entries(spoils))("%s", async (_, spoil) => {
    const { db, pool } = await open(url);
    expect(await send(db, callOf())).toBe("first 99");
    expect(pool.totalCount).toBe(1);
    await spoil(pool);
    expect(await send(db, callOf())).toBe("first 98");
    expect(await send(db, callOf())).toBe("first 97");
    expect(pool.totalCount).toBe(1);
  });

  test("one that can't be prepared leaves the connection as it was", async () => {
    const { pool } = await open(url);
    const wrong = { name: "wrong", text: "select nothing from nowhere", values: [] };
    const right = { name: "right", text: "select 1", values: [] };
    const answers = await Session.run(pool, async (session) => {
      const failed = [session.send([right, wrong]), session.send([wrong])];
      const ends = await Promise.allSettled([...failed, session.send([right, right])]);
      return ends.map((end) => (end.status === "fulfilled" ? end.value : end.reason.code));
    });
    expect(answers).toEqual(["42P01", "42P01", [[[1]], [[1]]]]);
    // What was prepared twice, since all were sent at once, goes with the next.
    await Session.run(pool, (session) => session.send([right]));
    expect((await pool.query("select name, statement from pg_prepared_statements")).rows).toEqual([
      expect.objectContaining({ statement: "select 1" }),
    ]);
  });

  test("a name means one statement, whatever connection a proxy gives it to", async () => {
    const statement = (text: string) => ({ name: text, text, values: [] });
    const namesOn = async (...texts: string[]) => {
      const { pool } = await open(url, {}, 1);
      await Session.run(pool, (session) => session.send(texts.map(statement)));
      const { rows } = await pool.query<{ name: string }>(
        "select name from pg_prepared_statements order by prepare_time",
      );
      return rows.map(({ name }) => name);
    };
    const [one, other] = [await namesOn("select 1", "select 2"), await namesOn("select 2", "select 1")];
    expect(new Set([...one, ...other]).size).toBe(4);
    // What another process has left behind under the next name is an obstacle once.
    const { pool } = await open(url, {}, 1);
    await pool.query(`prepare "${one[0]}" as select 3`);
    const answers = await Session.run(pool, async (session) => {
      const failed = await session.send([statement("select 1")]).catch((error) => error);
      return [isConflict(failed), await session.send([statement("select 1")])];
    });
    expect(answers).toEqual([true, [[[1]]]]);
  });

  test("a COMMIT that Postgres answers with a ROLLBACK is a failure", async () => {
    const { pool } = await open(url, {}, 1);
    await Session.run(pool, async (session) => {
      await expect(session.send(["begin", "select 1 / 0"])).rejects.toMatchObject({ code: "22012" });
      await expect(session.send(["commit"])).rejects.toThrow("ROLLBACK");
    });
  });
});
