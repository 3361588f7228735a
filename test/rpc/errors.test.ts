import { connect } from "node:net";
import { gzipSync } from "node:zlib";
import { Metadata } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { DomainError } from "../../src/error.ts";
import { service, startServer, throughEachDoor } from "./server.ts";

const { getUser, createUser } = UserService.method;
const userId = "0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a11";
const options = { token: service };

function authorized(): Metadata {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${service}`);
  return metadata;
}

type Http = {
  body?: RequestInit["body"];
  path?: string;
  method?: string;
  headers?: Record<string, string>;
  token?: string;
  signal?: AbortSignal;
};

/** A plain HTTP request to the Connect door, as curl sends one. */
async function http(port: number, { body, path, method = "POST", headers, token = service, signal }: Http) {
  const url = `http://127.0.0.1:${port}${path ?? "/shop.v1.UserService/GetUser"}`;
  const sent = { "content-type": "application/json", authorization: `Bearer ${token}`, ...headers };
  const init: RequestInit & { duplex?: "half" } = { method, headers: sent, duplex: "half" };
  if (body !== undefined) init.body = body;
  if (signal) init.signal = signal;
  const response = await fetch(url, init);
  const text = await response.text();
  const json = response.headers.get("content-type") === "application/json" ? JSON.parse(text) : undefined;
  return { status: response.status, text, code: json?.code, info: json?.details?.[0]?.debug };
}

/** Sends bytes to a port and waits for the other side to answer or hang up. */
function sendRaw(port: number, bytes: Uint8Array | string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => socket.write(bytes));
    let answer = "";
    socket.on("data", (data) => {
      answer += data.toString("latin1");
      socket.end();
    });
    socket.on("error", () => {});
    socket.on("close", () => resolve(answer));
    socket.setTimeout(500, () => socket.destroy());
  });
}

test("a request that breaks the contract is ARGUMENT_INVALID with every wrong field, after access is granted", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const refused = door.unary(createUser, { requestId: "x".repeat(65), name: "" }, options);
    const violations = [
      { field: "request_id", description: expect.stringContaining("64") },
      { field: "name", description: expect.any(String) },
    ];
    await expect(refused).rejects.toMatchObject({ code: "INVALID_ARGUMENT", reason: "ARGUMENT_INVALID", violations });
    await expect(door.unary(getUser, { userId: "me" })).rejects.toMatchObject({ reason: "TOKEN_MISSING" });
  });
});

test("a refusal of a control character names it and does not hold it", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const refusal = await door.unary(createUser, { requestId: "1", name: "A\0" }, options).catch((error) => error);
    expect(refusal.reason).toBe("ARGUMENT_INVALID");
    const description = expect.stringMatching(/^\P{Cc}*`\\u0000`\P{Cc}*$/u);
    expect(refusal.violations).toEqual([{ field: "name", description }]);
    expect(refusal.message).toBe(`name: ${refusal.violations[0].description}`);
  });
});

test("a refusal of the domain arrives with its reason, facts, and when to try again", async () => {
  const getUser = () => {
    throw new DomainError("OVERLOADED", "too many orders are waiting", { waiting: "512" }, { retryAfterMs: 1_250 });
  };
  const server = await startServer({ users: { getUser } });
  await throughEachDoor(server, async (door) => {
    await expect(door.unary(UserService.method.getUser, { userId }, options)).rejects.toMatchObject({
      code: "RESOURCE_EXHAUSTED",
      reason: "OVERLOADED",
      message: "too many orders are waiting",
      metadata: { waiting: "512" },
      retryMs: 1_250,
    });
  });
});

test("a failure of ours tells its request id and nothing else; the log has the cause", async () => {
  const getUser = async () => {
    throw new Error("connection to 10.0.0.7 as postgres/hunter2 failed", { cause: new Error("select * from wallet") });
  };
  const server = await startServer({ users: { getUser } });
  await throughEachDoor(server, async (door) => {
    const headers = { "x-request-id": `trace-${door.name.replace(" ", "-")}` };
    const error = await door.unary(UserService.method.getUser, { userId }, { ...options, headers }).catch((e) => e);
    const metadata = { request_id: headers["x-request-id"] };
    expect(error).toMatchObject({ code: "INTERNAL", reason: "INTERNAL", message: "internal error", metadata });
    expect(JSON.stringify(error)).not.toMatch(/hunter2|wallet/);
    const line = server.lines.find((entry) => entry.request_id === headers["x-request-id"]);
    expect(line).toMatchObject({ level: 50, code: "INTERNAL", rpc: "shop.v1.UserService/GetUser", caller: "backend" });
    expect(JSON.stringify(line)).toContain("hunter2");
  });
});

