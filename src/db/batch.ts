/** Runs commands together: one load, one decision after the other, one write, one commit. */
import { setTimeout as delay } from "node:timers/promises";
import type { Pool } from "pg";
import { DomainError } from "../error.ts";
import { type Command, Replayed, type Touch, type Write } from "./command.ts";
import { isConflict, isDuplicate, isLockTimeout, isUnavailable, toDomainError } from "./conflict.ts";
import { answerBefore, answerOf, answerTouch } from "./idempotency.ts";
import { type Handover, Rows, type Tables, UntouchedRows } from "./rows.ts";
import { type ResultRows, Session } from "./session.ts";
import type { Statement } from "./table.ts";
import { IDENTIFIED, proofOf, SETTINGS } from "./transaction.ts";

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

type Committed = { size: number; attempts: number; durationMs: number; locked: boolean; behind: boolean };

/** What happened while batches ran, for metrics and tests. */
export type BatchObserver = Readonly<{
  /**
   * `size` commands were committed or refused after `attempts` attempts in `durationMs`. `behind`: they were sent while the
   * batch in front, whose rows they share, was still being written.
   */
  committed?(batch: Committed): void;
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

/** A batch that is being written, to the one behind it: that need not wait until it is known to be stored. */
export type Lead = Readonly<{
  handover: Handover;
  /** Where it is being written: what is sent there now comes behind it. */
  session: Session;
  /** Fails unless this very attempt was stored, and with it the transaction of those who went on with its rows. */
  proof: Statement;
  /** Resolves when the batch has ended, whatever became of it. */
  ended: Promise<void>;
}>;

/** Where a batch stands: behind which one, and whom it tells what it leaves to the next one. */
export type Place = Readonly<{ ahead?: Lead | undefined; lead?: (lead: Lead | undefined) => void }>;

type Outcome = { pending: Pending; result: unknown } | { pending: Pending; error: unknown };

export class BatchRunner {
  readonly #options: BatchOptions;
  #stormUntil = 0;

  constructor(options: BatchOptions) {
    this.#options = options;
  }

  /** Answers every command of the batch. Throws only what the observer throws. */
  async run(batch: readonly Pending[], { ahead, lead = () => {} }: Place = {}): Promise<void> {
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const offer: Offer = (written) => lead(written && { ...written, ended });
    try {
      if (!ahead || !(await this.#runBehind(batch, ahead, offer))) await this.#run(batch, offer);
    } finally {
      end();
    }
  }

  /** Answers whether it has answered: a batch that can't go on with what the one in front leaves waits for its end. */
  async #runBehind(batch: readonly Pending[], ahead: Lead, offer: Offer): Promise<boolean> {
    const start = performance.now();
    let outcomes: Outcome[] | undefined;
    let lost: unknown;
    try {
      outcomes = await this.#follow(batch, ahead, offer);
    } catch (error) {
      // Whatever else it is, it comes again, or was the fault of the batch in front.
      if (isUnavailable(error)) lost = error;
    }
    // Answers go out in order; and the rows are not free for others before the batch in front has ended, too.
    await ahead.ended;
    if (lost) {
      for (const pending of batch) pending.reject(failureOf(lost));
      return true;
    }
    if (!outcomes) return false;
    answer(outcomes);
    this.#committed(batch, { attempts: 1, start, locked: false, behind: true });
    return true;
  }

  async #run(batch: readonly Pending[], offer?: Offer): Promise<void> {
    const { observer } = this.#options;
    const start = performance.now();
    for (let attempt = 1; ; attempt += 1) {
      // Who has met another process on its rows waits its turn from then on, until the storm is over.
      const locked = attempt > 1 || start < this.#stormUntil;
      let outcomes: Outcome[];
      try {
        outcomes = await this.#attempt(batch, locked, locked ? undefined : offer);
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
        await this.#run(batch.slice(0, middle));
        await this.#run(batch.slice(middle));
        return;
      }
      // Behind the commit nothing may lead to another attempt, an observer that throws neither.
      answer(outcomes);
      this.#committed(batch, { attempts: attempt, start, locked, behind: false });
      return;
    }
  }

  #committed(
    { length: size }: readonly Pending[],
    { start, ...rest }: { attempts: number; start: number; locked: boolean; behind: boolean },
  ): void {
    this.#options.observer.committed?.({ size, durationMs: performance.now() - start, ...rest });
  }

  /**
   * One transaction in two round trips. Optimistic: it reads a snapshot, and isolation and versions catch what changed
   * since. Locked: it takes the rows first, at READ COMMITTED, where a lock waits and returns the newest row (under a
   * snapshot it would not wait but fail).
   */
  #attempt(batch: readonly Pending[], locked: boolean, offer?: Offer): Promise<Outcome[]> {
    const { pool, tables, clock, isolation } = this.#options;
    return Session.run(pool, async (session) => {
      const rows = new Rows(tables, clock());
      const { touches, answers } = touchesOf(batch);
      let begun: ResultRows[] = [];
      // Answers come behind the locks: a twin of a request that held them has committed its answer by then.
      if (locked) await rows.loadLocked(session, touches, answers, ["begin isolation level read committed", SETTINGS]);
      else
        begun = await rows.load(session, [...touches, ...answers], [`begin isolation level ${isolation}`, IDENTIFIED]);
      const outcomes = batch.map((pending) => decide(pending, rows));
      const written = session.send([...rows.changes(), "commit"]);
      if (offer) await leading(written, Promise.resolve(begun), { session, rows, outcomes }, offer);
      else await written;
      return outcomes;
    });
  }

  /**
   * One transaction behind that of the batch in front, on the same connection, sent while that one is still being
   * written. What is taken over from it is not loaded, all else is read beside it. Undefined when that does not do: rows
   * without a version need a transaction that has read them.
   */
  #follow(batch: readonly Pending[], ahead: Lead, offer: Offer): Promise<Outcome[] | undefined> {
    const { pool, tables, clock } = this.#options;
    return ahead.session.use(async (session) => {
      const rows = new Rows(tables, clock());
      const { touches, answers } = touchesOf(batch);
      const rest = rows.inherit([...touches, ...answers], ahead.handover);
      // Whoever keeps a connection while waiting for another one may wait for ever.
      if (!rest || (rest.length > 0 && !hasRoom(pool))) return undefined;
      const snapshot = ["begin isolation level repeatable read read only", SETTINGS];
      if (rest.length > 0) await Session.run(pool, (beside) => rows.load(beside, rest, snapshot, ["commit"]));
      const outcomes = batch.map((pending) => decide(pending, rows));
      const changes = rows.changes();
      if (!rows.guarded) return undefined;
      const begun = session.send(["begin", IDENTIFIED, ahead.proof]);
      const written = Promise.all([begun, session.send([...changes, "commit"])]);
      // Two in a row at the most: what a third one reads beside them has to be as the first has left it. And so it is as
      // soon as this one has begun, behind the commit of the first.
      await leading(written, begun, { session, rows, outcomes }, offer);
      return outcomes;
    });
  }
}

