/** Reads events in the order in which everybody gets them. */
import type { EntityManager } from "@mikro-orm/postgresql";
import type { EventType } from "./event.entity.ts";

/** The last event that somebody has, as its transaction and id. */
export type Position = Readonly<{ xid: string; id: string }>;

/** Before all events. */
export const START: Position = { xid: "0", id: "00000000-0000-0000-0000-000000000000" };

/** An event as it is stored. */
export type StoredEvent = Position &
  Readonly<{
    aggregatetype: string;
    aggregateid: string;
    type: EventType;
    /** JSON. */
    payload: string;
    createTime: Date;
  }>;

type EventRow = Omit<StoredEvent, "createTime"> & { create_time: Date | string };

/** The columns of `event e` as a StoredEvent has them. */
export const EVENT_COLUMNS =
  "e.xid::text as xid, e.id, e.aggregatetype, e.aggregateid, e.type, e.payload::text as payload, e.create_time";

export function toStoredEvent({ create_time, ...event }: EventRow): StoredEvent {
  return { ...event, createTime: new Date(create_time) };
}

/**
 * The next events behind a position, at most `limit`. Only those of transactions that are older than every running one:
 * none can turn up later in front of one that was read.
 */
export async function eventsAfter(em: EntityManager, { xid, id }: Position, limit: number): Promise<StoredEvent[]> {
  const rows = await em.execute<EventRow[]>(
    `select ${EVENT_COLUMNS} from event e
      where (e.xid, e.id) > (?::xid8, ?::uuid) and e.xid < pg_snapshot_xmin(pg_current_snapshot())
      order by e.xid, e.id limit ?`,
    [xid, id, limit],
  );
  return rows.map(toStoredEvent);
}

/** The row of `event_reader` that says how far events have been deleted. */
export const PURGED = "purged";

/** The last event that can be read now, or that was deleted if there is none behind it; START when there never was one. */
export async function newestPosition(em: EntityManager): Promise<Position> {
  const [row] = await em.execute<Position[]>(
    `select xid::text as xid, id from (
       (select e.xid, e.id from event e where e.xid < pg_snapshot_xmin(pg_current_snapshot())
         order by e.xid desc, e.id desc limit 1)
       union all select r.xid, r.event_id from event_reader r where r.name = '${PURGED}') newest
      order by newest.xid desc, newest.id desc limit 1`,
  );
  return row ?? START;
}

/** Whether no transaction of this database can have written an event there: it has not come so far. */
export async function isAhead(em: EntityManager, { xid }: Position): Promise<boolean> {
  const [row] = await em.execute<{ ahead: boolean }[]>(
    "select ?::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) as ahead",
    [xid],
  );
  return row?.ahead === true;
}

/** Whether `one` comes behind `other`. */
export function isBehind(one: Position, other: Position): boolean {
  // Decimal numbers without leading zeros: of two, the longer one is larger.
  if (one.xid.length !== other.xid.length) return one.xid.length > other.xid.length;
  return one.xid === other.xid ? one.id > other.id : one.xid > other.xid;
}
