/** What everything of a run shares: how long, on which Postgres, and what is measured again. */
import type { Client } from "pg";
import type { Cell, Timing } from "./measure.ts";

export type Options = {
  timing: Timing;
  callers: number;
  connections: readonly number[];
  /** Instead of the numbers of streams that a scenario has. */
  streams: readonly number[];
  /** Open loop: calls a second. What the service is compared with is left out then. */
  rate: number | undefined;
};

/** What all scenarios of a run share. */
export type Stage = {
  url: string;
  admin: Client;
  secret: string;
  scratch: string;
  pgbench: boolean;
  /** Told of each measurement when it is done. */
  progress(text: string): void;
};

/** Somebody who can be measured, and measured again. */
export type Measured = {
  /** Everything that is measured. */
  all(): Promise<Cell[]>;
  /** One of these measurements once more. */
  again(cell: Cell): Promise<Cell>;
  stop(): Promise<void>;
};

export async function inTurn<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (const item of items) results.push(await work(item));
  return results;
}