test("an answer that can't be encoded is INTERNAL too, and leaks nothing", async () => {
  const server = await startServer({
    users: { getUser: () => ({ user: { createTime: { seconds: "soon" as unknown as bigint } } }) },
  });
  await throughEachDoor(server, async (door) => {
    const refused = door.unary(getUser, { userId }, options);
    await expect(refused).rejects.toMatchObject({ code: "INTERNAL", reason: "INTERNAL", message: "internal error" });
  });
});

test("a message over 1 MiB is RESOURCE_EXHAUSTED on both doors, plain or compressed", async () => {
  const server = await startServer();
  const name = "x".repeat(1024 * 1024);
  await throughEachDoor(server, async (door) => {
    const refused = door.unary(createUser, { requestId: "1", name }, options);
    await expect(refused).rejects.toMatchObject({ code: "RESOURCE_EXHAUSTED", reason: "MESSAGE_TOO_LARGE" });
    await expect(door.unary(getUser, { userId }, options)).rejects.toMatchObject({ reason: "USER_NOT_FOUND" });
  });
  const path = "/shop.v1.UserService/CreateUser";
  const body = gzipSync(JSON.stringify({ requestId: "1", name }));
  const bomb = await http(server.httpPort, { path, body, headers: { "content-encoding": "gzip" } });
  const tooLarge = { status: 429, code: "resource_exhausted", info: { reason: "MESSAGE_TOO_LARGE" } };
  expect(bomb).toMatchObject(tooLarge);
  const endless = new ReadableStream({ pull: (sink) => sink.enqueue(new Uint8Array(65_536)) });
  const unsized = http(server.httpPort, { path, body: endless, signal: AbortSignal.timeout(3_000) });
  await expect(unsized.catch((error) => error)).resolves.toMatchObject(tooLarge);
});

test("an unknown RPC is UNIMPLEMENTED with a reason", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const refused = door.unary(OrderService.method.placeOrder, {}, options);
    await expect(refused).rejects.toMatchObject({ code: "UNIMPLEMENTED", reason: "METHOD_NOT_SERVED" });
  });
  for (const path of ["/", "/shop.v1.UserService/Nothing", "/../../etc/passwd", "/%zz"]) {
    const answer = await http(server.httpPort, { path, body: "{}" });
    expect(answer).toMatchObject({ status: 404, code: "unimplemented", info: { reason: "METHOD_NOT_SERVED" } });
  }
});

test("a body that can't be read is ARGUMENT_INVALID", async () => {
  const server = await startServer();
  const invalid = { status: 400, code: "invalid_argument", info: { reason: "ARGUMENT_INVALID" } };
  for (const body of ["{", '{"userId": 5}', "[]", "nonsense", ""]) {
    expect(await http(server.httpPort, { body }), body).toMatchObject(invalid);
  }
  const headers = { "content-type": "application/proto" };
  expect(await http(server.httpPort, { body: new Uint8Array([0xff, 0xff, 0xff]), headers })).toMatchObject(invalid);
  const error = await new Promise((resolve) => {
    server.grpc.raw.makeUnaryRequest(
      "/shop.v1.UserService/GetUser",
      () => Buffer.from([0xff, 0xff, 0xff]),
      (bytes) => bytes,
      {},
      authorized(),
      resolve,
    );
  });
  expect(error).toMatchObject({ code: 3 });
});

test("wrong methods and content types are turned away", async () => {
  const server = await startServer();
  expect(await http(server.httpPort, { method: "GET" })).toMatchObject({ status: 405 });
  expect(await http(server.httpPort, { body: "x", headers: { "content-type": "text/html" } })).toMatchObject({
    status: 415,
  });
});

const garbage: Record<string, Uint8Array | string> = {
  "HTTP/1.1 text": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
  "no host":
    "POST /shop.v1.UserService/GetUser HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
  "broken host": "POST /shop.v1.UserService/GetUser HTTP/1.1\r\nHost: [\r\nContent-Length: 2\r\n\r\n{}",
  "not HTTP": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
  noise: Uint8Array.from({ length: 4096 }, (_, at) => (at * 197) % 256),
  "h2 preface and noise": `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n${"\xff".repeat(200)}`,
  "endless header": `GET / HTTP/1.1\r\nX: ${"x".repeat(100_000)}`,
  nothing: "",
};

test.each(Object.entries(garbage))("the server lives through garbage on both ports: %s", async (_name, bytes) => {
  const server = await startServer();
  await Promise.all([sendRaw(server.grpcPort, bytes), sendRaw(server.httpPort, bytes)]);
  await throughEachDoor(server, async (door) => {
    await expect(door.unary(getUser, { userId }, options)).rejects.toMatchObject({ reason: "USER_NOT_FOUND" });
  });
});

