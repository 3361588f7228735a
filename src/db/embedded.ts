/**
 * A Postgres of our own for those who have none: on loopback only, with a random password, as durable as any other, and
 * stopped by nobody but us. It runs in a process group of its own, so that Ctrl-C does not kill it under running requests.
 */
import { type ChildProcessByStdio, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import type { Logger } from "pino";
import { type Binaries, findBinaries, findOwner, type Owner, POSTGRES_ENV } from "./embedded-binaries.ts";
import { clusterOf, ensureCluster, findHome } from "./embedded-cluster.ts";
import { acquireLock, commandOf, LockHeld } from "./embedded-lock.ts";

/** Longest waits, in milliseconds: for recovery after a crash, and for a stop before it is forced. */
const START_TIMEOUT = 60_000;
const STOP_TIMEOUT = 30_000;
const MAX_STARTS = 20;

/** Its stop forces itself after a while, three times over. Only then is there nothing to wait for, in milliseconds. */
export const EMBEDDED_STOP_LIMIT = 3 * STOP_TIMEOUT + 1_000;

/** In DATA_DIR while Postgres runs, readable by its owner only: `psql "$(cat .data/database-url)"`. */
const URL_FILE = "database-url";

export type EmbeddedOptions = {
  /** Where its files are; made when missing. */
  dataDir: string;
  log: Logger;
  /** Default: a free one. */
  port?: number;
  /** False only for tests: fast, and gone after a crash of the machine. */
  durable?: boolean;
};

export type EmbeddedPostgres = {
  /** Holds the password. */
  url: string;
  /** Ends all connections and waits for a clean stop. */
  stop(): Promise<void>;
  /** Resolves when Postgres ends without having been asked to. */
  exited: Promise<Error>;
};

type Server = ChildProcessByStdio<null, null, Readable>;
type Runtime = { binaries: Binaries; owner: Owner; cluster: string; log: Logger; durable: boolean };

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/** Stops the Postgres that a killed service left behind. A pid that belongs to another program by now is left alone. */
async function stopOrphan({ binaries, owner, cluster, log }: Runtime): Promise<void> {
  const pidFile = join(cluster, "postmaster.pid");
  if (!existsSync(pidFile)) return;
  const [line = "", ...rest] = readFileSync(pidFile, "utf8").split("\n");
  const pid = Number(line);
  const command = commandOf(pid);
  if (command === undefined) return;
  if (!command.includes("postgres")) {
    // Postgres would take the other program for a postmaster, and not start. Our own pid it knows for its parent's, and
    // it goes on to check with the rest of the file whether sessions of the dead postmaster are still at work.
    writeFileSync(pidFile, [process.pid, ...rest].join("\n"));
    return;
  }
  if (!command.includes(` -D ${cluster} `)) {
    throw new Error(
      `process ${pid}, a Postgres started elsewhere, may be using ${cluster}: stop it, or remove ${pidFile}`,
    );
  }
  log.warn({ pid }, "a killed service left its Postgres running: stopping that first");
  const args = ["stop", "-D", cluster, "-m", "fast", "-w", "-t", `${STOP_TIMEOUT / 1000}`];
  try {
    await promisify(execFile)(binaries.pgCtl, args, { ...owner, cwd: "/", env: POSTGRES_ENV });
  } catch (cause) {
    if (commandOf(pid) !== undefined) throw new Error(`Postgres ${pid} of a killed service does not stop`, { cause });
  }
}

function spawnServer({ binaries, owner, cluster, durable }: Runtime, port: number): Server {
  const settings = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_line_prefix=",
    // Refused statements are reported to whoever sent them. Here they would fill the log, with data of customers.
    "log_min_messages=log",
    ...["fsync", "full_page_writes", "synchronous_commit"].map((name) => `${name}=${durable ? "on" : "off"}`),
  ];
  const args = ["-D", cluster, "-p", `${port}`, ...settings.flatMap((setting) => ["-c", setting])];
  const server = spawn(binaries.postgres, args, {
    ...owner,
    cwd: "/",
    env: POSTGRES_ENV,
    stdio: ["ignore", "ignore", "pipe"],
    detached: true,
  });
  // However this process ends, short of kill -9: Postgres is told to stop cleanly, before others clean up its files.
  const onExit = () => void server.kill("SIGINT");
  process.prependListener("exit", onExit);
  server.once("exit", () => process.off("exit", onExit));
  return server;
}