/** While a batch is being written, and as soon as its transaction has begun, the next one may come behind it. */
async function leading(
  written: Promise<unknown>,
  begun: Promise<ResultRows[]>,
  unit: Unit,
  offer: Offer,
): Promise<void> {
  let over = false;
  const start = ([, identified]: ResultRows[]) => over || offer(leadOf(unit, identified?.[0]?.[0]));
  void begun.then(start, () => {});
  try {
    await written;
  } finally {
    over = true;
    offer(undefined);
  }
}

/** Nobody comes behind a batch that has answered no caller's write: it has written nothing, or is upkeep. */
function leadOf({ session, rows, outcomes }: Unit, transaction: unknown): Written | undefined {
  if (!outcomes.some((outcome) => !("error" in outcome) && outcome.pending.write)) return undefined;
  return { handover: rows.handover(), session, proof: proofOf(transaction as string) };
}

/** Whether a connection is to be had at once. */
function hasRoom(pool: Pool): boolean {
  return pool.waitingCount === 0 && (pool.idleCount > 0 || pool.totalCount < pool.options.max);
}

type Unit = Readonly<{ session: Session; rows: Rows; outcomes: readonly Outcome[] }>;
type Written = Omit<Lead, "ended">;
type Offer = (written: Written | undefined) => void;

function touchesOf(batch: readonly Pending[]): { touches: Touch[]; answers: Touch[] } {
  return {
    touches: batch.flatMap((pending) => pending.touches),
    answers: batch.flatMap(({ write }) => (write ? [answerTouch(write)] : [])),
  };
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
