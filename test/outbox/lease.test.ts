/** Two processes that relay on one database: one does it at a time, and who has lost the lease changes nothing more. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import type { ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EntityManager } from "@mikro-orm/postgresql";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { every } from "../../src/db/job.ts";
import { fileSink } from "../../src/outbox/file-sink.ts";
import { httpSink } from "../../src/outbox/http-sink.ts";
import { LEASE_S, Lease, LeaseLost } from "../../src/outbox/lease.ts";
import type { Relay } from "../../src/outbox/relay.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { addEvents, aggregates, startReceiver } from "./receiver.ts";
import { numbers, startRelay } from "./relays.ts";

const TIMEOUT = 20_000;
const START = { xid: "0", event_id: "00000000-0000-0000-0000-000000000000" };

/** A database, and processes that relay its events, each to a receiver of its own. */
async function openProcesses() {
  const url = await createDatabase();
  const client = await connect(url);
  const start = async (over = url) => {
    const receiver = await startReceiver();
    const { relay } = await startRelay(over, httpSink(receiver.url, TIMEOUT));
    return { receiver, relay };
  };
  /** Whoever has the lease does not have it any more, without knowing. */
  const expire = () => client.query("update event_reader set lease_end = '-infinity' where name = 'sink'");
  const position = async () =>
    (await client.query("select xid::text as xid, event_id from event_reader where name = 'sink'")).rows[0];
  return { url, client, start, expire, position };
}

/** Runs in the background, as the service does it. What it has to say is not asked for. */
function background(relay: Relay): void {
  const job = every(20, () => relay.run(), { failed() {}, recovered() {} });
  onTestFinished(() => {
    relay.abort();
    return job.stop();
  });
}

const soon = (done: () => void | Promise<void>) => vi.waitFor(done, { timeout: 15_000, interval: 10 });

describe("of two processes", () => {
  test("one relays, also while the sink lets it wait for longer than the lease", async () => {
    const { client, start } = await openProcesses();
    const [one, other] = [await start(), await start()];
    const kept: ServerResponse[] = [];
    one.receiver.behave = (_event, response) => void kept.push(response);
    const [aggregate = ""] = aggregates(1);
    await addEvents(client, [aggregate, aggregate]);
    background(one.relay);
    await soon(() => expect(kept).toHaveLength(1));
    background(other.relay);
    const until = performance.now() + (LEASE_S + 1.5) * 1_000;
    await soon(() => expect(performance.now()).toBeGreaterThan(until));
    expect(other.receiver.tried).toEqual([]);
    one.receiver.behave = undefined;
    kept[0]?.writeHead(204).end();
    await soon(() => expect(numbers(one.receiver.taken)).toEqual([0, 1]));
    expect(numbers(one.receiver.tried)).toEqual([0, 1]);
    expect(other.receiver.tried).toEqual([]);
  });

  test("the one that has lost the lease while the sink let it wait neither moves on nor delivers more", async () => {
    const { client, start, expire, position } = await openProcesses();
    const [one, other] = [await start(), await start()];
    const kept: ServerResponse[] = [];
    one.receiver.behave = (_event, response) => void kept.push(response);
    other.receiver.behave = () => {};
    const [aggregate = ""] = aggregates(1);
    await addEvents(client, [aggregate, aggregate]);
    background(one.relay);
    await soon(() => expect(kept).toHaveLength(1));
    await expire();
    background(other.relay);
    // The other one had to claim it before this one renewed it.
    await soon(async () => {
      if (other.receiver.tried.length === 0) await expire();
      expect(numbers(other.receiver.tried)).toEqual([0]);
    });
    // It hears of that within the second after which it renews its lease, and hangs up.
    await soon(() => expect(kept[0]?.destroyed || kept[0]?.socket?.destroyed).toBe(true));
    expect(await position()).toEqual(START);
    expect(numbers(one.receiver.tried)).toEqual([0]);
  });

  test("the one that can't reach the database delivers nothing more once the other one may", async () => {
    const { url, client, start } = await openProcesses();
    const proxy = await createProxy(url);
    const [one, other] = [await start(proxy.url), await start()];
    const at: { one: number[]; other: number[] } = { one: [], other: [] };
    one.receiver.behave = (_event, response) => {
      at.one.push(performance.now());
      setTimeout(() => response.writeHead(204).end(), 50);
    };
    other.receiver.behave = (_event, response) => {
      at.other.push(performance.now());
      response.writeHead(204).end();
    };
    const [aggregate = ""] = aggregates(1);
    await addEvents(
      client,
      Array.from({ length: 400 }, () => aggregate),
    );
    background(one.relay);
    await soon(() => expect(one.receiver.taken.length).toBeGreaterThan(2));
    proxy.keep();
    background(other.relay);
    await soon(() => expect(other.receiver.taken).toHaveLength(400));
    expect(at.one.length).toBeLessThan(200);
    expect(at.one.at(-1)).toBeLessThan(at.other[0] as number);
    proxy.cut();
  });
});

