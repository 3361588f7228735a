/** Real server processes for tests: for races between two of them, and for what happens when one dies. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { afterAll } from "vitest";

const MAIN = join(import.meta.dirname, "../../src/main.ts");
const READY_TIMEOUT = 30_000;
const STOP_TIMEOUT = 15_000;

export type Exit = { code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string };

export type Run = {
  pid: number;
  /** To this process alone; a whole group is reached by `process.kill(-pid, signal)` when it was started detached. */
  kill(signal: NodeJS.Signals): void;
  /** Resolves when the process has ended. */
  exited: Promise<Exit>;
  /** Resolves with all of stdout when it first matches; rejects when the process ends before. */
  printed(pattern: RegExp): Promise<string>;
  /** The same for stderr. */
  logged(pattern: RegExp): Promise<string>;
};

export type Server = Run & {
  grpcPort: number;
  httpPort: number;
  /** Stops gracefully and waits for the end. */
  stop(): Promise<Exit>;
};

export type RunOptions = {
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** In a process group of its own, as a terminal gives to a command. */
  detached?: boolean;
};

const running = new Set<ChildProcess>();

/** Ends all that still run: before what they write to is removed. */
export async function stopRunning(): Promise<void> {
  for (const child of running) {
    const ended = once(child, "exit");
    // Gracefully first: a service that is killed leaves its embedded Postgres to the next start.
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT);
    await ended;
    clearTimeout(timer);
  }
}

afterAll(stopRunning);

/** Starts a program and collects what it says. It is stopped after the test file if it still runs. */
export function run(program: string, args: string[], options: RunOptions = {}): Run {
  const { env = {}, cwd, detached = false } = options;
  // Vitest's own variables would change what a plain Node does.
  const inherited = { PATH: process.env.PATH, HOME: process.env.HOME };
  const child = spawn(program, args, {
    ...(cwd && { cwd }),
    detached,
    env: { ...inherited, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  running.add(child);
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (chunk: string) => {
      output[name] += chunk;
    });
  }
  child.once("exit", () => running.delete(child));
  const exited = once(child, "close").then(([code, signal]) => ({ code, signal, ...output }));

  function match(name: "stdout" | "stderr", pattern: RegExp): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const look = () => pattern.test(output[name]) && resolve(output[name]);
    const fail = (why: string) => reject(new Error(`${why}: ${pattern}\n${output.stdout}${output.stderr}`));
    const timer = setTimeout(fail, READY_TIMEOUT, "not seen in time");
    child[name].on("data", look);
    look();
    exited.then(() => fail("ended before it was seen"), reject);
    return promise.finally(() => {
      clearTimeout(timer);
      child[name].off("data", look);
    });
  }

  return {
    pid: child.pid as number,
    kill: (signal) => child.kill(signal),
    exited,
    printed: (pattern) => match("stdout", pattern),
    logged: (pattern) => match("stderr", pattern),
  };
}

/** Starts the service without waiting for anything: on free ports, with `env` as its only settings. */
export function runMain(options: RunOptions = {}): Run {
  const env = { GRPC_PORT: "0", HTTP_PORT: "0", LOG_LEVEL: "warn", ...options.env };
  return run(process.execPath, [MAIN], { ...options, env });
}

/**
 * Starts the service and waits until it serves. Its ports are read from what it prints: `gRPC ... host:port` and
 * `http://host:port`.
 */
export async function startServer(options: RunOptions & { databaseUrl?: string }): Promise<Server> {
  const { databaseUrl, env, ...others } = options;
  const main = runMain({ ...others, env: { ...(databaseUrl && { DATABASE_URL: databaseUrl }), ...env } });
  const pattern = /gRPC\b[^\n]*?:(?<grpc>\d+)\b(?:.|\n)*?http:\/\/[^\s/]*:(?<http>\d+)\b/;
  const groups = pattern.exec(await main.printed(pattern))?.groups;
  const stop = () => {
    main.kill("SIGTERM");
    return main.exited;
  };
  return { ...main, grpcPort: Number(groups?.grpc), httpPort: Number(groups?.http), stop };
}
