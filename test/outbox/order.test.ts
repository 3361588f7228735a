/** Events of one aggregate come in the order in which it happened, also when transactions have waited for each other. */
import { randomUUID } from "node:crypto";
import { expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { Event } from "../../src/outbox/event.entity.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { addVariants, addWallet, callOf, connect, hold, holdVariant, open, takeOne } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";
import { addEvents } from "./receiver.ts";

const url = await createDatabase();

/** A database as two processes have it, which have just met another one on their rows, and lock what they need from now on. */
async function openLocking() {
  const [one, other] = [await open(url), await open(url)];
  const [id = ""] = await addVariants(one.db, 10);
  const faster = await hold(url, "update variant set stock = 5, version = version + 1 where id = $1", id);
  const conflicts = [one, other].map(({ db }) => db.write(callOf(), takeOne([id])));
  await faster.waiting(2);
  await faster.release();
  await Promise.all(conflicts);
  for (const { seen } of [one, other]) expect(seen.conflicted).toHaveLength(1);
  return { db: one.db, other: other.db };
}

test("a transaction that got its number first, and then waited for another one, tells of it behind that", async () => {
  const { db } = await openLocking();
  const [id = ""] = await addVariants(db, 10);
  const userId = await addWallet(db, 5n);
  const client = await connect(url);
  // Takes no number yet.
  await client.query("begin; lock table variant in exclusive mode");
  const watcher = await hold(url, "select 1");
  const second = db.write(callOf(), {
    touches: [touch(Wallet, { userId }), touch(Variant, { id })],
    decide: (tx) => tx.add(Event.of("stock.adjusted", id, { n: 2 }, tx.now)),
  });
  // It has locked the wallet, and with that it has its number.
  await watcher.waiting(1);
  await addEvents(client, [id], 1);
  await client.query("commit");
  await second;
  const { rows } = await client.query<{ n: number }>(
    "select (payload ->> 'n')::int as n from event where aggregateid = $1 order by xid, id",
    [id],
  );
  expect(rows).toEqual([{ n: 1 }, { n: 2 }]);
  const { rows: order } = await client.query<{ behind: boolean }>(
    `select two.xid > one.xid as behind from event one, event two
      where one.aggregateid = $1 and two.aggregateid = $1 and one.payload ->> 'n' = '1' and two.payload ->> 'n' = '2'`,
    [id],
  );
  expect(order).toEqual([{ behind: true }]);
});

test("of two that have waited for the same row, the second one tells of it behind the first, whatever its clock says", async () => {
  const { db, other } = await openLocking();
  const [id = ""] = await addVariants(db, 10);
  const wallets = [await addWallet(db, 5n), await addWallet(db, 5n)];
  const client = await connect(url);
  const tell = (database: Database, n: 1 | 2, event: Event) =>
    database.write(callOf(), {
      touches: [touch(Wallet, { userId: wallets[n - 1] as string }), touch(Variant, { id })],
      decide: (tx) => tx.add(event),
    });
  const held = await holdVariant(url, id);
  // Each has its number with its wallet, and waits its turn.
  const first = tell(db, 1, Event.of("stock.adjusted", id, { n: 1 }, new Date()));
  await held.waiting(1);
  const early = { id: "00000000-0000-7000-8000-000000000002" };
  const second = tell(other, 2, Object.assign(Event.of("stock.adjusted", id, { n: 2 }, new Date(0)), early));
  await held.waiting(2);
  // A later number than theirs: both are put behind it.
  await addEvents(client, [randomUUID()]);
  await held.release();
  await Promise.all([first, second]);
  const { rows } = await client.query<{ n: number; xid: string }>(
    "select (payload ->> 'n')::int as n, xid::text from event where aggregateid = $1 order by xid, id",
    [id],
  );
  expect(rows.map(({ n }) => n)).toEqual([1, 2]);
  expect(Number(rows[1]?.xid)).toBeGreaterThan(Number(rows[0]?.xid));
});

test("the rows of such a transaction are locked and changed under one number, without a MultiXact for each", async () => {
  const { db } = await openLocking();
  const [id = ""] = await addVariants(db, 10);
  await db.write(callOf(), takeOne([id]));
  const client = await connect(url);
  await client.query("create extension pageinspect");
  // 0x1000: xmax is a MultiXact. https://www.postgresql.org/docs/18/pageinspect.html
  const { rows } = await client.query<{ changed: number; multi: number }>(
    `select count(*) filter (where t_xmax <> '0')::int as changed, count(*) filter (where t_infomask & 4096 > 0)::int as multi
       from generate_series(0, pg_relation_size('variant') / 8192 - 1) page,
            heap_page_items(get_raw_page('variant', page::int))`,
  );
  expect(rows).toEqual([{ changed: expect.toSatisfy((count: number) => count > 0), multi: 0 }]);
});
