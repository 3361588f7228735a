/** What a run says in the end: lines for people, JSON for programs. */
import { cpus, totalmem } from "node:os";
import { judgeLimits, type Limit } from "./limits.ts";
import type { Cell } from "./measure.ts";
import { compared, judge, nameOf, type Scenario, type SideName, type Sides, type Verdict } from "./scenario.ts";

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

/** What the service came to in all scenarios together, against its limits. */
export function limitsOf(results: readonly Result[]): Limit[] {
  return judgeLimits(results.flatMap(({ sides }) => Object.values(sides).flat()));
}

const NONE = "-";

/** With so many digits as are worth reading. */
function number(value: number | undefined): string {
  if (value === undefined || Number.isNaN(value)) return NONE;
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(value >= 10 ? 1 : 2);
}

function errorText({ codes, dropped = 0, late = 0, rate }: Cell): string {
  const whole = (count: number) => count.toLocaleString("en-US");
  const text = Object.entries(codes ?? {}).map(([code, count]) => `${whole(count)} ${code}`);
  if (rate !== undefined) text.push(`${whole(dropped)} dropped`, `${whole(late)} late`);
  return text.length > 0 ? text.join(", ") : "0";
}

const HEAD = [
  "scenario",
  "who",
  "callers",
  "streams",
  "per s",
  "p50 ms",
  "p99 ms",
  "client us",
  "server us",
  "server MB",
  "lag ms",
  "errors",
];

function rows({ scenario, sides }: Result): string[][] {
  return Object.entries(sides).flatMap(([side, cells]) =>
    cells.map((cell) => [
      scenario.name,
      nameOf(side as SideName, scenario),
      cell.rate === undefined ? String(cell.callers) : `${number(cell.rate)}/s`,
      cell.streams?.toLocaleString("en-US") ?? NONE,
      ...[cell.perSecond, cell.p50, cell.p99, cell.clientCpu, cell.serverCpu, cell.serverMemory, cell.lag?.p99].map(
        number,
      ),
      errorText(cell),
    ]),
  );
}

function verdictText({ against, at, ratio, must, aim, reached, aimed }: Verdict, scenario: Scenario): string {
  const where = { hot: "", best: " at its best", alone: ", p50", overload: "" }[at];
  const sign = at === "alone" ? "at most " : "";
  const wanted =
    at === "overload" ? "must answer all, with OK or RESOURCE_EXHAUSTED alone" : `must reach ${sign}${must}x`;
  const bar = reached === undefined ? "" : `  ${wanted}: ${reached ? "PASS" : "MISS"}`;
  return `${number(ratio)}x ${nameOf(against, scenario)}${where}${bar}  aim ${aim}x: ${aimed ? "yes" : "not yet"}`;
}

function limitText({ value, unit, under, must, reached }: Limit): string {
  const is = `${number(value)} ${unit}`;
  const wanted = `${number(under)} ${unit}`;
  return must
    ? `${is}  must stay under ${wanted}: ${reached ? "PASS" : "MISS"}`
    : `${is}  aim under ${wanted}: ${reached ? "yes" : "not yet"}`;
}

/** Measurements as a table, of the columns in which there is something. */
export function table(results: readonly Result[]): string {
  const all = results.flatMap(rows);
  const used = HEAD.map((_, column) => all.some((line) => line[column] !== NONE));
  const lines = [HEAD, ...all].map((line) => line.filter((_, column) => used[column]));
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  return lines
    .map((line) =>
      line
        .map((text, column) =>
          column < 2 || column === line.length - 1
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
  const lines = [
    ...results.flatMap(({ scenario, verdicts: all }) =>
      all.map((verdict) => [scenario.name, verdictText(verdict, scenario)] as const),
    ),
    ...limitsOf(results).map((limit) => [limit.name, limitText(limit)] as const),
  ];
  const width = Math.max(...lines.map(([name]) => name.length));
  return lines.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join("\n");
}

/** Whether anything that must be reached was missed. */
export function hasMissed(results: readonly Result[]): boolean {
  const bars = results.flatMap(({ verdicts: some }) => some);
  const limits = limitsOf(results).filter(({ must }) => must);
  return [...bars, ...limits].some(({ reached }) => reached === false);
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
  return `${JSON.stringify({ machine, limits: limitsOf(results), scenarios: list }, null, 2)}\n`;
}
