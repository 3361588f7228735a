/** One batch, one transaction: load what is touched, decide one command after the other, write everything at once. */
import { randomUUID } from "node:crypto";
import type { Pool } from "pg";
import { decide, type Lead, type Outcome, type Pending } from "./batch.ts";
import type { Touch } from "./command.ts";
import { AnsweredBefore, isBrokenCheck, isDuplicate, Outrun } from "./conflict.ts";
import { Rows, type Tables } from "./rows.ts";
import { Session } from "./session.ts";
import { BEGIN, type Statement } from "./statement.ts";

export type Isolation = "repeatable read" | "read committed";

/**
 * For one transaction. Rows are always found by index: a plan made while a table is empty would read it from end to end,
 * and being prepared it would do so until somebody analyses the table. Nested loops also keep updates in the order of
 * their keys.
 */
const settings = {
  enable_seqscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
  // Planning anew would find the same plan, for a twentieth of what a batch costs Postgres.
  plan_cache_mode: "force_generic_plan",
  idle_in_transaction_session_timeout: "30s",
};
const setting = ([name, value]: readonly [string, string]) => `set_config('${name}', '${value}', true)`;

/** For those who all need a row that is locked. */
const PATIENT = "set local lock_timeout = '1s'";

/**
 * Around what a transaction adds that has its locks. It got its number with the first of them, and may have waited for
 * transactions with later ones. What it adds can be put behind everything that was committed by now: `doorbuster.after` is
 * that number. Where two set it one after the other, the savepoint makes the second one later: under it, the first takes a
 * number that is greater than its own setting. Nothing else is written under it: a row that the transaction has locked
 * under one number and changed under another needs a MultiXact.
 */
const AFTER: Statement = {
  name: "after",
  text: "select set_config('doorbuster.after', pg_snapshot_xmax(pg_current_snapshot())::text, true)",
  values: [],
};
const added = (inserts: readonly Statement[]) =>
  inserts.length > 0 ? ["savepoint added", AFTER, ...inserts, "release savepoint added"] : [];

/** A setting of the session that is taken back with the transaction that has made it. */
const STORED = "doorbuster.stored";

/**
 * What makes the settings, alone or with a mark of the transaction. `marked` fails (division by zero) unless the transaction
 * in front, in the same session, was committed, and with it all behind it in its own. By its mark and not by what it has
 * stored: another attempt, or another process that was sent the same request, may have stored the same and left other rows.
 */
function settingsOf(lockTimeoutMs: number) {
  const set = [...Object.entries(settings), ["lock_timeout", `${lockTimeoutMs}ms`] as const].map(setting).join(", ");
  const alone: Statement = { name: "settings", text: `select ${set}`, values: [] };
  const first = `select set_config('${STORED}', $1, false), ${set}`;
  const behind = `${first} where 1 / (current_setting('${STORED}', true) is not distinct from $2)::int = 1`;
  const marked = (mark: string, ahead: string | undefined): Statement =>
    ahead === undefined
      ? { name: "marked", text: first, values: [mark] }
      : { name: "behind", text: behind, values: [mark, ahead] };
  return { alone, marked };
}

export type TransactionOptions = Readonly<{
  pool: Pool;
  tables: Tables;
  clock: () => Date;
  /** Of what an optimistic transaction reads. Several entities are read in one moment; a test takes that away. */
  isolation: Isolation;
  /** How long a row is waited for, but by those who are patient, in milliseconds. */
  lockTimeoutMs: number;
  /** For how long, in milliseconds, earlier answers are read in advance where one was found or somebody was refused. */
  carefulMs: number;
}>;

/** What a batch leaves to the next one, from when on it may be taken up, and undefined when it is over. */
export type Offer = (written: Omit<Lead, "ended"> | undefined) => void;

/** `company`: somebody else is counting on the same rows. */
export type Attempt = { outcomes: Outcome[]; company: boolean };

export class Transactions {
  readonly #options: TransactionOptions;
  readonly #settings: ReturnType<typeof settingsOf>;
  /** Until then earlier answers are read before anything is decided: requests have come again, or were refused. */
  #repeatedUntil = 0;

  constructor(options: TransactionOptions) {
    this.#options = options;
    this.#settings = settingsOf(options.lockTimeoutMs);
  }

