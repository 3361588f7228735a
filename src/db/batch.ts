/** Commands that run together: what they wait with, how each is decided and answered, and what a batch tells the next. */
import type { Command, Touch, Write } from "./command.ts";
import { Replayed } from "./command.ts";
import { toDomainError } from "./conflict.ts";
import { answerBefore, answerOf } from "./idempotency.ts";
import { type Handover, type Rows, UntouchedRows } from "./rows.ts";
import type { Session } from "./session.ts";

/** A command that waits for its answer. */
export type Pending = {
  readonly command: Command<unknown>;
  readonly write: Write | undefined;
  readonly touches: readonly Touch[];
  /** Its earlier answer, if it is a call of somebody. */
  readonly answer: Touch | undefined;
  resolve(result: unknown): void;
  reject(error: unknown): void;
  /** Called when the rows that it touches have turned out to be others. */
  replan(): void;
};

export type Committed = { size: number; attempts: number; durationMs: number; locked: boolean; behind: boolean };

/** What happened while batches ran, for metrics and tests. */
export type BatchObserver = Readonly<{
  /**
   * `size` commands were committed or refused after `attempts` attempts in `durationMs`. `locked`: with their rows locked
   * first. `behind`: sent while the batch in front, whose rows they share, was still being written.
   */
  committed?(batch: Committed): void;
  /** Another unit of work was faster. */
  conflicted?(batch: { size: number; attempt: number }): void;
  /** A batch that can't be written is run again as two halves. */
  split?(batch: { size: number; cause: unknown }): void;
  /** A command left the queue after `ms`. */
  waited?(ms: number): void;
}>;

/** A batch that is being written, to the one behind it: that need not wait until it is known to be stored. */
export type Lead = Readonly<{
  handover: Handover;
  /** Where it is being written: what is sent there now comes behind it. */
  session: Session;
  /** Of this very attempt: without it in the session, the transaction of those who went on with its rows fails. */
  mark: string;
  /** Settled when it is known whether it was stored. */
  written: Promise<unknown>;
  /** Some decision was refused. */
  refused: boolean;
  /** Resolves when the batch has ended, whatever became of it. */
  ended: Promise<void>;
}>;

/**
 * Where a batch stands: behind which one, and whom it tells what it leaves to the next one, and when that is over. `keep`:
 * the batch ends without some of its commands, which need the row with this key and go on apart until `ended`.
 */
export type Place = Readonly<{
  ahead?: Lead | undefined;
  lead?: ((lead: Lead | undefined) => void) | undefined;
  keep?: ((key: string, ended: Promise<void>) => void) | undefined;
}>;

export type Outcome = { pending: Pending; result: unknown } | { pending: Pending; error: unknown };

/** Whether its caller still waits. One that has given up is told so, and nothing of the command is written. */
export function isAwaited({ write, reject }: Pending): boolean {
  if (!write?.signal.aborted) return true;
  reject(write.signal.reason);
  return false;
}

/** The decision of one command on the rows as those before it have left them. */
export function decide(pending: Pending, rows: Rows): Outcome {
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

/** Tells every caller what has become of its command. */
export function answer(outcomes: readonly Outcome[]): void {
  for (const outcome of outcomes) {
    const { pending } = outcome;
    if (!("error" in outcome)) pending.resolve(outcome.result);
    else if (outcome.error instanceof UntouchedRows) pending.replan();
    else pending.reject(outcome.error instanceof Replayed ? outcome.error : toDomainError(outcome.error));
  }
}
