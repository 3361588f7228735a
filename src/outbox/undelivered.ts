/** Events that were set aside: they could not be delivered, or stand behind such a one of their aggregate. */
import type { EntityManager } from "@mikro-orm/postgresql";
import { EVENT_COLUMNS, type StoredEvent, toStoredEvent } from "./feed.ts";
import { laneOf } from "./sink.ts";

/** Pauses before an event is tried again, in milliseconds: doubled from the first to the longest. */
const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 60_000;

/** The pause after so many attempts, with jitter: those that failed together should not come again together. */
export function pauseAfter(attempts: number): number {
  return shortestPauseAfter(attempts) * (1 + Math.random());
}

/** How long ago an attempt was at the least when the next one begins, in milliseconds. */
export function shortestPauseAfter(attempts: number): number {
  return Math.min(FIRST_PAUSE * 2 ** (attempts - 1), LONGEST_PAUSE) / 2;
}

/** An event that waits to be tried again. */
export type Undelivered = Readonly<{ event: StoredEvent; attempts: number }>;

/**
 * What became of one that was tried. `attempts`: those that count; 0 when it is held back by another one. `pauseMs`: before
 * it may be tried again; left out: not before it is the first of its aggregate.
 */
export type SetAside = Undelivered & Readonly<{ pauseMs?: number; error: string; dead: boolean }>;

const marks = (count: number, mark = "?") => Array.from({ length: count }, () => mark).join(", ");

/** Those of the aggregates of these events that have some set aside: what comes behind them has to wait, too. */
export async function waitingLanes(em: EntityManager, events: readonly StoredEvent[]): Promise<ReadonlySet<string>> {
  const rows = await em.execute<StoredEvent[]>(
    `select lane.aggregatetype, lane.aggregateid from ${lanesOf(events)}, ${FIRST}`,
    keysOf(events),
  );
  return new Set(rows.map(laneOf));
}

/** The aggregates of events, as the rows of `lane`. */
function lanesOf(events: readonly StoredEvent[]): string {
  const count = new Set(events.map(laneOf)).size;
  return `(values ${marks(count, "(?, ?)")}) as lane (aggregatetype, aggregateid)`;
}

function keysOf(events: readonly StoredEvent[]): string[] {
  const firsts = new Map(events.map((event) => [laneOf(event), event])).values();
  return [...firsts].flatMap(({ aggregatetype, aggregateid }) => [aggregatetype, aggregateid]);
}

/** Of a `lane` the first that waits: found in the index, however many stand behind it. */
const FIRST = `lateral (
    select f.event_id from event_undelivered f
     where f.aggregateid = lane.aggregateid and f.aggregatetype = lane.aggregatetype and not f.dead
     order by f.xid, f.event_id limit 1) first`;

/**
 * Notes what became of events: those that were `delivered` after all are forgotten, others are set aside, or have another
 * attempt. Where the first of an aggregate goes, the next one's turn has come; so it has when it finds nobody in front of it
 * any more. To be called by the one that relays, in a transaction in which it holds that.
 */
export async function note(
  em: EntityManager,
  delivered: readonly StoredEvent[],
  aside: readonly SetAside[],
): Promise<void> {
  const all = [...delivered, ...aside.map(({ event }) => event)];
  if (all.length === 0) return;
  await forget(em, delivered);
  await setAside(em, aside);
  await em.execute(
    `update event_undelivered u set retry_time = clock_timestamp() from ${lanesOf(all)}, ${FIRST}
      where u.aggregateid = lane.aggregateid and u.event_id = first.event_id
        and u.attempts = 0 and u.retry_time > clock_timestamp()`,
    keysOf(all),
  );
}

/**
 * Those that are held back are not due, so that nobody looks at each of them again and again. After a day they are: then it
 * is their turn at the latest if whoever has made them the first did not say so, as an older version.
 */
const RETRY_TIME = "clock_timestamp() + coalesce(?::float8 * interval '1 ms', interval '1 day')";

