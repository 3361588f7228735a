import { type Changes, changesOf, isFree, type Row, Tracked } from "./changes.ts";
import { type EntityClass, idOf, type Key, type RowClass, shapeOf, type Touch, type Tx } from "./command.ts";
import { isLockTimeout, LockedOut } from "./conflict.ts";
import type { ResultRows } from "./exchange.ts";
import type { Session } from "./session.ts";
import type { Statement } from "./statement.ts";
import type { Table } from "./table.ts";

const NONE: readonly Row[][] = [];

/** What is sent together with statements that load. */
export type Around = Readonly<{ before: readonly (Statement | string)[]; after?: readonly string[] }>;

/** Finds the table of an entity. */
export type Tables = (entity: RowClass<object>) => Table;

/** A decision asked for rows that its command did not name: what it was planned on has changed. */
export class UntouchedRows extends Error {
  override readonly name = "UntouchedRows";
}

/** What a unit of work that is being written leaves to the one behind it, by the keys under which rows were touched. */
export type Handover = Readonly<{
  /** Keys whose rows stay as they are in the database. */
  same: ReadonlySet<string>;
  /** The rows of keys that have all changed, as they will be once written. */
  changed: ReadonlyMap<string, readonly object[]>;
  /** Whether something that was touched by another key has been written as well: it can't be read beside this. */
  covers(touch: Touch): boolean;
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
  readonly #shapes = new Map<RowClass<object>, Set<readonly string[]>>();
  readonly #tracked = new Map<Row, Tracked>();
  /** One row for one key, though several touches may find it. */
  readonly #identity = new Map<string, Row>();
  /** How to undo what the decision at hand has done; undefined between decisions. */
  #journal: (() => void)[] | undefined;
  /** What the decision at hand has got hold of, as it was before. */
  #seen = new Map<Row, Row>();
  /** Keys to which a row was added, or of which one was removed. */
  readonly #regrouped = new Set<string>();
  /** Keys under which somebody wants to know the row exactly, its counters too. */
  readonly #exact = new Set<string>();

  constructor(tables: Tables, now: Date) {
    this.#tables = tables;
    this.now = now;
  }

  /**
   * Takes over what the unit of work in front has changed, and returns what is left to be loaded. Undefined when it has
   * written what is left too: half of it would be seen, and half not.
   */
  inherit(touches: readonly Touch[], { changed, covers }: Handover): Touch[] | undefined {
    const rest = touches.filter((touch) => {
      const rows = changed.get(touch.id);
      if (rows && this.#declare([touch]).length > 0) for (const row of rows) this.#place(touch, row as Row, true);
      return !rows;
    });
    return rest.some(covers) ? undefined : rest;
  }

  /** Takes it that there are no such rows, until they are added. */
  assume(touches: readonly Touch[]): void {
    this.#declare(touches);
  }

  /** Loads everything that is touched: one statement for each entity and shape of key. */
  async load(
    session: Session,
    touches: readonly Touch[],
    around: (loads: number) => Around,
    explain?: (error: unknown, index: number) => unknown,
  ): Promise<void> {
    const groups = Map.groupBy(this.#declare(touches), ({ shape }) => shape);
    const loads = [...groups.values()].map((group) => {
      const touch = group[0] as Touch;
      const keys = group.map(({ key }) => key);
      return { touch, statement: this.#tables(touch.entity).select(touch.shape, keys) };
    });
    const { before, after = [] } = around(loads.length);
    const results = await session.send([...before, ...loads.map(({ statement }) => statement), ...after], explain);
    for (const [index, { touch }] of loads.entries()) this.#index(touch, results[before.length + index] ?? []);
  }

  /**
   * Locks everything that is touched, row by row in one order that all replicas share, so that they queue instead of
   * failing each other; then loads it, as those who held the locks have left it. One equality at a time: a lock over
   * several keys does not work on sharded tables.
   */
  async loadLocked(
    session: Session,
    touches: readonly Touch[],
    answers: readonly Touch[],
    before: readonly (Statement | string)[],
  ): Promise<void> {
    const ordered = [...new Map(touches.map((touch) => [touch.id, touch]))]
      // Rows with counters come last, as they do when they are written.
      .map(([id, touch]) => ({ touch, table: this.#tables(touch.entity), id }))
      .sort((a, b) => Number(a.table.counting) - Number(b.table.counting) || (a.id < b.id ? -1 : 1));
    const locks = ordered.map(({ touch, table }) => table.lock(touch.shape, touch.key));
    // The server takes one lock after the other, in this order, and only then reads.
    const around = () => ({ before: [...before, ...locks] });
    await this.load(session, [...touches, ...answers], around, (error, index) => {
      const at = ordered[index - before.length];
      return at && isLockTimeout(error) ? new LockedOut(at.id, error) : error;
    });
  }

  /** Runs one decision; when it throws, everything it has done is undone before the error goes on. */
  attempt<R>(decide: (tx: Tx) => R): R {
    this.#journal = [];
    this.#seen = new Map();
    try {
      const result = decide(this);
      for (const [row, copy] of this.#seen) this.#note(row, copy);
      return result;
    } catch (error) {
      for (const undo of this.#journal.reverse()) undo();
      for (const row of this.#seen.keys()) this.#refuse(row);
      throw error;
    } finally {
      this.#journal = undefined;
    }
  }

  /** What writes all changes. */
  changes(): Changes {
    return changesOf(this.#tracked.values(), (key) => !this.#exact.has(key));
  }

  /** Whether counters are written that others may count at the same time. Call it after `changes`. */
  get counting(): boolean {
    return [...this.#tracked.values()].some((one) => isFree(one, (key) => !this.#exact.has(key)));
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
      else if (tracked.every((one) => one.changed?.length)) {
        for (const { table, row, counted } of tracked) {
          if (!next.has(row)) next.set(row, table.updated(row, counted));
        }
        changed.set(
          id,
          rows.flatMap((row) => next.get(row) ?? []),
        );
      }
    }
    return { same, changed, covers: coverOf([...this.#tracked.values()].filter(isWritten)) };
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
    const id = idOf(entity, key, shapeOf(entity, key));
    const rows = this.#found.get(id);
    if (!rows) throw new UntouchedRows(`${id} was not named by the command`);
    for (const row of rows) this.#remember(row);
    return rows as object[] as E[];
  }

  add(entity: object): void {
    const row = entity as Row;
    if (this.#tracked.has(row)) throw new Error("only new rows can be added");
    const table = this.#tables(entity.constructor as RowClass<object>);
    this.#tracked.set(row, new Tracked(table, row));
    const lists = this.#listsOf(row);
    for (const rows of lists) rows.push(row);
    this.#journal?.push(() => {
      this.#tracked.delete(row);
      for (const rows of lists) rows.splice(rows.indexOf(row), 1);
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
    for (const rows of this.#listsOf(row)) {
      const index = rows.indexOf(row);
      rows.splice(index, 1);
      this.#journal?.push(() => void rows.splice(index, 0, row));
    }
  }

  /** Keeps in mind what has changed: another decision may change it back, and both have to have been right. */
  #note(row: Row, copy: Row): void {
    const tracked = this.#tracked.get(row);
    if (!tracked) return;
    for (const property in copy) {
      if (row[property] === copy[property]) continue;
      tracked.noted ??= new Set();
      tracked.noted.add(property);
    }
  }

  #refuse(row: Row): void {
    const tracked = this.#tracked.get(row);
    if (tracked) tracked.refused = true;
  }

  /** Takes a copy of a row when a decision first gets hold of it. */
  #remember(row: Row): void {
    if (!this.#journal || this.#seen.has(row)) return;
    const copy = { ...row };
    this.#seen.set(row, copy);
    this.#journal.push(() => Object.assign(row, copy));
  }

  /** Opens an empty list for each key, so that "not there" differs from "not asked for"; drops repetitions. */
  #declare(touches: readonly Touch[]): Touch[] {
    return touches.filter((touch) => {
      const { id, shape } = touch;
      if (!touch.shared) this.#exact.add(id);
      if (this.#found.has(id)) return false;
      this.#found.set(id, []);
      const shapes = this.#shapes.get(touch.entity);
      if (shapes) shapes.add(shape);
      else this.#shapes.set(touch.entity, new Set([shape]));
      return true;
    });
  }

  #index(touch: Touch, results: ResultRows): void {
    const table = this.#tables(touch.entity);
    for (const values of results) this.#place(touch, table.hydrate(values) as Row);
  }

  /** A row that is there already stays the one that it is. One that is inherited is a copy: it may be inherited again. */
  #place({ entity, shape }: Touch, loaded: Row, inherited = false): void {
    const table = this.#tables(entity);
    const identity = `${entity.name}=${table.keyOf(loaded)}`;
    const row = this.#identity.get(identity) ?? (inherited ? table.copy(loaded) : loaded);
    this.#identity.set(identity, row);
    if (!this.#tracked.has(row)) {
      const before = table.snapshot(row);
      this.#tracked.set(row, new Tracked(table, row, before, inherited));
    }
    const id = idOf(entity, row, shape);
    this.#tracked.get(row)?.keys.push(id);
    this.#found.get(id)?.push(row);
  }

  /** The lists in which the row stands or has to stand, which are about to change. */
  #listsOf(row: Row): readonly Row[][] {
    const entity = row.constructor as unknown as RowClass<object>;
    const shapes = this.#shapes.get(entity);
    if (!shapes) return NONE;
    const ids = [...shapes].map((shape) => idOf(entity, row, shape)).filter((id) => this.#found.has(id));
    for (const id of ids) this.#regrouped.add(id);
    return ids.map((id) => this.#found.get(id) ?? []);
  }
}

function isWritten({ before, removed, changed }: Tracked): boolean {
  return !before || removed || (changed !== undefined && changed.length > 0);
}

/** Tells of a touch whether it finds one of these rows. */
function coverOf(written: readonly Tracked[]): (touch: Touch) => boolean {
  const byEntity = Map.groupBy(written, ({ table }) => table.entity);
  const byShape = new Map<readonly string[], Set<string>>();
  return ({ entity, shape, id }) => {
    const rows = byEntity.get(entity);
    if (!rows) return false;
    const ids = byShape.get(shape) ?? new Set(rows.map(({ row }) => idOf(entity, row, shape)));
    byShape.set(shape, ids);
    return ids.has(id);
  };
}
