/** Postgres itself dies under load: what was answered is there when it is back, once, and so are its events. */
import { setTimeout as delay } from "node:timers/promises";
import { expect, onTestFinished, test, vi } from "vitest";
import { EventService } from "../../gen/shop/v1/event_pb.ts";
import { startReceiver } from "../outbox/receiver.ts";
import { grpcClient } from "../rpc/clients.ts";
import { directory, postmaster, start } from "../support/embedded.ts";
import type { Server } from "../support/processes.ts";
import { openDatabase } from "./audit.ts";
import { GrpcClient } from "./clients.ts";
import { expectEachOnce, prepare, sendAgain, sendAll } from "./load.ts";
import { clientsOf, fresh, serverOn, tokenOf } from "./shop.ts";

/** Longer than Postgres takes to recover, and the service to notice. */
const RECOVERY = 30_000;
const soon = { timeout: 10_000, interval: 10 };

/** Somebody who keeps up with events, and goes on from the last position whenever that fails, or after so many pages. */
async function follow({ grpcPort }: Server, pages: number) {
  const door = grpcClient(grpcPort);
  const leaving = new AbortController();
  const options = { token: await tokenOf(), signal: leaving.signal };
  const state = { ids: [] as string[], position: "", refusals: new Set<unknown>() };
  const read = async () => {
    let left = pages;
    for await (const page of door.stream(
      EventService.method.streamEvents,
      { afterPosition: state.position },
      options,
    )) {
      state.ids.push(...page.events.map(({ id }) => id));
      state.position = page.position;
      left -= 1;
      if (left === 0) break;
    }
  };
  const reading = (async () => {
    while (!leaving.signal.aborted) {
      await read().catch((error) => leaving.signal.aborted || state.refusals.add(error.reason));
      // As a client does, that does not hammer at a closed door.
      await delay(20);
    }
  })();
  onTestFinished(async () => {
    leaving.abort();
    await reading;
    door.close();
  });
  return state;
}

test("kill -9 of Postgres in the middle of load: nothing answered is lost, and each event is told and ranked once", async () => {
  const dataDir = directory();
  const postgres = await start(dataDir);
  const { port } = new URL(postgres.url);
  const receiver = await startReceiver();
  const server = await serverOn(postgres.url, { EVENT_SINK_URL: receiver.url.href });
  const database = openDatabase(postgres.url);
  const load = await prepare(server, database);
  const readers = [await follow(server, Number.POSITIVE_INFINITY), await follow(server, 1)];
  for (const { ids } of readers) await vi.waitFor(() => expect(ids.length).toBeGreaterThan(0), soon);
  const sent = await sendAll(server, load.requests, (count) => {
    if (count === 120) process.kill(postmaster(`${dataDir}/postgres`), "SIGKILL");
  });
  expect((await postgres.exited).message).toContain("ended");
  await postgres.stop();
  expect(sent.refused.size).toBeGreaterThan(0);
  expect(new Set(sent.refused.values())).toEqual(new Set(["DATABASE_UNAVAILABLE"]));

  const again = await start(dataDir, undefined, Number(port));
  expect(again.url).toBe(postgres.url);
  const client = new GrpcClient(server, await tokenOf());
  onTestFinished(() => client.close());
  const probe = () => clientsOf(client.transport).users.createUser({ requestId: fresh(), name: "A probe" });
  await vi.waitFor(probe, { timeout: RECOVERY, interval: 100 });
  await sendAgain(server, load, sent);
  await expectEachOnce(server, database, load);

  const { rows } = await database.query<{ id: string; aggregateid: string }>(
    "select id, aggregateid from event order by xid, id",
  );
  const told = () => [...new Map(receiver.taken.map(({ id, subject }) => [id, subject]))];
  await vi.waitFor(() => expect(told()).toHaveLength(rows.length), { timeout: RECOVERY, interval: 50 });
  const inOrder = (list: readonly (readonly [string, string | undefined])[]) => Map.groupBy(list, ([, id]) => id);
  expect(inOrder(told() as [string, string][])).toEqual(
    inOrder(rows.map(({ id, aggregateid }) => [id, aggregateid] as const)),
  );
  const ids = rows.map(({ id }) => id);
  for (const reader of readers) {
    await vi.waitFor(() => expect(reader.ids).toHaveLength(ids.length), soon);
    expect(reader.ids).toEqual(ids);
    expect([...reader.refusals].filter((reason) => reason !== "DATABASE_UNAVAILABLE")).toEqual([]);
  }
  await server.stop();
});
