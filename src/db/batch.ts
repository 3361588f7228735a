/** Runs commands together: one load, one decision after the other, one write, one commit. */
import { setTimeout as delay } from "node:timers/promises";
import type { Pool } from "pg";
import { DomainError } from "../error.ts";
import { type Command, Replayed, type Touch, type Write } from "./command.ts";
import { isConflict, isDuplicate, isLockTimeout, isUnavailable, toDomainError } from "./conflict.ts";
import { answerBefore, answerOf, answerTouch } from "./idempotency.ts";
import { Rows, type Tables, UntouchedRows } from "./rows.ts";
import { Session } from "./session.ts";

/** How often a batch is tried before its callers hear CONFLICT. */
const MAX_ATTEMPTS = 10;
/** After so many attempts a unique violation is no race any more: some command of the batch causes it each time. */
const MAX_DUPLICATES = 3;
/** How often, for a second each, a command waits for a row that somebody outside keeps locked. */
const MAX_LOCK_WAITS = 3;
/** Upper bounds of the pause before a retry, in milliseconds: doubled from the first to the second. */
const FIRST_PAUSE = 2;
const LONGEST_PAUSE = 250;
/** For how long a process that has met another one on its rows locks them first, in milliseconds. */
const STORM = 1_000;

export type Isolation = "repeatable read" | "read committed";

/**
 * For one transaction. Rows are always found by index: a plan made while a table is empty would read it from end to end,
 * and being prepared it would do so until somebody analyses the table. Nested loops also keep updates in the order of
 * their keys. And a row that somebody outside keeps locked holds a batch up for a second, not for ever.
 */
const SETTINGS = `select ${Object.entries({
  enable_seqscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
  lock_timeout: "1s",
  idle_in_transaction_session_timeout: "30s",
})
  .map(([name, value]) => `set_config('${name}', '${value}', true)`)
  .join(", ")}`;

/** A command that waits for its answer. */
export type Pending = {
  readonly command: Command<unknown>;
  readonly write: Write | undefined;
  readonly touches: readonly Touch[];
  resolve(result: unknown): void;
  reject(error: unknown): void;
  /** Called when the rows that it touches have turned out to be others. */
  replan(): void;
};

/** What happened while batches ran, for metrics and tests. */
export type BatchObserver = Readonly<{
  /** `size` commands were committed or refused after `attempts` attempts in `durationMs`. */
  committed?(batch: { size: number; attempts: number; durationMs: number; locked: boolean }): void;
  /** Another unit of work was faster. */
  conflicted?(batch: { size: number; attempt: number }): void;
  /** A batch that can't be written is run again as two halves. */
  split?(batch: { size: number; cause: unknown }): void;
  /** A command left the queue after `ms`. */
  waited?(ms: number): void;
}>;

export type BatchOptions = Readonly<{
  pool: Pool;
  tables: Tables;
  clock: () => Date;
  observer: BatchObserver;
  /** Of attempts that take no locks. */
  isolation: Isolation;
}>;

type Outcome = { pending: Pending; result: unknown } | { pending: Pending; error: unknown };

export class BatchRunner {
  readonly #options: BatchOptions;
  #stormUntil = 0;

  constructor(options: BatchOptions) {
    this.#options = options;
  }

  /** Answers every command of the batch. Throws only what the observer throws. */
  async run(batch: readonly Pending[]): Promise<void> {
    const { observer } = this.#options;
    const start = performance.now();
    for (let attempt = 1; ; attempt += 1) {
      // Who has met another process on its rows waits its turn from then on, until the storm is over.
      const locked = attempt > 1 || start < this.#stormUntil;
      let outcomes: Outcome[];
      try {
        outcomes = await this.#attempt(batch, locked);
      } catch (error) {
        // Some command of the batch causes it each time: the others need not wait for that one.
        const stuck = isLockTimeout(error) || (isDuplicate(error) && attempt >= MAX_DUPLICATES);
        const last = attempt === (isLockTimeout(error) ? MAX_LOCK_WAITS : MAX_ATTEMPTS);
        if (isConflict(error) && !last && !(stuck && batch.length > 1)) {
          observer.conflicted?.({ size: batch.length, attempt });
          this.#stormUntil = performance.now() + STORM;
          // Full jitter: those who met once should not meet again.
          await delay(Math.random() * Math.min(FIRST_PAUSE * 2 ** attempt, LONGEST_PAUSE));
          continue;
        }
        if (batch.length === 1 || isUnavailable(error)) {
          for (const pending of batch) pending.reject(failureOf(error));
          return;
        }
        observer.split?.({ size: batch.length, cause: error });
        const middle = Math.ceil(batch.length / 2);
        await this.run(batch.slice(0, middle));
        await this.run(batch.slice(middle));
        return;
      }
      // Behind the commit nothing may lead to another attempt, an observer that throws neither.
      answer(outcomes);
      observer.committed?.({ size: batch.length, attempts: attempt, durationMs: performance.now() - start, locked });
      return;
    }
  }

  /**
   * One transaction in two round trips. Optimistic: it reads a snapshot, and isolation and versions catch what changed
   * since. Locked: it takes the rows first, at READ COMMITTED, where a lock waits and returns the newest row (under a
   * snapshot it would not wait but fail).
   */
  #attempt(batch: readonly Pending[], locked: boolean): Promise<Outcome[]> {
    const { pool, tables, clock, isolation } = this.#options;
    return Session.run(pool, async (session) => {
      const rows = new Rows(tables, clock());
      const touches = batch.flatMap((pending) => pending.touches);
      const answers = batch.flatMap(({ write }) => (write ? [answerTouch(write)] : []));
      // Answers come behind the locks: a twin of a request that held them has committed its answer by then.
      if (locked) await rows.loadLocked(session, touches, answers, ["begin isolation level read committed", SETTINGS]);
      else await rows.load(session, [...touches, ...answers], [`begin isolation level ${isolation}`, SETTINGS]);
      const outcomes = batch.map((pending) => decide(pending, rows));
      await session.send([...rows.changes(), "commit"]);
      return outcomes;
    });
  }
}

/** The decision of one command on the rows as those before it have left them. */
function decide(pending: Pending, rows: Rows): Outcome {
  const { command, write } = pending;
  try {
    const result = rows.attempt((tx) => {
      if (write) answerBefore(tx, write);
      const decided = command.decide(tx);
      if (write) tx.add(answerOf(write, decided, tx.now));
      return decided;
    });
    return { pending, result };
  } catch (error) {
    return { pending, error };
  }
}

function answer(outcomes: readonly Outcome[]): void {
  for (const outcome of outcomes) {
    const { pending } = outcome;
    if (!("error" in outcome)) pending.resolve(outcome.result);
    else if (outcome.error instanceof UntouchedRows) pending.replan();
    else pending.reject(outcome.error instanceof Replayed ? outcome.error : toDomainError(outcome.error));
  }
}

function failureOf(error: unknown): unknown {
  if (!isConflict(error)) return toDomainError(error);
  const message = isLockTimeout(error)
    ? "somebody keeps the rows locked"
    : "too many others changed the same rows at the same time";
  return new DomainError("CONFLICT", message, {}, { retryAfterMs: LONGEST_PAUSE, cause: error });
}
