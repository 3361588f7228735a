/**
 * Reads and writes the rows of one entity with few statements for many rows: prepared once, with one array for each
 * column. Columns, keys and versions are those of the ORM's metadata.
 */
import type { EntityMetadata } from "@mikro-orm/core";
import { codecOf } from "./codec.ts";
import type { RowClass } from "./command.ts";
import {
  assertInitial,
  type Column,
  checked,
  columnOf,
  EDITS,
  equalities,
  given,
  isWritable,
  parameters,
  prepared,
  type Statement,
  type Texts,
  textOf,
  unnested,
  valuesOf,
} from "./statement.ts";

type Row = Record<string, unknown>;

/**
 * An entity class may name properties that are only counted up and down by most decisions. Such an entity also has a
 * property `edits`, of integers that the database starts.
 */
type Counting = { readonly counters: readonly string[] };

/** Makes objects of a class without running its constructor; unlike Object.create, it learns how large they get. */
function blankOf(entity: RowClass<object>): new () => Row {
  function Blank() {}
  Blank.prototype = entity.prototype;
  return Blank as unknown as new () => Row;
}

type Counted = Readonly<{ row: Row /** As `snapshot` gave it. */; before: readonly string[]; exactly: boolean }>;

/** Of no table: whether a row has to have its version. */
const EXACTLY: Column = {
  property: "(exactly)",
  field: '"exactly"',
  type: "int",
  initial: undefined,
  countsChanges: false,
  codec: codecOf("int"),
};

/** Those that insert, into one table or several. */
const inserts: Texts = new Map();
/** How often rows of these tables were new together. */
const together = new Map<string, number>();
/** From so many times on they get a statement of their own. */
const COMMON = 20;
/** The most statements that insert: there are more combinations than a connection should keep plans for. */
const MAX_INSERTS = 64;

export class Table {
  readonly entity: RowClass<object>;
  /** Tables that others refer to come first. */
  readonly depth: number;
  readonly #name: string;
  readonly #Blank: new () => Row;
  readonly #columns: readonly Column[];
  readonly #byProperty: ReadonlyMap<string, Column>;
  readonly #key: readonly Column[];
  /** Of which new rows say nothing, though they have it. */
  readonly #initial: readonly Column[];
  readonly #version: Column | undefined;
  readonly #counters: readonly string[];
  /** Counts the changes of a row with counters that were not just counting. */
  readonly #edits: Column | undefined;
  /** Prepared texts by what they do: there are few, and each is prepared once on a connection. */
  readonly #texts: Texts = new Map();

  constructor(meta: EntityMetadata) {
    this.entity = meta.class as RowClass<object>;
    this.depth = meta.relations.length;
    this.#name = `"${meta.tableName}"`;
    this.#Blank = blankOf(this.entity);
    const names = meta.props
      .filter((prop) => prop.persist !== false && prop.hydrate !== false)
      .map((prop) => prop.name);
    this.#columns = names.map((name) => columnOf(meta, name));
    this.#byProperty = new Map(this.#columns.map((column) => [column.property, column]));
    this.#key = meta.primaryKeys.map((name) => this.#column(name));
    this.#initial = this.#columns.filter((column) => !isWritable(column) && !column.countsChanges);
    this.#version = meta.versionProperty === undefined ? undefined : this.#column(meta.versionProperty);
    this.#counters = (meta.class as Partial<Counting>).counters ?? [];
    this.#edits = this.counting ? this.#column(EDITS) : undefined;
  }

