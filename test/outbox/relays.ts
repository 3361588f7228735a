/** Relays that are run by hand, on databases of their own. */
import type { CloudEvent } from "cloudevents";
import { expect, onTestFinished, vi } from "vitest";
import { httpSink } from "../../src/outbox/http-sink.ts";
import { Relay } from "../../src/outbox/relay.ts";
import type { Sink } from "../../src/outbox/sink.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";
import { type Facts, startReceiver } from "./receiver.ts";

/** How long an answer may take, in milliseconds. */
export const TIMEOUT = 300;

/** One process of those that relay on a database. */
export async function startRelay(url: string, sink: Sink, maxAttempts = 100) {
  const { db } = await open(url);
  const told: string[] = [];
  const observer = {
    down: () => void told.push("down"),
    up: () => void told.push("up"),
    dead: ({ id }: { id: string }) => void told.push(`dead ${id}`),
  };
  const relay = new Relay({ db, sink, maxAttempts, observer });
  onTestFinished(async () => {
    relay.abort();
    await relay.close();
  });
  return { db, relay, told };
}

/** A database with a relay. */
export async function openRelay(sinkOf: (url: string) => Sink, maxAttempts?: number) {
  const url = await createDatabase();
  const client = await connect(url);
  const { db, relay, told } = await startRelay(url, sinkOf(url), maxAttempts);
  const undelivered = async () => {
    const { rows } = await client.query<{ id: string; attempts: number; dead: boolean; error: string }>(
      "select event_id as id, attempts, dead, last_error as error from event_undelivered order by xid, event_id",
    );
    return rows;
  };
  /** Lets the pauses of all that was set aside be over. */
  const soon = () => client.query("update event_undelivered set retry_time = now()");
  /** Runs until the sink has got past all events: they wait for the transactions of other tests, too. */
  const drain = () =>
    runUntil(relay, async () => {
      const { rows } = await client.query(
        "select from event e, event_reader r where r.name = 'sink' and (e.xid, e.id) > (r.xid, r.event_id) limit 1",
      );
      expect(rows).toEqual([]);
    });
  return { url, db, client, relay, told, undelivered, soon, drain };
}

export async function openHttp({
  maxAttempts,
  timeoutMs = TIMEOUT,
}: {
  maxAttempts?: number;
  timeoutMs?: number;
} = {}) {
  const receiver = await startReceiver();
  return { receiver, ...(await openRelay(() => httpSink(receiver.url, timeoutMs), maxAttempts)) };
}

export const numbers = (events: readonly CloudEvent<Facts>[]) => events.map(({ data }) => data?.n);

/** Runs until nothing is left to do, and through pauses until `done`. */
export const runUntil = (relay: Pick<Relay, "run" | "retry">, done: () => void | Promise<void>, timeout = 15_000) =>
  vi.waitFor(
    async () => {
      while (await relay.run());
      while (await relay.retry());
      await done();
    },
    { timeout, interval: 20 },
  );
