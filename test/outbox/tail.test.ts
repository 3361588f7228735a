/** Those who follow events: what they get, and what they leave behind. */
import { expect, onTestFinished, test, vi } from "vitest";
import type { Database } from "../../src/db/database.ts";
import type { JobObserver } from "../../src/db/job.ts";
import type { EventType } from "../../src/outbox/event.entity.ts";
import { newestPosition, type Position, START } from "../../src/outbox/feed.ts";
import { purgeEvents } from "../../src/outbox/retention.ts";
import { EventTail } from "../../src/outbox/tail.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";
import { addEvents, aggregates } from "./receiver.ts";

async function openTail(tellInterval?: number) {
  const url = await createDatabase();
  const { db } = await open(url);
  const failures: unknown[] = [];
  const tail = new EventTail(db, observerOf(failures), tellInterval);
  return { url, db, tail, failures, client: await connect(url) };
}

const observerOf = (failures: unknown[]): JobObserver => ({
  failed: (error) => failures.push(error),
  recovered: () => {},
});

/** Somebody who follows, with what they have got so far. */
function follow(tail: EventTail, after: Position | undefined, types: readonly EventType[] = []) {
  const leaving = new AbortController();
  const got: string[] = [];
  const sizes: number[] = [];
  const state = { got, position: after, sizes, pages: 0, leave: () => leaving.abort(), ended: Promise.resolve() };
  state.ended = (async () => {
    for await (const { events, position } of tail.follow(after, types, leaving.signal)) {
      got.push(...events.map(({ id }) => id));
      sizes.push(events.length);
      state.position = position;
      state.pages += 1;
    }
  })();
  onTestFinished(async () => {
    leaving.abort();
    await state.ended;
  });
  return state;
}

const soon = { timeout: 10_000, interval: 10 };

test("all events, those that are there and those that come, in order and once, to each who follows", async () => {
  const { tail, client } = await openTail();
  const ids: string[] = [];
  for (let round = 0; round < 6; round += 1) ids.push(...(await addEvents(client, aggregates(50), round)));
  const followers = [follow(tail, START), follow(tail, START)];
  await vi.waitFor(() => expect(followers[0]?.got).toHaveLength(300), soon);
  for (let round = 0; round < 10; round += 1) ids.push(...(await addEvents(client, aggregates(37), round)));
  followers.push(follow(tail, START));
  for (const { got } of followers) await vi.waitFor(() => expect(got).toHaveLength(670), soon);
  for (const { got } of followers) expect(got).toEqual(ids);
});

test("an event that comes while the first one begins to follow waits for no other one", async () => {
  const { db, client } = await openTail();
  const [looked, mayLook] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  // The tail finds out where it begins after the follower has found nothing, and after the event.
  const read: Database["read"] = async (query) => {
    if ((query as unknown) === newestPosition) await mayLook.promise;
    const result = await db.read(query);
    looked.resolve();
    return result;
  };
  const follower = follow(new EventTail({ read } as Database, observerOf([])), START);
  await looked.promise;
  const [id] = await addEvents(client, aggregates(1));
  await vi.waitFor(async () => expect((await db.read(newestPosition)).id).toBe(id), soon);
  mayLook.resolve();
  await vi.waitFor(() => expect(follower.got).toEqual([id]), soon);
});

test("whoever goes on from its last position misses nothing and gets nothing twice", async () => {
  const { tail, client } = await openTail();
  const ids = await addEvents(client, aggregates(120));
  const first = follow(tail, START);
  await vi.waitFor(() => expect(first.got.length).toBeGreaterThan(0), soon);
  first.leave();
  await first.ended;
  ids.push(...(await addEvents(client, aggregates(30))));
  const second = follow(tail, first.position);
  await vi.waitFor(() => expect(first.got.length + second.got.length).toBe(150), soon);
  expect([...first.got, ...second.got]).toEqual(ids);
});

test("from now on, and of some types alone", async () => {
  const { db, tail, client } = await openTail();
  await addEvents(client, aggregates(5));
  const [some, none] = [follow(tail, START, ["order.paid", "stock.adjusted"]), follow(tail, START, ["order.paid"])];
  await vi.waitFor(() => expect(some.got).toHaveLength(5), soon);
  const read = vi.spyOn(db, "read");
  const latest = follow(tail, undefined);
  await read.mock.results[0]?.value;
  const ids = await addEvents(client, aggregates(3));
  await vi.waitFor(() => expect(latest.got).toEqual(ids), soon);
  await vi.waitFor(() => expect(some.got).toHaveLength(8), soon);
  expect(none.got).toEqual([]);
});

test("an event whose transaction commits late comes in front of those that were there before", async () => {
  const { url, tail, client } = await openTail();
  const follower = follow(tail, START);
  const late = await connect(url);
  await late.query("begin");
  const [first] = await addEvents(late, aggregates(1));
  const [second] = await addEvents(client, aggregates(1));
  // As long as others get events, this follower would have got it, too.
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(follower.got).toEqual([]);
  await late.query("commit");
  await vi.waitFor(() => expect(follower.got).toEqual([first, second]), soon);
});

test("whoever begins while a transaction is open gets its events, and those that came meanwhile", async () => {
  const { url, tail, client } = await openTail();
  const late = await connect(url);
  await late.query("begin");
  const [first] = await addEvents(late, aggregates(1));
  const [second] = await addEvents(client, aggregates(1));
  const [all, latest] = [follow(tail, START), follow(tail, undefined)];
  // It knows where it begins.
  await vi.waitFor(() => expect(latest.pages).toBe(1), soon);
  await late.query("commit");
  for (const { got } of [all, latest]) await vi.waitFor(() => expect(got).toEqual([first, second]), soon);
});

