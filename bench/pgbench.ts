/** Runs a baseline by pgbench, which costs the least of all load generators. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { FIRST } from "./data.ts";
import { type Cell, summarize, type Timing } from "./measure.ts";
import { cpuOf, start } from "./process.ts";
import type { Statement } from "./sql.ts";

const THREADS = 2;
/** The processor time is read that long before the end, in seconds: after it there is nobody to ask. */
const MARGIN = 0.15;
/** Seconds that pgbench gets for each connection to open, since its time runs meanwhile. */
const CONNECT = 0.02;
/** Of the time to be measured at least this part must have been left, or the machine is too slow for a figure. */
const ENOUGH = 0.5;

/** A baseline and on what to run it. */
export type SqlJob = {
  url: string;
  statements: readonly Statement[];
  connections: number;
  /** How many users each connection has to itself. */
  lane: number;
  /** How many variants are bought. */
  variants: number;
  timing: Timing;
  /** Stored with each request, of the size that the service stores. */
  constants: { fingerprint: string; response: string };
};

/** A measurement, and how many transactions were committed in all, for the audit. */
export type Outcome = { cell: Cell; done: number };

/** Whether pgbench is installed. */
export async function hasPgbench(): Promise<boolean> {
  return promisify(execFile)("pgbench", ["--version"]).then(
    () => true,
    () => false,
  );
}

function scriptOf({ statements, variants }: SqlJob): string {
  return [
    `\\set user ${FIRST} + :client_id * :lane + random(0, :lane - 1)`,
    `\\set variant ${FIRST} + random(0, ${variants - 1})`,
    "\\set request random(1000000000000000000, 9000000000000000000)",
    ...statements.map(({ sql, keep }) => `${sql.replace(/\s+/g, " ")}${keep ? " \\gset" : ";"}`),
  ].join("\n");
}

/** When it ended, and how long it took, both in microseconds. */
type Transaction = { end: number; took: number };

function readLog(directory: string): Transaction[] {
  return readdirSync(directory)
    .filter((name) => name.startsWith("log."))
    .flatMap((name) => readFileSync(join(directory, name), "utf8").trim().split("\n"))
    .filter((line) => line !== "")
    .map((line) => {
      const [, , took, , seconds, micros] = line.split(" ").map(Number);
      return { end: Number(seconds) * 1e6 + Number(micros), took: Number(took) };
    });
}

/** What was done in the time to be measured, which begins with the first transaction and the warm-up after it. */
function summarizeLog(log: readonly Transaction[], timing: Timing): ReturnType<typeof summarize> {
  const began = log.reduce((least, { end }) => Math.min(least, end), Number.POSITIVE_INFINITY);
  const ended = log.reduce((most, { end }) => Math.max(most, end), 0);
  const from = began + timing.warmup * 1e6;
  const until = Math.min(ended, from + timing.seconds * 1e6);
  const seconds = (until - from) / 1e6;
  if (!(seconds >= timing.seconds * ENOUGH)) throw new Error("the machine is too busy: pgbench had no time to measure");
  const counted = log.filter(({ end }) => end >= from && end <= until);
  return summarize(
    Float64Array.from(counted, ({ took }) => took / 1_000),
    seconds,
  );
}

/** @throws Error with what pgbench says, when a transaction failed */
export async function runPgbench(job: SqlJob, scratch: string): Promise<Outcome> {
  const { connections, lane, timing, constants } = job;
  const directory = join(scratch, "pgbench");
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory);
  const script = join(directory, "script.sql");
  writeFileSync(script, scriptOf(job));
  const seconds = Math.ceil(timing.warmup + timing.seconds + CONNECT * connections);
  const { hostname, port, username, password, pathname } = new URL(job.url);
  const variables = { lane, ...constants };
  const child = start(
    "pgbench",
    [
      ...["-h", hostname, "-p", port, "-U", username, "-n", "-M", "prepared", "-T", `${seconds}`],
      ...["-c", `${connections}`, "-j", `${Math.min(THREADS, connections)}`, "-f", script],
      ...["-l", `--log-prefix=${join(directory, "log")}`],
      ...Object.entries(variables).flatMap(([name, value]) => ["-D", `${name}=${value}`]),
      pathname.slice(1),
    ],
    { stdio: ["ignore", "ignore", "pipe"], env: { PATH: process.env.PATH, PGPASSWORD: password } },
  );
  const ended = Promise.all([child.stderr ? text(child.stderr) : "", once(child, "exit")]);
  const cpu = [];
  for (const pause of [seconds - timing.seconds, timing.seconds - MARGIN]) {
    await Promise.race([delay(pause * 1_000), ended]);
    cpu.push({ at: performance.now(), used: cpuOf(child.pid) });
  }
  const [errors, [code]] = await ended;
  if (code !== 0) throw new Error(`pgbench failed (${code}): ${errors.split("\n").slice(0, 3).join(" ")}`);
  const log = readLog(directory);
  const summary = summarizeLog(log, timing);
  const [first, last] = cpu;
  const clientCpu =
    first?.used === undefined || last?.used === undefined
      ? undefined
      : (last.used - first.used) / ((last.at - first.at) / 1_000) / summary.perSecond;
  return { cell: { callers: connections, ...summary, errors: 0, clientCpu }, done: log.length };
}
