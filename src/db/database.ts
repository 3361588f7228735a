import type { EntityManager, MikroORM } from "@mikro-orm/postgresql";
import type { Pool } from "pg";
import { DomainError } from "../error.ts";
import type { BatchObserver, Pending } from "./batch.ts";
import type { Command, Key, RowClass, Touch, Write } from "./command.ts";
import { toDomainError } from "./conflict.ts";
import { GroupCommit, type GroupCommitOptions } from "./group-commit.ts";
import { answerTouch } from "./idempotency.ts";
import { Loader } from "./loader.ts";
import { poolOf } from "./orm.ts";
import type { Tables } from "./rows.ts";
import { BatchRunner } from "./runner.ts";
import { withSilenceLimit } from "./silence.ts";
import { Table } from "./table.ts";
import type { Isolation } from "./transaction.ts";

/** A row that somebody outside keeps locked does not hold up for longer, in milliseconds, those who don't need it. */
const LOCK_TIMEOUT_MS = 250;
/** After a request that had come before, others of the kind are to be expected; a test shows what they are like without. */
const CAREFUL_MS = 1_000;
/** How often the rows that a command touches may turn out to be others before its caller hears CONFLICT. */
const MAX_PLANS = 5;

/** How long plain statements may take, in milliseconds. */
export type Limits = Readonly<{
  /** Until a transaction of upkeep has a lock. */
  lockMs: number;
  /** Between two statements of one. A process that stands still must not keep its locks: others take over meanwhile. */
  idleMs: number;
  /** Until a statement, of upkeep or of a read, has its answer. */
  silenceMs: number;
}>;

/** Together with a lease, and the pause until it is claimed, less than the five seconds after which another process relays. */
const LIMITS: Limits = { lockMs: 5_000, idleMs: 2_000, silenceMs: 15_000 };

export type DatabaseOptions = Readonly<{
  /** The time that decisions see. */
  clock?: () => Date;
  observer?: BatchObserver;
  /** Of what is read before a decision; a test takes it away to show what it is for. */
  isolation?: Isolation;
  /** How long a command waits for a row before those who don't need that row go on without it, in milliseconds. */
  lockTimeoutMs?: number;
  /** For how long earlier answers are read in advance where one was found or somebody was refused, in milliseconds. */
  carefulMs?: number;
  /** Of upkeep; others are for a program that has all the time that there is. */
  limits?: Limits;
}> &
  Pick<GroupCommitOptions, "maxBatch" | "maxRunning" | "maxQueued">;

/** The one place where state changes: units of work, and plain reads. */
export class Database {
  readonly #orm: MikroORM;
  readonly #clock: () => Date;
  readonly #commits: GroupCommit;
  readonly #loader: Loader;
  readonly #limits: Limits;

  private constructor(orm: MikroORM, pool: Pool, options: DatabaseOptions) {
    const { clock = () => new Date(), observer = {}, isolation = "repeatable read" } = options;
    const { lockTimeoutMs = LOCK_TIMEOUT_MS, carefulMs = CAREFUL_MS, limits = LIMITS, ...bounds } = options;
    const tables = tablesOf(orm);
    const runner = new BatchRunner({ pool, tables, clock, observer, isolation, lockTimeoutMs, carefulMs });
    this.#orm = orm;
    this.#clock = clock;
    this.#commits = new GroupCommit({ ...bounds, observer, run: (batch, place) => runner.run(batch, place) });
    this.#loader = new Loader(pool, tables);
    this.#limits = limits;
  }

  static async open(orm: MikroORM, options: DatabaseOptions = {}): Promise<Database> {
    return new Database(orm, await poolOf(orm), options);
  }

  /** The refusal of every write that comes now, while too many wait; undefined when there is room. */
  get overload(): DomainError | undefined {
    return this.#commits.overload;
  }

  now(): Date {
    return this.#clock();
  }

