/**
 * Reads and writes the rows of one entity with few statements for many rows: prepared once, with one array for each
 * column. Columns, keys and versions are those of the ORM's metadata.
 */
import { createHash } from "node:crypto";
import type { EntityMetadata } from "@mikro-orm/core";
import pg from "pg";
import type { RowClass } from "./command.ts";

/** A prepared statement. Values that are arrays are written as array literals. */
export type Statement = Readonly<{ name: string; text: string; values: readonly string[] }>;

type Column = Readonly<{
  property: string;
  field: string;
  type: string;
  /** Filled by the database when a row is made. */
  generated: boolean;
  fromDatabase: (value: unknown) => unknown;
  /** An element of an array literal. */
  toLiteral: (value: unknown) => string;
}>;

type Row = Record<string, unknown>;

const quoted = (text: string) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

/** By type; a type that is not listed is text. */
const codecs: Record<string, Pick<Column, "fromDatabase" | "toLiteral">> = {
  uuid: { fromDatabase: (value) => value, toLiteral: (value) => value as string },
  int: { fromDatabase: (value) => value, toLiteral: String },
  bigint: { fromDatabase: (value) => BigInt(value as string), toLiteral: String },
  timestamptz: { fromDatabase: (value) => value, toLiteral: (value) => (value as Date).toISOString() },
  jsonb: { fromDatabase: (value) => value, toLiteral: (value) => quoted(JSON.stringify(value)) },
  bytea: {
    fromDatabase: (value) => value,
    toLiteral: (value) => `"\\\\x${Buffer.from(value as Uint8Array).toString("hex")}"`,
  },
  text: { fromDatabase: (value) => value, toLiteral: (value) => quoted(value as string) },
};

/** The driver's own parsers, whatever else the pool was told. */
export const driverTypes = pg.types;

function columnOf(meta: EntityMetadata, name: string): Column {
  const prop = meta.properties[name as never] as (typeof meta.props)[number];
  const type = (prop.columnTypes[0] ?? "text").replace(/\(.*\)$/, "").replace("varchar", "text");
  const codec = codecs[type] ?? (codecs.text as (typeof codecs)[string]);
  return {
    property: prop.name,
    field: `"${prop.fieldNames[0]}"`,
    type,
    generated: prop.version === true || prop.defaultRaw !== undefined,
    fromDatabase: (value) => (value === null ? null : codec.fromDatabase(value)),
    toLiteral: (value) => (value == null ? "NULL" : codec.toLiteral(value)),
  };
}

const isWritable = (column: Column) => !column.generated;

export class Table {
  readonly entity: RowClass<object>;
  /** Tables that others refer to come first. */
  readonly depth: number;
  readonly #name: string;
  readonly #columns: readonly Column[];
  readonly #byProperty: ReadonlyMap<string, Column>;
  readonly #key: readonly Column[];
  readonly #version: Column | undefined;
  /** Prepared texts by what they do: there are few, and each is prepared once on a connection. */
  readonly #texts = new Map<string, Omit<Statement, "values">>();

