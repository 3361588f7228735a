/** What is measured, whoever is measured. */

/** One measurement: so many callers (or connections) for so long. Latencies in milliseconds, costs in microseconds. */
export type Cell = {
  callers: number;
  perSecond: number;
  p50: number;
  p99: number;
  /** Calls that had no good answer, the warm-up included. */
  errors: number;
  /** Errors by gRPC code. */
  codes?: Record<string, number>;
  /** Processor time of the load generator for one good answer. */
  clientCpu: number | undefined;
  /** Processor time of the service's processes for one good answer. */
  serverCpu?: number | undefined;
  /** The most memory that a process of the service has held so far, in MB. */
  serverMemory?: number | undefined;
  /** What it held before its first call, in MB. */
  serverIdle?: number | undefined;
  /** Open loop only: arrivals a second asked for, those that got no answer, and those answered after `LATE`. */
  rate?: number;
  dropped?: number;
  late?: number;
  /** Streams that were open meanwhile, how long a sale took to the last of them in milliseconds, and KB of memory each. */
  streams?: number;
  lag?: { p50: number; p99: number };
  streamKb?: number | undefined;
};

/** From when on an answer counts as late, in milliseconds from the intended start. */
export const LATE = 1_000;

/** How long each measurement takes, in seconds: `warmup` is not counted. */
export type Timing = { warmup: number; seconds: number };

/** A value such that the given part of all values is not above it. `values` get sorted. */
export function quantile(sorted: Float64Array, part: number): number {
  if (sorted.length === 0) return Number.NaN;
  return sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)] as number;
}

/** Throughput and latencies of what was measured in `seconds`. */
export function summarize(latencies: Float64Array, seconds: number): Pick<Cell, "perSecond" | "p50" | "p99"> {
  const sorted = latencies.toSorted();
  return { perSecond: sorted.length / seconds, p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99) };
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const median = (values: readonly number[]) => quantile(Float64Array.from(values).sort(), 0.5);

/** Several measurements of the same as one: the mean of throughput and cost, the median of latencies, all errors. */
export function combined(cells: readonly Cell[]): Cell {
  const [first] = cells;
  if (!first) throw new Error("nothing was measured");
  const all = (pick: (cell: Cell) => number | undefined) => cells.map(pick).filter((value) => value !== undefined);
  const cost = (pick: (cell: Cell) => number | undefined) => (all(pick).length > 0 ? mean(all(pick)) : undefined);
  const codes: Record<string, number> = {};
  for (const cell of cells) {
    for (const [code, count] of Object.entries(cell.codes ?? {})) codes[code] = (codes[code] ?? 0) + count;
  }
  return {
    ...first,
    perSecond: mean(all(({ perSecond }) => perSecond)),
    p50: median(all(({ p50 }) => p50)),
    p99: median(all(({ p99 }) => p99)),
    errors: all(({ errors }) => errors).reduce((sum, count) => sum + count, 0),
    ...(Object.keys(codes).length > 0 && { codes }),
    clientCpu: cost(({ clientCpu }) => clientCpu),
    serverCpu: cost(({ serverCpu }) => serverCpu),
    serverMemory: all(({ serverMemory }) => serverMemory).reduce<number | undefined>(
      (most, value) => Math.max(most ?? 0, value),
      undefined,
    ),
  };
}
