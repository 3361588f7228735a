/** A thousand callers of streams who come and go, through both doors, in a good way and in a bad one. */
import { once } from "node:events";
import { connect as connectHttp2, constants } from "node:http2";
import { connect as connectTcp } from "node:net";
import { pino } from "pino";
import { expect, onTestFinished, test, vi } from "vitest";
import { EventService } from "../../gen/shop/v1/event_pb.ts";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { eventHandler } from "../../src/event/event.handler.ts";
import { EventFeed } from "../../src/event/event.service.ts";
import { EventTail } from "../../src/outbox/tail.ts";
import { rankingHandler } from "../../src/ranking/ranking.handler.ts";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import { RankingWatch } from "../../src/ranking/watch.ts";
import { createVerifier } from "../../src/rpc/auth.ts";
import { route, serve } from "../../src/rpc/server.ts";
import { connect, open } from "../db/harness.ts";
import { secret, service } from "../rpc/server.ts";
import { createDatabase } from "../support/database.ts";
import { addEvents, aggregates } from "./receiver.ts";

const soon = { timeout: 10_000, interval: 20 };
const PATHS = ["/shop.v1.EventService/StreamEvents", "/shop.v1.RankingService/WatchTopProducts"];
const authorization = `Bearer ${service}`;

/** What keeps the process alive: as many timers and sockets. */
const active = () =>
  ["Timeout", "TCPSocketWrap"].map((kind) => process.getActiveResourcesInfo().filter((one) => one === kind).length);

/** A connection with so many streams of each kind, all of them begun. Answers how to leave. */
async function openGrpc(port: number, streams: number, politely: boolean): Promise<() => void> {
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  const headers = { ":method": "POST", authorization, te: "trailers", "content-type": "application/grpc" };
  const paths = Array.from({ length: streams }, () => PATHS).flat();
  const all = paths.map((path) => {
    const stream = session.request({ ...headers, ":path": path });
    // One message of no bytes.
    stream.on("error", () => {}).end(Buffer.alloc(5));
    return stream;
  });
  await Promise.all(all.map((stream) => once(stream, "data")));
  return () => {
    if (!politely) session.destroy();
    else {
      for (const stream of all) stream.close(constants.NGHTTP2_CANCEL);
      session.close();
    }
  };
}

async function openConnect(port: number, path: string, politely: boolean): Promise<() => void> {
  const socket = connectTcp(port, "127.0.0.1");
  const body = `${String.fromCharCode(0, 0, 0, 0, 2)}{}`;
  socket.write(
    `POST ${path} HTTP/1.1\r\nhost: shop\r\nauthorization: ${authorization}\r\n` +
      `content-type: application/connect+json\r\nconnect-protocol-version: 1\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  await once(socket, "data");
  socket.resume();
  return () => (politely ? socket.end() : socket.destroy());
}

test("a thousand streams leave neither a follower nor a timer nor a connection behind", async () => {
  const url = await createDatabase();
  const { db } = await open(url);
  await addEvents(await connect(url), aggregates(1));
  const failures: unknown[] = [];
  const observer = { failed: (error: unknown) => failures.push(error), recovered: () => {} };
  const tail = new EventTail(db, observer);
  const ranking = new Ranking(db);
  const watching = new RankingWatch((query) => ranking.top(query), observer);
  const served = await serve({
    host: "127.0.0.1",
    grpcPort: 0,
    httpPort: 0,
    corsOrigins: [],
    routes: [
      route(EventService, eventHandler(new EventFeed(db, tail))),
      route(RankingService, rankingHandler(ranking, watching)),
    ],
    verifier: createVerifier({ secret }),
    log: pino({ level: "silent" }),
    ready: async () => true,
  });
  onTestFinished(() => served.stop(0));
  const come = async (streams: number) => {
    const connections = [true, false].map((politely) => openGrpc(served.grpcPort, streams, politely));
    const sockets = Array.from({ length: streams }, (_, index) =>
      PATHS.map((path) => openConnect(served.httpPort, path, index % 2 === 0)),
    );
    return Promise.all([...connections, ...sockets.flat()]);
  };
  const counts = () => [tail.followers, watching.watchers];

  // What is made once is there, and nobody is left.
  for (const leave of await come(2)) leave();
  await vi.waitFor(() => expect(counts()).toEqual([0, 0]), soon);
  const before = active();
  for (const round of [1, 2]) {
    const leaving = await come(84);
    await vi.waitFor(() => expect(counts(), `round ${round}`).toEqual([252, 252]), soon);
    for (const leave of leaving) leave();
    await vi.waitFor(() => expect(counts()).toEqual([0, 0]), soon);
  }
  // Some belong to the pool of connections to the database, and to the test runner.
  await vi.waitFor(() => {
    for (const [kind, count] of active().entries()) expect(count - (before[kind] ?? 0)).toBeLessThan(10);
  }, soon);
  expect(failures).toEqual([]);
});
