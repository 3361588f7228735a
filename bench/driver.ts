/** Runs a baseline by the `pg` driver, with named prepared statements: for machines without pgbench. */
import { fileURLToPath } from "node:url";
import { Client } from "pg";
import { FIRST } from "./data.ts";
import { summarize } from "./measure.ts";
import type { Outcome, SqlJob } from "./pgbench.ts";
import { nextMessage, startModule, stop } from "./process.ts";
import type { Statement } from "./sql.ts";

type Variables = Record<string, unknown>;
type Prepared = { name: string; text: string; parameters: readonly string[]; keep: boolean };

/** Numbers its variables, each place on its own: their types are inferred from there. */
function prepare({ sql, keep = false }: Statement, index: number): Prepared {
  const parameters: string[] = [];
  const text = sql.replace(/(?<!:):([a-z_]+)/g, (_, name: string) => `$${parameters.push(name)}`);
  return { name: `s${index}`, text, parameters, keep };
}

async function transact(client: Client, statements: readonly Prepared[], variables: Variables): Promise<void> {
  for (const { name, text, parameters, keep } of statements) {
    const result = await client.query({ name, text, values: parameters.map((parameter) => variables[parameter]) });
    if (!keep) continue;
    if (result.rows.length !== 1) throw new Error(`one row expected, but got ${result.rows.length}`);
    Object.assign(variables, result.rows[0]);
  }
}

/** A number below `end`. */
function random(end: number): number {
  return Math.floor(Math.random() * end);
}

async function carryOut(job: SqlJob): Promise<Outcome> {
  const { connections, lane, variants, timing, constants } = job;
  const statements = job.statements.map(prepare);
  const from = performance.now() + timing.warmup * 1_000;
  const until = from + timing.seconds * 1_000;
  const latencies: number[] = [];
  let done = 0;
  const work = async (_: unknown, index: number) => {
    const client = new Client({ connectionString: job.url });
    await client.connect();
    const fixed = Object.fromEntries(Object.entries(constants));
    for (let start = performance.now(); start < until; ) {
      const user = FIRST + index * lane + random(lane);
      const variables = { ...fixed, user, variant: FIRST + random(variants), request: `${index}-${done}-${start}` };
      await transact(client, statements, variables);
      done += 1;
      const end = performance.now();
      if (end >= from && end < until) latencies.push(end - start);
      start = end;
    }
    await client.end();
  };
  const cpu = process.cpuUsage();
  const share = (timing.warmup + timing.seconds) / timing.seconds;
  await Promise.all(Array.from({ length: connections }, work));
  const { user, system } = process.cpuUsage(cpu);
  const summary = summarize(Float64Array.from(latencies), timing.seconds);
  const clientCpu = (user + system) / share / Math.max(1, latencies.length);
  return { cell: { callers: connections, ...summary, errors: 0, clientCpu }, done };
}

const path = fileURLToPath(import.meta.url);

/** @throws Error with what the database says, when a transaction failed */
export async function runDriver(job: SqlJob): Promise<Outcome> {
  const child = startModule(path);
  try {
    child.send(job);
    const outcome = await nextMessage<Outcome | { failed: string }>(child, "the SQL load generator");
    if ("failed" in outcome) throw new Error(`a transaction failed: ${outcome.failed}`);
    return outcome;
  } finally {
    await stop(child);
  }
}

if (process.argv[1] === path) {
  process.once("message", (job: SqlJob) => {
    carryOut(job).then(
      (outcome) => process.send?.(outcome),
      (error: unknown) => process.send?.({ failed: (error as Error).message }),
    );
  });
  process.on("disconnect", () => process.exit());
}
