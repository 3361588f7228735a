/** Events whose transaction ids are ahead of the cluster's, as after `pg_dump` and `pg_restore`. */
import { join } from "node:path";
import type { EntityManager } from "@mikro-orm/postgresql";
import type { Client } from "pg";
import { expect, onTestFinished, test, vi } from "vitest";
import { eventsAfter, newestPosition, type Position, START } from "../../src/outbox/feed.ts";
import { assertNotRestored } from "../../src/outbox/rebase.ts";
import { connect, open } from "../db/harness.ts";
import { serverOn } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { run, runMain } from "../support/processes.ts";
import { addEvents, aggregates } from "./receiver.ts";

const EVENTS = join(import.meta.dirname, "../../scripts/events.ts");
const soon = { timeout: 10_000, interval: 10 };

const rebase = (url: string) => run(process.execPath, [EVENTS, "rebase"], { env: { DATABASE_URL: url } }).exited;

/** As if all of it had happened in a cluster that has had more transactions. */
async function moveAhead(client: Client): Promise<void> {
  for (const table of ["event", "event_reader", "event_undelivered"]) {
    await client.query(
      `update ${table} set xid = (xid::text::bigint + 5000000000)::text::xid8 where xid > '0' and xid < '5000000000'`,
    );
  }
}

test("a restored database is not served before its events are the cluster's own, in their order", async () => {
  const url = await createDatabase();
  const { db } = await open(url);
  const client = await connect(url);
  const ids: string[] = [];
  for (let round = 0; round < 5; round += 1) ids.push(...(await addEvents(client, aggregates(3), round)));
  const all = (em: EntityManager) => eventsAfter(em, START, 100);
  const idsOf = async (query: typeof all) => (await db.read(query)).map(({ id }) => id);
  await vi.waitFor(async () => expect(await idsOf(all)).toEqual(ids), soon);
  // The sink has the first eight; one of those is to be sent again.
  await client.query(
    "update event_reader r set xid = e.xid, event_id = e.id from event e where r.name = 'sink' and e.id = $1",
    [ids[7]],
  );
  await client.query(
    `insert into event_undelivered (aggregateid, event_id, aggregatetype, xid, attempts, retry_time, dead, last_error)
     select aggregateid, id, aggregatetype, xid, 1, now(), true, '' from event where id = $1`,
    [ids[3]],
  );
  await moveAhead(client);
  expect(await idsOf(all)).toEqual([]);
  await expect(db.read(assertNotRestored)).rejects.toThrow("npm run events -- rebase");
  expect(await runMain({ env: { DATABASE_URL: url } }).exited).toMatchObject({
    code: 1,
    stderr: "doorbuster: the events were restored from another cluster: run `npm run events -- rebase` once\n",
  });

  expect(await rebase(url)).toMatchObject({ code: 0, stderr: "", stdout: "15 events are this cluster's own now\n" });
  await db.read(assertNotRestored);
  ids.push(...(await addEvents(client, aggregates(2), 9)));
  await vi.waitFor(async () => expect(await idsOf(all)).toEqual(ids), soon);
  const { rows } = await client.query<Position>(
    "select xid::text, event_id as id from event_reader where name = 'sink'",
  );
  expect(await idsOf((em) => eventsAfter(em, rows[0] as Position, 100))).toEqual(ids.slice(8));
  const undelivered = "select e.id from event e join event_undelivered u on u.event_id = e.id and u.xid = e.xid";
  expect((await client.query(undelivered)).rows).toEqual([{ id: ids[3] }]);
  const others = "select name, xid::text from event_reader where name <> 'sink' order by name";
  expect((await client.query(others)).rows.map(({ xid }) => xid)).toEqual(["0", "0"]);
  expect(await rebase(url)).toMatchObject({ code: 0, stdout: "the events are this cluster's own\n" });
  const server = await serverOn(url, { EVENT_SINK_URL: "off" });
  onTestFinished(async () => void (await server.stop()));
}, 60_000);

test("events of more transactions than the cluster has had", async () => {
  const url = await createDatabase();
  const { db } = await open(url);
  const client = await connect(url);
  const { rows } = await client.query("select pg_snapshot_xmax(pg_current_snapshot())::text as xmax");
  const count = Number(rows[0].xmax) + 5_000;
  await client.query(
    `insert into event (id, aggregatetype, aggregateid, type, payload, create_time, xid)
     select gen_random_uuid(), 'stock', n, 'stock.adjusted', '{}', now(), (n + 5000000000)::text::xid8
       from generate_series(1, $1) n`,
    [count],
  );
  expect(await rebase(url)).toMatchObject({ code: 0, stdout: `${count} events are this cluster's own now\n` });
  const [id] = await addEvents(client, aggregates(1));
  await vi.waitFor(async () => expect((await db.read(newestPosition)).id).toBe(id), soon);
  const { rows: order } = await client.query("select id, aggregateid from event order by xid, id");
  expect(order.pop()?.id).toBe(id);
  expect(order.map(({ aggregateid }) => Number(aggregateid))).toEqual(
    Array.from({ length: count }, (_, index) => index + 1),
  );
  await db.read(assertNotRestored);
});
