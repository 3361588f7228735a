/** Runs batches until each of their commands has an answer: tries again after conflicts, and splits what can't be written. */
import { setTimeout as delay, setImmediate as nextTurn } from "node:timers/promises";
import { DomainError } from "../error.ts";
import {
  answer,
  type BatchObserver,
  type Committed,
  isAwaited,
  type Lead,
  type Outcome,
  type Pending,
  type Place,
} from "./batch.ts";
import {
  AnsweredBefore,
  isConflict,
  isDuplicate,
  isLockTimeout,
  isUnavailable,
  LockedOut,
  toDomainError,
} from "./conflict.ts";
import { type Attempt, type Offer, type TransactionOptions, Transactions } from "./transaction.ts";

/** How often a batch is tried before its callers hear CONFLICT. */
const MAX_ATTEMPTS = 10;
/** After so many attempts a key that is taken is no race any more: some command of the batch causes it each time. */
const MAX_DUPLICATES = 3;
/** How often, for a second each, a command waits for a row that somebody outside keeps locked. */
const MAX_LOCK_WAITS = 3;
/** The most groups of commands that wait so while others go on; to these some connections are left. */
const MAX_APART = 4;
const CONNECTIONS_FOR_OTHERS = 3;
/** Upper bounds of the pause before a retry, in milliseconds: doubled from the first to the second. */
const FIRST_PAUSE = 2;
const LONGEST_PAUSE = 250;
/** For how long a process that has met another one on its rows reckons with it, in milliseconds. */
const STORM = 1_000;

type Way = { offer?: Offer; keep?: Place["keep"]; stuck?: boolean };

export type RunnerOptions = TransactionOptions & Readonly<{ observer: BatchObserver }>;

export class BatchRunner {
  readonly #observer: BatchObserver;
  readonly #transactions: Transactions;
  /** Until then rows are locked before they are read: somebody else has changed them at the same time. */
  #lockUntil = 0;
  /**
   * Until then somebody else is counting on the same rows: what a batch leaves is a guess, and who is refused on a guess has
   * to be decided again. So no batch goes on with it where some are refused already.
   */
  #companyUntil = 0;
  /** How many batches are under way. */
  #running = 0;
  /** How many groups of commands wait apart for locked rows. */
  #apart = 0;
  /** By locked row, the end of the last group that waits for it: the next one begins there, in the order of arrival. */
  readonly #lines = new Map<string, Promise<void>>();
  readonly #maxApart: number;

  constructor({ observer, ...options }: RunnerOptions) {
    this.#observer = observer;
    this.#transactions = new Transactions(options);
    this.#maxApart = Math.min(MAX_APART, options.pool.options.max - CONNECTIONS_FOR_OTHERS);
  }

