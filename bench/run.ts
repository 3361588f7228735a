/** Carries out scenarios: everything of one runs back to back, on the same Postgres, each from the same start. */
import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { Client } from "pg";
import { audit } from "./audit.ts";
import { reset, USERS } from "./data.ts";
import { runDriver } from "./driver.ts";
import type { LoadJob, LoadMark, LoadResult } from "./load.ts";
import type { Cell, Timing } from "./measure.ts";
import { type Outcome, runPgbench, type SqlJob } from "./pgbench.ts";
import { cpuOf, memoryOf, nextMessage, startModule, stop } from "./process.ts";
import { templateOf } from "./requests.ts";
import type { Scenario, Sides } from "./scenario.ts";
import { startService } from "./service.ts";
import type { Statement } from "./sql.ts";

export type Options = {
  timing: Timing;
  callers: number;
  connections: readonly number[];
  /** Open loop: calls a second. The baselines are left out then. */
  rate: number | undefined;
};

/** What all scenarios of a run share. */
export type Stage = {
  url: string;
  admin: Client;
  secret: string;
  scratch: string;
  pgbench: boolean;
  /** Told of each measurement when it is done. */
  progress(text: string): void;
};

/** Before a fresh server is measured it works for so many seconds, until its code is compiled and all tokens are known. */
const BREAK_IN = 4;
const BREAK_IN_CALLERS = 64;
const FINGERPRINT_BYTES = 32;
/** Taken when the service has not stored any response. */
const RESPONSE_BYTES = 280;

/** The size of the responses that are stored. */
async function responseSize(admin: Client): Promise<number> {
  const { rows } = await admin.query<{ bytes: number | null }>(
    "select avg(length(response))::int as bytes from idempotency",
  );
  return rows[0]?.bytes ?? RESPONSE_BYTES;
}

/** Has the load generator carry out a job, and reads what the server used in the time that was measured. */
async function runLoad(load: ChildProcess, server: ChildProcess, job: LoadJob): Promise<Outcome> {
  load.send(job);
  const cpu: (number | undefined)[] = [];
  for (;;) {
    const message = await nextMessage<LoadMark | LoadResult>(load, "the load generator");
    if ("failed" in message) throw new Error(`the load generator failed: ${message.failed}`);
    if ("mark" in message) {
      cpu.push(cpuOf(server.pid));
      continue;
    }
    const { cell, answered } = message;
    const [begin, end] = cpu;
    const requests = cell.perSecond * job.timing.seconds;
    const serverCpu = begin === undefined || end === undefined ? undefined : (end - begin) / requests;
    return { cell: { ...cell, serverCpu, serverMemory: memoryOf(server.pid) }, done: answered };
  }
}

type Served = { server: ChildProcess; port: number; echo: boolean };

/** Measures a server with many callers and with one. */
async function measureServer(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  { server, port, echo }: Served,
): Promise<{ cells: Cell[]; responseBytes: number }> {
  const { rpc, items, alone, name } = scenario;
  const job: LoadJob = {
    ...{ ports: [port], rpc, items, echo, users: USERS, secret: stage.secret },
    ...{ callers: BREAK_IN_CALLERS, timing: { warmup: 0, seconds: Math.min(BREAK_IN, 2 * options.timing.seconds) } },
  };
  await reset(stage.admin);
  await runLoad(load, server, job);
  const cells: Cell[] = [];
  const responseBytes = await responseSize(stage.admin);
  for (const callers of alone ? [1] : [...new Set([1, options.callers])]) {
    if (options.rate !== undefined && callers === 1 && !alone) continue;
    await reset(stage.admin);
    const { rate, timing } = options;
    const { cell, done } = await runLoad(load, server, { ...job, callers, timing, rate });
    const writes = echo || rpc === "product" ? 0 : done;
    const what = `${name}, service, ${callers} callers`;
    const unheard = cell.errors + (cell.dropped ?? 0);
    await audit(stage.admin, { what, done: writes, unheard, ranked: !echo });
    cells.push(cell);
    stage.progress(`${name}: ${echo ? "echo" : "service"}, ${callers} callers: ${Math.round(cell.perSecond)}/s`);
  }
  return { cells, responseBytes };
}

async function measureService(stage: Stage, options: Options, scenario: Scenario, load: ChildProcess) {
  const { url, secret, scratch } = stage;
  const { child, port } = await startService({ url, secret, dataDir: join(scratch, "service") });
  try {
    return await measureServer(stage, options, scenario, load, { server: child, port, echo: false });
  } finally {
    await stop(child);
  }
}

async function measureEcho(stage: Stage, options: Options, scenario: Scenario, load: ChildProcess): Promise<Cell[]> {
  const echo = startModule(join(import.meta.dirname, "echo.ts"), [templateOf(scenario.rpc, "00000000").path]);
  try {
    const port = await nextMessage<number>(echo, "the echo server");
    return (await measureServer(stage, options, scenario, load, { server: echo, port, echo: true })).cells;
  } finally {
    await stop(echo);
  }
}

async function measureSql(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  statements: readonly Statement[],
  responseBytes: number,
): Promise<Cell[]> {
  const { url, admin, pgbench, scratch } = stage;
  const bytes = (count: number) => `\\x${"5a".repeat(count)}`;
  const constants = { fingerprint: bytes(FINGERPRINT_BYTES), response: bytes(responseBytes) };
  const cells: Cell[] = [];
  for (const connections of scenario.alone ? [1] : options.connections) {
    await reset(admin);
    const lane = Math.floor(USERS / connections);
    const job: SqlJob = {
      url,
      statements,
      connections,
      lane,
      variants: scenario.items,
      timing: options.timing,
      constants,
    };
    const { cell, done } = await (pgbench ? runPgbench(job, scratch) : runDriver(job));
    const steps = statements.length > 1 ? "stepwise" : "one-shot";
    // What was under way when the time was over is committed, but not in the log.
    const what = `${scenario.name}, ${steps} SQL, ${connections} connections`;
    await audit(admin, { what, done, unheard: connections, ranked: false });
    cells.push(cell);
    stage.progress(`${scenario.name}: ${steps} SQL, ${connections} connections: ${Math.round(cell.perSecond)}/s`);
  }
  return cells;
}

/**
 * Measures one scenario: the service, then, with the service stopped, what it is compared with.
 *
 * @throws BrokenInvariant when the audit after a measurement finds something
 */
export async function runScenario(stage: Stage, options: Options, scenario: Scenario): Promise<Sides> {
  const { baseline, rpc } = scenario;
  const load = startModule(join(import.meta.dirname, "load.ts"));
  try {
    const { cells: service, responseBytes } = await measureService(stage, options, scenario, load);
    if (options.rate !== undefined) return { service };
    if (!baseline) return { service, echo: rpc === "product" ? await measureEcho(stage, options, scenario, load) : [] };
    const sql = (statements: readonly Statement[]) => measureSql(stage, options, scenario, statements, responseBytes);
    return { service, stepwise: await sql(baseline.stepwise), oneShot: await sql(baseline.oneShot) };
  } finally {
    await stop(load);
  }
}
