/** Events of one aggregate come in the order in which it happened, also when transactions have waited for each other. */
import { expect, test } from "vitest";
import { Wallet } from "../../src/balance/balance.entity.ts";
import { touch } from "../../src/db/command.ts";
import { Event } from "../../src/outbox/event.entity.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { addVariants, addWallet, callOf, connect, hold, open, takeOne } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";
import { addEvents } from "./receiver.ts";

const url = await createDatabase();

/** A database whose process has just met another one on its rows, and locks what it needs from now on. */
async function openLocking() {
  const opened = await open(url);
  const [other = ""] = await addVariants(opened.db, 10);
  const faster = await hold(url, "update variant set stock = 5, version = version + 1 where id = $1", other);
  const conflict = opened.db.write(callOf(), takeOne([other]));
  await faster.waiting(1);
  await faster.release();
  await conflict;
  expect(opened.seen.conflicted).toHaveLength(1);
  return opened;
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
