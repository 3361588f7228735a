/** Carries out scenarios: everything of one runs back to back, on the same Postgres, each from the same start. */
import { join } from "node:path";
import { audit } from "./audit.ts";
import { rankNothing, reset, USERS } from "./data.ts";
import { runDriver } from "./driver.ts";
import { type Cell, combined } from "./measure.ts";
import { runPgbench, type SqlJob } from "./pgbench.ts";
import { startModule, stop } from "./process.ts";
import { compared, type Scenario, type SideName, type Sides } from "./scenario.ts";
import { startEcho, startServices } from "./served.ts";
import type { Statement } from "./sql.ts";
import { inTurn, type Measured, type Options, type Stage } from "./stage.ts";

/** How often what decides is measured, in turns with what it is compared with. */
const ROUNDS = 5;
const FINGERPRINT_BYTES = 32;

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
    again: ({ callers }) => measure(callers),
    stop: async () => {},
  };
}

/** Measures what a bar compares in turns, and takes that into what was measured before. */
async function inRounds(compared: readonly (readonly [Measured, Cell[], Cell])[]): Promise<void> {
  const rounds = compared.map(([, , cell]) => [cell]);
  for (let round = 1; round < ROUNDS; round += 1) {
    for (const [index, [measured, , cell]] of compared.entries()) {
      rounds[index]?.push(await measured.again(cell));
    }
  }
  for (const [index, [, cells, cell]] of compared.entries()) {
    cells[cells.indexOf(cell)] = combined(rounds[index] ?? []);
  }
}

/**
 * Measures one scenario: the service, then, with the service idle, what it is compared with; and what decides in turns,
 * since the machine may be faster now and slower a minute later.
 *
 * @throws BrokenInvariant when the audit after a measurement finds something
 */
export async function runScenario(stage: Stage, options: Options, scenario: Scenario): Promise<Sides> {
  const { baseline, servers = 1, overload, watch, bars } = scenario;
  const load = startModule(join(import.meta.dirname, "load.ts"));
  const started: Measured[] = [];
  const measure = async <M extends Measured>(measured: M): Promise<readonly [M, Cell[]]> => {
    started.push(measured);
    return [measured, await measured.all()];
  };
  try {
    const service = await measure(await startServices(stage, options, scenario, load, "service"));
    const [{ responseBytes, unwatched }, cells] = service;
    if (overload !== undefined) {
      const [closed = [], open = []] = cells.map((cell) => [cell]);
      return { service: open, closed };
    }
    if (options.rate !== undefined) return { service: cells };
    const sql = (statements: readonly Statement[]) =>
      measure(measuredSql(stage, options, scenario, statements, responseBytes));
    const others = async (): Promise<Partial<Record<SideName, readonly [Measured, Cell[]]>>> => {
      if (baseline) return { stepwise: await sql(baseline.stepwise), oneShot: await sql(baseline.oneShot) };
      if (watch) return { unwatched: await measure(unwatched) };
      if (servers > 1) return { one: await measure(await startServices(stage, options, scenario, load, "one")) };
      return { echo: await measure(await startEcho(stage, options, scenario, load)) };
    };
    const measured = await others();
    const sides: Sides = {
      service: cells,
      ...Object.fromEntries(Object.entries(measured).map(([side, [, made]]) => [side, made])),
    };
    const other = measured[bars[0].against];
    const decides = compared(bars[0], sides);
    if (other && decides)
      await inRounds([
        [...service, decides.service],
        [...other, decides.other],
      ]);
    return sides;
  } finally {
    await Promise.all(started.map((measured) => measured.stop()));
    await stop(load);
  }
}
