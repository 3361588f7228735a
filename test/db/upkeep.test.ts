/** Transactions of upkeep, and reads, of a process or a database that stands still: they hold up nobody for long. */
import { beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import type { Database } from "../../src/db/database.ts";
import { SALES } from "../../src/ranking/projection.ts";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import { addEvents, aggregates } from "../outbox/receiver.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { connect, hold, open } from "./harness.ts";

const PLACES = 2;
const lock = (name: string) => `update event_reader set lease_end = null where name = '${name}'`;

let url: string;
beforeEach(async () => {
  url = await createDatabase();
});

/** A transaction of upkeep that has a row and then does nothing more, as of a process that was stopped. */
async function stopIn(db: Database, statement: string) {
  const { promise: stopped, resolve: goOn } = Promise.withResolvers<void>();
  const { promise: locked, resolve: isLocked } = Promise.withResolvers<void>();
  const end = Promise.allSettled([
    db.maintain(async (em) => {
      await em.execute(statement);
      isLocked();
      await stopped;
    }),
  ]);
  onTestFinished(() => goOn());
  await locked;
  return { goOn, end };
}

describe("a process that stands still within a transaction of upkeep", () => {
  test("keeps its lock for less than five seconds, and has changed nothing", async () => {
    const { db: still } = await open(url);
    const { db: other } = await open(url);
    const { goOn, end } = await stopIn(still, "update event_reader set xid = '7' where name = 'sink'");
    const began = performance.now();
    await other.maintain((em) => em.execute(lock("sink")));
    expect(performance.now() - began).toBeLessThan(4_000);
    goOn();
    expect(await end).toMatchObject([{ status: "rejected" }]);
    const rows = await other.read((em) => em.execute("select xid::text as xid from event_reader where name = 'sink'"));
    expect(rows).toEqual([{ xid: "0" }]);
    // Its connection is not missed.
    await Promise.all(Array.from({ length: 8 }, () => still.maintain((em) => em.execute("select 1"))));
  });

  test("keeps others from counting sales for less than five seconds, and holds no events back", async () => {
    const { db: still } = await open(url);
    const { db: other } = await open(url);
    const client = await connect(url);
    await stopIn(still, `select from event_reader where name = '${SALES}' for update`);
    const [id] = await addEvents(client, aggregates(1));
    await client.query(
      `update event set type = 'order.paid', payload = '{"lines": [], "pay_time": "2026-11-27T00:00:00Z"}'`,
    );
    const ranking = new Ranking(other);
    const began = performance.now();
    await vi.waitFor(
      async () => {
        await ranking.project();
        const { rows } = await client.query(`select event_id as id from event_reader where name = '${SALES}'`);
        expect(rows).toEqual([{ id }]);
      },
      { timeout: 20_000, interval: 20 },
    );
    expect(performance.now() - began).toBeLessThan(5_000);
  });
});

test("a row that somebody keeps locked is not waited for for ever", async () => {
  const { db } = await open(url);
  const held = await hold(url, lock("sink"));
  const began = performance.now();
  await expect(db.maintain((em) => em.execute(lock("sink")))).rejects.toMatchObject({ code: "55P03" });
  expect(performance.now() - began).toBeLessThan(8_000);
  await held.release();
  await db.maintain((em) => em.execute(lock("sink")));
});

test("a database that says nothing is given up after 15 s, by reads and by upkeep, and costs the pool no place", async () => {
  const proxy = await createProxy(url);
  const { db, pool } = await open(proxy.url, {}, 2 * PLACES);
  const read = () => db.read((em) => em.execute("select 1"));
  const maintain = () => db.maintain((em) => em.execute("select 1"));
  const all = () => Array.from({ length: PLACES }, () => [read(), maintain()]).flat();
  await Promise.all(all());
  proxy.keep();
  const unavailable = { status: "rejected", reason: { reason: "DATABASE_UNAVAILABLE" } };
  const began = performance.now();
  expect(await Promise.allSettled(all())).toMatchObject(Array.from({ length: 2 * PLACES }, () => unavailable));
  const took = performance.now() - began;
  expect(took).toBeGreaterThan(14_000);
  expect(took).toBeLessThan(20_000);
  proxy.cut();
  await Promise.all(all());
  expect(pool.totalCount).toBeLessThanOrEqual(2 * PLACES);
});
