/** What writes the rows of a unit of work. */
import type { Statement, Table } from "./table.ts";

type Row = Record<string, unknown>;

/** What becomes of a row when the unit of work is written. `changed`: properties, looked up when all is decided. */
export type Tracked = {
  table: Table;
  row: Row;
  before: readonly string[] | undefined;
  removed: boolean;
  changed?: readonly string[];
};

/**
 * What writes all changes. First those that lock rows, in the order in which `loadLocked` locks them, then new rows,
 * those that others refer to in front: whoever waits for another process holds nothing that the other waits for.
 */
export function changesOf(tracked: Iterable<Tracked>): Statement[] {
  const tables = [...Map.groupBy(tracked, ({ table }) => table)];
  const byName = tables.toSorted(([a], [b]) => (a.entity.name < b.entity.name ? -1 : 1));
  const byDepth = tables.toSorted(([a], [b]) => a.depth - b.depth);
  return [
    ...byName.flatMap(([table, rows]) => [...deletesOf(table, rows), ...updatesOf(table, rows)]),
    ...byDepth.flatMap(([table, rows]) => insertsOf(table, rows)),
  ];
}

function inOrderOfKeys(table: Table, rows: readonly Tracked[]): Row[] {
  const keyed = rows.map(({ row }) => ({ row, key: table.keyOf(row) }));
  return keyed.sort((a, b) => (a.key < b.key ? -1 : 1)).map(({ row }) => row);
}

function deletesOf(table: Table, rows: readonly Tracked[]): Statement[] {
  const gone = rows.filter(({ removed, before }) => removed && before);
  return gone.length > 0 ? [table.delete(inOrderOfKeys(table, gone))] : [];
}

function insertsOf(table: Table, rows: readonly Tracked[]): Statement[] {
  const added = rows.filter(({ removed, before }) => !removed && !before);
  return added.length > 0 ? [table.insert(inOrderOfKeys(table, added))] : [];
}

/** Writes what has changed in any of the rows: all of them get the same columns, so that one statement does. */
function updatesOf(table: Table, rows: readonly Tracked[]): Statement[] {
  const changed = new Set<string>();
  const dirty = rows.filter((tracked) => {
    const { row, before, removed } = tracked;
    if (!before || removed) return false;
    tracked.changed = table.changes(row, before);
    for (const property of tracked.changed) changed.add(property);
    return tracked.changed.length > 0;
  });
  return dirty.length > 0 ? [table.update([...changed].sort(), inOrderOfKeys(table, dirty))] : [];
}