  /** Rows by equality on some columns, for many values at once: `keys` holds the values of each row asked for. */
  select(properties: readonly string[], keys: readonly Row[]): Statement {
    const columns = properties.map((name) => this.#column(name));
    const [only] = columns;
    const text = () => {
      if (columns.length === 1 && only) {
        return `select ${this.#list()} from ${this.#name} where ${only.field} = any ($1::${only.type}[])`;
      }
      // Offset 0 keeps the lookup a lookup by index for each key, whatever the statistics of a young table say.
      const where = columns.map(({ field }, index) => `t.${field} = k.c${index}`).join(" and ");
      const names = columns.map((_, index) => `c${index}`).join(", ");
      return (
        `select t.* from unnest(${parameters(columns)}) as k (${names}) cross join lateral ` +
        `(select ${this.#list()} from ${this.#name} t where ${where} offset 0) t`
      );
    };
    return this.#statement(`select ${properties}`, text, columns, keys);
  }

  /** Rows by equality on some columns, locked until the transaction ends. */
  lock(properties: readonly string[], key: Row): Statement {
    const columns = properties.map((name) => this.#column(name));
    const text = () => {
      return `select from ${this.#name} where ${equalities(columns)} for update`;
    };
    return this.#statement(`lock ${properties}`, text, columns, [key]);
  }

  /**
   * New rows of several tables, in this order: in one statement, which costs less than one for each, when they often come
   * together. Of such a statement Postgres runs the main query first, and then the last of the others, up to the first one;
   * keys are taken in the same order either way, so that processes never wait for each other's in a circle.
   */
  static insert(parts: readonly Readonly<{ table: Table; rows: readonly Row[] }>[]): Statement[] {
    const name = `insert ${parts.map(({ table }) => table.#name)}`;
    if (parts.length > 1 && !inserts.has(name)) {
      const times = (together.get(name) ?? 0) + 1;
      together.set(name, times);
      if (times < COMMON || inserts.size >= MAX_INSERTS) return parts.flatMap((part) => Table.insert([part]));
    }
    const written = parts.map(({ table }) => table.#columns.filter(isWritable));
    const text = () => {
      let first = 1;
      const [main, ...others] = parts.map(({ table }, index) => {
        const columns = written[index] ?? [];
        const fields = columns.map(({ field }) => field).join(", ");
        const insert = `insert into ${table.#name} (${fields}) select ${unnested(columns, first).join(", ")}`;
        first += columns.length;
        return insert;
      });
      const named = others.map((insert, index) => `i${index} as (${insert})`).reverse();
      return `${named.length > 0 ? `with ${named.join(", ")} ` : ""}${main}`;
    };
    for (const { table, rows } of parts)
      for (const column of table.#initial) for (const row of rows) assertInitial(column, row);
    const values = parts.flatMap(({ rows }, index) => valuesOf(written[index] ?? [], rows));
    return [{ ...prepared(inserts, name, text), values }];
  }

  /**
   * Writes the given properties of rows, each only over the version that was read.
   */
  update(properties: readonly string[], rows: readonly Row[]): Statement {
    const changed = properties.map((name) => this.#column(name));
    const guards = this.#version ? [...this.#key, this.#version] : this.#key;
    const columns = [...guards, ...changed];
    const text = () => {
      const sets = changed.map(({ field }) => `${field} = u.${field}`);
      for (const count of [this.#version, this.#edits]) if (count) sets.push(`${count.field} = t.${count.field} + 1`);
      return checked(
        `update ${this.#name} t set ${sets.join(", ")} from ${given(columns, guards)} returning false as moved`,
      );
    };
    return this.#statement(`update ${properties}`, text, columns, rows);
  }

  /**
   * Adds to the given counters of rows what they differ by from before, whatever others have counted meanwhile: only
   * everything else has to be as it was read (`edits`), and a CHECK holds the bounds. Tells how many rows had moved on.
   * `exactly`: only when nobody has counted meanwhile.
   */
  count(properties: readonly string[], rows: readonly Counted[]): Statement {
    const counters = properties.map((name) => this.#column(name));
    const [version, edits] = [this.#version, this.#edits];
    if (!version || !edits) throw new Error(`${this.#name} has no counters`);
    const guards = [...this.#key, edits];
    const columns = [...guards, version, EXACTLY, ...counters];
    const text = () => {
      const sets = counters.map(({ field }) => `${field} = t.${field} + u.${field}`);
      sets.push(`${version.field} = t.${version.field} + 1`);
      const unmoved = `(u.${EXACTLY.field} = 0 or t.${version.field} = u.${version.field})`;
      const moved = `t.${version.field} <> u.${version.field} + 1 as moved`;
      const rowsOf = `${given(columns, guards)} and ${unmoved}`;
      return checked(`update ${this.#name} t set ${sets.join(", ")} from ${rowsOf} returning ${moved}`);
    };
    const differences = rows.map(({ row, before, exactly }) => {
      const added = counters.map((column) => {
        const was = before[this.#columns.indexOf(column)];
        return [column.property, BigInt(textOf(column, row[column.property])) - BigInt(was ?? 0)];
      });
      return { ...row, ...Object.fromEntries(added), [EXACTLY.property]: exactly ? 1 : 0 };
    });
    return this.#statement(`count ${properties}`, text, columns, differences);
  }

  /** Fails unless all rows are there in these versions. */
  verify(rows: readonly Row[]): Statement {
    const guards = this.#version ? [...this.#key, this.#version] : this.#key;
    const text = () => checked(`select false as moved from ${this.#name} t, ${given(guards, guards)}`);
    return this.#statement("verify", text, guards, rows);
  }

  /** Deletes rows as `update` changes them: each only as it was read. */
  delete(rows: readonly Row[]): Statement {
    const guards = this.#version ? [...this.#key, this.#version] : this.#key;
    const text = () => checked(`delete from ${this.#name} t using ${given(guards, guards)} returning false as moved`);
    return this.#statement("delete", text, guards, rows);
  }

  /** An entity of what a `select` or `lock` returned for one row. */
  hydrate(values: readonly unknown[]): object {
    const row = new this.#Blank();
    let index = 0;
    for (const { property, codec } of this.#columns) {
      const value = values[index++];
      row[property] = value === null ? null : codec.fromDatabase(value);
    }
    return row;
  }

  /** The same values in an object of its own. */
  copy(row: object): Row {
    return Object.assign(new this.#Blank(), row);
  }

  /** Whether an update finds out that somebody else has changed the row since it was loaded. */
  get versioned(): boolean {
    return this.#version !== undefined;
  }

  /** Whether rows have counters. */
  get counting(): boolean {
    return this.#counters.length > 0;
  }

  isCounter(property: string): boolean {
    return this.#counters.includes(property);
  }

  /** A copy of a changed row as it will be loaded once it is written, when nobody else has counted meanwhile. */
  updated(row: Row, counted: boolean): object {
    const copy = this.copy(row);
    for (const count of [this.#version, counted ? undefined : this.#edits]) {
      if (count) copy[count.property] = (row[count.property] as number) + 1;
    }
    return copy;
  }

  /** What would be written of the row, to be compared later. */
  snapshot(row: Row): readonly string[] {
    return this.#columns.map((column) => (column.countsChanges ? "" : textOf(column, row[column.property])));
  }

  /** The properties that differ from an earlier snapshot. */
  changes(row: Row, before: readonly string[]): string[] {
    const changed: string[] = [];
    for (const [index, column] of this.#columns.entries()) {
      const now = column.countsChanges ? "" : textOf(column, row[column.property]);
      if (now !== before[index]) changed.push(column.property);
    }
    return changed;
  }

  /** The same text for the same row, in the order of the key: rows are written in this order everywhere. */
  keyOf(row: Row): string {
    const [first, ...others] = this.#key;
    let key = first ? textOf(first, row[first.property]) : "";
    for (const column of others) key += `,${textOf(column, row[column.property])}`;
    return key;
  }

  #column(property: string): Column {
    const column = this.#byProperty.get(property);
    if (!column) throw new Error(`${this.#name} has no column for ${property}`);
    return column;
  }

  #list(): string {
    return this.#columns.map(({ field }) => field).join(", ");
  }

  #statement(use: string, text: () => string, columns: readonly Column[], rows: readonly Row[]): Statement {
    return { ...prepared(this.#texts, use, text), values: valuesOf(columns, rows) };
  }
}
