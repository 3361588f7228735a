/** What a process of the service may hold in memory, and how long a sale may take to those who watch. */
import { setTimeout as delay } from "node:timers/promises";
import type { Cell } from "./measure.ts";
import { memoryOf } from "./process.ts";

/** In MB. */
const IDLE_LIMIT = 200;
const BUSY_LIMIT = 600;
/** The callers at which the second limit holds. */
const BUSY_CALLERS = 64;
/** Milliseconds from the commit to the last of so many streams. */
const LAGS = [
  { streams: 1_000, under: 1_000, must: true },
  { streams: 10_000, under: 250, must: false },
] as const;
/** In KB, where so many are open that it is not lost in what else a process holds. */
const STREAM_LIMIT = 30;
const MANY_STREAMS = 1_000;
/** Settled is what stays within `CALM` MB for `STEADY` looks, `PAUSE` ms apart; there are at most `LOOKS` of them. */
const CALM = 1;
const STEADY = 4;
const PAUSE = 250;
const LOOKS = 20;

/** How much was held, or how long it took, and under how much it must, or should, stay. */
export type Limit = {
  name: string;
  value: number;
  unit: "MB" | "KB" | "ms";
  under: number;
  must: boolean;
  reached: boolean;
};

/** What a process that has just started holds when it has come to rest, in MB; undefined where there is no /proc. */
export async function settledMemory(pid: number | undefined): Promise<number | undefined> {
  let settled = memoryOf(pid, "now");
  for (let look = 0, steady = 0; look < LOOKS && steady < STEADY && settled !== undefined; look += 1) {
    await delay(PAUSE);
    const held = memoryOf(pid, "now");
    const calm = held !== undefined && Math.abs(held - settled) <= CALM;
    steady = calm ? steady + 1 : 0;
    if (!calm) settled = held;
  }
  return settled;
}

/** Judges the largest value; nothing when there is none. */
function limit(limits: Omit<Limit, "value" | "reached">, values: readonly (number | undefined)[]): Limit[] {
  const known = values.filter((value) => value !== undefined);
  if (known.length === 0) return [];
  const value = Math.max(...known);
  return [{ ...limits, value, reached: value < limits.under }];
}

/** Judges all measurements together: the largest process, and each number of streams. Nothing where it was not measured. */
export function judgeLimits(cells: readonly Cell[]): Limit[] {
  const service = cells.filter(({ serverIdle }) => serverIdle !== undefined);
  const busy = service.filter(
    ({ callers, rate, streams }) => callers === BUSY_CALLERS && rate === undefined && streams === undefined,
  );
  const watched = service.filter(({ streams }) => streams !== undefined);
  const memory = (name: string, under: number) => ({ name: `memory ${name}`, unit: "MB" as const, under, must: true });
  return [
    ...limit(
      memory("idle", IDLE_LIMIT),
      service.map(({ serverIdle }) => serverIdle),
    ),
    ...limit(
      memory(`${BUSY_CALLERS} callers`, BUSY_LIMIT),
      busy.map(({ serverMemory }) => serverMemory),
    ),
    ...limit(
      { name: "memory of a stream", unit: "KB", under: STREAM_LIMIT, must: true },
      watched.filter(({ streams = 0 }) => streams >= MANY_STREAMS).map(({ streamKb }) => streamKb),
    ),
    ...LAGS.flatMap(({ streams, under, must }) =>
      limit(
        { name: `sale to the last of ${streams.toLocaleString("en-US")} streams, p99`, unit: "ms", under, must },
        watched.filter((cell) => cell.streams === streams && cell.rate !== undefined).map(({ lag }) => lag?.p99),
      ),
    ),
  ];
}
