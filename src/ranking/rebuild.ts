import { randomUUID } from "node:crypto";
import type { EntityManager } from "@mikro-orm/postgresql";
import { isLockTimeout } from "../db/conflict.ts";
import type { Database } from "../db/database.ts";
import { START } from "../outbox/feed.ts";
import { assertNotRestored } from "../outbox/rebase.ts";
import { purgedPosition, timeOf } from "../outbox/retention.ts";
import { lockSales, projection, RANKED, SALES } from "./projection.ts";
import { forgetWindows } from "./window.ts";

const HOUR = 60 * 60 * 1000;
/** How many events are counted in one transaction. */
const BATCH = 5_000;
/** Its row in `event_reader`, and where it counts, while it is at it. */
const READER = "sales.rebuild";
const BUCKETS = "ranking_rebuild";
/** When it is taken for dead, unless it says otherwise: longer than a batch takes. */
const LEASE_END = "clock_timestamp() + interval '1 minute'";

/** Up to where the ranking in use has counted, and no further: so each of its hours can be replaced, and others stay. */
const PROJECT = projection(READER, BUCKETS, {
  only: `(e.xid, e.id) <= (select xid, event_id from event_reader where name = '${SALES}')`,
});

/**
 * Counts the ranking anew from all events that are kept, beside the one that is in use, and then takes its place; sales go
 * on meanwhile. Hours of which events may have been deleted stay as they are. `onProgress` hears how many events are counted,
 * of how many.
 *
 * @throws Error with one line for the operator when somebody else is at it
 */
export async function rebuildRanking(db: Database, onProgress: (done: number, total: number) => void): Promise<void> {
  const owner = randomUUID();
  const total = await db.maintain((em) => begin(em, owner));
  try {
    let done = 0;
    for (let events = BATCH; events === BATCH; done += events) {
      onProgress(Math.min(done, total), total);
      events = await db.maintain((em) => count(em, owner));
    }
    await db.maintain((em) => replace(em, owner));
  } catch (error) {
    const release = "update event_reader set owner = null where name = ? and owner = ?";
    await db.maintain((em) => em.execute(release, [READER, owner])).catch(() => {});
    throw error;
  }
  onProgress(total, total);
}

async function begin(em: EntityManager, owner: string): Promise<number> {
  await assertNotRestored(em);
  const busy = new Error("somebody rebuilds the ranking already; if that was broken off, try again in a minute");
  await em.execute("select from event_reader where name = ? for update nowait", [READER]).catch((error) => {
    throw isLockTimeout(error) ? busy : error;
  });
  const claimed = await em.execute(
    `insert into event_reader as r (name, xid, event_id, owner, lease_end) values (?, ?::xid8, ?, ?, ${LEASE_END})
       on conflict (name) do update
          set xid = excluded.xid, event_id = excluded.event_id, owner = excluded.owner, lease_end = excluded.lease_end
        where r.owner is null or r.lease_end < clock_timestamp()
     returning name`,
    [READER, START.xid, START.id, owner],
  );
  if (claimed.length === 0) throw busy;
  await em.execute(`drop table if exists ${BUCKETS}`);
  await em.execute(`create table ${BUCKETS} (like ranking_bucket including all)`);
  const [row] = await em.execute<{ total: number }[]>(`select count(*)::int as total from event e where ${RANKED}`);
  return row?.total ?? 0;
}

/** Counts the next events. Returns how many. */
async function count(em: EntityManager, owner: string): Promise<number> {
  const held = await em.execute(
    `update event_reader set lease_end = ${LEASE_END} where name = ? and owner = ? returning name`,
    [READER, owner],
  );
  if (held.length === 0) throw new Error("this took so long that somebody else rebuilds the ranking now");
  const [row] = await em.execute<{ events: number }[]>(PROJECT, [BATCH]);
  return row?.events ?? 0;
}

async function replace(em: EntityManager, owner: string): Promise<void> {
  // From here on nobody counts sales; the few that came meanwhile are counted here.
  await lockSales(em, { wait: true });
  while ((await count(em, owner)) > 0);
  // Of what was deleted, this is not quite the youngest: clocks of processes differ, and transactions take their time.
  const purged = timeOf((await purgedPosition(em)).id);
  const whole = new Date((Math.floor(purged.getTime() / HOUR) + 2) * HOUR);
  await em.execute("delete from ranking_bucket where hour >= ?", [whole]);
  await em.execute(`insert into ranking_bucket select * from ${BUCKETS} where hour >= ?`, [whole]);
  await forgetWindows(em);
  await em.execute("delete from event_reader where name = ?", [READER]);
  await em.execute(`drop table ${BUCKETS}`);
}
