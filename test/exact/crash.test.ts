/** Server processes and connections that die under load: whoever sends a request again finds it done once. */
import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { openDatabase } from "./audit.ts";
import { GrpcClient, reasonOf } from "./clients.ts";
import { CALLERS, expectEachOnce, prepare, sendAgain, sendAll } from "./load.ts";
import { clientsOf, fresh, many, serverOn, tokenOf } from "./shop.ts";

let url: string;
let database: Pool;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
});

test("kill -9 in the middle of load", async () => {
  const server = await serverOn(url);
  const load = await prepare(server, database);
  const sent = await sendAll(server, load.requests, (count) => {
    if (count === 80) server.kill("SIGKILL");
  });
  await server.exited;
  expect(sent.refused.size).toBeGreaterThan(0);
  const restarted = await serverOn(url);
  await sendAgain(restarted, load, sent);
  await expectEachOnce(restarted, database, load);
  await restarted.stop();
});

test("kill -9 of one of two processes: the other one goes on", async () => {
  const [dying, other] = [await serverOn(url), await serverOn(url)];
  const load = await prepare(other, database);
  const [sent] = await Promise.all([
    sendAll(dying, load.requests, (count) => {
      if (count === 60) dying.kill("SIGKILL");
    }),
    // At the same time, the same requests: who comes second has the answer of the first.
    sendAgain(other, load, { answers: new Map(), refused: new Map() }),
  ]);
  await sendAgain(other, load, sent);
  await expectEachOnce(other, database, load);
  await other.stop();
});

test("connections to the database die in the middle of load", async () => {
  const server = await serverOn(url);
  const load = await prepare(server, database);
  const kill = `select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'auditor'`;
  const killings: Promise<unknown>[] = [];
  const sent = await sendAll(server, load.requests, (count) => {
    if (count % 40 === 0) killings.push(database.query(kill).catch(() => {}));
  });
  await Promise.all(killings);
  // Connections end a moment after they were told to: whoever meets one sends once more.
  const { users } = clientsOf(new GrpcClient(server, await tokenOf()).transport);
  const probe = () => many(CALLERS, () => users.createUser({ requestId: fresh(), name: "A probe" }));
  await expect.poll(() => probe().then(() => "OK", reasonOf), { timeout: 10_000 }).toBe("OK");
  expect(new Set([...sent.refused.values(), "DATABASE_UNAVAILABLE"])).toEqual(new Set(["DATABASE_UNAVAILABLE"]));
  expect(sent.refused.size).toBeGreaterThan(0);
  await sendAgain(server, load, sent);
  await expectEachOnce(server, database, load);
  await server.stop();
});

test("SIGTERM in the middle of load: each call is answered or refused as a whole", async () => {
  const server = await serverOn(url);
  const load = await prepare(server, database);
  const sent = await sendAll(server, load.requests, (count) => {
    if (count === 80) server.kill("SIGTERM");
  });
  expect((await server.exited).code).toBe(0);
  for (const reason of new Set(sent.refused.values())) expect(reason).toMatch(/^SHUTTING_DOWN$|: Unavailable /);
  const stored = await database.query<{ request_id: string }>("select request_id from idempotency");
  const known = new Set(stored.rows.map((row) => row.request_id));
  // What was refused has had no effect: nobody has to wonder.
  expect([...sent.refused].filter(([id, reason]) => reason === "SHUTTING_DOWN" && known.has(id))).toEqual([]);
  expect([...sent.answers.keys()].filter((id) => !known.has(id))).toEqual([]);
  const restarted = await serverOn(url);
  await sendAgain(restarted, load, sent);
  await expectEachOnce(restarted, database, load);
  await restarted.stop();
});
