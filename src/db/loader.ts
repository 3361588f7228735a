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

/** Rows of one entity by equality on some columns: one query for all keys of a batch. */
class Kind {
  readonly name: string;
  readonly #table: Table;
  readonly #shape: readonly string[];
  readonly #only: string | undefined;

  constructor(table: Table, name: string, shape: readonly string[]) {
    this.name = name;
    this.#table = table;
    this.#shape = shape;
    this.#only = shape.length === 1 ? shape[0] : undefined;
  }

  /** What rows with that key have in common. No stored text holds a NUL, so that none can look like two values. */
  #idOf(row: Row): unknown {
    return this.#only === undefined ? this.#shape.map((column) => row[column]).join("\0") : row[this.#only];
  }

  /** Without its name it is planned each time: a plan that was prepared on an empty table stays bad when it grows. */
  query(keys: readonly Row[]): Statement {
    // The same key twice would find its rows twice.
    const unique = new Map(keys.map((key) => [this.#idOf(key), key]));
    return { ...this.#table.select(this.#shape, [...unique.values()]), name: "" };
  }

  /** The rows of each key. */
  deal(keys: readonly Row[], results: readonly unknown[][]): Row[][] {
    const rows = new Map<unknown, Row[]>();
    for (const key of keys) rows.set(this.#idOf(key), []);
    for (const values of results) {
      const row = this.#table.hydrate(values) as Row;
      rows.get(this.#idOf(row))?.push(row);
    }
    return keys.map((key) => rows.get(this.#idOf(key)) ?? []);
  }
}

/** What is asked for together, one key for each kind. */
type Keys = readonly Row[];
type Found = readonly Row[][];

/**
 * Reads rows by key. What is asked for while a query of the same kind is under way waits for it and then shares the next
 * one; nothing is cached, every answer is read from the database after it was asked for.
 */
export class Loader {
  readonly #pool: Pool;
  readonly #tables: Tables;
  readonly #kinds = new Map<string, Kind>();
  readonly #loaders = new Map<string, DataLoader<Keys, Found>>();

  constructor(pool: Pool, tables: Tables) {
    this.#pool = pool;
    this.#tables = tables;
  }

  /** All rows with that key. @throws DomainError DATABASE_UNAVAILABLE */
  async list<E extends object>(entity: RowClass<E>, key: Key<E>): Promise<readonly E[]> {
    const kind = this.#kindOf(entity, key);
    const [rows] = await this.#loaderOf(kind.name, [kind]).load([key as Row]);
    return rows as object[] as E[];
  }

  /** The same for two entities, the rows of the other read after those of the first. */
  async lists<E extends object, F extends object>(
    entity: RowClass<E>,
    key: Key<E>,
    other: RowClass<F>,
    otherKey: Key<F>,
  ): Promise<[readonly E[], readonly F[]]> {
    const kind = this.#kindOf(entity, key);
    const otherKind = this.#kindOf(other, otherKey);
    const loader = this.#loaderOf(`${kind.name} ${otherKind.name}`, [kind, otherKind]);
    return (await loader.load([key as Row, otherKey as Row])) as object[][] as [E[], F[]];
  }

  #kindOf(entity: RowClass<object>, key: object): Kind {
    const shape = shapeOf(key);
    const name = `${entity.name}(${shape})`;
    const kind = this.#kinds.get(name) ?? new Kind(this.#tables(entity), name, shape);
    this.#kinds.set(name, kind);
    return kind;
  }

  #loaderOf(name: string, kinds: readonly Kind[]): DataLoader<Keys, Found> {
    const loader = this.#loaders.get(name) ?? this.#create(kinds);
    this.#loaders.set(name, loader);
    return loader;
  }

  #create(kinds: readonly Kind[]): DataLoader<Keys, Found> {
    let running: Promise<unknown> = Promise.resolve();
    const load = async (asked: readonly Keys[]): Promise<Found[]> => {
      const keys = kinds.map((_, index) => asked.map((keys) => keys[index] as Row));
      const query = this.#query(kinds.map((kind, index) => kind.query(keys[index] as Row[])));
      running = query.catch(() => {});
      const results = await query;
      const found = kinds.map((kind, index) => kind.deal(keys[index] as Row[], results[index] as unknown[][]));
      return asked.map((_, index) => found.map((rows) => rows[index] as Row[]));
    };
    return new DataLoader(load, {
      cache: false,
      maxBatchSize: MAX_KEYS,
      batchScheduleFn: (start) => void running.then(() => setImmediate(start)),
    });
  }

  /** On one connection, so that each is run after the one before. */
  async #query(statements: readonly Statement[]): Promise<unknown[][][]> {
    try {
      return await Session.run(this.#pool, (session) => session.send(statements));
    } catch (error) {
      throw toDomainError(error);
    }
  }
}
