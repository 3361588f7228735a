import { once } from "node:events";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { sign } from "../src/rpc/auth.ts";
import { createDatabase } from "./support/database.ts";
import { runMain, type Server, startServer } from "./support/processes.ts";

const JWT_SECRET = "a secret for tests, long enough to be one";

let databaseUrl: string;
beforeAll(async () => {
  databaseUrl = await createDatabase();
});

const scratch = mkdtempSync(join(tmpdir(), "doorbuster-main-"));
chmodSync(scratch, 0o755);
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

describe("a start that fails says why in one line, and exits with 1", () => {
  async function expectRefusal(env: NodeJS.ProcessEnv, message: RegExp): Promise<void> {
    const { code, stdout, stderr } = await runMain({ env: { DATA_DIR: scratch, JWT_SECRET, ...env } }).exited;
    expect(stderr).toMatch(message);
    expect(stderr.trimEnd()).not.toContain("\n");
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  }

  test("a bad setting", () => expectRefusal({ GRPC_PORT: "x" }, /^doorbuster: GRPC_PORT is "x", but must be/));

  test("a secret that is too short, which is not shown", () =>
    expectRefusal({ JWT_SECRET: "hunter2" }, /^doorbuster: JWT_SECRET must be at least 32 characters long, not 7\n$/));

  test("a database that can't be reached", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    server.close();
    await expectRefusal(
      { DATABASE_URL: `postgres://shop:hunter2@127.0.0.1:${port}/shop` },
      /^doorbuster: (?!.*hunter2)/,
    );
  });

  test("a database that does not exist, which is not made", async () => {
    const url = new URL(databaseUrl);
    url.pathname = "/no_such_shop";
    await expectRefusal({ DATABASE_URL: url.href }, /^doorbuster: .*database "no_such_shop" does not exist\n$/);
    const client = new Client({ connectionString: databaseUrl });
    await client.connect();
    expect((await client.query("select from pg_database where datname = 'no_such_shop'")).rowCount).toBe(0);
    await client.end();
  });

  test("a DATA_DIR that can't be made", async () => {
    const file = join(scratch, "file");
    writeFileSync(file, "");
    await expectRefusal({ DATA_DIR: join(file, "data") }, /^doorbuster: .*data/);
  });

  test.each(["GRPC_PORT", "HTTP_PORT"])("%s in use", async (name) => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as { port: number };
    await expectRefusal(
      { DATABASE_URL: databaseUrl, [name]: `${port}` },
      new RegExp(`^doorbuster: .*${name}.*${port}`),
    );
    other.close();
  });
});