async function setAside(em: EntityManager, all: readonly SetAside[]): Promise<void> {
  if (all.length === 0) return;
  const values = all.flatMap(({ event, attempts, pauseMs, error, dead }) => [
    ...[event.aggregateid, event.id, event.aggregatetype, event.xid, attempts],
    ...[pauseMs ?? null, dead, error.slice(0, 500)],
  ]);
  await em.execute(
    `insert into event_undelivered
       (aggregateid, event_id, aggregatetype, xid, attempts, retry_time, dead, last_error)
     values ${marks(all.length, `(?, ?, ?, ?::xid8, ?, ${RETRY_TIME}, ?, ?)`)}
     on conflict (aggregateid, event_id) do update set
       attempts = excluded.attempts, retry_time = excluded.retry_time, dead = excluded.dead, last_error = excluded.last_error`,
    values,
  );
}

async function forget(em: EntityManager, events: readonly StoredEvent[]): Promise<void> {
  if (events.length === 0) return;
  const keys = events.flatMap(({ aggregateid, id }) => [aggregateid, id]);
  await em.execute(
    `delete from event_undelivered where (aggregateid, event_id) in (${marks(events.length, "(?, ?::uuid)")})`,
    keys,
  );
}

/**
 * What may be tried again now, at most `limit`, in order: of each aggregate whose first event's pause is over, that one and
 * those behind it.
 */
export async function dueEvents(em: EntityManager, limit: number): Promise<Undelivered[]> {
  const rows = await em.execute<(Parameters<typeof toStoredEvent>[0] & { attempts: number })[]>(
    `with head as (
       select u.aggregatetype, u.aggregateid from event_undelivered u
        where not u.dead and u.retry_time <= clock_timestamp()
          and not exists (
            select from event_undelivered f
             where f.aggregateid = u.aggregateid and f.aggregatetype = u.aggregatetype and not f.dead
               and (f.xid, f.event_id) < (u.xid, u.event_id))
        order by u.retry_time limit ?
     )
     select u.attempts, ${EVENT_COLUMNS}
       from head h, lateral (
         select l.attempts, l.event_id from event_undelivered l
          where l.aggregateid = h.aggregateid and l.aggregatetype = h.aggregatetype and not l.dead
          order by l.xid, l.event_id limit ?) u
       join event e on e.id = u.event_id
      order by e.xid, e.id limit ?`,
    [limit, limit, limit],
  );
  return rows.map(({ attempts, ...event }) => ({ attempts, event: toStoredEvent(event) }));
}

/** Whether all that waits to be tried again is of one aggregate. */
export async function isOnlyLane(em: EntityManager): Promise<boolean> {
  const rows = await em.execute(
    "select distinct aggregatetype, aggregateid from event_undelivered where not dead limit 2",
  );
  return rows.length === 1;
}

/** An event that was set aside, for people. */
export type Listed = Readonly<{
  id: string;
  type: string;
  aggregateid: string;
  attempts: number;
  dead: boolean;
  retryTime: Date;
  lastError: string;
}>;

/** Those that were set aside, the ones given up first, at most `limit`; and how many there are. */
export async function listUndelivered(em: EntityManager, limit: number): Promise<{ events: Listed[]; total: number }> {
  const [count] = await em.execute<{ total: number }[]>("select count(*)::int as total from event_undelivered");
  const rows = await em.execute<(Omit<Listed, "retryTime"> & { retry_time: Date | string })[]>(
    `select u.event_id as id, e.type, u.aggregateid, u.attempts, u.dead, u.retry_time, u.last_error as "lastError"
       from event_undelivered u join event e on e.id = u.event_id
      order by u.dead desc, u.xid, u.event_id limit ?`,
    [limit],
  );
  const events = rows.map(({ retry_time, ...row }) => ({ ...row, retryTime: new Date(retry_time) }));
  return { events, total: count?.total ?? 0 };
}

/** Has events sent again that were given up: all, or those with these ids. Returns how many. */
export async function replay(em: EntityManager, ids?: readonly string[]): Promise<number> {
  const only = ids ? `and event_id in (${marks(ids.length, "?::uuid")})` : "";
  const rows = await em.execute(
    `update event_undelivered set dead = false, attempts = 0, retry_time = clock_timestamp() where dead ${only} returning event_id`,
    [...(ids ?? [])],
  );
  return rows.length;
}
