import { changesOf, type Tracked } from "./changes.ts";
import type { EntityClass, Key, RowClass, Touch, Tx } from "./command.ts";
import type { ResultRows, Session } from "./session.ts";
import type { Statement, Table } from "./table.ts";

type Row = Record<string, unknown>;

/** Finds the table of an entity. */
export type Tables = (entity: RowClass<object>) => Table;

/** A decision asked for rows that its command did not name: what it was planned on has changed. */
export class UntouchedRows extends Error {
  override readonly name = "UntouchedRows";
}

/** Column names by which rows are asked for, in one order. */
export function shapeOf(key: object): string[] {
  return Object.keys(key).sort();
}

/** The same text for the same values of these columns. */
export function idOf(entity: RowClass<object>, key: object, shape: readonly string[]): string {
  // No stored text holds a NUL, so that none can look like two values.
  return `${entity.name}(${shape})=${shape.map((column) => (key as Row)[column]).join("\0")}`;
}

/** The same text for the same rows, whatever the order of the columns. */
export function touchId(touch: Touch): string {
  return idOf(touch.entity, touch.key, shapeOf(touch.key));
}

/** What a unit of work that is being written leaves to the one behind it, by the keys under which rows were touched. */
export type Handover = Readonly<{
  /** Keys whose rows stay as they are in the database. */
  same: ReadonlySet<string>;
  /** The rows of keys that have all changed, as they will be once written. */
  changed: ReadonlyMap<string, readonly object[]>;
  /** All that is written, by entity, whatever the keys by which others look for it. */
  written: ReadonlyMap<string, readonly Tracked[]>;
}>;

/**
 * The rows of a unit of work: each loaded once, found by key, changed by one decision after the other, written at the
 * end. What a refused decision has done is undone, so that the next one finds what the one before has left.
 */
export class Rows implements Tx {
  readonly now: Date;
  readonly #tables: Tables;
  readonly #found = new Map<string, Row[]>();
  /** For each entity class the shapes of the keys by which it was asked for. */
  readonly #shapes = new Map<RowClass<object>, Map<string, string[]>>();
  readonly #tracked = new Map<Row, Tracked>();
  /** One row for one key, though several touches may find it. */
  readonly #identity = new Map<string, Row>();
  /** How to undo what the decision at hand has done; undefined between decisions. */
  #journal: (() => void)[] | undefined;
  #seen = new Set<Row>();
  /** Keys to which a row was added, or of which one was removed. */
  readonly #regrouped = new Set<string>();

  constructor(tables: Tables, now: Date) {
    this.#tables = tables;
    this.now = now;
  }

