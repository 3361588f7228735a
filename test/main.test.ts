import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createDatabase } from "./support/database.ts";
import { run, runMain, startServer } from "./support/processes.ts";

const ROOT = join(import.meta.dirname, "..");
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

  test("Ctrl-C under npm, which passes the signal on once more, is one stop", async () => {
    const env = { JWT_SECRET, DATABASE_URL: databaseUrl, DATA_DIR: scratch, GRPC_PORT: "0", HTTP_PORT: "0" };
    const npm = run("npm", ["start"], { cwd: ROOT, env, detached: true });
    await npm.printed(/http:\/\//);
    process.kill(-npm.pid, "SIGINT");
    const { stderr } = await npm.exited;
    expect(stderr.match(/"stopping"/g)).toHaveLength(1);
  });

  test("logs are JSON on stderr, and stdout holds what is for people", async () => {
    const server = await startServer({ databaseUrl, env: { JWT_SECRET, DATA_DIR: scratch, LOG_LEVEL: "info" } });
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