  /** Answers every command of the batch. Throws only what the observer throws. */
  async run(batch: readonly Pending[], { ahead, lead = () => {}, keep }: Place = {}): Promise<void> {
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const offer: Offer = (written) => {
      if (!written?.refused || performance.now() >= this.#companyUntil) lead(written && { ...written, ended });
    };
    this.#running += 1;
    try {
      if (!ahead || !(await this.#runBehind(batch, ahead, offer))) await this.#run(batch, { offer, keep });
    } finally {
      this.#running -= 1;
      end();
    }
  }

  /** Answers whether it has answered: a batch that failed together with the one in front waits for that one's end. */
  async #runBehind(batch: readonly Pending[], ahead: Lead, offer: Offer): Promise<boolean> {
    const start = performance.now();
    // Whatever the failure is, it was the fault of the batch in front, or it comes again.
    const end = await this.#transactions.optimistic(batch, ahead, offer).catch((error: unknown) => ({ error }));
    // Answers go out in order; and the rows are not free for others before the batch in front has ended, too.
    await ahead.ended;
    if (!("error" in end)) {
      await this.#answer(batch, this.#outcomesOf(end), { attempts: 1, start, locked: false, behind: true });
      return true;
    }
    if (!isUnavailable(end.error)) return false;
    for (const pending of batch) pending.reject(failureOf(end.error));
    return true;
  }

  /** `stuck`: all of them need a row that somebody keeps locked. */
  async #run(given: readonly Pending[], { offer = () => {}, keep = () => {}, stuck = false }: Way = {}): Promise<void> {
    const start = performance.now();
    let lockWaits = 0;
    for (let attempt = 1; ; attempt += 1) {
      const batch = given.filter(isAwaited);
      if (batch.length === 0) return;
      // Who has met another process on its rows waits its turn from then on, until the storm is over.
      const locked = stuck || attempt > 1 || start < this.#lockUntil;
      let outcomes: Outcome[];
      try {
        outcomes = locked
          ? await this.#transactions.locked(batch, stuck)
          : this.#outcomesOf(await this.#transactions.optimistic(batch, undefined, offer));
      } catch (error) {
        if (error instanceof LockedOut) {
          const needs = ({ touches }: Pending) => touches.some(({ id }) => id === error.key);
          const [waiting, others] = [batch.filter(needs), batch.filter((pending) => !needs(pending))];
          if (!stuck || others.length > 0) return this.#part(waiting, others, error, keep);
          lockWaits += 1;
        }
        // Some command of the batch causes it each time: the others need not wait for that one.
        const stillLocked = error instanceof LockedOut;
        const again = !stillLocked && isTaken(error) && attempt >= MAX_DUPLICATES && batch.length > 1;
        const last = lockWaits === MAX_LOCK_WAITS || attempt >= MAX_ATTEMPTS;
        if (error instanceof AnsweredBefore) continue;
        if (isConflict(error) && !last && !again) {
          this.#observer.conflicted?.({ size: batch.length, attempt });
          this.#lockUntil = performance.now() + STORM;
          // Full jitter: those who met once should not meet again.
          await delay(Math.random() * Math.min(FIRST_PAUSE * 2 ** attempt, LONGEST_PAUSE));
          continue;
        }
        if (batch.length === 1 || stillLocked || isUnavailable(error)) {
          for (const pending of batch) pending.reject(failureOf(error));
          return;
        }
        this.#observer.split?.({ size: batch.length, cause: error });
        const middle = Math.ceil(batch.length / 2);
        await this.#run(batch.slice(0, middle), { keep });
        await this.#run(batch.slice(middle), { keep });
        return;
      }
      await this.#answer(batch, outcomes, { attempts: attempt, start, locked, behind: false });
      return;
    }
  }

  /**
   * Goes on without those who need a row that somebody keeps locked. These wait apart, like another process, and keep
   * nothing from anybody but that row: they are passed by those who came later, also on other rows that they share.
   */
  async #part(
    waiting: readonly Pending[],
    others: readonly Pending[],
    cause: LockedOut,
    keep: Way["keep"],
  ): Promise<void> {
    const size = waiting.length + others.length;
    if (others.length > 0) this.#observer.split?.({ size, cause });
    else this.#observer.conflicted?.({ size, attempt: 1 });
    const { key } = cause;
    const earlier = this.#lines.get(key);
    const wait = async () => {
      await earlier;
      await this.#run(waiting, { keep, stuck: true });
    };
    const apart = this.#apart < this.#maxApart;
    if (apart) {
      this.#apart += 1;
      const ended = wait().finally(() => {
        this.#apart -= 1;
        if (this.#lines.get(key) === ended) this.#lines.delete(key);
      });
      this.#lines.set(key, ended);
      keep?.(key, ended);
    }
    if (others.length > 0) await this.#run(others, { keep });
    if (!apart) await wait();
  }

  #outcomesOf({ outcomes, company }: Attempt): Outcome[] {
    if (company) this.#companyUntil = performance.now() + STORM;
    return outcomes;
  }

  /** Behind the commit: nothing may lead to another attempt any more, an observer that throws neither. */
  async #answer(
    { length: size }: readonly Pending[],
    outcomes: readonly Outcome[],
    { start, ...how }: Omit<Committed, "size" | "durationMs"> & { start: number },
  ): Promise<void> {
    // Who has waited for this commit sends its first query now: answering takes about as long as that is under way.
    if (this.#running > 1) await nextTurn();
    answer(outcomes);
    this.#observer.committed?.({ size, durationMs: performance.now() - start, ...how });
  }
}

/** Whether a key that was to be new is there, or somebody is about to add it. */
function isTaken(error: unknown): boolean {
  return isDuplicate(error) || isLockTimeout(error);
}

function failureOf(error: unknown): unknown {
  if (!isConflict(error)) return toDomainError(error);
  const message = isLockTimeout(error)
    ? "somebody keeps the rows locked"
    : "too many others changed the same rows at the same time";
  return new DomainError("CONFLICT", message, {}, { retryAfterMs: LONGEST_PAUSE, cause: error });
}
