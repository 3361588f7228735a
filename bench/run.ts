/** Carries out scenarios: everything of one runs back to back, on the same Postgres, each from the same start. */
import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { Client } from "pg";
import { audit } from "./audit.ts";
import { reset, USERS } from "./data.ts";
import { runDriver } from "./driver.ts";
import type { LoadJob, LoadMark, LoadResult } from "./load.ts";
import type { Cell, Timing } from "./measure.ts";
import { settledMemory } from "./memory.ts";
import { type Outcome, runPgbench, type SqlJob } from "./pgbench.ts";
import { cpuOf, isRunning, memoryOf, nextMessage, startModule, stop } from "./process.ts";
import { templateOf } from "./requests.ts";
import { nameOf, type Scenario, type SideName, type Sides } from "./scenario.ts";
import { type Service, startService } from "./service.ts";
import type { Statement } from "./sql.ts";

export type Options = {
  timing: Timing;
  callers: number;
  connections: readonly number[];
  /** Open loop: calls a second. What the service is compared with is left out then. */
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

/**
 * Before fresh servers are measured, each works for so many seconds, until its code is compiled and all tokens are known.
 * Together they share the processor, and take longer.
 */
const BREAK_IN = 10;
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

/** Codes of calls that have certainly not been carried out. */
const REFUSED = ["ResourceExhausted", "Aborted"];

/** How many writes may be stored although nobody heard so. */
function unheardOf({ codes = {} }: Cell): number {
  return Object.entries(codes).reduce((sum, [code, count]) => sum + (REFUSED.includes(code) ? 0 : count), 0);
}

/** All of them together; undefined when one is not known. */
function sum(values: readonly (number | undefined)[]): number | undefined {
  return values.reduce((total, value) => (total === undefined || value === undefined ? undefined : total + value), 0);
}

function highest(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined);
  return known.length > 0 ? Math.max(...known) : undefined;
}

/** Has the load generator carry out a job, and reads what the servers used in the time that was measured. */
async function runLoad(load: ChildProcess, servers: readonly ChildProcess[], job: LoadJob): Promise<Outcome> {
  load.send(job);
  const cpu: (number | undefined)[] = [];
  for (;;) {
    const message = await nextMessage<LoadMark | LoadResult>(load, "the load generator");
    if ("failed" in message) throw new Error(`the load generator failed: ${message.failed}`);
    if ("mark" in message) {
      cpu.push(sum(servers.map(({ pid }) => cpuOf(pid))));
      continue;
    }
    const { cell, answered } = message;
    const [begin, end] = cpu;
    const requests = Math.max(1, cell.perSecond * job.timing.seconds);
    const serverCpu = begin === undefined || end === undefined ? undefined : (end - begin) / requests;
    const serverMemory = highest(servers.map(({ pid }) => memoryOf(pid, "peak")));
    return { cell: { ...cell, serverCpu, serverMemory }, done: answered };
  }
}

/** Processes of one program that share the callers. */
type Served = { side: SideName; servers: readonly ChildProcess[]; ports: readonly number[] };

type Loop = { callers: number; rate: number | undefined };

/** With how many callers, or at what rate, a scenario is measured. */
function loopsOf({ alone, overload, servers = 1 }: Scenario, { callers, rate }: Options): Loop[] {
  if (overload !== undefined) return [undefined, rate ?? overload].map((calls) => ({ callers, rate: calls }));
  if (alone) return [{ callers: 1, rate }];
  if (rate !== undefined || servers > 1) return [{ callers, rate }];
  return [...new Set([1, callers])].map((count) => ({ callers: count, rate }));
}

/** Measures servers in all loops of a scenario. */
async function measureServers(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  { side, servers, ports }: Served,
): Promise<{ cells: Cell[]; responseBytes: number }> {
  const { rpc, items, name, overload } = scenario;
  const { timing } = options;
  const echo = side === "echo";
  const job: LoadJob = {
    ...{ ports, rpc, items, echo, users: USERS, secret: stage.secret },
    // Each process has to know the tokens of its own callers, who are others with another number of them.
    callers: ports.length > 1 ? options.callers : BREAK_IN_CALLERS,
    timing: { warmup: 0, seconds: Math.min(BREAK_IN, 2 * timing.seconds) * servers.length },
  };
  await reset(stage.admin);
  await runLoad(load, servers, job);
  const cells: Cell[] = [];
  const responseBytes = await responseSize(stage.admin);
  for (const { callers, rate } of loopsOf(scenario, options)) {
    await reset(stage.admin);
    const { cell, done } = await runLoad(load, servers, { ...job, callers, timing, rate });
    const writes = echo || rpc === "product" ? 0 : done;
    const who = nameOf(overload !== undefined && rate === undefined ? "closed" : side, scenario);
    const how = rate === undefined ? `${callers} callers` : `${rate}/s wanted`;
    // The sales are counted by whoever of them still runs.
    const ranked = !echo && servers.some(isRunning);
    await audit(stage.admin, { what: `${name}, ${who}, ${how}`, done: writes, unheard: unheardOf(cell), ranked });
    cells.push(cell);
    stage.progress(`${name}: ${who}, ${how}: ${Math.round(cell.perSecond)}/s`);
  }
  return { cells, responseBytes };
}

/** Measures fresh processes of the service. */
async function measureService(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  side: "service" | "one",
) {
  const { url, secret, scratch } = stage;
  const count = side === "one" ? 1 : (scenario.servers ?? 1);
  const services: Service[] = [];
  try {
    for (let index = 0; index < count; index += 1) {
      services.push(await startService({ url, secret, dataDir: join(scratch, `service-${index}`) }));
    }
    const servers = services.map(({ child }) => child);
    const serverIdle = highest(await Promise.all(servers.map(({ pid }) => settledMemory(pid))));
    const served = { side, servers, ports: services.map(({ port }) => port) };
    const { cells, responseBytes } = await measureServers(stage, options, scenario, load, served);
    return { cells: cells.map((cell) => ({ ...cell, serverIdle })), responseBytes };
  } finally {
    await Promise.all(services.map(({ child }) => stop(child)));
  }
}

async function measureEcho(stage: Stage, options: Options, scenario: Scenario, load: ChildProcess): Promise<Cell[]> {
  const echo = startModule(join(import.meta.dirname, "echo.ts"), [templateOf(scenario.rpc, "00000000").path]);
  try {
    const port = await nextMessage<number>(echo, "the echo server");
    const served: Served = { side: "echo", servers: [echo], ports: [port] };
    return (await measureServers(stage, options, scenario, load, served)).cells;
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
  const { baseline, servers = 1, overload } = scenario;
  const load = startModule(join(import.meta.dirname, "load.ts"));
  try {
    const { cells: service, responseBytes } = await measureService(stage, options, scenario, load, "service");
    if (overload !== undefined) {
      const [closed = [], open = []] = service.map((cell) => [cell]);
      return { service: open, closed };
    }
    if (options.rate !== undefined) return { service };
    if (baseline) {
      const sql = (statements: readonly Statement[]) => measureSql(stage, options, scenario, statements, responseBytes);
      return { service, stepwise: await sql(baseline.stepwise), oneShot: await sql(baseline.oneShot) };
    }
    if (servers > 1) return { service, one: (await measureService(stage, options, scenario, load, "one")).cells };
    return { service, echo: await measureEcho(stage, options, scenario, load) };
  } finally {
    await stop(load);
  }
}
