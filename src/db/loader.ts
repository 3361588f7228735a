import DataLoader from "dataloader";
import type { Pool } from "pg";
import { idOf, type Key, type RowClass } from "./command.ts";
import { toDomainError } from "./conflict.ts";
import type { Tables } from "./rows.ts";
import { queryOf } from "./session.ts";

/** The most keys in one query. */
const MAX_KEYS = 500;

type Row = Record<string, unknown>;

/**
 * Reads rows by key. What is asked for while a query of the same kind is under way waits for it and then shares the next
 * one; nothing is cached, every answer is read from the database after it was asked for.
 */
export class Loader {
  readonly #pool: Pool;
  readonly #tables: Tables;
  readonly #loaders = new Map<string, DataLoader<Row, Row[], string>>();

  constructor(pool: Pool, tables: Tables) {
    this.#pool = pool;
    this.#tables = tables;
  }

  /** All rows with that key. @throws DomainError DATABASE_UNAVAILABLE */
  async list<E extends object>(entity: RowClass<E>, key: Key<E>): Promise<readonly E[]> {
    const shape = Object.keys(key).sort();
    const name = `${entity.name}(${shape})`;
    let loader = this.#loaders.get(name);
    if (!loader) {
      loader = this.#create(entity, shape);
      this.#loaders.set(name, loader);
    }
    return (await loader.load(key as Row)) as object[] as E[];
  }

  #create(entity: RowClass<object>, shape: readonly string[]): DataLoader<Row, Row[], string> {
    let running: Promise<unknown> = Promise.resolve();
    const load = async (keys: readonly Row[]): Promise<Row[][]> => {
      const query = this.#query(entity, shape, keys);
      running = query.catch(() => {});
      const rows = Map.groupBy(await query, (row) => idOf(entity, row, shape));
      return keys.map((key) => rows.get(idOf(entity, key, shape)) ?? []);
    };
    return new DataLoader(load, {
      cache: false,
      maxBatchSize: MAX_KEYS,
      batchScheduleFn: (start) => void running.then(() => setImmediate(start)),
    });
  }

  async #query(entity: RowClass<object>, shape: readonly string[], keys: readonly Row[]): Promise<Row[]> {
    const table = this.#tables(entity);
    // The same key twice would find its rows twice.
    const unique = [...new Map(keys.map((key) => [idOf(entity, key, shape), key])).values()];
    // Without its name it is planned each time: a plan that was prepared on an empty table stays bad when it grows.
    const { text, values } = table.select(shape, unique);
    try {
      const result = await this.#pool.query<unknown[]>(queryOf({ text, values }));
      return result.rows.map((row) => table.hydrate(row) as Row);
    } catch (error) {
      throw toDomainError(error);
    }
  }
}
