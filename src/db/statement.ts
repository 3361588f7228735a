/** Prepared statements, and the parts that they are written with. */
import { createHash } from "node:crypto";
import type { EntityMetadata } from "@mikro-orm/core";
import pg, { type CustomTypesConfig } from "pg";
import { arrayOf, type Codec, codecOf } from "./codec.ts";

/** A prepared statement; its values are arrays in Postgres' binary format, or texts. */
export type Statement = Readonly<{ name: string; text: string; values: readonly (Buffer | string)[] }>;

export type Column = Readonly<{
  property: string;
  field: string;
  type: string;
  /** What the database fills in when a row is made; undefined when the row itself says it. */
  initial: string | undefined;
  /** Counts the changes of a row: the statements that change it raise it. */
  countsChanges: boolean;
  codec: Codec;
}>;

/** Property of entities with counters: counts the changes that were not just counting. */
export const EDITS = "edits";

const TIMESTAMPTZ = 1184;
const parseAnyTime = pg.types.getTypeParser(TIMESTAMPTZ) as (text: string) => Date;

/** Most are in the years that Date reads as Postgres writes them, which takes it half the time. */
function parseTime(text: string): Date {
  const usual = text > "1000" && text[4] === "-" && text.endsWith("+00");
  return usual ? new Date(text) : parseAnyTime(text);
}

/** The driver's own parsers, whatever else the pool was told. */
export const driverTypes: CustomTypesConfig = {
  getTypeParser: (oid, format) => (oid === TIMESTAMPTZ ? parseTime : pg.types.getTypeParser(oid, format as "text")),
};

export function columnOf(meta: EntityMetadata, name: string): Column {
  const prop = meta.properties[name as never] as (typeof meta.props)[number];
  const type = (prop.columnTypes[0] ?? "text").replace(/\(.*\)$/, "").replace("varchar", "text");
  return {
    property: prop.name,
    field: `"${prop.fieldNames[0]}"`,
    type,
    initial: prop.version === true ? "1" : prop.defaultRaw,
    countsChanges: prop.version === true || prop.name === EDITS,
    codec: codecOf(type),
  };
}

/** The same text for the same value; no other value's text holds a NUL. */
export function textOf({ codec }: Column, value: unknown): string {
  return value === null || value === undefined ? "\0" : codec.toText(value);
}

/** Whether new rows say what is in it. */
export const isWritable = (column: Column) => column.initial === undefined;

/** Fails when a new row would differ from what the database makes of it. */
export function assertInitial({ property, initial }: Column, row: Readonly<Record<string, unknown>>): void {
  const value = row[property];
  if (value !== undefined && value !== null && String(value) !== initial) {
    throw new Error(`${property} of a new row is ${initial}, not ${value}`);
  }
}

export type Texts = Map<string, Omit<Statement, "values">>;

export function prepared(texts: Texts, use: string, text: () => string): Omit<Statement, "values"> {
  let statement = texts.get(use);
  if (!statement) {
    const written = text();
    statement = { text: written, name: createHash("sha256").update(written).digest("hex").slice(0, 32) };
    texts.set(use, statement);
  }
  return statement;
}

export function valuesOf(columns: readonly Column[], rows: readonly Readonly<Record<string, unknown>>[]): Buffer[] {
  return columns.map(({ property, codec }) => arrayOf(codec, rows, property));
}

/** The rows of the parameters as `u`, where they equal those of the table, `t`, in the columns `guards`. */
export function given(columns: readonly Column[], guards: readonly Column[]): string {
  const fields = columns.map(({ field }) => field).join(", ");
  const where = guards.map(({ field }) => `t.${field} = u.${field}`).join(" and ");
  return `unnest(${parameters(columns)}) as u (${fields}) where ${where}`;
}

/** Begins a transaction that writes. */
export const BEGIN = "begin isolation level read committed";

/**
 * A change of rows that fails (division by zero) unless it has found all of them, and with it all
 * that was sent behind it, the COMMIT too. It returns how many were not what they had been read as, though what matters
 * was.
 */
export function checked(change: string): string {
  return (
    `with done as (${change}) ` +
    `select 1 / (count(*) = cardinality($1))::int, count(*) filter (where moved)::int from done`
  );
}

/** Of single values that come as arrays of one. */
export function equalities(columns: readonly Column[]): string {
  return columns.map(({ field, type }, index) => `${field} = ($${index + 1}::${type}[])[1]`).join(" and ");
}

/** One row after the other, all columns side by side; `from unnest` of them would store them all once more. */
export function unnested(columns: readonly Column[], first = 1): string[] {
  return columns.map(({ type }, index) => `unnest($${first + index}::${type}[])`);
}

export function parameters(columns: readonly Column[], first = 1): string {
  return columns.map(({ type }, index) => `$${first + index}::${type}[]`).join(", ");
}
