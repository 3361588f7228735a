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
