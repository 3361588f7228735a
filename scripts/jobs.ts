/**
 * Shows how far behind the background jobs are, of all processes on the database together.
 *
 *     npm run jobs
 *     npm run jobs -- --max-lag 60s      # exit code 1 when one is further behind
 *     npm run -s jobs -- --json
 */
import { parseArgs } from "node:util";
import { durationOf, readConfig } from "../src/config.ts";
import { Database } from "../src/db/database.ts";
import { MOST } from "../src/db/lag.ts";
import { type JobLag, lagsOf } from "../src/jobs.ts";
import { command, withDatabase } from "./database.ts";

const USAGE = "use `npm run jobs -- [--max-lag 60s] [--json]`";

/** Milliseconds; Infinity when none is given. */
function limitOf(text: string | undefined): number {
  const limit = text === undefined ? Number.POSITIVE_INFINITY : durationOf(text);
  if (Number.isNaN(limit)) throw new Error(`--max-lag must be a duration such as 90s, 15m or 24h; ${USAGE}`);
  return limit;
}

/** In the largest unit of which there are two at least: 95s, 3m, 50h. */
function inWords(seconds: number): string {
  const units: [string, number][] = [
    ["d", 86_400],
    ["h", 3_600],
    ["m", 60],
  ];
  const [unit, length] = units.find(([, length]) => seconds >= 2 * length) ?? ["s", 1];
  return `${Math.floor(seconds / length)}${unit}`;
}

function lineOf({ job, waiting, seconds, since, failing, failures }: JobLag): string[] {
  const count = waiting === MOST ? `${MOST} or more` : String(waiting);
  const tried = failing === 0 ? "-" : `${failing}, one of them ${failures} times`;
  return [job, count, since ? inWords(seconds) : "-", since?.toISOString() ?? "-", tried];
}

function tableOf(lags: readonly JobLag[]): string {
  const rows = [["JOB", "WAITING", "LAG", "SINCE", "TRIED IN VAIN"], ...lags.map(lineOf)];
  const widths = rows.reduce((all, row) => row.map((cell, i) => Math.max(all[i] ?? 0, cell.length)), [] as number[]);
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

await command(async () => {
  const { values } = parseArgs({ options: { "max-lag": { type: "string" }, json: { type: "boolean" } } });
  const limit = limitOf(values["max-lag"]);
  const lags = await withDatabase(async (orm) => lagsOf(readConfig(process.env), await Database.open(orm)));
  console.log(values.json ? JSON.stringify(lags, null, 2) : tableOf(lags));
  const late = lags.filter(({ seconds }) => seconds * 1_000 > limit);
  if (late.length > 0)
    throw new Error(`behind by more than ${values["max-lag"]}: ${late.map(({ job }) => job).join(", ")}`);
});