  /**
   * Takes no locks before it writes: a snapshot is read, and each row is written only over the version that was read, or
   * counted up and down. Two round trips.
   *
   * Behind a batch that is still being written: what that one has changed is taken over instead of read, all else is read
   * beside it, and everything is sent behind it on the same connection, with the proof that it was stored.
   *
   * @throws Outrun when others have counted as well, and there was not enough for both; or it can't go on with what the
   *   batch in front leaves
   */
  optimistic(batch: readonly Pending[], ahead: Lead | undefined, offer: Offer): Promise<Attempt> {
    const work = async (session: Session): Promise<Attempt> => {
      const careful = performance.now() < this.#repeatedUntil;
      let { rows, outcomes } = await this.#decided(batch, ahead, session, careful);
      if (outcomes.some((outcome) => "error" in outcome && outcome.pending.write)) {
        this.#repeatedUntil = performance.now() + this.#options.carefulMs;
        // What is refused may have been answered before.
        if (!careful) ({ rows, outcomes } = await this.#decided(batch, ahead, session, true));
      }
      const { updates, inserts, counts } = rows.changes();
      const changes = [...updates, ...inserts, ...counts];
      if (changes.length === 0 && !ahead) return { outcomes, company: false };
      const mark = randomUUID();
      const first = [BEGIN, this.#settings.marked(mark, ahead?.mark)];
      const written = session.send([...first, ...changes, "commit"]);
      const lead = () => {
        // Upkeep is not in a hurry.
        const asked = outcomes.some((outcome) => !("error" in outcome) && outcome.pending.write);
        const refused = outcomes.some((outcome) => "error" in outcome);
        return asked ? { handover: rows.handover(), session, mark, written, refused } : undefined;
      };
      const results = await leading(written, ahead, offer, lead).catch((error) => {
        if (rows.counting && isBrokenCheck(error)) throw new Outrun("others have counted as well", error);
        if (careful || !isDuplicate(error)) throw error;
        this.#repeatedUntil = performance.now() + this.#options.carefulMs;
        throw new AnsweredBefore(error);
      });
      return { outcomes, company: results.slice(first.length, -1).some(([row]) => Number(row?.[1] ?? 0) > 0) };
    };
    return ahead ? ahead.session.use(work) : Session.run(this.#options.pool, work);
  }

  /**
   * Takes all rows first, at READ COMMITTED, where a lock waits its turn and returns the newest row (under a snapshot it
   * would not wait but fail). Two round trips.
   *
   * @throws LockedOut when somebody else keeps one of them locked, for a second if they are `patient`
   */
  locked(batch: readonly Pending[], patient: boolean): Promise<Outcome[]> {
    return Session.run(this.#options.pool, async (session) => {
      const rows = this.#rows();
      const { touches, answers } = touchesOf(batch);
      await rows.loadLocked(session, touches, answers, [BEGIN, this.#settings.alone, ...(patient ? [PATIENT] : [])]);
      const outcomes = batch.map((pending) => decide(pending, rows));
      const { updates, inserts, counts } = rows.changes();
      await session.send([...updates, ...added(inserts), ...counts, "commit"]);
      return outcomes;
    });
  }

  /** `careful`: earlier answers are read. Otherwise all requests are taken to be new: each has to be when it is stored. */
  async #decided(batch: readonly Pending[], ahead: Lead | undefined, session: Session, careful: boolean) {
    const { pool, isolation } = this.#options;
    const { alone } = this.#settings;
    const rows = this.#rows();
    const { touches, answers } = touchesOf(batch);
    const all = careful ? [...touches, ...answers] : touches;
    if (!careful) rows.assume(answers);
    const rest = ahead ? rows.inherit(all, ahead.handover) : all;
    if (!rest) throw new Outrun("it needs rows that the batch in front has not stored yet");
    // Whoever keeps a connection while waiting for another one may wait for ever.
    if (ahead && rest.length > 0 && !hasRoom(pool)) throw new Outrun("no connection is free to read beside it");
    // One statement sees one moment by itself.
    const snapshot = (loads: number) =>
      loads > 1
        ? { before: [`begin isolation level ${isolation} read only`, alone], after: ["commit"] }
        : { before: [alone] };
    const load = (from: Session) => rows.load(from, rest, snapshot);
    if (rest.length > 0) await (ahead ? Session.run(pool, load) : load(session));
    return { rows, outcomes: batch.map((pending) => decide(pending, rows)) };
  }

  #rows(): Rows {
    return new Rows(this.#options.tables, this.#options.clock());
  }
}

/** Whether a connection is to be had at once. */
function hasRoom(pool: Pool): boolean {
  return pool.waitingCount === 0 && (pool.idleCount > 0 || pool.totalCount < pool.options.max);
}

/**
 * While a batch is being written the next one may come behind it. Two in a row at the most: what a third one reads beside
 * them has to be as the first has left it.
 */
async function leading<T>(
  written: Promise<T>,
  ahead: Lead | undefined,
  offer: Offer,
  leadOf: () => Parameters<Offer>[0],
): Promise<T> {
  let over = false;
  const start = () => {
    try {
      if (!over) offer(leadOf());
    } catch (error) {
      // The batch has been sent: what becomes of it must not depend on whether another one comes behind it.
      process.emitWarning(error as Error);
    }
  };
  void (ahead ? ahead.written.then(start, () => {}) : start());
  try {
    return await written;
  } finally {
    over = true;
    offer(undefined);
  }
}

function touchesOf(batch: readonly Pending[]): { touches: Touch[]; answers: Touch[] } {
  return {
    touches: batch.flatMap((pending) => pending.touches),
    answers: batch.flatMap(({ answer }) => answer ?? []),
  };
}
