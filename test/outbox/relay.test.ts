/** What is delivered, when, and in which order; and what becomes of events that the sink does not take. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CloudEvent } from "cloudevents";
import { describe, expect, test } from "vitest";
import { fileSink } from "../../src/outbox/file-sink.ts";
import { httpSink } from "../../src/outbox/http-sink.ts";
import { connect } from "../db/harness.ts";
import { addEvents, aggregates, type Behaviour, startReceiver } from "./receiver.ts";
import { numbers, openHttp, openRelay, runUntil, TIMEOUT } from "./relays.ts";

describe("the sink gets", () => {
  test("each event as a CloudEvent of its own, in structured mode", async () => {
    const { receiver, client, drain } = await openHttp();
    const [aggregate = ""] = aggregates(1);
    const [id] = await addEvents(client, [aggregate], 7);
    await drain();
    const [event] = receiver.taken;
    expect(event).toBeInstanceOf(CloudEvent);
    expect(event?.validate()).toBe(true);
    expect(event).toMatchObject({
      specversion: "1.0",
      id,
      source: "/doorbuster",
      type: "stock.adjusted",
      subject: aggregate,
      partitionkey: aggregate,
      datacontenttype: "application/json",
      data: { n: 7 },
    });
    expect(receiver.headers[0]?.["content-type"]).toBe("application/cloudevents+json; charset=utf-8");
    expect(receiver.taken).toHaveLength(1);
  });

  test("the user and password of its URL as basic authentication", async () => {
    const receiver = await startReceiver();
    const url = Object.assign(new URL(receiver.url), { username: "shop", password: "p%40ss" });
    const { client, drain } = await openRelay(() => httpSink(url, TIMEOUT));
    await addEvents(client, aggregates(1));
    await drain();
    expect(receiver.headers[0]?.authorization).toBe(`Basic ${Buffer.from("shop:p@ss").toString("base64")}`);
  });

  test("the events of an aggregate in order, however many aggregates there are, and none twice", async () => {
    // Nothing may be late here, however slow the machine is.
    const { receiver, client, relay } = await openHttp({ timeoutMs: 10_000 });
    const all = aggregates(40);
    // Slow and fast answers, so that aggregates overtake each other.
    receiver.behave = (event, response) =>
      void setTimeout(() => response.writeHead(200).end("thanks"), ((event.data?.n ?? 0) * 7) % 13);
    for (let round = 0; round < 30; round += 1) await addEvents(client, all, round * all.length);
    await runUntil(relay, () => expect(receiver.taken).toHaveLength(1_200));
    for (const aggregate of all) {
      const own = numbers(receiver.taken.filter(({ subject }) => subject === aggregate));
      expect(own).toEqual(own.toSorted((a, b) => Number(a) - Number(b)));
      expect(own).toHaveLength(30);
    }
    await relay.run();
    expect(receiver.taken).toHaveLength(1_200);
  });

  test("the event of a transaction that commits late, in front of those that came meanwhile", async () => {
    const { url, receiver, client, relay, drain } = await openHttp();
    const late = await connect(url);
    const [aggregate = ""] = aggregates(1);
    await late.query("begin");
    await addEvents(late, [aggregate], 1);
    await addEvents(client, [aggregate], 2);
    await relay.run();
    // Somebody older may still write: nobody knows what comes first.
    expect(receiver.taken).toEqual([]);
    await late.query("commit");
    await drain();
    expect(numbers(receiver.taken)).toEqual([1, 2]);
  });

  test("nothing of a transaction that is rolled back", async () => {
    const { url, receiver, client, drain } = await openHttp();
    const other = await connect(url);
    await other.query("begin");
    await addEvents(other, aggregates(1), 1);
    await addEvents(client, aggregates(1), 2);
    await other.query("rollback");
    await drain();
    expect(numbers(receiver.taken)).toEqual([2]);
  });
});

describe("a file gets each event as a line of JSON", () => {
  const folder = mkdtempSync(join(tmpdir(), "doorbuster-sink-"));
  test("which is read back as what was sent, also behind a line that a crash has cut off", async () => {
    const path = join(folder, "sub", "events.jsonl");
    const { client, drain } = await openRelay(() => fileSink(path));
    await addEvents(client, aggregates(3));
    await drain();
    const text = readFileSync(path, "utf8");
    writeFileSync(path, `${text}{"specversion":"1.`);
    await addEvents(client, aggregates(2), 3);
    await drain();
    const lines = readFileSync(path, "utf8").trimEnd().split("\n");
    expect(lines).toHaveLength(6);
    const events = lines.toSpliced(3, 1).map((line) => new CloudEvent<{ n: number }>(JSON.parse(line)));
    expect(numbers(events)).toEqual([0, 1, 2, 3, 4]);
    rmSync(folder, { recursive: true });
  });

  test("which goes on in a new file when somebody has moved it away", async () => {
    const path = join(mkdtempSync(join(tmpdir(), "doorbuster-sink-")), "events.jsonl");
    const { client, drain } = await openRelay(() => fileSink(path));
    await addEvents(client, aggregates(1), 1);
    await drain();
    rmSync(path);
    await addEvents(client, aggregates(1), 2);
    await drain();
    expect(JSON.parse(readFileSync(path, "utf8")).data).toEqual({ n: 2 });
    rmSync(path);
  });

  test("which can't be written now: everything waits and comes later", async () => {
    const folder = mkdtempSync(join(tmpdir(), "doorbuster-sink-"));
    const blocked = join(folder, "blocked");
    writeFileSync(blocked, "a file where a folder has to be");
    const path = join(blocked, "events.jsonl");
    const { client, relay, told, undelivered } = await openRelay(() => fileSink(path));
    await addEvents(client, aggregates(2));
    await runUntil(relay, () => expect(told).toEqual(["down"]));
    rmSync(blocked);
    await runUntil(relay, () => expect(readFileSync(path, "utf8").split("\n")).toHaveLength(3));
    expect([told, await undelivered()]).toEqual([["down", "up"], []]);
    rmSync(folder, { recursive: true });
  });
});

/** How one event in the middle is not taken. */
const bad: Record<string, Behaviour> = {
  "is refused (400)": (_event, response) => response.writeHead(400).end("no"),
  "fails (500)": (_event, response) => response.writeHead(500).end("no"),
  "is redirected (302)": (_event, response) => response.writeHead(302, { location: "/elsewhere" }).end(),
  "is never answered": () => {},
  "is answered without an end": (_event, response) => void response.writeHead(200).write("x"),
  "is answered with garbage": (_event, response) => void response.socket?.end("garbage\r\n\r\n"),
  "is cut off": (_event, response) => void response.socket?.destroy(),
};

