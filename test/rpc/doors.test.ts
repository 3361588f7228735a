import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { credentials, makeGenericClientConstructor } from "@grpc/grpc-js";
import { service as healthService } from "grpc-health-check";
import { expect, onTestFinished, test } from "vitest";
import { FLUSH_MS } from "../../src/rpc/door.ts";
import { service, startServer } from "./server.ts";

const run = promisify(execFile);

type Health = {
  check(request: { service: string }, callback: (error: unknown, answer: { status: string }) => void): void;
  watch(request: { service: string }): AsyncIterable<{ status: string }>;
  close(): void;
};

function healthClient(port: number): Health {
  const HealthClient = makeGenericClientConstructor(healthService, "Health");
  const client = new HealthClient(`127.0.0.1:${port}`, credentials.createInsecure());
  onTestFinished(() => client.close());
  return client as unknown as Health;
}

function check(client: Health, name: string): Promise<unknown> {
  return new Promise((resolve) => client.check({ service: name }, (error, answer) => resolve(error ?? answer.status)));
}

test("health says SERVING for the server and each service, without a token", async () => {
  const server = await startServer();
  const client = healthClient(server.grpcPort);
  for (const name of ["", "shop.v1.UserService", "shop.v1.RankingService"]) {
    expect(await check(client, name)).toBe("SERVING");
  }
  expect(await check(client, "shop.v1.Nothing")).toMatchObject({ code: 5 });
});

test("who watches health hears of a stop, and does not hold it up", async () => {
  const server = await startServer();
  const watch = healthClient(server.grpcPort).watch({ service: "" })[Symbol.asyncIterator]();
  expect(await watch.next()).toMatchObject({ value: { status: "SERVING" } });
  const began = performance.now();
  const stopped = server.stop(10_000);
  expect(await watch.next()).toMatchObject({ value: { status: "NOT_SERVING" } });
  expect(await watch.next()).toMatchObject({ done: true });
  await stopped;
  expect(performance.now() - began).toBeLessThan(FLUSH_MS);
});

test("buf curl finds the services and calls them by reflection", async () => {
  const server = await startServer();
  const base = `http://127.0.0.1:${server.grpcPort}`;
  const curl = (...args: string[]) =>
    run("node_modules/.bin/buf", ["curl", "--http2-prior-knowledge", "--protocol", "grpc", ...args]);

  const listed = await curl("--list-methods", base);
  expect(listed.stdout).toContain("shop.v1.UserService/CreateUser");
  expect(listed.stdout).toContain("shop.v1.RankingService/WatchTopProducts");

  const authorization = ["--header", `Authorization: Bearer ${service}`];
  const path = `${base}/shop.v1.UserService/CreateUser`;
  const created = await curl(...authorization, "--data", '{"request_id": "1", "name": "Ada"}', path);
  expect(JSON.parse(created.stdout)).toMatchObject({ user: { name: "Ada" } });

  const refused = await curl(...authorization, "--data", '{"request_id": "1"}', path).catch((error) => error);
  const { code, message, details } = JSON.parse(refused.stderr);
  expect({ code, message }).toEqual({ code: "invalid_argument", message: "name: must be at least 1 characters" });
  const [info] = details.map(({ value }: { value: string }) => Buffer.from(value, "base64").toString());
  expect(info).toContain("ARGUMENT_INVALID");
});

async function get(port: number, path: string, init: RequestInit = {}) {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, init);
  return { status: response.status, text: await response.text(), headers: response.headers };
}

test("/healthz says that the process lives, /readyz whether it can work", async () => {
  const state: { ready: () => Promise<boolean> } = { ready: async () => true };
  const server = await startServer({ ready: () => state.ready() });
  expect(await get(server.httpPort, "/healthz")).toMatchObject({ status: 200, text: "ok\n" });
  expect(await get(server.httpPort, "/readyz")).toMatchObject({ status: 200 });
  state.ready = async () => false;
  expect(await get(server.httpPort, "/readyz")).toMatchObject({ status: 503 });
  state.ready = () => {
    throw new Error("no database");
  };
  expect(await get(server.httpPort, "/readyz?x=1")).toMatchObject({ status: 503, text: "not ready\n" });
  expect(await get(server.httpPort, "/healthz")).toMatchObject({ status: 200 });
});

const page = "https://shop.example";
const preflight = {
  method: "OPTIONS",
  headers: {
    origin: page,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,connect-protocol-version",
  },
};

test("a page of an allowed origin may call, and read what the service tells in headers", async () => {
  const server = await startServer({ corsOrigins: [page] });
  const path = "/shop.v1.RankingService/ListTopProducts";
  const asked = await get(server.httpPort, path, preflight);
  expect(asked.status).toBe(204);
  expect(asked.headers.get("access-control-allow-origin")).toBe(page);
  const allowed = asked.headers.get("access-control-allow-headers")?.toLowerCase();
  for (const name of ["authorization", "content-type", "connect-protocol-version", "x-request-id", "x-grpc-web"]) {
    expect(allowed).toContain(name);
  }
  const headers = { origin: page, "content-type": "application/json", authorization: `Bearer ${service}` };
  const called = await get(server.httpPort, path, { method: "POST", headers, body: "{}" });
  expect(called).toMatchObject({ status: 200, text: '{"products":[]}' });
  expect(called.headers.get("access-control-allow-origin")).toBe(page);
  expect(called.headers.get("vary")).toBe("Origin");
  const exposed = called.headers.get("access-control-expose-headers")?.toLowerCase();
  for (const name of ["idempotent-replay", "x-request-id", "Grpc-Status"])
    expect(exposed).toContain(name.toLowerCase());
});

test("a page of another origin is not let in, unless all are", async () => {
  const closed = await startServer({ corsOrigins: ["https://other.example"] });
  const refused = await get(closed.httpPort, "/shop.v1.UserService/GetUser", preflight);
  expect(refused.headers.get("access-control-allow-origin")).toBeNull();
  const open = await startServer({ corsOrigins: ["*"] });
  const allowed = await get(open.httpPort, "/shop.v1.UserService/GetUser", preflight);
  expect(allowed.headers.get("access-control-allow-origin")).toBe(page);
});