test("large events come a few at a time, from the table and from memory", async () => {
  const { tail, client } = await openTail();
  const addLarge = async () => {
    await client.query("begin");
    const ids = await addEvents(client, aggregates(200));
    await client.query("update event set payload = payload || jsonb_build_object('text', $1::text)", [
      "x".repeat(10_000),
    ]);
    await client.query("commit");
    return ids;
  };
  const ids = await addLarge();
  const follower = follow(tail, START);
  await vi.waitFor(() => expect(follower.got).toHaveLength(200), soon);
  ids.push(...(await addLarge()));
  await vi.waitFor(() => expect(follower.got).toHaveLength(400), soon);
  expect(follower.got).toEqual(ids);
  // A page is full with 32 KB.
  expect(Math.max(...follower.sizes)).toBe(4);
});

test("who does not read for a while holds up nobody, and goes on from where it was", async () => {
  const { tail, client } = await openTail();
  const slow = tail.follow(START, [], AbortSignal.timeout(20_000));
  const ids = await addEvents(client, aggregates(10));
  const before = await slow.next();
  const quick = follow(tail, START);
  // More than are kept in memory.
  for (let round = 0; round < 30; round += 1) ids.push(...(await addEvents(client, aggregates(100), round)));
  await vi.waitFor(() => expect(quick.got).toEqual(ids), soon);
  const got = before.value?.events.map(({ id }) => id) ?? [];
  while (got.length < ids.length) got.push(...((await slow.next()).value?.events ?? []).map(({ id }) => id));
  expect(got).toEqual(ids);
  await slow.return();
});

/** Deletes the oldest events that need not be kept, whatever their age. */
const purge = (db: Database, count: number) =>
  db.maintain((em) => purgeEvents(em, new Date(Date.now() + 60_000), count, []));

test("who was overtaken by the end of the events that are kept is told, and not left with a gap", async () => {
  const { db, tail, client } = await openTail();
  const slow = tail.follow(START, [], AbortSignal.timeout(20_000));
  const before = tail.follow(undefined, [], AbortSignal.timeout(20_000));
  await addEvents(client, aggregates(10));
  const quick = follow(tail, START);
  await vi.waitFor(() => expect(quick.got).toHaveLength(10), soon);
  for (const one of [slow, before]) expect((await one.next()).done).toBe(false);
  // More than are kept in memory.
  for (let round = 0; round < 30; round += 1) await addEvents(client, aggregates(100), round);
  await vi.waitFor(() => expect(quick.got).toHaveLength(3_010), soon);
  expect(await purge(db, 500)).toBe(500);
  for (const one of [slow, before]) await expect(one.next()).rejects.toMatchObject({ reason: "POSITION_EXPIRED" });
  await addEvents(client, aggregates(1));
  await vi.waitFor(() => expect(quick.got).toHaveLength(3_011), soon);
});

test("who begins at the start gets all that is kept, also what lies in front of deleted events", async () => {
  const { db, tail, client } = await openTail();
  const ids = await addEvents(client, aggregates(250));
  await client.query(
    `insert into event_undelivered (aggregateid, event_id, aggregatetype, xid, attempts, retry_time, dead, last_error)
     select aggregateid, id, aggregatetype, xid, 1, now(), true, '' from event`,
  );
  await addEvents(client, aggregates(10));
  expect(await purge(db, 500)).toBe(10);
  const follower = follow(tail, START);
  ids.push(...(await addEvents(client, aggregates(5))));
  await vi.waitFor(() => expect(follower.got).toEqual(ids), soon);
});

test("who gets no event hears how far it has come: at once from now on, and then now and then", async () => {
  const { tail, client } = await openTail(300);
  await addEvents(client, aggregates(5));
  const follower = follow(tail, undefined, ["order.paid"]);
  await vi.waitFor(() => expect(follower.pages).toBe(1), soon);
  const ids = await addEvents(client, aggregates(3));
  await vi.waitFor(() => expect(follower.position?.id).toBe(ids.at(-1)), soon);
  expect(follower).toMatchObject({ got: [], pages: 2 });
  // There is nothing new to say.
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  expect(follower.pages).toBe(2);
});

test("who gets no event out of very many hears how far it has come in between", async () => {
  const { tail, client } = await openTail();
  for (let round = 0; round < 21; round += 1) await addEvents(client, aggregates(500), round);
  const follower = follow(tail, START, ["order.paid"]);
  await vi.waitFor(() => expect(follower).toMatchObject({ got: [], pages: 1 }), soon);
});

test("a thousand who come and go leave nothing behind, and nobody looks for events any more", async () => {
  const { db, tail, client, failures } = await openTail();
  await addEvents(client, aggregates(3));
  const followers = Array.from({ length: 1_000 }, () => follow(tail, START));
  await vi.waitFor(() => expect(followers.every(({ got }) => got.length === 3)).toBe(true), soon);
  expect(tail.followers).toBe(1_000);
  for (const { leave } of followers) leave();
  await Promise.all(followers.map(({ ended }) => ended));
  expect(tail.followers).toBe(0);
  const read = vi.spyOn(db, "read");
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(read).not.toHaveBeenCalled();
  const again = follow(tail, START);
  await vi.waitFor(() => expect(again.got).toHaveLength(3), soon);
  expect(failures).toEqual([]);
});
