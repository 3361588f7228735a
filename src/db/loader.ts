import { setImmediate as nextTurn } from "node:timers/promises";
import DataLoader from "dataloader";
import type { Pool } from "pg";
import { type Key, type RowClass, shapeOf } from "./command.ts";
import { toDomainError } from "./conflict.ts";
import type { Tables } from "./rows.ts";
import { Session } from "./session.ts";
import type { Statement } from "./statement.ts";
import type { Table } from "./table.ts";

/** The most keys in one query. */
const MAX_KEYS = 500;

type Row = Record<string, unknown>;

/** What is asked for together, one key for each kind. */
type Keys = readonly Row[];
type Found = readonly Row[][];

/** Rows of one entity by equality on some columns: one query for all keys of a batch. */
class Kind {
  /** What loads this kind alone (undefined), or with another. */
  readonly loaders = new Map<Kind | undefined, DataLoader<Keys, Found>>();
  readonly #table: Table;
  readonly #shape: readonly string[];
  readonly #only: string | undefined;

  constructor(table: Table, shape: readonly string[]) {
    this.#table = table;
    this.#shape = shape;
    this.#only = shape.length === 1 ? shape[0] : undefined;
  }

  /** What rows with that key have in common. No stored text holds a NUL, so that none can look like two values. */
  #idOf(row: Row): unknown {
    return this.#only === undefined ? this.#shape.map((column) => row[column]).join("\0") : row[this.#only];
  }

  /** The query for rows with these keys, and what deals its results out: the rows of each key. */
  ask(keys: readonly Row[]): { query: Statement; deal: (results: readonly unknown[][]) => Row[][] } {
    const found = new Map<unknown, Row[]>();
    const unique: Row[] = [];
    const places = keys.map((key) => {
      const id = this.#idOf(key);
      let rows = found.get(id);
      if (!rows) {
        rows = [];
        found.set(id, rows);
        unique.push(key);
      }
      return rows;
    });
    const deal = (results: readonly unknown[][]) => {
      for (const values of results) {
        const row = this.#table.hydrate(values) as Row;
        found.get(this.#idOf(row))?.push(row);
      }
      return places;
    };
    // Without its name it is planned each time: a plan that was prepared on an empty table stays bad when it grows.
    return { query: { ...this.#table.select(this.#shape, unique), name: "" }, deal };
  }
}

/**
 * One query of a kind at a time. The next one is sent before the results of the last are given out: answering those who
 * wait for them takes about as long as a query, and so both happen at once.
 */
class Turns {
  #busy = false;
  readonly #waiting: (() => void)[] = [];
  /** When the query last started has been sent. */
  #sent: Promise<void> = Promise.resolve();

  /** Calls `start`, which takes a turn, as soon as there is one. */
  ask(start: () => void): void {
    if (this.#busy) {
      this.#waiting.push(start);
    } else {
      this.#busy = true;
      // After all that came in with it.
      setImmediate(start);
    }
  }

  /** Runs a query, which says when it was sent. */
  async take<T>(query: (sent: () => void) => Promise<T>): Promise<T> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#sent = promise;
    try {
      return await query(resolve);
    } finally {
      resolve();
      const next = this.#waiting.shift();
      this.#busy = next !== undefined;
      next?.();
      // For a turn of the loop at most: it may have to wait for a connection.
      if (next) await Promise.race([this.#sent, nextTurn()]);
    }
  }
}

/**
 * Reads rows by key. What is asked for while a query of the same kind is under way waits for it and then shares the next
 * one; nothing is cached, every answer is read from the database after it was asked for.
 */
export class Loader {
  readonly #pool: Pool;
  readonly #tables: Tables;
  readonly #kinds = new Map<readonly string[], Kind>();

  constructor(pool: Pool, tables: Tables) {
    this.#pool = pool;
    this.#tables = tables;
  }

  /** All rows with that key. @throws DomainError DATABASE_UNAVAILABLE */
  async list<E extends object>(entity: RowClass<E>, key: Key<E>): Promise<readonly E[]> {
    const kind = this.#kindOf(entity, key);
    const loader = kind.loaders.get(undefined) ?? this.#create(kind, undefined);
    const [rows] = await loader.load([key as Row]);
    return rows as object[] as E[];
  }

  /** The same for two entities, the rows of the other read after those of the first. */
  lists<E extends object, F extends object>(
    entity: RowClass<E>,
    key: Key<E>,
    other: RowClass<F>,
    otherKey: Key<F>,
  ): Promise<readonly [readonly E[], readonly F[]]> {
    const kind = this.#kindOf(entity, key);
    const otherKind = this.#kindOf(other, otherKey);
    const loader = kind.loaders.get(otherKind) ?? this.#create(kind, otherKind);
    return loader.load([key as Row, otherKey as Row]) as Promise<object> as Promise<[E[], F[]]>;
  }

  #kindOf(entity: RowClass<object>, key: object): Kind {
    const shape = shapeOf(entity, key);
    let kind = this.#kinds.get(shape);
    if (!kind) {
      kind = new Kind(this.#tables(entity), shape);
      this.#kinds.set(shape, kind);
    }
    return kind;
  }

  #create(first: Kind, second: Kind | undefined): DataLoader<Keys, Found> {
    const kinds = second ? [first, second] : [first];
    const turns = new Turns();
    const load = async (asked: readonly Keys[]): Promise<Found[]> => {
      const { asking, results } = await turns.take(async (sent) => {
        const asking = kinds.map((kind, index) => kind.ask(asked.map((keys) => keys[index] as Row)));
        const queries = asking.map(({ query }) => query);
        return { asking, results: await this.#query(queries, sent) };
      });
      const found = asking.map(({ deal }, index) => deal(results[index] as unknown[][]));
      return asked.map((_, index) => found.map((rows) => rows[index] as Row[]));
    };
    const loader = new DataLoader(load, {
      cache: false,
      maxBatchSize: MAX_KEYS,
      batchScheduleFn: (start) => turns.ask(start),
    });
    first.loaders.set(second, loader);
    return loader;
  }

  /** On one connection, so that each is run after the one before. Calls `sent` when the database has them. */
  async #query(statements: readonly Statement[], sent: () => void): Promise<unknown[][][]> {
    try {
      return await Session.run(this.#pool, (session) => {
        const results = session.send(statements);
        sent();
        return results;
      });
    } catch (error) {
      throw toDomainError(error);
    }
  }
}