describe("a stop", () => {
  test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)("%s ends it with exit code 0", async (signal) => {
    const server = await startServer({ databaseUrl, env: { JWT_SECRET, DATA_DIR: scratch } });
    server.kill(signal);
    const { code } = await server.exited;
    expect(code).toBe(0);
  });

  const env = { JWT_SECRET, DATA_DIR: scratch, LOG_LEVEL: "info", SHUTDOWN_GRACE: "10m" };

  /** A call that waits inside the service until `release` is called. */
  async function heldCall(httpPort: number): Promise<{ answer: Promise<Response>; release(): Promise<void> }> {
    const holder = new Client({ connectionString: databaseUrl });
    await holder.connect();
    await holder.query("begin; lock table shop_user in access exclusive mode");
    const secret = new TextEncoder().encode(JWT_SECRET);
    const token = await sign(secret, { subject: "backend", roles: ["service"], ttl: "1h" });
    const answer = fetch(`http://127.0.0.1:${httpPort}/shop.v1.UserService/GetUser`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
      body: JSON.stringify({ userId: "01890a5d-ac96-774b-bcce-b302099a8057" }),
    });
    const waiting = "select count(*)::int as n from pg_locks where not granted and relation = 'shop_user'::regclass";
    await expect.poll(async () => (await holder.query(waiting)).rows[0].n, { timeout: 10_000 }).toBe(1);
    return { answer, release: () => holder.end() };
  }

  test("lets a running call finish, and takes a signal that comes twice for one: npm passes Ctrl-C on", async () => {
    const server = await startServer({ databaseUrl, env });
    const call = await heldCall(server.httpPort);
    server.kill("SIGINT");
    await server.logged(/"stopping"/);
    server.kill("SIGINT");
    await call.release();
    expect((await call.answer).status).toBe(404);
    const { code, stderr } = await server.exited;
    expect(stderr).toMatch(/"stopping"(.|\n)*"stopped"/);
    expect(code).toBe(0);
  });

  test("a second signal does not wait for what still runs", async () => {
    const server = await startServer({ databaseUrl, env });
    const call = await heldCall(server.httpPort);
    server.kill("SIGINT");
    await server.logged(/"stopping"/);
    // Only time tells a second press from the same one.
    await delay(1_100);
    const cutOff = expect(call.answer).rejects.toThrow();
    server.kill("SIGINT");
    expect((await server.exited).code).toBe(1);
    await cutOff;
    await call.release();
  });

  /** A row lock of somebody else, and a Checkout that waits for it. Returns what ends the lock. */
  async function blockedCheckout(url: string, httpPort: number, secret: Uint8Array): Promise<() => Promise<void>> {
    const holder = new Client({ connectionString: url });
    // The embedded Postgres ends this session too.
    holder.on("error", () => {});
    await holder.connect();
    const user = (await holder.query("select id from shop_user limit 1")).rows[0].id;
    await holder.query("begin");
    const variant = (await holder.query("select id from variant limit 1 for update")).rows[0].id;
    const token = await sign(secret, { subject: user, roles: ["user"], ttl: "1h" });
    const answer = fetch(`http://127.0.0.1:${httpPort}/shop.v1.OrderService/Checkout`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
      body: JSON.stringify({ requestId: "1", userId: user, lines: [{ variantId: variant, quantity: 1 }] }),
    });
    // Refused or cut off: the caller has to send it again.
    answer.catch(() => {});
    const waiting = "select count(*)::int as n from pg_locks where not granted";
    await expect.poll(async () => (await holder.query(waiting)).rows[0].n, { timeout: 10_000 }).toBe(1);
    return () => holder.end();
  }

  async function expectBoundedStop(server: Server): Promise<void> {
    const start = performance.now();
    const { code, stderr } = await server.stop();
    expect(stderr).toMatch(/"stopped"/);
    // 1 when the transaction was still waiting for the row when the stop came to the connections.
    expect([0, 1]).toContain(code);
    expect(performance.now() - start).toBeLessThan(8_000);
  }

  const blocked = { JWT_SECRET, DATA_DIR: scratch, LOG_LEVEL: "info", SHUTDOWN_GRACE: "1s", DEMO: "auto" };

  test("does not wait for a row that somebody else keeps locked", async () => {
    const url = await createDatabase();
    const server = await startServer({ databaseUrl: url, env: blocked });
    const release = await blockedCheckout(url, server.httpPort, new TextEncoder().encode(JWT_SECRET));
    await expectBoundedStop(server);
    await release();
  });

  test("does not wait for a database that says nothing, names what did not stop, and exits with 1", async () => {
    const url = await createDatabase();
    const server = await startServer({ databaseUrl: url, env: blocked });
    const release = await blockedCheckout(url, server.httpPort, new TextEncoder().encode(JWT_SECRET));
    const auditor = new Client({ connectionString: url });
    await auditor.connect();
    const { rows } = await auditor.query("select pid from pg_locks where not granted limit 1");
    await auditor.end();
    process.kill(rows[0].pid, "SIGSTOP");
    const { code, stderr } = await server.stop().finally(() => process.kill(rows[0].pid, "SIGCONT"));
    expect(stderr).toMatch(/"part":"database connections".*did not stop in time(.|\n)*"stopped"/);
    expect(code).toBe(1);
    await release();
  });

  test("ends the embedded Postgres cleanly all the same", async () => {
    const dataDir = join(scratch, "blocked");
    const server = await startServer({ env: { ...blocked, DATA_DIR: dataDir } });
    const url = readFileSync(join(dataDir, "database-url"), "utf8").trim();
    const release = await blockedCheckout(url, server.httpPort, new TextEncoder().encode(JWT_SECRET));
    await expectBoundedStop(server);
    // Postgres removes it when it has ended in order.
    expect(existsSync(join(dataDir, "postgres/postmaster.pid"))).toBe(false);
    expect(existsSync(join(dataDir, "lock"))).toBe(false);
    await release();
  });

  test("every call is in the log, and once, however soon after it the stop comes", async () => {
    const server = await startServer({ databaseUrl, env });
    const calls = Array.from({ length: 300 }, (_, i) =>
      fetch(`http://127.0.0.1:${server.httpPort}/shop.v1.UserService/GetUser`, {
        method: "POST",
        headers: { "content-type": "application/json", "x-request-id": `call-${i}` },
        body: "{}",
      }),
    );
    for (const call of calls) expect((await call).status).toBe(401);
    const { stderr } = await server.stop();
    const lines = stderr
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    const ids = lines.flatMap(({ msg, request_id }) => (msg === "call" ? request_id : []));
    expect(ids.sort()).toEqual(calls.map((_, i) => `call-${i}`).sort());
    expect(lines.at(-1)).toMatchObject({ msg: "stopped" });
  });

  test("logs are JSON on stderr, and stdout holds what is for people", async () => {
    const server = await startServer({ databaseUrl, env });
    const { stdout, stderr } = await server.stop();
    const lines = stderr.trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line).msg)).toContain("stopping");
    expect(stdout).not.toContain('"msg"');
  });
});

describe("with the embedded Postgres", () => {
  function postmasterOf(dataDir: string): number {
    return Number(readFileSync(join(dataDir, "postgres/postmaster.pid"), "utf8").split("\n")[0]);
  }

  test("when Postgres dies, the service says so and exits with 1", async () => {
    const dataDir = join(scratch, "dies");
    const server = await startServer({ env: { DATA_DIR: dataDir, DEMO: "off" } });
    process.kill(postmasterOf(dataDir), "SIGKILL");
    const { code, stderr } = await server.exited;
    expect(stderr).toContain("the embedded Postgres ended unexpectedly (SIGKILL)");
    expect(code).toBe(1);
  });
});
