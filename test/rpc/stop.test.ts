import { once } from "node:events";
import { Agent, type IncomingHttpHeaders, request } from "node:http";
import { type AddressInfo, connect, createServer } from "node:net";
import { pino } from "pino";
import { expect, onTestFinished, test } from "vitest";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { createVerifier } from "../../src/rpc/auth.ts";
import { FLUSH_MS } from "../../src/rpc/door.ts";
import { route, serve } from "../../src/rpc/server.ts";
import { secret, service, startServer } from "./server.ts";

const { getUser } = UserService.method;
const { watchTopProducts } = RankingService.method;
const userId = "0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a11";
const options = { token: service };

/** A server whose GetUser waits until it is told to answer; `entered` tells how many calls wait. */
async function startWaiting() {
  const { promise, resolve: finish } = Promise.withResolvers<void>();
  const state = { entered: 0 };
  const server = await startServer({
    users: {
      getUser: async () => {
        state.entered++;
        await promise;
        return { user: { name: "finished" } };
      },
    },
  });
  return { server, state, finish };
}

function refusesConnections(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => resolve(false));
    socket.on("error", () => resolve(true));
    socket.on("connect", () => socket.destroy());
  });
}

test("a stop lets running calls finish, refuses new ones with the advice to try again, and then closes both ports", async () => {
  const { server, state, finish } = await startWaiting();
  const running = Promise.all(server.doors.map((door) => door.unary(getUser, { userId }, options)));
  await expect.poll(() => state.entered).toBe(server.doors.length);

  running.catch(() => {});
  const stopped = server.stop(5_000);
  for (const door of server.doors) {
    await expect(door.unary(getUser, { userId }, options), door.name).rejects.toMatchObject({
      code: "UNAVAILABLE",
      reason: "SHUTTING_DOWN",
      retryMs: 1_000,
    });
  }
  finish();
  for (const answer of await running) expect(answer.message.user?.name).toBe("finished");
  const finished = performance.now();
  await stopped;
  expect(performance.now() - finished).toBeLessThan(FLUSH_MS);
  expect(await Promise.all([server.grpcPort, server.httpPort].map(refusesConnections))).toEqual([true, true]);
});

test("a call that outlives the grace is refused, and does not hold up the stop", async () => {
  const { server, state } = await startWaiting();
  const running = server.doors.map((door) => door.unary(getUser, { userId }, options).catch((error) => error));
  await expect.poll(() => state.entered).toBe(running.length);
  const began = performance.now();
  await server.stop(100);
  expect(performance.now() - began).toBeLessThan(FLUSH_MS);
  for (const error of await Promise.all(running)) {
    expect(error).toMatchObject({ code: "UNAVAILABLE", reason: "SHUTTING_DOWN" });
  }
});

test("a stop ends open streams at once, while calls still run, so that their callers can go elsewhere", async () => {
  const { server, state, finish } = await startWaiting();
  const running = server.grpc.unary(getUser, { userId }, options);
  const streams = server.doors.map((door) => door.stream(watchTopProducts, {}, options)[Symbol.asyncIterator]());
  for (const stream of streams) for (let at = 0; at < 3; at++) await stream.next();
  const ends = streams.map((stream) => stream.next().catch((error) => error));
  await expect.poll(() => state.entered).toBe(1);

  const stopped = server.stop(10_000);
  for (const end of await Promise.all(ends)) {
    expect(end).toMatchObject({ code: "UNAVAILABLE", reason: "SHUTTING_DOWN", retryMs: 1_000 });
  }
  const ended = performance.now();
  finish();
  await running;
  await stopped;
  expect(performance.now() - ended).toBeLessThan(FLUSH_MS);
});

test("a stop with nothing to do takes no time, with idle connections open", async () => {
  const server = await startServer();
  for (const door of server.doors) await door.unary(RankingService.method.listTopProducts, {}, options);
  const began = performance.now();
  await Promise.all([server.stop(10_000), server.stop(10_000)]);
  expect(performance.now() - began).toBeLessThan(FLUSH_MS);
});

/** A port that another program uses. */
async function usedPort(): Promise<number> {
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void other.close());
  return (other.address() as AddressInfo).port;
}

test.each(["GRPC_PORT", "HTTP_PORT"])(
  "a %s in use is one clear line, and leaves nothing listening",
  async (setting) => {
    const used = await usedPort();
    // Below those that systems give out by themselves: nobody else is given it meanwhile.
    const free = 20_000 + Math.floor(Math.random() * 10_000);
    const other = (await refusesConnections(free)) ? free : 0;
    const start = serve({
      host: "127.0.0.1",
      grpcPort: setting === "GRPC_PORT" ? used : other,
      httpPort: setting === "HTTP_PORT" ? used : other,
      corsOrigins: [],
      routes: [route(UserService, { createUser: () => ({}), getUser: () => ({}) })],
      verifier: createVerifier({ secret }),
      log: pino({ enabled: false }),
      ready: async () => true,
    });
    await expect(start).rejects.toThrow(
      `${setting}: port ${used} on 127.0.0.1 is in use; stop what uses it or choose another`,
    );
    if (other) expect(await refusesConnections(other)).toBe(true);
  },
);

/** Calls as a client does that keeps its connections, and answers the headers once the body has ended. */
function callKeepingConnection(port: number, path: string, type: string, body: string): Promise<IncomingHttpHeaders> {
  const agent = new Agent({ keepAlive: true });
  onTestFinished(() => agent.destroy());
  return new Promise((resolve, reject) => {
    const headers = { "content-type": type, authorization: `Bearer ${service}` };
    const sent = request({ agent, host: "127.0.0.1", port, path, method: "POST", headers }, (response) => {
      response.resume().on("end", () => resolve(response.headers));
    });
    sent.on("error", reject).end(body);
  });
}

test("answers sent during a stop tell the client not to use the connection again", async () => {
  const { server, state, finish } = await startWaiting();
  const path = "/shop.v1.UserService/GetUser";
  const running = callKeepingConnection(server.httpPort, path, "application/json", JSON.stringify({ userId }));
  await expect.poll(() => state.entered).toBe(1);
  const stopped = server.stop(5_000);
  finish();
  expect((await running).connection).toBe("close");
  await stopped;
});

test("a connection that a stream leaves behind does not hold up a stop", async () => {
  const { promise: watched, resolve: watch } = Promise.withResolvers<void>();
  async function* watchTopProducts() {
    yield {};
    watch();
    await new Promise(() => {});
  }
  const server = await startServer({ ranking: { watchTopProducts } });
  const path = "/shop.v1.RankingService/WatchTopProducts";
  const ended = callKeepingConnection(server.httpPort, path, "application/connect+json", "\0\0\0\0\x02{}");
  await watched;
  const began = performance.now();
  await server.stop(5_000);
  expect((await ended).connection).toBe("keep-alive");
  expect(performance.now() - began).toBeLessThan(FLUSH_MS);
});

test("a connection that has never sent anything does not hold up a stop", async () => {
  const server = await startServer({});
  const socket = connect(server.httpPort, "127.0.0.1");
  await once(socket, "connect");
  const closed = once(socket, "close");
  // An answer on another connection: the server has accepted the first one by then.
  await callKeepingConnection(server.httpPort, "/healthz", "text/plain", "");
  const began = performance.now();
  await server.stop(5_000);
  await closed;
  expect(performance.now() - began).toBeLessThan(FLUSH_MS);
});
