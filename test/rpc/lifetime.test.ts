import type { HandlerContext } from "@connectrpc/connect";
import { expect, test } from "vitest";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import type { Write } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { write } from "../../src/rpc/handler.ts";
import { service, startServer, throughEachDoor, token } from "./server.ts";

const { getUser, createUser } = UserService.method;
const { watchTopProducts } = RankingService.method;
const userId = "0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a11";
const options = { token: service };

/** A handler that never answers, and a promise of the signal that it saw fire. */
function hanging() {
  const { promise: aborted, resolve } = Promise.withResolvers<unknown>();
  const { promise: entered, resolve: enter } = Promise.withResolvers<void>();
  const handler = (_request: unknown, { signal }: HandlerContext) => {
    signal.addEventListener("abort", () => resolve(signal.reason));
    enter();
    return new Promise<never>(() => {});
  };
  return { handler, aborted, entered };
}

test("a call past its deadline is DEADLINE_EXCEEDED though the handler hangs, and the handler's signal fires", async () => {
  const handlers = [hanging(), hanging(), hanging(), hanging()];
  let next = 0;
  const server = await startServer({ users: { getUser: (...args) => handlers[next++]?.handler(...args) as never } });
  for (const [at, door] of server.doors.entries()) {
    const began = performance.now();
    const refused = door.unary(getUser, { userId }, { ...options, timeoutMs: 150 });
    await expect(refused, door.name).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
    expect(performance.now() - began).toBeLessThan(1_000);
    await handlers[at]?.aborted;
    await expect.poll(() => server.lines.at(-1)).toMatchObject({ code: "DEADLINE_EXCEEDED", caller: "backend" });
    server.lines.length = 0;
  }
});

test("the deadline is the server's own: it answers without the caller's clock, with a reason", async () => {
  const server = await startServer({ users: { getUser: hanging().handler } });
  const answer = await fetch(`http://127.0.0.1:${server.httpPort}/shop.v1.UserService/GetUser`, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      authorization: `Bearer ${service}`,
      "connect-timeout-ms": "100",
    },
    body: JSON.stringify({ userId }),
  });
  const body = await answer.json();
  expect(body).toMatchObject({ code: "deadline_exceeded", details: [{ debug: { reason: "DEADLINE_EXCEEDED" } }] });
});

test("a unary call that sets no deadline has 30 s, a stream none", async () => {
  const left: Record<string, number | undefined> = {};
  const server = await startServer({
    users: {
      getUser: (_request, context) => {
        left.unary = context.timeoutMs();
        return {};
      },
    },
    ranking: {
      async *watchTopProducts(_request, context) {
        left.stream = context.timeoutMs();
        yield {};
      },
    },
  });
  await throughEachDoor(server, async (door) => {
    await door.unary(getUser, { userId }, options);
    expect(left.unary).toBeGreaterThan(29_000);
    expect(left.unary).toBeLessThanOrEqual(30_000);
    for await (const _ of door.stream(watchTopProducts, {}, options));
    expect(left.stream).toBeUndefined();
  });
});

test("a caller that cancels ends its call: the handler's signal fires, and the log says CANCELLED", async () => {
  const handlers = [hanging(), hanging(), hanging(), hanging()];
  let next = 0;
  const server = await startServer({ users: { getUser: (...args) => handlers[next++]?.handler(...args) as never } });
  for (const [at, door] of server.doors.entries()) {
    const caller = new AbortController();
    const refused = expect(
      door.unary(getUser, { userId }, { ...options, signal: caller.signal }),
    ).rejects.toMatchObject({
      code: "CANCELLED",
    });
    await handlers[at]?.entered;
    caller.abort();
    await refused;
    await handlers[at]?.aborted;
    await expect.poll(() => server.lines.at(-1)).toMatchObject({ code: "CANCELLED", reason: "CANCELLED" });
    server.lines.length = 0;
  }
});

test("the signal does not fire for a call that was answered in time", async () => {
  const signals: AbortSignal[] = [];
  const getUser = (_request: unknown, { signal }: HandlerContext) => {
    signals.push(signal);
    return {};
  };
  const server = await startServer({ users: { getUser } });
  await server.grpc.unary(UserService.method.getUser, { userId }, { ...options, timeoutMs: 200 });
  const [signal] = signals;
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(signal?.aborted).toBe(false);
});

test("a write sent again is answered with the first answer, byte for byte, and says so", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const request = { requestId: `again-${door.name}`, name: "Ada" };
    const first = await door.unary(createUser, request, options);
    const again = await door.unary(createUser, request, options);
    expect(first.header("idempotent-replay")).toBeNull();
    expect(again.header("idempotent-replay")).toBe("true");
    expect(again.message).toEqual(first.message);
    expect(first.message.user?.name).toBe("Ada");

    const reused = door.unary(createUser, { ...request, name: "Grace" }, options);
    await expect(reused).rejects.toMatchObject({ code: "ALREADY_EXISTS", reason: "REQUEST_ID_REUSED" });
    const another = await door.unary(createUser, request, { token: await token(["service"], "another backend") });
    expect(another.message.user?.id).not.toBe(first.message.user?.id);
  });
});

test("a replay is the same through the other door", async () => {
  const server = await startServer();
  const request = { requestId: "1", name: "Ada" };
  const first = await server.grpc.unary(createUser, request, options);
  const again = await server.connect.unary(createUser, request, options);
  expect(again.header("idempotent-replay")).toBe("true");
  expect(again.message).toEqual(first.message);
});

test("a write gives its verb everything, and answers with the result that stands", async () => {
  const calls: Write[] = [];
  let responses = 0;
  const server = await startServer({
    users: {
      createUser: write(
        createUser,
        async (request, call) => {
          calls.push(call);
          call.encode({ id: "first attempt", name: request.name });
          const result = { id: "second attempt", name: request.name };
          call.encode(result);
          return result;
        },
        (user) => {
          responses++;
          return { user };
        },
      ),
    },
  });
  const answer = await server.grpc.unary(createUser, { requestId: "7", name: "Ada" }, options);
  expect(answer.message.user?.id).toBe("second attempt");
  expect(responses).toBe(2);
  const call = { scope: "backend", rpc: "shop.v1.UserService/CreateUser", requestId: "7" };
  expect(calls).toMatchObject([call]);
  expect(calls[0]?.fingerprint).toHaveLength(32);
});

test("a handler of a write needs a request that carries a request_id", () => {
  const make = () =>
    write(
      getUser,
      async () => ({}),
      () => ({}),
    );
  expect(make).toThrow("shop.v1.UserService/GetUser is not a write");
});

test("a refused write is refused as any other call", async () => {
  const refuse = async () => {
    throw new DomainError("VERSION_MISMATCH", "changed meanwhile");
  };
  const server = await startServer({ users: { createUser: write(createUser, refuse, () => ({})) } });
  const refused = server.grpc.unary(createUser, { requestId: "1", name: "Ada" }, options);
  await expect(refused).rejects.toMatchObject({ code: "ABORTED", reason: "VERSION_MISMATCH" });
});
