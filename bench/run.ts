/** Carries out scenarios: everything of one runs back to back, on the same Postgres, each from the same start. */
import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { Client } from "pg";
import { audit } from "./audit.ts";
import { rankNothing, reset, USERS } from "./data.ts";
import { runDriver } from "./driver.ts";
import type { LoadJob, LoadMark, LoadResult } from "./load.ts";
import { type Cell, combined, type Timing } from "./measure.ts";
import { settledMemory } from "./memory.ts";
import { type Outcome, runPgbench, type SqlJob } from "./pgbench.ts";
import { cpuOf, isRunning, memoryOf, nextMessage, startModule, stop } from "./process.ts";
import { templateOf } from "./requests.ts";
import { most, nameOf, type Scenario, type SideName, type Sides } from "./scenario.ts";
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
/** How often what decides is measured, in turns with what it is compared with. */
const ROUNDS = 5;
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

/** Somebody who can be measured, and measured again. */
type Measured = {
  /** Everything that is measured. */
  all(): Promise<Cell[]>;
  /** With the most callers, or connections. */
  most(): Promise<Cell>;
  stop(): Promise<void>;
};

/** Processes of one program that share the callers. */
type Served = { side: SideName; servers: readonly ChildProcess[]; ports: readonly number[]; serverIdle?: number };

type Loop = { callers: number; rate: number | undefined };

/** With how many callers, or at what rate, a scenario is measured. */
function loopsOf({ alone, overload, servers = 1 }: Scenario, { callers, rate }: Options): Loop[] {
  if (overload !== undefined) return [undefined, rate ?? overload].map((calls) => ({ callers, rate: calls }));
  if (alone) return [{ callers: 1, rate }];
  if (rate !== undefined || servers > 1) return [{ callers, rate }];
  return [...new Set([1, callers])].map((count) => ({ callers: count, rate }));
}

/** What is measured of servers, once they are broken in. */
async function breakIn(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  { side, servers, ports, serverIdle }: Served,
): Promise<Measured & { responseBytes: number }> {
  const { rpc, items, name, overload } = scenario;
  const { timing } = options;
  const echo = side === "echo";
  const job: LoadJob = {
    ...{ ports, rpc, items, echo, users: USERS, secret: stage.secret },
    // Each process has to know the tokens of its own callers, who are others with another number of them.
    callers: ports.length > 1 ? options.callers : BREAK_IN_CALLERS,
    timing: { warmup: 0, seconds: Math.min(BREAK_IN, 4 * timing.seconds) * servers.length },
  };
  await reset(stage.admin);
  await runLoad(load, servers, job);
  const responseBytes = await responseSize(stage.admin);
  const measure = async ({ callers, rate }: Loop): Promise<Cell> => {
    await reset(stage.admin);
    const { cell, done } = await runLoad(load, servers, { ...job, callers, timing, rate });
    const writes = echo || rpc === "product" ? 0 : done;
    const who = nameOf(overload !== undefined && rate === undefined ? "closed" : side, scenario);
    const how = rate === undefined ? `${callers} callers` : `${rate}/s wanted`;
    // The sales are counted by whoever of them still runs.
    const ranked = !echo && servers.some(isRunning);
    await audit(stage.admin, { what: `${name}, ${who}, ${how}`, done: writes, unheard: unheardOf(cell), ranked });
    stage.progress(`${name}: ${who}, ${how}: ${Math.round(cell.perSecond)}/s`);
    return { ...cell, ...(serverIdle !== undefined && { serverIdle }) };
  };
  const loops = loopsOf(scenario, options);
  return {
    responseBytes,
    all: () => inTurn(loops, measure),
    most: () => measure(loops.at(-1) as Loop),
    async stop() {
      await Promise.all(servers.map((server) => stop(server)));
    },
  };
}

async function inTurn<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (const item of items) results.push(await work(item));
  return results;
}

/** Fresh processes of the service. */
async function startServices(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  side: "service" | "one",
) {
  const { url, secret, scratch } = stage;
  const count = side === "one" ? 1 : (scenario.servers ?? 1);
  const services: Service[] = [];
  for (let index = 0; index < count; index += 1) {
    services.push(await startService({ url, secret, dataDir: join(scratch, `${side}-${index}`) }));
  }
  const servers = services.map(({ child }) => child);
  const serverIdle = highest(await Promise.all(servers.map(({ pid }) => settledMemory(pid))));
  const ports = services.map(({ port }) => port);
  return breakIn(stage, options, scenario, load, { side, servers, ports, ...(serverIdle && { serverIdle }) });
}

