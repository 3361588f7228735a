/** Processes of the service, or of the echo server, as somebody who can be measured. */
import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { Client } from "pg";
import { audit } from "./audit.ts";
import { reset, USERS } from "./data.ts";
import { settledMemory } from "./limits.ts";
import type { LoadJob, LoadMark, LoadResult, StreamsOpen } from "./load.ts";
import type { Cell } from "./measure.ts";
import type { Outcome } from "./pgbench.ts";
import { cpuOf, isRunning, memoryOf, nextMessage, startModule, stop } from "./process.ts";
import { templateOf } from "./requests.ts";
import { nameOf, type Scenario, type SideName } from "./scenario.ts";
import { type Service, startService } from "./service.ts";
import { inTurn, type Measured, type Options, type Stage } from "./stage.ts";
import type { StreamsJob } from "./streams.ts";

/**
 * Before fresh servers are measured, each works for so many seconds, until its code is compiled and all tokens are known.
 * Together they share the processor, and take longer.
 */
const BREAK_IN = 10;
const BREAK_IN_CALLERS = 64;
/** Taken when the service has not stored any response. */
const RESPONSE_BYTES = 280;
const KB_PER_MB = 1_024;

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
type Served = { side: SideName; servers: readonly ChildProcess[]; ports: readonly number[]; serverIdle?: number };

type Loop = { callers: number; rate?: number | undefined; streams?: number };

/** How many streams are open, at most and before. */
function streamsOf({ watch }: Scenario, { streams }: Options): readonly number[] {
  if (!watch) return [0];
  return streams.length > 0 ? streams : watch.streams;
}

/** With how many callers, or at what rate, a scenario is measured. */
function loopsOf(scenario: Scenario, options: Options): Loop[] {
  const { alone, overload, watch, servers = 1 } = scenario;
  const { callers, rate } = options;
  if (overload !== undefined) return [undefined, rate ?? overload].map((calls) => ({ callers, rate: calls }));
  if (watch) {
    const numbers = streamsOf(scenario, options);
    const steady = numbers.map((streams) => ({ callers, rate: rate ?? watch.rate, streams }));
    return rate === undefined ? [...steady, { callers, streams: Math.min(...numbers) }] : steady;
  }
  if (alone) return [{ callers: 1, rate }];
  if (rate !== undefined || servers > 1) return [{ callers, rate }];
  return [...new Set([1, callers])].map((count) => ({ callers: count, rate }));
}

/** Has the load generator open so many streams, or none. */
async function openStreams(load: ChildProcess, job: StreamsJob): Promise<void> {
  load.send(job);
  const answer = await nextMessage<StreamsOpen>(load, "the load generator");
  if ("failed" in answer) throw new Error(`the load generator failed: ${answer.failed}`);
}

/** Opens streams on a server that has done nothing yet, and closes them. Returns the KB that it holds for each. */
async function memoryOfStream(
  load: ChildProcess,
  [server]: readonly ChildProcess[],
  job: StreamsJob,
): Promise<number | undefined> {
  const before = await settledMemory(server?.pid);
  await openStreams(load, job);
  const after = await settledMemory(server?.pid);
  await openStreams(load, { ...job, streams: 0 });
  return before === undefined || after === undefined ? undefined : ((after - before) * KB_PER_MB) / job.streams;
}

type Server = Measured & {
  responseBytes: number;
  /** Without the streams that it is otherwise measured with. */
  unwatched: Measured;
};

/** What is measured of servers, once they are broken in. */
async function breakIn(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  { side, servers, ports, serverIdle }: Served,
): Promise<Server> {
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
  const many = Math.max(...streamsOf(scenario, options));
  const watching = { ports, users: USERS, secret: stage.secret };
  const streamKb = many > 0 ? await memoryOfStream(load, servers, { ...watching, streams: many }) : undefined;
  await runLoad(load, servers, job);
  const responseBytes = await responseSize(stage.admin);
  const measure = async ({ callers, rate, streams }: Loop): Promise<Cell> => {
    await reset(stage.admin);
    if (streams) await openStreams(load, { ...watching, streams });
    const { cell, done } = await runLoad(load, servers, { ...job, callers, timing, rate });
    if (streams) await openStreams(load, { ...watching, streams: 0 });
    const writes = echo || rpc === "product" ? 0 : done;
    const who = nameOf(overload !== undefined && rate === undefined ? "closed" : side, scenario);
    const how = rate === undefined ? `${callers} callers` : `${rate}/s wanted`;
    const what = `${name}, ${who}, ${[how, streams && `${streams} streams`].filter(Boolean).join(", ")}`;
    // The sales are counted by whoever of them still runs.
    const ranked = !echo && servers.some(isRunning);
    await audit(stage.admin, { what, done: writes, unheard: unheardOf(cell), ranked });
    stage.progress(`${what}: ${Math.round(cell.perSecond)}/s`);
    const watched = streams !== undefined && { streams, ...(streams === many && { streamKb }) };
    return { ...cell, ...(serverIdle !== undefined && { serverIdle }), ...watched };
  };
  const measured = (loops: readonly Loop[]) => ({
    all: () => inTurn(loops, measure),
    again: measure,
    async stop() {
      await Promise.all(servers.map((server) => stop(server)));
    },
  });
  const unwatched = measured([{ callers: options.callers, streams: 0 }]);
  return { ...measured(loopsOf(scenario, options)), unwatched, responseBytes };
}

/** Fresh processes of the service. */
export async function startServices(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
  side: "service" | "one",
) {
  const { url, secret, scratch } = stage;
  const count = side === "one" ? 1 : (scenario.servers ?? 1);
  // From the start, as after each measurement: it would not start on what `rankNothing` has left.
  await reset(stage.admin);
  const services: Service[] = [];
  for (let index = 0; index < count; index += 1) {
    services.push(await startService({ url, secret, dataDir: join(scratch, `${side}-${index}`) }));
  }
  const servers = services.map(({ child }) => child);
  const serverIdle = highest(await Promise.all(servers.map(({ pid }) => settledMemory(pid))));
  const ports = services.map(({ port }) => port);
  return breakIn(stage, options, scenario, load, { side, servers, ports, ...(serverIdle && { serverIdle }) });
}

export async function startEcho(
  stage: Stage,
  options: Options,
  scenario: Scenario,
  load: ChildProcess,
): Promise<Measured> {
  const echo = startModule(join(import.meta.dirname, "echo.ts"), [templateOf(scenario.rpc, "00000000").path]);
  const port = await nextMessage<number>(echo, "the echo server");
  return breakIn(stage, options, scenario, load, { side: "echo", servers: [echo], ports: [port] });
}
