/** What writes the changes of a unit of work. */
import type { Statement } from "./statement.ts";
import { Table } from "./table.ts";

export type Row = Record<string, unknown>;

/** What becomes of a row. */
export class Tracked {
  readonly table: Table;
  readonly row: Row;
  /** As it was loaded; undefined when it is new. */
  readonly before: readonly string[] | undefined;
  /** Under which it was touched. */
  readonly keys: string[] = [];
  /** Taken over from a batch that was not stored yet: what was decided on it has to be true of what was stored. */
  readonly inherited: boolean;
  /** Properties that decisions have changed; some may be as they were again. */
  noted: Set<string> | undefined = undefined;
  removed = false;
  /** Somebody was refused who had got hold of it: that must not have been on account of counters that had moved on. */
  refused = false;
  /** Properties. Looked up when all is decided. */
  changed: readonly string[] | undefined = undefined;
  /** Only counters have changed. */
  counted = false;

  constructor(table: Table, row: Row, before?: readonly string[], inherited = false) {
    this.table = table;
    this.row = row;
    this.before = before;
    this.inherited = inherited;
  }
}

/**
 * The statements that write all changes, to be sent in this order everywhere, so that processes never wait in a circle:
 * changes of rows by entity and key, then new rows, those that others refer to in front, and last the rows with counters,
 * since many want them at once: they are held no longer than for their update and the COMMIT.
 */
export type Changes = Readonly<Record<"updates" | "inserts" | "counts", readonly Statement[]>>;

export function changesOf(all: Iterable<Tracked>, isShared: (key: string) => boolean): Changes {
  const tables = [...Map.groupBy(all, ({ table }) => table)];
  const byName = tables.toSorted(([a], [b]) => (a.entity.name < b.entity.name ? -1 : 1));
  const byDepth = byName.toSorted(([a], [b]) => a.depth - b.depth);
  const updates = (counting: boolean) =>
    byName.flatMap(([table, rows]) =>
      table.counting === counting ? [...deletesOf(table, rows), ...updatesOf(table, rows, isShared)] : [],
    );
  return { updates: updates(false), inserts: insertsOf(byDepth), counts: updates(true) };
}

function inOrderOfKeys(table: Table, rows: readonly Tracked[]): readonly Tracked[] {
  const keys = rows.map(({ row }) => table.keyOf(row));
  // Most ids are made in increasing order.
  if (keys.every((key, index) => index === 0 || (keys[index - 1] as string) <= key)) return rows;
  const keyed = rows.map((one, index) => ({ one, key: keys[index] as string }));
  return keyed.sort((a, b) => (a.key < b.key ? -1 : 1)).map(({ one }) => one);
}

const rowsOf = (table: Table, tracked: readonly Tracked[]) => inOrderOfKeys(table, tracked).map(({ row }) => row);

function assertVersioned(table: Table): void {
  if (!table.versioned) throw new Error(`${table.entity.name} has no version, so its rows are never changed`);
}

function deletesOf(table: Table, rows: readonly Tracked[]): Statement[] {
  const gone = rows.filter(({ removed, before }) => removed && before);
  if (gone.length === 0) return [];
  assertVersioned(table);
  return [table.delete(rowsOf(table, gone))];
}

function insertsOf(tables: readonly [Table, readonly Tracked[]][]): Statement[] {
  const parts = tables.flatMap(([table, all]) => {
    const added = all.filter(({ removed, before }) => !removed && !before);
    return added.length > 0 ? [{ table, rows: rowsOf(table, added) }] : [];
  });
  return parts.length > 0 ? Table.insert(parts) : [];
}

/** Whether others may have counted on the row meanwhile: nobody has learned what its counters are. */
export function isFree({ counted, changed, refused, keys }: Tracked, isShared: (key: string) => boolean) {
  return counted && changed !== undefined && changed.length > 0 && !refused && keys.every(isShared);
}

/** One statement writes all rows of a table, so that they are locked in the order of their keys. */
function updatesOf(table: Table, rows: readonly Tracked[], isShared: (key: string) => boolean): Statement[] {
  for (const one of rows) {
    if (!one.before) continue;
    // What was changed and changed back is written too: with it goes the check that both decisions were right.
    const changed = table.changes(one.row, one.before);
    one.changed = one.noted ? [...one.noted.union(new Set(changed))] : changed;
    one.counted = one.changed.every((property) => table.isCounter(property));
  }
  const kept = rows.filter(({ before, removed }) => before && !removed);
  const dirty = inOrderOfKeys(
    table,
    kept.filter(({ changed }) => changed?.length),
  );
  const relied = rowsOf(
    table,
    kept.filter(({ inherited, changed }) => inherited && !changed?.length),
  );
  const statements = relied.length > 0 ? [table.verify(relied)] : [];
  if (dirty.length > 0) statements.push(write(table, dirty, isShared));
  if (statements.length > 0) assertVersioned(table);
  return statements;
}

/** Each row gets the columns that have changed in any of them. */
function write(table: Table, dirty: readonly Tracked[], isShared: (key: string) => boolean): Statement {
  const properties = [...new Set(dirty.flatMap(({ changed }) => changed ?? []))].sort();
  if (!dirty.every(({ counted }) => counted)) {
    for (const one of dirty) one.counted = false;
    const rows = dirty.map(({ row }) => row);
    return table.update(properties, rows);
  }
  return table.count(
    properties,
    dirty.map((one) => ({ row: one.row, before: one.before ?? [], exactly: !isFree(one, isShared) })),
  );
}