test("each call leaves one log line", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    server.lines.length = 0;
    const created = await door.unary(createUser, { requestId: door.name, name: "Ada" }, options);
    expect(server.lines).toMatchObject([
      {
        rpc: "shop.v1.UserService/CreateUser",
        code: "OK",
        caller: "backend",
        request_id: created.header("x-request-id"),
      },
    ]);
    expect(server.lines[0]?.duration_ms).toBeGreaterThan(0);
    server.lines.length = 0;
    await door.unary(getUser, { userId: "" }, options).catch(() => {});
    expect(server.lines).toMatchObject([{ code: "INVALID_ARGUMENT", reason: "ARGUMENT_INVALID" }]);
  });
});

test("a request id of the caller is kept when it is sane", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const request = { requestId: door.name, name: "Ada" };
    const sane = await door.unary(createUser, request, { ...options, headers: { "x-request-id": "trace-7" } });
    expect(sane.header("x-request-id")).toBe("trace-7");
    const odd = await door.unary(createUser, request, { ...options, headers: { "x-request-id": "a b;c" } });
    expect(odd.header("x-request-id")).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
  });
});

test("what never becomes a call is in the log too, under the id that its answer carries", async () => {
  const server = await startServer();
  const getUserPath = "/shop.v1.UserService/GetUser";
  const json = { "content-type": "application/json" };
  const refused = [
    [{ path: "/shop.v1.Nothing/Do", method: "POST", headers: json }, "METHOD_NOT_SERVED"],
    [{ path: `/${"x".repeat(2_000)}`, method: "GET", headers: {} }, "METHOD_NOT_SERVED"],
    [{ path: getUserPath, method: "PUT", headers: json }, "ARGUMENT_INVALID"],
    [{ path: getUserPath, method: "POST", headers: { "content-type": "text/plain" } }, "ARGUMENT_INVALID"],
  ] as const;
  for (const [{ path, method, headers }, reason] of refused) {
    server.lines.length = 0;
    const response = await fetch(`http://127.0.0.1:${server.httpPort}${path}`, { method, headers });
    await response.text();
    const request_id = response.headers.get("x-request-id");
    expect(request_id).toMatch(/^[\da-f-]{36}$/);
    await expect.poll(() => server.lines).toHaveLength(1);
    const rpc = path.slice(1, 129);
    expect(server.lines[0]).toMatchObject({ msg: "call", request_id, rpc, reason, duration_ms: expect.any(Number) });
  }
  server.lines.length = 0;
  const answer = await sendRaw(
    server.httpPort,
    `POST ${getUserPath} HTTP/1.1\r\nhost: [\r\nx-request-id: mine\r\n\r\n`,
  );
  expect(answer).toMatch(/^HTTP\/1.1 400 (.|\r\n)*x-request-id: mine\r\n/);
  expect(server.lines).toMatchObject([{ request_id: "mine", code: "INVALID_ARGUMENT", rpc: getUserPath.slice(1) }]);
});

test("what the gRPC door refuses before there is a call has a line and an id like all others", async () => {
  const server = await startServer();
  const same = (bytes: Buffer) => bytes;
  const refuse = (path: string, size: number, id?: string): Promise<Metadata> => {
    const metadata = authorized();
    if (id) metadata.set("x-request-id", id);
    return new Promise((resolve) => {
      const body = Buffer.alloc(size);
      server.grpc.raw.makeUnaryRequest(path, same, same, body, metadata, (error) =>
        resolve(error?.metadata as Metadata),
      );
    });
  };
  const rest = { msg: "call", duration_ms: expect.any(Number) };
  const unknown = await refuse("/shop.v1.Nothing/Do", 0);
  const line = { rpc: "shop.v1.Nothing/Do", code: "UNIMPLEMENTED", reason: "METHOD_NOT_SERVED" };
  expect(server.lines).toMatchObject([{ ...rest, ...line, request_id: unknown.get("x-request-id")[0] }]);
  server.lines.length = 0;
  const large = await refuse("/shop.v1.UserService/GetUser", 1024 * 1024 + 1, "mine");
  const tooLarge = { rpc: "shop.v1.UserService/GetUser", code: "RESOURCE_EXHAUSTED", reason: "MESSAGE_TOO_LARGE" };
  expect(server.lines).toMatchObject([{ ...rest, ...tooLarge, request_id: "mine" }]);
  expect(large.get("x-request-id")).toEqual(["mine"]);
});