  constructor(meta: EntityMetadata) {
    this.entity = meta.class as RowClass<object>;
    this.depth = meta.relations.length;
    this.#name = `"${meta.tableName}"`;
    const names = meta.props
      .filter((prop) => prop.persist !== false && prop.hydrate !== false)
      .map((prop) => prop.name);
    this.#columns = names.map((name) => columnOf(meta, name));
    this.#byProperty = new Map(this.#columns.map((column) => [column.property, column]));
    this.#key = meta.primaryKeys.map((name) => this.#column(name));
    this.#version = meta.versionProperty === undefined ? undefined : this.#column(meta.versionProperty);
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
      return `select ${this.#list()} from ${this.#name} where ${equalities(columns)} for update`;
    };
    return this.#statement(`lock ${properties}`, text, columns, [key]);
  }

  insert(rows: readonly Row[]): Statement {
    const columns = this.#columns.filter(isWritable);
    const fields = columns.map(({ field }) => field).join(", ");
    const text = () => `insert into ${this.#name} (${fields}) select * from unnest(${parameters(columns)})`;
    return this.#statement("insert", text, columns, rows);
  }

  /**
   * Writes the given properties of rows, each only over the version that was read. The number of rows is checked in the
   * statement itself: when one is missing it fails (division by zero), and with it a COMMIT that was sent behind it.
   */
  update(properties: readonly string[], rows: readonly Row[]): Statement {
    const changed = properties.map((name) => this.#column(name));
    const guards = this.#version ? [...this.#key, this.#version] : this.#key;
    const columns = [...guards, ...changed];
    const text = () => {
      const sets = changed.map(({ field }) => `${field} = u.${field}`);
      if (this.#version) sets.push(`${this.#version.field} = t.${this.#version.field} + 1`);
      return (
        `with updated as (update ${this.#name} t set ${sets.join(", ")} ` +
        `from unnest(${parameters(columns)}) as u (${columns.map(({ field }) => field).join(", ")}) ` +
        `where ${guards.map(({ field }) => `t.${field} = u.${field}`).join(" and ")} returning 1) ` +
        `select 1 / (count(*) = cardinality($1::${columns[0]?.type}[]))::int from updated`
      );
    };
    return this.#statement(`update ${properties}`, text, columns, rows);
  }

  delete(rows: readonly Row[]): Statement {
    const text = () => {
      const where = this.#key.map(({ field }) => `t.${field} = d.${field}`).join(" and ");
      const fields = this.#key.map(({ field }) => field).join(", ");
      return `delete from ${this.#name} t using unnest(${parameters(this.#key)}) as d (${fields}) where ${where}`;
    };
    return this.#statement("delete", text, this.#key, rows);
  }

  /** An entity of what a `select` or `lock` returned for one row. */
  hydrate(values: readonly unknown[]): object {
    const row = Object.create(this.entity.prototype) as Row;
    this.#columns.forEach((column, index) => {
      row[column.property] = column.fromDatabase(values[index]);
    });
    return row;
  }

  /** Whether an update finds out that somebody else has changed the row since it was loaded. */
  get versioned(): boolean {
    return this.#version !== undefined;
  }

  /** A copy of a changed row as it will be loaded once it is written. */
  updated(row: Row): object {
    const copy = Object.assign(Object.create(this.entity.prototype), row) as Row;
    if (this.#version) copy[this.#version.property] = (row[this.#version.property] as number) + 1;
    return copy;
  }

  /** What would be written of the row, to be compared later. */
  snapshot(row: Row): readonly string[] {
    return this.#columns.map((column) => (column.generated ? "" : column.toLiteral(row[column.property])));
  }

  /** The properties that differ from an earlier snapshot. */
  changes(row: Row, before: readonly string[]): string[] {
    const now = this.snapshot(row);
    return this.#columns.flatMap((column, index) => (now[index] === before[index] ? [] : column.property));
  }

  /** The same text for the same row, in the order of the key: rows are written in this order everywhere. */
  keyOf(row: Row): string {
    return this.#key.map((column) => column.toLiteral(row[column.property])).join(",");
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
    let prepared = this.#texts.get(use);
    if (!prepared) {
      const written = text();
      prepared = { text: written, name: createHash("sha256").update(written).digest("hex").slice(0, 32) };
      this.#texts.set(use, prepared);
    }
    const values = columns.map(
      ({ property, toLiteral }) => `{${rows.map((row) => toLiteral(row[property])).join(",")}}`,
    );
    return { ...prepared, values };
  }
}

/** Of single values that come as arrays of one. */
function equalities(columns: readonly Column[]): string {
  return columns.map(({ field, type }, index) => `${field} = ($${index + 1}::${type}[])[1]`).join(" and ");
}

function parameters(columns: readonly Column[]): string {
  return columns.map(({ type }, index) => `$${index + 1}::${type}[]`).join(", ");
}
