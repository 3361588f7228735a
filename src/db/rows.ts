import { LockMode } from "@mikro-orm/core";
import type { EntityManager, FilterQuery } from "@mikro-orm/postgresql";
import type { EntityClass, Key, RowClass, Touch, Tx } from "./command.ts";

type Row = Record<string, unknown>;

/** A decision asked for rows that its command did not name: what it was planned on has changed. */
export class UntouchedRows extends Error {
  override readonly name = "UntouchedRows";
}

function columnsOf(key: object): string {
  return Object.keys(key).sort().join(",");
}

/** The same text for the same rows, whatever the order of the columns. */
function idOf(entity: object & { name?: string }, key: object, columns: string): string {
  const values = columns.split(",").map((column) => String((key as Row)[column]));
  return `${entity.name}(${columns})=${values.join(",")}`;
}

function touchId(touch: Touch): string {
  return idOf(touch.entity, touch.key, columnsOf(touch.key));
}

/** The rows of a unit of work: loaded once, found by key, and kept up with what decisions add and remove. */
export class Rows implements Tx {
  readonly now: Date;
  readonly #em: EntityManager;
  readonly #found = new Map<string, object[]>();
  /** For each entity class the column sets by which it was asked for. */
  readonly #columns = new Map<object, Set<string>>();

  constructor(em: EntityManager, now: Date) {
    this.#em = em;
    this.now = now;
  }

  /** Loads everything that is touched, with one query for each entity and kind of key. */
  async load(touches: readonly Touch[]): Promise<void> {
    const groups = Map.groupBy(this.#declare(touches), (touch) => `${touch.entity.name}(${columnsOf(touch.key)})`);
    for (const group of groups.values()) {
      const [first] = group;
      if (!first) continue;
      const columns = Object.keys(first.key);
      const [column] = columns;
      const where =
        columns.length === 1 && column
          ? { [column]: { $in: group.map((touch) => touch.key[column]) } }
          : { $or: group.map((touch) => touch.key) };
      this.#index(first, await this.#em.find(first.entity, where as FilterQuery<object>));
    }
  }

  /**
   * Loads everything that is touched and locks it, row by row in one order that all replicas share, so that they queue
   * instead of failing each other. One equality at a time: a lock over several keys does not work on sharded tables.
   */
  async loadLocked(touches: readonly Touch[]): Promise<void> {
    const ordered = this.#declare(touches).sort((a, b) => (touchId(a) < touchId(b) ? -1 : 1));
    for (const touch of ordered) {
      const lockMode = LockMode.PESSIMISTIC_WRITE;
      this.#index(touch, await this.#em.find(touch.entity, touch.key as FilterQuery<object>, { lockMode }));
    }
  }

  get<E extends object, K extends Key<E>>(entity: EntityClass<E, K>, key: K): E {
    const row = this.find(entity, key);
    if (!row) throw entity.notFound(key);
    return row;
  }

  find<E extends object>(entity: RowClass<E>, key: Key<E>): E | undefined {
    return this.list(entity, key)[0];
  }

  list<E extends object>(entity: RowClass<E>, key: Key<E>): readonly E[] {
    const id = idOf(entity, key, columnsOf(key));
    const rows = this.#found.get(id);
    if (!rows) throw new UntouchedRows(`${id} was not named by the command`);
    return rows as E[];
  }

  add(entity: object): void {
    this.#em.persist(entity);
    this.#listsOf(entity, (rows) => rows.push(entity));
  }

  remove(entity: object): void {
    this.#em.remove(entity);
    this.#listsOf(entity, (rows) => rows.splice(rows.indexOf(entity), 1));
  }

  /** Opens an empty list for each key, so that "not there" differs from "not asked for"; drops repetitions. */
  #declare(touches: readonly Touch[]): Touch[] {
    return touches.filter((touch) => {
      const id = touchId(touch);
      if (this.#found.has(id)) return false;
      this.#found.set(id, []);
      const columns = this.#columns.get(touch.entity) ?? new Set();
      this.#columns.set(touch.entity, columns.add(columnsOf(touch.key)));
      return true;
    });
  }

  #index(touch: Touch, rows: readonly object[]): void {
    const columns = columnsOf(touch.key);
    for (const row of rows) this.#found.get(idOf(touch.entity, row, columns))?.push(row);
  }

  #listsOf(entity: object, change: (rows: object[]) => void): void {
    for (const columns of this.#columns.get(entity.constructor) ?? []) {
      const rows = this.#found.get(idOf(entity.constructor, entity, columns));
      if (rows) change(rows);
    }
  }
}
