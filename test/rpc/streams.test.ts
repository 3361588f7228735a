import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect as connectTcp } from "node:net";
import type { HandlerContext } from "@connectrpc/connect";
import { expect, onTestFinished, test } from "vitest";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { DomainError } from "../../src/error.ts";
import { createVerifier, type Verifier } from "../../src/rpc/auth.ts";
import { secret, service, startServer, throughEachDoor } from "./server.ts";

const { watchTopProducts } = RankingService.method;
const options = { token: service };

/** Rankings without end, and how many were asked for. */
function endless() {
  const state = { made: 0, open: 0, started: 0 };
  async function* handler(_request: unknown, { signal }: HandlerContext) {
    state.open++;
    state.started++;
    try {
      while (!signal.aborted) {
        state.made++;
        // Random, for the answers are compressed.
        yield { products: [{ productName: randomBytes(8_000).toString("base64") }] };
      }
    } finally {
      state.open--;
    }
  }
  return { state, handler };
}

test("a stream arrives message by message, in order", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const ranks: (number | undefined)[] = [];
    for await (const { products } of door.stream(watchTopProducts, {}, options)) {
      ranks.push(products[0]?.rank);
      if (ranks.length === 3) break;
    }
    expect(ranks).toEqual([1, 2, 3]);
  });
});

test("access and validation come before the stream", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const first = (request: { limit?: number }, token?: string) =>
      door.stream(watchTopProducts, request, { token })[Symbol.asyncIterator]().next();
    await expect(first({})).rejects.toMatchObject({ reason: "TOKEN_MISSING" });
    const violations = [{ field: "limit" }];
    await expect(first({ limit: 101 }, service)).rejects.toMatchObject({ reason: "ARGUMENT_INVALID", violations });
  });
});

test("a failure in the middle of a stream is mapped like any other", async () => {
  async function* handler() {
    yield { products: [] };
    throw new DomainError("OVERLOADED", "too many watch");
  }
  const server = await startServer({ ranking: { watchTopProducts: handler } });
  await throughEachDoor(server, async (door) => {
    const stream = door.stream(watchTopProducts, {}, options)[Symbol.asyncIterator]();
    await expect(stream.next()).resolves.toMatchObject({ done: false });
    await expect(stream.next()).rejects.toMatchObject({ code: "RESOURCE_EXHAUSTED", reason: "OVERLOADED" });
  });
});

test("a stream that its caller leaves ends on the server too, while it waits and while it sends", async () => {
  const { state, handler } = endless();
  const sending = await startServer({ ranking: { watchTopProducts: handler } });
  await throughEachDoor(sending, async (door) => {
    for await (const _ of door.stream(watchTopProducts, {}, options)) break;
    await expect.poll(() => state.open).toBe(0);
    await expect.poll(() => sending.lines.at(-1)).toMatchObject({ code: "CANCELLED" });
    sending.lines.length = 0;
  });
  const waiting = await startServer();
  await throughEachDoor(waiting, async (door) => {
    const caller = new AbortController();
    const stream = door.stream(watchTopProducts, {}, { ...options, signal: caller.signal })[Symbol.asyncIterator]();
    for (let at = 0; at < 3; at++) await stream.next();
    const next = expect(stream.next()).rejects.toMatchObject({ code: "CANCELLED" });
    caller.abort();
    await next;
    await expect.poll(() => waiting.lines.at(-1)).toMatchObject({ code: "CANCELLED" });
    waiting.lines.length = 0;
  });
});