  /**
   * Runs plain queries on an entity manager of their own. Nothing that they change is written.
   *
   * @throws DomainError DATABASE_UNAVAILABLE, also when one has no answer after 15 s
   */
  async read<T>(query: (em: EntityManager) => Promise<T>): Promise<T> {
    try {
      return await withSilenceLimit(this.#limits.silenceMs, () => query(this.#orm.em.fork()));
    } catch (error) {
      throw toDomainError(error);
    }
  }

  /** The row with that key as it is now, or undefined. Calls of the same moment share a query. */
  async find<E extends object>(entity: RowClass<E>, key: Key<E>): Promise<E | undefined> {
    const [row] = await this.#loader.list(entity, key);
    return row;
  }

  /** All rows with that key as they are now, in no order. Calls of the same moment share a query. */
  list<E extends object>(entity: RowClass<E>, key: Key<E>): Promise<readonly E[]> {
    return this.#loader.list(entity, key);
  }

  /**
   * All rows with that key, and all rows of another entity with the other key, which are as they were when the first were
   * read or newer. Calls of the same moment share a query.
   */
  lists<E extends object, F extends object>(
    entity: RowClass<E>,
    key: Key<E>,
    other: RowClass<F>,
    otherKey: Key<F>,
  ): Promise<readonly [readonly E[], readonly F[]]> {
    return this.#loader.lists(entity, key, other, otherKey);
  }

  /**
   * Runs a caller's command, and stores with its effects the answer to be replayed.
   *
   * @throws Replayed when the request was answered before
   * @throws DomainError what the decision refused; REQUEST_ID_REUSED when the id was used for another request; OVERLOADED;
   *   CONFLICT when others were faster too often; DATABASE_UNAVAILABLE, after which only sending it again tells what
   *   happened
   */
  write<R>(write: Write, command: Command<R>): Promise<R> {
    return this.#submit(command, write);
  }

  /** Runs a command of the service itself, which nobody sends twice, and which is not refused however many wait. */
  apply<R>(command: Command<R>): Promise<R> {
    return this.#submit(command, undefined);
  }

  /**
   * Runs plain statements of the service's own upkeep in one transaction; no decision on aggregates belongs here. Nothing but
   * statements may be waited for: Postgres ends a transaction that is idle for 2 s.
   *
   * @throws DomainError DATABASE_UNAVAILABLE, also when a statement has no answer after 15 s
   */
  async maintain<T>(statements: (em: EntityManager) => Promise<T>): Promise<T> {
    const { lockMs, idleMs, silenceMs } = this.#limits;
    const limited = async (em: EntityManager) => {
      await em.execute(
        `select set_config('lock_timeout', '${lockMs}ms', true),
                set_config('idle_in_transaction_session_timeout', '${idleMs}ms', true)`,
      );
      return statements(em);
    };
    try {
      return await withSilenceLimit(silenceMs, () => this.#orm.em.fork().transactional(limited));
    } catch (error) {
      throw toDomainError(error);
    }
  }

  #submit<R>(command: Command<R>, write: Write | undefined): Promise<R> {
    const { promise, resolve, reject } = Promise.withResolvers<R>();
    let plans = 0;
    const submit = async () => {
      plans += 1;
      if (plans > MAX_PLANS) throw new DomainError("CONFLICT", "what the request is about keeps changing");
      const touches = typeof command.touches === "function" ? await command.touches() : command.touches;
      this.#commits.submit(pendingOf(touches));
    };
    const start = () => void submit().catch(reject);
    const answer = write && answerTouch(write);
    const pendingOf = (touches: readonly Touch[]): Pending => ({
      command,
      write,
      touches,
      answer,
      resolve: resolve as Pending["resolve"],
      reject,
      replan: start,
    });
    start();
    return promise;
  }
}

/** A table for each entity, made when it is first asked for. */
function tablesOf(orm: MikroORM): Tables {
  const tables = new Map<RowClass<object>, Table>();
  return (entity) => {
    const table = tables.get(entity) ?? new Table(orm.getMetadata().get(entity));
    tables.set(entity, table);
    return table;
  };
}
