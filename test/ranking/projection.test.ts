/** Each sale is counted once, in the order in which events are read, and nobody counts who may not. */
import { expect, test, vi } from "vitest";
import { CHANNEL } from "../../src/ranking/projection.ts";
import { connect, hold } from "../db/harness.ts";
import { HOUR, hourOf, openSales } from "./sales.ts";

const soon = { timeout: 10_000, interval: 10 };
const NOW = new Date("2026-11-27T12:30:00Z");
const QUERY = { days: 3, limit: 5, byVariant: false };

test("a sale whose transaction commits late is counted, too", async () => {
  const { url, ranking, sell, caughtUp, buckets } = await openSales();
  const late = await connect(url);
  await late.query("begin");
  await sell(NOW, 3, late);
  await sell(NOW, 4);
  await ranking.project();
  await late.query("commit");
  await caughtUp();
  expect(await buckets()).toEqual([[hourOf(NOW), 7]]);
});

test.each([
  ["position", "event_reader", "when (new.name = 'sales')"],
  ["hours", "ranking_bucket", ""],
  ["totals", "ranking_total", ""],
])(
  "sales are counted with all that belongs to it or not at all: the %s can't be written",
  async (_name, table, when) => {
    const { client, ranking, sell, caughtUp, buckets } = await openSales({ clock: () => NOW });
    const state = async () => {
      const rows: unknown[] = [];
      for (const sql of [
        "select variant_id, hour, quantity from ranking_bucket",
        "select days, by_variant, id, units from ranking_total",
        "select xid::text, event_id from event_reader where name = 'sales'",
      ]) {
        rows.push((await client.query(sql)).rows);
      }
      return rows;
    };
    await ranking.top(QUERY);
    await sell(NOW, 3);
    await caughtUp();
    await client.query(`
    create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
    create trigger refuse before insert or update on ${table} for each row ${when} execute function refuse()`);
    const before = await state();
    expect(before).toEqual([[expect.anything()], [expect.objectContaining({ units: "3" })], [expect.anything()]]);
    await sell(NOW, 4);
    // From when on no older transaction is open.
    await vi.waitFor(() => expect(ranking.project()).rejects.toThrow("not now"), soon);
    expect(await state()).toEqual(before);
    await client.query(`drop trigger refuse on ${table}`);
    await caughtUp();
    expect(await buckets()).toEqual([[hourOf(NOW), 7]]);
    expect((await client.query("select units from ranking_total")).rows).toEqual([{ units: "7" }]);
  },
);

test("who finds somebody else counting leaves everything to them, the hours that have passed, too", async () => {
  const clock = { now: NOW };
  const { url, client, ranking, sell, caughtUp } = await openSales({ clock: () => clock.now });
  const since = async () => (await client.query("select since from ranking_window")).rows;
  await ranking.top(QUERY);
  await sell(NOW, 3);
  await caughtUp();
  const before = await since();
  expect(before).toHaveLength(1);
  clock.now = new Date(NOW.getTime() + 2 * HOUR);
  const counting = await hold(url, "select from event_reader where name = 'sales' for update");
  expect(await ranking.project()).toBe(false);
  expect(await since()).toEqual(before);
  await counting.release();
  await ranking.project();
  expect(await since()).toEqual([{ since: new Date(before[0].since.getTime() + 2 * HOUR) }]);
});

test("whoever listens is notified once when sales were counted, and not when there were none", async () => {
  const { url, client, ranking, sell, caughtUp } = await openSales();
  const listener = await connect(url);
  const heard: string[] = [];
  listener.on("notification", ({ channel }) => heard.push(channel));
  await listener.query(`listen ${CHANNEL}; listen over`);
  await client.query("begin");
  await sell(NOW, 3);
  await sell(NOW, 4);
  await client.query("commit");
  await caughtUp();
  // It opens totals: a run that counts nothing.
  await ranking.top(QUERY);
  await ranking.project();
  expect((await client.query("select from ranking_window")).rows).toHaveLength(1);
  await client.query("notify over");
  await vi.waitFor(() => expect(heard).toContain("over"), soon);
  expect(heard).toEqual([CHANNEL, "over"]);
});

test("an answer says up to when sales are counted: the last one, while others wait, and else now", async () => {
  const { url, client, ranking, sell, caughtUp } = await openSales({ clock: () => NOW });
  const ago = (minutes: number) => new Date(NOW.getTime() - minutes * 60_000);
  const asOf = async () => (await ranking.top(QUERY)).asOf;
  expect(await asOf()).toEqual(NOW);
  await sell(ago(20), 1);
  await sell(ago(10), 1);
  await caughtUp();
  expect(await asOf()).toEqual(NOW);
  const older = await connect(url);
  await older.query("begin; select pg_current_xact_id()");
  await sell(ago(5), 1);
  await ranking.project();
  expect(await asOf()).toEqual(ago(10));
  // The last one is not kept any more: up to the one that waits.
  await client.query("delete from event where create_time < $1", [ago(5)]);
  expect(await asOf()).toEqual(ago(5));
  await older.query("commit");
  await caughtUp();
  expect(await asOf()).toEqual(NOW);
});
