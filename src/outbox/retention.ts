import type { EntityManager } from "@mikro-orm/postgresql";
import { type EventType, eventTypes } from "./event.entity.ts";
import { type Position, PURGED, START } from "./feed.ts";

/** Who has to have an event before it is deleted, and of which types; left out: of all. */
export type Reader = Readonly<{ name: string; types?: readonly EventType[] }>;

/** Deletes up to `limit` events older than `before` that all these readers have taken care of. Returns how many. */
export async function purgeEvents(
  em: EntityManager,
  before: Date,
  limit: number,
  readers: readonly Reader[],
): Promise<number> {
  const marks = (values: readonly unknown[]) => values.map(() => "?").join(", ");
  const had = readers.map(
    ({ types = eventTypes }) =>
      `and (e.type not in (${marks(types)})
            or (e.xid, e.id) <= (select r.xid, r.event_id from event_reader r where r.name = ?))`,
  );
  const [row] = await em.execute<{ deleted: number }[]>(
    // Their ids begin with the time in milliseconds, so the primary key finds the oldest.
    `with deleted as (delete from event where id in (
       select e.id from event e
        where e.id < ?::uuid ${had.join(" ")}
          and not exists (select from event_undelivered u where u.aggregateid = e.aggregateid and u.event_id = e.id)
        order by e.id limit ?
        for update skip locked) returning xid, id),
     last as (select xid, id from deleted order by xid desc, id desc limit 1),
     noted as (
       update event_reader r set xid = last.xid, event_id = last.id from last
        where r.name = '${PURGED}' and (r.xid, r.event_id) < (last.xid, last.id))
     select count(*)::int as deleted from deleted`,
    [firstIdAt(before), ...readers.flatMap(({ name, types = eventTypes }) => [...types, name]), limit],
  );
  return row?.deleted ?? 0;
}

/** The last event, in the order in which everybody gets them, that has been deleted; START when none was. */
export async function purgedPosition(em: EntityManager): Promise<Position> {
  const [row] = await em.execute<Position[]>(
    `select xid::text as xid, event_id as id from event_reader where name = '${PURGED}'`,
  );
  return row ?? START;
}

/** The smallest UUIDv7 of a millisecond. */
function firstIdAt(time: Date): string {
  const hex = Math.max(0, time.getTime()).toString(16).padStart(12, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`;
}

/** The millisecond in which a UUIDv7 was made. */
export function timeOf(id: string): Date {
  return new Date(Number.parseInt(id.replace("-", "").slice(0, 12), 16));
}
