/** What operators run: what was set aside and sending it again, what is kept, and the live top in a terminal. */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { EventFeed, type Events } from "../../src/event/event.service.ts";
import { httpSink } from "../../src/outbox/http-sink.ts";
import { Relay } from "../../src/outbox/relay.ts";
import { purgeEvents, type Reader } from "../../src/outbox/retention.ts";
import { EventTail } from "../../src/outbox/tail.ts";
import { connect, open } from "../db/harness.ts";
import { GrpcClient } from "../exact/clients.ts";
import { clientsOf, fresh, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { run } from "../support/processes.ts";
import { addEvents, aggregates, startReceiver } from "./receiver.ts";

const script = (name: string) => join(import.meta.dirname, `../../scripts/${name}.ts`);
const DAY = 24 * 60 * 60 * 1_000;

async function openRelay() {
  const url = await createDatabase();
  const receiver = await startReceiver();
  const { db } = await open(url);
  const relay = new Relay({ db, sink: httpSink(receiver.url, 1_000), maxAttempts: 1 });
  onTestFinished(async () => {
    relay.abort();
    await relay.close();
  });
  const events = (...args: string[]) =>
    run(process.execPath, [script("events"), ...args], { env: { DATABASE_URL: url } }).exited;
  const runUntil = (done: () => void) =>
    vi.waitFor(
      async () => {
        while (await relay.run());
        while (await relay.retry());
        done();
      },
      { timeout: 15_000, interval: 20 },
    );
  return { url, db, receiver, client: await connect(url), events, runUntil };
}

describe("npm run events", () => {
  // Each command is a process of its own.
  test("shows what was given up, and has it sent again: all, or some", async () => {
    const { receiver, client, events, runUntil } = await openRelay();
    expect(await events("list")).toMatchObject({ code: 0, stdout: "every event was delivered, or is on its way\n" });
    receiver.behave = (event, response) => response.writeHead(event.data?.n === 3 ? 204 : 422).end();
    const [first = "", second = "", third = ""] = await addEvents(client, aggregates(4));
    await runUntil(() => expect(receiver.tried).toHaveLength(4));
    const { code, stdout } = await events("list");
    expect(code).toBe(0);
    const lines = stdout.trimEnd().split("\n");
    expect(lines).toHaveLength(3);
    expect(lines[0]).toMatch(new RegExp(`^${first}  stock.adjusted .* 1 attempts, given up  it answered 422$`));
    receiver.behave = undefined;
    expect(await events("replay", first)).toMatchObject({ code: 0, stdout: "1 event is sent again\n" });
    await runUntil(() => expect(receiver.taken.map(({ id }) => id)).toContain(first));
    expect(receiver.taken).toHaveLength(2);
    expect(await events("replay", "--all")).toMatchObject({ code: 0, stdout: "2 events are sent again\n" });
    await runUntil(() => expect(receiver.taken.map(({ id }) => id)).toEqual(expect.arrayContaining([second, third])));
    expect(await events("replay", "--all")).toMatchObject({ code: 0, stdout: "0 events are sent again\n" });
  }, 60_000);

  test.each([
    ["is older", "delete from migration where id = (select max(id) from migration)"],
    ["is empty", "drop schema public cascade; create schema public"],
  ])("neither looks at nor changes a database whose schema %s", async (_name, spoil) => {
    const url = await createDatabase();
    const client = await connect(url);
    await client.query(spoil);
    const state = async () => {
      const { rows } = await client.query(
        "select relname, relfilenode from pg_class where relnamespace = 'public'::regnamespace",
      );
      const known = rows.some(({ relname }) => relname === "migration");
      return [rows, known && (await client.query("select * from migration")).rows];
    };
    const before = await state();
    for (const args of [["list"], ["replay", "--all"]]) {
      const { exited } = run(process.execPath, [script("events"), ...args], { env: { DATABASE_URL: url } });
      expect(await exited).toMatchObject({
        code: 1,
        stdout: "",
        stderr: "the schema of the database is not up to date: start the service, which migrates it\n",
      });
    }
    expect(await state()).toEqual(before);
  });

  test.each([[[]], [["replay"]], [["replay", "--all", randomUUID()]], [["list", "x"]], [["delete"]]])(
    "says how it is used: %j",
    async (args) => {
      const { exited } = run(process.execPath, [script("events"), ...args]);
      expect(await exited).toMatchObject({
        code: 1,
        stdout: "",
        stderr: expect.stringMatching(/^use `npm run events/),
      });
    },
  );
});

test("events are kept as long as wanted, and longer while somebody has not got them", async () => {
  const { db, receiver, client, runUntil } = await openRelay();
  const feed = new EventFeed(db, new EventTail(db, { failed: () => {}, recovered: () => {} }));
  const next = async (after: string) => {
    const stream = feed.stream(after, [], AbortSignal.timeout(10_000));
    const { value } = await stream.next().finally(() => stream.return());
    return value as Events;
  };
  const [sick = "", ...healthy] = aggregates(4);
  receiver.behave = (event, response) => response.writeHead(event.subject === sick ? 422 : 204).end();
  await addEvents(client, [sick, ...healthy]);
  const purge = (days: number, ...readers: Reader[]) =>
    db.maintain((em) => purgeEvents(em, new Date(Date.now() + days * DAY), 100, readers));
  const sink = { name: "sink" };
  const left = async () => (await client.query("select from event")).rows.length;
  // Nobody has delivered them, and nobody has counted them.
  expect(await purge(1, sink)).toBe(0);
  const { events, position } = await next("");
  expect(events).toHaveLength(4);
  await runUntil(() => expect(receiver.tried).toHaveLength(4));
  expect(await purge(-1, sink)).toBe(0);
  expect(await purge(1, sink, { name: "sales" })).toBe(0);
  expect(await left()).toBe(4);
  // The one that was given up stays: it can be sent again.
  // Whoever counts sales has no need of them.
  expect(await purge(1, sink, { name: "sales", types: ["order.paid"] })).toBe(3);
  expect((await client.query("select aggregateid from event")).rows).toEqual([{ aggregateid: sick }]);
  // Who had them goes on; who had not is told, and not left with a gap; who begins gets what there is.
  await addEvents(client, [sick], 9);
  expect((await next(position)).events.map(({ payload }) => payload)).toEqual(['{"n": 9}']);
  const first = Buffer.from(`${events[0]?.xid}:${events[0]?.id}`).toString("base64url");
  await expect(next(first)).rejects.toMatchObject({ reason: "POSITION_EXPIRED" });
  expect((await next("")).events[0]?.aggregateid).toBe(sick);
  // A position of another database, or of this one before it was restored.
  const far = Buffer.from(`9000000000000000000:${events[0]?.id}`).toString("base64url");
  await expect(next(far)).rejects.toMatchObject({ reason: "POSITION_INVALID" });
});

describe("npm run watch", () => {
  const watch = (...args: string[]) => run(process.execPath, [script("watch"), ...args]);

  test("shows what sells best, and each change of it", async () => {
    const server = await serverOn(await createDatabase());
    const token = await tokenOf();
    const client = new GrpcClient(server, token);
    const watching = watch("--url", `http://127.0.0.1:${server.httpPort}`, "--token", token);
    onTestFinished(async () => {
      watching.kill("SIGKILL");
      client.close();
      await server.stop();
    });
    await watching.printed(/Best sellers of the last 3 days at http:.*\n\n {5}nothing was sold yet/);
    const shop = clientsOf(client.transport);
    const variantId = await newVariant(shop, {}, 10n, 100);
    const userId = await newUser(shop, 1_000n);
    await shop.orders.checkout({ requestId: fresh(), userId, lines: [{ variantId, quantity: 3 }] });
    await watching.printed(/ {2}1 {2}A thing {25}█{40} {2}3\n/);
  });

  test.each([
    [[], /^--token is missing/],
    [["--token", "x", "--url", "shop"], /^--url must be an http or https URL$/m],
    [["--token", "x", "--by", "shop"], /^--by must be product or variant$/m],
  ])("says what is wrong: %j", async (args, message) => {
    const { code, stderr } = await watch(...args).exited;
    expect([code, stderr]).toEqual([1, expect.stringMatching(message)]);
  });

  test("ends when the server does not want it", async () => {
    const server = await serverOn(await createDatabase());
    onTestFinished(async () => void (await server.stop()));
    const { code, stderr } = await watch("--url", `http://127.0.0.1:${server.httpPort}`, "--token", "x.y.z").exited;
    expect([code, stderr]).toEqual([1, "the token is not valid\n"]);
  });
});
