/** Callers of streams that never read: they cost no memory, and hold up nobody. */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { create, toBinary } from "@bufbuild/protobuf";
import { expect, onTestFinished, test, vi } from "vitest";
import { StreamEventsRequestSchema } from "../../gen/shop/v1/event_pb.ts";
import { connect } from "../db/harness.ts";
import { serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { addEvents, aggregates } from "./receiver.ts";

const PATH = "/shop.v1.EventService/StreamEvents";
const STREAMS = 20;
/** Of text in each event: all of them together are far more than may wait in memory. */
const TEXT = "x".repeat(10_000);
const EVENTS = 3_000;

const residentMb = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1_024;

test("streams that nobody reads, through both doors: the process stays as it is, and others get all", async () => {
  const url = await createDatabase();
  const server = await serverOn(url, { EVENT_SINK_URL: "off" });
  const client = await connect(url);
  const token = await tokenOf();
  onTestFinished(async () => void (await server.stop()));
  for (let sent = 0; sent < EVENTS; sent += 500) await addEvents(client, aggregates(500), sent);
  await client.query("update event set payload = payload || jsonb_build_object('text', $1::text)", [TEXT]);
  const request = toBinary(StreamEventsRequestSchema, create(StreamEventsRequestSchema, {}));
  const message = Buffer.concat([Buffer.of(0, 0, 0, 0, request.length), request]);

  const session = connectHttp2(`http://127.0.0.1:${server.grpcPort}`);
  onTestFinished(() => session.destroy());
  const open = () => {
    const headers = { authorization: `Bearer ${token}`, te: "trailers", "content-type": "application/grpc" };
    const stream = session.request({ ":method": "POST", ":path": PATH, ...headers });
    stream.end(message);
    return stream;
  };
  /** Somebody who reads, and gets all of it. */
  const readAll = async () => {
    let bytes = 0;
    const reading = open().on("data", (chunk: Buffer) => {
      bytes += chunk.length;
    });
    await vi.waitFor(() => expect(bytes).toBeGreaterThan(EVENTS * TEXT.length), { timeout: 20_000, interval: 20 });
    reading.close();
  };
  await readAll();
  const before = residentMb(server.pid);
  const deaf = Array.from({ length: STREAMS }, () => open().pause());
  const statuses = deaf.map((stream) => once(stream, "response").then(([headers]) => headers[":status"]));
  expect(new Set(await Promise.all(statuses))).toEqual(new Set([200]));
  const sockets = Array.from({ length: STREAMS }, () => {
    const socket = connectTcp(server.httpPort, "127.0.0.1");
    const body = `${String.fromCharCode(0, 0, 0, 0, 2)}{}`;
    socket.write(
      `POST ${PATH} HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer ${token}\r\n` +
        `content-type: application/connect+json\r\nconnect-protocol-version: 1\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    return socket;
  });
  onTestFinished(() => sockets.forEach((socket) => void socket.destroy()));
  // They read that their stream has begun, and nothing more.
  for (const socket of sockets) {
    const [begin] = await once(socket, "data");
    socket.pause();
    expect(String(begin)).toMatch(/^HTTP\/1\.1 200 /);
  }

  await readAll();
  // 40 streams of 30 MB each would be more than a gigabyte.
  expect(residentMb(server.pid) - before).toBeLessThan(300);
}, 60_000);
