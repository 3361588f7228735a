import { setTimeout as delay } from "node:timers/promises";
import { IsolationLevel } from "@mikro-orm/core";
import type { EntityManager, MikroORM } from "@mikro-orm/postgresql";
import { DomainError } from "../error.ts";
import type { Command, Touch, Write } from "./command.ts";
import { isConflict, toDomainError } from "./conflict.ts";
import { answeredBefore, answerOf } from "./idempotency.ts";
import { Rows, UntouchedRows } from "./rows.ts";

/** How often a unit of work is tried before the caller hears CONFLICT. */
const MAX_ATTEMPTS = 10;
/** Upper bounds of the pause before a retry, in milliseconds: doubled from the first to the second. */
const FIRST_PAUSE = 4;
const LONGEST_PAUSE = 250;

export type DatabaseOptions = {
  /** The time that decisions see. */
  clock?: () => Date;
  /**
   * Where the first attempt runs. Below REPEATABLE READ updates get lost, because the ORM checks the versions of several
   * rows in a statement of their own; only a test that shows this sets it.
   */
  isolationLevel?: IsolationLevel;
};

/** The one place where state changes: units of work, and plain reads. */
export class Database {
  readonly #orm: MikroORM;
  readonly #clock: () => Date;
  readonly #isolationLevel: IsolationLevel;

  constructor(orm: MikroORM, options: DatabaseOptions = {}) {
    this.#orm = orm;
    this.#clock = options.clock ?? (() => new Date());
    this.#isolationLevel = options.isolationLevel ?? IsolationLevel.REPEATABLE_READ;
  }

  now(): Date {
    return this.#clock();
  }

  /** Runs plain queries on an entity manager of their own. Nothing that they change is written. */
  async read<T>(query: (em: EntityManager) => Promise<T>): Promise<T> {
    try {
      return await query(this.#orm.em.fork());
    } catch (error) {
      throw toDomainError(error);
    }
  }

  /**
   * Runs a caller's command in one transaction, together with the answer to be replayed.
   *
   * @throws Replayed when the request was answered before
   * @throws DomainError what the decision refused; REQUEST_ID_REUSED when the id was used for another request; CONFLICT
   *   when others were faster too often; DATABASE_UNAVAILABLE, after which only sending it again tells what happened
   */
  write<R>(write: Write, command: Command<R>): Promise<R> {
    return this.#run(command, write);
  }

  /** Runs a command of the service itself, which nobody sends twice. */
  apply<R>(command: Command<R>): Promise<R> {
    return this.#run(command, undefined);
  }

  /** Runs plain statements of the service's own upkeep in one transaction; no decision on aggregates belongs here. */
  async maintain<T>(statements: (em: EntityManager) => Promise<T>): Promise<T> {
    try {
      return await this.#orm.em.fork().transactional(statements);
    } catch (error) {
      throw toDomainError(error);
    }
  }

  async #run<R>(command: Command<R>, write: Write | undefined): Promise<R> {
    for (let attempt = 1; ; attempt += 1) {
      write?.signal.throwIfAborted();
      try {
        return await this.#attempt(command, write, attempt);
      } catch (error) {
        const replan = error instanceof UntouchedRows && typeof command.touches === "function";
        if (!replan && !isConflict(error)) throw toDomainError(error);
        if (attempt === MAX_ATTEMPTS) {
          const message = "too many others changed the same rows at the same time";
          throw new DomainError("CONFLICT", message, {}, { retryAfterMs: LONGEST_PAUSE, cause: error });
        }
        // Full jitter: those who met once should not meet again.
        const longest = Math.min(FIRST_PAUSE * 2 ** attempt, LONGEST_PAUSE);
        await delay(Math.random() * longest, undefined, write ? { signal: write.signal } : {});
      }
    }
  }

  /**
   * One transaction. The first attempt is optimistic: it reads a snapshot, and versions and isolation catch what changed
   * since. Who has lost once waits its turn: it locks the rows first, at READ COMMITTED, where a lock returns the newest
   * row (under a snapshot it would fail again instead of waiting).
   */
  async #attempt<R>(command: Command<R>, write: Write | undefined, attempt: number): Promise<R> {
    const touches = await this.#plan(command);
    const locked = attempt > 1;
    const em = this.#orm.em.fork();
    await em.begin({ isolationLevel: locked ? IsolationLevel.READ_COMMITTED : this.#isolationLevel });
    try {
      const rows = new Rows(em, this.#clock());
      if (locked) await rows.loadLocked(touches);
      // After the locks: a twin of this request that held them has committed its answer by now.
      if (write) await answeredBefore(em, write);
      if (!locked) await rows.load(touches);
      const result = command.decide(rows);
      if (write) em.persist(answerOf(write, result, rows.now));
      await em.commit();
      return result;
    } catch (error) {
      await em.rollback().catch(() => {});
      throw error;
    }
  }

  async #plan(command: Command<unknown>): Promise<readonly Touch[]> {
    return typeof command.touches === "function" ? await command.touches() : command.touches;
  }
}
