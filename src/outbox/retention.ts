import type { EntityManager } from "@mikro-orm/postgresql";
import { MOST, type Waiting } from "../db/lag.ts";
import { type EventType, eventTypes } from "./event.entity.ts";
import { type Position, PURGED, START } from "./feed.ts";

/** Who has to have an event before it is deleted, and of which types; left out: of all. */
export type Reader = Readonly<{ name: string; types?: readonly EventType[] }>;

/** Any number that all replicas agree on: the advisory lock under which one of them deletes events. */
const PURGE_LOCK = 7_304_015;

/** Of `event e`: those older than `before` that all these readers have taken care of, as a condition and its parameters. */
function purgeable(before: Date, readers: readonly Reader[]): { condition: string; values: unknown[] } {
  const marks = (values: readonly unknown[]) => values.map(() => "?").join(", ");
  const had = readers.map(
    ({ types = eventTypes }) =>
      `and (e.type not in (${marks(types)})
            or (e.xid, e.id) <= (select r.xid, r.event_id from event_reader r where r.name = ?))`,
  );
  return {
    // Their ids begin with the time in milliseconds, so the primary key finds the oldest.
    condition: `e.id < ?::uuid ${had.join(" ")}
          and not exists (select from event_undelivered u where u.aggregateid = e.aggregateid and u.event_id = e.id)`,
    values: [firstIdAt(before), ...readers.flatMap(({ name, types = eventTypes }) => [...types, name])],
  };
}

/**
 * Deletes up to `limit` events older than `before` that all these readers have taken care of. Returns how many; none while
 * another replica is at it, since both would note how far they have come.
 */
export async function purgeEvents(
  em: EntityManager,
  before: Date,
  limit: number,
  readers: readonly Reader[],
): Promise<number> {
  const { condition, values } = purgeable(before, readers);
  const [row] = await em.execute<{ deleted: number }[]>(
    `with deleted as (delete from event where id in (
       select e.id from event e
        where (select pg_try_advisory_xact_lock(${PURGE_LOCK})) and ${condition}
        order by e.id limit ?
        for update skip locked) returning xid, id),
     last as (select xid, id from deleted order by xid desc, id desc limit 1),
     noted as (
       update event_reader r set xid = last.xid, event_id = last.id from last
        where r.name = '${PURGED}' and (r.xid, r.event_id) < (last.xid, last.id))
     select count(*)::int as deleted from deleted`,
    [...values, limit],
  );
  return row?.deleted ?? 0;
}

/** Events that have been kept for longer than `ttlMs` and that nobody needs any more. */
export function oldEvents(ttlMs: number, readers: readonly Reader[]): Waiting {
  const { condition, values } = purgeable(new Date(Date.now() - ttlMs), readers);
  return {
    sql: `select e.create_time + ? * interval '1 ms' as due_time, 0 as failures
            from (select * from event order by id limit ${MOST}) e
           where ${condition}`,
    values: [ttlMs, ...values],
  };
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
