/** Postgres itself dies under load: what was answered is there when it is back, once, and so are its events. */
import { expect, onTestFinished, test, vi } from "vitest";
import { startReceiver } from "../outbox/receiver.ts";
import { directory, postmaster, start } from "../support/embedded.ts";
import { openDatabase } from "./audit.ts";
import { GrpcClient } from "./clients.ts";
import { expectEachOnce, prepare, sendAgain, sendAll } from "./load.ts";
import { clientsOf, fresh, serverOn, tokenOf } from "./shop.ts";

/** Longer than Postgres takes to recover, and the service to notice. */
const RECOVERY = 30_000;

test("kill -9 of Postgres in the middle of load: nothing answered is lost, and each event is told and ranked once", async () => {
  const dataDir = directory();
  const postgres = await start(dataDir);
  const { port } = new URL(postgres.url);
  const receiver = await startReceiver();
  const server = await serverOn(postgres.url, { EVENT_SINK_URL: receiver.url.href });
  const load = await prepare(server);
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
  const database = openDatabase(again.url);
  await expectEachOnce(database, load);

  const { rows } = await database.query<{ id: string; aggregateid: string }>(
    "select id, aggregateid from event order by xid, id",
  );
  const told = () => [...new Map(receiver.taken.map(({ id, subject }) => [id, subject]))];
  await vi.waitFor(() => expect(told()).toHaveLength(rows.length), { timeout: RECOVERY, interval: 50 });
  const inOrder = (list: readonly (readonly [string, string | undefined])[]) => Map.groupBy(list, ([, id]) => id);
  expect(inOrder(told() as [string, string][])).toEqual(
    inOrder(rows.map(({ id, aggregateid }) => [id, aggregateid] as const)),
  );
  await server.stop();
});