async function startEcho(stage: Stage, options: Options, scenario: Scenario, load: ChildProcess): Promise<Measured> {
  const echo = startModule(join(import.meta.dirname, "echo.ts"), [templateOf(scenario.rpc, "00000000").path]);
  const port = await nextMessage<number>(echo, "the echo server");
  return breakIn(stage, options, scenario, load, { side: "echo", servers: [echo], ports: [port] });
}

function measuredSql(
  { url, admin, pgbench, scratch, progress }: Stage,
  { connections: counts, timing }: Options,
  { name, alone, items }: Scenario,
  statements: readonly Statement[],
  responseBytes: number,
): Measured {
  const bytes = (count: number) => `\\x${"5a".repeat(count)}`;
  const constants = { fingerprint: bytes(FINGERPRINT_BYTES), response: bytes(responseBytes) };
  const measure = async (connections: number): Promise<Cell> => {
    await reset(admin);
    await rankNothing(admin);
    const lane = Math.floor(USERS / connections);
    const job: SqlJob = { url, statements, connections, lane, variants: items, timing, constants };
    const { cell, done } = await (pgbench ? runPgbench(job, scratch) : runDriver(job));
    const steps = statements.length > 1 ? "stepwise" : "one-shot";
    // What was under way when the time was over is committed, but not in the log.
    const what = `${name}, ${steps} SQL, ${connections} connections`;
    await audit(admin, { what, done, unheard: connections, ranked: false });
    progress(`${name}: ${steps} SQL, ${connections} connections: ${Math.round(cell.perSecond)}/s`);
    return cell;
  };
  return {
    all: () => inTurn(alone ? [1] : counts, measure),
    most: () => measure(Math.max(...counts)),
    stop: async () => {},
  };
}

/** Measures two in turns with the most callers, and takes that into what was measured of them before. */
async function inRounds(pairs: readonly (readonly [Measured, Cell[]])[]): Promise<void> {
  const rounds = pairs.map(([, cells]) => [most(cells)].filter((cell) => cell !== undefined));
  for (let round = 1; round < ROUNDS; round += 1) {
    for (const [index, [measured]] of pairs.entries()) {
      rounds[index]?.push(await measured.most());
    }
  }
  for (const [index, [, cells]] of pairs.entries()) {
    const at = cells.indexOf(most(cells) as Cell);
    if (at >= 0) cells[at] = combined(rounds[index] ?? []);
  }
}

/**
 * Measures one scenario: the service, then, with the service idle, what it is compared with; and what decides in turns,
 * since the machine may be faster now and slower a minute later.
 *
 * @throws BrokenInvariant when the audit after a measurement finds something
 */
export async function runScenario(stage: Stage, options: Options, scenario: Scenario): Promise<Sides> {
  const { baseline, servers = 1, overload, bars } = scenario;
  const load = startModule(join(import.meta.dirname, "load.ts"));
  const started: Measured[] = [];
  const measure = async <M extends Measured>(measured: M): Promise<readonly [M, Cell[]]> => {
    started.push(measured);
    return [measured, await measured.all()];
  };
  try {
    const service = await measure(await startServices(stage, options, scenario, load, "service"));
    const [{ responseBytes }, cells] = service;
    if (overload !== undefined) {
      const [closed = [], open = []] = cells.map((cell) => [cell]);
      return { service: open, closed };
    }
    if (options.rate !== undefined) return { service: cells };
    const sql = (statements: readonly Statement[]) =>
      measure(measuredSql(stage, options, scenario, statements, responseBytes));
    const others: Partial<Record<SideName, readonly [Measured, Cell[]]>> = baseline
      ? { stepwise: await sql(baseline.stepwise), oneShot: await sql(baseline.oneShot) }
      : servers > 1
        ? { one: await measure(await startServices(stage, options, scenario, load, "one")) }
        : { echo: await measure(await startEcho(stage, options, scenario, load)) };
    const other = others[bars[0].against];
    if (bars[0].at === "hot" && other) await inRounds([service, other]);
    const sides = Object.entries(others).map(([side, [, measured]]) => [side, measured]);
    return { service: cells, ...Object.fromEntries(sides) };
  } finally {
    await Promise.all(started.map((measured) => measured.stop()));
    await stop(load);
  }
}