/** Passes its messages on to the log. Resolves when it takes connections; rejects with what it said last when it does not. */
function whenReady(server: Server, log: Logger): Promise<void> {
  const { promise, resolve: ready, reject } = Promise.withResolvers<void>();
  let fatal = "it said nothing";
  createInterface(server.stderr).on("line", (line) => {
    // FATAL ends one session, or a start.
    const severe = /^(FATAL|PANIC): +/.test(line);
    if (severe) fatal = line;
    if (severe) log.warn({ postgres: line });
    else log.debug({ postgres: line });
    if (line.endsWith("database system is ready to accept connections")) ready();
  });
  server.once("error", reject);
  // "close" comes after the last line, "exit" maybe before it.
  server.once("close", () => reject(new Error(`the embedded Postgres did not start: ${fatal}`)));
  const timer = setTimeout(() => reject(new Error("the embedded Postgres is not ready after a minute")), START_TIMEOUT);
  return promise.finally(() => clearTimeout(timer));
}

async function stopServer(server: Server, log: Logger): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  const gone = once(server, "exit");
  // Fast (end the sessions, write everything), then immediate (recovers at the next start), then by force.
  for (const signal of ["SIGINT", "SIGQUIT", "SIGKILL"] as const) {
    server.kill(signal);
    const { promise: late, resolve: isLate } = Promise.withResolvers<"late">();
    const timer = setTimeout(isLate, STOP_TIMEOUT, "late");
    const outcome = await Promise.race([gone, late]);
    clearTimeout(timer);
    if (outcome !== "late") return;
    log.warn(`the embedded Postgres did not stop on ${signal}`);
  }
}

/**
 * Starts the server on a port that is free. Tries again when someone else takes that port first, and while sessions of a
 * postmaster that was killed are still ending: they do so by themselves.
 */
async function startServer(runtime: Runtime, port: number | undefined): Promise<{ server: Server; port: number }> {
  for (let attempt = 1; ; attempt += 1) {
    const candidate = port ?? (await freePort());
    const server = spawnServer(runtime, candidate);
    try {
      await whenReady(server, runtime.log);
      return { server, port: candidate };
    } catch (error) {
      await stopServer(server, runtime.log);
      const message = error instanceof Error ? error.message : "";
      const portTaken = port === undefined && message.includes("could not create any TCP/IP sockets");
      const sessionsEnding = message.includes("pre-existing shared memory block");
      if (attempt === MAX_STARTS || !(portTaken || sessionsEnding)) throw error;
      // They are no children of ours, so nothing tells when they are gone.
      if (sessionsEnding) await delay(250);
    }
  }
}

/**
 * Starts the Postgres of a data directory, made at the first start. Takes over from a service that was killed.
 *
 * @throws Error with one line for the operator; nothing is left running then
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const { log, durable = true } = options;
  const owner = findOwner();
  const binaries = await findBinaries(owner);
  mkdirSync(options.dataDir, { recursive: true });
  // One name for one directory, whichever link leads to it: a Postgres left behind is known by it.
  const home = findHome(realpathSync(options.dataDir), owner);
  const runtime: Runtime = { binaries, owner, cluster: clusterOf(home), log, durable };
  const lock = acquireLock(join(home.directory, "lock"), `DATA_DIR ${home.dataDir}`);
  const urlFile = join(home.dataDir, URL_FILE);
  try {
    // Left by a service that was killed, it names a port that is closed by now.
    rmSync(urlFile, { force: true });
    await stopOrphan(runtime);
    const password = await ensureCluster(binaries, owner, home, log);
    const { server, port } = await startServer(runtime, options.port);
    const url = `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
    writeFileSync(urlFile, `${url}\n`, { mode: 0o600 });
    const { promise: exited, resolve: report } = Promise.withResolvers<Error>();
    let stopping = false;
    server.once("exit", (code, signal) => {
      if (!stopping) report(new Error(`the embedded Postgres ended unexpectedly (${signal ?? `exit code ${code}`})`));
    });
    const stop = async () => {
      stopping = true;
      await stopServer(server, log);
      rmSync(urlFile, { force: true });
      lock.release();
    };
    return { url, stop, exited };
  } catch (error) {
    lock.release();
    throw error;
  }
}

/**
 * The Postgres of a data directory for a tool: the running service's when there is one, else one that is started for it.
 * `close` leaves the service's running.
 */
export async function openEmbeddedPostgres(options: EmbeddedOptions): Promise<{ url: string; close(): Promise<void> }> {
  try {
    const { url, stop } = await startEmbeddedPostgres(options);
    return { url, close: stop };
  } catch (error) {
    if (!(error instanceof LockHeld)) throw error;
    const url = readFileSync(join(options.dataDir, URL_FILE), "utf8").trim();
    return { url, close: async () => {} };
  }
}
