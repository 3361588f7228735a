/** Settings of events, as the service keeps to them: how long they are kept, tried, and waited for. */
import type { Client } from "pg";
import { v7 } from "uuid";
import { expect, onTestFinished, test, vi } from "vitest";
import { connect } from "../db/harness.ts";
import { serverOn } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { addEvents, aggregates, startReceiver } from "./receiver.ts";

const soon = { timeout: 15_000, interval: 20 };
const NOT_DELIVERED = `
  select e.id from event e, event_reader r where r.name = 'sink' and (e.xid, e.id) > (r.xid, r.event_id)`;

async function openService() {
  const url = await createDatabase();
  const receiver = await startReceiver();
  const start = async (env: NodeJS.ProcessEnv) => {
    const server = await serverOn(url, { EVENT_SINK_URL: receiver.url.href, ...env });
    onTestFinished(async () => {
      server.kill("SIGKILL");
      await server.exited;
    });
    return server;
  };
  return { receiver, start, client: await connect(url) };
}

/** Events as old as that, each of another aggregate. Returns their ids. */
async function addOld(client: Client, count: number, minutes: number): Promise<string[]> {
  const ids = Array.from({ length: count }, () => v7({ msecs: Date.now() - minutes * 60_000 })).sort();
  for (const id of ids) {
    await client.query(
      `insert into event (id, aggregatetype, aggregateid, type, payload, create_time)
       values ($1::uuid, 'stock', $1::text, 'stock.adjusted', '{"n": 1}', now() - $2::int * interval '1 minute')`,
      [id, minutes],
    );
  }
  return ids;
}

test("EVENT_RETENTION: older events go, when the sink has them; where there is none, nobody has to have them", async () => {
  const { receiver, start, client } = await openService();
  const [had = "", ...old] = await addOld(client, 4, 3);
  const [young] = await addEvents(client, aggregates(1));
  await client.query(
    "update event_reader r set xid = e.xid, event_id = e.id from event e where r.name = 'sink' and e.id = $1",
    [had],
  );
  const left = async () => (await client.query("select id from event order by xid, id")).rows.map(({ id }) => id);
  const leaves = (...ids: unknown[]) => vi.waitFor(async () => expect(await left()).toEqual(ids), soon);
  const env = { EVENT_RETENTION: "1m" };

  await receiver.down();
  const first = await start(env);
  // All that may go is deleted at once.
  await leaves(...old, young);
  await receiver.up();
  await vi.waitFor(async () => expect((await client.query(NOT_DELIVERED)).rows).toEqual([]), soon);
  expect(receiver.taken).toHaveLength(4);
  await first.stop();
  expect(await left()).toEqual([...old, young]);

  const second = await start(env);
  await leaves(young);
  await second.stop();

  await addOld(client, 2, 3);
  await start({ ...env, EVENT_SINK_URL: "off" });
  await leaves(young);
  expect(receiver.taken).toHaveLength(4);
}, 60_000);

test("EVENT_MAX_ATTEMPTS, EVENT_SINK_TIMEOUT: an event is given up, and an answer is not waited for any more", async () => {
  const { receiver, start, client } = await openService();
  const [refused = "", silent = "", healthy = ""] = aggregates(3);
  receiver.behave = ({ subject }, response) => {
    if (subject !== silent) response.writeHead(subject === refused ? 422 : 204).end();
  };
  await start({ EVENT_MAX_ATTEMPTS: "2", EVENT_SINK_TIMEOUT: "300ms" });
  const began = performance.now();
  await addEvents(client, [refused, silent, healthy]);
  const undelivered = async (aggregate: string) =>
    (
      await client.query("select attempts, dead, last_error as error from event_undelivered where aggregateid = $1", [
        aggregate,
      ])
    ).rows;
  await vi.waitFor(async () => expect(await undelivered(silent)).toMatchObject([{ error: "no answer in time" }]), soon);
  // Half of the time that it would wait if nothing was set.
  expect(performance.now() - began).toBeLessThan(5_000);
  let n = 100;
  await vi.waitFor(async () => {
    // Whether attempts count is seen by what else is taken.
    await addEvents(client, [healthy], n++);
    expect(await undelivered(refused)).toEqual([{ attempts: 2, dead: true, error: "it answered 422" }]);
  }, soon);
});