  /**
   * Takes over what the unit of work in front has changed, and returns what is left to be loaded. Undefined when that
   * can't be loaded yet: the one in front writes some of it, though it has not touched these keys.
   */
  inherit(touches: readonly Touch[], { changed, written }: Handover): Touch[] | undefined {
    const rest = touches.filter((touch) => {
      const rows = changed.get(touchId(touch));
      if (rows && this.#declare([touch]).length > 0) for (const row of rows) this.#place(touch, row as Row);
      return !rows;
    });
    return findsAny(rest, written) ? undefined : rest;
  }

  /** Loads everything that is touched, with one statement for each entity and shape of key. Returns what `before` has. */
  async load(
    session: Session,
    touches: readonly Touch[],
    before: readonly (Statement | string)[],
    after: readonly string[] = [],
  ): Promise<ResultRows[]> {
    const loads = groupsOf(this.#declare(touches)).map((group) => {
      const [touch] = group;
      const keys = group.map(({ key }) => key);
      return { touch, statement: this.#tables(touch.entity).select(shapeOf(touch.key), keys) };
    });
    const results = await session.send([...before, ...loads.map(({ statement }) => statement), ...after]);
    for (const [index, { touch }] of loads.entries()) this.#index(touch, results[before.length + index] ?? []);
    return results.slice(0, before.length);
  }

  /**
   * Locks and loads everything that is touched, row by row in one order that all replicas share, so that they queue
   * instead of failing each other. One equality at a time: a lock over several keys does not work on sharded tables.
   * `last` is loaded behind the locks, and not locked itself.
   */
  async loadLocked(
    session: Session,
    touches: readonly Touch[],
    last: readonly Touch[],
    before: readonly (Statement | string)[],
  ): Promise<void> {
    const ordered = this.#declare(touches)
      .map((touch) => ({ touch, id: touchId(touch) }))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    const locks = ordered.map(({ touch }) => this.#tables(touch.entity).lock(shapeOf(touch.key), touch.key));
    // Sent in front of the rest: the server takes one lock after the other in this order.
    const locking = session.send([...before, ...locks]);
    const [results] = await Promise.all([locking, this.load(session, last, [])]);
    for (const [index, { touch }] of ordered.entries()) this.#index(touch, results[before.length + index] ?? []);
  }

  /** Runs one decision; when it throws, everything it has done is undone before the error goes on. */
  attempt<R>(decide: (tx: Tx) => R): R {
    this.#journal = [];
    this.#seen = new Set();
    try {
      return decide(this);
    } catch (error) {
      for (const undo of this.#journal.reverse()) undo();
      throw error;
    } finally {
      this.#journal = undefined;
    }
  }

  /** What writes all changes. */
  changes(): Statement[] {
    return changesOf(this.#tracked.values());
  }

  /** Whether every loaded row that is written is guarded by its version, also when it was loaded some time ago. */
  get guarded(): boolean {
    return [...this.#tracked.values()].every(
      ({ table, before, removed, changed }) => !before || (!removed && (table.versioned || !changed?.length)),
    );
  }

  /** What the unit of work behind this one may go on with. Call it after `changes`. */
  handover(): Handover {
    const same = new Set<string>();
    const changed = new Map<string, readonly object[]>();
    const next = new Map<Row, object>();
    for (const [id, rows] of this.#found) {
      if (this.#regrouped.has(id)) continue;
      const tracked = rows.flatMap((row) => this.#tracked.get(row) ?? []);
      if (!tracked.some((one) => one.changed?.length)) same.add(id);
      // Of a key with some rows changed the others would be handed on and on, and never be read again.
      else if (tracked.every((one) => one.table.versioned && one.changed?.length)) {
        for (const { table, row } of tracked) if (!next.has(row)) next.set(row, table.updated(row));
        changed.set(
          id,
          rows.flatMap((row) => next.get(row) ?? []),
        );
      }
    }
    const written = Map.groupBy(
      [...this.#tracked.values()].filter(({ before, removed, changed }) => !before || removed || changed?.length),
      ({ table }) => table.entity.name,
    );
    return { same, changed, written };
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
    const id = idOf(entity, key, shapeOf(key));
    const rows = this.#found.get(id);
    if (!rows) throw new UntouchedRows(`${id} was not named by the command`);
    for (const row of rows) this.#remember(row);
    return rows as object[] as E[];
  }

  add(entity: object): void {
    const row = entity as Row;
    if (this.#tracked.has(row)) throw new Error("only new rows can be added");
    const table = this.#tables(entity.constructor as RowClass<object>);
    this.#tracked.set(row, { table, row, before: undefined, removed: false });
    this.#journal?.push(() => this.#tracked.delete(row));
    this.#listsOf(row, (rows) => {
      rows.push(row);
      this.#journal?.push(() => void rows.splice(rows.indexOf(row), 1));
    });
  }

  remove(entity: object): void {
    const row = entity as Row;
    const tracked = this.#tracked.get(row);
    if (!tracked) throw new Error("only rows of this unit of work can be removed");
    if (tracked.removed) return;
    tracked.removed = true;
    this.#journal?.push(() => {
      tracked.removed = false;
    });
    this.#listsOf(row, (rows) => {
      const index = rows.indexOf(row);
      rows.splice(index, 1);
      this.#journal?.push(() => void rows.splice(index, 0, row));
    });
  }

  /** Takes a copy of a row when a decision first gets hold of it. */
  #remember(row: Row): void {
    if (!this.#journal || this.#seen.has(row)) return;
    this.#seen.add(row);
    const copy = { ...row };
    this.#journal.push(() => Object.assign(row, copy));
  }

  /** Opens an empty list for each key, so that "not there" differs from "not asked for"; drops repetitions. */
  #declare(touches: readonly Touch[]): Touch[] {
    return touches.filter((touch) => {
      const shape = shapeOf(touch.key);
      const id = idOf(touch.entity, touch.key, shape);
      if (this.#found.has(id)) return false;
      this.#found.set(id, []);
      const shapes = this.#shapes.get(touch.entity) ?? new Map<string, string[]>();
      this.#shapes.set(touch.entity, shapes.set(String(shape), shape));
      return true;
    });
  }

  #index(touch: Touch, results: ResultRows): void {
    const table = this.#tables(touch.entity);
    for (const values of results) this.#place(touch, table.hydrate(values) as Row);
  }

  /** A row that is there already stays the one that it is, whatever was loaded of it again. */
  #place({ entity, key }: Touch, loaded: Row): void {
    const table = this.#tables(entity);
    const identity = `${entity.name}=${table.keyOf(loaded)}`;
    const row = this.#identity.get(identity) ?? loaded;
    this.#identity.set(identity, row);
    if (row === loaded) this.#tracked.set(row, { table, row, before: table.snapshot(row), removed: false });
    this.#found.get(idOf(entity, row, shapeOf(key)))?.push(row);
  }

  #listsOf(row: Row, change: (rows: Row[]) => void): void {
    const entity = row.constructor as unknown as RowClass<object>;
    for (const shape of this.#shapes.get(entity)?.values() ?? []) {
      const id = idOf(entity, row, shape);
      const rows = this.#found.get(id);
      if (!rows) continue;
      this.#regrouped.add(id);
      change(rows);
    }
  }
}

/** By entity and shape of key. */
function groupsOf(touches: readonly Touch[]): [Touch, ...Touch[]][] {
  const groups = Map.groupBy(touches, ({ entity, key }) => `${entity.name}(${shapeOf(key)})`);
  return [...groups.values()] as [Touch, ...Touch[]][];
}

/** Whether some of the rows are among those that these touches look for. */
function findsAny(touches: readonly Touch[], written: Handover["written"]): boolean {
  return groupsOf(touches).some((group) => {
    const [{ entity, key }] = group;
    const shape = shapeOf(key);
    const ids = new Set(written.get(entity.name)?.map(({ row }) => idOf(entity, row, shape)));
    return ids.size > 0 && group.some((touch) => ids.has(touchId(touch)));
  });
}
