import { randomBytes } from "node:crypto";
import type { HandlerContext } from "@connectrpc/connect";
import { expect, test } from "vitest";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { DomainError } from "../../src/error.ts";
import { service, startServer, throughEachDoor } from "./server.ts";

const { watchTopProducts } = RankingService.method;
const options = { token: service };

/** Rankings without end, and how many were asked for. */
function endless() {
  const state = { made: 0, open: 0 };
  async function* handler(_request: unknown, { signal }: HandlerContext) {
    state.open++;
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