describe("an event that", () => {
  test.each(Object.entries(bad))("%s is set aside with those behind it; all others go on", async (_name, answer) => {
    const { receiver, client, relay, undelivered, soon, drain } = await openHttp();
    const [sick = "", ...healthy] = aggregates(20);
    receiver.behave = (event, response) =>
      event.subject === sick ? answer(event, response) : response.writeHead(204).end();
    await addEvents(client, [...healthy, sick, sick]);
    await drain();
    expect(numbers(receiver.taken).sort()).toEqual(healthy.map((_, index) => index).sort());
    // Later ones of the same aggregate come behind, and are not even tried.
    const before = receiver.tried.length;
    await addEvents(client, [sick, healthy[0] as string], 100);
    await drain();
    expect(receiver.tried).toHaveLength(before + 1);
    expect((await undelivered()).map(({ attempts, dead }) => ({ attempts, dead }))).toEqual([
      { attempts: 1, dead: false },
      { attempts: 0, dead: false },
      { attempts: 0, dead: false },
    ]);
    receiver.behave = undefined;
    await soon();
    await runUntil(relay, async () => expect(await undelivered()).toEqual([]));
    expect(numbers(receiver.taken.filter(({ subject }) => subject === sick))).toEqual([19, 20, 100]);
  });
});

describe("a sink that takes nothing", () => {
  test("since it is down: all wait where they are, and arrive once it is back, in order", async () => {
    const { receiver, client, relay, told, undelivered } = await openHttp({ maxAttempts: 2 });
    const [aggregate = ""] = aggregates(1);
    await receiver.down();
    for (let n = 0; n < 5; n += 1) await addEvents(client, [aggregate, ...aggregates(50)], n * 1_000);
    await runUntil(relay, () => expect(told.filter((what) => what === "down").length).toBeGreaterThanOrEqual(2));
    expect(await undelivered()).toEqual([]);
    await receiver.up();
    await runUntil(relay, () => expect(receiver.taken).toHaveLength(255));
    expect(numbers(receiver.taken.filter(({ subject }) => subject === aggregate))).toEqual([
      0, 1_000, 2_000, 3_000, 4_000,
    ]);
    expect([told.at(-1), await undelivered()]).toEqual(["up", []]);
  });

  test("since it hangs: it is given up early, and not waited for by each event", async () => {
    const { receiver, client, relay, told, undelivered } = await openHttp();
    receiver.behave = () => {};
    await addEvents(client, aggregates(400));
    await runUntil(relay, () => expect(told).toEqual(["down"]));
    expect(receiver.tried.length).toBeLessThan(100);
    expect(await undelivered()).toEqual([]);
    // It is left alone for half a second at the least.
    const before = receiver.tried.length;
    expect(await relay.run()).toBe(false);
    expect(receiver.tried).toHaveLength(before);
    receiver.behave = undefined;
    await runUntil(relay, () => expect(new Set(receiver.taken.map(({ id }) => id)).size).toBe(400));
  });
});
