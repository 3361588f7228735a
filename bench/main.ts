/**
 * Measures the service beside hand-written SQL, two processes of it beside one, in an overload, and with streams open, on a
 * Postgres of its own; and audits what is stored after each step.
 *
 *     npm run bench
 *     npm run bench -- --scenario place-hot --seconds 5 --json bench.json --svg bench.svg
 *     npm run bench -- --scenario place-hot --rate 2000
 *
 * `--rate`: an open loop, the service alone (`overload` has one anyway: another rate). `--strict`: exit code 1 when
 * something that must be reached is missed; a broken invariant and a failed transaction of a baseline always end the run
 * with it. `CPU_PROFILE=folder` in the environment: a CPU profile of the service.
 */
import { randomBytes } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Client } from "pg";
import { pino } from "pino";
import { entities } from "../src/app.ts";
import { startEmbeddedPostgres } from "../src/db/embedded.ts";
import { createOrm, migrate } from "../src/db/orm.ts";
import { chart } from "./chart.ts";
import { USERS } from "./data.ts";
import { hasPgbench } from "./pgbench.ts";
import { stopAll } from "./process.ts";
import { describeMachine, hasMissed, machineLine, type Result, resultOf, table, toJson, verdicts } from "./report.ts";
import { runScenario } from "./run.ts";
import { type Scenario, scenarios } from "./scenario.ts";
import type { Options, Stage } from "./stage.ts";

const USAGE = `use: npm run bench -- [--scenario NAME]... [--seconds N] [--callers N] [--connections N]... [--streams N]...
       [--rate N] [--json FILE] [--svg FILE] [--strict]
scenarios: ${scenarios.map(({ name }) => name).join(", ")}`;

const SECONDS = 3;
const WARMUP = 1;
const CALLERS = 64;
const CONNECTIONS = [1, 8, 32, 64];
/** More than the embedded Postgres takes connections. */
const MAX_CONNECTIONS = 180;
const MAX_STREAMS = 20_000;
const INTERRUPTED = 130;

type Arguments = Options & {
  chosen: readonly Scenario[];
  json: string | undefined;
  svg: string | undefined;
  strict: boolean;
};

class BadArguments extends Error {
  override readonly name = "BadArguments";
}

function whole(name: string, text: string | undefined, most: number): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > most) {
    throw new BadArguments(`--${name} must be a whole number from 1 to ${most}`);
  }
  return value;
}

function readArguments(): Arguments {
  const one = { type: "string" } as const;
  const several = { type: "string", multiple: true, default: [] } as {
    type: "string";
    multiple: true;
    default: string[];
  };
  const { values } = parseArgs({
    options: {
      ...{ scenario: several, connections: several, streams: several, strict: { type: "boolean", default: false } },
      ...{ seconds: one, callers: one, rate: one, json: one, svg: one },
    },
  });
  const chosen = values.scenario.map((name) => {
    const scenario = scenarios.find((candidate) => candidate.name === name);
    if (!scenario) throw new BadArguments(`there is no scenario ${name}`);
    return scenario;
  });
  const connections = values.connections.map((text) => whole("connections", text, MAX_CONNECTIONS) ?? 1);
  return {
    chosen: chosen.length > 0 ? chosen : scenarios,
    timing: { warmup: WARMUP, seconds: whole("seconds", values.seconds, 3_600) ?? SECONDS },
    callers: whole("callers", values.callers, USERS) ?? CALLERS,
    connections: connections.length > 0 ? connections : CONNECTIONS,
    streams: values.streams.map((text) => whole("streams", text, MAX_STREAMS) ?? 1),
    rate: whole("rate", values.rate, 1_000_000),
    json: values.json,
    svg: values.svg,
    strict: values.strict,
  };
}

/** Things to undo at the end, the last one first. */
type Cleanup = (() => Promise<void> | void)[];

type Prepared = { stage: Stage; version: string };

async function setUp(cleanup: Cleanup): Promise<Prepared> {
  const scratch = mkdtempSync(join(tmpdir(), "doorbuster-bench-"));
  cleanup.push(() => rmSync(scratch, { recursive: true, force: true }));
  // As root, the user `postgres` has to get into it.
  chmodSync(scratch, 0o755);
  const log = pino({ level: "warn" }, pino.destination(2));
  const postgres = await startEmbeddedPostgres({ dataDir: join(scratch, "database"), log });
  cleanup.push(() => postgres.stop());
  const orm = await createOrm({ url: postgres.url, poolSize: 2, entities });
  await migrate(orm).finally(() => orm.close());
  const admin = new Client({ connectionString: postgres.url });
  await admin.connect();
  cleanup.push(() => admin.end());
  cleanup.push(stopAll);
  const { rows } = await admin.query<{ server_version: string }>("show server_version");
  const stage: Stage = {
    ...{ url: postgres.url, admin, scratch, pgbench: await hasPgbench() },
    secret: randomBytes(32).toString("base64url"),
    progress: (text) => console.error(text),
  };
  return { stage, version: rows[0]?.server_version ?? "unknown" };
}

/** Returns the exit code. */
async function bench({ stage, version }: Prepared, given: Arguments): Promise<number> {
  const { chosen, json, svg, strict, ...options } = given;
  const machine = describeMachine(version, stage.pgbench ? "pgbench" : "the pg driver");
  console.log(machineLine(machine));
  const results: Result[] = [];
  for (const scenario of chosen) results.push(resultOf(scenario, await runScenario(stage, options, scenario)));
  const clean = "The audit after each measurement found nothing broken.";
  console.log(`\n${[table(results), verdicts(results), clean].filter(Boolean).join("\n\n")}`);
  if (json) writeFileSync(json, toJson(machine, results));
  if (svg) writeFileSync(svg, chart(machine, results));
  return strict && hasMissed(results) ? 1 : 0;
}

/** Resolves at a signal to stop. */
function interrupted(): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => resolve(INTERRUPTED));
  return promise;
}

async function run(): Promise<number> {
  const stopped = interrupted();
  const cleanup: Cleanup = [];
  try {
    const given = readArguments();
    // Not interrupted while it starts things: what is half started can't be stopped.
    const prepared = await setUp(cleanup);
    return await Promise.race([bench(prepared, given), stopped]);
  } finally {
    for (let undo = cleanup.pop(); undo; undo = cleanup.pop()) await undo();
  }
}

try {
  process.exit(await run());
} catch (error) {
  console.error(`bench: ${(error as Error).message}${error instanceof BadArguments ? `\n${USAGE}` : ""}`);
  process.exit(1);
}
