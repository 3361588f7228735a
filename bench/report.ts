/** What a run says in the end: lines for people, JSON for programs. */
import { cpus, totalmem } from "node:os";
import type { Cell } from "./measure.ts";
import { compared, judge, type Scenario, type SideName, type Sides, type Verdict } from "./scenario.ts";

const MB = 2 ** 20;

export type Machine = { cpu: string; cores: number; memoryMb: number; node: string; postgres: string; sqlBy: string };

/** What a scenario came to. `ratio` is that of its first bar. */
export type Result = { scenario: Scenario; sides: Sides; verdicts: readonly Verdict[] };

/** `sqlBy`: what runs the baselines. */
export function describeMachine(postgres: string, sqlBy: string): Machine {
  const cpu = cpus()[0]?.model.trim() ?? "unknown";
  return { cpu, cores: cpus().length, memoryMb: Math.round(totalmem() / MB), node: process.version, postgres, sqlBy };
}

export function machineLine({ cpu, cores, memoryMb, node, postgres, sqlBy }: Machine): string {
  return `${cores} x ${cpu}, ${Math.round(memoryMb / 1024)} GB, Node ${node}, Postgres ${postgres}, SQL by ${sqlBy}`;
}

export function resultOf(scenario: Scenario, sides: Sides): Result {
  return { scenario, sides, verdicts: scenario.bars.flatMap((bar) => judge(bar, sides) ?? []) };
}

export const sideNames: Readonly<Record<SideName, string>> = {
  service: "service",
  stepwise: "stepwise SQL",
  oneShot: "one-shot SQL",
  echo: "bare grpc-js echo",
};

/** With so many digits as are worth reading. */
function number(value: number | undefined): string {
  if (value === undefined || Number.isNaN(value)) return "-";
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(value >= 10 ? 1 : 2);
}

function errorText({ errors, codes, dropped, late, rate }: Cell): string {
  const named = Object.entries(codes ?? {}).map(([code, count]) => `${code} ${count}`);
  const text = errors > 0 ? `${errors} (${named.join(", ")})` : "0";
  return rate === undefined ? text : `${text}; ${dropped} dropped, ${late} late of ${rate}/s`;
}

const HEAD = [
  "scenario",
  "who",
  "callers",
  "per s",
  "p50 ms",
  "p99 ms",
  "client us",
  "server us",
  "server MB",
  "errors",
];

function rows({ scenario, sides }: Result): string[][] {
  return Object.entries(sides).flatMap(([side, cells]) =>
    cells.map((cell) => [
      scenario.name,
      sideNames[side as SideName],
      ...[cell.callers, cell.perSecond, cell.p50, cell.p99, cell.clientCpu, cell.serverCpu, cell.serverMemory].map(
        (value, index) => (index === 0 ? String(value) : number(value)),
      ),
      errorText(cell),
    ]),
  );
}

function verdictText({ against, at, ratio, must, aim, reached, aimed }: Verdict): string {
  const where = { hot: "", best: " at its best", alone: ", p50" }[at];
  const sign = at === "alone" ? "at most " : "";
  const bar = must === undefined ? "" : `  must reach ${sign}${must}x: ${reached ? "PASS" : "MISS"}`;
  return `${number(ratio)}x ${sideNames[against]}${where}${bar}  aim ${aim}x: ${aimed ? "yes" : "not yet"}`;
}

/** Measurements as a table. */
export function table(results: readonly Result[]): string {
  const lines = [HEAD, ...results.flatMap(rows)];
  const widths = HEAD.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  return lines
    .map((line) =>
      line
        .map((text, column) =>
          column < 2 || column === HEAD.length - 1
            ? text.padEnd(widths[column] ?? 0)
            : text.padStart(widths[column] ?? 0),
        )
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** What was reached of what must be, a line for each bar. */
export function verdicts(results: readonly Result[]): string {
  const width = Math.max(...results.map(({ scenario }) => scenario.name.length));
  return results
    .flatMap(({ scenario, verdicts: all }) =>
      all.map((verdict) => `${scenario.name.padEnd(width)}  ${verdictText(verdict)}`),
    )
    .join("\n");
}

/** The result as DESIGN's JSON: of each side the measurement that counts, and beside it all of them as `cells`. */
export function toJson(machine: Machine, results: readonly Result[]): string {
  const list = results.map(({ scenario, sides, verdicts: all }) => {
    const counted = compared(scenario.bars[0], sides);
    const sideOf = ([side, cells]: [string, readonly Cell[]]) => {
      const bar = scenario.bars.find(({ against }) => against === side) ?? {
        ...scenario.bars[0],
        against: side as "echo",
      };
      const head = side === "service" ? (counted?.service ?? cells[0]) : compared(bar, sides)?.other;
      return [side, { ...head, cells }];
    };
    return {
      name: scenario.name,
      ratio: all[0]?.ratio ?? null,
      bars: all,
      ...Object.fromEntries(Object.entries(sides).map(sideOf)),
    };
  });
  return `${JSON.stringify({ machine, scenarios: list }, null, 2)}\n`;
}