test("the one that does not relay tries nothing again that the other one has set aside", async () => {
  const { client, start } = await openProcesses();
  const [one, other] = [await start(), await start()];
  const [sick = "", healthy = ""] = aggregates(2);
  one.receiver.behave = (event, response) => response.writeHead(event.subject === sick ? 500 : 204).end();
  await addEvents(client, [sick, healthy]);
  await soon(async () => {
    await one.relay.run();
    expect((await client.query("select from event_undelivered")).rows).toHaveLength(1);
  });
  await client.query("update event_undelivered set retry_time = now()");
  expect(await other.relay.retry()).toBe(false);
  expect(other.receiver.tried).toEqual([]);
  one.receiver.behave = undefined;
  await one.relay.retry();
  expect(numbers(one.receiver.taken)).toEqual([1, 0]);
});

describe("a lease", () => {
  async function openLeases() {
    const { url, client, expire, position } = await openProcesses();
    const [one, other] = await Promise.all(
      [1, 2].map(async () => new Lease((await open(url)).db, "sink")) as [Promise<Lease>, Promise<Lease>],
    );
    const written = async () => (await client.query("select from event_undelivered")).rows.length;
    return { one, other, expire, position, written };
  }
  const to = { xid: "7", id: "00000000-0000-7000-8000-000000000007" };
  const nothing = async () => {};
  const write = async (em: EntityManager) => {
    await em.execute(
      `insert into event_undelivered (aggregateid, event_id, aggregatetype, xid, attempts, retry_time, dead, last_error)
       values ('a', ?, 'stock', '7', 1, now(), false, '')`,
      [to.id],
    );
  };

  test("belongs to one until it has ended or is released", async () => {
    const { one, other, expire } = await openLeases();
    expect(await one.claim()).toBeDefined();
    expect(one.isHeld).toBe(true);
    expect([await other.claim(), other.isHeld]).toEqual([undefined, false]);
    await expire();
    await soon(async () => expect(await other.claim()).toBeDefined());
    await soon(async () => expect(await one.claim()).toBeUndefined());
    await other.release();
    await soon(async () => expect(await one.claim()).toBeDefined());
  });

  test("that was lost moves nothing, and lets nothing be written in its name", async () => {
    const { one, other, expire, position, written } = await openLeases();
    await one.claim();
    await expire();
    expect(await other.claim()).toBeDefined();
    await expect(one.advance(to, write)).rejects.toThrow(LeaseLost);
    await expect(one.hold(write)).rejects.toThrow(LeaseLost);
    expect(await position()).toEqual(START);
    // Not even after the other one has gone: nobody knows what it has done.
    await expire();
    await expect(one.advance(to, write)).rejects.toThrow(LeaseLost);
    expect(await written()).toBe(0);
    await other.hold(nothing);
    await other.advance(to, nothing);
    expect(await position()).toEqual({ xid: to.xid, event_id: to.id });
    // Nothing goes back.
    await expect(other.advance(to, nothing)).rejects.toThrow(LeaseLost);
  });

  test("moves on together with what is written, or not at all", async () => {
    const { one, position, written } = await openLeases();
    await one.claim();
    const failing = async (em: EntityManager) => {
      await write(em);
      throw new Error("and then it fails");
    };
    await expect(one.advance(to, failing)).rejects.toThrow("and then it fails");
    expect([await position(), await written()]).toEqual([START, 0]);
    await expect(one.hold(failing)).rejects.toThrow("and then it fails");
    expect(await written()).toBe(0);
    await one.advance(to, write);
    expect([await position(), await written()]).toEqual([{ xid: to.xid, event_id: to.id }, 1]);
  });

  test("is taken over with how far the one before has come", async () => {
    const { one, other, expire } = await openLeases();
    await one.claim();
    await one.advance(to, nothing);
    await expire();
    expect(await other.claim()).toEqual(to);
  });
});

test("a file gets nothing more from a process that has to stop", async () => {
  const folder = mkdtempSync(join(tmpdir(), "doorbuster-sink-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const path = join(folder, "events.jsonl");
  const [xid, id, aggregateid] = ["7", "00000000-0000-7000-8000-000000000007", "a"];
  const event = { xid, id, aggregatetype: "stock", aggregateid, type: "stock.adjusted", payload: "{}" } as const;
  const events = [{ ...event, createTime: new Date() }];
  expect(await fileSink(path).deliver(events, AbortSignal.abort())).toMatchObject([{ kind: "unreachable" }]);
  expect(await fileSink(path).deliver(events, new AbortController().signal)).toEqual(["delivered"]);
  expect(readFileSync(path, "utf8").trimEnd().split("\n")).toHaveLength(1);
});