test("a caller that goes while it is found out who it is starts no handler", async () => {
  const { state, handler } = endless();
  const verifier = createVerifier({ secret });
  let known = Promise.withResolvers<void>();
  let asked = Promise.withResolvers<void>();
  const slow: Verifier = {
    verify: async (authorization) => {
      asked.resolve();
      await known.promise;
      return verifier.verify(authorization);
    },
  };
  const server = await startServer({ ranking: { watchTopProducts: handler }, verifier: slow });
  await throughEachDoor(server, async (door) => {
    known = Promise.withResolvers<void>();
    asked = Promise.withResolvers<void>();
    const caller = new AbortController();
    const stream = door.stream(watchTopProducts, {}, { ...options, signal: caller.signal })[Symbol.asyncIterator]();
    const next = expect(stream.next()).rejects.toMatchObject({ code: "CANCELLED" });
    await asked.promise;
    caller.abort();
    await next;
    await expect.poll(() => server.lines.at(-1)).toMatchObject({ code: "CANCELLED" });
    server.lines.length = 0;
    known.resolve();
    // Another call goes the same way, behind this one.
    for await (const _ of door.stream(watchTopProducts, {}, options)) break;
    await expect.poll(() => server.lines.at(-1)).toMatchObject({ code: "CANCELLED" });
    expect(state.started, door.name).toBe(1);
    state.started = 0;
    server.lines.length = 0;
  });
});

test("a stream ends at its deadline", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const stream = door.stream(watchTopProducts, {}, { ...options, timeoutMs: 200 })[Symbol.asyncIterator]();
    for (let at = 0; at < 3; at++) await stream.next();
    await expect(stream.next()).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
    await expect.poll(() => server.lines.at(-1)).toMatchObject({ code: "DEADLINE_EXCEEDED" });
    server.lines.length = 0;
  });
});

test("a handler that hangs does not keep its stream open", async () => {
  async function* handler() {
    yield { products: [] };
    await new Promise(() => {});
  }
  const server = await startServer({ ranking: { watchTopProducts: handler } });
  await throughEachDoor(server, async (door) => {
    const stream = door.stream(watchTopProducts, {}, { ...options, timeoutMs: 200 })[Symbol.asyncIterator]();
    await stream.next();
    await expect(stream.next()).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
  });
  await expect.poll(() => server.lines.filter((line) => line.code === "DEADLINE_EXCEEDED")).toHaveLength(4);
});

test("a caller that does not read is not written to without end", async () => {
  const { state, handler } = endless();
  const server = await startServer({ ranking: { watchTopProducts: handler } });
  await throughEachDoor(server, async (door) => {
    state.made = 0;
    const stream = door.stream(watchTopProducts, {}, options)[Symbol.asyncIterator]();
    await stream.next();
    // The buffers on the way take their fill, and then nothing more is made.
    const settled = async () => {
      const before = state.made;
      await new Promise((resolve) => setTimeout(resolve, 300));
      return state.made - before;
    };
    await expect.poll(settled, { timeout: 4_000 }).toBe(0);
    expect(state.made, door.name).toBeLessThan(2_000);
    const stuck = state.made;
    for (let at = 0; at < stuck; at++) await stream.next();
    expect(state.made, "it goes on when the caller reads on").toBeGreaterThan(stuck);
    await stream.return?.();
    await expect.poll(() => state.open).toBe(0);
  });
}, 20_000);

test.skipIf(process.platform !== "linux")(
  "of a quiet HTTP connection it is found out whether anybody is there",
  async () => {
    const { httpPort } = await startServer();
    const socket = connectTcp(httpPort, "127.0.0.1");
    onTestFinished(() => void socket.destroy());
    await once(socket, "connect");
    const own = `:${httpPort.toString(16).toUpperCase().padStart(4, "0")}`;
    const timers = () => {
      const lines = readFileSync("/proc/net/tcp", "utf8").split("\n");
      const columns = lines.map((line) => line.trim().split(/\s+/));
      // Established connections as the server has them: the kind of the timer that runs, and when it ends.
      return columns
        .filter(([, local, , state]) => local?.endsWith(own) && state === "01")
        .map(([, , , , , timer]) => timer);
    };
    // 2: keepalive.
    await expect.poll(timers).toEqual([expect.stringMatching(/^02:/)]);
  },
);
