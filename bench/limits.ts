/** What a process of the service holds in memory, and what it may hold. */
import { setTimeout as delay } from "node:timers/promises";
import type { Cell } from "./measure.ts";
import { memoryOf } from "./process.ts";

/** In MB. */
const IDLE_LIMIT = 200;
const BUSY_LIMIT = 600;
/** The callers at which the second limit holds. */
const BUSY_CALLERS = 64;
/** Settled is what stays within `CALM` MB for `STEADY` looks, `PAUSE` ms apart; there are at most `LOOKS` of them. */
const CALM = 1;
const STEADY = 4;
const PAUSE = 250;
const LOOKS = 20;

/** How much memory, in MB, was held at what time, and under how much it had to stay. */
export type MemoryVerdict = { name: string; mb: number; under: number; reached: boolean };

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

function verdict(name: string, sizes: readonly (number | undefined)[], under: number): MemoryVerdict[] {
  const known = sizes.filter((size) => size !== undefined);
  if (known.length === 0) return [];
  const mb = Math.max(...known);
  return [{ name, mb, under, reached: mb < under }];
}

/** Judges the largest process of all measurements; nothing where memory, or that many callers, was not measured. */
export function judgeMemory(cells: readonly Cell[]): MemoryVerdict[] {
  const service = cells.filter(({ serverIdle }) => serverIdle !== undefined);
  const busy = service.filter(({ callers, rate }) => callers === BUSY_CALLERS && rate === undefined);
  return [
    ...verdict(
      "idle",
      service.map(({ serverIdle }) => serverIdle),
      IDLE_LIMIT,
    ),
    ...verdict(
      `${BUSY_CALLERS} callers`,
      busy.map(({ serverMemory }) => serverMemory),
      BUSY_LIMIT,
    ),
  ];
}
